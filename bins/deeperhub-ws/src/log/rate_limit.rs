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

/// Lines of one call site that may be written at once.
const BURST_LINES: NonZeroU32 = NonZeroU32::new(20).expect("it is not 0");

/// Time after which one more line may be written.
const REFILL_INTERVAL: Duration = Duration::from_millis(500);

/// Targets without a limit. Only operators cause their lines, so a reload logs every change; or the
/// lines report lost lines.
const UNLIMITED_TARGETS: [&str; 3] =
    ["deeperhub_ws::reload::settings", "deeperhub_ws::log::queue", "deeperhub_ws::reload"];

/// Limits lines of level `info` and above per call site, because clients can cause any number.
/// `debug` and `trace` are unlimited, because whoever enables them wants every line.
///
/// The table has at most one entry per call site of the program.
#[derive(Debug, Default)]
pub(crate) struct LogRateLimit {
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
    /// Returns how many lines of the same call site were suppressed before this one. `None` if this
    /// one is to be suppressed, too.
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
