//! Maximum lengths of messages from the server.

use super::ServerMessage;
use crate::message::{Features, SubscribedEntry, TraceContext};
use crate::{Epoch, Topic};

/// Length in bytes of the longest delivery of a backend's publish, without the payload. Each byte
/// of the topic and of `tracestate` can need an escape.
const MAX_DELIVERY_OVERHEAD_BYTES: usize = r#"{"type":"message","data":{"topic":,"message":}"#.len()
    + max_escaped(Topic::MAX_BYTES)
    + r#","meta":{"traceparent":,"tracestate":}}"#.len()
    + "\"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\"".len()
    + max_escaped(TraceContext::MAX_TRACESTATE_BYTES);

/// Length in bytes of the longest position in a delivery, with `prev`.
const MAX_POSITION_BYTES: usize =
    r#","time":,"epoch":"","offset":,"prev":"#.len() + 3 * MAX_NUMBER_BYTES + Epoch::BYTES;

/// Length in bytes of the longest number.
const MAX_NUMBER_BYTES: usize = 20;

/// Returns the length of the longest JSON string for a text of `bytes` bytes without control
/// characters: each byte with an escape, and two quotes.
const fn max_escaped(bytes: usize) -> usize {
    2 * bytes + 2
}

impl ServerMessage<'_> {
    /// Returns the length of the longest delivery to a client of a server with the given features,
    /// in bytes of JSON, if clients' messages and backends' payloads have at most
    /// `max_message_bytes`.
    ///
    /// Of the other messages, only two can be longer. A [`History`](Self::History) reply is shorter
    /// if it has at most one message. [`Self::max_subscribed_list_bytes`] is the limit of a
    /// [`SubscribedList`](Self::SubscribedList).
    ///
    /// The longest message is the delivery of a backend's publish, because its payload alone can
    /// have `max_message_bytes`. The delivery of a client's publish is shorter: it also has the
    /// client's ID, but its payload is only a part of the client's message.
    #[must_use]
    pub const fn max_delivery_bytes(max_message_bytes: u64, features: Features) -> u64 {
        let position = if features.contains(Features::HISTORY) { MAX_POSITION_BYTES } else { 0 };
        max_message_bytes.saturating_add((MAX_DELIVERY_OVERHEAD_BYTES + position) as u64)
    }

    /// Returns the length of the longest [`SubscribedList`](Self::SubscribedList) in bytes of JSON,
    /// if the client's message has at most `max_message_bytes`, its list at most `max_entries`
    /// entries, and each error message at most `max_error_bytes` without escapes.
    #[must_use]
    pub const fn max_subscribed_list_bytes(
        max_message_bytes: u64,
        max_entries: u64,
        max_error_bytes: u64,
    ) -> u64 {
        let entry = max_error_bytes.saturating_add(SubscribedEntry::MAX_OVERHEAD_BYTES as u64);
        // The reply's `type` is one byte longer than the request's.
        max_message_bytes.saturating_add(1).saturating_add(entry.saturating_mul(max_entries))
    }
}
