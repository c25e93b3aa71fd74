//! One connection to a broker of any engine. Its four parts can be used concurrently in one task.

use std::sync::Arc;

use bytes::Bytes;

use crate::batch::Batch;
use crate::broker::Shared;
#[cfg(any(feature = "nats", feature = "redis"))]
use crate::config::Engine;
use crate::store::{AppendOutcome, Request};

/// Reason why a connection was lost or could not be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct LinkError(pub(crate) String);

impl LinkError {
    pub(crate) fn new(error: impl ToString) -> Self {
        Self(error.to_string())
    }
}

/// One connection to a broker.
pub(crate) struct Link {
    pub(crate) sender: Sender,
    pub(crate) subscriber: Subscriber,
    pub(crate) receiver: Receiver,
    pub(crate) reader: Reader,
    /// `true` if the broker delivers the node's own messages back to it.
    pub(crate) echoes_own: bool,
}

/// State of a batch that was sent.
#[derive(Debug)]
pub(crate) enum Sent {
    /// The broker has confirmed it. These are the outcomes of its appends.
    #[cfg_attr(
        not(any(feature = "nats", feature = "redis")),
        expect(dead_code, reason = "there are no engines")
    )]
    Confirmed(Vec<AppendOutcome>),
    /// The broker will confirm it under this number. It has no appends.
    #[cfg_attr(not(feature = "nats"), expect(dead_code, reason = "Redis confirms batches at once"))]
    Written(u64),
}

/// Sending part.
pub(crate) enum Sender {
    #[cfg(feature = "nats")]
    Nats(Box<crate::nats::Sender>),
    #[cfg(feature = "redis")]
    Redis(crate::redis::Sender),
}

/// Subscribing part.
pub(crate) enum Subscriber {
    #[cfg(feature = "nats")]
    Nats(crate::nats::Subscriber),
    #[cfg(feature = "redis")]
    Redis(crate::redis::Subscriber),
}

/// Receiving part.
pub(crate) enum Receiver {
    #[cfg(feature = "nats")]
    Nats(crate::nats::Receiver),
    #[cfg(feature = "redis")]
    Redis(crate::redis::Receiver),
}

/// Part that reads streams.
pub(crate) enum Reader {
    #[cfg(feature = "nats")]
    Nats(Box<crate::nats::Reader>),
    #[cfg(feature = "redis")]
    Redis(Box<crate::redis::Reader>),
}

/// Calls the same method of either engine. Without engines there are no links.
macro_rules! engine {
    ($self:ident, $inner:ident => $call:expr) => {
        match $self {
            #[cfg(feature = "nats")]
            Self::Nats($inner) => $call,
            #[cfg(feature = "redis")]
            Self::Redis($inner) => $call,
            #[cfg(not(any(feature = "nats", feature = "redis")))]
            _ => Err(LinkError::new("the program was built without engines")),
        }
    };
}

impl Link {
    /// Connects to one of the broker's servers and subscribes to the names that every node
    /// receives. Successive values of `attempt` use one server after the other.
    pub(crate) async fn connect(shared: &Arc<Shared>, attempt: usize) -> Result<Self, LinkError> {
        match shared.config.url.engine() {
            #[cfg(feature = "nats")]
            Engine::Nats => crate::nats::connect(shared, attempt).await,
            #[cfg(feature = "redis")]
            Engine::Redis => crate::redis::connect(shared, attempt).await,
            #[cfg(not(all(feature = "nats", feature = "redis")))]
            engine => {
                let _ = attempt;
                Err(LinkError(format!("the program was built without the engine {}", engine.name())))
            }
        }
    }
}

#[cfg_attr(
    not(all(feature = "nats", feature = "redis")),
    allow(
        unused_variables,
        clippy::unused_async,
        reason = "only Redis needs marks, and only NATS needs numbers"
    )
)]
impl Sender {
    /// Sends a batch. `is_resent` says that the broker may have got it before.
    pub(crate) async fn send(&mut self, batch: &Batch, is_resent: bool) -> Result<Sent, LinkError> {
        match self {
            // Its server recognizes messages whether they are marked or not.
            #[cfg(feature = "nats")]
            Self::Nats(inner) => inner.send(batch).await,
            #[cfg(feature = "redis")]
            Self::Redis(inner) => inner.send(batch, is_resent).await.map(Sent::Confirmed),
            #[cfg(not(any(feature = "nats", feature = "redis")))]
            _ => Err(LinkError::new("the program was built without engines")),
        }
    }

    /// Waits until the broker has confirmed the batch of this number, and those before it. Nothing
    /// is lost if the future is dropped.
    pub(crate) async fn confirmed(&self, number: u64) -> Result<(), LinkError> {
        match self {
            #[cfg(feature = "nats")]
            Self::Nats(inner) => inner.confirmed(number).await,
            // Its batches are confirmed when they are sent.
            #[cfg(feature = "redis")]
            Self::Redis(_) => Ok(()),
            #[cfg(not(any(feature = "nats", feature = "redis")))]
            _ => Err(LinkError::new("the program was built without engines")),
        }
    }
}

#[cfg_attr(
    not(any(feature = "nats", feature = "redis")),
    expect(unused_variables, clippy::unused_async, reason = "there are no engines")
)]
impl Subscriber {
    /// Subscribes to topics and patterns and returns when the broker has confirmed it.
    pub(crate) async fn subscribe(&mut self, names: &[Arc<str>]) -> Result<(), LinkError> {
        engine!(self, inner => inner.subscribe(names).await)
    }

    /// Unsubscribes from topics and patterns.
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

#[cfg_attr(
    not(feature = "redis"),
    allow(
        unused_variables,
        clippy::unused_async,
        reason = "only Redis needs marks, or there are no engines"
    )
)]
impl Reader {
    /// Prepares what the store needs, for a connection that has just begun.
    #[cfg_attr(
        not(feature = "nats"),
        allow(clippy::unused_async, reason = "only JetStream has streams to create")
    )]
    pub(crate) async fn prepare(&mut self) {
        match self {
            #[cfg(feature = "nats")]
            Self::Nats(inner) => inner.prepare().await,
            #[cfg(feature = "redis")]
            Self::Redis(_) => {}
            #[cfg(not(any(feature = "nats", feature = "redis")))]
            _ => {}
        }
    }

    /// Keeps the connection for reads alive, between requests. Does not return before it is lost.
    pub(crate) async fn keep_alive(&mut self) {
        match self {
            #[cfg(feature = "nats")]
            Self::Nats(inner) => inner.keep_alive().await,
            // Its library does so.
            #[cfg(feature = "redis")]
            Self::Redis(_) => std::future::pending().await,
            #[cfg(not(any(feature = "nats", feature = "redis")))]
            _ => std::future::pending().await,
        }
    }

    /// Answers requests, with errors if the connection fails.
    pub(crate) async fn answer(&mut self, requests: Vec<Request>) {
        match self {
            #[cfg(feature = "redis")]
            Self::Redis(inner) => inner.answer(requests).await,
            #[cfg(feature = "nats")]
            Self::Nats(inner) => inner.answer(requests).await,
            #[cfg(not(any(feature = "nats", feature = "redis")))]
            _ => {}
        }
    }
}
