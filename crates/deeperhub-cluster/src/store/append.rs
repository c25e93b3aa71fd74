//! Appends: messages on their way to the store, and their outcomes.

use std::time::SystemTime;

use deeperhub_protocol::message::TraceContext;
use deeperhub_protocol::{ClientId, RawJson, Topic};

use super::{StorePosition, StreamLimits};
use crate::batch::Destination;
use crate::broker::{Broker, EnqueueError};
use crate::config::Engine;
use crate::envelope::{Message, stamp_offset, stored_topic_offset};

/// A publish that the store appends to the topic's stream.
#[derive(Debug, Clone)]
pub struct Append<'a> {
    /// The topic.
    pub topic: Topic<'a>,
    /// Limits of the topic's stream.
    pub limits: StreamLimits,
    /// Latest position of the topic that the node knows. A store that knows less has lost messages,
    /// so it starts a new stream.
    pub known: Option<StorePosition>,
    /// The client that publishes; `None` for a server.
    pub from: Option<ClientId>,
    /// `true` if the publisher must not get its own message.
    pub excludes_publisher: bool,
    /// The trace that the publish belongs to.
    pub trace: TraceContext<'a>,
    /// The published value.
    pub payload: RawJson<'a>,
    /// Identity of a publish that the client may repeat.
    pub once: Option<Once<'a>>,
}

/// Identity of a publish that a client may repeat. Within two minutes, the store appends the
/// publishes of one user to one topic with the same text once, whichever node they come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Once<'a> {
    /// The publishing user. All publishers without a user count as one.
    pub user: Option<&'a str>,
    /// Text that the client chose for this publish.
    pub text: &'a str,
}

/// Number that the node chooses for an append, and gets back with its outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppendNumber(pub u64);

/// Place of a message in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Appended {
    /// The position in the topic's stream.
    pub position: StorePosition,
    /// Time of the message in milliseconds since the Unix epoch. That of an earlier publish which has
    /// left the store is unknown: then, the present time in whole seconds.
    pub time: u64,
    /// `true` if this is the place of an earlier publish with the same [`Once`]. Nothing was
    /// appended.
    pub is_repeat: bool,
}

/// Reason why a queued message was not appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The server refused the message; for example, its memory is full. The text is its reason.
    #[error("the store refused the message: {0}")]
    Refused(String),
    /// The node left the cluster before the store confirmed the message. It may have been
    /// appended.
    #[error("the node stopped before the store confirmed the message")]
    Stopped,
}

/// Outcome of an append, with its number.
pub(crate) type AppendOutcome = (AppendNumber, Result<Appended, AppendError>);

/// Facts about an append that the queue keeps besides its envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AppendTarget {
    pub(crate) number: AppendNumber,
    pub(crate) limits: StreamLimits,
    pub(crate) known: Option<StorePosition>,
    pub(crate) once: Option<OwnedOnce>,
    /// Offset in the envelope of the fields that the store fills in.
    pub(crate) stamp: usize,
    /// Offset in the envelope of the topic.
    pub(crate) topic: usize,
    /// Length of the topic.
    pub(crate) topic_len: usize,
}

/// A [`Once`] without borrowed text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnedOnce {
    /// The user after a letter that differs for publishers without one.
    pub(crate) user: Box<str>,
    pub(crate) text: Box<str>,
}

impl AppendTarget {
    /// Returns the memory that the append takes besides its envelope.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.once.as_ref().map_or(0, |once| once.user.len() + once.text.len())
    }
}

impl From<Once<'_>> for OwnedOnce {
    fn from(once: Once<'_>) -> Self {
        let user = once.user.map_or_else(|| "-".to_owned(), |user| format!("u{user}"));
        Self { user: user.into(), text: once.text.into() }
    }
}

impl Broker {
    /// Queues a message for the store without waiting. It takes its place among the messages of
    /// [`publish`](Self::publish): those of this node keep their order.
    ///
    /// [`MessageHandler::on_appended`](crate::MessageHandler::on_appended) gets the outcome of each
    /// append that was queued, exactly once unless the handler panics. An append whose connection
    /// was lost is sent again, and the store recognizes it.
    ///
    /// # Errors
    ///
    /// Returns [`EnqueueError`] if the message was not queued. The loss is counted.
    pub fn append(&self, append: Append<'_>, number: AppendNumber) -> Result<(), EnqueueError> {
        let Append { topic, limits, known, from, excludes_publisher, trace, payload, once } = append;
        let node_len = self.0.node.len();
        let to = Destination::Append(Box::new(AppendTarget {
            number,
            limits,
            known: known.and_then(StorePosition::if_valid),
            once: once.map(OwnedOnce::from),
            stamp: stamp_offset(node_len),
            topic: stored_topic_offset(node_len),
            topic_len: topic.as_str().len(),
        }));
        // The store fills in the fields that are 0. JetStream changes no message, so there the time
        // is that of the node.
        let time = if self.0.config.url.engine() == Engine::Nats { unix_ms() } else { 0 };
        let position = StorePosition { epoch: 0, offset: 0 };
        self.enqueue(
            to,
            Message::Stored { position, previous: 0, time, excludes_publisher, topic, from, trace, payload },
        )
    }
}

/// Returns the node's time in milliseconds since the Unix epoch.
pub(crate) fn unix_ms() -> u64 {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
