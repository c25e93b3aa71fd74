//! A WebSocket listener: accept, handshake, worker threads and connections, for your own sessions.
//!
//! A connection belongs to one worker thread for its whole life. A worker is one loop over its connections: it
//! reads those that have something, lets their [`Session`]s answer, takes what waits for them from elsewhere
//! ([`WorkerState::poll`]), and writes each connection that got something once. An idle connection holds no buffer.
//!
//! You give it an [`Application`]: it decides on handshakes, makes what each worker keeps for its sessions
//! ([`WorkerState`]), and the sessions that answer messages. All three are type parameters, so the calls are static.
//! What is absent on purpose: topics, message formats, tokens. Those are an application's.
//!
//! ```
//! use deeperhub_listener::{Accepted, Application, Connections, Context, WorkerState, Message, Peer, Session};
//! use deeperhub_protocol::frame;
//! use deeperhub_protocol::handshake::{Refusal, Request};
//! use std::task::{self, Poll};
//!
//! /// Answers every message with itself.
//! struct Echo;
//! struct NoState;
//!
//! impl Application for Echo {
//!     type WorkerState = NoState;
//!     type Session = Echo;
//!     fn worker_state(&self, _worker: usize) -> NoState {
//!         NoState
//!     }
//!     fn accept(
//!         &self,
//!         _request: Request,
//!         _peer: Peer,
//!     ) -> impl Future<Output = Result<Accepted<Echo>, Refusal>> + 'static {
//!         std::future::ready(Ok(Accepted { session: Echo, subprotocol: None }))
//!     }
//! }
//!
//! impl WorkerState<Echo> for NoState {
//!     fn poll(&mut self, _cx: &mut task::Context<'_>, _connections: &mut Connections<'_, Echo>) -> Poll<()> {
//!         Poll::Pending
//!     }
//! }
//!
//! impl Session for Echo {
//!     type WorkerState = NoState;
//!     fn on_message(&mut self, message: Message<'_>, cx: &mut Context<'_, NoState>) {
//!         cx.reply(|out| match message {
//!             Message::Text(text) => frame::write_text(out, text),
//!             Message::Binary(bytes) => frame::write_binary(out, bytes),
//!         });
//!     }
//! }
//! ```
//!
//! `examples/echo.rs` is the whole program.

mod acceptor;
mod admission;
mod arena;
#[cfg(feature = "io-uring")]
mod batch_write;
mod config;
mod connections;
mod control;
mod deflate;
mod drain;
mod handshake;
mod intake_limit;
mod listener;
mod memory_budget;
mod metrics;
mod outbox;

mod proxy;
mod reconnect_pacer;
mod restart;
mod round;
mod session;
mod transport;
mod waker;
mod worker;

pub use acceptor::ListenOn;
pub use arena::Multicast;
pub use config::{Config, connection_rate_limit};
pub use connections::Connections;
pub use drain::ReturnTo;
pub use listener::{Listener, StartError};
pub use memory_budget::MemoryBudget;
pub use metrics::Metrics;
pub use proxy::{ForwardedHeader, ProxyProtocol};
pub use restart::RestartDelay;
pub use session::{
    Accepted, Application, Closed, ConnectionKey, Context, Message, Peer, Session, WorkerState,
};
