//! Messages from the server.

mod encoding;
mod length;
mod object;

pub(super) use encoding::{write_message, write_message_head, write_meta, write_retry_after};
pub use object::{check_server_object, check_server_object_within};

use super::{Features, MessageId, SubscribedEntry, SubscriptionStart};
use crate::{ClientId, CloseReason, ErrorCode, GapReason, Position, RawJson};

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
}

#[cfg(test)]
mod tests;
