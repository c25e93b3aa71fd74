//! JSON without a tree: values as the ranges of text that they came in.

mod scan;
mod string;

pub(crate) use scan::{Key, MAX_NESTING, NotJson, ScannedText, Scanner, SyntaxError};
pub(crate) use string::{escape, unescape};

use crate::MessageError;
use std::fmt;

/// Levels that the envelope of a delivery puts around a payload: its own object, and `data`.
pub(crate) const ENVELOPE_NESTING: u32 = 2;

/// The bytes of one complete, valid JSON value, as they came: never re-serialised.
///
/// Key order, number precision, inner white space and escapes are the sender's. Valid is what the
/// grammar of RFC 8259 allows. That includes a string with half of a surrogate pair as an escape
/// (`"\ud800"`), as `JSON.parse` does: it passes through, and what to make of it is the
/// receiver's matter. Numbers are not looked at for their size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RawJson<'a>(&'a str);

impl<'a> RawJson<'a> {
    /// Levels of arrays and objects that a payload may have one inside the other, in
    /// [`Self::parse`].
    ///
    /// Two fewer than a whole message may have ([`message::MAX_NESTING`](crate::message::MAX_NESTING)),
    /// so that a delivery, which puts two around it, is no deeper than a message.
    pub const MAX_NESTING: usize = (MAX_NESTING - ENVELOPE_NESTING) as usize;

    /// Checks that `text` is exactly one JSON value; white space around it is cut off.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidJson`](crate::ErrorCode::InvalidJson), with a sentence that says what was expected at which byte:
    /// the text is no JSON value, or has more behind it.
    /// [`ErrorCode::InvalidMessage`](crate::ErrorCode::InvalidMessage): it nests deeper than [`Self::MAX_NESTING`].
    pub fn parse(text: &'a str) -> Result<Self, MessageError<'a>> {
        Self::parse_within(text, MAX_NESTING as usize)
    }

    /// As [`Self::parse`], for a payload of a message that may have `max_nesting` levels (at most
    /// [`message::MAX_NESTING`](crate::message::MAX_NESTING)), of which the payload may have two
    /// fewer.
    ///
    /// # Errors
    /// As those of [`Self::parse`].
    pub fn parse_within(text: &'a str, max_nesting: usize) -> Result<Self, MessageError<'a>> {
        let max_nesting = clamp_nesting(max_nesting);
        let ScannedText { value, too_deep } = Scanner::new(text, max_nesting).scan_text(ENVELOPE_NESTING)?;
        if too_deep {
            return Err(MessageError::too_deep(max_nesting.saturating_sub(ENVELOPE_NESTING)));
        }
        Ok(Self(value))
    }

    /// `text` is a value that a scanner went over, without white space around it.
    pub(crate) const fn scanned(text: &'a str) -> Self {
        Self(text)
    }

    /// The JSON text, without white space around it.
    #[must_use]
    pub const fn as_str(self) -> &'a str {
        self.0
    }
}

/// A limit of levels as scanners take it.
pub(crate) fn clamp_nesting(max_nesting: usize) -> u32 {
    u32::try_from(max_nesting).map_or(MAX_NESTING, |levels| levels.min(MAX_NESTING))
}

impl AsRef<str> for RawJson<'_> {
    fn as_ref(&self) -> &str {
        self.0
    }
}

impl fmt::Display for RawJson<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0)
    }
}
