//! A WebSocket server library: accepting, handshakes, worker threads and connections. You write the
//! sessions.
//!
//! A connection belongs to one worker thread for its whole life. A worker is one loop over its
//! connections, in rounds. A round reads ready sockets and calls their [`Session`]s. It then polls
//! the worker's own state ([`WorkerState::poll`]) for frames from elsewhere, and writes each
//! connection at most once. An idle connection holds no buffer.
//!
//! An [`Application`] decides on handshakes, and creates the state of each worker
//! ([`WorkerState`]) and the sessions that answer messages. All three are type parameters, so calls
//! are static. [`accept_all`] is an application that accepts every handshake.
//!
//! This crate has no topics, message formats or tokens: these belong to the application.
//!
//! ```
//! use deeperhub_listener::{Context, Listener, Message, Session, accept_all};
//!
//! /// Answers every message with itself.
//! struct Echo;
//!
//! impl Session for Echo {
//!     type WorkerState = ();
//!
//!     fn on_message(&mut self, message: Message<'_>, cx: &mut Context<'_, ()>) {
//!         cx.reply_message(message);
//!     }
//! }
//!
//! # fn main() -> Result<(), deeperhub_listener::StartError> {
//! let listener = Listener::builder(accept_all(|| Echo)).bind(([127, 0, 0, 1], 0))?;
//! println!("listening on ws://{}", listener.local_addr());
//! # Ok(())
//! # }
//! ```
//!
//! `examples/echo.rs` is the whole program.

mod accept_all;
mod acceptor;
mod admission;
mod arena;
#[cfg(feature = "io-uring")]
mod batch_write;
mod builder;
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

pub use accept_all::{AcceptAll, accept_all};
pub use acceptor::ListenOn;
pub use arena::Multicast;
pub use builder::Builder;
pub use config::{Config, connection_rate_limit};
pub use connections::Connections;
pub use drain::ReconnectTo;
pub use listener::{Listener, StartError};
pub use memory_budget::MemoryBudget;
pub use metrics::Metrics;
pub use proxy::{ForwardedHeader, ProxyProtocol};
pub use restart::RestartDelay;
pub use session::{
    Accepted, Application, Closed, ConnectionKey, Context, Message, Peer, Session, WorkerState,
};

// Types of other crates in this crate's signatures, so that a server needs this crate alone.
pub use deeperhub_metrics::{Cells, RegisterError, Registry};
pub use deeperhub_protocol::deflate::Config as CompressionConfig;
pub use deeperhub_protocol::frame::{self, Frame};
pub use deeperhub_protocol::handshake::{Refusal, Request};
pub use deeperhub_protocol::{CloseCode, CloseReason};
pub use deeperhub_security::proxy::{Header, TrustedProxies};
#[cfg(feature = "tls")]
pub use deeperhub_security::tls;
pub use deeperhub_security::{LimitMode, RateLimit};

/// The README's example runs with the doc tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
