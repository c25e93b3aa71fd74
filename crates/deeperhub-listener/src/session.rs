//! The traits that an application implements, and their arguments.

use std::borrow::Cow;
use std::future::Future;
use std::io::IoSlice;
use std::net::SocketAddr;
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use deeperhub_protocol::CloseReason;
use deeperhub_protocol::deflate::Params;
use deeperhub_protocol::frame::{self, Frame};
use deeperhub_protocol::handshake::{Refusal, Request};

use crate::connections::Connections;
use crate::deflate::Compression;
use crate::outbox::Outbox;
use crate::transport::{TlsScratch, Transport};

/// Key of a connection within its worker. Reused after the connection has closed.
pub type ConnectionKey = u32;

/// Client of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// Address of the client. The port is 0 if a proxy named the client without one.
    pub address: SocketAddr,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// User named by the client's certificate, if it presented one signed by a trusted CA.
    pub user: Option<String>,
    /// Time at which the connection was accepted.
    pub since: Instant,
}

impl Peer {
    /// Creates a peer at `address`, accepted at `since`, without a certificate.
    pub fn new(address: SocketAddr, tls: bool, since: Instant) -> Self {
        Self { address, tls, user: None, since }
    }
}

/// An accepted handshake.
#[derive(Debug)]
pub struct Accepted<S> {
    /// Session of the connection.
    pub session: S,
    /// Subprotocol to select; must be one that the client offered.
    pub subprotocol: Option<Cow<'static, str>>,
}

/// Decides on handshakes, and creates sessions and worker states. One value serves all workers.
pub trait Application: Send + Sync + 'static {
    /// State that the sessions of a worker share; created on its thread and never sent.
    type WorkerState: WorkerState<Self::Session>;
    /// Session of a connection.
    type Session: Session<WorkerState = Self::WorkerState>;

    /// Creates the state of worker `worker` (0 to `workers - 1`). Called again if the worker is replaced.
    fn worker_state(&self, worker: usize) -> Self::WorkerState;

    /// Returns `true` if clients should connect. Called for each probe
    /// ([`Config::probe_path`](crate::Config::probe_path)) on a worker's thread, so it must not
    /// block.
    fn is_ready(&self) -> bool {
        true
    }

    /// Accepts or refuses a well-formed handshake (RFC 6455 section 4.2.1). The future may take up to the
    /// handshake timeout.
    fn accept(
        &self,
        request: Request,
        peer: Peer,
    ) -> impl Future<Output = Result<Accepted<Self::Session>, Refusal>> + 'static;
}

/// State that the sessions `S` of one worker share, and the source of frames for its connections.
pub trait WorkerState<S>: 'static {
    /// Sends pending frames to this worker's connections. Called once per round.
    ///
    /// Returns `Ready` if more is pending, to be called again in the next round. Returns `Pending` if
    /// nothing is; it must then wake `cx`'s waker when something arrives. Stop when
    /// [`Connections::send_budget`] is 0.
    fn poll(&mut self, cx: &mut task::Context<'_>, connections: &mut Connections<'_, S>) -> Poll<()>;

    /// Called at the end of each round, after the queues were written as far as sockets took them.
    fn on_written(&mut self, now: Instant) {
        let _ = now;
    }
}

/// For sessions that need nothing from their worker.
impl<S> WorkerState<S> for () {
    fn poll(&mut self, _cx: &mut task::Context<'_>, _connections: &mut Connections<'_, S>) -> Poll<()> {
        Poll::Pending
    }
}

/// Handler of one connection. Its methods must not block.
pub trait Session: 'static {
    /// State of the worker.
    type WorkerState;

    /// Called after the handshake. Frames sent here are the first that the client gets.
    fn on_open(&mut self, cx: &mut Context<'_, Self::WorkerState>) {
        let _ = cx;
    }

    /// Handles a complete message.
    fn on_message(&mut self, message: Message<'_>, cx: &mut Context<'_, Self::WorkerState>);

    /// Returns `true` if a ping, or a pong without a ping of the listener, is within the rate limit. A
    /// ping over it gets no pong.
    fn admit_control_frame(&mut self, cx: &mut Context<'_, Self::WorkerState>) -> bool {
        let _ = cx;
        true
    }

    /// Returns the heap bytes that this connection's client causes, in the session or elsewhere. Called
    /// only when memory is short: the connections that hold the most are then closed.
    fn held_bytes(&self, key: ConnectionKey, worker: &Self::WorkerState) -> usize {
        let _ = (key, worker);
        0
    }

    /// Called about once a second, more often with short timeouts.
    fn on_tick(&mut self, cx: &mut Context<'_, Self::WorkerState>) {
        let _ = cx;
    }

    /// Called when the server closes the connection. Frames appended to `out` are sent ahead of the close
    /// frame. `retry_after` is the delay after which the client should come back, if there is one.
    fn on_server_close(&mut self, reason: &CloseReason, retry_after: Option<Duration>, out: &mut Vec<u8>) {
        let _ = (reason, retry_after, out);
    }

    /// Handles the close of the connection. Called exactly once for each session that was opened,
    /// unless the listener stops; nothing is called after it. If the worker died, `worker` is that
    /// of its replacement, which knows nothing of the session.
    fn on_close(&mut self, key: ConnectionKey, closed: &Closed, worker: &mut Self::WorkerState) {
        let _ = (key, closed, worker);
    }
}

/// A data message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// Valid UTF-8.
    Text(&'a str),
    /// Bytes.
    Binary(&'a [u8]),
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Closed {
    /// The client sent a close frame, with this code if it had one.
    ByPeer {
        /// The code of the close frame.
        code: Option<u16>,
    },
    /// The server closed it.
    ByServer(CloseReason),
    /// The connection ended without a close frame.
    Lost,
}

/// Operations of a session on its connection and its worker.
#[derive(Debug)]
pub struct Context<'a, L> {
    pub(crate) key: ConnectionKey,
    pub(crate) now: Instant,
    pub(crate) worker: &'a mut L,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) arena: &'a mut Vec<u8>,
    pub(crate) outgoing: &'a mut Compression,
    /// The compression that was agreed on.
    pub(crate) deflate: Option<Params>,
    pub(crate) close: &'a mut Option<CloseReason>,
    pub(crate) pause: &'a mut bool,
    /// Cost of the session's work, on top of the message.
    pub(crate) charged: &'a mut usize,
    /// Socket for long replies, if they may be written before the end of the round.
    pub(crate) direct_write: Option<DirectWrite<'a>>,
}

/// Socket that long replies are written to at once.
#[derive(Debug)]
pub(crate) struct DirectWrite<'a> {
    pub(crate) transport: &'a mut Transport,
    pub(crate) tls_scratch: &'a mut TlsScratch,
    pub(crate) sent: &'a mut u64,
}

/// Minimum bytes of a payload that is written in place. Copying it would cost more than a vectored write
/// (measured, see benches/README.md).
const MIN_DIRECT_WRITE: usize = 8 * 1024;

impl<L> Context<'_, L> {
    /// Returns the key of this connection.
    pub fn key(&self) -> ConnectionKey {
        self.key
    }

    /// Returns the time at which the worker's round began.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Returns the worker's state.
    pub fn worker(&mut self) -> &mut L {
        self.worker
    }

    /// Sends the frames that `write` appends: one or more complete frames (see [`frame`](crate::frame)).
    /// Allocates nothing if the socket takes them in this round. Messages over the threshold are
    /// compressed if the client negotiated compression.
    pub fn reply(&mut self, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.arena.len();
        write(self.arena);
        self.queue_replies(start);
    }

    /// Sends a text or binary message.
    pub fn reply_message(&mut self, message: Message<'_>) {
        self.reply(|out| match message {
            Message::Text(text) => frame::write_text(out, text),
            Message::Binary(bytes) => frame::write_binary(out, bytes),
        });
    }

    /// Returns `true` if [`reply_around`](Self::reply_around) would write a payload of `len` bytes to the
    /// socket at once, without a copy. It must be long, neither compressed nor encrypted, and neither
    /// queued frames nor buffered messages of this client may be ahead of it.
    pub fn writes_in_place(&self, len: usize) -> bool {
        len >= MIN_DIRECT_WRITE
            && self.direct_write.is_some()
            && self.outbox.is_empty()
            && self.deflate.is_none()
    }

    /// Sends frames around `payload`. `write` appends the bytes before and after the payload, and returns
    /// the buffer length at which the payload belongs (`None`: it appended everything).
    ///
    /// Copies the payload if [`writes_in_place`](Self::writes_in_place) returns `false`, or the socket
    /// does not take all of it.
    pub fn reply_around(&mut self, payload: &[u8], write: impl FnOnce(&mut Vec<u8>) -> Option<usize>) {
        let in_place = self.writes_in_place(payload.len());
        let start = self.arena.len();
        let at = write(self.arena).filter(|at| (start..=self.arena.len()).contains(at));
        let mut written = 0;
        if let Some(at) = at {
            if in_place {
                written = self.write_in_place(start, at, payload);
                if written == self.arena.len() - start + payload.len() {
                    return self.arena.truncate(start);
                }
            }
            self.arena.splice(at..at, payload.iter().copied());
        }
        self.queue_replies(start);
        if written > 0 {
            self.outbox.advance(written);
        }
    }

    /// Queues the replies in the arena from `start`, compressed if negotiated.
    fn queue_replies(&mut self, start: usize) {
        if let Some(params) = self.deflate {
            self.outgoing.replies(params, self.arena, start);
        }
        self.outbox.push_arena(self.arena, start..self.arena.len());
    }

    /// Writes the frame to the socket and returns how many bytes it took.
    fn write_in_place(&mut self, start: usize, at: usize, payload: &[u8]) -> usize {
        let Some(DirectWrite { transport, tls_scratch, sent }) = &mut self.direct_write else { return 0 };
        let slices = [&self.arena[start..at], payload, &self.arena[at..]].map(IoSlice::new);
        // An error shows again when the rest is written.
        let written = transport.write_vectored(&slices, tls_scratch).unwrap_or(0);
        **sent += written as u64;
        written
    }

    /// Sends a shared frame.
    pub fn send(&mut self, frame: &Frame) {
        self.outbox.push(match self.deflate {
            None => frame,
            Some(params) => self.outgoing.shared(params, frame),
        });
    }

    /// Closes the connection after the frames sent so far. The first reason counts.
    pub fn close(&mut self, reason: CloseReason) {
        self.close.get_or_insert(reason);
    }

    /// Charges work that costs much more than the message that caused it to the connection's turn.
    /// The unit is byte cost: one stands for about a nanosecond. The rest of the client's input
    /// then waits behind others.
    pub fn charge(&mut self, cost: usize) {
        *self.charged = self.charged.saturating_add(cost);
    }

    /// Stops reading from this connection until [`Connections::resume_reading`]. Further input
    /// waits in the kernel, and TCP slows the client down. Bytes that were read already are kept,
    /// and handled only after that, too.
    pub fn pause_reading(&mut self) {
        *self.pause = true;
    }
}
