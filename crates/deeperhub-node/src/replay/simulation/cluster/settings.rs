//! Topics, rules and settings of a simulated cluster.

use std::sync::LazyLock;
use std::time::Duration;

use deeperhub_history::{BudgetLimits, Policy, Rule, Rules};
use deeperhub_protocol::Topic;

use super::super::topics::TOPICS;
use crate::config::HistoryLimits;

/// Rules that follow one another while a node runs.
const RULE_SETS: &[&[&str]] = &[
    &[
        "loss.>: history=12 ttl=100s",
        "drop.>: history=9 delivery=drop_oldest keep=3",
        "last.>: history=5 delivery=latest ttl=30s",
        "tick.>: history=6 delivery=sample every=300ms ttl=60s",
        "shut.>: history=8 delivery=close",
    ],
    // The longest histories.
    &[
        "loss.>: history=30 ttl=200s",
        "drop.>: history=9 delivery=drop_oldest keep=3",
        "last.>: history=5 delivery=latest ttl=30s",
        "tick.>: history=6 delivery=sample every=300ms ttl=60s",
        "shut.>: history=8 delivery=close",
    ],
    // A topic loses its history.
    &["loss.b: history=0", "loss.>: history=12 ttl=100s", "drop.>: history=9", "last.>: history=5"],
];

static RULES: LazyLock<Vec<Rules>> = LazyLock::new(|| {
    let rules = |set: &&[&str]| Rules::new(set.iter().map(|rule| rule.parse().unwrap())).unwrap();
    RULE_SETS.iter().map(rules).collect()
});

/// Topics whose subscribers get each message, or are told that it is missing.
pub(super) fn is_lossless(topic: usize) -> bool {
    TOPICS[topic].starts_with("loss.")
}

/// Settings that a seed chooses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) seed: u64,
    pub(super) nodes: usize,
    pub(super) workers: u16,
    pub(super) max_queue_bytes: usize,
    /// The store has one sequence for all topics.
    pub(super) is_sparse: bool,
    /// Messages in an answer of the store at most.
    pub(super) max_read: usize,
    /// How far the wall clocks of the nodes are ahead.
    pub(super) skews_ms: [i64; 3],
    bytes: u64,
    forget: Duration,
}

impl Settings {
    pub(super) fn choose(seed: u64, random: &mut fastrand::Rng) -> Self {
        Self {
            seed,
            nodes: random.usize(2..4),
            workers: random.u16(1..3),
            max_queue_bytes: [4000, 8000, 20_000][random.usize(..3)],
            is_sparse: random.u8(..3) == 0,
            max_read: [2, 5, 1000][random.usize(..3)],
            skews_ms: [0, 0, 0].map(|_: i64| random.i64(-1500..1500)),
            bytes: [6000, 1 << 20, 1 << 20][random.usize(..3)],
            forget: Duration::from_secs([5, 3600][random.usize(..2)]),
        }
    }

    /// Returns the shortest time for which a node keeps the messages of a topic, by any of its rules
    /// with a history.
    pub(super) fn min_ttl(topic: &Topic<'_>) -> Duration {
        let ttl = |rules: &Rules| {
            let policy = rules.find(topic).and_then(|id| rules.get(id)).map(Rule::policy);
            policy.filter(|policy| policy.history() > 0).map(Policy::ttl)
        };
        RULES.iter().filter_map(ttl).min().unwrap_or_default()
    }

    /// Returns the limits with a set of rules.
    pub(super) fn limits(&self, set: usize) -> HistoryLimits {
        let budget =
            BudgetLimits::default().with_bytes(self.bytes).with_streams(100).with_forget(self.forget);
        HistoryLimits { rules: RULES[set].clone(), budget, ..HistoryLimits::default() }
    }
}
