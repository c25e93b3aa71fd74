//! When clients that were refused should come back: not all at once.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// The earliest time: a client that comes back sooner finds the server as full as it was.
const EARLIEST: Duration = Duration::from_secs(1);

/// The latest, however many are refused: clients that wait for minutes have given up.
const LATEST: Duration = Duration::from_secs(60);

/// Longest wait that clients are given while the server is down; they would ignore a longer one.
const MAX_WAIT: Duration = Duration::from_secs(24 * 3600);

/// Gives each refused client a time of its own, one behind the other.
#[derive(Debug)]
pub(crate) struct Slots {
    /// Time between two clients.
    length: Duration,
    next: Cell<Instant>,
}

impl Slots {
    pub(crate) fn new(per_second: u32, now: Instant) -> Self {
        Self { length: Duration::from_secs(1) / per_second.max(1), next: Cell::new(now) }
    }

    /// Returns the time after which the client refused now should come back, not before `wait` is
    /// over.
    pub(crate) fn take(&self, now: Instant, wait: Duration) -> Duration {
        let earliest = now + wait.clamp(EARLIEST, MAX_WAIT);
        let mut slot = self.next.get().max(earliest) + self.length;
        if slot > earliest - EARLIEST + LATEST {
            // The line is long enough: the next ones share its places.
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
    fn clients_come_back_one_behind_the_other() {
        let now = Instant::now();
        let slots = Slots::new(10, now);
        for n in 1..=100 {
            assert_eq!(slots.take(now, Duration::ZERO), EARLIEST + n * Duration::from_millis(100));
        }
        let later = now + Duration::from_secs(30);
        assert_eq!(slots.take(later, Duration::ZERO), EARLIEST + Duration::from_millis(100));
    }

    #[test]
    fn nobody_waits_for_minutes() {
        let now = Instant::now();
        let slots = Slots::new(1, now);
        for _ in 0..1000 {
            let wait = slots.take(now, Duration::ZERO);
            assert!((EARLIEST..=LATEST).contains(&wait), "{wait:?}");
        }
    }

    #[test]
    fn nobody_comes_back_before_the_server_is_there_again() {
        let now = Instant::now();
        let slots = Slots::new(1, now);
        let away = Duration::from_secs(90);
        for _ in 0..1000 {
            let wait = slots.take(now, away);
            assert!((away..=away + LATEST).contains(&wait), "{wait:?}");
        }
        slots.take(now, Duration::MAX);
    }
}
