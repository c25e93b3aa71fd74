//! Rules: which topics have a history, and which policy each of them has.

use crate::policy::{Policy, PolicySettings, RuleError};
use deeperhub_types::{Subscription, Topic};
use std::fmt;
use std::str::FromStr;

/// A policy for the topics that match a pattern.
///
/// The text form is `PATTERN: key=value …`. `Display` writes it, without settings that have their
/// default, and its text parses to the same rule.
///
/// | key | value | default |
/// |---|---|---|
/// | `history` | messages kept of each topic; 0 keeps none | 0 |
/// | `history_bytes` | bytes kept of each topic, such as `64KiB` | `4MiB` |
/// | `ttl` | maximum age of a message, from `1s` to `168h` | `10m` |
/// | `delivery` | how a subscriber that is behind moves: `lossless`, `drop_oldest`, `latest`, `sample` or `close` | `lossless` with a history, otherwise `close` |
/// | `keep` | messages that `drop_oldest` does not skip | 16, at most `history` |
/// | `every` | interval of `sample`, from `10ms` to `1h` | `500ms` |
/// | `ack` | when a publish is acknowledged: `memory` or `disk` | `memory` |
/// | `share` | weight among the rules for bytes and streams | 1 |
/// | `max_streams` | maximum number of topics with a stream | the rule's share of the budget |
///
/// ```
/// use deeperhub_history::Rule;
///
/// let rule: Rule = "chat.>: history=1000 ttl=600s delivery=drop_oldest keep=20".parse()?;
/// assert_eq!(rule.policy().history(), 1000);
/// assert_eq!(rule.to_string(), "chat.>: history=1000 delivery=drop_oldest keep=20");
///
/// let error = "chat.>: history=many".parse::<Rule>().unwrap_err();
/// assert_eq!(error.to_string(), "`history` is `many`; expected a whole number from 0 to 1000000");
/// # Ok::<(), deeperhub_history::RuleError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pattern: Subscription<'static>,
    policy: Policy,
}

impl Rule {
    /// Creates a rule.
    #[must_use]
    pub fn new(pattern: Subscription<'_>, policy: Policy) -> Self {
        Self { pattern: pattern.into_owned(), policy }
    }

    /// Returns the topic or pattern that topics must match.
    #[must_use]
    pub const fn pattern(&self) -> &Subscription<'static> {
        &self.pattern
    }

    /// Returns the policy of these topics.
    #[must_use]
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Parses the pattern of a rule.
    ///
    /// # Errors
    /// [`RuleError::Pattern`] if `text` is neither a topic nor a pattern.
    pub fn parse_pattern(text: &str) -> Result<Subscription<'static>, RuleError> {
        match Subscription::parse(text) {
            Ok(pattern) => Ok(pattern.into_owned()),
            Err(source) => Err(RuleError::Pattern { pattern: crate::policy::excerpt(text), source }),
        }
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        // A pattern has no white space, so its colon is the end of the first word.
        let mut words = text.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        let Some(pattern) = first.strip_suffix(':') else {
            return Err(RuleError::NoPattern { word: crate::policy::excerpt(first) });
        };
        let pattern = Self::parse_pattern(pattern)?;
        let mut settings = PolicySettings::default();
        for word in words {
            match word.split_once('=') {
                Some((key, value)) => settings.set(key, value)?,
                None => return Err(RuleError::NoValue { word: crate::policy::excerpt(word) }),
            }
        }
        Ok(Self { pattern, policy: settings.resolve()? })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.pattern, self.policy)
    }
}

/// Number of a rule in its [`Rules`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(u16);

impl RuleId {
    /// Returns the rule's place in the list, counted from 0.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    pub(crate) fn from_index(index: usize) -> Self {
        // `Rules::MAX` is far below the limit of the number.
        Self(u16::try_from(index).unwrap_or(u16::MAX))
    }
}

/// A list of rules. The first rule that matches a topic counts.
///
/// ```
/// use deeperhub_history::{Rules, Topic};
///
/// let rules = Rules::new([
///     "chat.staff: history=0".parse()?,
///     "chat.>: history=1000".parse()?,
/// ])?;
/// let history = |topic| rules.find(&topic).map(|id| rules[id].policy().history());
/// assert_eq!(history(Topic::parse("chat.staff")?), Some(0));
/// assert_eq!(history(Topic::parse("chat.42")?), Some(1000));
/// assert_eq!(history(Topic::parse("news")?), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules {
    rules: Vec<Rule>,
    /// For each rule, the length of the text before `>` if that is its pattern's only wildcard. Topics
    /// match if they start with that text.
    prefix_lens: Vec<Option<usize>>,
    /// For each first level that a rule names, the rules that can match a topic with it. A topic is
    /// compared with these rules alone. Sorted by length and text, because lengths compare faster.
    by_first_level: Vec<(Box<str>, Vec<u16>)>,
    /// Rules whose first level is a wildcard, for topics with other first levels.
    others: Vec<u16>,
}

impl Rules {
    /// Maximum number of rules.
    pub const MAX: usize = 64;

    /// Number of rules up to which all of them are compared with a topic. That takes less time than
    /// to find its first level.
    const FEW: usize = 4;

    /// Creates a list.
    ///
    /// # Errors
    /// [`RuleError::TooManyRules`] for more than [`Self::MAX`] rules.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Result<Self, RuleError> {
        let rules: Vec<_> = rules.into_iter().collect();
        if rules.len() > Self::MAX {
            return Err(RuleError::TooManyRules { rules: rules.len() });
        }
        let mut levels: Vec<Box<str>> = rules.iter().filter_map(named_first_level).map(Box::from).collect();
        levels.sort_unstable_by(|one, other| compare_levels(one, other));
        levels.dedup();
        let matching = |level: Option<&str>| -> Vec<u16> {
            let may_match = |rule| named_first_level(rule).is_none_or(|name| Some(name) == level);
            (0_u16..).zip(&rules).filter(|(_, rule)| may_match(rule)).map(|(index, _)| index).collect()
        };
        let others = matching(None);
        let by_first_level =
            levels.into_iter().map(|level| (level.clone(), matching(Some(&level)))).collect();
        let prefix_lens = rules.iter().map(prefix_len).collect();
        Ok(Self { rules, prefix_lens, by_first_level, others })
    }

    /// Returns the first rule that matches `topic`.
    #[must_use]
    pub fn find(&self, topic: &Topic<'_>) -> Option<RuleId> {
        let count = self.rules.len();
        if count <= Self::FEW {
            return (0..count).find(|&index| self.matches(index, topic)).map(RuleId::from_index);
        }
        let level = topic.levels().next().unwrap_or_default();
        let position = self.by_first_level.binary_search_by(|(name, _)| compare_levels(name, level));
        let candidates = match position {
            Ok(index) => &self.by_first_level[index].1,
            Err(_) => &self.others,
        };
        let matches = |index: &&u16| self.matches(usize::from(**index), topic);
        candidates.iter().find(matches).map(|&index| RuleId(index))
    }

    #[inline]
    fn matches(&self, index: usize, topic: &Topic<'_>) -> bool {
        let pattern = &self.rules[index].pattern;
        match self.prefix_lens[index] {
            Some(len) => {
                let (topic, pattern) = (topic.as_str().as_bytes(), pattern.as_str().as_bytes());
                topic.len() > len && topic[..len] == pattern[..len]
            }
            None => pattern.matches(topic),
        }
    }

    /// Returns the rules with their numbers.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (RuleId, &Rule)> {
        self.rules.iter().enumerate().map(|(index, rule)| (RuleId::from_index(index), rule))
    }

    /// Returns a rule, or `None` if the number is of another list.
    #[must_use]
    pub fn get(&self, id: RuleId) -> Option<&Rule> {
        self.rules.get(id.index())
    }

    /// Returns the number of rules.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Returns `true` if there are no rules.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// Returns `true` if a rule keeps messages.
    #[must_use]
    pub fn keep_history(&self) -> bool {
        self.rules.iter().any(|rule| rule.policy.keeps_history())
    }
}

/// # Panics
/// Panics if the number is of another, longer list.
impl std::ops::Index<RuleId> for Rules {
    type Output = Rule;

    fn index(&self, id: RuleId) -> &Rule {
        &self.rules[id.index()]
    }
}

fn compare_levels(one: &str, other: &str) -> std::cmp::Ordering {
    one.len().cmp(&other.len()).then_with(|| one.cmp(other))
}

/// Returns the length of the text before a final `>` that is the only wildcard of a rule's pattern.
fn prefix_len(rule: &Rule) -> Option<usize> {
    let prefix = rule.pattern.as_str().strip_suffix(".>")?;
    // No pattern matches a reserved topic.
    let is_plain = !prefix.starts_with('$') && prefix.split('.').all(|level| level != "*");
    is_plain.then_some(prefix.len() + 1)
}

/// Returns the first level of a rule's pattern, or `None` if it is a wildcard.
fn named_first_level(rule: &Rule) -> Option<&str> {
    let level = rule.pattern.as_str().split('.').next().unwrap_or_default();
    (level != "*" && level != ">").then_some(level)
}

#[cfg(test)]
mod tests;
