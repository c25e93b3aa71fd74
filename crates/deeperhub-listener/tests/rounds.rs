//! Rounds end within their budget, whatever clients send, as measured by cost, not by the clock.

#![allow(clippy::unwrap_used)]

use std::future::Future;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use deeperhub_listener::{
    Accepted, Application, Closed, Config, ConnectionKey, Connections, Context, Listener, Message, Metrics,
    Peer, Session, WorkerState,
};
use deeperhub_metrics::Cells;
use deeperhub_protocol::deflate::{self, Deflater, negotiate, write_text_compressed};
use deeperhub_protocol::frame;
use deeperhub_protocol::handshake::{Refusal, Request};

/// Timeout far longer than anything here takes on a busy machine.
const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Budget of a round, in byte cost.
const ROUND: usize = 64 * 1024;

/// Bytes of the longest message.
const LONGEST: usize = 8 * 1024;

/// Bytes of the longest message on the wire; longer messages are compressed.
const SENT: usize = 1000;

const CLIENTS: usize = 24;

/// Fixed cost of a message, as documented for `Config::round_bytes`.
const MESSAGE: usize = 512;

/// Bytes that exceed the kernels' buffers between a server and a client that does not read.
const LONG_REPLY: usize = 8 << 20;

#[derive(Default)]
struct Seen {
    /// Cost given to sessions in the current round; `most` is the maximum of all rounds.
    now: AtomicUsize,
    most: AtomicUsize,
    messages: AtomicUsize,
    closed: Mutex<Vec<Closed>>,
    is_held: std::sync::atomic::AtomicBool,
}

struct Hub(Arc<Seen>);
struct Worker(Arc<Seen>, Vec<ConnectionKey>);
struct Counted;

impl Application for Hub {
    type WorkerState = Worker;
    type Session = Counted;

    fn worker_state(&self, _worker: usize) -> Worker {
        Worker(Arc::clone(&self.0), Vec::new())
    }

    fn accept(
        &self,
        _request: Request,
        _peer: Peer,
    ) -> impl Future<Output = Result<Accepted<Counted>, Refusal>> + 'static {
        std::future::ready(Ok(Accepted { session: Counted, subprotocol: None }))
    }
}

impl WorkerState<Counted> for Worker {
    fn poll(&mut self, cx: &mut task::Context<'_>, connections: &mut Connections<'_, Counted>) -> Poll<()> {
        let spent = self.0.now.swap(0, Ordering::Relaxed);
        self.0.most.fetch_max(spent, Ordering::Relaxed);
        if !self.1.is_empty() {
            if !self.0.is_held.load(Ordering::Relaxed) {
                for key in self.1.drain(..) {
                    connections.resume_reading(key);
                }
            }
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Session for Counted {
    type WorkerState = Worker;

    fn on_message(&mut self, message: Message<'_>, cx: &mut Context<'_, Worker>) {
        let key = cx.key();
        let len = match message {
            Message::Text(text) => text.len(),
            Message::Binary(bytes) => bytes.len(),
        };
        let worker = cx.worker();
        worker.0.now.fetch_add(MESSAGE + len, Ordering::Relaxed);
        worker.0.messages.fetch_add(1, Ordering::Relaxed);
        match message {
            Message::Text("pause") => {
                worker.1.push(key);
                cx.pause_reading();
            }
            Message::Text("long") => {
                for _ in 0..LONG_REPLY / LONGEST {
                    cx.reply(|out| frame::write_binary(out, &[7; LONGEST]));
                }
            }
            Message::Text(text) if text.starts_with("echo") => cx.reply(|out| frame::write_text(out, text)),
            _ => {}
        }
    }

    fn admit_control_frame(&mut self, cx: &mut Context<'_, Worker>) -> bool {
        cx.worker().0.now.fetch_add(MESSAGE, Ordering::Relaxed);
        true
    }

    fn on_close(&mut self, _key: ConnectionKey, closed: &Closed, worker: &mut Worker) {
        worker.0.closed.lock().unwrap().push(closed.clone());
    }
}

fn start(change: impl FnOnce(&mut Config)) -> (Listener, Metrics, Arc<Seen>) {
    let mut config = Config::default();
    config.workers = 1;
    config.round_bytes = ROUND;
    config.round_time = Duration::from_secs(3600);
    config.max_message_bytes = LONGEST;
    config.max_queue_bytes = 64 << 20;
    change(&mut config);
    let cells = Cells::new(config.workers);
    let metrics = Metrics::new(&cells);
    let seen = Arc::<Seen>::default();
    let address = ([127, 0, 0, 1], 0);
    let listener = Listener::builder(Hub(Arc::clone(&seen)))
        .config(config)
        .metrics(&cells, metrics.clone())
        .bind(address)
        .unwrap();
    (listener, metrics, seen)
}

fn connect(address: SocketAddr) -> TcpStream {
    upgrade(TcpStream::connect(address).unwrap())
}

fn upgrade(mut socket: TcpStream) -> TcpStream {
    socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let request = "GET / HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
                   Sec-WebSocket-Extensions: permessage-deflate; client_no_context_takeover\r\n\r\n";
    socket.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    socket
}

/// Converts a server's frame to a client's, masked with zeros.
fn masked(server: &[u8]) -> Vec<u8> {
    let header = match server[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    [&[server[0], server[1] | 0x80], &server[2..header], &[0; 4], &server[header..]].concat()
}

fn text(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write_text(&mut out, text);
    masked(&out)
}

fn compressed(text: &str) -> Vec<u8> {
    let config = deflate::Config::default();
    let offer = [&b"permessage-deflate; client_no_context_takeover"[..]];
    let params = negotiate(&config, offer).unwrap().unwrap();
    let mut out = Vec::new();
    write_text_compressed(&mut Deflater::new(&config), params, text, &mut out);
    masked(&out)
}

/// Builds a message with `blocks` empty final blocks, each of which copies the window again.
fn final_blocks(blocks: usize) -> Vec<u8> {
    let mut deflated = Vec::new();
    // One stored block that fills the window first (RFC 1951 section 3.2.4).
    deflated.extend([1, 0, 16, 255, 239]);
    deflated.extend([b'x'; 4096]);
    for _ in 0..blocks {
        deflated.extend([3, 0]);
    }
    deflated.push(0);
    let [high, low] = u16::try_from(deflated.len()).unwrap().to_be_bytes();
    [&[0xc1, 126 | 0x80, high, low, 0, 0, 0, 0], &deflated[..]].concat()
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Small random generator, so that a failure can be repeated by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

fn check_that_rounds_keep_to_their_budget(seed: u64, change: impl FnOnce(&mut Config)) {
    let (listener, metrics, seen) = start(change);
    let mut random = Random(seed);
    let long = "x".repeat(LONGEST);
    let kinds: [(Vec<u8>, usize); 7] = [
        (text("short"), 1),
        (text(&long[..SENT]), 1),
        (text(&format!("echo{}", &long[..SENT - 4])), 1),
        (compressed(&long), 1),
        (final_blocks(200), 1),
        (vec![0x89, 0x80, 0, 0, 0, 0], 0),
        // A message in two fragments, with a ping between them.
        (
            [&[0x01, 0x81, 0, 0, 0, 0, b'a'][..], &[0x89, 0x80, 0, 0, 0, 0], &[0x80, 0x80, 0, 0, 0, 0]]
                .concat(),
            1,
        ),
    ];
    let mut expected = 0;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let mut bytes = Vec::new();
        for _ in 0..random.below(6) + 1 {
            let (kind, messages) = &kinds[random.below(kinds.len())];
            for _ in 0..random.below(60) + 1 {
                bytes.extend_from_slice(kind);
                expected += messages;
            }
        }
        clients.push((connect(listener.local_addr()), bytes));
    }
    let writers: Vec<_> = clients
        .into_iter()
        .map(|(mut socket, bytes)| {
            std::thread::spawn(move || {
                let mut reader = socket.try_clone().unwrap();
                let drain = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
                socket.write_all(&bytes).unwrap();
                (socket, drain)
            })
        })
        .collect();
    let sockets: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    until("all messages are handled", || seen.messages.load(Ordering::Relaxed) >= expected);
    assert_eq!(seen.messages.load(Ordering::Relaxed), expected, "seed {seed}");
    let most = seen.most.load(Ordering::Relaxed);
    // The last message of a round may exceed it, and part of each client's first message was
    // counted in an earlier round.
    let bound = ROUND + LONGEST + MESSAGE + CLIENTS * SENT;
    assert!(most <= bound, "{most} of {bound} in a round, seed {seed}");
    assert!(metrics.turns_deferred.value() > 0, "seed {seed}");
    for (socket, drain) in sockets {
        socket.shutdown(Shutdown::Both).unwrap();
        let _ = drain.join().unwrap();
    }
    until("all sessions end", || seen.closed.lock().unwrap().len() == CLIENTS);
}

#[test]
fn rounds_keep_to_their_budget_whatever_clients_send() {
    for seed in 1..=3 {
        check_that_rounds_keep_to_their_budget(seed, |_| {});
    }
}

#[cfg(feature = "io-uring")]
#[test]
fn rounds_keep_to_their_budget_without_batches() {
    check_that_rounds_keep_to_their_budget(4, |config| config.io_uring = false);
}

#[test]
fn a_pause_holds_what_was_read_already() {
    let (listener, _metrics, seen) = start(|_| {});
    seen.is_held.store(true, Ordering::Relaxed);
    let mut client = connect(listener.local_addr());
    let burst = [text("first"), text("pause"), text("second"), text("third")].concat();
    client.write_all(&burst).unwrap();
    until("two messages are handled", || seen.messages.load(Ordering::Relaxed) >= 2);
    // Another client goes on meanwhile, so that the worker surely had its rounds.
    let mut other = connect(listener.local_addr());
    for _ in 0..20 {
        other.write_all(&text("echo")).unwrap();
        let mut echo = [0; 6];
        other.read_exact(&mut echo).unwrap();
    }
    assert_eq!(seen.messages.load(Ordering::Relaxed), 22);
    seen.is_held.store(false, Ordering::Relaxed);
    until("the rest is handled", || seen.messages.load(Ordering::Relaxed) == 24);
}

#[test]
fn replies_reach_a_client_that_ends_its_side_right_behind_its_last_message() {
    let (listener, _metrics, seen) = start(|_| {});
    for count in [1, 20, 300] {
        let mut client = connect(listener.local_addr());
        let message = text("echo, and then the end");
        client.write_all(&message.repeat(count)).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut replies = Vec::new();
        client.read_to_end(&mut replies).unwrap();
        assert_eq!(replies.len(), count * (message.len() - 4), "{count} messages");
    }
    until("all sessions end", || *seen.closed.lock().unwrap() == [Closed::Lost, Closed::Lost, Closed::Lost]);
}

#[test]
fn a_client_that_reads_is_not_too_slow_however_small_its_queue_is() {
    let (listener, metrics, _seen) = start(|config| config.max_queue_bytes = 4096);
    let mut client = connect(listener.local_addr());
    let message = text(&format!("echo{}", "x".repeat(1000)));
    for count in [1, 5, 7, 8, 30, 60] {
        client.write_all(&message.repeat(count)).unwrap();
        // Read up to the last reply, compressed or not.
        client.write_all(&text("echo the last")).unwrap();
        let mut tail = Vec::new();
        let mut buffer = [0; 4096];
        while !tail.ends_with(b"echo the last") {
            let read = client.read(&mut buffer).unwrap();
            assert!(read > 0, "the server has closed it after {count} messages");
            tail.extend_from_slice(&buffer[..read]);
        }
    }
    assert_eq!(metrics.slow_consumers.value(), 0);
}

/// Connects with a small receive buffer.
fn connect_slowly(address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(128 * 1024).unwrap();
    socket.connect(&address.into()).unwrap();
    upgrade(socket.into())
}

/// Reads up to `bytes` over about `time`, which is longer than any single timeout of the server.
fn read_slowly(client: &mut TcpStream, bytes: usize, time: Duration) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 16 * 1024];
    while all.len() < bytes {
        match client.read(&mut buffer).unwrap() {
            0 => break,
            new => {
                all.extend_from_slice(&buffer[..new]);
                std::thread::sleep(time.mul_f64(new as f64 / bytes as f64));
            }
        }
    }
    all
}

#[test]
fn a_peer_that_reads_slowly_lives_though_its_pong_is_late() {
    let (listener, metrics, _seen) = start(|config| {
        config.compression.enabled = false;
        config.ping_interval = Duration::from_millis(200);
        config.pong_timeout = Duration::from_millis(1500);
    });
    let mut client = connect_slowly(listener.local_addr());
    client.write_all(&text("long")).unwrap();
    // The client never sends a pong; taking bytes is its only sign of life.
    let read = read_slowly(&mut client, LONG_REPLY / 2, Duration::from_secs(6)).len();
    assert!(read >= LONG_REPLY / 2 && metrics.pong_timeouts.value() == 0, "{read} bytes were read");
    // Once it takes no more bytes, it is closed.
    until("it is closed", || metrics.pong_timeouts.value() == 1);
}

#[test]
fn the_last_words_reach_a_slow_peer_that_goes_on_reading() {
    let (listener, metrics, seen) = start(|config| {
        config.compression.enabled = false;
        config.close_timeout = Duration::from_millis(1500);
        config.max_queue_bytes = 64 * 1024;
    });
    let mut client = connect_slowly(listener.local_addr());
    client.write_all(&text("long")).unwrap();
    until("it is closed as too slow", || metrics.slow_consumers.value() == 1);
    assert_eq!(seen.closed.lock().unwrap().len(), 1);
    // Ask for more bytes than there are, to read to the end.
    let all = read_slowly(&mut client, LONG_REPLY + 1024, Duration::from_secs(5));
    let reason = b"too slow: the queue passed its limit";
    assert!(all.ends_with(reason), "{} bytes end in {:?}", all.len(), &all[all.len().saturating_sub(40)..]);
}
