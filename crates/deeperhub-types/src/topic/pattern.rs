//! Topic patterns and subscriptions, with matching and coverage.

use super::{NameKind, Topic, TopicError};
use std::borrow::Cow;
use std::fmt;

/// A topic pattern with at least one wildcard: `*` matches exactly one level, and a final `>`
/// matches one or more levels.
///
/// All other rules of a [`Topic`] apply to a pattern too. No pattern matches a reserved topic
/// ([`Topic::reserved`]).
///
/// ```
/// use deeperhub_types::{Topic, TopicError, TopicPattern};
///
/// let pattern = TopicPattern::parse("sports.>")?;
/// assert!(pattern.matches(&Topic::parse("sports.football.results")?));
/// assert!(!pattern.matches(&Topic::parse("sports")?));
/// # Ok::<(), TopicError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPattern<'a>(Cow<'a, str>);

impl<'a> TopicPattern<'a> {
    /// Parses a pattern without copying the text.
    ///
    /// # Errors
    /// Returns the rule that the text breaks. For a valid topic, this is
    /// [`TopicError::NoWildcard`].
    pub fn parse(text: impl Into<Cow<'a, str>>) -> Result<Self, TopicError> {
        let text = text.into();
        match NameKind::of(&text)? {
            NameKind::Pattern => Ok(Self(text)),
            NameKind::Topic => Err(TopicError::NoWildcard),
        }
    }

    /// Returns the pattern's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the levels from left to right, wildcards included. There is at least one, and none
    /// is empty.
    pub fn levels(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('.')
    }

    /// Converts to a pattern that owns its text.
    #[must_use]
    pub fn into_owned(self) -> TopicPattern<'static> {
        TopicPattern(Cow::Owned(self.0.into_owned()))
    }

    /// Returns the same pattern, borrowing the text.
    #[must_use]
    pub fn borrow(&self) -> TopicPattern<'_> {
        TopicPattern(Cow::Borrowed(&self.0))
    }

    /// Returns `true` if the pattern matches `topic`.
    #[must_use]
    pub fn matches(&self, topic: &Topic<'_>) -> bool {
        levels_cover(self.as_str(), topic.as_str())
    }

    /// Returns `true` if this pattern matches every topic that `other` matches. For example,
    /// `room.*` covers `room.*` and `room.a`, but not `room.>` or `*.a`. A token's grants are
    /// checked this way.
    #[must_use]
    pub fn covers(&self, other: &Subscription<'_>) -> bool {
        levels_cover(self.as_str(), other.as_str())
    }
}

impl AsRef<str> for TopicPattern<'_> {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Allows lookups with a `&str` in maps whose keys are patterns.
impl std::borrow::Borrow<str> for TopicPattern<'_> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicPattern<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The topics of a subscription or grant: one topic, or all topics that match a pattern.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subscription<'a> {
    /// One topic.
    Topic(Topic<'a>),
    /// All topics that the pattern matches.
    Pattern(TopicPattern<'a>),
}

impl<'a> Subscription<'a> {
    /// Parses a topic or a pattern without copying the text.
    ///
    /// # Errors
    /// Returns the rule that the text breaks.
    pub fn parse(text: impl Into<Cow<'a, str>>) -> Result<Self, TopicError> {
        let text = text.into();
        Ok(match NameKind::of(&text)? {
            NameKind::Topic => Self::Topic(Topic(text)),
            NameKind::Pattern => Self::Pattern(TopicPattern(text)),
        })
    }

    /// Returns the text of the topic or pattern. Different subscriptions have different texts, so
    /// the text can be a key.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Topic(topic) => topic.as_str(),
            Self::Pattern(pattern) => pattern.as_str(),
        }
    }

    /// Converts to a subscription that owns its text.
    #[must_use]
    pub fn into_owned(self) -> Subscription<'static> {
        match self {
            Self::Topic(topic) => Subscription::Topic(topic.into_owned()),
            Self::Pattern(pattern) => Subscription::Pattern(pattern.into_owned()),
        }
    }

    /// Returns the same subscription, borrowing the text.
    #[must_use]
    pub fn borrow(&self) -> Subscription<'_> {
        match self {
            Self::Topic(topic) => Subscription::Topic(topic.borrow()),
            Self::Pattern(pattern) => Subscription::Pattern(pattern.borrow()),
        }
    }

    /// Returns `true` if messages published to `topic` match this subscription.
    #[must_use]
    pub fn matches(&self, topic: &Topic<'_>) -> bool {
        match self {
            Self::Topic(subscribed) => subscribed == topic,
            Self::Pattern(pattern) => pattern.matches(topic),
        }
    }

    /// Returns `true` if this subscription matches every topic that `other` matches. See
    /// [`TopicPattern::covers`].
    #[must_use]
    pub fn covers(&self, other: &Subscription<'_>) -> bool {
        match self {
            Self::Topic(topic) => matches!(other, Subscription::Topic(other) if other == topic),
            Self::Pattern(pattern) => pattern.covers(other),
        }
    }
}

impl<'a> From<Topic<'a>> for Subscription<'a> {
    fn from(topic: Topic<'a>) -> Self {
        Self::Topic(topic)
    }
}

impl<'a> From<TopicPattern<'a>> for Subscription<'a> {
    fn from(pattern: TopicPattern<'a>) -> Self {
        Self::Pattern(pattern)
    }
}

impl AsRef<str> for Subscription<'_> {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for Subscription<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Returns `true` if `pattern` matches every topic that `other` matches. `other` is a topic or a
/// pattern.
///
/// Comparing level by level gives an exact answer. A level of `other` matches one name, every name
/// (`*`), or every sequence of names (`>`). A pattern without the same or a wider wildcard cannot
/// match all of these names.
fn levels_cover(pattern: &str, other: &str) -> bool {
    // No pattern matches a reserved topic.
    if other.starts_with('$') {
        return false;
    }
    let mut others = other.split('.');
    for level in pattern.split('.') {
        let Some(other) = others.next() else { return false };
        match level {
            ">" => return true,
            "*" if other != ">" => {}
            _ if level == other => {}
            _ => return false,
        }
    }
    others.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn covers(pattern: &str, other: &str) -> bool {
        TopicPattern::parse(pattern).unwrap().covers(&Subscription::parse(other).unwrap())
    }

    #[test]
    fn a_star_matches_exactly_one_level() {
        assert!(covers("sports.*", "sports.football"));
        assert!(!covers("sports.*", "sports"));
        assert!(!covers("sports.*", "sports.football.results"));
        assert!(covers("*.football", "sports.football"));
        assert!(covers("*", "sports"));
    }

    #[test]
    fn no_pattern_matches_a_reserved_topic() {
        let topic = Topic::reserved("a.b");
        for pattern in [">", "*.b", "*.*"] {
            let pattern = TopicPattern::parse(pattern).unwrap();
            assert!(!pattern.matches(&topic), "{pattern}");
            assert!(!pattern.covers(&topic.borrow().into()), "{pattern}");
        }
        assert!(Subscription::from(topic.borrow()).matches(&topic));
    }

    #[test]
    fn a_tail_matches_one_or_more_levels() {
        assert!(covers("sports.>", "sports.football"));
        assert!(covers("sports.>", "sports.football.results"));
        assert!(!covers("sports.>", "sports"));
        assert!(!covers("sports.>", "sport.football"));
        assert!(covers(">", "a"));
        assert!(covers("*.>", "a.b.c"));
        assert!(!covers("*.>", "a"));
    }

    #[test]
    fn a_pattern_covers_narrower_patterns() {
        for (wide, narrow) in [
            ("room.*", "room.*"),
            ("room.*", "room.a"),
            (">", ">"),
            (">", "*"),
            (">", "a.*.>"),
            ("a.>", "a.*"),
            ("a.>", "a.b.c"),
            ("a.>", "a.*.>"),
            ("a.>", "a.>"),
            ("*.*", "a.*"),
            ("*.>", "a.>"),
            ("*.>", "*.*"),
        ] {
            assert!(covers(wide, narrow), "{wide} should cover {narrow}");
        }
        for (pattern, wider) in [
            ("room.*", "room.>"),
            ("room.*", "*.a"),
            ("room.*", "*.*"),
            ("*", ">"),
            ("*.>", ">"),
            ("*.*", "*.>"),
            ("a.>", ">"),
            ("a.*.>", "a.>"),
            ("a.*", "a"),
        ] {
            assert!(!covers(pattern, wider), "{pattern} should not cover {wider}");
        }
    }

    #[test]
    fn a_topic_covers_only_itself() {
        let topic = Subscription::parse("room.a").unwrap();
        assert!(topic.covers(&topic));
        for other in ["room.b", "room", "room.*", ">"] {
            assert!(!topic.covers(&Subscription::parse(other).unwrap()), "{other}");
        }
    }

    /// Returns all topics of one to four levels named `a`, `b` or `c`. The subscriptions below have
    /// at most three levels named `a` or `b`. The topics therefore include a longer topic and an
    /// unused name for each subscription.
    fn all_topics() -> Vec<Topic<'static>> {
        let mut topics: Vec<String> = Vec::new();
        let mut longest = vec![String::new()];
        for _ in 0..4 {
            longest = longest
                .iter()
                .flat_map(|start| ["a", "b", "c"].map(|level| format!("{start}.{level}")))
                .collect();
            topics.extend(longest.iter().map(|topic| topic[1..].to_owned()));
        }
        topics.into_iter().map(|topic| Topic::parse(topic).unwrap()).collect()
    }

    fn subscription() -> impl Strategy<Value = Subscription<'static>> {
        "(([ab*]\\.){0,2}[ab*>])".prop_map(|text| Subscription::parse(text).unwrap())
    }

    /// Returns `true` if `pattern` matches `topic`, by the recursive definition of matching.
    fn reference_matches(pattern: &[&str], topic: &[&str]) -> bool {
        match (pattern, topic) {
            ([], []) => true,
            ([">"], [_, ..]) => true,
            (["*", pattern @ ..], [_, topic @ ..]) => reference_matches(pattern, topic),
            ([level, pattern @ ..], [name, topic @ ..]) if level == name => reference_matches(pattern, topic),
            _ => false,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn covers_is_matching_a_superset(wide in subscription(), narrow in subscription()) {
            let is_superset = all_topics().iter().all(|topic| wide.matches(topic) || !narrow.matches(topic));
            prop_assert_eq!(wide.covers(&narrow), is_superset, "{} and {}", wide, narrow);
        }

        #[test]
        fn matching_follows_its_definition(subscription in subscription()) {
            let levels: Vec<_> = subscription.as_str().split('.').collect();
            for topic in all_topics() {
                let expected = reference_matches(&levels, &topic.levels().collect::<Vec<_>>());
                prop_assert_eq!(subscription.matches(&topic), expected, "{} and {}", subscription, topic);
            }
        }

        #[test]
        fn parsed_text_follows_all_rules(text in "[a.*>$ é\u{2003}\u{1}]{0,8}|\\PC{0,8}") {
            if let Ok(subscription) = Subscription::parse(text.as_str()) {
                prop_assert_eq!(subscription.as_str(), &text);
                prop_assert!(!text.starts_with('$'));
                prop_assert!(!text.chars().any(|c| c.is_whitespace() || c.is_control()));
                let levels: Vec<_> = text.split('.').collect();
                prop_assert!(levels.iter().all(|level| !level.is_empty()));
                let wild = |level: &&str| *level == "*" || *level == ">";
                prop_assert!(levels.iter().filter(|l| !wild(l)).all(|l| !l.contains(['*', '>'])));
                prop_assert!(!levels.iter().rev().skip(1).any(|level| *level == ">"));
                let is_pattern = matches!(subscription, Subscription::Pattern(_));
                prop_assert_eq!(is_pattern, levels.iter().any(wild));
            }
        }
    }
}
