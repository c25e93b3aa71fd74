//! A WebSocket server library. It accepts connections, performs handshakes and runs worker threads;
//! you write the sessions that handle messages.
//!
//! A connection belongs to one worker thread for its whole life. A worker runs one loop over its
//! connections. Each pass of the loop, a *round*, reads the ready sockets and calls their
//! [`Session`]s. The worker then calls [`WorkerState::poll`], which sends frames from other
//! sources. At the end of the round, it writes all queued bytes; only large replies are written
//! earlier. An idle connection holds no buffer.
//!
//! You implement an [`Application`], which decides on handshakes and creates sessions and worker
//! states. All of these are type parameters, so calls are static. [`accept_all`] is an application
//! that accepts every handshake.
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
//!      type WorkerState = ();
//!
//!      fn on_message(&mut self, message: Message<'_>, cx: &mut Context<'_, ()>) {
//!          cx.reply_message(message);
//!      }
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
mod connection;
mod connections;
mod control;
mod deflate;
mod drain;
mod handshake;
mod intake_limit;
mod listener;
mod memory_budget;
pub mod metrics;
mod outbox;
mod proxy;
mod reconnect_pacer;
mod restart;
mod round;
mod session;
mod shared;
mod table;
mod transport;
mod waker;
mod worker;

pub use accept_all::{AcceptAll, accept_all};
pub use acceptor::ListenOn;
pub use arena::Multicast;
pub use builder::Builder;
pub use config::{Config, Limits, connection_rate_limit};
pub use connections::{Connections, QueueFull};
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
