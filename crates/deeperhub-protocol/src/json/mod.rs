//! JSON without a tree: each value is a slice of the input text.

mod scan;
mod string;

pub(crate) use scan::{Elements, Key, MAX_NESTING, NotJson, ScannedText, Scanner, SyntaxError};
pub(crate) use string::{escape, unescape};

use crate::MessageError;
use std::fmt;

/// Number of nesting levels around a payload in a delivery: the message's own object and `data`.
pub(crate) const ENVELOPE_NESTING: u32 = 2;

/// The text of one valid JSON value, exactly as received and never re-serialised.
///
/// Key order, number precision, inner white space and escapes stay as sent. The text follows the
/// grammar of RFC 8259. As in JavaScript's `JSON.parse`, a string can contain an escaped unpaired
/// surrogate (`"\ud800"`), which is passed to the receiver unchanged. The magnitude of numbers is
/// not checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RawJson<'a>(&'a str);

impl<'a> RawJson<'a> {
    /// Maximum nesting of arrays and objects in [`Self::parse`].
    ///
    /// A delivery puts two levels around a payload. The limit is therefore two levels below that of
    /// a whole message ([`message::MAX_NESTING`](crate::message::MAX_NESTING)).
    pub const MAX_NESTING: usize = (MAX_NESTING - ENVELOPE_NESTING) as usize;

    /// Checks that `text` is exactly one JSON value, and returns it without white space around it.
    ///
    /// # Errors
    /// - [`ErrorCode::InvalidJson`](crate::ErrorCode::InvalidJson): the text is not one JSON value.
    ///   The error message names the expected token and its byte offset.
    /// - [`ErrorCode::InvalidMessage`](crate::ErrorCode::InvalidMessage): the value nests deeper
    ///   than [`Self::MAX_NESTING`].
    pub fn parse(text: &'a str) -> Result<Self, MessageError<'a>> {
        Self::parse_within(text, MAX_NESTING as usize)
    }

    /// Parses a payload like [`Self::parse`], for messages of at most `max_nesting` levels. The
    /// payload itself has at most two levels fewer. A value over
    /// [`message::MAX_NESTING`](crate::message::MAX_NESTING) acts like `MAX_NESTING`.
    ///
    /// # Errors
    /// Returns the errors of [`Self::parse`], with this lower limit.
    pub fn parse_within(text: &'a str, max_nesting: usize) -> Result<Self, MessageError<'a>> {
        let max_nesting = clamp_nesting(max_nesting);
        let ScannedText { value, too_deep } = Scanner::new(text, max_nesting).scan_text(ENVELOPE_NESTING)?;
        if too_deep {
            return Err(MessageError::too_deep(max_nesting.saturating_sub(ENVELOPE_NESTING)));
        }
        Ok(Self(value))
    }

    /// Wraps a value that a scanner has validated. `text` has no white space around the value.
    pub(crate) const fn scanned(text: &'a str) -> Self {
        Self(text)
    }

    /// Returns the JSON text, without white space around it.
    #[must_use]
    pub const fn as_str(self) -> &'a str {
        self.0
    }
}

/// Returns `max_nesting`, but at most [`MAX_NESTING`].
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
