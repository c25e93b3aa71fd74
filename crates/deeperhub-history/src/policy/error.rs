//! Errors of rules.

use deeperhub_types::TopicError;
use std::error::Error;
use std::fmt;

/// Reason why a rule, or a list of rules, is not valid. It names the key and the value at fault and
/// says what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RuleError {
    /// The text does not start with a pattern and a colon.
    NoPattern {
        /// The first word of the text.
        word: String,
    },
    /// The pattern is neither a topic nor a pattern.
    Pattern {
        /// The pattern.
        pattern: String,
        /// The syntax rule that it breaks.
        source: TopicError,
    },
    /// A word after the pattern is not `key=value`.
    NoValue {
        /// The word.
        word: String,
    },
    /// There is no such key.
    UnknownKey {
        /// The key.
        key: String,
    },
    /// A key stands twice.
    RepeatedKey {
        /// The key.
        key: &'static str,
    },
    /// A value is not of the key's type, or outside of its bounds.
    Value {
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// The expected values.
        expected: String,
    },
    /// A setting has no effect, because no messages are kept.
    NeedsHistory {
        /// The key.
        key: &'static str,
    },
    /// There are too many rules.
    TooManyRules {
        /// Number of rules.
        rules: usize,
    },
}

/// Maximum length of a faulty text in an error, in characters.
const MAX_EXCERPT: usize = 64;

/// Returns the start of `text` without control characters, for an error that people read.
pub(crate) fn excerpt(text: &str) -> String {
    let mut excerpt: String = text.chars().take(MAX_EXCERPT).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_EXCERPT).is_some() {
        excerpt.push('…');
    }
    excerpt
}

impl fmt::Display for RuleError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPattern { word } => write!(
                formatter,
                "`{word}` is not a pattern with a colon; write a rule as `chat.>: history=1000 ttl=10m`"
            ),
            Self::Pattern { pattern, .. } => write!(formatter, "`{pattern}` is not a topic or pattern"),
            Self::NoValue { word } => {
                write!(formatter, "`{word}` is not a setting; write it as `key=value`, without spaces")
            }
            Self::UnknownKey { key } => {
                write!(formatter, "unknown key `{key}`; a rule has the keys ")?;
                super::settings::KEYS.iter().enumerate().try_for_each(|(index, key)| {
                    write!(formatter, "{}{}", if index == 0 { "" } else { ", " }, key.name())
                })
            }
            Self::RepeatedKey { key } => write!(formatter, "`{key}` stands twice; remove one of them"),
            Self::Value { key, value, expected } => {
                write!(formatter, "`{key}` is `{value}`; expected {expected}")
            }
            Self::NeedsHistory { key } => {
                write!(formatter, "`{key}` has no effect without `history`; add `history=100`, for example")
            }
            Self::TooManyRules { rules } => {
                write!(formatter, "there are {rules} rules; keep at most {}", crate::Rules::MAX)
            }
        }
    }
}

impl Error for RuleError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Pattern { source, .. } => Some(source),
            _ => None,
        }
    }
}
