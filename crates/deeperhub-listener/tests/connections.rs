//! Tests of a listener with real sockets and sessions that misbehave on request.

// Clippy allows `unwrap` in test functions only, not in their helpers.
#![allow(clippy::unwrap_used)]

#[cfg(all(feature = "io-uring", target_os = "linux"))]
#[path = "../../../tests/support/capability.rs"]
mod capability;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::task::{self, Poll};
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

/// Timeout far longer than the tests take on a busy machine.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

/// State that the sessions and worker states share with the test.
#[derive(Default)]
struct Shared {
    /// Ends of all sessions.
    closed: Mutex<Vec<Closed>>,
    /// Number of panics that are still to be raised when worker states are polled.
    injected_panics: AtomicUsize,
    hangs: Mutex<Hangs>,
    released: Condvar,
}

/// Workers that hang at a client's request until they are released.
#[derive(Default)]
struct Hangs {
    /// Number of workers that hang now.
    workers: usize,
    is_released: bool,
}

impl Shared {
    /// Blocks the worker until the test releases it.
    fn hang(&self) {
        let mut hangs = self.hangs.lock().unwrap();
        hangs.workers += 1;
        let result = self.released.wait_timeout_while(hangs, 4 * TEST_TIMEOUT, |hangs| !hangs.is_released);
        result.unwrap().0.workers -= 1;
    }

    fn hanging_workers(&self) -> usize {
        self.hangs.lock().unwrap().workers
    }

    /// Releases all workers that hang, now and later.
    fn release(&self) {
        self.hangs.lock().unwrap().is_released = true;
        self.released.notify_all();
    }
}

struct TestApplication(Arc<Shared>);

struct TestWorkerState {
    shared: Arc<Shared>,
    /// Connection to flood with frames in the next poll.
    flooded: Option<ConnectionKey>,
    /// `true` if the next poll panics.
    panics: bool,
}

/// Session that echoes messages, except for texts that make it misbehave.
struct TestSession;

impl Application for TestApplication {
    type WorkerState = TestWorkerState;
    type Session = TestSession;

    fn worker_state(&self, _worker: usize) -> TestWorkerState {
        TestWorkerState { shared: Arc::clone(&self.0), flooded: None, panics: false }
    }

    fn accept(
        &self,
        _request: Request,
        _peer: Peer,
    ) -> impl Future<Output = Result<Accepted<TestSession>, Refusal>> + 'static {
        std::future::ready(Ok(Accepted { session: TestSession, subprotocol: None }))
    }
}

impl WorkerState<TestSession> for TestWorkerState {
    fn poll(
        &mut self,
        _cx: &mut task::Context<'_>,
        connections: &mut Connections<'_, TestSession>,
    ) -> Poll<()> {
        let injected = &self.shared.injected_panics;
        let panics = || {
            injected.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1)).is_ok()
        };
        if self.panics || panics() {
            panic!("this panic of a worker was injected by a test");
        }
        if let Some(key) = self.flooded {
            let frame = Frame::binary(&vec![7; 64 * 1024]);
            while connections.send_budget() > 0 && connections.send(key, &frame).is_some() {}
            self.flooded = None;
        }
        Poll::Pending
    }
}

impl Session for TestSession {
    type WorkerState = TestWorkerState;

    fn on_message(&mut self, message: Message<'_>, cx: &mut Context<'_, TestWorkerState>) {
        match message {
            Message::Text("panic") => panic!("this panic of a session was injected by a test"),
            Message::Text("flood") => {
                let key = cx.key();
                cx.worker().flooded = Some(key);
            }
            // The next round then finds the input of several clients.
            Message::Text("stall") => std::thread::sleep(Duration::from_millis(20)),
            Message::Text("hang") => cx.worker().shared.hang(),
            Message::Text("panic worker") => cx.worker().panics = true,
            Message::Text("close") => cx.close(CloseReason::new(CloseCode::Disconnected, "as asked")),
            Message::Text(text) => cx.reply(|out| frame::write_text(out, text)),
            Message::Binary(bytes) => cx.reply(|out| frame::write_binary(out, bytes)),
        }
    }

    fn on_server_close(&mut self, _reason: &CloseReason, _retry_after: Option<Duration>, out: &mut Vec<u8>) {
        frame::write_text(out, "goodbye");
    }

    fn on_close(&mut self, _key: ConnectionKey, closed: &Closed, worker: &mut TestWorkerState) {
        worker.shared.closed.lock().unwrap().push(closed.clone());
    }
}

/// A running listener of a test.
struct Running {
    listener: Listener,
    metrics: Metrics,
    shared: Arc<Shared>,
}

/// Starts a listener, by default with one worker, with a configuration that `configure` changes.
fn start(configure: impl FnOnce(&mut Config)) -> Running {
    let mut config = Config::default();
    config.workers = 1;
    configure(&mut config);
    let cells = Cells::new(config.workers);
    let metrics = Metrics::new(&cells);
    let shared = Arc::new(Shared::default());
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = Listener::builder(TestApplication(Arc::clone(&shared)))
        .config(config)
        .metrics(&cells, metrics.clone())
        .bind(address)
        .unwrap();
    Running { listener, metrics, shared }
}

type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn within_timeout<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_TIMEOUT, future).await.expect("the future completes in time")
}

impl Running {
    async fn connect(&self) -> Client {
        self.try_connect().await.expect("the connection is accepted")
    }

    async fn try_connect(&self) -> Result<Client, tungstenite::Error> {
        let url = format!("ws://{}/", self.listener.local_addr());
        within_timeout(connect_async(url)).await.map(|(client, _)| client)
    }

    /// Sends a request head and returns the whole HTTP response.
    async fn http(&self, head: &str) -> String {
        let mut socket = TcpStream::connect(self.listener.local_addr()).await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = within_timeout(socket.read_to_string(&mut answer)).await;
        answer
    }

    async fn wait_until(&self, condition: impl Fn(&Self) -> bool) {
        within_timeout(async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
    }
}

/// Reads up to the close frame. Returns the texts before it, and its code.
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

/// Checks that the session of a client answers.
async fn check_echo(client: &mut Client) {
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
    check_echo(&mut healthy).await;
}

/// Lets many clients be ready in one round, with messages of all lengths and several messages at a
/// time, and lets some of them disconnect. Checks that each client gets its own echoes.
async fn check_echoes_of_many_clients(configure: impl FnOnce(&mut Config)) {
    const CLIENTS: usize = 40;
    const ROUNDS: usize = 12;
    let running = start(|config| {
        config.limits.max_connections = 2 * CLIENTS;
        configure(config);
    });
    // While the worker sleeps for this client, the other clients become ready.
    let mut stalling = running.connect().await;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(running.connect().await);
    }
    let message = |client: usize, round: usize| {
        // Among them are sizes close to the length of a batched read.
        let sizes = [1, 125, 126, 3000, 4080, 4088, 4096, 4340, 4346, 4352, 5000, 30_000, 60_000];
        let size = sizes[(client * 7 + round * 5) % sizes.len()];
        format!("{client} {round} {}", "x".repeat(size))
    };
    for round in 0..ROUNDS {
        stalling.send(Text::text("stall")).await.unwrap();
        for (nth, client) in clients.iter_mut().enumerate() {
            for part in 0..=nth % 3 {
                client.feed(Text::text(message(nth, round + part))).await.unwrap();
            }
        }
        // All clients send before any client reads.
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
    // Half of the clients send a message and disconnect: with a reset, by shutting down their
    // sending side, or with a close frame.
    stalling.send(Text::text("stall")).await.unwrap();
    for (nth, client) in clients.iter_mut().enumerate().take(CLIENTS / 2) {
        client.send(Text::text("last message")).await.unwrap();
        let MaybeTlsStream::Plain(socket) = client.get_mut() else { panic!("the connection uses TLS") };
        match nth % 3 {
            0 => socket.set_zero_linger().unwrap(),
            1 => socket.shutdown().await.unwrap(),
            _ => client.close(None).await.unwrap(),
        }
    }
    drop(clients.drain(..CLIENTS / 2));
    for client in &mut clients {
        check_echo(client).await;
    }
    running.wait_until(|running| running.listener.connections() == CLIENTS / 2 + 1).await;
    assert_eq!(running.shared.closed.lock().unwrap().len(), CLIENTS / 2);
    assert_eq!(running.metrics.worker_restarts.value(), 0);
}

#[tokio::test]
async fn many_clients_get_their_own_echoes() {
    check_echoes_of_many_clients(|_| {}).await;
}

/// Proves that tests of the default configuration test batches.
#[cfg(all(feature = "io-uring", target_os = "linux"))]
#[tokio::test]
async fn workers_use_io_uring_by_default() {
    if capability::Capability::IoUring.check(deeperhub_uring::Batcher::new()).is_some() {
        let running = start(|config| config.workers = 2);
        running.wait_until(|running| running.metrics.io_uring_workers.value() == 2).await;
    }
}

#[cfg(feature = "io-uring")]
#[tokio::test]
async fn many_clients_get_their_own_echoes_without_batches() {
    check_echoes_of_many_clients(|config| config.io_uring = false).await;
}

#[tokio::test]
async fn a_worker_that_panics_is_replaced_without_effect_on_other_workers() {
    let running = start(|config| config.workers = 2);
    // The worker with the fewest connections gets the next one, so each worker gets one of these.
    let mut clients = [running.connect().await, running.connect().await];
    clients[0].send(Text::text("panic worker")).await.unwrap();
    running.wait_until(|running| running.metrics.worker_restarts.value() == 1).await;
    let (_, code) = read_to_close(&mut clients[0]).await;
    assert_eq!(code, Some(1011));
    check_echo(&mut clients[1]).await;
    running.wait_until(|running| running.listener.connections() == 1).await;
    for _ in 0..2 {
        check_echo(&mut running.connect().await).await;
    }
}

impl Running {
    /// Starts two workers, one of which hangs. Returns a client of the worker that hangs, and a
    /// client of the other worker.
    async fn with_hanging_worker() -> (Self, Client, Client) {
        let running = start(|config| config.workers = 2);
        let (mut hung, healthy) = (running.connect().await, running.connect().await);
        hung.send(Text::text("hang")).await.unwrap();
        running.wait_until(|running| running.shared.hanging_workers() == 1).await;
        (running, hung, healthy)
    }
}

#[tokio::test]
async fn new_clients_do_not_wait_for_a_hanging_worker() {
    let (running, mut hung, mut healthy) = Running::with_hanging_worker().await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        // The first connections may be queued for the worker that hangs, and are then reassigned.
        let mut client = running.connect().await;
        check_echo(&mut client).await;
        clients.push(client);
    }
    check_echo(&mut healthy).await;
    assert_eq!(running.shared.hanging_workers(), 1, "the worker still hangs");
    running.shared.release();
    check_echo(&mut hung).await;
    assert_eq!(running.listener.connections(), 22);
}

#[tokio::test]
async fn accepting_pauses_while_all_workers_are_behind() {
    const CLIENTS: usize = 400;
    let running = start(|config| {
        config.limits.max_connections = 2 * CLIENTS;
        config.handshake_timeout = TEST_TIMEOUT;
    });
    let mut hung = running.connect().await;
    hung.send(Text::text("hang")).await.unwrap();
    running.wait_until(|running| running.shared.hanging_workers() == 1).await;
    let mut sockets = Vec::new();
    for _ in 0..CLIENTS {
        let mut socket = TcpStream::connect(running.listener.local_addr()).await.unwrap();
        socket.write_all(UPGRADE.as_bytes()).await.unwrap();
        sockets.push(socket);
    }
    running.wait_until(|running| running.metrics.accept_pauses.value() > 3).await;
    assert!(running.listener.connections() < CLIENTS);
    running.shared.release();
    for socket in &mut sockets {
        let mut start = [0; 12];
        within_timeout(socket.read_exact(&mut start)).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 101");
    }
}

#[tokio::test]
async fn a_hanging_worker_does_not_delay_drain_and_stop() {
    let (running, hung, mut healthy) = Running::with_hanging_worker().await;
    let reading = tokio::spawn(async move { read_to_close(&mut healthy).await.1 });
    within_timeout(running.listener.drain(Duration::from_millis(500), ReconnectTo::ThisNode)).await;
    assert_eq!(reading.await.unwrap(), Some(1001));
    within_timeout(running.listener.stop()).await;
    assert_eq!(running.shared.hanging_workers(), 1, "the worker still hangs");
    drop(hung);
    running.shared.release();
}

#[tokio::test]
async fn after_a_worker_panic_each_session_ends_and_permits_are_released() {
    let running = start(|_| {});
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(running.connect().await);
    }
    // Replies that were queued before the panic are still sent.
    clients[0].send(Text::text("last message")).await.unwrap();
    clients[0].send(Text::text("panic worker")).await.unwrap();
    for (nth, client) in clients.iter_mut().enumerate() {
        let texts = if nth == 0 { vec!["last message".to_owned()] } else { Vec::new() };
        assert_eq!(read_to_close(client).await, (texts, Some(1011)));
        let _ = within_timeout(client.next()).await;
    }
    running.wait_until(|running| running.listener.connections() == 0).await;
    let closed = running.shared.closed.lock().unwrap().clone();
    assert_eq!(closed.len(), 5);
    let is_internal_error = |closed: &Closed| matches!(closed, Closed::ByServer(reason) if reason.code() == CloseCode::InternalError);
    assert!(closed.iter().all(is_internal_error), "{closed:?}");
    check_echo(&mut running.connect().await).await;
}

#[tokio::test]
async fn after_repeated_worker_panics_each_session_ends_once() {
    let running = start(|_| {});
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(running.connect().await);
    }
    running.shared.injected_panics.store(3, Ordering::Relaxed);
    clients[0].send(Text::text("panic worker")).await.unwrap();
    for client in &mut clients {
        assert_eq!(read_to_close(client).await.1, Some(1011));
    }
    running.wait_until(|running| running.metrics.worker_restarts.value() == 4).await;
    let mut client = running.connect().await;
    check_echo(&mut client).await;
    assert_eq!(running.shared.closed.lock().unwrap().len(), 5);
}

#[tokio::test]
async fn a_replacement_worker_continues_the_drain() {
    let running = start(|_| {});
    let mut clients = [running.connect().await, running.connect().await, running.connect().await];
    let mut late = TcpStream::connect(running.listener.local_addr()).await.unwrap();
    running.wait_until(|running| running.listener.connections() == 4).await;
    let listener = &running.listener;
    let refused = async {
        // The drain closes one client at once and the others within an hour.
        for client in &mut clients {
            let _ = client.send(Text::text("panic worker")).await;
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
        answer = refused => answer,
    };
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\"draining\""), "{answer}");
    let retry = answer.lines().find_map(|line| line.strip_prefix("Retry-After: ")).unwrap();
    assert!(retry.parse::<u64>().unwrap() > 3600, "the retry delay ends before the drain: {retry}");
}

#[tokio::test]
async fn a_slow_consumer_is_closed_with_1013() {
    let running = start(|config| config.limits.max_queue_bytes = 100_000);
    let mut healthy = running.connect().await;
    let mut slow = running.connect().await;
    slow.send(Text::text("flood")).await.unwrap();
    running.wait_until(|running| running.metrics.slow_consumers.value() == 1).await;
    check_echo(&mut healthy).await;
    let (texts, code) = read_to_close(&mut slow).await;
    assert_eq!((texts, code), (vec!["goodbye".to_owned()], Some(1013)));
    let closed = running.shared.closed.lock().unwrap();
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
    let mut received = Vec::new();
    within_timeout(socket.read_to_end(&mut received)).await.unwrap();
    let code = 4200_u16.to_be_bytes();
    assert!(received.windows(2).any(|pair| pair == code), "no 4200 in {received:?}");
    assert_eq!(running.metrics.pong_timeouts.value(), 1);
}

/// Request head of an upgrade.
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
async fn a_full_server_refuses_connections_until_one_closes() {
    let running = start(|config| config.limits.max_connections = 1);
    let mut first = running.connect().await;
    let Err(tungstenite::Error::Http(answer)) = running.try_connect().await else { panic!("not refused") };
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    first.close(None).await.unwrap();
    running.wait_until(|running| running.listener.connections() == 0).await;
    check_echo(&mut running.connect().await).await;
}

#[tokio::test]
async fn connections_per_address_are_limited() {
    let running = start(|config| config.limits.max_connections_per_ip = Some(1));
    let mut first = running.connect().await;
    let Err(tungstenite::Error::Http(answer)) = running.try_connect().await else { panic!("not refused") };
    assert_eq!(answer.status(), 429);
    check_echo(&mut first).await;
}

#[tokio::test]
async fn slow_handshakes_time_out() {
    let running = start(|config| config.handshake_timeout = Duration::from_millis(100));
    let silent = TcpStream::connect(running.listener.local_addr()).await.unwrap();
    let answer = running.http("GET / HTTP/1.1\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    running.wait_until(|running| running.listener.connections() == 0).await;
    drop(silent);
}

#[tokio::test]
async fn a_clients_close_code_is_echoed() {
    let running = start(|_| {});
    let mut client = running.connect().await;
    let frame = tungstenite::protocol::CloseFrame { code: 3210.into(), reason: "bye".into() };
    client.close(Some(frame)).await.unwrap();
    assert_eq!(read_to_close(&mut client).await.1, Some(3210));
    running.wait_until(|running| running.listener.connections() == 0).await;
    assert_eq!(*running.shared.closed.lock().unwrap(), [Closed::ByPeer { code: Some(3210) }]);
}

#[tokio::test]
async fn a_drain_closes_all_connections_with_1001_and_refuses_new_ones() {
    let running = start(|config| config.workers = 2);
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(running.connect().await);
    }
    let reading = tokio::spawn(async move {
        for client in &mut clients {
            assert_eq!(read_to_close(client).await, (vec!["goodbye".to_owned()], Some(1001)));
            // Sends the client's close frame.
            let _ = within_timeout(client.next()).await;
        }
    });
    within_timeout(running.listener.drain(TEST_TIMEOUT, ReconnectTo::OtherNodes)).await;
    reading.await.unwrap();
    assert_eq!(running.listener.connections(), 0);
    let Err(tungstenite::Error::Http(answer)) = running.try_connect().await else { panic!("not refused") };
    assert_eq!(answer.status(), 503);
    running.listener.stop().await;
    assert_eq!(running.shared.closed.lock().unwrap().len(), 10);
}

#[tokio::test]
async fn the_close_frame_is_not_lost_to_a_reset() {
    let running = start(|config| config.limits.max_message_bytes = 1000);
    let mut client = running.connect().await;
    // Bytes follow the message that is too big. If the server closed the socket without reading
    // them, the kernel would reset the connection.
    for _ in 0..50 {
        if client.feed(Text::binary(vec![0; 5000])).await.is_err() {
            break;
        }
    }
    let _ = client.flush().await;
    assert_eq!(read_to_close(&mut client).await.1, Some(1009));
}

/// Request head of an upgrade that offers compression with context takeover.
const UPGRADE_WITH_COMPRESSION: &str = "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";

/// Returns a client's frame, masked with zeros. `length` is the length in the header; a shorter
/// `payload` makes an incomplete frame.
fn client_frame(first_byte: u8, length: u16, payload: &[u8]) -> Vec<u8> {
    let [high, low] = length.to_be_bytes();
    [&[first_byte, 0xfe, high, low, 0, 0, 0, 0], payload].concat()
}

/// Returns a compressed text message of one stored block (RFC 1951 section 3.2.4). The server keeps
/// its text for later messages.
fn compressed_message(text: &[u8]) -> Vec<u8> {
    let [low, high] = u16::try_from(text.len()).unwrap().to_le_bytes();
    let block = [&[0, low, high, !low, !high], text, &[0]].concat();
    client_frame(0xc1, u16::try_from(block.len()).unwrap(), &block)
}

/// Sends bytes on a new connection. Then reports a usage of 90 % until a connection is shed.
/// Returns the bytes that the new connection receives.
async fn send_until_shed(running: &Running, budget: &MemoryBudget, sent: &[u8]) -> String {
    let mut socket = TcpStream::connect(running.listener.local_addr()).await.unwrap();
    let (sheds, received_bytes) =
        (running.metrics.memory_sheds.value(), running.metrics.received_bytes.value());
    socket.write_all(sent).await.unwrap();
    // The connection must be accepted first: it would be refused while memory is short.
    running
        .wait_until(|running| running.metrics.received_bytes.value() >= received_bytes + sent.len() as u64)
        .await;
    within_timeout(async {
        while running.metrics.memory_sheds.value() == sheds {
            budget.update(900_000);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    budget.update(0);
    let mut received = Vec::new();
    let _ = within_timeout(socket.read_to_end(&mut received)).await;
    String::from_utf8_lossy(&received).into_owned()
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
    let incomplete_frame = client_frame(0x81, 60_000, &[b'x'; 20_000]);
    let incomplete_message = client_frame(0x01, 20_000, &[b'x'; 20_000]);
    for (held, sent) in [
        ("an incomplete frame", incomplete_frame),
        ("an incomplete message", incomplete_message),
        ("a compression history", compressed_message(&[b'x'; 20_000])),
    ] {
        let received =
            send_until_shed(&running, &budget, &[UPGRADE_WITH_COMPRESSION.as_bytes(), &sent].concat()).await;
        assert!(received.contains("too slow: memory is short"), "{held}: {received}");
        check_echo(&mut healthy).await;
    }
    let head = format!("GET / HTTP/1.1\r\nX: {}", "x".repeat(12_000));
    let received = send_until_shed(&running, &budget, head.as_bytes()).await;
    assert!(received.starts_with("HTTP/1.1 503 ") && received.contains("\r\nRetry-After: "), "{received}");
    check_echo(&mut healthy).await;
    running.wait_until(|running| running.shared.closed.lock().unwrap().len() == 3).await;
    assert_eq!(running.metrics.memory_sheds.value(), 4);
}

#[tokio::test]
async fn connections_that_hold_little_are_not_shed() {
    let budget = Arc::new(MemoryBudget::new(1_000_000));
    let running = start(|config| config.memory = Some(Arc::clone(&budget)));
    let mut healthy = running.connect().await;
    for _ in 0..30 {
        budget.update(999_999);
        check_echo(&mut healthy).await;
    }
    assert_eq!(running.metrics.memory_sheds.value(), 0);
}
