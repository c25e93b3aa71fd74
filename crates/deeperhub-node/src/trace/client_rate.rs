use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Rate limit for sampled traces of clients: a number per second, with a burst of one second's
/// worth. Shared by all workers, and checked only for a message or handshake in such a trace.
#[derive(Debug)]
pub(super) struct ClientRate {
    since: Instant,
    /// Nanoseconds between two traces. 0: none are recorded.
    interval: u64,
    /// Time at which the burst is full again, in nanoseconds since `since` (GCRA's theoretical
    /// arrival time).
    full_at: AtomicU64,
}

const NANOS_PER_SECOND: u64 = 1_000_000_000;

impl ClientRate {
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        let interval =
            NANOS_PER_SECOND.checked_div(u64::from(per_second)).map_or(0, |interval| interval.max(1));
        Self { since: now, interval, full_at: AtomicU64::new(0) }
    }

    /// Returns `true` if one more trace may be recorded.
    pub(super) fn try_acquire(&self, now: Instant) -> bool {
        if self.interval == 0 {
            return false;
        }
        let now = u64::try_from(now.saturating_duration_since(self.since).as_nanos()).unwrap_or(u64::MAX);
        let taken = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            let next = full_at.max(now).saturating_add(self.interval);
            (next <= now.saturating_add(NANOS_PER_SECOND)).then_some(next)
        });
        taken.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn taken(rate: &ClientRate, at: Instant) -> usize {
        (0..1000).filter(|_| rate.try_acquire(at)).count()
    }

    #[test]
    fn the_burst_is_one_second_of_the_rate() {
        let start = Instant::now();
        let rate = ClientRate::new(10, start);
        assert_eq!(taken(&rate, start), 10);
        assert_eq!(taken(&rate, start + Duration::from_millis(99)), 0);
        assert_eq!(taken(&rate, start + Duration::from_millis(100)), 1);
        assert_eq!(taken(&rate, start + Duration::from_millis(600)), 5);
        assert_eq!(taken(&rate, start + Duration::from_secs(3600)), 10);
    }

    #[test]
    fn zero_and_the_maximum_are_valid_rates() {
        let start = Instant::now();
        assert_eq!(taken(&ClientRate::new(0, start), start + Duration::from_secs(9)), 0);
        assert_eq!(taken(&ClientRate::new(u32::MAX, start), start), 1000);
    }
}
