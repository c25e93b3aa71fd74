//! The scan of a message: one pass that validates the JSON and finds the values of known keys.
//!
//! The envelope is the message's own object, with the keys `type`, `id`, `data` and `meta`.

use super::{MessageError, TraceContext};
use crate::json::{Key, NotJson, Scanner, SyntaxError, unescape};
use std::borrow::Cow;

/// A known key of the envelope or of `data`.
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
    Topics,
    Recover,
    History,
    Once,
    From,
    Limit,
    Order,
}

impl MessageKey {
    const COUNT: usize = 15;

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
            Self::Topics => "topics",
            Self::Recover => "recover",
            Self::History => "history",
            Self::Once => "once",
            Self::From => "from",
            Self::Limit => "limit",
            Self::Order => "order",
        }
    }

    /// Looks up a key of the envelope. Older clients put `topic` and `message` there instead of in
    /// `data`.
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

    /// Looks up a key of `data`.
    #[inline]
    fn of_data(key: &str) -> Option<Self> {
        Some(match key {
            "topic" => Self::Topic,
            "message" => Self::Message,
            "exclude_self" => Self::ExcludeSelf,
            "token" => Self::Token,
            "topics" => Self::Topics,
            "recover" => Self::Recover,
            "history" => Self::History,
            "once" => Self::Once,
            "from" => Self::From,
            "limit" => Self::Limit,
            "order" => Self::Order,
            _ => return None,
        })
    }
}

/// A known key of `meta`.
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

/// The values of a message's known keys, as JSON text. Keys can have any order, so the caller
/// interprets the values after the whole message was scanned.
#[derive(Debug, Default)]
pub(super) struct Envelope<'a> {
    values: [Option<&'a str>; MessageKey::COUNT],
    /// One bit for each [`MessageKey`], set if the key is duplicated.
    duplicates: u16,
    traceparent: Option<&'a str>,
    tracestate: Option<&'a str>,
    /// The nesting limit if the message exceeds it, otherwise `None`.
    exceeded_nesting: Option<u32>,
}

impl<'a> Envelope<'a> {
    /// Scans the whole text with a limit of `max_nesting` levels. Returns `true` if the text is an
    /// object, and `false` if it is another JSON value.
    ///
    /// This is not a constructor, because moving `Self` costs more than scanning a small message.
    #[inline]
    pub(super) fn scan(&mut self, text: &'a str, max_nesting: u32) -> Result<bool, SyntaxError> {
        let mut scanner = Scanner::new(text, max_nesting);
        scanner.skip_white();
        if scanner.peek() != b'{' {
            return scanner.scan_text(0).map(|_| false);
        }
        let object = scanner.scan_object(|scanner, key| self.scan_member(scanner, key));
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

    /// Checks the nesting limit.
    ///
    /// # Errors
    /// Returns an error if the message exceeds the limit.
    pub(super) fn check_depth(&self) -> Result<(), MessageError<'a>> {
        self.exceeded_nesting.map_or(Ok(()), |limit| Err(MessageError::too_deep(limit)))
    }

    /// Returns the value of a key, or `None` if the key is absent.
    ///
    /// # Errors
    /// Returns an error that names the key if the key is duplicated.
    pub(super) fn unique_value(&self, key: MessageKey) -> Result<Option<&'a str>, MessageError<'a>> {
        if self.duplicates & bit(key) != 0 {
            return Err(MessageError::invalid("duplicate key").at(key.name()));
        }
        Ok(self.values[key as usize])
    }

    /// Returns the trace context from `meta`; empty if it is absent or malformed.
    pub(super) fn trace(&self) -> TraceContext<'a> {
        if self.traceparent.is_none() {
            return TraceContext::default();
        }
        TraceContext::new(self.traceparent.and_then(decode_string), self.tracestate.and_then(decode_string))
    }

    /// Scans the value of one member of the envelope, and stores it if its key is known.
    fn scan_member(&mut self, scanner: &mut Scanner<'a>, key: Key<'a>) -> Result<(), NotJson> {
        let known_key = key.find(MessageKey::of_envelope);
        let value = match known_key {
            Some(MessageKey::Data) if scanner.peek() == b'{' => scanner.scan_object(|scanner, key| {
                let value = scanner.scan_value(2)?;
                if let Some(known_key) = key.find(MessageKey::of_data) {
                    self.store(known_key, value);
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
            // A delivery puts the payload into `data`, so its depth is counted as if it were there.
            Some(MessageKey::Message) => scanner.scan_value(2)?,
            _ => scanner.scan_value(1)?,
        };
        if let Some(known_key) = known_key {
            self.store(known_key, value);
        }
        Ok(())
    }

    #[inline]
    fn store(&mut self, key: MessageKey, value: &'a str) {
        if self.values[key as usize].replace(value).is_some() {
            self.duplicates |= bit(key);
        }
    }
}

const fn bit(key: MessageKey) -> u16 {
    1 << key as u16
}

/// The values of some keys of an object inside a message that was scanned before, as JSON text.
#[derive(Debug)]
pub(super) struct Members<'a, const N: usize> {
    names: [&'static str; N],
    values: [Option<&'a str>; N],
    is_duplicate: [bool; N],
}

impl<'a, const N: usize> Members<'a, N> {
    /// Finds the keys `names` in `object`, a valid JSON value. Returns `None` if it is not an
    /// object.
    pub(super) fn find(object: &'a str, names: [&'static str; N]) -> Option<Self> {
        let mut members = Self { names, values: [None; N], is_duplicate: [false; N] };
        let mut scanner = Scanner::new(object, crate::json::MAX_NESTING);
        let scanned = scanner.scan_object(|scanner, key| {
            let value = scanner.scan_value(0)?;
            if let Some(at) = key.find(|key| names.iter().position(|name| *name == key)) {
                members.is_duplicate[at] |= members.values[at].replace(value).is_some();
            }
            Ok(())
        });
        scanned.is_ok().then_some(members)
    }

    /// Returns the value of the key at index `at` of the names, or `None` if the key is absent.
    ///
    /// # Errors
    /// Returns an error that names the key if the key is duplicated.
    pub(super) fn unique_value(&self, at: usize) -> Result<Option<&'a str>, MessageError<'a>> {
        if self.is_duplicate[at] {
            return Err(MessageError::invalid("duplicate key").at(self.names[at]));
        }
        Ok(self.values[at])
    }
}

/// Returns `false` for `null`, which counts as absent for an optional key.
pub(super) fn is_not_null(json: &&str) -> bool {
    *json != "null"
}

/// Parses an unsigned 64-bit integer of digits only: `1.0`, `1e3` and `-0` are not integers.
pub(super) fn parse_unsigned(json: &str) -> Option<u64> {
    // The largest `u64` has 20 digits, and JSON allows no leading zeros.
    if json.len() > 20 || !json.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    json.parse().ok()
}

/// Parses the value of an optional key that is `true` or `false`.
pub(super) fn parse_flag(value: Option<&str>) -> Option<bool> {
    match value {
        None | Some("false" | "null") => Some(false),
        Some("true") => Some(true),
        Some(_) => None,
    }
}

/// Decodes a JSON string. Returns `None` for other values, and for strings that are not Unicode
/// text ([`unescape`]).
pub(super) fn decode_string(json: &str) -> Option<Cow<'_, str>> {
    unescape(json.strip_prefix('"')?.strip_suffix('"')?)
}
