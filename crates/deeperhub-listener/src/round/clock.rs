//! The clock of a worker.

use std::time::{Duration, Instant};

/// A worker's clock. It stands still during a round. A replacement of the worker continues it,
/// since deadlines of connections refer to it.
#[derive(Debug)]
pub(crate) struct Clock {
    /// Time at which [`millis`](Self::millis) was zero.
    started: Instant,
    /// Start of the current round.
    now: Instant,
}

impl Clock {
    pub(crate) fn new(now: Instant) -> Self {
        Self { started: now, now }
    }

    /// Sets the start of the current round.
    pub(crate) fn set(&mut self, now: Instant) {
        self.now = now;
    }

    /// Returns the start of the current round.
    pub(crate) fn now(&self) -> Instant {
        self.now
    }

    /// Returns the start of the current round in milliseconds. The value wraps after 49 days, so
    /// times are compared by their difference.
    pub(crate) fn millis(&self) -> u32 {
        self.now.duration_since(self.started).as_millis() as u32
    }

    /// Returns the value of [`millis`](Self::millis) after `delay`. The delay is capped at 12 days,
    /// a quarter of the clock's range, so that the sign of a difference tells which time is later.
    pub(crate) fn deadline(&self, delay: Duration) -> u32 {
        self.millis().wrapping_add(delay.as_millis().min(i32::MAX as u128 / 2) as u32)
    }

    /// Returns `true` if a time returned by [`deadline`](Self::deadline) has come.
    pub(crate) fn has_reached(&self, deadline: u32) -> bool {
        self.millis().wrapping_sub(deadline) as i32 >= 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_compared_across_the_end_of_the_clock() {
        let start = Instant::now();
        let mut clock = Clock::new(start);
        for millis in [0, u64::from(u32::MAX) - 5, u64::from(u32::MAX) + 5] {
            clock.set(start + Duration::from_millis(millis));
            let deadline = clock.deadline(Duration::from_millis(10));
            assert!(!clock.has_reached(deadline) && clock.has_reached(clock.deadline(Duration::ZERO)));
            clock.set(start + Duration::from_millis(millis + 10));
            assert!(clock.has_reached(deadline));
            assert!(!clock.has_reached(clock.deadline(Duration::MAX)), "the longest delay is over at once");
        }
    }
}
