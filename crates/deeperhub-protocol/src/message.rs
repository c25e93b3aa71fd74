//! The JSON messages of a client and of the server.
use crate::{ClientId, CloseReason, ErrorCode, RawJson, Subscription, Topic};
use std::borrow::Cow;

/// A message's `id`, given back unchanged with its reply: the JSON text as it came
/// (a string with its quotes and escapes, or digits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageId<'a>(&'a str);

/// W3C trace context of a message's `meta` (`traceparent` checked for its form).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TraceContext<'a> { pub traceparent: Option<Cow<'a, str>>, pub tracestate: Option<Cow<'a, str>> }

/// What a client sent, borrowed from its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientMessage<'a> { pub id: Option<MessageId<'a>>, pub trace: TraceContext<'a>, pub command: Command<'a> }

/// The part that `type` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command<'a> {
    Echo { data: RawJson<'a> },
    Subscribe { subscription: Subscription<'a> },
    Unsubscribe { subscription: Subscription<'a> },
    Publish { topic: Topic<'a>, message: RawJson<'a>, exclude_self: bool },
    Authenticate { token: Cow<'a, str> },
    Ping,
}
impl Command<'_> {
    /// Names of all types in the order of [`Self::index`], for arrays of counters.
    pub const TYPES: &'static [&'static str] = &["echo", "subscribe", "unsubscribe", "publish", "authenticate", "ping"];
    pub fn index(&self) -> usize { unimplemented!() }
}

impl<'a> ClientMessage<'a> {
    /// Parses one text message. `text` must be the whole message.
    pub fn parse(text: &'a str) -> Result<Self, MessageError<'a>> { let _ = text; unimplemented!() }
}

/// A message that cannot be carried out, with what its `error` reply needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct MessageError<'a> {
    pub code: ErrorCode,
    pub id: Option<MessageId<'a>>,
    /// The key at fault.
    pub field: Option<&'static str>,
    /// A sentence for a person.
    pub message: Cow<'static, str>,
}

/// Limits told in `welcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WelcomeLimits { pub max_message_bytes: u64, pub max_subscriptions: u64, pub ping_interval_ms: u64 }

/// What the server sends.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ServerMessage<'a> {
    Welcome { client_id: &'a ClientId, server: &'a str, version: &'a str, limits: WelcomeLimits },
    Echo { id: Option<MessageId<'a>>, data: RawJson<'a> },
    Subscribed { id: Option<MessageId<'a>>, topic: &'a str },
    Unsubscribed { id: Option<MessageId<'a>>, topic: &'a str },
    Published { id: Option<MessageId<'a>>, topic: &'a str, subscribers: u64, cluster_unavailable: bool },
    Authenticated { id: Option<MessageId<'a>>, user: &'a str, expires_at: u64 },
    Pong { id: Option<MessageId<'a>> },
    /// A delivery.
    Message { topic: &'a str, message: RawJson<'a>, from: Option<&'a ClientId>, traceparent: Option<&'a str> },
    Goodbye { reason: &'a CloseReason, retry_after_ms: Option<u64> },
    Error { id: Option<MessageId<'a>>, code: ErrorCode, message: &'a str, field: Option<&'a str>, topic: Option<&'a str>, retry_after_ms: Option<u64> },
    /// What a backend sent: the object as given (it was checked to have a string `type`).
    Raw(RawJson<'a>),
}
impl ServerMessage<'_> {
    /// Appends the message as one complete unmasked text frame (header and JSON) to `out`.
    pub fn write_frame(&self, out: &mut Vec<u8>) { let _ = out; unimplemented!() }
    /// The message as a frame that many connections can share.
    pub fn to_frame(&self) -> crate::frame::Frame { unimplemented!() }
    /// Name for metrics; `Raw` is "raw".
    pub fn type_name(&self) -> &'static str { unimplemented!() }
}

/// Checks a body that a backend sends to clients: an object with a string `type`, no key of the envelope twice.
pub fn check_server_object(text: &str) -> Result<RawJson<'_>, MessageError<'_>> { let _ = text; unimplemented!() }
