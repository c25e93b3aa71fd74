//! Names of topics and nodes on a broker: NATS subjects and Redis channels.
//!
//! A topic's name follows the hub's prefix unchanged. A topic has no white space, no control
//! characters and no empty level, and `*` and `>` are only whole levels of patterns. These rules
//! are at least as strict as those for NATS subjects. Redis channels take any bytes. Only Redis'
//! glob characters are escaped, in patterns.

#[cfg(all(test, feature = "nats", feature = "redis"))]
use deeperhub_protocol::Subscription;

/// Maximum length of a prefix, in bytes.
pub(crate) const MAX_PREFIX_BYTES: usize = 64;

/// Returns `true` if the text is a valid prefix.
pub(crate) fn is_prefix(text: &str) -> bool {
    (1..=MAX_PREFIX_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// Builds the names of one hub on one broker.
#[cfg(any(feature = "nats", feature = "redis"))]
#[derive(Debug, Clone)]
pub(crate) struct Names {
    prefix: String,
    /// The broker's customary separator of levels.
    separator: char,
}

#[cfg(any(feature = "nats", feature = "redis"))]
impl Names {
    pub(crate) const fn new(prefix: String, separator: char) -> Self {
        Self { prefix, separator }
    }

    /// Returns the name that a topic is published to.
    pub(crate) fn topic(&self, topic: &str) -> String {
        format!("{}{1}t{1}{topic}", self.prefix, self.separator)
    }

    /// Returns the name that one node alone receives.
    pub(crate) fn node(&self, node: &str) -> String {
        format!("{}{1}n{1}{node}", self.prefix, self.separator)
    }

    /// Returns the name that every node receives.
    pub(crate) fn broadcast(&self) -> String {
        format!("{}{}a", self.prefix, self.separator)
    }

    /// Returns the Redis key of the list with a topic's messages. The braces make the keys of one
    /// topic share a slot. No key of a topic is that of another one, because only the list's key
    /// ends with a brace.
    #[cfg(feature = "redis")]
    pub(crate) fn stream(&self, topic: &str) -> String {
        format!("{{{}{1}h{1}{topic}}}", self.prefix, self.separator)
    }

    /// Returns a name that no node subscribes to.
    #[cfg(feature = "redis")]
    pub(crate) fn no_responders(&self) -> String {
        format!("{}{}x", self.prefix, self.separator)
    }

    /// Returns the beginning of the names of all topics' messages in Redis.
    #[cfg(feature = "redis")]
    pub(crate) fn stream_prefix(&self) -> String {
        format!("{}{1}h{1}", self.prefix, self.separator)
    }

    /// Returns the prefix of reply subjects.
    #[cfg(feature = "nats")]
    pub(crate) fn inbox(&self, node: &str) -> String {
        format!("{}{1}i{1}{node}", self.prefix, self.separator)
    }

    /// Returns the topic or pattern of a name; `None` for other names.
    #[cfg(all(test, feature = "nats", feature = "redis"))]
    fn to_topic<'n>(&self, name: &'n str) -> Option<Subscription<'n>> {
        let rest = name.strip_prefix(&self.prefix)?.strip_prefix(self.separator)?;
        Subscription::parse(rest.strip_prefix('t')?.strip_prefix(self.separator)?).ok()
    }

    /// Returns a Redis glob that matches at least the topics of a pattern. Redis' `*` does not stop
    /// at levels, so it may match more: received messages must be matched again.
    #[cfg(feature = "redis")]
    pub(crate) fn glob(&self, pattern: &str) -> String {
        let mut glob = self.topic("");
        for (index, level) in pattern.split('.').enumerate() {
            if index > 0 {
                glob.push('.');
            }
            match level {
                // This glob matches at least one character.
                "*" | ">" => glob.push_str("?*"),
                named => named.chars().for_each(|character| {
                    if matches!(character, '*' | '?' | '[' | ']' | '\\' | '^') {
                        glob.push('\\');
                    }
                    glob.push(character);
                }),
            }
        }
        glob
    }
}

#[cfg(all(test, feature = "nats", feature = "redis"))]
mod tests {
    use super::*;
    use deeperhub_protocol::{Topic, TopicPattern};
    use proptest::prelude::*;

    fn nats() -> Names {
        Names::new("hub".to_owned(), '.')
    }

    fn redis() -> Names {
        Names::new("hub".to_owned(), ':')
    }

    /// Returns `true` if the NATS documentation allows the subject: tokens are not empty and have
    /// no white space, and `*` and `>` stand alone.
    fn is_subject(text: &str, wildcards: bool) -> bool {
        let tokens: Vec<_> = text.split('.').collect();
        tokens.iter().enumerate().all(|(index, token)| {
            let is_wildcard = *token == "*" || (*token == ">" && index + 1 == tokens.len());
            !token.is_empty()
                && !token.contains([' ', '\t', '\r', '\n', '\0'])
                && (!token.contains(['*', '>']) || (wildcards && is_wildcard))
        })
    }

    /// Matches like Redis' globs (`stringmatchlen`), reduced to `?`, `*` and `\`.
    fn glob_matches(glob: &[u8], text: &[u8]) -> bool {
        match (glob.split_first(), text.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), _) => {
                glob_matches(rest, text)
                    || text.split_first().is_some_and(|(_, text)| glob_matches(glob, text))
            }
            (Some((b'?', rest)), Some((_, text))) => glob_matches(rest, text),
            (Some((b'\\', rest)), Some((byte, text))) => {
                rest.split_first().is_some_and(|(escaped, rest)| escaped == byte && glob_matches(rest, text))
            }
            (Some((own, rest)), Some((byte, text))) => own == byte && glob_matches(rest, text),
            _ => false,
        }
    }

    fn level() -> impl Strategy<Value = String> {
        "[^\\s\\p{Cc}.*>]{1,6}"
            .prop_filter("no white space", |text| !text.chars().any(|c| c.is_whitespace() || c.is_control()))
    }

    proptest! {
        #[test]
        fn a_topics_name_yields_the_topic_again(levels in proptest::collection::vec(level(), 1..6)) {
            let topic = levels.join(".");
            prop_assume!(Topic::parse(topic.as_str()).is_ok());
            prop_assert!(is_subject(&nats().topic(&topic), false));
            for names in [nats(), redis()] {
                let name = names.topic(&topic);
                prop_assert_eq!(names.to_topic(&name).map(|t| t.as_str().to_owned()), Some(topic.clone()));
            }
        }

        #[test]
        fn a_glob_matches_what_its_pattern_matches(
            levels in proptest::collection::vec((level(), any::<bool>()), 1..5), tail: bool,
        ) {
            let topic: Vec<_> = levels.iter().map(|(level, _)| level.as_str()).collect();
            let mut pattern: Vec<_> =
                levels.iter().map(|(level, star)| if *star { "*" } else { level }).collect();
            if tail {
                *pattern.last_mut().unwrap() = ">";
            }
            let (topic, pattern) = (topic.join("."), pattern.join("."));
            prop_assume!(Topic::parse(topic.as_str()).is_ok());
            if let Ok(parsed) = TopicPattern::parse(pattern.as_str()) {
                prop_assert!(parsed.matches(&Topic::parse(topic.as_str()).unwrap()));
                prop_assert!(is_subject(&nats().topic(&pattern), true));
                prop_assert!(glob_matches(redis().glob(&pattern).as_bytes(), redis().topic(&topic).as_bytes()));
            }
        }
    }

    #[test]
    fn names_do_not_collide() {
        for names in [nats(), redis()] {
            assert_eq!(names.to_topic(&names.broadcast()), None);
            assert_eq!(names.to_topic(&names.node("t")), None);
            assert_ne!(names.topic("a"), names.node("a"));
        }
        assert_eq!(redis().stream("a.b"), "{hub:h:a.b}");
        assert_eq!(nats().topic("a.>"), "hub.t.a.>");
        assert_eq!(redis().topic("a.b"), "hub:t:a.b");
        assert_eq!(redis().glob("a[b].*.c?"), "hub:t:a\\[b\\].?*.c\\?");
    }

    #[test]
    fn prefixes_are_plain() {
        for (text, expected) in
            [("deeperhub", true), ("a-B_9", true), ("", false), ("a.b", false), ("é", false)]
        {
            assert_eq!(is_prefix(text), expected, "{text}");
        }
    }
}
