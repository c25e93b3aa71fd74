//! Values that an application gets from a hub.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::Position;

/// An event of a subscription, in the order in which it happened.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// A message was published to the topic.
    Message(Message),
    /// Messages are missing here, and will not come.
    Gap(Gap),
    /// The state of the subscription changed.
    State(SubscriptionState),
}

/// A message of a topic.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Message {
    /// The topic. It differs from the subscription's if that is a pattern.
    pub topic: Arc<str>,
    /// The client ID of the publisher, unless a backend published it.
    pub from: Option<Arc<str>>,
    /// The position, in a topic with history.
    pub position: Option<Position>,
    pub(crate) payload: Arc<RawValue>,
    /// Bytes of text that the message counts for in a queue.
    pub(crate) bytes: usize,
}

impl Message {
    /// Deserializes the message.
    ///
    /// # Errors
    /// Returns an error if the message is not the JSON of a `T`.
    pub fn message<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(self.payload.get())
    }

    /// Returns the JSON text of the message, as it was published.
    #[must_use]
    pub fn json(&self) -> &str {
        self.payload.get()
    }
}

/// Messages that an application does not get.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Gap {
    /// The topic.
    pub topic: Arc<str>,
    /// The offset of the first missing message, if it is known.
    pub from: Option<u64>,
    /// The offset of the last missing message, if it is known.
    pub to: Option<u64>,
    /// The reason, such as `trimmed`, `epoch` or `dropped`.
    pub reason: Arc<str>,
    /// The position after the gap, in a topic with history.
    pub position: Option<Position>,
}

impl Gap {
    /// Returns `true` if a delivery policy caused the gap. Such a policy replays as many messages as
    /// it announced, whatever it skips, and the position was good.
    pub(crate) fn is_by_policy(&self) -> bool {
        matches!(&*self.reason, "dropped" | "conflated")
    }
}

/// The state of a subscription.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SubscriptionState {
    /// The first `subscribed` is awaited.
    Subscribing,
    /// The connection is lost, or messages before the live ones are awaited.
    Recovering,
    /// Live messages are handed over.
    Live {
        /// `false` if messages were missed since the last live time; `None` at the first.
        recovered: Option<bool>,
        /// The reason why messages were missed.
        reason: Option<Arc<str>>,
    },
    /// The end. The stream ends after it.
    Ended {
        /// The code of the error, or `unsubscribed` or `closed`.
        reason: Arc<str>,
    },
}

/// The result of a publish.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Published {
    /// The topic.
    pub topic: Arc<str>,
    /// Number of subscriptions of the server that the message matched.
    pub subscribers: u64,
    /// The position of the message, in a topic with history.
    pub position: Option<Position>,
}

/// Kept messages of a topic.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct HistoryPage {
    /// The topic.
    pub topic: Arc<str>,
    /// The position of the newest message; `None` if nothing is kept.
    pub position: Option<Position>,
    /// The messages, in the order that was asked for.
    pub messages: Vec<Message>,
    /// The `from` of the next request, if there are more messages.
    pub next: Option<u64>,
}

/// The order of kept messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// The oldest message first.
    #[default]
    Ascending,
    /// The newest message first.
    Descending,
}
