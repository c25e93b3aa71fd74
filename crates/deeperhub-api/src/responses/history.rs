//! Bodies of responses about the history of topics.

use deeperhub_node::TopicHistory;
use deeperhub_protocol::{Epoch, Position};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

/// An epoch, which is serialized as its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EpochText(pub(super) Epoch);

impl Serialize for EpochText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.as_str())
    }
}

/// A page of a topic's kept messages.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct HistoryPage<'a> {
    #[cfg_attr(test, schema(example = "chat.42"))]
    topic: &'a str,
    /// Epoch of the topic's stream. Epoch, offset and time are absent if no message was ever kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schema(value_type = String, required = false, example = "k3J9aQx2"))]
    epoch: Option<EpochText>,
    /// Offset of the newest message, kept or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schema(value_type = u64, required = false))]
    offset: Option<u64>,
    /// Time of this response in milliseconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schema(value_type = u64, required = false))]
    time: Option<u64>,
    /// The messages as their subscribers got them.
    #[cfg_attr(test, schema(value_type = Vec<Delivery>))]
    messages: Vec<&'a RawValue>,
    /// `from` of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schema(value_type = u64, required = false))]
    next: Option<u64>,
}

impl<'a> HistoryPage<'a> {
    pub(crate) fn new(
        topic: &'a str,
        position: Option<Position>,
        messages: Vec<&'a RawValue>,
        next: Option<u64>,
    ) -> Self {
        Self {
            topic,
            epoch: position.map(|position| EpochText(position.epoch)),
            offset: position.map(|position| position.offset),
            time: position.map(|position| position.time),
            messages,
            next,
        }
    }
}

/// A message of a topic with history, as its subscribers got it.
// It only describes texts that the node has encoded.
#[cfg(test)]
#[expect(dead_code, reason = "the node encodes the message")]
#[derive(utoipa::ToSchema)]
pub(crate) struct Delivery {
    topic: String,
    /// The message as published.
    #[schema(value_type = serde_json::Value)]
    message: Box<RawValue>,
    /// Client ID of the publisher; absent if a backend published.
    #[schema(value_type = String, required = false, example = "node-1.0-1f-5c2a")]
    from: Option<String>,
    /// Time of the publish in milliseconds since the Unix epoch.
    time: u64,
    /// Epoch of the topic's stream.
    #[schema(example = "k3J9aQx2")]
    epoch: String,
    /// Number of the message within the epoch.
    offset: u64,
    /// Offset of the message before this one; absent if it is `offset - 1`.
    #[schema(value_type = u64, required = false)]
    prev: Option<u64>,
}

/// State of a topic's history.
#[derive(Debug, Clone, Copy, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct HistoryState {
    /// Epoch of the topic's stream.
    #[cfg_attr(test, schema(value_type = String, example = "k3J9aQx2"))]
    epoch: EpochText,
    /// Offset of the newest message, kept or not; 0 before the first message.
    offset: u64,
    /// Number of kept messages.
    messages: u64,
    /// Bytes of the kept messages.
    bytes: u64,
    /// Offset of the oldest kept message; null if none is kept.
    #[cfg_attr(test, schema(required = true))]
    oldest: Option<u64>,
}

impl From<TopicHistory> for HistoryState {
    fn from(history: TopicHistory) -> Self {
        Self {
            epoch: EpochText(history.epoch),
            offset: history.offset,
            messages: history.messages,
            bytes: history.bytes,
            oldest: history.oldest,
        }
    }
}
