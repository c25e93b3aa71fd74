//! The listener with sessions of the tests' own, over real sockets.

// Helpers of tests are outside of `#[test]` functions, so clippy does not see that they are tests.
#![allow(clippy::unwrap_used)]

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{self, Poll, Waker};
use std::time::Duration;

use deeperhub_listener::{
    Accepted, Application, Closed, Config, ConnectionKey, Connections, Context, Listener, MemoryBudget,
    Message, Metrics, Peer, ReconnectTo, Session, WorkerState,
};
use deeperhub_metrics::Cells;
use deeperhub_protocol::frame::{self, Frame};
use deeperhub_protocol::handshake::{Refusal, Request};
use deeperhub_protocol::{CloseCode, CloseReason};
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::{self, Message as Text};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// Far more than anything here takes on a busy machine.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// What the tests see and cause.
#[derive(Default)]
struct Stage {
    opened: AtomicUsize,
    closed: Mutex<Vec<Closed>>,
    wakers: Mutex<Vec<Waker>>,
    /// Number of panics that workers still raise when they are polled.
    deaths: AtomicUsize,
    hangs: Mutex<Hangs>,
    released: Condvar,
}

/// Workers that hang at a client's request until they are released.
#[derive(Default)]
struct Hangs {
    now: usize,
    is_released: bool,
}

impl Stage {
    fn hang(&self) {
        let mut hangs = self.hangs.lock().unwrap();
        hangs.now += 1;
        let wait = self.released.wait_timeout_while(hangs, 4 * TEST_TIMEOUT, |hangs| !hangs.is_released);
        wait.unwrap().0.now -= 1;
    }

    fn release(&self) {
        self.hangs.lock().unwrap().is_released = true;
        self.released.notify_all();
    }
}

struct Hub(Arc<Stage>);

struct Worker {
    stage: Arc<Stage>,
    flood: Option<ConnectionKey>,
    /// A connection said `die`: the worker that it is on does, and no other.
    dies: bool,
}

struct Talker;

impl Application for Hub {
    type WorkerState = Worker;
    type Session = Talker;

    fn worker_state(&self, _worker: usize) -> Worker {
        Worker { stage: Arc::clone(&self.0), flood: None, dies: false }
    }

    fn accept(
        &self,
        _request: Request,
        _peer: Peer,
    ) -> impl Future<Output = Result<Accepted<Talker>, Refusal>> + 'static {
        std::future::ready(Ok(Accepted { session: Talker, subprotocol: None }))
    }
}

impl WorkerState<Talker> for Worker {
    fn poll(&mut self, cx: &mut task::Context<'_>, connections: &mut Connections<'_, Talker>) -> Poll<()> {
        let mut wakers = self.stage.wakers.lock().unwrap();
        if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            wakers.push(cx.waker().clone());
        }
        drop(wakers);
        let dies_again = || {
            self.stage.deaths.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
        };
        if self.dies || dies_again() {
            panic!("a test kills this worker");
        }
        if let Some(key) = self.flood {
            let frame = Frame::binary(&vec![7; 64 * 1024]);
            while connections.send_budget() > 0 && connections.send(key, &frame).is_some() {}
            self.flood = None;
        }
        Poll::Pending
    }
}

impl Session for Talker {
    type WorkerState = Worker;

    fn on_open(&mut self, cx: &mut Context<'_, Worker>) {
        cx.worker().stage.opened.fetch_add(1, Ordering::Relaxed);
    }

    fn on_message(&mut self, message: Message<'_>, cx: &mut Context<'_, Worker>) {
        match message {
            Message::Text("panic") => panic!("a test makes this session panic"),
            Message::Text("flood") => {
                let key = cx.key();
                cx.worker().flood = Some(key);
            }
            // What others send meanwhile is there when the worker looks again.
            Message::Text("stall") => std::thread::sleep(Duration::from_millis(20)),
            Message::Text("hang") => cx.worker().stage.hang(),
            Message::Text("die") => cx.worker().dies = true,
            Message::Text("close") => cx.close(CloseReason::new(CloseCode::Disconnected, "as asked")),
            Message::Text(text) => cx.reply(|out| frame::write_text(out, text)),
            Message::Binary(bytes) => cx.reply(|out| frame::write_binary(out, bytes)),
        }
    }

    fn on_server_close(&mut self, _reason: &CloseReason, _retry_after: Option<Duration>, out: &mut Vec<u8>) {
        frame::write_text(out, "goodbye");
    }

    fn on_close(&mut self, _key: ConnectionKey, closed: &Closed, local: &mut Worker) {
        local.stage.closed.lock().unwrap().push(closed.clone());
    }
}

struct Running {
    listener: Listener,
    metrics: Metrics,
    stage: Arc<Stage>,
}

fn start(change: impl FnOnce(&mut Config)) -> Running {
    let mut config = Config::default();
    config.workers = 1;
    change(&mut config);
    let cells = Cells::new(config.workers);
    let metrics = Metrics::new(&cells);
    let stage = Arc::new(Stage::default());
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = Listener::builder(Hub(Arc::clone(&stage)))
        .config(config)
        .metrics(&cells, metrics.clone())
        .bind(address)
        .unwrap();
    Running { listener, metrics, stage }
}

type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn within_timeout<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_TIMEOUT, future).await.expect("it comes in time")
}

impl Running {
    async fn connect(&self) -> Client {
        self.try_connect().await.expect("the connection is accepted")
    }

    async fn try_connect(&self) -> Result<Client, tungstenite::Error> {
        let url = format!("ws://{}/", self.listener.local_addr());
        within_timeout(connect_async(url)).await.map(|(client, _)| client)
    }

    /// Status and body of the answer to a request head typed by hand.
    async fn http(&self, head: &str) -> String {
        let mut socket = TcpStream::connect(self.listener.local_addr()).await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = within_timeout(socket.read_to_string(&mut answer)).await;
        answer
    }

    async fn wait_until(&self, reached: impl Fn(&Self) -> bool) {
        within_timeout(async {
            while !reached(self) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }
}

/// Reads to the close frame: the texts before it, and its code.
async fn read_to_close(client: &mut Client) -> (Vec<String>, Option<u16>) {
    let mut texts = Vec::new();
    loop {
        match within_timeout(client.next()).await {
            Some(Ok(Text::Text(text))) => texts.push(text.to_string()),
            Some(Ok(Text::Close(close))) => return (texts, close.map(|close| close.code.into())),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return (texts, None),
        }
    }
}

async fn echoes(client: &mut Client) {
    client.send(Text::text("still here")).await.unwrap();
    let reply = within_timeout(client.next()).await.unwrap().unwrap();
    assert_eq!(reply, Text::text("still here"));
}

#[tokio::test]
async fn a_session_that_panics_closes_only_its_own_connection() {
    let running = start(|_| {});
    let mut healthy = running.connect().await;
    let mut doomed = running.connect().await;
    doomed.send(Text::text("panic")).await.unwrap();
    assert_eq!(read_to_close(&mut doomed).await.1, Some(1011));
    assert_eq!(running.metrics.session_panics.value(), 1);
    echoes(&mut healthy).await;
}

/// Many clients that the worker finds ready at once: short and long messages, several at a time, parts of one, clients that
/// have left.
async fn check_that_all_get_their_own_echoes(change: impl FnOnce(&mut Config)) {
    const CLIENTS: usize = 40;
    const ROUNDS: usize = 12;
    let running = start(|config| {
        config.max_connections = 2 * CLIENTS;
        change(config);
    });
    let mut staller = running.connect().await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(running.connect().await);
    }
    let message = |client: usize, round: usize| {
        // Around the sizes at which a read takes another way, among others.
        let sizes = [1, 125, 126, 3000, 4080, 4088, 4096, 4340, 4346, 4352, 5000, 30_000, 60_000];
        let size = sizes[(client * 7 + round * 5) % sizes.len()];
        format!("{client} {round} {}", "x".repeat(size))
    };
    for round in 0..ROUNDS {
        staller.send(Text::text("stall")).await.unwrap();
        for (nth, client) in clients.iter_mut().enumerate() {
            for part in 0..=nth % 3 {
                client.feed(Text::text(message(nth, round + part))).await.unwrap();
            }
        }
        // From all of them before any is answered.
        for client in &mut clients {
            within_timeout(client.flush()).await.unwrap();
        }
        for (nth, client) in clients.iter_mut().enumerate() {
            for part in 0..=nth % 3 {
                let echo = within_timeout(client.next()).await.unwrap().unwrap();
                assert_eq!(echo, Text::text(message(nth, round + part)));
            }
        }
    }
    // Some say something and leave, by a reset, by the end of their side, and with a close frame.
    staller.send(Text::text("stall")).await.unwrap();
    for (nth, client) in clients.iter_mut().enumerate().take(CLIENTS / 2) {
        client.send(Text::text("last words")).await.unwrap();
        let MaybeTlsStream::Plain(socket) = client.get_mut() else { panic!("no TLS here") };
        match nth % 3 {
            0 => socket.set_zero_linger().unwrap(),
            1 => socket.shutdown().await.unwrap(),
            _ => client.close(None).await.unwrap(),
        }
    }
    drop(clients.drain(..CLIENTS / 2));
    for client in &mut clients {
        echoes(client).await;
    }
    running.wait_until(|running| running.listener.connections() == CLIENTS / 2 + 1).await;
    assert_eq!(running.stage.closed.lock().unwrap().len(), CLIENTS / 2);
    assert_eq!(running.metrics.worker_restarts.value(), 0);
}

#[tokio::test]
async fn all_get_their_own_echoes() {
    check_that_all_get_their_own_echoes(|_| {}).await;
}

#[cfg(feature = "io-uring")]
#[tokio::test]
async fn all_get_their_own_echoes_where_each_has_system_calls_of_its_own() {
    check_that_all_get_their_own_echoes(|config| config.io_uring = false).await;
}

#[tokio::test]
async fn a_worker_that_dies_is_replaced_and_the_others_notice_nothing() {
    let running = start(|config| config.workers = 2);
    // The least loaded worker gets the next connection, so these two are on different ones.
    let mut clients = [running.connect().await, running.connect().await];
    clients[0].send(Text::text("die")).await.unwrap();
    running.wait_until(|running| running.metrics.worker_restarts.value() == 1).await;
    let (_, code) = read_to_close(&mut clients[0]).await;
    assert_eq!(code, Some(1011));
    echoes(&mut clients[1]).await;
    running.wait_until(|running| running.listener.connections() == 1).await;
    for _ in 0..2 {
        echoes(&mut running.connect().await).await;
    }
}

impl Running {
    /// Starts two workers, one of which hangs, with a client of each.
    async fn with_a_worker_that_hangs() -> (Self, Client, Client) {
        let running = start(|config| config.workers = 2);
        let (mut hung, healthy) = (running.connect().await, running.connect().await);
        hung.send(Text::text("hang")).await.unwrap();
        running.wait_until(|running| running.stage.hangs.lock().unwrap().now == 1).await;
        (running, hung, healthy)
    }
}

#[tokio::test]
async fn new_clients_do_not_wait_for_a_worker_that_hangs() {
    let (running, mut hung, mut healthy) = Running::with_a_worker_that_hangs().await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        // The first may be queued for the hung worker, and are then reassigned.
        let mut client = running.connect().await;
        echoes(&mut client).await;
        clients.push(client);
    }
    echoes(&mut healthy).await;
    assert_eq!(running.stage.hangs.lock().unwrap().now, 1, "it hangs still");
    running.stage.release();
    echoes(&mut hung).await;
    assert_eq!(running.listener.connections(), 22);
}

#[tokio::test]
async fn accepting_pauses_while_all_workers_are_behind() {
    const CLIENTS: usize = 400;
    let running = start(|config| {
        config.max_connections = 2 * CLIENTS;
        config.handshake_timeout = TEST_TIMEOUT;
    });
    let mut hung = running.connect().await;
    hung.send(Text::text("hang")).await.unwrap();
    running.wait_until(|running| running.stage.hangs.lock().unwrap().now == 1).await;
    let mut sockets = Vec::new();
    for _ in 0..CLIENTS {
        let mut socket = TcpStream::connect(running.listener.local_addr()).await.unwrap();
        socket.write_all(UPGRADE.as_bytes()).await.unwrap();
        sockets.push(socket);
    }
    running.wait_until(|running| running.metrics.accept_pauses.value() > 3).await;
    assert!(running.listener.connections() < CLIENTS);
    running.stage.release();
    for socket in &mut sockets {
        let mut start = [0; 12];
        within_timeout(socket.read_exact(&mut start)).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 101");
    }
}

#[tokio::test]
async fn a_hanging_worker_does_not_hold_up_drain_and_stop() {
    let (running, hung, mut healthy) = Running::with_a_worker_that_hangs().await;
    let reading = tokio::spawn(async move { read_to_close(&mut healthy).await.1 });
    within_timeout(running.listener.drain(Duration::from_millis(500), ReconnectTo::ThisNode)).await;
    assert_eq!(reading.await.unwrap(), Some(1001));
    within_timeout(running.listener.stop()).await;
    assert_eq!(running.stage.hangs.lock().unwrap().now, 1, "it hangs still");
    drop(hung);
    running.stage.release();
}

#[tokio::test]
async fn a_worker_that_dies_tells_each_session_and_releases_its_permits() {
    let running = start(|_| {});
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(running.connect().await);
    }
    // Replies from before the panic are not lost.
    clients[0].send(Text::text("last words")).await.unwrap();
    clients[0].send(Text::text("die")).await.unwrap();
    for (nth, client) in clients.iter_mut().enumerate() {
        let words = if nth == 0 { vec!["last words".to_owned()] } else { Vec::new() };
        assert_eq!(read_to_close(client).await, (words, Some(1011)));
        let _ = within_timeout(client.next()).await;
    }
    running.wait_until(|running| running.listener.connections() == 0).await;
    let closed = running.stage.closed.lock().unwrap().clone();
    assert_eq!(closed.len(), 5);
    let is_fault = |closed: &Closed| matches!(closed, Closed::ByServer(reason) if reason.code() == CloseCode::InternalError);
    assert!(closed.iter().all(is_fault), "{closed:?}");
    echoes(&mut running.connect().await).await;
}

#[tokio::test]
async fn a_worker_that_dies_again_and_again_tells_each_session_once_and_comes_back() {
    let running = start(|_| {});
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(running.connect().await);
    }
    running.stage.deaths.store(3, Ordering::Relaxed);
    clients[0].send(Text::text("die")).await.unwrap();
    for client in &mut clients {
        assert_eq!(read_to_close(client).await.1, Some(1011));
    }
    running.wait_until(|running| running.metrics.worker_restarts.value() == 4).await;
    let mut client = running.connect().await;
    echoes(&mut client).await;
    assert_eq!(running.stage.closed.lock().unwrap().len(), 5);
}

#[tokio::test]
async fn a_replaced_worker_knows_of_the_drain() {
    let running = start(|_| {});
    let mut clients = [running.connect().await, running.connect().await, running.connect().await];
    let mut late = TcpStream::connect(running.listener.local_addr()).await.unwrap();
    running.wait_until(|running| running.listener.connections() == 4).await;
    let listener = &running.listener;
    let dies = async {
        // One client is closed at once, the others within an hour.
        for client in &mut clients {
            let _ = client.send(Text::text("die")).await;
        }
        running.wait_until(|running| running.metrics.worker_restarts.value() == 1).await;
        late.write_all(UPGRADE.as_bytes()).await.unwrap();
        let mut answer = String::new();
        within_timeout(late.read_to_string(&mut answer)).await.unwrap();
        answer
    };
    let drain = listener.drain(Duration::from_secs(3600), ReconnectTo::ThisNode);
    let answer = tokio::select! {
        biased;
        () = drain => panic!("the drain ended before its time"),
        answer = dies => answer,
    };
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\"draining\""), "{answer}");
    let retry = answer.lines().find_map(|line| line.strip_prefix("Retry-After: ")).unwrap();
    assert!(retry.parse::<u64>().unwrap() > 3600, "the server is not back before the drain is over: {retry}");
}

#[tokio::test]
async fn a_peer_that_does_not_read_is_closed_with_1013_once_it_does() {
    let running = start(|config| config.max_queue_bytes = 100_000);
    let mut healthy = running.connect().await;
    let mut slow = running.connect().await;
    slow.send(Text::text("flood")).await.unwrap();
    running.wait_until(|running| running.metrics.slow_consumers.value() == 1).await;
    echoes(&mut healthy).await;
    let (texts, code) = read_to_close(&mut slow).await;
    assert_eq!((texts, code), (vec!["goodbye".to_owned()], Some(1013)));
    let closed = running.stage.closed.lock().unwrap();
    assert!(matches!(&closed[..], [Closed::ByServer(reason)] if reason.code() == CloseCode::SlowConsumer));
}

#[tokio::test]
async fn a_peer_without_a_pong_is_closed_with_4200() {
    let running = start(|config| {
        config.ping_interval = Duration::from_millis(60);
        config.pong_timeout = Duration::from_millis(60);
    });
    let mut socket = TcpStream::connect(running.listener.local_addr()).await.unwrap();
    socket.write_all(UPGRADE.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    within_timeout(socket.read_to_end(&mut all)).await.unwrap();
    let code = 4200_u16.to_be_bytes();
    assert!(all.windows(2).any(|pair| pair == code), "no 4200 in {all:?}");
    assert_eq!(running.metrics.pong_timeouts.value(), 1);
}

const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[tokio::test]
async fn refusals_are_http_with_a_code() {
    let running = start(|_| {});
    for (head, status, code) in [
        ("GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "404", "not_found"),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), "426", "upgrade_required"),
        (UPGRADE.replace("GET", "POST"), "405", "method_not_allowed"),
        (UPGRADE.replace("dGhl", ""), "400", "bad_handshake"),
        ("nonsense\r\n\r\n".to_owned(), "400", "bad_handshake"),
    ] {
        let answer = running.http(&head).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head:?}: {answer}");
        assert!(answer.contains(&format!("\"code\":\"{code}\"")), "{head:?}: {answer}");
    }
    running.wait_until(|running| running.listener.connections() == 0).await;
}

#[tokio::test]
async fn a_full_server_says_so_and_has_room_again_later() {
    let running = start(|config| config.max_connections = 1);
    let mut first = running.connect().await;
    let Err(tungstenite::Error::Http(answer)) = running.try_connect().await else { panic!("not refused") };
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    first.close(None).await.unwrap();
    running.wait_until(|running| running.listener.connections() == 0).await;
    echoes(&mut running.connect().await).await;
}

#[tokio::test]
async fn an_address_has_its_limit() {
    let running = start(|config| config.max_connections_per_ip = Some(1));
    let mut first = running.connect().await;
    let Err(tungstenite::Error::Http(answer)) = running.try_connect().await else { panic!("not refused") };
    assert_eq!(answer.status(), 429);
    echoes(&mut first).await;
}

#[tokio::test]
async fn slow_handshakes_end() {
    let running = start(|config| config.handshake_timeout = Duration::from_millis(100));
    let silent = TcpStream::connect(running.listener.local_addr()).await.unwrap();
    let answer = running.http("GET / HTTP/1.1\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    running.wait_until(|running| running.listener.connections() == 0).await;
    drop(silent);
}

#[tokio::test]
async fn a_clients_close_code_comes_back() {
    let running = start(|_| {});
    let mut client = running.connect().await;
    let frame = tungstenite::protocol::CloseFrame { code: 3210.into(), reason: "bye".into() };
    client.close(Some(frame)).await.unwrap();
    assert_eq!(read_to_close(&mut client).await.1, Some(3210));
    running.wait_until(|running| running.listener.connections() == 0).await;
    assert_eq!(*running.stage.closed.lock().unwrap(), [Closed::ByPeer { code: Some(3210) }]);
}

#[tokio::test]
async fn a_drain_closes_all_with_1001_and_refuses_newcomers() {
    let running = start(|config| config.workers = 2);
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(running.connect().await);
    }
    let reading = tokio::spawn(async move {
        for client in &mut clients {
            assert_eq!(read_to_close(client).await, (vec!["goodbye".to_owned()], Some(1001)));
            // The answer to the close frame.
            let _ = within_timeout(client.next()).await;
        }
    });
    within_timeout(running.listener.drain(TEST_TIMEOUT, ReconnectTo::OtherNodes)).await;
    reading.await.unwrap();
    assert_eq!(running.listener.connections(), 0);
    let Err(tungstenite::Error::Http(answer)) = running.try_connect().await else { panic!("not refused") };
    assert_eq!(answer.status(), 503);
    running.listener.stop().await;
    assert_eq!(running.stage.closed.lock().unwrap().len(), 10);
}

#[tokio::test]
async fn the_close_frame_is_not_lost_to_a_reset() {
    let running = start(|config| config.max_message_bytes = 1000);
    let mut client = running.connect().await;
    // More follows behind what is refused: closing the socket with it unread would reset the connection.
    for _ in 0..50 {
        if client.feed(Text::binary(vec![0; 5000])).await.is_err() {
            break;
        }
    }
    let _ = client.flush().await;
    assert_eq!(read_to_close(&mut client).await.1, Some(1009));
}

/// A handshake in bytes, with an offer of compression that keeps its context.
const HANDSHAKE: &str = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";

/// The start of a masked text frame (with a mask of zeros), and what of its payload comes.
fn text_frame(first: u8, length: u16, payload: &[u8]) -> Vec<u8> {
    let [high, low] = length.to_be_bytes();
    [&[first, 0xfe, high, low, 0, 0, 0, 0], payload].concat()
}

/// A compressed text message of one stored block (RFC 1951 section 3.2.4), which history is made of.
fn stored(text: &[u8]) -> Vec<u8> {
    let [low, high] = u16::try_from(text.len()).unwrap().to_le_bytes();
    let block = [&[0, low, high, !low, !high], text, &[0]].concat();
    text_frame(0xc1, u16::try_from(block.len()).unwrap(), &block)
}

/// Tells the budget that nine tenths are in use until somebody was given up, and reads what that one is told.
async fn is_shed(running: &Running, budget: &MemoryBudget, sent: &[u8]) -> String {
    let mut socket = TcpStream::connect(running.listener.local_addr()).await.unwrap();
    let (before, received) = (running.metrics.memory_sheds.value(), running.metrics.received_bytes.value());
    socket.write_all(sent).await.unwrap();
    // While memory is short it would not be let in.
    running
        .wait_until(|running| running.metrics.received_bytes.value() >= received + sent.len() as u64)
        .await;
    within_timeout(async {
        while running.metrics.memory_sheds.value() == before {
            budget.update(900_000);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    budget.update(0);
    let mut told = Vec::new();
    let _ = within_timeout(socket.read_to_end(&mut told)).await;
    String::from_utf8_lossy(&told).into_owned()
}

#[tokio::test]
async fn connections_that_hold_the_most_are_shed_when_memory_is_short() {
    let budget = Arc::new(MemoryBudget::new(1_000_000));
    let running = start(|config| {
        config.memory = Some(Arc::clone(&budget));
        config.compression.client_context_takeover = true;
        config.handshake_timeout = TEST_TIMEOUT;
    });
    let mut healthy = running.connect().await;
    let unfinished = text_frame(0x81, 60_000, &[b'x'; 20_000]);
    let fragment = text_frame(0x01, 20_000, &[b'x'; 20_000]);
    for (what, sent) in [
        ("a frame that does not come whole", unfinished),
        ("a message that does not come whole", fragment),
        ("what a client may refer to later", stored(&[b'x'; 20_000])),
    ] {
        let told = is_shed(&running, &budget, &[HANDSHAKE.as_bytes(), &sent].concat()).await;
        assert!(told.contains("too slow: memory is short"), "{what}: {told}");
        echoes(&mut healthy).await;
    }
    let head = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(12_000));
    let told = is_shed(&running, &budget, head.as_bytes()).await;
    assert!(told.starts_with("HTTP/1.1 503 ") && told.contains("\r\nRetry-After: "), "{told}");
    echoes(&mut healthy).await;
    running.wait_until(|running| running.stage.closed.lock().unwrap().len() == 3).await;
    assert_eq!(running.metrics.memory_sheds.value(), 4);
}

#[tokio::test]
async fn who_holds_nothing_is_not_given_up_however_short_memory_is() {
    let budget = Arc::new(MemoryBudget::new(1_000_000));
    let running = start(|config| config.memory = Some(Arc::clone(&budget)));
    let mut healthy = running.connect().await;
    for _ in 0..30 {
        budget.update(999_999);
        echoes(&mut healthy).await;
    }
    assert_eq!(running.metrics.memory_sheds.value(), 0);
}
