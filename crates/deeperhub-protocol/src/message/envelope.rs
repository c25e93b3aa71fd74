//! One pass over a message that checks its JSON and finds the values that have a meaning for us.

use super::{MessageError, TraceContext};
use crate::json::{Key, NotJson, Scanner, SyntaxError, unescape};
use std::borrow::Cow;

/// A value that has a meaning for us: the keys of the envelope, and those that our types have in
/// `data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MessageKey {
    Type,
    Id,
    Data,
    Meta,
    Topic,
    Message,
    ExcludeSelf,
    Token,
}

impl MessageKey {
    const COUNT: usize = 8;

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Type => "type",
            Self::Id => "id",
            Self::Data => "data",
            Self::Meta => "meta",
            Self::Topic => "topic",
            Self::Message => "message",
            Self::ExcludeSelf => "exclude_self",
            Self::Token => "token",
        }
    }

    /// Clients of before `data` put `topic` and `message` beside `type`.
    #[inline]
    fn of_envelope(key: &str) -> Option<Self> {
        Some(match key {
            "type" => Self::Type,
            "id" => Self::Id,
            "data" => Self::Data,
            "meta" => Self::Meta,
            "topic" => Self::Topic,
            "message" => Self::Message,
            _ => return None,
        })
    }

    #[inline]
    fn of_data(key: &str) -> Option<Self> {
        Some(match key {
            "topic" => Self::Topic,
            "message" => Self::Message,
            "exclude_self" => Self::ExcludeSelf,
            "token" => Self::Token,
            _ => return None,
        })
    }
}

enum TraceKey {
    Parent,
    State,
}

impl TraceKey {
    #[inline]
    fn of_meta(key: &str) -> Option<Self> {
        match key {
            "traceparent" => Some(Self::Parent),
            "tracestate" => Some(Self::State),
            _ => None,
        }
    }
}

/// The parts of a message, each as the JSON text of its value. Keys may come in any order, so
/// which parts count is known only when all have been seen.
#[derive(Debug, Default)]
pub(super) struct Envelope<'a> {
    values: [Option<&'a str>; MessageKey::COUNT],
    /// A bit for each part whose key came more than once.
    duplicates: u8,
    traceparent: Option<&'a str>,
    tracestate: Option<&'a str>,
    /// Levels that it may have, where it has more.
    exceeded_nesting: Option<u32>,
}

impl<'a> Envelope<'a> {
    /// Scans the whole text, which may have `max_nesting` levels, and tells whether it is an object. Not a constructor, because moving
    /// this costs more than the scan of a small message.
    #[inline]
    pub(super) fn scan(&mut self, text: &'a str, max_nesting: u32) -> Result<bool, SyntaxError> {
        let mut scanner = Scanner::new(text, max_nesting);
        scanner.skip_white();
        if scanner.peek() != b'{' {
            return scanner.scan_text(0).map(|_| false);
        }
        let object = scanner.scan_object(|scanner, key| self.member(scanner, key));
        match object.and_then(|_| scanner.expect_end()) {
            Ok(()) => {
                if scanner.is_too_deep() {
                    self.exceeded_nesting = Some(max_nesting);
                }
                Ok(true)
            }
            Err(NotJson) => Err(scanner.syntax_error()),
        }
    }

    /// Whether it has no more levels than it may have.
    ///
    /// # Errors
    /// It has.
    pub(super) fn check_depth(&self) -> Result<(), MessageError<'a>> {
        self.exceeded_nesting.map_or(Ok(()), |limit| Err(MessageError::too_deep(limit)))
    }

    /// The value of a part, when its key came once.
    ///
    /// # Errors
    /// Names the part when its key came more than once.
    pub(super) fn unique_value(&self, part: MessageKey) -> Result<Option<&'a str>, MessageError<'a>> {
        if self.duplicates & bit(part) != 0 {
            return Err(MessageError::invalid("the key stands twice in the message").at(part.name()));
        }
        Ok(self.values[part as usize])
    }

    pub(super) fn trace(&self) -> TraceContext<'a> {
        if self.traceparent.is_none() {
            return TraceContext::default();
        }
        TraceContext::new(self.traceparent.and_then(decode_string), self.tracestate.and_then(decode_string))
    }

    fn member(&mut self, scanner: &mut Scanner<'a>, key: Key<'a>) -> Result<(), NotJson> {
        let part = key.find(MessageKey::of_envelope);
        let value = match part {
            Some(MessageKey::Data) if scanner.peek() == b'{' => scanner.scan_object(|scanner, key| {
                let value = scanner.scan_value(2)?;
                if let Some(part) = key.find(MessageKey::of_data) {
                    self.store(part, value);
                }
                Ok(())
            })?,
            Some(MessageKey::Meta) if scanner.peek() == b'{' => scanner.scan_object(|scanner, key| {
                let value = scanner.scan_value(2)?;
                match key.find(TraceKey::of_meta) {
                    Some(TraceKey::Parent) => self.traceparent = Some(value),
                    Some(TraceKey::State) => self.tracestate = Some(value),
                    None => {}
                }
                Ok(())
            })?,
            // As deep as it could be in `data`, where a delivery will have it.
            Some(MessageKey::Message) => scanner.scan_value(2)?,
            _ => scanner.scan_value(1)?,
        };
        if let Some(part) = part {
            self.store(part, value);
        }
        Ok(())
    }

    #[inline]
    fn store(&mut self, part: MessageKey, value: &'a str) {
        if self.values[part as usize].replace(value).is_some() {
            self.duplicates |= bit(part);
        }
    }
}

const fn bit(part: MessageKey) -> u8 {
    1 << part as u8
}

/// The text of a JSON value that is a string, with its escapes read. `None` for other values, and
/// for a string that is no Unicode text ([`unescape`]).
pub(super) fn decode_string(json: &str) -> Option<Cow<'_, str>> {
    unescape(json.strip_prefix('"')?.strip_suffix('"')?)
}
