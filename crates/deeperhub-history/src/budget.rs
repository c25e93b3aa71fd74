//! The budget of all streams: bytes and numbers of streams, with a share for each rule.

use crate::rules::{RuleId, Rules};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Limits for all streams together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BudgetLimits {
    /// Maximum bytes of all kept messages. Default 256 MiB.
    pub bytes: u64,
    /// Maximum number of streams. Default 1,000,000.
    pub streams: u64,
    /// Time for which a stream without messages and subscribers is kept, so that positions in it
    /// stay good. Counted in whole seconds. Default one hour.
    pub forget: Duration,
    /// Bytes that are charged for each message besides its own bytes and its place in the ring, such
    /// as its reference counts and what the allocator adds. Only [`Self::bytes`] counts them, not
    /// the bounds of a stream. Default 0.
    pub message_overhead: u32,
}

impl Default for BudgetLimits {
    fn default() -> Self {
        Self { bytes: 256 << 20, streams: 1_000_000, forget: Duration::from_secs(3600), message_overhead: 0 }
    }
}

impl BudgetLimits {
    /// Sets [`Self::bytes`].
    #[must_use]
    pub const fn with_bytes(mut self, bytes: u64) -> Self {
        self.bytes = bytes;
        self
    }

    /// Sets [`Self::streams`].
    #[must_use]
    pub const fn with_streams(mut self, streams: u64) -> Self {
        self.streams = streams;
        self
    }

    /// Sets [`Self::forget`].
    #[must_use]
    pub const fn with_forget(mut self, forget: Duration) -> Self {
        self.forget = forget;
        self
    }

    /// Sets [`Self::message_overhead`].
    #[must_use]
    pub const fn with_message_overhead(mut self, bytes: u32) -> Self {
        self.message_overhead = bytes;
        self
    }
}

/// Usage of one rule's streams, and their reserved share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleUsage {
    /// Bytes of the kept messages.
    pub bytes: u64,
    /// Bytes below which no other rule evicts this rule's messages.
    pub share_bytes: u64,
    /// Number of streams.
    pub streams: u64,
    /// Maximum number of streams.
    pub max_streams: u64,
}

/// The rules, and what their streams use of the limits. All [`StreamTable`](crate::StreamTable)s
/// share one budget through an `Arc`.
///
/// Rules share the bytes by weight. A rule may use what others leave free. If all bytes are used,
/// the oldest messages of rules above their share are evicted, so no rule takes another's share.
///
/// A message is charged its bytes, its place in the ring and
/// [`message_overhead`](BudgetLimits::message_overhead). A sixteenth of the bytes belongs to no
/// rule. It absorbs what rules are above their shares by less than a message, since nobody else may
/// evict that message.
#[derive(Debug)]
pub struct Budget {
    rules: Rules,
    usage: Box<[Usage]>,
    limit_bytes: AtomicU64,
    max_streams: u64,
    forget_seconds: u32,
    message_overhead: u32,
    total_bytes: AtomicU64,
    total_streams: AtomicU64,
}

/// Part of the bytes that belongs to no rule: one in this number.
const UNSHARED: u64 = 16;

/// Usage of one rule, on a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Usage {
    /// 0 for a rule that keeps nothing.
    weight: u64,
    max_streams: u64,
    /// The rule's part of the limit, which evictions compare with `bytes`.
    share_bytes: AtomicU64,
    bytes: AtomicU64,
    streams: AtomicU64,
}

impl Budget {
    /// Creates a budget that is not used yet.
    #[must_use]
    pub fn new(rules: Rules, limits: BudgetLimits) -> Self {
        let keeping = || rules.iter().map(|(_, rule)| rule.policy()).filter(|policy| policy.keeps_history());
        // Rules without a `max_streams` share what the others leave free.
        let named = keeping().filter_map(|policy| policy.max_streams()).map(u64::from).sum();
        let unnamed_weights: u64 = keeping()
            .filter(|policy| policy.max_streams().is_none())
            .map(|policy| u64::from(policy.share()))
            .sum();
        let free = limits.streams.saturating_sub(named);
        let usage = rules.iter().map(|(_, rule)| {
            let policy = rule.policy();
            let weight = if policy.keeps_history() { u64::from(policy.share()) } else { 0 };
            let max_streams = match policy.max_streams() {
                Some(streams) => u64::from(streams).min(limits.streams),
                None => portion(free, weight, unnamed_weights.max(1)).max(1),
            };
            let [share_bytes, bytes, streams] = [const { AtomicU64::new(0) }; 3];
            Usage { weight, max_streams, share_bytes, bytes, streams }
        });
        let budget = Self {
            usage: usage.collect(),
            limit_bytes: AtomicU64::new(0),
            max_streams: limits.streams,
            forget_seconds: u32::try_from(limits.forget.as_secs()).unwrap_or(u32::MAX),
            message_overhead: limits.message_overhead,
            total_bytes: AtomicU64::new(0),
            total_streams: AtomicU64::new(0),
            rules,
        };
        budget.set_limit_bytes(limits.bytes);
        budget
    }

    /// Returns the rules.
    #[must_use]
    pub const fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Returns the bytes of all kept messages.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.total_bytes.load(Ordering::Relaxed)
    }

    /// Returns the number of streams.
    #[must_use]
    pub fn streams(&self) -> u64 {
        self.total_streams.load(Ordering::Relaxed)
    }

    /// Returns the maximum bytes of all kept messages.
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.limit_bytes.load(Ordering::Relaxed)
    }

    /// Changes the maximum bytes of all kept messages, for example while memory is short. Appends
    /// and sweeps then evict down to it.
    pub fn set_limit_bytes(&self, bytes: u64) {
        let weights = self.usage.iter().map(|usage| usage.weight).sum::<u64>().max(1);
        for usage in &self.usage {
            let share = portion(bytes - bytes / UNSHARED, usage.weight, weights);
            usage.share_bytes.store(share, Ordering::Relaxed);
        }
        self.limit_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Returns the bytes over the limit, or 0.
    #[must_use]
    pub fn excess(&self) -> u64 {
        self.bytes().saturating_sub(self.limit_bytes())
    }

    /// Returns `true` if the limit holds after so many bytes were added and others left.
    #[inline]
    pub(crate) fn has_room_for(&self, added: u64, freed: u64) -> bool {
        self.bytes().saturating_add(added) <= self.limit_bytes().saturating_add(freed)
    }

    /// Returns what a rule's streams use; `None` if there is no such rule.
    #[must_use]
    pub fn usage(&self, rule: RuleId) -> Option<RuleUsage> {
        let usage = self.usage.get(rule.index())?;
        Some(RuleUsage {
            bytes: usage.bytes.load(Ordering::Relaxed),
            share_bytes: usage.share_bytes.load(Ordering::Relaxed),
            streams: usage.streams.load(Ordering::Relaxed),
            max_streams: usage.max_streams,
        })
    }

    /// Returns the number of streams that are too many if a rule gets so many `more`. It can be over
    /// its maximum already, because the maximum has fallen.
    #[must_use]
    pub fn excess_streams(&self, rule: RuleId, more: u64) -> u64 {
        let Some(usage) = self.usage.get(rule.index()) else { return 0 };
        let over = |streams: &AtomicU64, max: u64| {
            streams.load(Ordering::Relaxed).saturating_add(more).saturating_sub(max)
        };
        over(&usage.streams, usage.max_streams).max(over(&self.total_streams, self.max_streams))
    }

    /// Returns the time in seconds after which a stream without messages and subscribers is removed.
    pub(crate) const fn forget_seconds(&self) -> u32 {
        self.forget_seconds
    }

    pub(crate) const fn message_overhead(&self) -> u32 {
        self.message_overhead
    }

    /// Counts bytes that were added to a rule's streams, and bytes that left them.
    #[inline]
    pub(crate) fn adjust(&self, rule: RuleId, added: u64, freed: u64) {
        let Some(usage) = self.usage.get(rule.index()) else { return };
        // A ring of steady length adds what it frees, and then touches no shared counter.
        if added != freed {
            // Wrapping subtraction: each counter always contains at least what leaves it.
            let change = added.wrapping_sub(freed);
            usage.bytes.fetch_add(change, Ordering::Relaxed);
            self.total_bytes.fetch_add(change, Ordering::Relaxed);
        }
    }

    /// Returns `true` if a rule uses more than its share.
    pub(crate) fn is_over_share(&self, rule: RuleId) -> bool {
        self.usage(rule).is_some_and(|usage| usage.bytes > usage.share_bytes)
    }

    /// Takes `charge` bytes from a rule that uses more than its share. If `is_own` is `false`,
    /// another rule needs them, and the rule must keep its whole share. Returns `false` if nothing
    /// was taken.
    pub(crate) fn try_take(&self, rule: RuleId, charge: u64, is_own: bool) -> bool {
        let Some(usage) = self.usage.get(rule.index()) else { return false };
        let share = usage.share_bytes.load(Ordering::Relaxed);
        // The exchange makes the check hold even if other threads evict messages of this rule.
        let taken = usage.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |bytes| {
            let left = bytes.checked_sub(charge)?;
            let may_take = if is_own { bytes > share } else { left >= share };
            may_take.then_some(left)
        });
        if taken.is_ok() {
            self.total_bytes.fetch_sub(charge, Ordering::Relaxed);
        }
        taken.is_ok()
    }

    /// Returns `true` if [`Self::try_take`] would take the bytes now.
    pub(crate) fn may_take(&self, rule: RuleId, charge: u64, is_own: bool) -> bool {
        self.usage(rule).is_some_and(|usage| {
            if is_own {
                usage.bytes > usage.share_bytes
            } else {
                usage.bytes.saturating_sub(charge) >= usage.share_bytes
            }
        })
    }

    /// Counts a new stream of a rule. Returns `false` if the rule, or the budget, has no room.
    pub(crate) fn try_add_stream(&self, rule: RuleId) -> bool {
        let Some(usage) = self.usage.get(rule.index()) else { return false };
        let add_below = |counter: &AtomicU64, max: u64| {
            let add = |streams| (streams < max).then_some(streams + 1);
            counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
        };
        if !add_below(&usage.streams, usage.max_streams) {
            return false;
        }
        let has_room = add_below(&self.total_streams, self.max_streams);
        if !has_room {
            usage.streams.fetch_sub(1, Ordering::Relaxed);
        }
        has_room
    }

    /// Counts a stream of a rule that exists already, even if there is no room.
    pub(crate) fn add_stream(&self, rule: RuleId) {
        if let Some(usage) = self.usage.get(rule.index()) {
            usage.streams.fetch_add(1, Ordering::Relaxed);
            self.total_streams.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Subtracts a stream of a rule.
    pub(crate) fn remove_stream(&self, rule: RuleId) {
        if let Some(usage) = self.usage.get(rule.index()) {
            usage.streams.fetch_sub(1, Ordering::Relaxed);
            self.total_streams.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Returns `whole * part / parts`, rounded down, without overflow for weights.
const fn portion(whole: u64, part: u64, parts: u64) -> u64 {
    whole / parts * part + whole % parts * part / parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(rules: &[&str], limits: BudgetLimits) -> Budget {
        let rules = rules.iter().map(|text| text.parse().unwrap());
        Budget::new(Rules::new(rules).unwrap(), limits)
    }

    fn usages(budget: &Budget) -> Vec<RuleUsage> {
        budget.rules().iter().map(|(id, _)| budget.usage(id).unwrap()).collect()
    }

    #[test]
    fn bytes_are_shared_by_weight_among_rules_that_keep_messages() {
        let rules = ["a: history=1 share=3", "b: history=0", "c: history=1", "d.*: history=5 share=4"];
        let budget = budget(&rules, BudgetLimits::default().with_bytes(1066));
        let shares = || usages(&budget).iter().map(|usage| usage.share_bytes).collect::<Vec<_>>();
        assert_eq!(shares(), [375, 0, 125, 500]);
        budget.set_limit_bytes(533);
        assert_eq!(shares(), [187, 0, 62, 250]);
    }

    #[test]
    fn streams_are_shared_by_weight_after_named_maximums() {
        let rules = ["a: history=1 max_streams=400", "b: history=1 share=2", "c: history=1"];
        let limits = BudgetLimits::default().with_streams(1000);
        let max = |budget: &Budget| usages(budget).iter().map(|usage| usage.max_streams).collect::<Vec<_>>();
        assert_eq!(max(&budget(&rules, limits)), [400, 400, 200]);
        // Each rule has room for one stream at least, and the total still holds.
        let small = budget(&rules, limits.with_streams(2));
        assert_eq!(max(&small), [2, 1, 1]);
        let added = small.rules().iter().map(|(id, _)| small.try_add_stream(id)).collect::<Vec<_>>();
        assert_eq!((added, small.streams()), (vec![true, true, false], 2));
        let excess = |more| [0, 1, 2].map(|rule| small.excess_streams(RuleId::from_index(rule), more));
        assert_eq!((excess(0), excess(1), excess(2)), ([0; 3], [1; 3], [2; 3]));
        small.remove_stream(RuleId::from_index(0));
        assert!(small.try_add_stream(RuleId::from_index(2)));
        assert!(!small.try_add_stream(RuleId::from_index(2)));
    }

    #[test]
    fn another_rule_leaves_the_whole_share() {
        let budget = budget(&["a: history=1", "b: history=1"], BudgetLimits::default().with_bytes(1066));
        let rule = RuleId::from_index(0);
        budget.adjust(rule, 510, 0);
        assert!(budget.is_over_share(rule));
        for is_own in [false, true] {
            assert_eq!(budget.may_take(rule, 20, is_own), is_own);
            assert_eq!(budget.try_take(rule, 20, is_own), is_own);
        }
        assert_eq!((budget.bytes(), usages(&budget)[0].bytes), (490, 490));
        assert!(!budget.is_over_share(rule));
        assert!(!budget.try_take(rule, 20, true));
    }

    #[test]
    fn threads_together_leave_the_whole_share() {
        let budget = budget(&["a: history=1", "b: history=1"], BudgetLimits::default().with_bytes(1066));
        let rule = RuleId::from_index(0);
        budget.adjust(rule, 100_000, 0);
        let taken: u64 = std::thread::scope(|scope| {
            let take = || (0..100_000).filter(|_| budget.try_take(rule, 7, false)).count() as u64 * 7;
            let threads = [(); 3].map(|()| scope.spawn(take));
            threads.map(|thread| thread.join().unwrap()).iter().sum()
        });
        let left = 100_000 - taken;
        assert_eq!((budget.bytes(), usages(&budget)[0].bytes), (left, left));
        assert!((500..507).contains(&left), "{left}");
    }

    #[test]
    fn shares_of_large_limits_do_not_overflow() {
        let rules: Vec<_> =
            (0..Rules::MAX).map(|number| format!("a{number}: history=1 share=1000")).collect();
        let rules: Vec<_> = rules.iter().map(String::as_str).collect();
        let budget = budget(&rules, BudgetLimits::default().with_bytes(u64::MAX));
        assert!(usages(&budget).iter().all(|usage| usage.share_bytes == (u64::MAX - u64::MAX / 16) / 64));
    }
}
