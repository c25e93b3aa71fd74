//! Spreads the reconnects of refused clients over time.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Minimum delay. The server is likely still full for a client that reconnects sooner.
const MIN_DELAY: Duration = Duration::from_secs(1);

/// Maximum delay without an outage, however many clients are refused. Users do not wait for longer.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// Maximum outage of the server. Clients would ignore a longer delay.
const MAX_OUTAGE: Duration = Duration::from_secs(24 * 3600);

/// Gives refused clients different times at which they reconnect, at a fixed rate.
#[derive(Debug)]
pub(crate) struct ReconnectPacer {
    /// Time between the reconnects of two clients.
    interval: Duration,
    /// Last time that was given to a client.
    last: Cell<Instant>,
}

impl ReconnectPacer {
    pub(crate) fn new(per_second: u32, now: Instant) -> Self {
        Self { interval: Duration::from_secs(1) / per_second.max(1), last: Cell::new(now) }
    }

    /// Returns the delay after which a client that is refused now should reconnect. `outage` is the
    /// time until the server accepts connections again.
    pub(crate) fn next_delay(&self, now: Instant, outage: Duration) -> Duration {
        let earliest = now + outage.clamp(MIN_DELAY, MAX_OUTAGE);
        let mut reconnect_at = self.last.get().max(earliest) + self.interval;
        if reconnect_at > earliest - MIN_DELAY + MAX_DELAY {
            // All times up to the maximum delay are given. Further clients get the same times
            // again.
            reconnect_at = earliest;
        }
        self.last.set(reconnect_at);
        reconnect_at.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnects_are_spaced_evenly() {
        let now = Instant::now();
        let pacer = ReconnectPacer::new(10, now);
        for n in 1..=100 {
            assert_eq!(pacer.next_delay(now, Duration::ZERO), MIN_DELAY + n * Duration::from_millis(100));
        }
        let later = now + Duration::from_secs(30);
        assert_eq!(pacer.next_delay(later, Duration::ZERO), MIN_DELAY + Duration::from_millis(100));
    }

    #[test]
    fn delays_are_bounded() {
        let now = Instant::now();
        let pacer = ReconnectPacer::new(1, now);
        for _ in 0..1000 {
            let delay = pacer.next_delay(now, Duration::ZERO);
            assert!((MIN_DELAY..=MAX_DELAY).contains(&delay), "{delay:?}");
        }
    }

    #[test]
    fn delays_start_after_an_outage() {
        let now = Instant::now();
        let pacer = ReconnectPacer::new(1, now);
        let outage = Duration::from_secs(90);
        for _ in 0..1000 {
            let delay = pacer.next_delay(now, outage);
            assert!((outage..=outage + MAX_DELAY).contains(&delay), "{delay:?}");
        }
        pacer.next_delay(now, Duration::MAX);
    }
}
