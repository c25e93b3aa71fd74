//! How much memory there may be in use, and what is done as it comes near.

use std::sync::atomic::{AtomicU64, Ordering};

/// From this share of the budget on, new connections are refused.
const REFUSE_PERCENT: u64 = 80;

/// From this share on, the largest queues are given up, until the memory in use is below [`REFUSE_PERCENT`] again.
const SHED_PERCENT: u64 = 90;

/// A queue below this size is not worth its client's connection.
pub(crate) const LEAST_SHED: usize = 16 * 1024;

/// A limit for the memory of the whole process, shared by all that can make it grow.
///
/// Whoever can measure what is in use tells it by [`update`](Self::update), a few times a second; the listener then
/// refuses new connections from 80 % on, and from 90 % on closes the connections with the most bytes waiting (queues to
/// be sent, and messages that have not come whole) with 1013. Limits of single connections hold besides; this one is
/// for many connections that each stay below theirs.
#[derive(Debug)]
pub struct MemoryBudget {
    limit: u64,
    used: AtomicU64,
    /// Measurements so far, so that every worker acts on each of them once.
    measurements: AtomicU64,
}

impl MemoryBudget {
    /// A budget of `limit` bytes, of which none is known to be in use.
    pub fn new(limit: u64) -> Self {
        Self { limit: limit.max(1), used: AtomicU64::new(0), measurements: AtomicU64::new(0) }
    }

    /// Tells how many bytes are in use now.
    pub fn update(&self, used: u64) {
        self.used.store(used, Ordering::Relaxed);
        self.measurements.fetch_add(1, Ordering::Release);
    }

    /// Bytes that may be in use.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Bytes that were in use when it was last told.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether there is room for one more connection.
    pub fn has_room(&self) -> bool {
        self.used() < self.share(REFUSE_PERCENT)
    }

    /// How many bytes all workers together should give up, if they have not since the measurement `seen`.
    pub(crate) fn to_shed(&self, seen: &mut u64) -> Option<u64> {
        let measurement = self.measurements.load(Ordering::Acquire);
        if *seen == measurement {
            return None;
        }
        *seen = measurement;
        let used = self.used();
        (used >= self.share(SHED_PERCENT)).then(|| used - self.share(REFUSE_PERCENT))
    }

    fn share(&self, percent: u64) -> u64 {
        // The order keeps budgets beyond 2^57 bytes from an overflow.
        self.limit / 100 * percent + self.limit % 100 * percent / 100
    }
}

/// Which connections to give up: those with the most bytes, until these are at least `bytes`. `sizes` are keys and bytes.
pub(crate) fn largest(mut sizes: Vec<(u32, usize)>, bytes: u64) -> impl Iterator<Item = u32> {
    sizes.sort_unstable_by_key(|&(key, size)| (std::cmp::Reverse(size), key));
    let mut left = bytes;
    sizes.into_iter().map_while(move |(key, size)| {
        if left == 0 {
            return None;
        }
        left = left.saturating_sub(size as u64);
        Some(key)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(used: u64) -> MemoryBudget {
        let budget = MemoryBudget::new(1000);
        budget.update(used);
        budget
    }

    #[test]
    fn there_is_room_up_to_four_fifths() {
        assert!(told(0).has_room() && told(799).has_room());
        assert!(!told(800).has_room() && !told(5000).has_room());
    }

    #[test]
    fn queues_are_given_up_from_nine_tenths_on_once_for_each_measurement() {
        for (used, expected) in [(0, None), (899, None), (900, Some(100)), (2000, Some(1200))] {
            let budget = told(used);
            let mut seen = 0;
            assert_eq!(budget.to_shed(&mut seen), expected, "{used}");
            assert_eq!(budget.to_shed(&mut seen), None, "{used}, the second time");
            budget.update(used);
            assert_eq!(budget.to_shed(&mut seen), expected, "{used}, measured again");
        }
    }

    #[test]
    fn the_largest_go_first_and_no_more_than_needed() {
        let sizes = vec![(1, 10), (2, 50), (3, 30), (4, 50)];
        for (bytes, expected) in [
            (0, vec![]),
            (1, vec![2]),
            (50, vec![2]),
            (51, vec![2, 4]),
            (131, vec![2, 4, 3, 1]),
            (1000, vec![2, 4, 3, 1]),
        ] {
            assert_eq!(largest(sizes.clone(), bytes).collect::<Vec<_>>(), expected, "{bytes}");
        }
    }

    #[test]
    fn a_huge_budget_does_not_overflow() {
        let budget = MemoryBudget::new(u64::MAX);
        budget.update(u64::MAX / 2);
        assert!(budget.has_room());
    }
}
