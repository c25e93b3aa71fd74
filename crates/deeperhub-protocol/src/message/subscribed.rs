//! The content of `subscribed`.

use std::borrow::Cow;

use super::MessageError;
use super::server::write_retry_after;
use super::sink::JsonSink;
use crate::{ErrorCode, NotRecovered, Position, RawJson};

/// Where the deliveries of a subscription start. The default is the start without history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SubscriptionStart {
    /// The position before the first delivery; `None` for a topic without history or a pattern.
    pub position: Option<Position>,
    /// Whether the subscription continues at the position that the client asked for; `None` if the
    /// client did not ask.
    pub recovery: Option<Result<(), NotRecovered>>,
    /// Number of kept messages that are delivered before live messages.
    pub replay: u64,
}

impl SubscriptionStart {
    /// Writes the keys, each with a comma before it.
    pub(super) fn write(&self, sink: &mut impl JsonSink) {
        if let Some(position) = self.position {
            write_position(sink, position);
        }
        match self.recovery {
            None => {}
            Some(Ok(())) => sink.raw(r#","recovered":true"#),
            Some(Err(reason)) => {
                sink.raw(r#","recovered":false,"reason":""#);
                sink.raw(reason.as_str());
                sink.raw("\"");
            }
        }
        if self.replay > 0 || self.recovery == Some(Ok(())) {
            sink.raw(r#","replay":"#);
            sink.number(self.replay);
        }
    }
}

/// The reply to one entry of a [`SubscribeList`](super::SubscribeList).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribedEntry<'a> {
    /// The topic or pattern as received, a JSON string.
    pub topic: RawJson<'a>,
    /// The start of the subscription, or the reason why there is none.
    pub result: Result<SubscriptionStart, SubscribedError>,
}

impl SubscribedEntry<'_> {
    /// Maximum length of an entry in the reply, without its topic and its error message.
    pub const MAX_OVERHEAD_BYTES: usize = 200;

    pub(super) fn write(&self, sink: &mut impl JsonSink) {
        sink.raw(r#"{"topic":"#);
        sink.raw(self.topic.as_str());
        match &self.result {
            Ok(start) => start.write(sink),
            Err(error) => {
                sink.raw(r#","error":{"code":""#);
                sink.raw(error.code.as_str());
                sink.raw(r#"","message":"#);
                sink.string(&error.message);
                if let Some(field) = error.field {
                    sink.raw(r#","field":"#);
                    sink.string(field);
                }
                write_retry_after(sink, error.retry_after_ms);
                sink.raw("}");
            }
        }
        sink.raw("}");
    }
}

/// The error of one entry of a [`SubscribeList`](super::SubscribeList).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribedError {
    /// The error code.
    pub code: ErrorCode,
    /// Description for people.
    pub message: Cow<'static, str>,
    /// The key that is missing or invalid; `None` if the error concerns no single key.
    pub field: Option<&'static str>,
    /// Delay before a retry in milliseconds; `None` if a retry needs no delay.
    pub retry_after_ms: Option<u64>,
}

impl From<MessageError<'_>> for SubscribedError {
    fn from(error: MessageError<'_>) -> Self {
        Self { code: error.code, message: error.message, field: error.field, retry_after_ms: None }
    }
}

/// Writes the keys of a position, each with a comma before it.
pub(super) fn write_position(sink: &mut impl JsonSink, position: Position) {
    sink.raw(r#","time":"#);
    sink.number(position.time);
    sink.raw(r#","epoch":""#);
    sink.raw(position.epoch.as_str());
    sink.raw(r#"","offset":"#);
    sink.number(position.offset);
}
