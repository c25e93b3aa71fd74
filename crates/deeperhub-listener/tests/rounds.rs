//! Tests that the rounds of a worker keep to their budget, whatever clients send. The tests measure
//! cost, not time.

#![allow(clippy::unwrap_used)]

#[path = "support/server.rs"]
mod server;

use std::future::Future;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{self, Poll};
use std::time::Duration;

use deeperhub_listener::{
    Accepted, Application, Closed, Config, ConnectionKey, Connections, Context, Listener, Message, Metrics,
    Peer, Session, WorkerState,
};
use deeperhub_protocol::deflate::{self, Deflater, negotiate, write_text_compressed};
use deeperhub_protocol::frame;
use deeperhub_protocol::handshake::{Refusal, Request};
use server::{TEST_TIMEOUT, wait_until};

/// Budget of a round, in byte cost.
const ROUND_BYTES: usize = 64 * 1024;

/// Bytes of the longest message.
const MAX_MESSAGE_BYTES: usize = 8 * 1024;

/// Approximate maximum bytes of a message on the wire. Longer messages are sent compressed.
const MAX_WIRE_BYTES: usize = 1000;

const CLIENTS: usize = 24;

/// Fixed cost of a message, as documented for `Config::round_bytes`.
const MESSAGE_COST: usize = 512;

/// Bytes of a reply that exceeds the kernel's buffers between the server and a client that does not
/// read.
const LONG_REPLY_BYTES: usize = 8 << 20;

/// State that the sessions share with the test.
#[derive(Default)]
struct Shared {
    /// Cost of the messages that sessions got in the current round.
    round_cost: AtomicUsize,
    /// Maximum of `round_cost` over all rounds.
    max_round_cost: AtomicUsize,
    /// Number of messages that sessions got.
    messages: AtomicUsize,
    /// Ends of all sessions.
    closed: Mutex<Vec<Closed>>,
    /// `true` if paused connections stay paused.
    keeps_paused: AtomicBool,
}

struct TestApplication(Arc<Shared>);

struct TestWorkerState {
    shared: Arc<Shared>,
    /// Connections whose session paused reading.
    paused: Vec<ConnectionKey>,
}

/// Session that counts its messages, and acts on some of them.
struct CountingSession;

impl Application for TestApplication {
    type WorkerState = TestWorkerState;
    type Session = CountingSession;

    fn worker_state(&self, _worker: usize) -> TestWorkerState {
        TestWorkerState { shared: Arc::clone(&self.0), paused: Vec::new() }
    }

    fn accept(
        &self,
        _request: Request,
        _peer: Peer,
    ) -> impl Future<Output = Result<Accepted<CountingSession>, Refusal>> + 'static {
        std::future::ready(Ok(Accepted { session: CountingSession, subprotocol: None }))
    }
}

impl WorkerState<CountingSession> for TestWorkerState {
    fn poll(
        &mut self,
        cx: &mut task::Context<'_>,
        connections: &mut Connections<'_, CountingSession>,
    ) -> Poll<()> {
        let round_cost = self.shared.round_cost.swap(0, Ordering::Relaxed);
        self.shared.max_round_cost.fetch_max(round_cost, Ordering::Relaxed);
        if !self.paused.is_empty() {
            if !self.shared.keeps_paused.load(Ordering::Relaxed) {
                for key in self.paused.drain(..) {
                    connections.resume_reading(key);
                }
            }
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Session for CountingSession {
    type WorkerState = TestWorkerState;

    fn on_message(&mut self, message: Message<'_>, cx: &mut Context<'_, TestWorkerState>) {
        let key = cx.key();
        let len = match message {
            Message::Text(text) => text.len(),
            Message::Binary(bytes) => bytes.len(),
        };
        let worker = cx.worker();
        worker.shared.round_cost.fetch_add(MESSAGE_COST + len, Ordering::Relaxed);
        worker.shared.messages.fetch_add(1, Ordering::Relaxed);
        match message {
            Message::Text("pause") => {
                worker.paused.push(key);
                cx.pause_reading();
            }
            Message::Text("long") => {
                for _ in 0..LONG_REPLY_BYTES / MAX_MESSAGE_BYTES {
                    cx.reply(|out| frame::write_binary(out, &[7; MAX_MESSAGE_BYTES]));
                }
            }
            Message::Text(text) if text.starts_with("echo") => cx.reply(|out| frame::write_text(out, text)),
            _ => {}
        }
    }

    fn admit_control_frame(&mut self, cx: &mut Context<'_, TestWorkerState>) -> bool {
        cx.worker().shared.round_cost.fetch_add(MESSAGE_COST, Ordering::Relaxed);
        true
    }

    fn on_close(&mut self, _key: ConnectionKey, closed: &Closed, worker: &mut TestWorkerState) {
        worker.shared.closed.lock().unwrap().push(closed.clone());
    }
}

/// Starts a listener with one worker, with a configuration that `configure` changes.
fn start(configure: impl FnOnce(&mut Config)) -> (Listener, Metrics, Arc<Shared>) {
    let shared = Arc::<Shared>::default();
    let (listener, metrics) = server::start(TestApplication(Arc::clone(&shared)), |config| {
        config.limits.round_bytes = ROUND_BYTES;
        config.limits.round_time = Duration::from_secs(3600);
        config.limits.max_message_bytes = MAX_MESSAGE_BYTES;
        config.limits.max_queue_bytes = 64 << 20;
        configure(config);
    });
    (listener, metrics, shared)
}

/// Opens a WebSocket connection.
fn connect(address: SocketAddr) -> TcpStream {
    upgrade(TcpStream::connect(address).unwrap())
}

/// Performs the opening handshake on a socket.
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

/// Converts a frame of a server to a frame of a client, masked with zeros.
fn masked(frame: &[u8]) -> Vec<u8> {
    let header_len = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    [&[frame[0], frame[1] | 0x80], &frame[2..header_len], &[0; 4], &frame[header_len..]].concat()
}

/// Returns a text message of a client.
fn text(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write_text(&mut out, text);
    masked(&out)
}

/// Returns a compressed text message of a client.
fn compressed(text: &str) -> Vec<u8> {
    let config = deflate::Config::default();
    let offer = [&b"permessage-deflate; client_no_context_takeover"[..]];
    let params = negotiate(&config, offer).unwrap().unwrap();
    let mut out = Vec::new();
    write_text_compressed(&mut Deflater::new(&config), params, text, &mut out);
    masked(&out)
}

/// Returns a compressed message with `blocks` empty final blocks. Decompressing each of them copies
/// the window again.
fn final_blocks(blocks: usize) -> Vec<u8> {
    let mut deflated = Vec::new();
    // First a stored block that fills the window (RFC 1951 section 3.2.4).
    deflated.extend([1, 0, 16, 255, 239]);
    deflated.extend([b'x'; 4096]);
    for _ in 0..blocks {
        deflated.extend([3, 0]);
    }
    deflated.push(0);
    let [high, low] = u16::try_from(deflated.len()).unwrap().to_be_bytes();
    [&[0xc1, 126 | 0x80, high, low, 0, 0, 0, 0], &deflated[..]].concat()
}

/// Random generator with a seed, so that a failure can be reproduced.
struct Random(u64);

impl Random {
    /// Returns a number from 0 to `end - 1`.
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % end
    }
}

/// Lets clients send random messages, and checks the cost of each round.
fn check_round_costs(seed: u64, configure: impl FnOnce(&mut Config)) {
    let (listener, metrics, shared) = start(configure);
    let mut random = Random(seed);
    let long = "x".repeat(MAX_MESSAGE_BYTES);
    // Bytes to send, and how many messages they are.
    let kinds: [(Vec<u8>, usize); 7] = [
        (text("short"), 1),
        (text(&long[..MAX_WIRE_BYTES]), 1),
        (text(&format!("echo{}", &long[..MAX_WIRE_BYTES - 4])), 1),
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
                let reading = std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
                socket.write_all(&bytes).unwrap();
                (socket, reading)
            })
        })
        .collect();
    let sockets: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
    wait_until("all messages are handled", || shared.messages.load(Ordering::Relaxed) >= expected);
    assert_eq!(shared.messages.load(Ordering::Relaxed), expected, "seed {seed}");
    let max_round_cost = shared.max_round_cost.load(Ordering::Relaxed);
    // The last message of a round may exceed the budget. Also, a part of each client's first
    // message may have been charged to an earlier round.
    let bound = ROUND_BYTES + MAX_MESSAGE_BYTES + MESSAGE_COST + CLIENTS * MAX_WIRE_BYTES;
    assert!(max_round_cost <= bound, "cost {max_round_cost} over {bound}, seed {seed}");
    assert!(metrics.turns_deferred.value() > 0, "seed {seed}");
    for (socket, reading) in sockets {
        socket.shutdown(Shutdown::Both).unwrap();
        let _ = reading.join().unwrap();
    }
    wait_until("all sessions end", || shared.closed.lock().unwrap().len() == CLIENTS);
}

#[test]
fn rounds_keep_to_their_budget_whatever_clients_send() {
    for seed in 1..=3 {
        check_round_costs(seed, |_| {});
    }
}

#[cfg(feature = "io-uring")]
#[test]
fn rounds_keep_to_their_budget_without_batches() {
    check_round_costs(4, |config| config.io_uring = false);
}

#[test]
fn a_pause_holds_back_bytes_that_were_read_already() {
    let (listener, _metrics, shared) = start(|_| {});
    shared.keeps_paused.store(true, Ordering::Relaxed);
    let mut client = connect(listener.local_addr());
    let burst = [text("first"), text("pause"), text("second"), text("third")].concat();
    client.write_all(&burst).unwrap();
    wait_until("two messages are handled", || shared.messages.load(Ordering::Relaxed) >= 2);
    // The echoes of another client prove that the worker ran several rounds.
    let mut other = connect(listener.local_addr());
    for _ in 0..20 {
        other.write_all(&text("echo")).unwrap();
        let mut echo = [0; 6];
        other.read_exact(&mut echo).unwrap();
    }
    assert_eq!(shared.messages.load(Ordering::Relaxed), 22);
    shared.keeps_paused.store(false, Ordering::Relaxed);
    wait_until("the rest is handled", || shared.messages.load(Ordering::Relaxed) == 24);
}

#[test]
fn replies_reach_a_client_that_shuts_down_its_sending_side_after_its_last_message() {
    let (listener, _metrics, shared) = start(|_| {});
    for count in [1, 20, 300] {
        let mut client = connect(listener.local_addr());
        let message = text("echo, and then the end");
        client.write_all(&message.repeat(count)).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut replies = Vec::new();
        client.read_to_end(&mut replies).unwrap();
        assert_eq!(replies.len(), count * (message.len() - 4), "{count} messages");
    }
    wait_until("all sessions end", || {
        *shared.closed.lock().unwrap() == [Closed::Lost, Closed::Lost, Closed::Lost]
    });
}

#[test]
fn a_client_that_reads_is_not_a_slow_consumer_even_with_a_small_queue_limit() {
    let (listener, metrics, _shared) = start(|config| config.limits.max_queue_bytes = 4096);
    let mut client = connect(listener.local_addr());
    let message = text(&format!("echo{}", "x".repeat(1000)));
    for count in [1, 5, 7, 8, 30, 60] {
        client.write_all(&message.repeat(count)).unwrap();
        // Read up to the last reply, compressed or not.
        client.write_all(&text("echo the last")).unwrap();
        let mut tail = Vec::new();
        let mut buffer = [0; 4096];
        while !tail.ends_with(b"echo the last") {
            let len = client.read(&mut buffer).unwrap();
            assert!(len > 0, "the server closed the connection after {count} messages");
            tail.extend_from_slice(&buffer[..len]);
        }
    }
    assert_eq!(metrics.slow_consumers.value(), 0);
}

/// Opens a WebSocket connection with a small receive buffer.
fn connect_with_small_buffer(address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(128 * 1024).unwrap();
    socket.connect(&address.into()).unwrap();
    upgrade(socket.into())
}

/// Reads at most about `max_bytes`, at a rate at which that takes `time`.
fn read_slowly(client: &mut TcpStream, max_bytes: usize, time: Duration) -> Vec<u8> {
    let mut received = Vec::new();
    let mut buffer = [0; 16 * 1024];
    while received.len() < max_bytes {
        match client.read(&mut buffer).unwrap() {
            0 => break,
            len => {
                received.extend_from_slice(&buffer[..len]);
                std::thread::sleep(time.mul_f64(len as f64 / max_bytes as f64));
            }
        }
    }
    received
}

#[test]
fn a_peer_that_reads_slowly_is_not_closed_without_a_pong() {
    let (listener, metrics, _shared) = start(|config| {
        config.compression.enabled = false;
        config.ping_interval = Duration::from_millis(200);
        config.pong_timeout = Duration::from_millis(1500);
    });
    let mut client = connect_with_small_buffer(listener.local_addr());
    client.write_all(&text("long")).unwrap();
    // The client never sends a pong. Its acknowledgements of bytes are its only signs of life. The
    // read takes several times the pong timeout.
    let len = read_slowly(&mut client, LONG_REPLY_BYTES / 2, Duration::from_secs(6)).len();
    assert!(len >= LONG_REPLY_BYTES / 2 && metrics.pong_timeouts.value() == 0, "{len} bytes were read");
    // Once the client takes no more bytes, its connection is closed.
    wait_until("the connection is closed", || metrics.pong_timeouts.value() == 1);
}

#[test]
fn the_close_frame_reaches_a_slow_peer_that_continues_to_read() {
    let (listener, metrics, shared) = start(|config| {
        config.compression.enabled = false;
        config.close_timeout = Duration::from_millis(1500);
        config.limits.max_queue_bytes = 64 * 1024;
    });
    let mut client = connect_with_small_buffer(listener.local_addr());
    client.write_all(&text("long")).unwrap();
    wait_until("the session ends", || shared.closed.lock().unwrap().len() == 1);
    assert_eq!(metrics.slow_consumers.value(), 1);
    // Ask for more bytes than are sent, to read to the end. The read takes several times the close
    // timeout.
    let received = read_slowly(&mut client, LONG_REPLY_BYTES + 1024, Duration::from_secs(5));
    let reason = b"too slow: the queue passed its limit";
    let tail = &received[received.len().saturating_sub(40)..];
    assert!(received.ends_with(reason), "{} bytes end in {tail:?}", received.len());
}
