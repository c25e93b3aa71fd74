//! Messages from the server.

use super::envelope::{Envelope, MessageKey, decode_string};
use super::sink::{JsonSink, LengthCounter, PayloadGap};
use super::subscribed::write_position;
use super::{Features, MessageError, MessageId, SubscribedEntry, SubscriptionStart, TraceContext};
use crate::frame::{Frame, text_header};
use crate::json::clamp_nesting;
use crate::{ClientId, CloseReason, Epoch, ErrorCode, GapReason, Position, RawJson, Topic};

/// The limits announced in `welcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WelcomeLimits {
    /// Maximum length of a client message in bytes.
    pub max_message_bytes: u64,
    /// Maximum length of a message that a client must be able to receive, in bytes
    /// ([`ServerMessage::max_delivery_bytes`]).
    pub max_delivery_bytes: u64,
    /// Maximum number of subscriptions of a connection.
    pub max_subscriptions: u64,
    /// Interval between WebSocket pings in milliseconds.
    pub ping_interval_ms: u64,
}

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

/// The reason why the other nodes of a cluster do not get a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClusterFault {
    /// The broker cannot be reached, or its backlog is full. A later attempt can succeed.
    Unavailable,
    /// The message exceeds the broker's size limit.
    TooLarge,
}

impl ClusterFault {
    /// Returns the value of `cluster` in replies.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::TooLarge => "too_large",
        }
    }
}

/// A message from the server.
///
/// Keys are written in the order `type`, `id`, `data`, `meta`. Keys without a value are omitted.
/// IDs and payloads are written as received.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ServerMessage<'a> {
    /// The first message on every connection.
    Welcome {
        /// The ID of the connection.
        client_id: &'a ClientId,
        /// The name of the server program.
        server: &'a str,
        /// The version of the server program.
        version: &'a str,
        /// The optional features that the server offers; `None` omits the key.
        features: Option<Features>,
        /// The time in milliseconds since the Unix epoch; `None` omits the key.
        server_time: Option<u64>,
        /// The limits of this server.
        limits: WelcomeLimits,
    },
    /// Replies to `echo`.
    Echo {
        /// The message's ID.
        id: Option<MessageId<'a>>,
        /// The message's payload.
        data: RawJson<'a>,
    },
    /// Replies to `subscribe`.
    Subscribed {
        /// The message's ID.
        id: Option<MessageId<'a>>,
        /// The topic or pattern.
        topic: &'a str,
        /// Where the deliveries start.
        start: SubscriptionStart,
    },
    /// Replies to `subscribe` with `topics`.
    SubscribedList {
        /// The message's ID.
        id: Option<MessageId<'a>>,
        /// The results, in the order of the list.
        topics: &'a [SubscribedEntry<'a>],
    },
    /// Replies to `unsubscribe`, or reports that the server ended a subscription.
    Unsubscribed {
        /// The message's ID; `None` if the server ended the subscription.
        id: Option<MessageId<'a>>,
        /// The topic or pattern.
        topic: &'a str,
    },
    /// Replies to `publish`.
    Published {
        /// The message's ID.
        id: Option<MessageId<'a>>,
        /// The topic.
        topic: &'a str,
        /// Number of matching subscriptions on this node.
        subscribers: u64,
        /// The position of the message; `None` if the topic has no history.
        position: Option<Position>,
        /// The reason why the other nodes do not get the message; `None` if they get it.
        cluster: Option<ClusterFault>,
    },
    /// Replies to `authenticate`.
    Authenticated {
        /// The message's ID.
        id: Option<MessageId<'a>>,
        /// The user that the token names.
        user: &'a str,
        /// Expiry of the token in seconds since the Unix epoch.
        expires_at: u64,
    },
    /// Replies to `ping`.
    Pong {
        /// The message's ID.
        id: Option<MessageId<'a>>,
    },
    /// A delivery: a published message, sent to a subscriber.
    Message {
        /// The topic of the publish.
        topic: &'a str,
        /// The published payload.
        message: RawJson<'a>,
        /// The publisher; `None` if a backend published.
        from: Option<&'a ClientId>,
        /// The position of the message; `None` if the topic has no history.
        position: Option<Position>,
        /// The offset of the previous message of the topic's subscribers; `None` if it is the
        /// offset before this one. Omitted without a position.
        prev: Option<u64>,
        /// The W3C `traceparent` of the delivery; `None` if its trace is not sampled.
        traceparent: Option<&'a str>,
        /// The W3C `tracestate`; omitted without a `traceparent`.
        tracestate: Option<&'a str>,
    },
    /// Reports that a subscriber does not get some messages, or that the topic has a new stream.
    Gap {
        /// The topic.
        topic: &'a str,
        /// The first offset that is missing; `None` for [`GapReason::Epoch`].
        from: Option<u64>,
        /// The position after the gap. Its offset is the last one that is missing.
        position: Position,
        /// The reason.
        reason: GapReason,
    },
    /// Moves a subscriber's position without a message.
    Position {
        /// The topic.
        topic: &'a str,
        /// The position.
        position: Position,
    },
    /// Replies to `history`.
    History {
        /// The message's ID.
        id: Option<MessageId<'a>>,
        /// The topic.
        topic: &'a str,
        /// The position of the newest message; `None` if the topic has no history.
        position: Option<Position>,
        /// The messages, each the `data` of a delivery ([`EncodedDelivery::data`]).
        ///
        /// [`EncodedDelivery::data`]: super::EncodedDelivery::data
        messages: &'a [RawJson<'a>],
        /// The offset with which to continue; `None` if there are no more messages.
        next: Option<u64>,
    },
    /// The last message before a close frame. The server sends it for the close codes with
    /// [`CloseCode::sends_goodbye`](crate::CloseCode::sends_goodbye).
    Goodbye {
        /// The close reason. Its code determines whether the client may reconnect.
        reason: &'a CloseReason,
        /// Delay before reconnecting in milliseconds; meaningless if the code forbids reconnecting.
        retry_after_ms: u64,
    },
    /// Replies to a message that failed.
    Error {
        /// The message's ID; `None` if it is absent or could not be parsed.
        id: Option<MessageId<'a>>,
        /// The error code.
        code: ErrorCode,
        /// Description for people.
        message: &'a str,
        /// The key that is missing or invalid; `None` if the error concerns no single key.
        field: Option<&'a str>,
        /// The topic that the error concerns; `None` if it concerns no topic.
        topic: Option<&'a str>,
        /// Delay before a retry in milliseconds; `None` if a retry needs no delay.
        retry_after_ms: Option<u64>,
    },
    /// An object from a backend, sent as given. [`check_server_object`] validates it.
    Raw(RawJson<'a>),
}

impl ServerMessage<'_> {
    /// The names of all types, except the names that backends choose for [`Self::Raw`].
    pub const TYPES: &'static [&'static str] = &[
        "welcome",
        "echo",
        "subscribed",
        "unsubscribed",
        "published",
        "authenticated",
        "pong",
        "message",
        "goodbye",
        "error",
        "gap",
        "position",
        "history",
    ];

    /// Types that are reserved for later messages of the server, besides [`Self::TYPES`].
    const RESERVED_TYPES: &'static [&'static str] = &["presence"];

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

    /// Appends the message as one complete unmasked text frame (header and JSON) to `out`.
    pub fn write_frame(&self, out: &mut Vec<u8>) {
        self.write_frame_of(self.json_len(), out);
    }

    /// Appends the message like [`write_frame`](Self::write_frame), but omits the payload of an
    /// [`Echo`](Self::Echo), so that the caller can send the payload from another buffer. Returns
    /// the offset in `out` at which the payload belongs. Writes other messages in full and returns
    /// `None`.
    pub fn write_frame_without_payload(&self, out: &mut Vec<u8>) -> Option<usize> {
        let (header, header_len) = text_header(self.json_len());
        out.extend_from_slice(header.get(..header_len).unwrap_or_default());
        let mut gap = PayloadGap { out, at: None };
        self.write(&mut gap);
        gap.at
    }

    /// Encodes the message as a frame that many connections can share.
    #[must_use]
    pub fn to_frame(&self) -> Frame {
        let length = self.json_len();
        Frame::encode_with(text_header(length).1 + length, |out| self.write_frame_of(length, out))
    }

    /// Returns the type name for metrics, which is `raw` for [`Self::Raw`].
    #[must_use]
    pub const fn type_name(&self) -> &'static str {
        match self {
            Self::Welcome { .. } => "welcome",
            Self::Echo { .. } => "echo",
            Self::Subscribed { .. } | Self::SubscribedList { .. } => "subscribed",
            Self::Unsubscribed { .. } => "unsubscribed",
            Self::Published { .. } => "published",
            Self::Authenticated { .. } => "authenticated",
            Self::Pong { .. } => "pong",
            Self::Message { .. } => "message",
            Self::Goodbye { .. } => "goodbye",
            Self::Error { .. } => "error",
            Self::Gap { .. } => "gap",
            Self::Position { .. } => "position",
            Self::History { .. } => "history",
            Self::Raw(_) => "raw",
        }
    }

    /// Appends the message as a frame with `length` bytes of JSON.
    fn write_frame_of(&self, length: usize, out: &mut Vec<u8>) {
        let (header, header_len) = text_header(length);
        out.reserve(header_len + length);
        out.extend_from_slice(header.get(..header_len).unwrap_or_default());
        self.write(out);
    }

    fn json_len(&self) -> usize {
        let mut length = LengthCounter::default();
        self.write(&mut length);
        length.0
    }

    fn write(&self, sink: &mut impl JsonSink) {
        match *self {
            Self::Welcome { client_id, server, version, features, server_time, limits } => {
                sink.raw(r#"{"type":"welcome","data":{"client_id":""#);
                sink.raw(client_id.as_str());
                sink.raw(r#"","server":"#);
                sink.string(server);
                sink.raw(r#","version":"#);
                sink.string(version);
                if let Some(features) = features {
                    sink.raw(r#","features":["#);
                    for (at, name) in features.names().enumerate() {
                        sink.raw(if at == 0 { "\"" } else { ",\"" });
                        sink.raw(name);
                        sink.raw("\"");
                    }
                    sink.raw("]");
                }
                if let Some(server_time) = server_time {
                    sink.raw(r#","server_time":"#);
                    sink.number(server_time);
                }
                sink.raw(r#","limits":{"max_message_bytes":"#);
                sink.number(limits.max_message_bytes);
                sink.raw(r#","max_delivery_bytes":"#);
                sink.number(limits.max_delivery_bytes);
                sink.raw(r#","max_subscriptions":"#);
                sink.number(limits.max_subscriptions);
                sink.raw(r#","ping_interval_ms":"#);
                sink.number(limits.ping_interval_ms);
                sink.raw("}}}");
            }
            Self::Echo { id, data } => {
                reply(sink, r#"{"type":"echo""#, id);
                sink.raw(r#","data":"#);
                sink.payload(data.as_str());
                sink.raw("}");
            }
            Self::Subscribed { id, topic, start } => {
                reply(sink, r#"{"type":"subscribed""#, id);
                sink.raw(r#","data":{"topic":"#);
                sink.string(topic);
                start.write(sink);
                sink.raw("}}");
            }
            Self::SubscribedList { id, topics } => {
                reply(sink, r#"{"type":"subscribed""#, id);
                sink.raw(r#","data":{"topics":["#);
                for (at, entry) in topics.iter().enumerate() {
                    if at > 0 {
                        sink.raw(",");
                    }
                    entry.write(sink);
                }
                sink.raw("]}}");
            }
            Self::Unsubscribed { id, topic } => {
                reply(sink, r#"{"type":"unsubscribed""#, id);
                sink.raw(r#","data":{"topic":"#);
                sink.string(topic);
                sink.raw("}}");
            }
            Self::Published { id, topic, subscribers, position, cluster } => {
                reply(sink, r#"{"type":"published""#, id);
                sink.raw(r#","data":{"topic":"#);
                sink.string(topic);
                sink.raw(r#","subscribers":"#);
                sink.number(subscribers);
                if let Some(position) = position {
                    write_position(sink, position);
                }
                sink.raw(match cluster {
                    None => "}}",
                    Some(ClusterFault::Unavailable) => r#","cluster":"unavailable"}}"#,
                    Some(ClusterFault::TooLarge) => r#","cluster":"too_large"}}"#,
                });
            }
            Self::Authenticated { id, user, expires_at } => {
                reply(sink, r#"{"type":"authenticated""#, id);
                sink.raw(r#","data":{"user":"#);
                sink.string(user);
                sink.raw(r#","expires_at":"#);
                sink.number(expires_at);
                sink.raw("}}");
            }
            Self::Pong { id } => {
                reply(sink, r#"{"type":"pong""#, id);
                sink.raw("}");
            }
            Self::Message { topic, message, from, position, prev, traceparent, tracestate } => {
                write_message_head(sink, topic, message, from);
                if let Some(position) = position {
                    write_position(sink, position);
                    if let Some(prev) = prev {
                        sink.raw(r#","prev":"#);
                        sink.number(prev);
                    }
                }
                write_meta(sink, traceparent, tracestate);
            }
            Self::Gap { topic, from, position, reason } => {
                sink.raw(r#"{"type":"gap","data":{"topic":"#);
                sink.string(topic);
                write_position(sink, position);
                if let Some(from) = from {
                    sink.raw(r#","from":"#);
                    sink.number(from);
                    sink.raw(r#","to":"#);
                    sink.number(position.offset);
                }
                sink.raw(r#","reason":""#);
                sink.raw(reason.as_str());
                sink.raw(r#""}}"#);
            }
            Self::Position { topic, position } => {
                sink.raw(r#"{"type":"position","data":{"topic":"#);
                sink.string(topic);
                write_position(sink, position);
                sink.raw("}}");
            }
            Self::History { id, topic, position, messages, next } => {
                reply(sink, r#"{"type":"history""#, id);
                sink.raw(r#","data":{"topic":"#);
                sink.string(topic);
                if let Some(position) = position {
                    write_position(sink, position);
                }
                sink.raw(r#","messages":["#);
                for (at, message) in messages.iter().enumerate() {
                    if at > 0 {
                        sink.raw(",");
                    }
                    sink.raw(message.as_str());
                }
                sink.raw("]");
                if let Some(next) = next {
                    sink.raw(r#","next":"#);
                    sink.number(next);
                }
                sink.raw("}}");
            }
            Self::Goodbye { reason, retry_after_ms } => {
                sink.raw(r#"{"type":"goodbye","data":{"code":"#);
                sink.number(reason.code().as_u16().into());
                sink.raw(r#","reason":"#);
                sink.string(reason.text());
                sink.raw(r#","reconnect":"#);
                sink.raw(if reason.code().allows_reconnect() { "true" } else { "false" });
                write_retry_after(sink, Some(retry_after_ms));
                sink.raw("}}");
            }
            Self::Error { id, code, message, field, topic, retry_after_ms } => {
                reply(sink, r#"{"type":"error""#, id);
                sink.raw(r#","data":{"code":""#);
                sink.raw(code.as_str());
                sink.raw(r#"","message":"#);
                sink.string(message);
                if let Some(field) = field {
                    sink.raw(r#","field":"#);
                    sink.string(field);
                }
                if let Some(topic) = topic {
                    sink.raw(r#","topic":"#);
                    sink.string(topic);
                }
                write_retry_after(sink, retry_after_ms);
                sink.raw("}}");
            }
            Self::Raw(object) => sink.raw(object.as_str()),
        }
    }
}

/// Checks a message that a backend sends to clients. Returns it without white space around it.
///
/// # Errors
/// - [`ErrorCode::InvalidJson`]: the text is not JSON.
/// - [`ErrorCode::InvalidMessage`]: the text is not an object, or it nests deeper than
///   [`MAX_NESTING`](super::MAX_NESTING).
/// - [`ErrorCode::InvalidMessage`]: `type`, `id`, `data` or `meta` occurs twice, or `type` is
///   missing or is not a string.
/// - [`ErrorCode::InvalidMessage`]: `type` is a type of the server ([`ServerMessage::TYPES`], and
///   `presence`), which clients must be able to trust.
pub fn check_server_object(text: &str) -> Result<RawJson<'_>, MessageError<'_>> {
    check_server_object_within(text, super::MAX_NESTING)
}

/// Checks a message like [`check_server_object`], with a limit of `max_nesting` levels of arrays
/// and objects. A value over [`MAX_NESTING`](super::MAX_NESTING) acts like `MAX_NESTING`.
///
/// # Errors
/// Returns the errors of [`check_server_object`].
pub fn check_server_object_within(text: &str, max_nesting: usize) -> Result<RawJson<'_>, MessageError<'_>> {
    let mut envelope = Envelope::default();
    if !envelope.scan(text, clamp_nesting(max_nesting))? {
        return Err(MessageError::invalid("message must be a JSON object with a `type`"));
    }
    envelope.check_depth()?;
    for key in [MessageKey::Id, MessageKey::Data, MessageKey::Meta] {
        envelope.unique_value(key)?;
    }
    let Some(message_type) = envelope.unique_value(MessageKey::Type)?.filter(|json| json.starts_with('"'))
    else {
        return Err(MessageError::invalid("`type` is missing or not a string").at("type"));
    };
    let message_type = decode_string(message_type).unwrap_or_default();
    let mut server_types = ServerMessage::TYPES.iter().chain(ServerMessage::RESERVED_TYPES);
    if server_types.any(|server_type| *server_type == message_type) {
        let message = format!("type `{message_type}` is reserved for the server; use another one");
        return Err(MessageError { message: message.into(), ..MessageError::invalid("").at("type") });
    }
    Ok(RawJson::scanned(text.trim_matches([' ', '\n', '\r', '\t'])))
}

/// Writes a delivery up to its position or the end of `data`.
pub(super) fn write_message_head(
    sink: &mut impl JsonSink,
    topic: &str,
    message: RawJson<'_>,
    from: Option<&ClientId>,
) {
    sink.raw(r#"{"type":"message","data":{"topic":"#);
    sink.string(topic);
    sink.raw(r#","message":"#);
    sink.raw(message.as_str());
    if let Some(from) = from {
        sink.raw(r#","from":""#);
        sink.raw(from.as_str());
        sink.raw("\"");
    }
}

/// Writes the end of a delivery: the end of `data`, and `meta` if there is a trace context.
pub(super) fn write_meta(sink: &mut impl JsonSink, traceparent: Option<&str>, tracestate: Option<&str>) {
    let Some(traceparent) = traceparent else { return sink.raw("}}") };
    sink.raw(r#"},"meta":{"traceparent":"#);
    sink.string(traceparent);
    if let Some(tracestate) = tracestate {
        sink.raw(r#","tracestate":"#);
        sink.string(tracestate);
    }
    sink.raw("}}");
}

/// Writes the start of a reply: `head`, then the ID if the message has one.
fn reply(sink: &mut impl JsonSink, head: &str, id: Option<MessageId<'_>>) {
    sink.raw(head);
    if let Some(id) = id {
        sink.raw(r#","id":"#);
        sink.raw(id.as_json());
    }
}

pub(super) fn write_retry_after(sink: &mut impl JsonSink, milliseconds: Option<u64>) {
    if let Some(milliseconds) = milliseconds {
        sink.raw(r#","retry_after_ms":"#);
        sink.number(milliseconds);
    }
}

#[cfg(test)]
mod tests;
