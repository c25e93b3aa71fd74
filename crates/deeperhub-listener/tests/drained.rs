//! Tests that a peer that stops reading is not closed: its queue is filled no more than half, and
//! filled again once it has drained.

#![allow(clippy::unwrap_used)]

#[path = "support/server.rs"]
mod server;
#[cfg(feature = "tls")]
#[path = "support/tls.rs"]
mod tls;

use std::collections::HashMap;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{self, Poll};
use std::time::Instant;

use deeperhub_listener::{
    Accepted, Application, Closed, Config, ConnectionKey, Connections, Context, Frame, Message, Multicast,
    Peer, QueueFull, Refusal, Request, Session, WorkerState,
};
use server::{TEST_TIMEOUT, start, wait_until};

const MAX_QUEUE_BYTES: usize = 256 * 1024;

/// Number of clients. A worker writes as many connections in a batch, if io_uring is available.
const CLIENTS: usize = 4;

/// Number of messages after the first one that found the queue full.
const MESSAGES_AFTER_FULL: u32 = 2000;

/// Number of the message that ends a feed.
const END: u32 = 99_999_999;

/// Number of messages that are sent in one piece.
const MESSAGES_PER_PIECE: u32 = 50;

/// State that the worker shares with the test.
#[derive(Default)]
struct Shared {
    /// Number of connections whose queue has been full.
    full: AtomicUsize,
    /// Number of messages that found a full queue.
    refused: AtomicUsize,
    /// Number of calls of `on_drained`.
    drained: AtomicUsize,
    /// Number of sessions that have ended.
    closed: AtomicUsize,
}

/// Numbered messages that a connection is sent.
#[derive(Debug, Default)]
struct Feed {
    next: u32,
    /// Number of the last message, once the queue has been full.
    last: Option<u32>,
    stage: Stage,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Messages are sent one by one.
    Live,
    /// The queue must drain first.
    #[default]
    Suspended,
    /// The queue has drained, and messages are sent in pieces.
    Replay,
}

/// Returns the numbered message as a text frame.
fn numbered(number: u32) -> Frame {
    Frame::text(&format!("{number:08} {}", "x".repeat(1000)))
}

impl Feed {
    fn is_at_end(&self) -> bool {
        self.last.is_some_and(|last| self.next > last)
    }

    /// Sends messages until the queue is full or the round's budget is spent.
    fn send(&mut self, key: ConnectionKey, connections: &mut Connections<'_, FedSession>, shared: &Shared) {
        while !self.is_at_end() && connections.send_budget() > 0 && self.stage != Stage::Suspended {
            match self.stage {
                Stage::Live => self.send_one(key, connections, shared),
                _ => self.send_piece(key, connections),
            }
            if self.is_at_end() {
                assert!(connections.send(key, &numbered(END)).is_some(), "the connection is not open");
            }
        }
    }

    fn send_one(
        &mut self,
        key: ConnectionKey,
        connections: &mut Connections<'_, FedSession>,
        shared: &Shared,
    ) {
        match connections.try_send_multicast(key, &Multicast::new(numbered(self.next))) {
            Ok(session) => {
                assert!(session.is_some(), "the connection is not open");
                self.next += 1;
            }
            Err(QueueFull) => {
                shared.refused.fetch_add(1, Ordering::Relaxed);
                if self.last.is_none() {
                    self.last = Some(self.next + MESSAGES_AFTER_FULL);
                    shared.full.fetch_add(1, Ordering::Relaxed);
                }
                self.stage = Stage::Suspended;
                connections.notify_when_drained(key);
            }
        }
    }

    fn send_piece(&mut self, key: ConnectionKey, connections: &mut Connections<'_, FedSession>) {
        let end = (self.next + MESSAGES_PER_PIECE).min(self.last.map_or(u32::MAX, |last| last + 1));
        let frames: Vec<u8> =
            (self.next..end).flat_map(|number| numbered(number).as_bytes().to_vec()).collect();
        let session = connections.send_encoded(key, &frames, (end - self.next) as usize);
        assert!(session.is_some(), "the connection is not open");
        self.next = end;
        if connections.queued_bytes(key).unwrap() > connections.max_queue_bytes() / 4 {
            self.stage = Stage::Live;
        }
    }
}

struct TestApplication(Arc<Shared>);

struct TestWorkerState {
    shared: Arc<Shared>,
    feeds: HashMap<ConnectionKey, Feed>,
    /// `true` once all clients have asked for their feeds.
    is_started: bool,
    /// `true` in the round that starts the feeds.
    is_starting: bool,
}

/// Session that gets its feed once its client sends a message.
struct FedSession;

impl Application for TestApplication {
    type WorkerState = TestWorkerState;
    type Session = FedSession;

    fn worker_state(&self, _worker: usize) -> TestWorkerState {
        TestWorkerState {
            shared: Arc::clone(&self.0),
            feeds: HashMap::new(),
            is_started: false,
            is_starting: false,
        }
    }

    fn accept(
        &self,
        _request: Request,
        _peer: Peer,
    ) -> impl Future<Output = Result<Accepted<FedSession>, Refusal>> + 'static {
        std::future::ready(Ok(Accepted { session: FedSession, subprotocol: None }))
    }
}

impl WorkerState<FedSession> for TestWorkerState {
    fn poll(
        &mut self,
        _cx: &mut task::Context<'_>,
        connections: &mut Connections<'_, FedSession>,
    ) -> Poll<()> {
        if !self.is_started && self.feeds.len() == CLIENTS {
            (self.is_started, self.is_starting) = (true, true);
            // The sockets take these frames in one batch, and each queue is reported.
            for (&key, feed) in &mut self.feeds {
                assert!(connections.send(key, &numbered(0)).is_some(), "the connection is not open");
                feed.next = 1;
                connections.notify_when_drained(key);
            }
        }
        for (&key, feed) in &mut self.feeds {
            feed.send(key, connections, &self.shared);
        }
        let is_pending = |feed: &Feed| !feed.is_at_end() && feed.stage != Stage::Suspended;
        if self.feeds.values().any(is_pending) { Poll::Ready(()) } else { Poll::Pending }
    }

    fn on_drained(&mut self, key: ConnectionKey) {
        self.shared.drained.fetch_add(1, Ordering::Relaxed);
        let feed = self.feeds.get_mut(&key).unwrap();
        assert_eq!(feed.stage, Stage::Suspended, "the call was not requested");
        feed.stage = Stage::Replay;
    }

    fn on_written(&mut self, _now: Instant) {
        if std::mem::take(&mut self.is_starting) {
            let is_reported = |feed: &Feed| feed.stage == Stage::Replay;
            assert!(self.feeds.values().all(is_reported), "a queue is not reported in its round");
        }
    }
}

impl Session for FedSession {
    type WorkerState = TestWorkerState;

    fn on_message(&mut self, _message: Message<'_>, cx: &mut Context<'_, TestWorkerState>) {
        let key = cx.key();
        cx.worker().feeds.entry(key).or_default();
    }

    fn on_close(&mut self, key: ConnectionKey, _closed: &Closed, worker: &mut TestWorkerState) {
        worker.feeds.remove(&key);
        worker.shared.closed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Opens a connection with a small receive buffer.
fn connect(address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(128 * 1024).unwrap();
    socket.connect(&address.into()).unwrap();
    let socket = TcpStream::from(socket);
    socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    socket
}

/// Performs the opening handshake, and sends a message that starts the feed.
fn start_feed(client: &mut (impl Read + Write)) {
    let request = "GET / HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
    client.write_all(request.as_bytes()).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    // An empty text message, masked with zeros.
    client.write_all(&[0x81, 0x80, 0, 0, 0, 0]).unwrap();
    client.flush().unwrap();
}

/// Reads a feed to its end, and checks the order of its messages.
fn read_feed(client: &mut impl Read) {
    let mut received = vec![0; numbered(0).len()];
    for number in 0.. {
        client.read_exact(&mut received).unwrap();
        if received == numbered(END).as_bytes() {
            assert!(number > MESSAGES_AFTER_FULL, "message {number} is missing");
            return;
        }
        assert!(received == numbered(number).as_bytes(), "message {number} is not next");
    }
}

/// Lets clients stop reading until their queues are full, and then read everything.
/// `make_client` makes a client of a socket.
fn check_feeds<C: Read + Write + Send>(
    configure: impl FnOnce(&mut Config),
    make_client: impl Fn(TcpStream) -> C,
) {
    let shared = Arc::<Shared>::default();
    let (listener, metrics) = start(TestApplication(Arc::clone(&shared)), |config| {
        config.limits.max_queue_bytes = MAX_QUEUE_BYTES;
        configure(config);
    });
    let mut clients: Vec<C> = (0..CLIENTS).map(|_| make_client(connect(listener.local_addr()))).collect();
    clients.iter_mut().for_each(start_feed);
    wait_until("all queues are full", || shared.full.load(Ordering::Relaxed) == CLIENTS);
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| read_feed(client));
        }
    });
    let (drained, refused) = (shared.drained.load(Ordering::Relaxed), shared.refused.load(Ordering::Relaxed));
    assert_eq!(drained, CLIENTS + refused, "each queue is reported once for each request");
    assert_eq!((metrics.slow_consumers.value(), metrics.worker_restarts.value()), (0, 0));
    drop(clients);
    wait_until("all sessions end", || shared.closed.load(Ordering::Relaxed) == CLIENTS);
}

#[test]
fn peers_that_stop_reading_get_everything_once_they_read_again() {
    check_feeds(|_| {}, |socket| socket);
}

#[cfg(feature = "io-uring")]
#[test]
fn peers_that_stop_reading_get_everything_without_batches() {
    check_feeds(|config| config.io_uring = false, |socket| socket);
}

#[cfg(feature = "tls")]
#[test]
fn peers_that_stop_reading_get_everything_over_tls() {
    let (tls, make_client) = tls::server_and_clients("drained");
    check_feeds(|config| config.tls = Some(tls), make_client);
}
