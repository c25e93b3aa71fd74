//! When clients that were refused should come back: not all at once.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// The earliest time: a client that comes back sooner finds the server as full as it was.
const EARLIEST: Duration = Duration::from_secs(1);

/// The latest, however many are refused: clients that wait for minutes have given up.
const LATEST: Duration = Duration::from_secs(60);

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

    /// The time after which the client refused now should come back.
    pub(crate) fn take(&self, now: Instant) -> Duration {
        let mut slot = self.next.get().max(now + EARLIEST) + self.length;
        if slot > now + LATEST {
            // The line is long enough: the next ones share its places.
            slot = now + EARLIEST;
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
            assert_eq!(slots.take(now), EARLIEST + n * Duration::from_millis(100));
        }
        let later = now + Duration::from_secs(30);
        assert_eq!(slots.take(later), EARLIEST + Duration::from_millis(100));
    }

    #[test]
    fn nobody_waits_for_minutes() {
        let now = Instant::now();
        let slots = Slots::new(1, now);
        for _ in 0..1000 {
            let wait = slots.take(now);
            assert!((EARLIEST..=LATEST).contains(&wait), "{wait:?}");
        }
    }
}
