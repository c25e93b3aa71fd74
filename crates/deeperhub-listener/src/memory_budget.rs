//! How much memory there may be in use, and what is done as it comes near.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// From this share of the budget on, new connections are refused.
const REFUSE_PERCENT: u64 = 80;

/// From this share on, the largest queues are given up, until the memory in use is below [`REFUSE_PERCENT`] again.
const SHED_PERCENT: u64 = 90;

/// Share of the budget, in percent, up to which workers may take in client data before the next
/// measurement.
const INTAKE_PERCENT: u64 = 95;

/// Least bytes that a connection must hold to be shed: about what every connection costs anyway.
const MIN_SHED_BYTES: usize = 1024;

/// Divisor of an even share of the bytes to free. Connections that hold less than the result are
/// not shed. All of them together would free too little; something else holds the memory.
const SHED_SHARE_DIVISOR: u64 = 16;

/// Measurements after connections were given up in which only what came on top is given up, too. It takes an allocator
/// a while to hand memory back to the system; those who did nothing are not to pay for that.
const SETTLING_MEASUREMENTS: u32 = 10;

/// A limit for the memory of the whole process, shared by all that can make it grow.
///
/// Whoever can measure what is in use tells it by [`update`](Self::update), a few times a second; the listener then
/// refuses new connections from 80 % on, and from 90 % on closes the connections that hold the most (queues to be sent,
/// messages, records and handshakes that have not come whole, what their sessions keep) with 1013. Limits of single
/// connections hold besides; this one is for many connections that each stay below theirs.
#[derive(Debug)]
pub struct MemoryBudget {
    limit: u64,
    used: AtomicU64,
    /// Measurements so far, so that every worker acts on each of them once.
    measurements: AtomicU64,
    /// What all workers together should give up since the last measurement.
    to_free: AtomicU64,
    /// What they gave up since the one before.
    freed: AtomicU64,
    last: Mutex<LastShed>,
}

/// When connections were given up last.
#[derive(Debug, Default)]
struct LastShed {
    /// What was in use, at the most, since then.
    used: u64,
    /// What should have been given up and was not yet.
    missing: u64,
    /// For how many more measurements its effect is waited for.
    settling: u32,
}

impl MemoryBudget {
    /// A budget of `limit` bytes, of which none is known to be in use.
    pub fn new(limit: u64) -> Self {
        Self {
            limit: limit.max(1),
            used: AtomicU64::new(0),
            measurements: AtomicU64::new(0),
            to_free: AtomicU64::new(0),
            freed: AtomicU64::new(0),
            last: Mutex::default(),
        }
    }

    /// Tells how many bytes are in use now.
    pub fn update(&self, used: u64) {
        self.used.store(used, Ordering::Relaxed);
        self.to_free.store(self.bytes_to_shed(used), Ordering::Relaxed);
        self.measurements.fetch_add(1, Ordering::Release);
    }

    /// How many bytes should be given up.
    fn bytes_to_shed(&self, used: u64) -> u64 {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.missing = last.missing.saturating_sub(self.freed.swap(0, Ordering::Relaxed));
        if used < self.share(SHED_PERCENT) {
            last.settling = last.settling.saturating_sub(1);
            return 0;
        }
        if last.settling > 0 {
            last.settling -= 1;
            last.missing += used.saturating_sub(last.used);
            last.used = last.used.max(used);
        } else {
            *last = LastShed {
                used,
                missing: used - self.share(REFUSE_PERCENT),
                settling: SETTLING_MEASUREMENTS,
            };
        }
        last.missing
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

    /// Returns the number of measurements so far.
    pub(crate) fn measurements(&self) -> u64 {
        self.measurements.load(Ordering::Acquire)
    }

    /// Returns the bytes that all workers together may take in before the next measurement.
    pub(crate) fn intake_room(&self) -> u64 {
        self.share(INTAKE_PERCENT).saturating_sub(self.used())
    }

    /// How many bytes all workers together should give up, if they have not since the measurement `seen`.
    pub(crate) fn take_shed_target(&self, seen: &mut u64) -> Option<u64> {
        let measurement = self.measurements();
        if *seen == measurement {
            return None;
        }
        *seen = measurement;
        Some(self.to_free.load(Ordering::Relaxed)).filter(|&bytes| bytes > 0)
    }

    /// Says how many bytes a worker gave up.
    pub(crate) fn record_shed(&self, bytes: u64) {
        self.freed.fetch_add(bytes, Ordering::Relaxed);
    }

    fn share(&self, percent: u64) -> u64 {
        // The order keeps budgets beyond 2^57 bytes from an overflow.
        self.limit / 100 * percent + self.limit % 100 * percent / 100
    }
}

/// Returns keys and sizes of the connections to shed, largest first, until they add up to `bytes`.
/// Connections too small to matter are left out.
pub(crate) fn select_largest(mut sizes: Vec<(u32, usize)>, bytes: u64) -> impl Iterator<Item = (u32, usize)> {
    let even = bytes / sizes.len().max(1) as u64 / SHED_SHARE_DIVISOR;
    let least = usize::try_from(even).unwrap_or(usize::MAX).max(MIN_SHED_BYTES);
    sizes.sort_unstable_by_key(|&(key, size)| (std::cmp::Reverse(size), key));
    let mut left = bytes;
    sizes.into_iter().map_while(move |(key, size)| {
        if left == 0 || size < least {
            return None;
        }
        left = left.saturating_sub(size as u64);
        Some((key, size))
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
    fn something_is_given_up_from_nine_tenths_on_once_for_each_measurement() {
        for (used, expected) in [(0, None), (899, None), (900, Some(100)), (2000, Some(1200))] {
            let budget = told(used);
            let mut seen = 0;
            assert_eq!(budget.take_shed_target(&mut seen), expected, "{used}");
            assert_eq!(budget.take_shed_target(&mut seen), None, "{used}, the second time");
        }
    }

    #[test]
    fn the_effect_is_waited_for_and_only_what_comes_on_top_is_given_up_meanwhile() {
        let budget = told(950);
        let mut seen = 0;
        assert_eq!(budget.take_shed_target(&mut seen), Some(150));
        let mut next = |used, shed| {
            budget.record_shed(shed);
            budget.update(used);
            budget.take_shed_target(&mut seen)
        };
        assert_eq!(next(950, 100), Some(50), "what the workers had not given up");
        assert_eq!(next(950, 60), None, "the memory is not back yet");
        assert_eq!(next(980, 0), Some(30), "more has come");
        assert_eq!(next(970, 30), None);
        assert_eq!(next(700, 0), None, "it is back");
        for _ in 0..5 {
            next(700, 0);
        }
        assert_eq!(next(900, 0), Some(100), "time and again");
    }

    #[test]
    fn what_does_not_come_back_is_given_up_after_a_while() {
        let budget = told(950);
        let mut seen = 0;
        assert_eq!(budget.take_shed_target(&mut seen), Some(150));
        budget.record_shed(150);
        let mut waits = 0;
        loop {
            budget.update(950);
            match budget.take_shed_target(&mut seen) {
                None => waits += 1,
                Some(bytes) => break assert_eq!(bytes, 150),
            }
        }
        assert_eq!(waits, SETTLING_MEASUREMENTS);
    }

    #[test]
    fn the_largest_go_first_and_no_more_than_needed() {
        let sizes = [(1, 10), (2, 50), (3, 30), (4, 50)].map(|(key, size)| (key, size << 10));
        for (bytes, expected) in
            [(0, vec![]), (1, vec![2]), (50, vec![2]), (51, vec![2, 4]), (131, vec![2, 4, 3, 1])]
        {
            let chosen: Vec<_> = select_largest(sizes.to_vec(), bytes << 10).map(|(key, _)| key).collect();
            assert_eq!(chosen, expected, "{bytes}");
        }
    }

    #[test]
    fn nobody_is_shed_who_holds_too_little_to_matter() {
        let chosen = |sizes: Vec<(u32, usize)>, bytes| {
            select_largest(sizes, bytes).map(|(key, _)| key).collect::<Vec<_>>()
        };
        let silent: Vec<(u32, usize)> = (0..100).map(|key| (key, MIN_SHED_BYTES - 1)).collect();
        assert_eq!(chosen(silent.clone(), 1), [0; 0], "about what a connection costs anyway");
        // 100 MiB are missing, and these hold 2 MiB together: something else holds the memory.
        let idle: Vec<(u32, usize)> = (0..100).map(|key| (key, 20 << 10)).collect();
        assert_eq!(chosen(idle.clone(), 100 << 20), [0; 0]);
        assert_eq!(chosen([idle, vec![(777, 50 << 20)]].concat(), 100 << 20), [777]);
    }

    #[test]
    fn a_huge_budget_does_not_overflow() {
        let budget = MemoryBudget::new(u64::MAX);
        budget.update(u64::MAX / 2);
        assert!(budget.has_room());
    }
}
