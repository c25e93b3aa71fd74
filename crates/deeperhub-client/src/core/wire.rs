//! Messages of the protocol as JSON text.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Error, Message, Position};

/// Longest time that the server may ask a client to wait.
const MAX_WAIT_MS: u64 = (1 << 31) - 1;

/// Limits a time that the server asks a client to wait.
pub(super) fn wait_of(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds.min(MAX_WAIT_MS))
}

/// Deserializes a payload, in which `null` is a value like any other.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(deserializer).map(Some)
}

/// A message of the server.
#[derive(Deserialize)]
pub(super) struct Envelope<'a> {
    #[serde(rename = "type", borrow)]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
}

impl<'a> Envelope<'a> {
    /// Returns the id of the request that this answers, if it is one of ours.
    pub(super) fn id(&self) -> Option<u64> {
        self.id.and_then(|id| id.get().parse().ok())
    }

    /// Returns `true` if the message has an id, ours or not.
    pub(super) fn has_id(&self) -> bool {
        self.id.is_some_and(|id| id.get() != "null")
    }

    /// Parses `data`. Returns `None` if it is not a `T`.
    pub(super) fn data<T: Deserialize<'a>>(&self) -> Option<T> {
        serde_json::from_str(self.data?.get()).ok()
    }

    pub(super) fn raw_data(&self) -> Option<&'a RawValue> {
        self.data
    }
}

#[derive(Deserialize)]
pub(super) struct Welcome<'a> {
    #[serde(borrow, default)]
    pub(super) client_id: Cow<'a, str>,
    #[serde(default)]
    pub(super) server_time: Option<u64>,
    #[serde(default)]
    pub(super) limits: WelcomeLimits,
}

#[derive(Deserialize, Default)]
pub(super) struct WelcomeLimits {
    pub(super) max_message_bytes: Option<usize>,
    pub(super) ping_interval_ms: Option<u64>,
}

#[derive(Deserialize, Default, Debug, Clone)]
pub(super) struct Goodbye {
    #[serde(default)]
    pub(super) code: Option<u16>,
    #[serde(default)]
    pub(super) reason: String,
    #[serde(default)]
    pub(super) reconnect: Option<bool>,
    #[serde(default)]
    pub(super) retry_after_ms: Option<u64>,
}

#[derive(Deserialize)]
pub(super) struct ErrorData<'a> {
    #[serde(borrow)]
    code: Cow<'a, str>,
    #[serde(borrow, default)]
    message: Cow<'a, str>,
    #[serde(default)]
    retry_after_ms: Option<u64>,
}

impl ErrorData<'_> {
    pub(super) fn to_error(&self) -> Error {
        let mut error = Error::new(self.code.clone().into_owned(), self.message.clone().into_owned());
        error.retry_after = self.retry_after_ms.map(wait_of);
        error
    }
}

/// A delivery, a `gap`, a `position`, or the position in a reply.
#[derive(Deserialize, Default)]
pub(super) struct Delivery<'a> {
    #[serde(borrow)]
    pub(super) topic: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(super) message: Option<&'a RawValue>,
    #[serde(borrow, default)]
    from: Option<&'a RawValue>,
    #[serde(default)]
    time: Option<u64>,
    #[serde(borrow, default)]
    epoch: Option<Cow<'a, str>>,
    #[serde(default)]
    offset: Option<u64>,
    #[serde(default)]
    pub(super) prev: Option<u64>,
    #[serde(default)]
    pub(super) to: Option<u64>,
    #[serde(borrow, default)]
    pub(super) reason: Option<Cow<'a, str>>,
    #[serde(default)]
    pub(super) recovered: Option<bool>,
    #[serde(default)]
    pub(super) replay: Option<u64>,
    #[serde(borrow, default)]
    pub(super) error: Option<ErrorData<'a>>,
    #[serde(default)]
    pub(super) subscribers: Option<u64>,
    #[serde(borrow, default)]
    pub(super) messages: Option<Vec<Self>>,
    #[serde(default)]
    pub(super) next: Option<u64>,
}

impl Delivery<'_> {
    /// Returns the position. The epoch is shared with `near` if it is the same.
    pub(super) fn position(&self, near: Option<&Position>) -> Option<Position> {
        let (epoch, offset) = (self.epoch.as_deref()?, self.offset?);
        let epoch = match near {
            Some(near) if *near.epoch == *epoch => Arc::clone(&near.epoch),
            _ => Arc::from(epoch),
        };
        Some(Position { epoch, offset, time: self.time.unwrap_or_default() })
    }

    /// Returns the first missing offset of a `gap`.
    pub(super) fn first_missing(&self) -> Option<u64> {
        self.from.and_then(|from| from.get().parse().ok())
    }

    /// Returns the message of a delivery to `topic`.
    /// `bytes` is the length of its text.
    pub(super) fn to_message(
        &self,
        topic: &Arc<str>,
        near: Option<&Position>,
        bytes: usize,
    ) -> Option<Message> {
        let from = self.from.and_then(|from| serde_json::from_str::<Cow<'_, str>>(from.get()).ok());
        Some(Message {
            topic: Arc::clone(topic),
            from: from.map(Arc::from),
            position: self.position(near),
            payload: Arc::from(self.message?.to_owned()),
            bytes,
        })
    }
}

#[derive(Deserialize)]
pub(super) struct SubscribedList<'a> {
    #[serde(borrow)]
    pub(super) topics: Vec<Delivery<'a>>,
}

#[derive(Deserialize)]
pub(super) struct Authenticated {
    #[serde(default)]
    pub(super) expires_at: Option<u64>,
}

/// An entry of a `subscribe`.
#[derive(Serialize)]
pub(super) struct SubscribeEntry<'a> {
    pub(super) topic: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) recover: Option<&'a Position>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) history: Option<u32>,
}

#[derive(Serialize)]
pub(super) struct PublishData<'a> {
    pub(super) topic: &'a str,
    pub(super) message: &'a RawValue,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) exclude_self: bool,
    pub(super) once: &'a str,
}

#[derive(Serialize)]
pub(super) struct HistoryData<'a> {
    pub(super) topic: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) from: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) limit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) order: Option<&'static str>,
}

#[derive(Serialize)]
pub(super) struct TopicData<'a> {
    pub(super) topic: &'a str,
}

#[derive(Serialize)]
pub(super) struct TokenData<'a> {
    pub(super) token: &'a str,
}

/// Returns the text of a message.
pub(super) fn request<T: Serialize + ?Sized>(kind: &str, id: u64, data: &T) -> String {
    // The data above has only strings as keys, so writing it succeeds.
    let data = serde_json::to_string(data).unwrap_or_default();
    format!(r#"{{"type":"{kind}","id":{id},"data":{data}}}"#)
}

/// Returns the text of a `subscribe` with entries that are JSON text already.
pub(super) fn subscribe(id: u64, entries: &[String]) -> String {
    match entries {
        [entry] => format!(r#"{{"type":"subscribe","id":{id},"data":{entry}}}"#),
        _ => format!(r#"{{"type":"subscribe","id":{id},"data":{{"topics":[{}]}}}}"#, entries.join(",")),
    }
}

/// Bytes of a `subscribe` beside its entries.
pub(super) const SUBSCRIBE_BYTES: usize = 80;

pub(super) const PING: &str = r#"{"type":"ping"}"#;
