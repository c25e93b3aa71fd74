//! Memory budget of the process. When usage approaches the limit, new connections are refused;
//! closer to it, connections are *shed*: the worker closes those that hold the most bytes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Usage in percent of the budget from which new connections are refused.
const REFUSE_PERCENT: u64 = 80;

/// Usage in percent from which the largest connections are shed, down to [`REFUSE_PERCENT`].
const SHED_PERCENT: u64 = 90;

/// Usage in percent of the budget up to which client input is read between two measurements.
const INTAKE_PERCENT: u64 = 95;

/// Minimum bytes that a connection must hold to be shed. Every idle connection costs about as much.
const MIN_SHED_BYTES: usize = 1024;

/// Divisor of a connection's even share of the bytes to free. A connection that holds less than the
/// quotient is not shed. Closing all such connections would free too little, because something else
/// holds the memory.
const EVEN_SHARE_DIVISOR: u64 = 16;

/// Number of measurements after a shed in which only further growth is shed. The allocator needs
/// time to return the freed memory. Usage stays high until then, which must not cause another shed.
const SETTLING_MEASUREMENTS: u32 = 10;

/// A limit on the memory of the whole process.
///
/// The embedding program reports the memory in use with [`update`](Self::update), a few times a
/// second. From 80 % of the limit on, the listener refuses new connections. From 90 % on, it sheds
/// connections until usage should be back at 80 %. It then closes those that hold the most, with
/// code 1013 if they are open. A connection holds its queued frames, its incomplete messages, TLS
/// records or handshake, and the bytes that its session reports.
///
/// The budget protects against many connections that each keep to their own limits.
#[derive(Debug)]
pub struct MemoryBudget {
    limit: u64,
    used: AtomicU64,
    /// Number of measurements so far. With it, every worker acts on each measurement once.
    measurements: AtomicU64,
    /// Bytes that all workers together should free, according to the last measurement.
    to_free: AtomicU64,
    /// Bytes that the workers freed since the last measurement.
    freed: AtomicU64,
    last_shed: Mutex<LastShed>,
}

/// State of the last shed.
#[derive(Debug, Default)]
struct LastShed {
    /// Maximum usage measured since the shed.
    used: u64,
    /// Bytes still to free.
    missing: u64,
    /// Number of measurements left until usage should show the effect of the shed.
    settling: u32,
}

impl MemoryBudget {
    /// Usage in percent of the limit from which new connections are refused.
    pub const REFUSE_PERCENT: u64 = REFUSE_PERCENT;

    /// Usage in percent of the limit from which the largest connections are closed.
    pub const SHED_PERCENT: u64 = SHED_PERCENT;

    /// Usage in percent of the limit up to which client input is read between two measurements.
    pub const INTAKE_PERCENT: u64 = INTAKE_PERCENT;

    /// Creates a budget of `limit` bytes with no usage reported yet.
    pub fn new(limit: u64) -> Self {
        Self {
            limit: limit.max(1),
            used: AtomicU64::new(0),
            measurements: AtomicU64::new(0),
            to_free: AtomicU64::new(0),
            freed: AtomicU64::new(0),
            last_shed: Mutex::default(),
        }
    }

    /// Reports a measurement: the bytes in use now.
    pub fn update(&self, used: u64) {
        self.used.store(used, Ordering::Relaxed);
        self.to_free.store(self.bytes_to_shed(used), Ordering::Relaxed);
        self.measurements.fetch_add(1, Ordering::Release);
    }

    /// Returns the bytes to free after a measurement of `used` bytes.
    fn bytes_to_shed(&self, used: u64) -> u64 {
        let mut last = self.last_shed.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Returns the limit in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Returns the bytes in use at the last measurement.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns `true` if memory for new connections is left.
    pub fn has_room(&self) -> bool {
        self.used() < self.share(REFUSE_PERCENT)
    }

    /// Returns the number of measurements so far.
    pub(crate) fn measurements(&self) -> u64 {
        self.measurements.load(Ordering::Acquire)
    }

    /// Returns the bytes of memory that client input at all workers may cause before the next
    /// measurement.
    pub(crate) fn intake_room(&self) -> u64 {
        self.share(INTAKE_PERCENT).saturating_sub(self.used())
    }

    /// Returns the bytes that all workers together should free, or `None` if there are none.
    /// Returns them once per measurement: `last_measurement` is the number of the last one that the
    /// caller acted on.
    pub(crate) fn take_shed_target(&self, last_measurement: &mut u64) -> Option<u64> {
        let measurement = self.measurements();
        if *last_measurement == measurement {
            return None;
        }
        *last_measurement = measurement;
        Some(self.to_free.load(Ordering::Relaxed)).filter(|&bytes| bytes > 0)
    }

    /// Records the bytes that a worker freed.
    pub(crate) fn record_shed(&self, bytes: u64) {
        self.freed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns `percent` of the limit.
    fn share(&self, percent: u64) -> u64 {
        // Dividing first avoids an overflow with limits above 2^57 bytes.
        self.limit / 100 * percent + self.limit % 100 * percent / 100
    }
}

/// Returns keys and sizes of the connections to shed: the largest ones that together hold `bytes`.
/// Leaves out connections that are too small to matter.
pub(crate) fn select_largest(mut sizes: Vec<(u32, usize)>, bytes: u64) -> impl Iterator<Item = (u32, usize)> {
    let share = bytes / sizes.len().max(1) as u64 / EVEN_SHARE_DIVISOR;
    let min_size = usize::try_from(share).unwrap_or(usize::MAX).max(MIN_SHED_BYTES);
    sizes.sort_unstable_by_key(|&(key, size)| (std::cmp::Reverse(size), key));
    let mut remaining = bytes;
    sizes.into_iter().map_while(move |(key, size)| {
        if remaining == 0 || size < min_size {
            return None;
        }
        remaining = remaining.saturating_sub(size as u64);
        Some((key, size))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget_with_usage(used: u64) -> MemoryBudget {
        let budget = MemoryBudget::new(1000);
        budget.update(used);
        budget
    }

    #[test]
    fn there_is_room_below_80_percent() {
        assert!(budget_with_usage(0).has_room() && budget_with_usage(799).has_room());
        assert!(!budget_with_usage(800).has_room() && !budget_with_usage(5000).has_room());
    }

    #[test]
    fn shedding_starts_at_90_percent_once_per_measurement() {
        for (used, expected) in [(0, None), (899, None), (900, Some(100)), (2000, Some(1200))] {
            let budget = budget_with_usage(used);
            let mut measurement = 0;
            assert_eq!(budget.take_shed_target(&mut measurement), expected, "{used}");
            assert_eq!(budget.take_shed_target(&mut measurement), None, "{used}, the second time");
        }
    }

    #[test]
    fn only_further_growth_is_shed_until_the_effect_shows() {
        let budget = budget_with_usage(950);
        let mut measurement = 0;
        assert_eq!(budget.take_shed_target(&mut measurement), Some(150));
        let mut next = |used, shed| {
            budget.record_shed(shed);
            budget.update(used);
            budget.take_shed_target(&mut measurement)
        };
        assert_eq!(next(950, 100), Some(50), "the rest of the first target");
        assert_eq!(next(950, 60), None, "the allocator has not returned the memory yet");
        assert_eq!(next(980, 0), Some(30), "only the growth");
        assert_eq!(next(970, 30), None);
        assert_eq!(next(700, 0), None, "usage is low");
        for _ in 0..5 {
            next(700, 0);
        }
        assert_eq!(next(900, 0), Some(100), "the next shed");
    }

    #[test]
    fn shedding_repeats_if_usage_stays_high() {
        let budget = budget_with_usage(950);
        let mut measurement = 0;
        assert_eq!(budget.take_shed_target(&mut measurement), Some(150));
        budget.record_shed(150);
        let mut settling = 0;
        loop {
            budget.update(950);
            match budget.take_shed_target(&mut measurement) {
                None => settling += 1,
                Some(bytes) => break assert_eq!(bytes, 150),
            }
        }
        assert_eq!(settling, SETTLING_MEASUREMENTS);
    }

    #[test]
    fn the_largest_connections_are_shed_first_and_no_more_than_needed() {
        let sizes = [(1, 10), (2, 50), (3, 30), (4, 50)].map(|(key, size)| (key, size << 10));
        for (bytes, expected) in
            [(0, vec![]), (1, vec![2]), (50, vec![2]), (51, vec![2, 4]), (131, vec![2, 4, 3, 1])]
        {
            let chosen: Vec<_> = select_largest(sizes.to_vec(), bytes << 10).map(|(key, _)| key).collect();
            assert_eq!(chosen, expected, "{bytes}");
        }
    }

    #[test]
    fn connections_that_hold_little_are_not_shed() {
        let chosen = |sizes: Vec<(u32, usize)>, bytes| {
            select_largest(sizes, bytes).map(|(key, _)| key).collect::<Vec<_>>()
        };
        let small: Vec<(u32, usize)> = (0..100).map(|key| (key, MIN_SHED_BYTES - 1)).collect();
        assert_eq!(chosen(small, 1), [0; 0], "every idle connection costs about as much");
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
