//! Names of topics, and the patterns that stand for many of them.

mod pattern;

pub use pattern::{Subscription, TopicPattern};

use std::borrow::Cow;
use std::fmt;

/// A valid topic name: what a publish names.
///
/// 1 to [`Topic::MAX_BYTES`] bytes of UTF-8 without white space and control characters (Unicode's
/// properties `White_Space` and `Cc`). A `.` separates levels, none of which is empty. The
/// characters `*` and `>` are for patterns ([`TopicPattern`]), and a leading `$` is reserved to
/// the server. Case matters, and no normalisation takes place: two names are one topic when their
/// bytes are the same.
///
/// ```
/// use deeperhub_protocol::{Topic, TopicError};
///
/// let topic = Topic::parse("sports.football.results")?;
/// assert_eq!(topic.levels().count(), 3);
/// assert_eq!(Topic::parse("sports..results"), Err(TopicError::EmptyLevel));
/// # Ok::<(), TopicError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Topic<'a>(Cow<'a, str>);

impl<'a> Topic<'a> {
    /// The longest topic or pattern, in bytes of UTF-8.
    pub const MAX_BYTES: usize = 255;

    /// Checks a name. Nothing is copied.
    ///
    /// # Errors
    /// The rule that the text breaks; [`TopicError::Wildcard`] for a valid pattern.
    pub fn parse(text: impl Into<Cow<'a, str>>) -> Result<Self, TopicError> {
        let text = text.into();
        match NameKind::of(&text)? {
            NameKind::Topic => Ok(Self(text)),
            NameKind::Pattern => Err(TopicError::Wildcard),
        }
    }

    /// One of the server's own topics: `$` and then the name, of which nothing is checked. No client can name it, and
    /// no pattern stands for it.
    #[must_use]
    pub fn reserved(name: impl fmt::Display) -> Topic<'static> {
        Topic(Cow::Owned(format!("${name}")))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The levels, from the left; at least one, none empty.
    pub fn levels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.')
    }

    /// The same topic with a name of its own.
    #[must_use]
    pub fn into_owned(self) -> Topic<'static> {
        Topic(Cow::Owned(self.0.into_owned()))
    }

    /// The same topic, borrowing this one's name.
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

/// Maps keyed by topics can be asked with a `&str`: a topic is equal, ordered and hashed as its
/// name is.
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

/// The rule that a text breaks which should be a topic or a pattern.
///
/// Whoever chose the name is at fault: a client's message is answered with `invalid_topic`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TopicError {
    /// There is no text.
    Empty,
    /// There are more bytes than [`Topic::MAX_BYTES`].
    TooLong {
        /// How many there are.
        bytes: usize,
    },
    /// One of the characters is white space.
    WhiteSpace,
    /// One of the characters is a control character.
    Control,
    /// The first character is `$`.
    Reserved,
    /// There is nothing before, after or between dots.
    EmptyLevel,
    /// `*` or `>` stands beside other characters in its level.
    PartialWildcard,
    /// A level follows `>`.
    TailNotLast,
    /// It is a pattern, where one topic is asked for.
    Wildcard,
    /// It is a topic, where a pattern is asked for.
    NoWildcard,
}

impl fmt::Display for TopicError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Empty => "a topic needs at least one character",
            Self::TooLong { bytes } => {
                let max = Topic::MAX_BYTES;
                return write!(formatter, "a topic has at most {max} bytes of UTF-8, not {bytes}");
            }
            Self::WhiteSpace => "a topic has no white space; write `-`, `_` or `.` in its place",
            Self::Control => "a topic has no control characters; leave them out",
            Self::Reserved => {
                "topics that start with `$` are reserved to the server; start with another character"
            }
            Self::EmptyLevel => {
                "a topic has at least one character before, after and between its dots, as in `a.b`"
            }
            Self::PartialWildcard => {
                "`*` and `>` stand for a whole level, as in `a.*`, never for a part of one"
            }
            Self::TailNotLast => "`>` stands only at the end, as in `a.>`; in other places use `*`",
            Self::Wildcard => "one topic is asked for here, without the wildcards `*` and `>`",
            Self::NoWildcard => "a pattern has a level that is `*`, or ends in `>`",
        })
    }
}

impl std::error::Error for TopicError {}

/// Which of the two a valid text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NameKind {
    Topic,
    Pattern,
}

impl NameKind {
    /// Looks at each byte once where all is ASCII and there are no wildcards.
    fn of(text: &str) -> Result<Self, TopicError> {
        match text.len() {
            0 => return Err(TopicError::Empty),
            1..=Topic::MAX_BYTES => {}
            bytes => return Err(TopicError::TooLong { bytes }),
        }
        let (mut seen, mut empty_level) = (0, false);
        let mut previous = b'.';
        for &byte in text.as_bytes() {
            seen |= BYTE_CLASSES[byte as usize];
            empty_level |= byte == b'.' && previous == b'.';
            previous = byte;
        }
        if seen & NOT_GRAPHIC != 0 {
            check_characters(text)?;
        }
        if text.starts_with('$') {
            return Err(TopicError::Reserved);
        }
        if empty_level || previous == b'.' {
            return Err(TopicError::EmptyLevel);
        }
        if seen & WILDCARD != 0 {
            check_wildcards(text)?;
            return Ok(Self::Pattern);
        }
        Ok(Self::Topic)
    }
}

/// Not a visible character of ASCII: to be looked at as a character.
const NOT_GRAPHIC: u8 = 1;
const WILDCARD: u8 = 2;

/// What each byte may mean for a topic.
const BYTE_CLASSES: [u8; 256] = {
    let mut classes = [NOT_GRAPHIC; 256];
    let mut byte = b'!';
    while byte <= b'~' {
        classes[byte as usize] = if byte == b'*' || byte == b'>' { WILDCARD } else { 0 };
        byte += 1;
    }
    classes
};

fn check_characters(text: &str) -> Result<(), TopicError> {
    for character in text.chars() {
        // Tab and line feed are both; a person thinks of them as white space.
        if character.is_whitespace() {
            return Err(TopicError::WhiteSpace);
        }
        if character.is_control() {
            return Err(TopicError::Control);
        }
    }
    Ok(())
}

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
    fn valid_topics() {
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
    fn each_rule_has_its_error() {
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
