//! The traits that an application implements, and the types in their signatures.

mod context;

use std::borrow::Cow;
use std::future::Future;
use std::net::SocketAddr;
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use deeperhub_protocol::CloseReason;
use deeperhub_protocol::handshake::{Refusal, Request};

use crate::connections::Connections;

pub use context::Context;
pub(crate) use context::DirectWrite;

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

    /// Called after [`Connections::notify_when_drained`], once for each connection: its queue was
    /// written until at most a quarter of
    /// [`Limits::max_queue_bytes`](crate::Limits::max_queue_bytes) was left. Calls come at the end
    /// of a round, and the next round with its [`poll`](Self::poll) follows at once. A connection
    /// that closes first gets no call, only [`Session::on_close`].
    fn on_drained(&mut self, key: ConnectionKey) {
        let _ = key;
    }

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
