//! Which log lines are written when there are too many of a kind.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Level, Metadata};

/// Lines of one kind that may come at once.
const BURST_LINES: u32 = 20;

/// The time in which one more may come.
const REFILL_INTERVAL: Duration = Duration::from_millis(500);

/// Targets that are not rate-limited. Only operators cause their lines, so a reload reports every
/// change; or the lines report lost lines.
const UNLIMITED_TARGETS: [&str; 3] =
    ["deeperhub_ws::reload::settings", "deeperhub_ws::log::queue", "deeperhub_ws::reload"];

/// Limits lines of level `info` and graver by the place in the program that they come from: what a client can cause, it
/// can cause without end. (Lines of `debug` and `trace` are asked for by whoever wants to see each.)
///
/// Places are as many as the program has, so the table does not grow with what happens.
#[derive(Debug, Default)]
pub(crate) struct LogRateLimit {
    budgets: Mutex<HashMap<Identifier, CallsiteBudget>>,
}

#[derive(Debug)]
struct CallsiteBudget {
    allowed: u32,
    since: Instant,
    left_out: u64,
}

impl LogRateLimit {
    /// How many of a line's kind were left out before it; `None`: it is to be left out too.
    pub(crate) fn check(&self, line: &Metadata<'_>, now: Instant) -> Option<u64> {
        if *line.level() > Level::INFO || UNLIMITED_TARGETS.contains(&line.target()) {
            return Some(0);
        }
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        let budget = budgets.entry(line.callsite()).or_insert(CallsiteBudget {
            allowed: BURST_LINES,
            since: now,
            left_out: 0,
        });
        budget.check(now)
    }
}

impl CallsiteBudget {
    fn check(&mut self, now: Instant) -> Option<u64> {
        let refills = now.saturating_duration_since(self.since).as_nanos() / REFILL_INTERVAL.as_nanos();
        let refills = u32::try_from(refills).unwrap_or(u32::MAX);
        if refills > 0 {
            self.allowed = self.allowed.saturating_add(refills).min(BURST_LINES);
            self.since =
                if self.allowed == BURST_LINES { now } else { self.since + REFILL_INTERVAL * refills };
        }
        match self.allowed.checked_sub(1) {
            Some(left) => {
                self.allowed = left;
                Some(std::mem::take(&mut self.left_out))
            }
            None => {
                self.left_out += 1;
                None
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
        let mut budget = CallsiteBudget { allowed: BURST_LINES, since: start, left_out: 0 };
        let mut written = |at| budget.check(start + at);
        for _ in 0..BURST_LINES {
            assert_eq!(written(Duration::ZERO), Some(0));
        }
        for _ in 0..5 {
            assert_eq!(written(Duration::from_millis(1)), None);
        }
        assert_eq!(written(REFILL_INTERVAL), Some(5));
        assert_eq!(written(REFILL_INTERVAL), None);
        assert_eq!(written(REFILL_INTERVAL * 2), Some(1));
        for _ in 0..BURST_LINES {
            assert_eq!(written(Duration::from_secs(3600)), Some(0));
        }
        assert_eq!(written(Duration::from_secs(3600)), None);
    }
}
