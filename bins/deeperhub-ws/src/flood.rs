//! Which log lines are written when there are too many of a kind.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Level, Metadata};

/// Lines of one kind that may come at once.
const BURST: u32 = 20;

/// The time in which one more may come.
const REFILL: Duration = Duration::from_millis(500);

/// Limits lines of level `info` and graver by the place in the program that they come from: what a client can cause, it
/// can cause without end. (Lines of `debug` and `trace` are asked for by whoever wants to see each.)
///
/// Places are as many as the program has, so the table does not grow with what happens.
#[derive(Debug, Default)]
pub(crate) struct Flood {
    places: Mutex<HashMap<Identifier, Place>>,
}

#[derive(Debug)]
struct Place {
    allowed: u32,
    since: Instant,
    left_out: u64,
}

/// What to do with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Write it, and say how many of its kind were left out before it.
    Write { left_out: u64 },
    /// Count it, no more.
    LeaveOut,
}

impl Flood {
    pub(crate) fn check(&self, line: &Metadata<'_>, now: Instant) -> Verdict {
        if *line.level() > Level::INFO {
            return Verdict::Write { left_out: 0 };
        }
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let place =
            places.entry(line.callsite()).or_insert(Place { allowed: BURST, since: now, left_out: 0 });
        place.check(now)
    }
}

impl Place {
    fn check(&mut self, now: Instant) -> Verdict {
        let refills = now.saturating_duration_since(self.since).as_nanos() / REFILL.as_nanos();
        let refills = u32::try_from(refills).unwrap_or(u32::MAX);
        if refills > 0 {
            self.allowed = self.allowed.saturating_add(refills).min(BURST);
            self.since = if self.allowed == BURST { now } else { self.since + REFILL * refills };
        }
        match self.allowed.checked_sub(1) {
            Some(left) => {
                self.allowed = left;
                Verdict::Write { left_out: std::mem::take(&mut self.left_out) }
            }
            None => {
                self.left_out += 1;
                Verdict::LeaveOut
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_a_line_now_and_then() {
        let start = Instant::now();
        let mut place = Place { allowed: BURST, since: start, left_out: 0 };
        let mut written = |at| match place.check(start + at) {
            Verdict::Write { left_out } => Some(left_out),
            Verdict::LeaveOut => None,
        };
        for _ in 0..BURST {
            assert_eq!(written(Duration::ZERO), Some(0));
        }
        for _ in 0..5 {
            assert_eq!(written(Duration::from_millis(1)), None);
        }
        assert_eq!(written(REFILL), Some(5));
        assert_eq!(written(REFILL), None);
        assert_eq!(written(REFILL * 2), Some(1));
        for _ in 0..BURST {
            assert_eq!(written(Duration::from_secs(3600)), Some(0));
        }
        assert_eq!(written(Duration::from_secs(3600)), None);
    }
}
