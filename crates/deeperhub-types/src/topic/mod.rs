//! Topics, topic patterns and subscriptions.

mod pattern;

pub use pattern::{Subscription, TopicPattern};

use std::borrow::Cow;
use std::fmt;

/// A valid topic name. Messages are published to topics.
///
/// A topic has 1 to [`Topic::MAX_BYTES`] bytes of UTF-8 without white space or control characters
/// (Unicode properties `White_Space` and `Cc`). A `.` separates levels, and no level is empty. The
/// characters `*` and `>` are wildcards of patterns ([`TopicPattern`]). Topics that start with `$`
/// are reserved for the server. Names are case-sensitive and not normalised: two names are the same
/// topic only if their bytes are equal.
///
/// ```
/// use deeperhub_types::{Topic, TopicError};
///
/// let topic = Topic::parse("sports.football.results")?;
/// assert_eq!(topic.levels().count(), 3);
/// assert_eq!(Topic::parse("sports..results"), Err(TopicError::EmptyLevel));
/// # Ok::<(), TopicError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic<'a>(Cow<'a, str>);

impl<'a> Topic<'a> {
    /// Maximum length of a topic or pattern, in bytes of UTF-8.
    pub const MAX_BYTES: usize = 255;

    /// Parses a topic without copying the text.
    ///
    /// # Errors
    /// Returns the rule that the text breaks. For a valid pattern, this is
    /// [`TopicError::Wildcard`].
    pub fn parse(text: impl Into<Cow<'a, str>>) -> Result<Self, TopicError> {
        let text = text.into();
        match NameKind::of(&text)? {
            NameKind::Topic => Ok(Self(text)),
            NameKind::Pattern => Err(TopicError::Wildcard),
        }
    }

    /// Creates a topic that is reserved for the server: `$` followed by `name`, which is not
    /// checked. Clients cannot use such a topic, because [`Self::parse`] rejects it. No pattern
    /// matches it.
    #[must_use]
    pub fn reserved(name: impl fmt::Display) -> Topic<'static> {
        Topic(Cow::Owned(format!("${name}")))
    }

    /// Returns the topic's name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the levels from left to right. There is at least one, and none is empty.
    pub fn levels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.')
    }

    /// Converts to a topic that owns its name.
    #[must_use]
    pub fn into_owned(self) -> Topic<'static> {
        Topic(Cow::Owned(self.0.into_owned()))
    }

    /// Returns the same topic, borrowing the name.
    #[must_use]
    pub fn borrow(&self) -> Topic<'_> {
        Topic(Cow::Borrowed(&self.0))
    }
}

impl AsRef<str> for Topic<'_> {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Allows lookups with a `&str` in maps whose keys are topics: a topic compares and hashes like its
/// name.
impl std::borrow::Borrow<str> for Topic<'_> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The syntax rule that a topic or pattern breaks.
///
/// If a message names such a topic or pattern, the server replies with the error `invalid_topic`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TopicError {
    /// The text is empty.
    Empty,
    /// The text is longer than [`Topic::MAX_BYTES`].
    TooLong {
        /// The length in bytes.
        bytes: usize,
    },
    /// The text contains white space.
    WhiteSpace,
    /// The text contains a control character.
    Control,
    /// The text starts with `$`.
    Reserved,
    /// A level is empty: the text starts or ends with a dot, or has two adjacent dots.
    EmptyLevel,
    /// A level contains `*` or `>` together with other characters.
    PartialWildcard,
    /// The level `>` is not the last one.
    TailNotLast,
    /// The text is a pattern, but a topic is required.
    Wildcard,
    /// The text is a topic, but a pattern is required.
    NoWildcard,
}

impl fmt::Display for TopicError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Empty => "topic is empty; give it at least one character",
            Self::TooLong { bytes } => {
                let max = Topic::MAX_BYTES;
                return write!(formatter, "topic has {bytes} bytes; shorten it to at most {max}");
            }
            Self::WhiteSpace => "topic contains white space; use `-`, `_` or `.` instead",
            Self::Control => "topic contains a control character; remove it",
            Self::Reserved => "topics that start with `$` are reserved; use another first character",
            Self::EmptyLevel => {
                "topic has an empty level; put at least one character around each dot, as in `a.b`"
            }
            Self::PartialWildcard => {
                "`*` and `>` replace a whole level; write them alone between dots, as in `a.*`"
            }
            Self::TailNotLast => {
                "`>` is allowed only as the last level, as in `a.>`; use `*` for other levels"
            }
            Self::Wildcard => "wildcards are not allowed here; name one topic without `*` and `>`",
            Self::NoWildcard => "pattern has no wildcard; use `*` for a level or end with `>`",
        })
    }
}

impl std::error::Error for TopicError {}

/// The kind of a valid text: a topic or a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NameKind {
    Topic,
    Pattern,
}

impl NameKind {
    /// Validates `text` and returns its kind. One pass is enough if `text` is visible ASCII without
    /// wildcards.
    fn of(text: &str) -> Result<Self, TopicError> {
        match text.len() {
            0 => return Err(TopicError::Empty),
            1..=Topic::MAX_BYTES => {}
            bytes => return Err(TopicError::TooLong { bytes }),
        }
        let (mut classes, mut has_empty_level) = (0, false);
        let mut previous = b'.';
        for &byte in text.as_bytes() {
            classes |= BYTE_CLASSES[byte as usize];
            has_empty_level |= byte == b'.' && previous == b'.';
            previous = byte;
        }
        if classes & NOT_GRAPHIC != 0 {
            check_characters(text)?;
        }
        if text.starts_with('$') {
            return Err(TopicError::Reserved);
        }
        if has_empty_level || previous == b'.' {
            return Err(TopicError::EmptyLevel);
        }
        if classes & WILDCARD != 0 {
            check_wildcards(text)?;
            return Ok(Self::Pattern);
        }
        Ok(Self::Topic)
    }
}

/// Class of all bytes other than visible ASCII. The characters of a text with such bytes must be
/// checked one by one.
const NOT_GRAPHIC: u8 = 1;
/// Class of `*` and `>`.
const WILDCARD: u8 = 2;

/// The class of each byte value; 0 for ordinary characters.
const BYTE_CLASSES: [u8; 256] = {
    let mut classes = [NOT_GRAPHIC; 256];
    let mut byte = b'!';
    while byte <= b'~' {
        classes[byte as usize] = if byte == b'*' || byte == b'>' { WILDCARD } else { 0 };
        byte += 1;
    }
    classes
};

/// Checks that `text` has no white space and no control characters.
fn check_characters(text: &str) -> Result<(), TopicError> {
    for character in text.chars() {
        // Tab and line feed belong to both classes. They are reported as white space, as people see
        // them.
        if character.is_whitespace() {
            return Err(TopicError::WhiteSpace);
        }
        if character.is_control() {
            return Err(TopicError::Control);
        }
    }
    Ok(())
}

/// Checks that each wildcard is a whole level, and that `>` is the last level.
fn check_wildcards(text: &str) -> Result<(), TopicError> {
    let mut levels = text.split('.').peekable();
    while let Some(level) = levels.next() {
        if level.len() > 1 && level.contains(['*', '>']) {
            return Err(TopicError::PartialWildcard);
        }
        if level == ">" && levels.peek().is_some() {
            return Err(TopicError::TailNotLast);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::hash::{BuildHasher, RandomState};

    #[test]
    fn valid_topics_are_parsed() {
        let longest = "x".repeat(255);
        for text in [
            "a",
            "news",
            "sports.football.results",
            "a.$b",
            "a/b:c@d#e",
            "\"quoted\\",
            "0",
            "café.日本.😀",
            "zero\u{200b}width",
            longest.as_str(),
        ] {
            let topic = Topic::parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"));
            assert_eq!(topic.as_str(), text);
            assert_eq!(Subscription::parse(text).unwrap().as_str(), text);
            assert_eq!(TopicPattern::parse(text), Err(TopicError::NoWildcard));
        }
    }

    #[test]
    fn each_broken_rule_has_its_error() {
        let too_long = "x".repeat(256);
        let long_in_bytes = "é".repeat(128);
        for (text, error) in [
            ("", TopicError::Empty),
            (too_long.as_str(), TopicError::TooLong { bytes: 256 }),
            (long_in_bytes.as_str(), TopicError::TooLong { bytes: 256 }),
            ("a b", TopicError::WhiteSpace),
            (" a", TopicError::WhiteSpace),
            ("a\n", TopicError::WhiteSpace),
            ("a\u{a0}b", TopicError::WhiteSpace),
            ("a\u{85}b", TopicError::WhiteSpace),
            ("a\u{3000}", TopicError::WhiteSpace),
            ("a\u{2028}", TopicError::WhiteSpace),
            ("a\0", TopicError::Control),
            ("\u{7f}", TopicError::Control),
            ("é\u{9b}", TopicError::Control),
            ("$", TopicError::Reserved),
            ("$sys.clients", TopicError::Reserved),
            ("$sys.*", TopicError::Reserved),
            (".", TopicError::EmptyLevel),
            (".a", TopicError::EmptyLevel),
            ("a.", TopicError::EmptyLevel),
            ("a..b", TopicError::EmptyLevel),
            ("*..>", TopicError::EmptyLevel),
            ("a*", TopicError::PartialWildcard),
            ("*a.b", TopicError::PartialWildcard),
            ("a.b>", TopicError::PartialWildcard),
            ("**", TopicError::PartialWildcard),
            ("a.>>", TopicError::PartialWildcard),
            (">.a", TopicError::TailNotLast),
            ("a.>.*", TopicError::TailNotLast),
            (">.>", TopicError::TailNotLast),
        ] {
            assert_eq!(Subscription::parse(text), Err(error), "{text:?}");
            assert_eq!(Topic::parse(text), Err(error), "{text:?}");
            assert_eq!(TopicPattern::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn a_topic_has_no_wildcards() {
        for text in ["*", ">", "a.*", "a.>", "*.b", "*.*.>"] {
            assert_eq!(Topic::parse(text), Err(TopicError::Wildcard), "{text}");
            assert!(matches!(Subscription::parse(text), Ok(Subscription::Pattern(_))), "{text}");
        }
    }

    #[test]
    fn maps_keyed_by_topics_accept_str_lookups() {
        let topic = Topic::parse("a.b").unwrap();
        let topics = HashMap::from([(topic.clone(), 1), (Topic::parse("é").unwrap().into_owned(), 2)]);
        assert_eq!((topics.get("a.b"), topics.get("é"), topics.get("a")), (Some(&1), Some(&2), None));
        let patterns = HashMap::from([(TopicPattern::parse("a.*").unwrap(), 1)]);
        assert_eq!(patterns.get("a.*"), Some(&1));
        let hasher = RandomState::new();
        assert_eq!(hasher.hash_one(&topic), hasher.hash_one("a.b"));
    }

    #[test]
    fn parsing_borrows_the_text() {
        assert!(matches!(Topic::parse("a.b").unwrap().0, Cow::Borrowed(_)));
        assert!(matches!(Topic::parse("a.b").unwrap().into_owned().borrow().0, Cow::Borrowed("a.b")));
    }
}
