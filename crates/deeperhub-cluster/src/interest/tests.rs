use std::collections::BTreeSet;

use super::placement::*;
use super::*;
use crate::cover::is_pattern;
use deeperhub_protocol::{Topic, TopicPattern};
use proptest::prelude::*;

/// Fake broker that applies each change, with a clock.
struct FakeBroker {
    interests: Interests,
    names: BTreeSet<String>,
    wildcards: Wildcards,
    now: Instant,
    changes: usize,
}

impl FakeBroker {
    fn new(wildcards: Wildcards) -> Self {
        let (interests, names) = (Interests::new(wildcards, 1000), BTreeSet::new());
        Self { interests, names, wildcards, now: Instant::now(), changes: 0 }
    }

    fn gain(&self, names: &[&str]) {
        names.iter().for_each(|name| self.interests.add(&Arc::from(*name)));
    }

    fn lose(&self, names: &[&str]) {
        names.iter().for_each(|name| self.interests.remove(&Arc::from(*name), self.now));
    }

    fn wanted(&self) -> Vec<Arc<str>> {
        let inner = self.interests.lock();
        inner.names.iter().filter(|(_, entry)| entry.is_wanted).map(|(name, _)| Arc::clone(name)).collect()
    }

    fn brings(&self, name: &str) -> bool {
        let mut patterns = Patterns::new(self.wildcards);
        for broker in self.names.iter().filter(|broker| is_pattern(broker)) {
            patterns.insert(&Arc::from(broker.as_str()));
        }
        self.names.contains(name) || patterns.find_cover(name).is_some()
    }

    /// Applies all changes that are due now.
    fn apply(&mut self) {
        loop {
            let changes = self.interests.take(self.now);
            self.changes += changes.subscribe.len() + changes.unsubscribe.len();
            let brought: Vec<_> = self.wanted().into_iter().filter(|name| self.brings(name)).collect();
            for name in changes.subscribe {
                assert!(self.names.insert(name.to_string()), "{name} is followed twice");
            }
            for name in changes.unsubscribe {
                assert!(self.names.remove(&*name), "{name} is left twice");
            }
            for name in brought {
                assert!(self.brings(&name), "{name} is missed: {:?}", self.names);
            }
            if !changes.has_more {
                break;
            }
        }
        for name in self.wanted() {
            assert!(self.brings(&name), "{name} is not brought: {:?}", self.names);
        }
        assert_eq!(self.interests.len(), self.names.len());
    }

    /// Advances the clock until there is nothing left to do.
    fn settle(&mut self) {
        for _ in 0..4 {
            self.now += LINGER_TIME.max(SWEEP_DELAY);
            self.apply();
        }
        for name in self.names.iter().filter(|name| is_pattern(name)) {
            let others: Vec<_> = self.names.iter().filter(|other| *other != name).collect();
            let mut patterns = Patterns::new(self.wildcards);
            others.iter().filter(|other| is_pattern(other)).for_each(|other| {
                patterns.insert(&Arc::from(other.as_str()));
            });
            assert_eq!(patterns.find_cover(name), None, "{name} is covered: {:?}", self.names);
        }
    }

    fn broker(&self) -> Vec<&str> {
        self.names.iter().map(String::as_str).collect()
    }
}

#[test]
fn the_first_subscriber_subscribes_and_the_last_one_lingers() {
    let mut broker = FakeBroker::new(Wildcards::Levels);
    broker.gain(&["a"]);
    broker.apply();
    assert_eq!(broker.broker(), ["a"]);
    broker.lose(&["a"]);
    assert_eq!(broker.interests.next_due(), Some(broker.now + LINGER_TIME));
    broker.apply();
    assert_eq!(broker.broker(), ["a"]);
    broker.now += LINGER_TIME;
    broker.apply();
    assert!(broker.names.is_empty());
    assert_eq!((broker.interests.bytes(), broker.interests.next_due()), (0, None));
}

#[test]
fn a_subscriber_that_returns_in_time_changes_nothing_and_lingers_anew() {
    let mut broker = FakeBroker::new(Wildcards::Levels);
    broker.gain(&["a"]);
    broker.apply();
    broker.lose(&["a"]);
    broker.now += LINGER_TIME / 2;
    broker.gain(&["a"]);
    broker.lose(&["a"]);
    broker.now += LINGER_TIME * 3 / 4;
    broker.apply();
    assert_eq!((broker.broker(), broker.changes), (vec!["a"], 1));
    broker.now += LINGER_TIME / 4;
    broker.apply();
    assert!(broker.names.is_empty());
}

#[test]
fn names_without_a_subscriber_are_not_subscribed_to() {
    let mut broker = FakeBroker::new(Wildcards::Levels);
    broker.gain(&["a"]);
    broker.lose(&["a"]);
    // The name ends before it is placed.
    broker.now += LINGER_TIME;
    broker.apply();
    broker.settle();
    assert_eq!((broker.changes, broker.interests.bytes()), (0, 0));
    // The same applies with more names than one change holds: when all lose their subscribers,
    // half of them are not placed yet.
    let names: Vec<_> = (0..MAX_CHANGES * 2).map(|name| format!("a{name}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    broker.gain(&names);
    let first = broker.interests.take(broker.now);
    assert_eq!((first.subscribe.len(), first.has_more), (MAX_CHANGES, true));
    broker.names.extend(first.subscribe.iter().map(ToString::to_string));
    broker.lose(&names);
    broker.settle();
    assert_eq!((broker.names.len(), broker.interests.bytes()), (0, 0));
}

#[test]
fn lingering_names_are_bounded() {
    let mut broker = FakeBroker::new(Wildcards::Levels);
    let fits = MAX_LINGERING_BYTES / cost("a000000");
    for number in 0..fits + 5000 {
        let name = format!("a{number:06}");
        broker.gain(&[&name]);
        broker.lose(&[&name]);
    }
    loop {
        let changes = broker.interests.take(broker.now);
        if !changes.has_more {
            break;
        }
    }
    let inner = broker.interests.lock();
    assert!(inner.lingering_bytes <= MAX_LINGERING_BYTES && inner.lingering.len() <= fits);
    assert!(inner.names.len() <= fits, "{} names of {fits} that fit", inner.names.len());
    assert!(inner.lingering_bytes > MAX_LINGERING_BYTES / 2);
    drop(inner);
    broker.settle();
    assert_eq!(broker.interests.bytes(), 0);
}

#[test]
fn only_the_broadest_pattern_is_subscribed_to() {
    for wildcards in [Wildcards::Levels, Wildcards::Globs] {
        let mut broker = FakeBroker::new(wildcards);
        broker.gain(&["a.b.c", "a.b.*", "a.>", "x"]);
        broker.apply();
        broker.settle();
        assert_eq!(broker.broker(), ["a.>", "x"]);
        // Covered names that are gained later cause no change at the broker.
        let changes = broker.changes;
        broker.gain(&["a.b.d", "a.*.d"]);
        broker.apply();
        assert_eq!(broker.changes, changes);
        // When the broad pattern is lost, the names that it covered are subscribed to before it is
        // unsubscribed.
        broker.lose(&["a.>"]);
        broker.settle();
        assert_eq!(broker.broker(), ["a.*.d", "a.b.*", "x"]);
        broker.lose(&["a.b.c", "a.b.*", "a.b.d", "a.*.d", "x"]);
        broker.settle();
        assert_eq!((broker.names.len(), broker.interests.bytes()), (0, 0));
    }
}

#[test]
fn a_broad_pattern_that_comes_and_goes_leaves_the_others_as_they_are() {
    let mut broker = FakeBroker::new(Wildcards::Levels);
    broker.gain(&["a", "b"]);
    broker.apply();
    broker.gain(&[">"]);
    broker.apply();
    broker.lose(&[">"]);
    broker.gain(&[">"]);
    broker.apply();
    assert_eq!((broker.broker(), broker.changes), (vec![">", "a", "b"], 3));
}

#[test]
fn many_patterns_that_match_one_topic_become_one() {
    let mut broker = FakeBroker::new(Wildcards::Levels);
    // The patterns have six levels after `a`, three of them named. All twenty patterns match
    // `a.x.x.x.x.x.x`, and none covers another.
    let patterns: Vec<String> = (0_u32..64)
        .filter(|bits| bits.count_ones() == 3)
        .map(|bits| {
            let level = |level: u32| if bits & (1 << level) == 0 { "*" } else { "x" };
            format!("a.{}", (0..6).map(level).collect::<Vec<_>>().join("."))
        })
        .collect();
    let names: Vec<_> = patterns.iter().map(String::as_str).collect();
    broker.gain(&names);
    broker.apply();
    broker.settle();
    assert!(broker.names.len() <= MAX_COPIES, "{:?}", broker.names);
    // When few patterns remain, each has its own subscription again.
    broker.lose(&names[2..]);
    broker.settle();
    let mut left = names[..2].to_vec();
    left.sort_unstable();
    assert_eq!(broker.broker(), left);
    broker.lose(&names[..2]);
    broker.settle();
    assert_eq!((broker.names.len(), broker.interests.bytes()), (0, 0));
}

#[test]
fn a_pattern_of_very_many_levels_is_shortened() {
    let mut broker = FakeBroker::new(Wildcards::Levels);
    let deep = vec!["*"; 100].join(".");
    broker.gain(&[&deep]);
    broker.settle();
    assert_eq!(broker.names.len(), 1);
    assert!(!broker.names.contains(&deep));
    broker.lose(&[&deep]);
    broker.settle();
    assert_eq!((broker.names.len(), broker.interests.bytes()), (0, 0));
}

#[test]
fn a_new_connection_gets_all_wanted_names() {
    let mut broker = FakeBroker::new(Wildcards::Levels);
    broker.gain(&["a", "b.c", "b.*", "d"]);
    broker.settle();
    broker.lose(&["a"]);
    broker.interests.reset();
    broker.names.clear();
    broker.apply();
    // Covered names are not subscribed to.
    assert_eq!(broker.broker(), ["b.*", "d"]);
    broker.gain(&["a"]);
    broker.settle();
    assert_eq!(broker.broker(), ["a", "b.*", "d"]);
}

fn some_name() -> impl Strategy<Value = String> {
    let level = prop_oneof![3 => Just("a"), 2 => Just("b"), 3 => Just("*")];
    (proptest::collection::vec(level, 1..5), proptest::bool::weighted(0.2)).prop_map(|(mut levels, tail)| {
        if tail && let Some(last) = levels.last_mut() {
            *last = ">";
        }
        levels.join(".")
    })
}

proptest! {
    #[test]
    fn no_message_is_missed_copies_are_few_and_all_names_end(
        steps in proptest::collection::vec((some_name(), any::<bool>(), 0_u64..1500), 1..120), globs: bool,
    ) {
        let wildcards = if globs { Wildcards::Globs } else { Wildcards::Levels };
        let mut broker = FakeBroker::new(wildcards);
        for (name, is_gained, millis) in &steps {
            if *is_gained {
                broker.gain(&[name]);
            } else {
                broker.lose(&[name]);
            }
            broker.now += Duration::from_millis(*millis);
            if millis % 3 > 0 {
                broker.apply();
            }
        }
        broker.settle();
        for bits in 0_u32..16 {
            let level = |level: u32| if bits & (1 << level) == 0 { "a" } else { "b" };
            for levels in 1..5 {
                let topic = (0..levels).map(level).collect::<Vec<_>>().join(".");
                let parsed = Topic::parse(topic.as_str()).unwrap();
                let copies = broker.names.iter().filter(|name| match TopicPattern::parse(name.as_str()) {
                    Ok(pattern) => pattern.matches(&parsed),
                    Err(_) => **name == topic,
                });
                prop_assert!(copies.count() <= MAX_COPIES, "{topic}: {:?}", broker.names);
            }
        }
        let all: Vec<_> = broker.wanted().iter().map(ToString::to_string).collect();
        broker.lose(&all.iter().map(String::as_str).collect::<Vec<_>>());
        broker.settle();
        prop_assert_eq!((broker.names.len(), broker.interests.bytes()), (0, 0));
    }
}
