//! One connection to a broker, whichever it is: three parts, so that one task can use them side by side.

use std::sync::Arc;

use bytes::Bytes;

use crate::broker::Shared;
use crate::config::Engine;
use crate::queue::Outbound;

/// Why a connection was lost, or not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct LinkError(pub(crate) String);

impl LinkError {
    pub(crate) fn new(error: impl ToString) -> Self {
        Self(error.to_string())
    }
}

/// A connection.
pub(crate) struct Link {
    pub(crate) sender: Sender,
    pub(crate) subscriber: Subscriber,
    pub(crate) receiver: Receiver,
    /// Whether the broker brings the node its own messages too.
    pub(crate) echoes_own: bool,
}

/// Sends.
pub(crate) enum Sender {
    #[cfg(feature = "nats")]
    Nats(crate::nats::Sender),
    #[cfg(feature = "redis")]
    Redis(crate::redis::Sender),
}

/// Tells the broker what the node wants to get.
pub(crate) enum Subscriber {
    #[cfg(feature = "nats")]
    Nats(crate::nats::Subscriber),
    #[cfg(feature = "redis")]
    Redis(crate::redis::Subscriber),
}

/// Receives.
pub(crate) enum Receiver {
    #[cfg(feature = "nats")]
    Nats(crate::nats::Receiver),
    #[cfg(feature = "redis")]
    Redis(crate::redis::Receiver),
}

/// Calls the same method of whichever engine it is. Without engines there are no links.
macro_rules! engine {
    ($self:ident, $inner:ident => $call:expr) => {
        match $self {
            #[cfg(feature = "nats")]
            Self::Nats($inner) => $call,
            #[cfg(feature = "redis")]
            Self::Redis($inner) => $call,
            #[cfg(not(any(feature = "nats", feature = "redis")))]
            _ => Err(LinkError::new("no engine is built in")),
        }
    };
}

impl Link {
    /// Connects to one of the broker's servers, the `attempt`th by turns, and subscribes to what every node gets.
    pub(crate) async fn connect(shared: &Arc<Shared>, attempt: usize) -> Result<Self, LinkError> {
        match shared.config.url.engine() {
            #[cfg(feature = "nats")]
            Engine::Nats => crate::nats::connect(shared, attempt).await,
            #[cfg(feature = "redis")]
            Engine::Redis => crate::redis::connect(shared, attempt).await,
            #[cfg(not(all(feature = "nats", feature = "redis")))]
            engine => {
                let _ = attempt;
                Err(LinkError(format!("the engine {} is not built in", engine.name())))
            }
        }
    }
}

#[cfg_attr(
    not(any(feature = "nats", feature = "redis")),
    expect(unused_variables, unused_mut, clippy::unused_async, reason = "there are no engines")
)]
impl Sender {
    /// Hands a batch to the broker, and returns when it has confirmed all of it.
    pub(crate) async fn send(&mut self, batch: &[Outbound]) -> Result<(), LinkError> {
        engine!(self, inner => inner.send(batch).await)
    }
}

#[cfg_attr(
    not(any(feature = "nats", feature = "redis")),
    expect(unused_variables, clippy::unused_async, reason = "there are no engines")
)]
impl Subscriber {
    /// Subscribes to topics and patterns, and returns when the broker has confirmed them.
    pub(crate) async fn subscribe(&mut self, names: &[Arc<str>]) -> Result<(), LinkError> {
        engine!(self, inner => inner.subscribe(names).await)
    }

    /// Unsubscribes.
    pub(crate) async fn unsubscribe(&mut self, names: &[Arc<str>]) -> Result<(), LinkError> {
        engine!(self, inner => inner.unsubscribe(names).await)
    }
}

#[cfg_attr(
    not(any(feature = "nats", feature = "redis")),
    expect(unused_variables, clippy::unused_async, clippy::ptr_arg, reason = "there are no engines")
)]
impl Receiver {
    /// Waits for envelopes and adds the available ones to a batch, in the order in which the broker
    /// sent them. An error means that the connection has ended.
    pub(crate) async fn next(&mut self, batch: &mut Vec<Bytes>) -> Result<(), LinkError> {
        engine!(self, inner => inner.next(batch).await)
    }
}
