//! Spreads the reconnects of refused clients over time.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// Minimum delay. A client that reconnects sooner would find the server as full as before.
const MIN_DELAY: Duration = Duration::from_secs(1);

/// Maximum delay, however many clients are refused. Users do not wait for minutes.
const MAX_DELAY: Duration = Duration::from_secs(60);

/// Maximum wait for a server that restarts. Clients would ignore a longer one.
const MAX_OUTAGE: Duration = Duration::from_secs(24 * 3600);

/// Gives each refused client its own time to reconnect, at a fixed rate.
#[derive(Debug)]
pub(crate) struct ReconnectPacer {
    /// Time between two clients.
    interval: Duration,
    next: Cell<Instant>,
}

impl ReconnectPacer {
    pub(crate) fn new(per_second: u32, now: Instant) -> Self {
        Self { interval: Duration::from_secs(1) / per_second.max(1), next: Cell::new(now) }
    }

    /// Returns the time after which the client refused now should come back, not before `wait` is
    /// over.
    pub(crate) fn next_delay(&self, now: Instant, wait: Duration) -> Duration {
        let earliest = now + wait.clamp(MIN_DELAY, MAX_OUTAGE);
        let mut slot = self.next.get().max(earliest) + self.interval;
        if slot > earliest - MIN_DELAY + MAX_DELAY {
            // The schedule is full: further clients share its times.
            slot = earliest;
        }
        self.next.set(slot);
        slot.saturating_duration_since(now)
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
            let wait = pacer.next_delay(now, Duration::ZERO);
            assert!((MIN_DELAY..=MAX_DELAY).contains(&wait), "{wait:?}");
        }
    }

    #[test]
    fn delays_start_after_an_outage() {
        let now = Instant::now();
        let pacer = ReconnectPacer::new(1, now);
        let away = Duration::from_secs(90);
        for _ in 0..1000 {
            let wait = pacer.next_delay(now, away);
            assert!((away..=away + MAX_DELAY).contains(&wait), "{wait:?}");
        }
        pacer.next_delay(now, Duration::MAX);
    }
}
