//! Rules: which topics have streams in the store.

use std::sync::{Arc, Mutex, PoisonError};

use deeperhub_protocol::Subscription;
#[cfg(feature = "nats")]
use deeperhub_protocol::Topic;

use super::StreamLimits;
use crate::broker::Broker;

/// A rule of the hub. The first rule whose pattern matches a topic counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamRule {
    /// The topics.
    pub pattern: Subscription<'static>,
    /// Limits of their streams. `None` if the rule keeps nothing.
    pub limits: Option<StreamLimits>,
}

/// The present rules of a hub.
#[derive(Debug, Default)]
pub(crate) struct StreamRules(Mutex<Arc<[StreamRule]>>);

#[cfg(feature = "nats")]
impl StreamRules {
    pub(crate) fn get(&self) -> Arc<[StreamRule]> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Name of the rule of reserved topics, and its limits. Nodes probe the store with such topics, and
/// no pattern matches them.
#[cfg(feature = "nats")]
const RESERVED: KeepingRule<'static> = KeepingRule {
    name: "$",
    limits: StreamLimits {
        messages: 1,
        ttl: std::time::Duration::from_secs(60),
        forget: std::time::Duration::ZERO,
    },
};

/// A rule that keeps messages.
#[cfg(feature = "nats")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KeepingRule<'r> {
    /// The pattern; other text for reserved topics.
    pub(crate) name: &'r str,
    pub(crate) limits: StreamLimits,
}

#[cfg(feature = "nats")]
impl StreamRule {
    pub(crate) fn keeping(&self) -> Option<KeepingRule<'_>> {
        Some(KeepingRule { name: self.pattern.as_str(), limits: self.limits? })
    }
}

/// Returns the rule of a topic, if it keeps messages.
#[cfg(feature = "nats")]
pub(crate) fn find_rule<'r>(rules: &'r [StreamRule], topic: &str) -> Option<KeepingRule<'r>> {
    if topic.starts_with('$') {
        return Some(RESERVED);
    }
    let topic = Topic::parse(topic).ok()?;
    rules.iter().find(|rule| rule.pattern.matches(&topic))?.keeping()
}

impl Broker {
    /// Sets the rules of the hub, in their order. JetStream keeps one stream for each of them. Redis
    /// does not need them.
    pub fn set_stream_rules(&self, rules: impl IntoIterator<Item = StreamRule>) {
        let rules = rules.into_iter().collect();
        *self.0.stream_rules.0.lock().unwrap_or_else(PoisonError::into_inner) = rules;
    }
}

#[cfg(all(test, feature = "nats"))]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_first_rule_counts_even_if_it_keeps_nothing() {
        let limits = StreamLimits { messages: 1, ttl: Duration::from_secs(1), forget: Duration::ZERO };
        let rule = |pattern: &str, limits| StreamRule {
            pattern: Subscription::parse(pattern.to_owned()).unwrap(),
            limits,
        };
        let rules = [rule("a.b", None), rule("a.>", Some(limits)), rule(">", Some(limits))];
        let found = |topic: &str| {
            let rule = find_rule(&rules, topic);
            rule.map(|rule| rule.name.to_owned())
        };
        assert_eq!(found("a.b"), None);
        assert_eq!(found("a.c").as_deref(), Some("a.>"));
        assert_eq!(found("b").as_deref(), Some(">"));
        // Nodes probe the store with reserved topics.
        let reserved = find_rule(&rules, "$a.c").unwrap();
        assert_eq!((reserved.name, reserved.limits.messages), ("$", 1));
    }
}
