//! Topics, patterns and rules of a simulation.

use std::time::Duration;

use deeperhub_history::{BudgetLimits, Rules};

use crate::config::HistoryLimits;

/// Topics that clients use.
pub(super) const TOPICS: &[&str] =
    &["loss.a", "loss.b", "drop.a", "last.a", "tick.a", "tick.b", "shut.a", "plain.a", "loss.c"];

/// Patterns that clients subscribe to.
pub(super) const PATTERNS: &[&str] = &["loss.*", "*.a", "tick.>", ">"];

/// Rules that follow one another while the node runs.
pub(super) const RULE_SETS: &[&[&str]] = &[
    &[
        "loss.>: history=12 ttl=100s",
        "drop.>: history=9 delivery=drop_oldest keep=3",
        "last.>: history=5 delivery=latest ttl=3s",
        "tick.>: history=6 delivery=sample every=300ms ttl=60s",
        "shut.>: history=8 delivery=close",
    ],
    // Every delivery changes.
    &[
        "loss.>: history=5 delivery=latest",
        "drop.>: history=9 delivery=sample every=100ms",
        "last.>: history=8 ttl=20s",
        "tick.>: history=20",
        "shut.>: history=4 delivery=drop_oldest keep=2",
    ],
    // Topics lose their history.
    &["loss.a: history=0", "loss.>: history=2 max_streams=1", "plain.>: history=4 ttl=2s"],
    // Few streams, and unequal shares.
    &[
        "loss.>: history=12 max_streams=2 share=3",
        "tick.>: history=3 delivery=sample every=50ms history_bytes=600 max_streams=1",
        ">: history=7 history_bytes=1500",
    ],
];

/// Settings that a seed chooses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) seed: u64,
    pub(super) workers: u16,
    pub(super) max_queue_bytes: usize,
    bytes: u64,
    streams: u64,
    pub(super) forget: Duration,
}

impl Settings {
    pub(super) fn choose(seed: u64, random: &mut fastrand::Rng) -> Self {
        Self {
            seed,
            workers: random.u16(2..4),
            max_queue_bytes: [1600, 4000, 20_000][random.usize(..3)],
            bytes: [4000, 16_000, 1 << 20][random.usize(..3)],
            streams: [4, 100][random.usize(..2)],
            forget: Duration::from_secs([2, 3600][random.usize(..2)]),
        }
    }

    /// Chooses settings with which real clients can reach every topic, and read replies.
    pub(super) fn choose_for_real_clients(seed: u64, random: &mut fastrand::Rng) -> Self {
        let settings = Self::choose(seed, random);
        Self { max_queue_bytes: [4000, 8000, 20_000][random.usize(..3)], streams: 100, ..settings }
    }

    /// Returns the limits with a set of rules.
    pub(super) fn limits(&self, set: usize) -> HistoryLimits {
        let rules = RULE_SETS[set].iter().map(|rule| rule.parse().unwrap());
        let budget = BudgetLimits::default()
            .with_bytes(self.bytes)
            .with_streams(self.streams)
            .with_forget(self.forget);
        HistoryLimits { rules: Rules::new(rules).unwrap(), budget, ..HistoryLimits::default() }
    }
}
