//! Rate limit for repeated log lines.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tracing::callsite::Identifier;
use tracing::{Level, Metadata};

/// Lines of one call site that can be written without a pause.
const BURST_LINES: NonZeroU32 = NonZeroU32::new(20).expect("it is not 0");

/// Time until a call site may write one more line after its burst.
const REFILL_INTERVAL: Duration = Duration::from_millis(500);

/// Targets without a limit. Lines of the reload are caused by operators, who need to see every
/// change. Lines of the queue report lost lines.
const UNLIMITED_TARGETS: [&str; 3] =
    ["deeperhub_ws::reload::settings", "deeperhub_ws::log::queue", "deeperhub_ws::reload"];

/// Limits lines of level `info` and above per call site, because clients can cause any number of
/// them. Lines of `debug` and `trace` are not limited, because an operator enables these levels to
/// see every line.
#[derive(Debug, Default)]
pub(crate) struct LogRateLimit {
    /// At most one entry per call site of the program.
    callsites: Mutex<HashMap<Identifier, Callsite>>,
}

/// The limit of one call site.
#[derive(Debug)]
struct Callsite<C: Clock = DefaultClock> {
    limiter: RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<C::Instant>>,
    /// Lines suppressed since the last written one.
    left_out: u64,
}

impl LogRateLimit {
    /// Counts a line. Returns the number of lines of its call site that were suppressed right
    /// before it, or `None` if the line must be suppressed, too.
    pub(crate) fn check(&self, line: &Metadata<'_>) -> Option<u64> {
        if *line.level() > Level::INFO || UNLIMITED_TARGETS.contains(&line.target()) {
            return Some(0);
        }
        let mut callsites = self.callsites.lock().unwrap_or_else(PoisonError::into_inner);
        callsites.entry(line.callsite()).or_insert_with(|| Callsite::new(DefaultClock::default())).check()
    }
}

impl<C: Clock> Callsite<C> {
    fn new(clock: C) -> Self {
        let quota = Quota::with_period(REFILL_INTERVAL).expect("it is not 0").allow_burst(BURST_LINES);
        Self { limiter: RateLimiter::direct_with_clock(quota, clock), left_out: 0 }
    }

    fn check(&mut self) -> Option<u64> {
        if self.limiter.check().is_ok() {
            return Some(std::mem::take(&mut self.left_out));
        }
        self.left_out += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    #[test]
    fn a_burst_passes_and_then_one_line_per_interval() {
        let clock = FakeRelativeClock::default();
        let mut callsite = Callsite::new(clock.clone());
        for _ in 0..BURST_LINES.get() {
            assert_eq!(callsite.check(), Some(0));
        }
        for _ in 0..5 {
            assert_eq!(callsite.check(), None);
        }
        clock.advance(REFILL_INTERVAL);
        assert_eq!(callsite.check(), Some(5));
        assert_eq!(callsite.check(), None);
        clock.advance(REFILL_INTERVAL);
        assert_eq!(callsite.check(), Some(1));
        clock.advance(Duration::from_secs(3600));
        for _ in 0..BURST_LINES.get() {
            assert_eq!(callsite.check(), Some(0));
        }
        assert_eq!(callsite.check(), None);
    }
}
