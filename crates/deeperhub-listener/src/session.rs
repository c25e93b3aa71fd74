//! The traits that an application implements, and the types in their signatures.

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
use crate::deflate::Compressor;
use crate::outbox::Outbox;
use crate::transport::{TlsScratch, Transport};

/// Key of a connection within its worker. A later connection may reuse the key of a closed one.
pub type ConnectionKey = u32;

/// Client of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// Address of the client. The port is 0 if a proxy named the client without a port.
    pub address: SocketAddr,
    /// `true` if the connection uses TLS.
    pub tls: bool,
    /// User named by the client's certificate, if the client presented one of a trusted CA.
    pub user: Option<String>,
    /// Time at which the connection was accepted.
    pub accepted_at: Instant,
}

impl Peer {
    /// Creates a peer at `address`, accepted at `accepted_at`, without a certificate.
    pub fn new(address: SocketAddr, tls: bool, accepted_at: Instant) -> Self {
        Self { address, tls, user: None, accepted_at }
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

/// Decides on handshakes, and creates sessions and worker states. All workers share one value.
pub trait Application: Send + Sync + 'static {
    /// State that the sessions of a worker share. It is created on the worker's thread and never
    /// leaves it.
    type WorkerState: WorkerState<Self::Session>;
    /// Session of a connection.
    type Session: Session<WorkerState = Self::WorkerState>;

    /// Creates the state of the worker with index `worker`, from 0 to `workers - 1`. The listener
    /// calls this method again if a worker is replaced after a panic.
    fn worker_state(&self, worker: usize) -> Self::WorkerState;

    /// Returns `true` if clients should connect. The method must not block: a worker calls it for
    /// each probe ([`Config::probe_path`](crate::Config::probe_path)).
    fn is_ready(&self) -> bool {
        true
    }

    /// Accepts or refuses a well-formed handshake (RFC 6455 section 4.2.1). The future is polled on
    /// the worker's thread until the handshake timeout.
    fn accept(
        &self,
        request: Request,
        peer: Peer,
    ) -> impl Future<Output = Result<Accepted<Self::Session>, Refusal>> + 'static;
}

/// State that the sessions `S` of one worker share, and the source of frames for its connections.
pub trait WorkerState<S>: 'static {
    /// Sends pending frames to this worker's connections. The worker calls this method once per
    /// round. The method should return once [`Connections::send_budget`] is 0.
    ///
    /// Returns `Ready` if more frames are pending; the next round then follows at once. Otherwise
    /// arranges that `cx`'s waker is woken when frames are pending, and returns `Pending`.
    fn poll(&mut self, cx: &mut task::Context<'_>, connections: &mut Connections<'_, S>) -> Poll<()>;

    /// Called at the end of each round, after the connections' queues were written. Bytes for full
    /// sockets are still queued then.
    fn on_written(&mut self, now: Instant) {
        let _ = now;
    }
}

/// The worker state of applications whose sessions share nothing.
impl<S> WorkerState<S> for () {
    fn poll(&mut self, _cx: &mut task::Context<'_>, _connections: &mut Connections<'_, S>) -> Poll<()> {
        Poll::Pending
    }
}

/// Handler of one connection. Its methods must not block.
pub trait Session: 'static {
    /// State of the worker.
    type WorkerState;

    /// Called after the handshake was accepted. Frames sent here are the first frames of the
    /// connection.
    fn on_open(&mut self, cx: &mut Context<'_, Self::WorkerState>) {
        let _ = cx;
    }

    /// Handles a complete message.
    fn on_message(&mut self, message: Message<'_>, cx: &mut Context<'_, Self::WorkerState>);

    /// Applies a rate limit to a ping, or to a pong that does not answer a ping of the listener.
    /// Returns `false` if the frame is over the limit; a ping then gets no pong.
    fn admit_control_frame(&mut self, cx: &mut Context<'_, Self::WorkerState>) -> bool {
        let _ = cx;
        true
    }

    /// Returns the heap bytes that the application holds for this connection. The worker calls this
    /// method only when memory is short. It then closes the connections that hold the most.
    fn held_bytes(&self, key: ConnectionKey, worker: &Self::WorkerState) -> usize {
        let _ = (key, worker);
        0
    }

    /// Called periodically: every eighth of the shortest timeout in the configuration, at least
    /// every second and at most every 20 ms.
    fn on_tick(&mut self, cx: &mut Context<'_, Self::WorkerState>) {
        let _ = cx;
    }

    /// Called when the server closes the connection. Frames appended to `out` are sent before the
    /// close frame. `retry_after` is the delay after which the client should reconnect, if it
    /// should.
    fn on_server_close(&mut self, reason: &CloseReason, retry_after: Option<Duration>, out: &mut Vec<u8>) {
        let _ = (reason, retry_after, out);
    }

    /// Handles the end of the connection. This is the last call to a session. Each session gets it
    /// exactly once, unless the listener stops. If the worker panicked, `worker` is the state of
    /// its replacement.
    fn on_close(&mut self, key: ConnectionKey, closed: &Closed, worker: &mut Self::WorkerState) {
        let _ = (key, closed, worker);
    }
}

/// A data message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// A text message.
    Text(&'a str),
    /// A binary message.
    Binary(&'a [u8]),
}

/// How a connection ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Closed {
    /// The client sent a close frame.
    ByPeer {
        /// Code of the close frame, if it had one.
        code: Option<u16>,
    },
    /// The server closed the connection.
    ByServer(CloseReason),
    /// The connection ended without a close frame.
    Lost,
}

/// Operations of a session on its connection and on its worker's state `W`.
#[derive(Debug)]
pub struct Context<'a, W> {
    pub(crate) key: ConnectionKey,
    pub(crate) now: Instant,
    pub(crate) worker: &'a mut W,
    pub(crate) outbox: &'a mut Outbox,
    pub(crate) arena: &'a mut Vec<u8>,
    pub(crate) compressor: &'a mut Compressor,
    /// Parameters of the negotiated compression.
    pub(crate) deflate: Option<Params>,
    /// Reason to close the connection with, once the session has asked for it.
    pub(crate) close: &'a mut Option<CloseReason>,
    /// `true` if the session has asked to pause reading.
    pub(crate) pause: &'a mut bool,
    /// Cost that the session has charged.
    pub(crate) charged: &'a mut usize,
    /// Socket for long replies, if they may be written at once.
    pub(crate) direct_write: Option<DirectWrite<'a>>,
}

/// Socket to which long replies are written at once, without a queue.
#[derive(Debug)]
pub(crate) struct DirectWrite<'a> {
    pub(crate) transport: &'a mut Transport,
    pub(crate) tls_scratch: &'a mut TlsScratch,
    pub(crate) sent: &'a mut u64,
}

/// Minimum bytes of a payload that is written in place. Copying such a payload costs more than a
/// vectored write (measured, see benches/README.md).
const MIN_DIRECT_WRITE: usize = 8 * 1024;

impl<W> Context<'_, W> {
    /// Returns the key of this connection.
    pub fn key(&self) -> ConnectionKey {
        self.key
    }

    /// Returns the time at which the worker's round began.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Returns the state that the worker's sessions share.
    pub fn worker(&mut self) -> &mut W {
        self.worker
    }

    /// Sends the frames that `write` appends to a buffer. They must be complete (see
    /// [`frame`](crate::frame)). Sending allocates nothing if the socket takes them in this round.
    /// Messages over the compression threshold are compressed if the client negotiated it.
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

    /// Returns `true` if [`reply_around`](Self::reply_around) would write a payload of `len` bytes
    /// to the socket at once, without a copy. That requires a long payload and a connection without
    /// compression and TLS. It also requires that no frames are queued, and that no further input
    /// of the client is buffered.
    pub fn writes_in_place(&self, len: usize) -> bool {
        len >= MIN_DIRECT_WRITE
            && self.direct_write.is_some()
            && self.outbox.is_empty()
            && self.deflate.is_none()
    }

    /// Sends complete frames that contain `payload`, if possible without copying it. `write`
    /// appends the bytes before and after the payload to a buffer, and returns the position in the
    /// buffer at which the payload is inserted. If `write` returns `None`, the payload is not
    /// inserted.
    ///
    /// The payload is copied if [`writes_in_place`](Self::writes_in_place) returns `false`, or if
    /// the socket does not take all of it.
    pub fn reply_around(&mut self, payload: &[u8], write: impl FnOnce(&mut Vec<u8>) -> Option<usize>) {
        let in_place = self.writes_in_place(payload.len());
        let start = self.arena.len();
        let position = write(self.arena).filter(|position| (start..=self.arena.len()).contains(position));
        let mut written = 0;
        if let Some(position) = position {
            if in_place {
                written = self.write_in_place(start, position, payload);
                if written == self.arena.len() - start + payload.len() {
                    return self.arena.truncate(start);
                }
            }
            self.arena.splice(position..position, payload.iter().copied());
        }
        self.queue_replies(start);
        if written > 0 {
            self.outbox.advance(written);
        }
    }

    /// Queues the replies in the arena from `start` on. Compresses them if the client negotiated
    /// it.
    fn queue_replies(&mut self, start: usize) {
        if let Some(params) = self.deflate {
            self.compressor.replies(params, self.arena, start);
        }
        self.outbox.push_arena(self.arena, start..self.arena.len());
    }

    /// Writes the replies in the arena from `start` on, with the payload inserted at `position`, to
    /// the socket. Returns how many bytes the socket took.
    fn write_in_place(&mut self, start: usize, position: usize, payload: &[u8]) -> usize {
        let Some(DirectWrite { transport, tls_scratch, sent }) = &mut self.direct_write else { return 0 };
        let slices = [&self.arena[start..position], payload, &self.arena[position..]].map(IoSlice::new);
        // After an error, the bytes are queued, and their write reports the error again.
        let written = transport.write_vectored(&slices, tls_scratch).unwrap_or(0);
        **sent += written as u64;
        written
    }

    /// Sends a shared frame.
    pub fn send(&mut self, frame: &Frame) {
        self.outbox.push(match self.deflate {
            None => frame,
            Some(params) => self.compressor.shared(params, frame),
        });
    }

    /// Closes the connection after the frames sent so far. A second call has no effect.
    pub fn close(&mut self, reason: CloseReason) {
        self.close.get_or_insert(reason);
    }

    /// Charges work to the connection's turn, if it costs much more than the message that caused
    /// it. One unit of `cost` stands for about a nanosecond. Once the turn is over, the rest of the
    /// client's input waits for the next turn. Works in [`Session::on_message`] and
    /// [`Session::admit_control_frame`] only; other methods have no turn.
    pub fn charge(&mut self, cost: usize) {
        *self.charged = self.charged.saturating_add(cost);
    }

    /// Stops reading from this connection until [`Connections::resume_reading`] is called. Further
    /// input waits in the kernel, so TCP slows the client down. Bytes that were read already are
    /// handled after that call.
    pub fn pause_reading(&mut self) {
        *self.pause = true;
    }
}
