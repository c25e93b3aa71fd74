//! IDs of connections.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// The ID of a connection, unique across all nodes of a hub and across restarts. Cheap to clone.
///
/// An ID has 1 to [`ClientId::MAX_BYTES`] bytes of `A-Z a-z 0-9 . _ -`, so it needs no escaping in
/// JSON or in a URL path. This type checks length and characters. The code that creates an ID must
/// ensure that the ID is unique.
#[derive(Debug, Clone, Eq, PartialOrd, Ord)]
pub struct ClientId(Arc<str>);

impl ClientId {
    /// Maximum length of an ID in bytes.
    pub const MAX_BYTES: usize = 128;

    /// Parses an ID. Returns `None` if `text` is empty, is too long, or has a character that is not
    /// allowed.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let is_length_valid = (1..=Self::MAX_BYTES).contains(&text.len());
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        (is_length_valid && text.bytes().all(is_allowed)).then(|| Self(text.into()))
    }

    /// Returns the ID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Messages of one connection share the text of its ID, which is then not compared.
impl PartialEq for ClientId {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Hash for ClientId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl AsRef<str> for ClientId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ClientId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Allows lookups by `&str` in maps keyed by IDs.
impl std::borrow::Borrow<str> for ClientId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_digits_dot_underscore_and_hyphen_make_an_id() {
        let longest = "x".repeat(128);
        for text in ["a", "0", "node-1.AZ_09", ".", longest.as_str()] {
            assert_eq!(ClientId::parse(text).as_ref().map(ClientId::as_str), Some(text));
        }
    }

    #[test]
    fn ids_are_equal_by_their_text() {
        let [one, same, other] = ["n.0-0-1", "n.0-0-1", "n.0-0-2"].map(|text| ClientId::parse(text).unwrap());
        assert!(one == one.clone() && one == same && one != other);
    }

    #[test]
    fn other_text_is_rejected() {
        let too_long = "x".repeat(129);
        for text in ["", " ", "a b", "a/b", "a\"", "é", "a\n", "%41", too_long.as_str()] {
            assert_eq!(ClientId::parse(text), None, "{text:?}");
        }
    }
}
