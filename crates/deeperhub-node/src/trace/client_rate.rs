//! Rate limit for traces that clients marked as sampled.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Rate limit for messages and handshakes in sampled traces of clients. The burst is as large as
/// the rate per second. All workers share the limit.
#[derive(Debug)]
pub(super) struct ClientRate {
    started: Instant,
    /// Nanoseconds between two acquisitions at the rate. 0 if the rate is 0.
    interval: u64,
    /// Time at which the whole burst is available again, in nanoseconds since `started` (GCRA's
    /// theoretical arrival time).
    full_at: AtomicU64,
}

const NANOS_PER_SECOND: u64 = 1_000_000_000;

impl ClientRate {
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        let interval =
            NANOS_PER_SECOND.checked_div(u64::from(per_second)).map_or(0, |interval| interval.max(1));
        Self { started: now, interval, full_at: AtomicU64::new(0) }
    }

    /// Returns `true` if one more message or handshake is within the limit, and counts it.
    pub(super) fn try_acquire(&self, now: Instant) -> bool {
        if self.interval == 0 {
            return false;
        }
        let now = u64::try_from(now.saturating_duration_since(self.started).as_nanos()).unwrap_or(u64::MAX);
        let result = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            let next = full_at.max(now).saturating_add(self.interval);
            (next <= now.saturating_add(NANOS_PER_SECOND)).then_some(next)
        });
        result.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn acquired(rate: &ClientRate, at: Instant) -> usize {
        (0..1000).filter(|_| rate.try_acquire(at)).count()
    }

    #[test]
    fn the_burst_is_one_second_of_the_rate() {
        let start = Instant::now();
        let rate = ClientRate::new(10, start);
        assert_eq!(acquired(&rate, start), 10);
        assert_eq!(acquired(&rate, start + Duration::from_millis(99)), 0);
        assert_eq!(acquired(&rate, start + Duration::from_millis(100)), 1);
        assert_eq!(acquired(&rate, start + Duration::from_millis(600)), 5);
        assert_eq!(acquired(&rate, start + Duration::from_secs(3600)), 10);
    }

    #[test]
    fn zero_and_the_maximum_are_valid_rates() {
        let start = Instant::now();
        assert_eq!(acquired(&ClientRate::new(0, start), start + Duration::from_secs(9)), 0);
        assert_eq!(acquired(&ClientRate::new(u32::MAX, start), start), 1000);
    }
}
