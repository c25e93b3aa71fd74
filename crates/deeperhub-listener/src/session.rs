//! The two traits that make a listener yours, and what they are given.

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

/// Names a connection within its worker while it is open. Used again after it closed.
pub type ConnectionKey = u32;

/// Where a connection comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// The other end of the socket.
    pub address: SocketAddr,
    /// Whether the connection is encrypted.
    pub tls: bool,
    /// The user that the client's certificate is for, where it showed one that a CA of the server has signed.
    pub user: Option<String>,
    /// When its connection was accepted.
    pub since: Instant,
}

impl Peer {
    /// A peer at `address`, accepted at `since`, without a certificate.
    pub fn new(address: SocketAddr, tls: bool, since: Instant) -> Self {
        Self { address, tls, user: None, since }
    }
}

/// A handshake that is accepted.
#[derive(Debug)]
pub struct Accepted<S> {
    /// What answers the connection's messages.
    pub session: S,
    /// The subprotocol to name in the answer; must be one that the client offered.
    pub subprotocol: Option<Cow<'static, str>>,
}

/// What runs on the connections: one value for all workers.
pub trait Application: Send + Sync + 'static {
    /// What a worker keeps for all its sessions; made on its thread and never sent.
    type WorkerState: WorkerState<Self::Session>;
    /// What a connection keeps.
    type Session: Session<WorkerState = Self::WorkerState>;

    /// Makes the state of worker `worker` (0 to `workers - 1`); called again for a worker that is replaced.
    fn worker_state(&self, worker: usize) -> Self::WorkerState;

    /// Returns `true` if clients should connect. Called for each probe
    /// ([`Config::probe_path`](crate::Config::probe_path)) on a worker's thread, so it must not
    /// block.
    fn is_ready(&self) -> bool {
        true
    }

    /// Decides on a handshake whose form is right (RFC 6455 section 4.2.1). May wait, under the handshake timeout.
    fn accept(
        &self,
        request: Request,
        peer: Peer,
    ) -> impl Future<Output = Result<Accepted<Self::Session>, Refusal>> + 'static;
}

/// A worker's own state: where messages for its connections come from.
pub trait WorkerState<S>: 'static {
    /// Takes what waits for this worker's connections, called once in each round.
    ///
    /// `Ready`: there is more, call again soon (others had their turn). `Pending`: there is nothing, and the waker
    /// of `cx` will be called when something comes. Stop when [`Connections::send_budget`] is 0.
    fn poll(&mut self, cx: &mut task::Context<'_>, connections: &mut Connections<'_, S>) -> Poll<()>;

    /// What was queued in this round is written, as far as sockets take it. Called at the end of each round, with the
    /// time.
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

/// One connection's side of the application. Nothing in it waits.
pub trait Session: 'static {
    /// The state of the worker that it lives on.
    type WorkerState;

    /// The handshake is answered; what is sent here is the first that the client gets.
    fn on_open(&mut self, cx: &mut Context<'_, Self::WorkerState>) {
        let _ = cx;
    }

    /// A whole message came.
    fn on_message(&mut self, message: Message<'_>, cx: &mut Context<'_, Self::WorkerState>);

    /// A ping came, or a pong that answers none of the listener's own pings. False: it is one too many, and a ping then
    /// gets no pong.
    fn admits_control(&mut self, cx: &mut Context<'_, Self::WorkerState>) -> bool {
        let _ = cx;
        true
    }

    /// Heap bytes that are kept for this connection because of what its client did, in the session or elsewhere. Only
    /// asked for when memory is short: who holds the most is closed.
    fn held_bytes(&self, key: ConnectionKey, worker: &Self::WorkerState) -> usize {
        let _ = (key, worker);
        0
    }

    /// Called about once a second (more often where timeouts are shorter).
    fn on_tick(&mut self, cx: &mut Context<'_, Self::WorkerState>) {
        let _ = cx;
    }

    /// The server closes this connection: `out` takes frames that go ahead of the close frame. `retry_after` is the
    /// client's slot to come back, where it has one.
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

/// What a session may do while it handles something.
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
    /// The socket, where a reply may go out ahead of the end of the round.
    pub(crate) direct_write: Option<DirectWrite<'a>>,
}

/// A socket that a long reply is written to at once.
#[derive(Debug)]
pub(crate) struct DirectWrite<'a> {
    pub(crate) transport: &'a mut Transport,
    pub(crate) tls_scratch: &'a mut TlsScratch,
    pub(crate) sent: &'a mut u64,
}

/// A payload of this length is written from where it stands: copying it costs more than what a write of several slices
/// costs above a plain one. At 16 KiB it saves 3 % of an echo's CPU time.
const MIN_DIRECT_WRITE: usize = 8 * 1024;

impl<L> Context<'_, L> {
    /// This connection.
    pub fn key(&self) -> ConnectionKey {
        self.key
    }

    /// The time at which the worker's round began.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The worker's state.
    pub fn worker(&mut self) -> &mut L {
        self.worker
    }

    /// Sends what `write` appends: one or more complete frames (see `deeperhub_protocol::frame`). Nothing is
    /// allocated where the socket takes it in this round. With a client that agreed on compression, messages over
    /// the threshold are compressed.
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

    /// Whether a reply with a payload of `len` bytes goes to the socket at once and out of where the payload stands, by
    /// [`reply_around`](Self::reply_around): it is long, nothing waits to be sent ahead of it, no more of this client's
    /// messages wait to be handled, and it is neither compressed nor encrypted.
    pub fn writes_in_place(&self, len: usize) -> bool {
        len >= MIN_DIRECT_WRITE
            && self.direct_write.is_some()
            && self.outbox.is_empty()
            && self.deflate.is_none()
    }

    /// As [`reply`](Self::reply), of frames around a `payload`, which `write` leaves out: it appends what stands before and
    /// behind it, and answers at which length of the buffer the payload belongs (`None`: it has appended all).
    ///
    /// The payload is copied where [`writes_in_place`](Self::writes_in_place) says no, or the socket does not take it.
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

    /// Queues the replies that stand in the arena from `start`, compressed where that was agreed on.
    fn queue_replies(&mut self, start: usize) {
        if let Some(params) = self.deflate {
            self.outgoing.replies(params, self.arena, start);
        }
        self.outbox.push_arena(self.arena, start..self.arena.len());
    }

    /// How many bytes of the frame the socket took.
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

    /// Closes the connection after what was sent so far. The first reason counts.
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
