//! JSON without a tree: values are ranges of the input text.

mod scan;
mod string;

pub(crate) use scan::{Key, MAX_NESTING, NotJson, ScannedText, Scanner, SyntaxError};
pub(crate) use string::{escape, unescape};

use crate::MessageError;
use std::fmt;

/// Nesting levels that a delivery puts around a payload: its own object and `data`.
pub(crate) const ENVELOPE_NESTING: u32 = 2;

/// The text of one valid JSON value, exactly as received and never re-serialised.
///
/// Key order, number precision, inner white space and escapes stay as sent. Validity follows the
/// grammar of RFC 8259. Like `JSON.parse`, it allows escaped unpaired surrogates (`"\ud800"`),
/// which pass through to the receiver. The magnitude of numbers is not checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RawJson<'a>(&'a str);

impl<'a> RawJson<'a> {
    /// Maximum nesting of arrays and objects in [`Self::parse`].
    ///
    /// Two fewer than a whole message may have
    /// ([`message::MAX_NESTING`](crate::message::MAX_NESTING)), so that a delivery, which puts two
    /// around it, is no deeper than a message.
    pub const MAX_NESTING: usize = (MAX_NESTING - ENVELOPE_NESTING) as usize;

    /// Checks that `text` is exactly one JSON value, and trims white space around it.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidJson`](crate::ErrorCode::InvalidJson) if the text is not one JSON value.
    /// The message names the expected token and its byte offset.
    /// [`ErrorCode::InvalidMessage`](crate::ErrorCode::InvalidMessage) if it nests deeper than
    /// [`Self::MAX_NESTING`].
    pub fn parse(text: &'a str) -> Result<Self, MessageError<'a>> {
        Self::parse_within(text, MAX_NESTING as usize)
    }

    /// Like [`Self::parse`], for messages of at most `max_nesting` levels (at most
    /// [`message::MAX_NESTING`](crate::message::MAX_NESTING)). The payload may have two fewer.
    ///
    /// # Errors
    /// The errors of [`Self::parse`].
    pub fn parse_within(text: &'a str, max_nesting: usize) -> Result<Self, MessageError<'a>> {
        let max_nesting = clamp_nesting(max_nesting);
        let ScannedText { value, too_deep } = Scanner::new(text, max_nesting).scan_text(ENVELOPE_NESTING)?;
        if too_deep {
            return Err(MessageError::too_deep(max_nesting.saturating_sub(ENVELOPE_NESTING)));
        }
        Ok(Self(value))
    }

    /// Wraps a value that a scanner has validated, without white space around it.
    pub(crate) const fn scanned(text: &'a str) -> Self {
        Self(text)
    }

    /// Returns the JSON text, without white space around it.
    #[must_use]
    pub const fn as_str(self) -> &'a str {
        self.0
    }
}

/// Clamps a nesting limit to [`MAX_NESTING`].
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
