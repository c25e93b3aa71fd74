//! What a client says.

use super::envelope::{Envelope, MessageKey, decode_string};
use super::{MessageError, MessageId, TraceContext};
use crate::json::clamp_nesting;
use crate::{ErrorCode, RawJson, Subscription, Topic};
use std::borrow::Cow;

/// What a client sent, borrowed from its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientMessage<'a> {
    /// Comes back with the reply or the error.
    pub id: Option<MessageId<'a>>,
    /// The trace that `meta` puts the message into; empty without one, and where it is malformed.
    pub trace: TraceContext<'a>,
    /// What to do.
    pub command: Command<'a>,
}

/// The part that `type` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command<'a> {
    /// `echo`: send `data` back.
    Echo {
        /// Any JSON.
        data: RawJson<'a>,
    },
    /// `subscribe`: deliver from now on.
    Subscribe {
        /// What was asked for in `topic`.
        subscription: Subscription<'a>,
    },
    /// `unsubscribe`: deliver no more.
    Unsubscribe {
        /// What was asked for in `topic`: the same text as was subscribed to, not what it matches.
        subscription: Subscription<'a>,
    },
    /// `publish`: deliver a message to all subscribers of a topic.
    Publish {
        /// One topic, never a pattern.
        topic: Topic<'a>,
        /// Any JSON.
        message: RawJson<'a>,
        /// Whether the publisher's own subscriptions are left out.
        exclude_self: bool,
    },
    /// `authenticate`: log in, or renew.
    Authenticate {
        /// A text that should be a JWT; nothing of it was checked.
        token: Cow<'a, str>,
    },
    /// `ping`: answer with `pong`.
    Ping,
}

impl Command<'_> {
    /// Names of all types in the order of [`Self::index`], for arrays of counters.
    pub const TYPES: &'static [&'static str] =
        &["echo", "subscribe", "unsubscribe", "publish", "authenticate", "ping"];

    /// Position of the type in [`Self::TYPES`].
    #[must_use]
    pub const fn index(&self) -> usize {
        match self {
            Self::Echo { .. } => 0,
            Self::Subscribe { .. } => 1,
            Self::Unsubscribe { .. } => 2,
            Self::Publish { .. } => 3,
            Self::Authenticate { .. } => 4,
            Self::Ping => 5,
        }
    }
}

impl<'a> ClientMessage<'a> {
    /// Parses one text message. `text` must be the whole message.
    ///
    /// Keys may come in any order and with escapes (`"\u0074ype"` is `type`); keys that have no
    /// meaning are skipped, in the envelope, in `data` and in `meta`. `topic` and `message` are
    /// accepted beside `type` as if they stood in `data`, as older clients put them. `null` for an
    /// optional key counts as absent; for `message`, and for `data` of an `echo`, it is the
    /// payload.
    ///
    /// # Errors
    /// The first of these that applies:
    /// - [`ErrorCode::InvalidJson`], without an id: not JSON.
    /// - [`ErrorCode::InvalidMessage`]: not an object; a key of the envelope twice; `id` neither a
    ///   string of at most 64 bytes nor an unsigned 64-bit integer; deeper than
    ///   [`MAX_NESTING`](super::MAX_NESTING); `meta` not an object; `type` missing or not a string.
    /// - [`ErrorCode::UnknownType`].
    /// - [`ErrorCode::InvalidMessage`]: a key of the type's own twice (once beside `type` and once
    ///   in `data` counts), missing, or with a value of the wrong kind. Where `data` is there but
    ///   not an object, it is the key at fault; where it is absent, the missing key is.
    /// - [`ErrorCode::InvalidTopic`]: `topic` breaks a rule of topics, or is a pattern in a
    ///   `publish`.
    ///
    /// Every error carries the id, where there is a valid one, and the key at fault, where it is
    /// one.
    pub fn parse(text: &'a str) -> Result<Self, MessageError<'a>> {
        Self::parse_within(text, super::MAX_NESTING)
    }

    /// As [`Self::parse`], with a limit of its own for the levels of arrays and objects, the
    /// message's own object among them: 2, which every type of ours fits into, to
    /// [`MAX_NESTING`](super::MAX_NESTING).
    ///
    /// # Errors
    /// As those of [`Self::parse`].
    pub fn parse_within(text: &'a str, max_nesting: usize) -> Result<Self, MessageError<'a>> {
        let mut envelope = Envelope::default();
        if !envelope.scan(text, clamp_nesting(max_nesting))? {
            return Err(MessageError::invalid("a message is a JSON object with a `type`"));
        }
        let id = match envelope.unique_value(MessageKey::Id)?.filter(is_not_null) {
            None => None,
            Some(json) => Some(MessageId::from_json(json).ok_or_else(|| {
                MessageError::invalid(
                    "an `id` is a string of at most 64 bytes, or an unsigned 64-bit integer",
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
    let (kind, data, meta) = (
        envelope.unique_value(MessageKey::Type)?,
        envelope.unique_value(MessageKey::Data)?,
        envelope.unique_value(MessageKey::Meta)?,
    );
    if meta.filter(is_not_null).is_some_and(|meta| !is_object(meta)) {
        return Err(MessageError::invalid("`meta` is an object").at("meta"));
    }
    let Some(kind) = kind.filter(|json| is_string(json)) else {
        return Err(MessageError::invalid("a message has a `type`, which is a string").at("type"));
    };
    let keys = CommandKeys { envelope, data: data.filter(is_not_null) };
    // A type that is no Unicode text is no type of ours.
    let command = match &*decode_string(kind).unwrap_or_default() {
        "echo" => match data {
            Some(data) => Command::Echo { data: RawJson::scanned(data) },
            None => return Err(MessageError::invalid("`echo` needs `data`, any JSON").at("data")),
        },
        "subscribe" => Command::Subscribe { subscription: Subscription::parse(keys.topic()?)? },
        "unsubscribe" => Command::Unsubscribe { subscription: Subscription::parse(keys.topic()?)? },
        "publish" => keys.publish()?,
        "authenticate" => Command::Authenticate { token: keys.token()? },
        "ping" => Command::Ping,
        _ => {
            return Err(MessageError {
                code: ErrorCode::UnknownType,
                ..MessageError::invalid(
                    "the type is none of echo, subscribe, unsubscribe, publish, authenticate and ping",
                )
                .at("type")
            });
        }
    };
    Ok((envelope.trace(), command))
}

/// The keys that a type has of its own.
struct CommandKeys<'e, 'a> {
    envelope: &'e Envelope<'a>,
    data: Option<&'a str>,
}

impl<'a> CommandKeys<'_, 'a> {
    fn publish(&self) -> Result<Command<'a>, MessageError<'a>> {
        let topic = self.topic()?;
        let Some(message) = self.value(MessageKey::Message)? else {
            return Err(MessageError::invalid("`publish` needs a `message`, any JSON").at("message"));
        };
        let exclude_self = match self.value(MessageKey::ExcludeSelf)? {
            None | Some("false" | "null") => false,
            Some("true") => true,
            Some(_) => {
                return Err(MessageError::invalid("`exclude_self` is `true` or `false`").at("exclude_self"));
            }
        };
        Ok(Command::Publish { topic: Topic::parse(topic)?, message: RawJson::scanned(message), exclude_self })
    }

    fn topic(&self) -> Result<Cow<'a, str>, MessageError<'a>> {
        let Some(json) = self.value(MessageKey::Topic)?.filter(|json| is_string(json)) else {
            return Err(MessageError::invalid("a `topic` is needed, which is a string").at("topic"));
        };
        decode_string(json).ok_or_else(|| MessageError {
            code: ErrorCode::InvalidTopic,
            ..MessageError::invalid("a topic has no halves of surrogate pairs").at("topic")
        })
    }

    fn token(&self) -> Result<Cow<'a, str>, MessageError<'a>> {
        let token = self.value(MessageKey::Token)?.and_then(decode_string);
        token.ok_or_else(|| MessageError::invalid("a `token` is needed, which is a string").at("token"))
    }

    fn value(&self, part: MessageKey) -> Result<Option<&'a str>, MessageError<'a>> {
        if self.data.is_some_and(|data| !is_object(data)) {
            return Err(MessageError::invalid("`data` is an object for this type").at("data"));
        }
        self.envelope.unique_value(part)
    }
}

/// Returns `true` unless the value of an optional key is `null`, which counts as absent.
fn is_not_null(json: &&str) -> bool {
    *json != "null"
}

fn is_object(json: &str) -> bool {
    json.starts_with('{')
}

fn is_string(json: &str) -> bool {
    json.starts_with('"')
}

#[cfg(test)]
mod tests;
