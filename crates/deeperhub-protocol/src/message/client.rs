//! Messages from clients.

use super::envelope::{Envelope, MessageKey, decode_string};
use super::{MessageError, MessageId, TraceContext};
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
    Subscribe {
        /// The topic or pattern in `topic`.
        subscription: Subscription<'a>,
    },
    /// `unsubscribe`: stop delivering messages.
    Unsubscribe {
        /// The topic or pattern in `topic`. It ends the subscription with the same text, not those
        /// that it matches.
        subscription: Subscription<'a>,
    },
    /// `publish`: deliver a message to all subscribers of a topic.
    Publish {
        /// One topic, never a pattern.
        topic: Topic<'a>,
        /// Any JSON.
        message: RawJson<'a>,
        /// Whether the publisher's own subscriptions are excluded.
        exclude_self: bool,
    },
    /// `authenticate`: set or renew the token.
    Authenticate {
        /// The token, not yet checked.
        token: Cow<'a, str>,
    },
    /// `ping`: reply with `pong`.
    Ping,
}

impl Command<'_> {
    /// The names of all types, in the order of [`Self::index`].
    pub const TYPES: &'static [&'static str] =
        &["echo", "subscribe", "unsubscribe", "publish", "authenticate", "ping"];

    /// Returns the position of the type in [`Self::TYPES`], an index for arrays of counters.
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
    /// Keys may come in any order and with escapes (`"\u0074ype"` is `type`). Unknown keys are
    /// ignored in the envelope, in `data` and in `meta`. `topic` and `message` are also accepted
    /// beside `type`, for older clients. `null` for an optional key counts as absent; for
    /// `message`, and for `data` of an `echo`, it is the payload.
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

    /// Like [`Self::parse`], with a separate limit on the nesting of arrays and objects, counting
    /// the message's own object: from 2, the depth of every type, to
    /// [`MAX_NESTING`](super::MAX_NESTING).
    ///
    /// # Errors
    /// The errors of [`Self::parse`].
    pub fn parse_within(text: &'a str, max_nesting: usize) -> Result<Self, MessageError<'a>> {
        let mut envelope = Envelope::default();
        if !envelope.scan(text, clamp_nesting(max_nesting))? {
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
    let (kind, data, meta) = (
        envelope.unique_value(MessageKey::Type)?,
        envelope.unique_value(MessageKey::Data)?,
        envelope.unique_value(MessageKey::Meta)?,
    );
    if meta.filter(is_not_null).is_some_and(|meta| !is_object(meta)) {
        return Err(MessageError::invalid("`meta` must be an object").at("meta"));
    }
    let Some(kind) = kind.filter(|json| is_string(json)) else {
        return Err(MessageError::invalid("`type` is missing or not a string").at("type"));
    };
    let keys = CommandKeys { envelope, data: data.filter(is_not_null) };
    // A type that is not Unicode text is unknown.
    let command = match &*decode_string(kind).unwrap_or_default() {
        "echo" => match data {
            Some(data) => Command::Echo { data: RawJson::scanned(data) },
            None => {
                return Err(
                    MessageError::invalid("`data` is missing; `echo` requires it, with any JSON").at("data")
                );
            }
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
                    "unknown type; use echo, subscribe, unsubscribe, publish, authenticate or ping",
                )
                .at("type")
            });
        }
    };
    Ok((envelope.trace(), command))
}

/// The keys of one command.
struct CommandKeys<'e, 'a> {
    envelope: &'e Envelope<'a>,
    data: Option<&'a str>,
}

impl<'a> CommandKeys<'_, 'a> {
    fn publish(&self) -> Result<Command<'a>, MessageError<'a>> {
        let topic = self.topic()?;
        let Some(message) = self.value(MessageKey::Message)? else {
            return Err(MessageError::invalid("`message` is missing; `publish` requires it, with any JSON")
                .at("message"));
        };
        let exclude_self = match self.value(MessageKey::ExcludeSelf)? {
            None | Some("false" | "null") => false,
            Some("true") => true,
            Some(_) => {
                return Err(
                    MessageError::invalid("`exclude_self` must be `true` or `false`").at("exclude_self")
                );
            }
        };
        Ok(Command::Publish { topic: Topic::parse(topic)?, message: RawJson::scanned(message), exclude_self })
    }

    fn topic(&self) -> Result<Cow<'a, str>, MessageError<'a>> {
        let Some(json) = self.value(MessageKey::Topic)?.filter(|json| is_string(json)) else {
            return Err(MessageError::invalid("`topic` is missing or not a string").at("topic"));
        };
        decode_string(json).ok_or_else(|| MessageError {
            code: ErrorCode::InvalidTopic,
            ..MessageError::invalid("topic contains an unpaired surrogate; remove it").at("topic")
        })
    }

    fn token(&self) -> Result<Cow<'a, str>, MessageError<'a>> {
        let token = self.value(MessageKey::Token)?.and_then(decode_string);
        token.ok_or_else(|| MessageError::invalid("`token` is missing or not a string").at("token"))
    }

    fn value(&self, part: MessageKey) -> Result<Option<&'a str>, MessageError<'a>> {
        if self.data.is_some_and(|data| !is_object(data)) {
            return Err(MessageError::invalid("`data` must be an object for this type").at("data"));
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
