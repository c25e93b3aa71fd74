//! When each connection of a worker is closed while the server shuts down, and when it should come back.

use std::time::{Duration, Instant};

use crate::config::Config;

/// The longest pause between two closes of a worker: a few connections need not wait for the whole time.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// How many clients in a row get different slots where closes are further apart than slots are long: each would get the
/// first one there, and those whose timers are coarse would come together.
const SPREAD: u32 = 100;

/// A worker's drain under way.
#[derive(Debug)]
pub(crate) struct Drain {
    next: Option<Instant>,
    pause: Duration,
    left: usize,
    /// Time between two clients that come back to other nodes.
    slot_length: Duration,
    next_slot: Instant,
    /// Slots taken, less than [`SPREAD`].
    taken: u32,
    pub(crate) cursor: u32,
}

impl Drain {
    /// Spreads `open` connections over the time until `until`, less what the last one needs to read its end.
    pub(crate) fn new(now: Instant, until: Instant, open: usize, config: &Config) -> Self {
        let time = until.saturating_duration_since(now);
        let usable = time.saturating_sub(config.close_timeout).max(time / 2);
        let pause = (usable / u32::try_from(open.max(1)).unwrap_or(u32::MAX)).min(LONGEST_PAUSE);
        let per_second = (f64::from(config.reconnects_per_second) / config.workers.max(1) as f64).max(0.1);
        Self {
            next: Some(now),
            pause,
            left: open,
            slot_length: Duration::from_secs_f64(1.0 / per_second),
            next_slot: now,
            taken: 0,
            cursor: 0,
        }
    }

    /// When the next connection is closed.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.next.filter(|_| self.left > 0)
    }

    /// A handshake that was under way when the drain began became a connection.
    pub(crate) fn one_more(&mut self) {
        self.left += 1;
    }

    /// Whether a connection is to be closed now; each call is one of them.
    pub(crate) fn take_due(&mut self, now: Instant) -> bool {
        match self.due() {
            Some(next) if next <= now => {
                self.left -= 1;
                self.next = Some(next + self.pause);
                true
            }
            _ => false,
        }
    }

    /// The time after which one more client should come back, so that they do at a rate that others can accept.
    pub(crate) fn slot(&self, now: Instant) -> Duration {
        self.next_slot.saturating_duration_since(now).max(self.slot_length)
    }

    /// As [`Self::slot`], and takes it.
    pub(crate) fn take_slot(&mut self, now: Instant) -> Duration {
        self.next_slot = self.next_slot.max(now) + self.slot_length;
        self.taken = self.taken % SPREAD + 1;
        self.slot(now).max(self.slot_length * self.taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closes_are_spread_over_the_time() {
        let config = Config::default();
        let now = Instant::now();
        let mut drain = Drain::new(now, now + Duration::from_secs(30), 1000, &config);
        let mut closed = 0;
        for ms in 0..30_000 {
            while drain.take_due(now + Duration::from_millis(ms)) {
                closed += 1;
            }
            if ms == 13_500 {
                assert!((480..=520).contains(&closed), "{closed} of 1000 closed at half the usable time");
            }
        }
        assert_eq!(closed, 1000);
        assert_eq!(drain.due(), None);
    }

    #[test]
    fn without_time_all_are_closed_at_once() {
        let now = Instant::now();
        let mut drain = Drain::new(now, now, 50, &Config::default());
        let mut closed = 0;
        while drain.take_due(now) {
            closed += 1;
        }
        assert_eq!(closed, 50);
    }

    #[test]
    fn slots_follow_each_other() {
        let mut config = Config::default();
        (config.workers, config.reconnects_per_second) = (2, 200);
        let now = Instant::now();
        let mut drain = Drain::new(now, now, 3, &config);
        let slots = [drain.take_slot(now), drain.take_slot(now), drain.take_slot(now)];
        assert_eq!(slots, [10, 20, 30].map(Duration::from_millis));
    }

    #[test]
    fn neighbours_get_different_slots_however_far_apart_they_are_closed() {
        let now = Instant::now();
        let mut drain = Drain::new(now, now + Duration::from_secs(30), 50, &Config::default());
        let slots: Vec<_> = (0..50).map(|n| drain.take_slot(now + n * LONGEST_PAUSE)).collect();
        assert!(slots.windows(2).all(|pair| pair[0] < pair[1]), "{slots:?}");
    }
}
