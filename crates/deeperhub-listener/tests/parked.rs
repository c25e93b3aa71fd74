//! Tests over real sockets that a parked connection handles its input later, in order and whole.

#![allow(clippy::unwrap_used)]

#[path = "support/server.rs"]
mod server;
#[cfg(feature = "tls")]
#[path = "support/tls.rs"]
mod tls;

use std::collections::VecDeque;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{self, Poll};

use deeperhub_listener::{
    Accepted, Application, Closed, Config, ConnectionKey, Connections, Context, Frame, Message, Peer,
    Refusal, Request, Session, WorkerState,
};
use server::{TEST_TIMEOUT, start, wait_until};

/// Number of clients. A worker reads and writes as many in a batch, if io_uring is available.
const CLIENTS: usize = 6;

/// Number of messages of each client.
const MESSAGES: usize = 3000;

/// A session parks at each message whose number has this divisor.
const PARKS_EACH: usize = 7;

/// State that the worker shares with the test.
#[derive(Default)]
struct Shared {
    /// Number of late answers.
    answered_late: AtomicUsize,
    /// Number of sessions that have ended.
    closed: AtomicUsize,
}

struct TestApplication(Arc<Shared>);

struct TestWorkerState {
    shared: Arc<Shared>,
    /// Connections that are parked, with their answers.
    parked: VecDeque<(ConnectionKey, Frame)>,
    polls: usize,
}

/// Session that echoes texts, some of them late.
struct LateSession;

impl Application for TestApplication {
    type WorkerState = TestWorkerState;
    type Session = LateSession;

    fn worker_state(&self, _worker: usize) -> TestWorkerState {
        TestWorkerState { shared: Arc::clone(&self.0), parked: VecDeque::new(), polls: 0 }
    }

    fn accept(
        &self,
        _request: Request,
        _peer: Peer,
    ) -> impl Future<Output = Result<Accepted<LateSession>, Refusal>> + 'static {
        std::future::ready(Ok(Accepted { session: LateSession, subprotocol: None }))
    }
}

impl WorkerState<LateSession> for TestWorkerState {
    fn poll(
        &mut self,
        cx: &mut task::Context<'_>,
        connections: &mut Connections<'_, LateSession>,
    ) -> Poll<()> {
        self.polls += 1;
        // Some connections stay parked for several rounds.
        for _ in 0..self.polls % 3 {
            let Some((key, answer)) = self.parked.pop_front() else { break };
            assert!(connections.send(key, &answer).is_some(), "a parked connection is not open");
            assert!(connections.unpark(key), "the connection is not parked");
            self.shared.answered_late.fetch_add(1, Ordering::Relaxed);
        }
        if !self.parked.is_empty() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl Session for LateSession {
    type WorkerState = TestWorkerState;

    fn on_message(&mut self, message: Message<'_>, cx: &mut Context<'_, TestWorkerState>) {
        let Message::Text(text) = message else { return };
        let number: usize = text.split(' ').next().unwrap().parse().unwrap();
        let answer = Frame::text(text);
        if number.is_multiple_of(PARKS_EACH) {
            let key = cx.key();
            cx.worker().parked.push_back((key, answer));
            cx.park();
        } else {
            cx.send(&answer);
        }
    }

    fn on_close(&mut self, key: ConnectionKey, _closed: &Closed, worker: &mut TestWorkerState) {
        worker.parked.retain(|(parked, _)| *parked != key);
        worker.shared.closed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns a numbered text. Some are long.
fn text(number: usize) -> String {
    format!("{number} {}", "x".repeat(if number.is_multiple_of(100) { 20_000 } else { number % 50 }))
}

/// Appends a client's text frame, masked.
fn write_text(out: &mut Vec<u8>, text: &str) {
    let mask = [1, 2, 3, 4];
    out.push(0x81);
    match u16::try_from(text.len()).unwrap() {
        len @ 0..126 => out.push(0x80 | len as u8),
        len => {
            out.push(0x80 | 126);
            out.extend(len.to_be_bytes());
        }
    }
    out.extend(mask);
    out.extend(text.bytes().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
}

fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    socket.set_write_timeout(Some(TEST_TIMEOUT)).unwrap();
    socket
}

/// Sends numbered texts in parts, and checks that all come back in order.
fn converse(client: &mut (impl Read + Write), first_part: usize) {
    let mut input = b"GET / HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        .to_vec();
    let (mut sent, mut part) = (0, first_part);
    let mut head_len = None;
    let (mut received, mut checked) = (Vec::new(), 0);
    while checked < MESSAGES {
        for number in sent..(sent + part).min(MESSAGES) {
            write_text(&mut input, &text(number));
        }
        sent = (sent + part).min(MESSAGES);
        client.write_all(&input).unwrap();
        client.flush().unwrap();
        input.clear();
        // A client that never reads would be a slow consumer.
        while checked < sent {
            let mut buffer = vec![0; 64 * 1024];
            let len = client.read(&mut buffer).unwrap();
            assert!(len > 0, "the server ended the connection after {checked} messages");
            received.extend_from_slice(&buffer[..len]);
            if head_len.is_none() {
                head_len = received.windows(4).position(|bytes| bytes == b"\r\n\r\n").map(|end| end + 4);
                let Some(end) = head_len else { continue };
                received.drain(..end);
            }
            let mut at = 0;
            while checked < sent && received[at..].starts_with(Frame::text(&text(checked)).as_bytes()) {
                at += Frame::text(&text(checked)).len();
                checked += 1;
            }
            received.drain(..at);
            let next = Frame::text(&text(checked));
            let is_next = next.as_bytes().starts_with(&received);
            assert!(is_next, "another message than {checked}: {:?}", received.first_chunk::<16>());
        }
        part = part * 5 % 997 + 1;
    }
    assert!(received.is_empty());
}

/// Lets clients converse with a server whose sessions park.
fn check_conversations<C: Read + Write + Send>(
    configure: impl FnOnce(&mut Config),
    make_client: impl Fn(TcpStream) -> C,
) {
    let shared = Arc::<Shared>::default();
    let (listener, metrics) = start(TestApplication(Arc::clone(&shared)), |config| {
        config.limits.max_queue_bytes = 16 << 20;
        configure(config);
    });
    let mut clients: Vec<C> = (0..CLIENTS).map(|_| make_client(connect(listener.local_addr()))).collect();
    std::thread::scope(|scope| {
        for (number, client) in clients.iter_mut().enumerate() {
            scope.spawn(move || converse(client, 1 + 60 * number));
        }
    });
    let expected = CLIENTS * MESSAGES.div_ceil(PARKS_EACH);
    assert_eq!(shared.answered_late.load(Ordering::Relaxed), expected);
    assert_eq!((metrics.session_panics.value(), metrics.worker_restarts.value()), (0, 0));
    assert!(metrics.turns_deferred.value() > 0, "no session parked within a read");
    drop(clients);
    wait_until("all sessions end", || shared.closed.load(Ordering::Relaxed) == CLIENTS);
}

#[test]
fn parked_connections_go_on_in_order() {
    check_conversations(|_| {}, |socket| socket);
}

#[cfg(feature = "io-uring")]
#[test]
fn parked_connections_go_on_in_order_without_batches() {
    check_conversations(|config| config.io_uring = false, |socket| socket);
}

#[cfg(feature = "tls")]
#[test]
fn parked_connections_go_on_in_order_over_tls() {
    let (tls, make_client) = tls::server_and_clients("parked");
    check_conversations(|config| config.tls = Some(tls), make_client);
}
