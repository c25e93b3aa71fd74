//! How topics and nodes are called on a broker.
//!
//! A topic's name goes over unchanged behind the hub's prefix: the rules for topics (no white space, no control
//! characters, no empty level, `*` and `>` only as whole levels of patterns) are at least as strict as those for
//! subjects of NATS, and channels of Redis take any bytes. Only Redis' glob characters need an escape, in patterns.

#[cfg(test)]
use deeperhub_protocol::Subscription;

/// The longest prefix, in bytes.
pub(crate) const MAX_PREFIX_BYTES: usize = 64;

/// Whether a text can be the prefix that keeps hubs apart.
pub(crate) fn is_prefix(text: &str) -> bool {
    (1..=MAX_PREFIX_BYTES).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// Names on one broker for one hub.
#[derive(Debug, Clone)]
pub(crate) struct Names {
    prefix: String,
    /// Between the parts: what separates levels by custom on the broker.
    separator: char,
}

impl Names {
    pub(crate) const fn new(prefix: String, separator: char) -> Self {
        Self { prefix, separator }
    }

    /// Where a topic is published.
    pub(crate) fn topic(&self, topic: &str) -> String {
        format!("{}{1}t{1}{topic}", self.prefix, self.separator)
    }

    /// What one node alone gets.
    pub(crate) fn node(&self, node: &str) -> String {
        format!("{}{1}n{1}{node}", self.prefix, self.separator)
    }

    /// What every node gets.
    pub(crate) fn broadcast(&self) -> String {
        format!("{}{}a", self.prefix, self.separator)
    }

    /// Where nobody listens: a question that is sent there comes back at once.
    #[cfg_attr(not(feature = "nats"), expect(dead_code, reason = "only NATS says that nobody listens"))]
    pub(crate) fn no_responders(&self) -> String {
        format!("{}{}x", self.prefix, self.separator)
    }

    /// Below which answers of the broker itself are to come.
    #[cfg_attr(not(feature = "nats"), expect(dead_code, reason = "only NATS needs it"))]
    pub(crate) fn inbox(&self, node: &str) -> String {
        format!("{}{1}i{1}{node}", self.prefix, self.separator)
    }

    /// The topic or pattern that a name stands for; `None` for other names.
    #[cfg(test)]
    fn to_topic<'n>(&self, name: &'n str) -> Option<Subscription<'n>> {
        let rest = name.strip_prefix(&self.prefix)?.strip_prefix(self.separator)?;
        Subscription::parse(rest.strip_prefix('t')?.strip_prefix(self.separator)?).ok()
    }

    /// The glob of Redis that matches at least the topics of a pattern. It may match more, as `*` does not stop at
    /// levels there: what comes through it must be matched again.
    #[cfg_attr(not(feature = "redis"), expect(dead_code, reason = "only Redis has globs"))]
    pub(crate) fn glob(&self, pattern: &str) -> String {
        let mut glob = self.topic("");
        for (index, level) in pattern.split('.').enumerate() {
            if index > 0 {
                glob.push('.');
            }
            match level {
                // At least one character.
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

#[cfg(test)]
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

    /// What the NATS documentation allows: tokens that are not empty, without white space, and `*` and `>` only alone.
    fn is_subject(text: &str, wildcards: bool) -> bool {
        let tokens: Vec<_> = text.split('.').collect();
        tokens.iter().enumerate().all(|(index, token)| {
            let is_wildcard = *token == "*" || (*token == ">" && index + 1 == tokens.len());
            !token.is_empty()
                && !token.contains([' ', '\t', '\r', '\n', '\0'])
                && (!token.contains(['*', '>']) || (wildcards && is_wildcard))
        })
    }

    /// Redis' glob match (`stringmatchlen`) for what we use of it: `?`, `*` and `\`.
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
        fn every_topic_has_a_name_that_leads_back(levels in proptest::collection::vec(level(), 1..6)) {
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
    fn names_do_not_meet() {
        for names in [nats(), redis()] {
            assert_eq!(names.to_topic(&names.broadcast()), None);
            assert_eq!(names.to_topic(&names.node("t")), None);
            assert_ne!(names.topic("a"), names.node("a"));
        }
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
