//! Messages from clients.

mod usual_publish;

use super::envelope::{Envelope, MessageKey, decode_string, is_not_null, parse_flag};
use super::subscribe::decode_topic;
use super::{HistoryRequest, MessageError, MessageId, SubscribeList, SubscribeRequest, TraceContext};
use crate::json::clamp_nesting;
use crate::{ErrorCode, RawJson, Subscription, Topic};
use std::borrow::Cow;

/// A message from a client, borrowed from its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientMessage<'a> {
    /// The ID, echoed in the reply or error.
    pub id: Option<MessageId<'a>>,
    /// The trace context from `meta`; empty if it is absent or malformed.
    pub trace: TraceContext<'a>,
    /// The requested command.
    pub command: Command<'a>,
}

/// The command that `type` names, with its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command<'a> {
    /// `echo`: send `data` back.
    Echo {
        /// Any JSON.
        data: RawJson<'a>,
    },
    /// `subscribe`: start delivering messages.
    Subscribe(SubscribeRequest<'a>),
    /// `subscribe` with `topics`: the same for several topics or patterns.
    SubscribeList {
        /// The list in `topics`.
        topics: SubscribeList<'a>,
    },
    /// `unsubscribe`: stop delivering messages.
    Unsubscribe {
        /// The topic or pattern in `topic`. The command ends the subscription with exactly this
        /// text. A pattern does not end the subscriptions to topics that match it.
        subscription: Subscription<'a>,
    },
    /// `publish`: deliver a message to all subscribers of a topic.
    Publish {
        /// One topic, never a pattern.
        topic: Topic<'a>,
        /// Any JSON.
        message: RawJson<'a>,
        /// If `true`, the publisher's own subscriptions do not get the message.
        exclude_self: bool,
        /// An arbitrary text of at most [`Self::MAX_ONCE_BYTES`]. A topic with history stores the
        /// messages of a user with the same text once.
        once: Option<Cow<'a, str>>,
    },
    /// `authenticate`: set or renew the token.
    Authenticate {
        /// The token, not yet checked.
        token: Cow<'a, str>,
    },
    /// `ping`: reply with `pong`.
    Ping,
    /// `history`: read kept messages of a topic.
    History(HistoryRequest<'a>),
}

impl Command<'_> {
    /// The names of all types, in the order of [`Self::index`].
    pub const TYPES: &'static [&'static str] =
        &["echo", "subscribe", "unsubscribe", "publish", "authenticate", "ping", "history"];

    /// Maximum length of `once` in bytes of UTF-8.
    pub const MAX_ONCE_BYTES: usize = 64;

    /// Returns the position of the type in [`Self::TYPES`], an index for arrays of counters.
    #[must_use]
    pub const fn index(&self) -> usize {
        match self {
            Self::Echo { .. } => 0,
            Self::Subscribe(_) | Self::SubscribeList { .. } => 1,
            Self::Unsubscribe { .. } => 2,
            Self::Publish { .. } => 3,
            Self::Authenticate { .. } => 4,
            Self::Ping => 5,
            Self::History(_) => 6,
        }
    }
}

impl<'a> ClientMessage<'a> {
    /// Parses one text message. `text` must be the whole message.
    ///
    /// The envelope is the message's own object with the keys `type`, `id`, `data` and `meta`. Keys
    /// may have any order and may contain escapes (`"\u0074ype"` is `type`). Unknown keys are
    /// ignored in the envelope, in `data` and in `meta`. For older clients, `topic` and `message`
    /// are also accepted in the envelope instead of in `data`.
    ///
    /// A `subscribe` has either `topic` or `topics`. Each entry of `topics` is checked separately
    /// ([`SubscribeList::entries`]), so that an invalid entry does not affect the others.
    ///
    /// If an optional key has the value `null`, the key counts as absent. If `message` has the
    /// value `null`, or `data` in an `echo`, then `null` is the payload.
    ///
    /// # Errors
    /// The text is checked in this order. The first failed check determines the error code:
    ///
    /// 1. [`ErrorCode::InvalidJson`]: the text is not JSON. This error has no ID.
    /// 2. [`ErrorCode::InvalidMessage`]: the envelope is invalid in one of these ways:
    ///    - The text is not an object.
    ///    - `type`, `id`, `data` or `meta` occurs twice.
    ///    - `id` is neither a string of at most 64 bytes nor an unsigned 64-bit integer.
    ///    - Arrays and objects nest deeper than [`MAX_NESTING`](super::MAX_NESTING).
    ///    - `meta` is not an object.
    ///    - `type` is missing or is not a string.
    /// 3. [`ErrorCode::UnknownType`]: `type` is not one of [`Command::TYPES`].
    /// 4. [`ErrorCode::InvalidMessage`]: a key of the command is invalid in one of these ways:
    ///    - A required key is missing.
    ///    - The value of a key has the wrong JSON type.
    ///    - The value of a key is out of range.
    ///    - A key occurs twice, for example once in `data` and once in the envelope.
    ///    - `topics` is not an array of objects with a string `topic`, or is beside `topic`.
    /// 5. [`ErrorCode::InvalidTopic`]: `topic` breaks a rule of [`TopicError`](crate::TopicError).
    ///
    /// The error has the message's ID if `id` is present and valid. If one key is missing or
    /// invalid, the error also names this key. If a command needs a key in `data`, and `data` is
    /// missing, the error names the key. If `data` is not an object, the error names `data`.
    pub fn parse(text: &'a str) -> Result<Self, MessageError<'a>> {
        Self::parse_within(text, super::MAX_NESTING)
    }

    /// Parses one text message like [`Self::parse`], with a limit of `max_nesting` levels of arrays
    /// and objects.
    ///
    /// The message's own object is the first level. An object in `data` is the second, so
    /// `max_nesting` must be at least 2. A value over [`MAX_NESTING`](super::MAX_NESTING) acts like
    /// `MAX_NESTING`.
    ///
    /// # Errors
    /// Returns the errors of [`Self::parse`].
    pub fn parse_within(text: &'a str, max_nesting: usize) -> Result<Self, MessageError<'a>> {
        let max_nesting = clamp_nesting(max_nesting);
        if let Some(publish) = Self::parse_usual_publish(text, max_nesting) {
            return Ok(publish);
        }
        Self::parse_any(text, max_nesting)
    }

    /// Parses one text message with its keys in any order.
    fn parse_any(text: &'a str, max_nesting: u32) -> Result<Self, MessageError<'a>> {
        let mut envelope = Envelope::default();
        if !envelope.scan(text, max_nesting)? {
            return Err(MessageError::invalid("message must be a JSON object with a `type`"));
        }
        let id = match envelope.unique_value(MessageKey::Id)?.filter(is_not_null) {
            None => None,
            Some(json) => Some(MessageId::from_json(json).ok_or_else(|| {
                MessageError::invalid(
                    "`id` must be a string of at most 64 bytes or an unsigned 64-bit integer",
                )
                .at("id")
            })?),
        };
        envelope.check_depth().map_err(|error| error.with_id(id))?;
        let (trace, command) = parse_command(&envelope).map_err(|error| error.with_id(id))?;
        Ok(Self { id, trace, command })
    }
}

fn parse_command<'a>(envelope: &Envelope<'a>) -> Result<(TraceContext<'a>, Command<'a>), MessageError<'a>> {
    let message_type = envelope.unique_value(MessageKey::Type)?;
    let data = envelope.unique_value(MessageKey::Data)?;
    let meta = envelope.unique_value(MessageKey::Meta)?;
    if meta.filter(is_not_null).is_some_and(|meta| !is_object(meta)) {
        return Err(MessageError::invalid("`meta` must be an object").at("meta"));
    }
    let Some(message_type) = message_type.filter(|json| is_string(json)) else {
        return Err(MessageError::invalid("`type` is missing or not a string").at("type"));
    };
    let keys = || CommandKeys::new(envelope, data);
    // A type that is not Unicode text is decoded as empty text, which is an unknown type.
    let command = match &*decode_string(message_type).unwrap_or_default() {
        "echo" => match data {
            Some(data) => Command::Echo { data: RawJson::scanned(data) },
            None => {
                return Err(
                    MessageError::invalid("`data` is missing; `echo` requires it, with any JSON").at("data")
                );
            }
        },
        "subscribe" => keys()?.subscribe()?,
        "unsubscribe" => Command::Unsubscribe { subscription: keys()?.subscription()? },
        "publish" => keys()?.publish()?,
        "authenticate" => Command::Authenticate { token: keys()?.token()? },
        "ping" => Command::Ping,
        "history" => Command::History(keys()?.history()?),
        _ => {
            return Err(MessageError {
                code: ErrorCode::UnknownType,
                ..MessageError::invalid(
                    "unknown type; use echo, subscribe, unsubscribe, publish, authenticate, ping or history",
                )
                .at("type")
            });
        }
    };
    Ok((envelope.trace(), command))
}

/// Access to the keys of a command, in `data` or in the envelope.
struct CommandKeys<'e, 'a>(&'e Envelope<'a>);

impl<'e, 'a> CommandKeys<'e, 'a> {
    /// Checks that `data` is absent, `null` or an object.
    #[inline]
    fn new(envelope: &'e Envelope<'a>, data: Option<&'a str>) -> Result<Self, MessageError<'a>> {
        if data.filter(is_not_null).is_some_and(|data| !is_object(data)) {
            return Err(MessageError::invalid("`data` must be an object for this type").at("data"));
        }
        Ok(Self(envelope))
    }

    fn publish(&self) -> Result<Command<'a>, MessageError<'a>> {
        // All keys are checked before the topic's syntax, so `invalid_message` precedes
        // `invalid_topic`.
        let topic = self.topic_json()?;
        let Some(message) = self.value(MessageKey::Message)? else {
            return Err(MessageError::invalid("`message` is missing; `publish` requires it, with any JSON")
                .at("message"));
        };
        let Some(exclude_self) = parse_flag(self.value(MessageKey::ExcludeSelf)?) else {
            return Err(MessageError::invalid("`exclude_self` must be `true` or `false`").at("exclude_self"));
        };
        let once = match self.value(MessageKey::Once)? {
            None => None,
            Some(json) => parse_once(json)?,
        };
        let topic = Topic::parse(decode_topic(topic)?)?;
        Ok(Command::Publish { topic, message: RawJson::scanned(message), exclude_self, once })
    }

    fn subscribe(&self) -> Result<Command<'a>, MessageError<'a>> {
        if let Some(topics) = self.value(MessageKey::Topics)?.filter(is_not_null) {
            return self.subscribe_list(topics);
        }
        let topic = self.topic_json()?;
        let (recover, history) = (self.value(MessageKey::Recover)?, self.value(MessageKey::History)?);
        Ok(Command::Subscribe(SubscribeRequest::from_json(topic, recover, history)?))
    }

    #[cold]
    fn subscribe_list(&self, topics: &'a str) -> Result<Command<'a>, MessageError<'a>> {
        if self.value(MessageKey::Topic)?.filter(is_not_null).is_some() {
            let text = "`topic` and `topics` exclude each other; send one of them";
            return Err(MessageError::invalid(text).at("topics"));
        }
        let Some(topics) = SubscribeList::from_json(topics) else {
            let text = "`topics` must be an array of objects with a string `topic`";
            return Err(MessageError::invalid(text).at("topics"));
        };
        Ok(Command::SubscribeList { topics })
    }

    #[cold]
    fn history(&self) -> Result<HistoryRequest<'a>, MessageError<'a>> {
        let topic = self.topic_json()?;
        let from = self.value(MessageKey::From)?;
        let limit = self.value(MessageKey::Limit)?;
        HistoryRequest::from_json(topic, from, limit, self.value(MessageKey::Order)?)
    }

    fn subscription(&self) -> Result<Subscription<'a>, MessageError<'a>> {
        Ok(Subscription::parse(decode_topic(self.topic_json()?)?)?)
    }

    /// Returns `topic` as a JSON string, not yet decoded.
    fn topic_json(&self) -> Result<&'a str, MessageError<'a>> {
        let topic = self.value(MessageKey::Topic)?.filter(|json| is_string(json));
        topic.ok_or_else(|| MessageError::invalid("`topic` is missing or not a string").at("topic"))
    }

    fn token(&self) -> Result<Cow<'a, str>, MessageError<'a>> {
        let token = self.value(MessageKey::Token)?.and_then(decode_string);
        token.ok_or_else(|| MessageError::invalid("`token` is missing or not a string").at("token"))
    }

    /// Returns the value of a key. The envelope's scan has collected the keys in `data`, too.
    #[inline]
    fn value(&self, key: MessageKey) -> Result<Option<&'a str>, MessageError<'a>> {
        self.0.unique_value(key)
    }
}

/// Parses the value of `once`.
#[cold]
fn parse_once(json: &str) -> Result<Option<Cow<'_, str>>, MessageError<'_>> {
    if json == "null" {
        return Ok(None);
    }
    match decode_string(json) {
        Some(text) if text.len() <= Command::MAX_ONCE_BYTES => Ok(Some(text)),
        _ => Err(MessageError::invalid("`once` must be a string of at most 64 bytes").at("once")),
    }
}

fn is_object(json: &str) -> bool {
    json.starts_with('{')
}

fn is_string(json: &str) -> bool {
    json.starts_with('"')
}

#[cfg(test)]
mod tests;
