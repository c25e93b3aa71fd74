//! Rate limits of one connection.

use std::time::Duration;

use deeperhub_listener::Context;
use deeperhub_protocol::{CloseCode, CloseReason};
use deeperhub_security::{BurstAllowance, DrawOutcome, MAX_ADDRESSES, RateLimit, RateLimiter, RetryAfter};

use super::Session;
use crate::local::Local;
use crate::metrics::Limit;

/// Window in which rejected messages are counted.
const VIOLATION_WINDOW: Duration = Duration::from_secs(10);

/// Minimum number of rejected messages in the window that closes a connection. A larger burst
/// raises it.
const MIN_VIOLATIONS_TO_CLOSE: u32 = 10;

impl Session {
    /// Checks the rate limits for a message of `bytes`. The error is the time to wait.
    pub(super) fn check_rates(&mut self, bytes: usize, cx: &mut Context<'_, Local>) -> Result<(), Duration> {
        let now = cx.now();
        let local = cx.worker();
        let now = now.saturating_duration_since(local.hub.started);
        if let Some(limit) = local.live.rate_limit
            && let Err(retry) = self.message_limiter.limiter.check(&limit, now)
        {
            let check = RateCheck { kind: RateKind::Messages, limit, amount: 1, now };
            self.on_rate_exceeded(check, retry, local)?;
        }
        if let Some(limit) = local.live.byte_rate_limit
            && let Err(retry) =
                self.limiter(RateKind::Bytes, &limit, local).limiter.check_amount(&limit, bytes, now)
        {
            let check = RateCheck { kind: RateKind::Bytes, limit, amount: bytes, now };
            self.on_rate_exceeded(check, retry, local)?;
        }
        Ok(())
    }

    /// Handles a rejection by a limiter. Draws from the connection's first burst and checks the
    /// limiter again. If it still rejects, counts the rejection, and returns the time to wait if
    /// limits are enforced.
    #[cold]
    pub(super) fn on_rate_exceeded(
        &mut self,
        RateCheck { kind, limit, amount, now }: RateCheck,
        mut retry: RetryAfter,
        local: &mut Local,
    ) -> Result<(), Duration> {
        let mut exceeded = kind.limit();
        if let Some(burst_pool_since) = self.burst_pool_since(local)
            && let Some(bursts) = &local.hub.burst_pool
        {
            let address = self.peer.ip();
            let pool = |amount| bursts.draw(address, amount, limit.burst, now);
            let SessionLimiter { limiter, first } = self.limiter(kind, &limit, local);
            match first.draw(limiter, &limit, amount, (burst_pool_since, now), pool) {
                DrawOutcome::Some => match limiter.check_amount(&limit, amount, now) {
                    Ok(()) => return Ok(()),
                    Err(again) => retry = again,
                },
                DrawOutcome::Refused => exceeded = Limit::FirstBurst,
                DrawOutcome::Spent => {}
            }
            let forgotten = bursts.take_evicted();
            if forgotten > 0 {
                tracing::warn!(
                    forgotten,
                    max = MAX_ADDRESSES,
                    "Addresses of new connections forgotten too early"
                );
            }
        }
        local.on_limit_exceeded(exceeded, retry)
    }

    /// Counts bytes that the connection has published.
    pub(crate) fn record_publish(&mut self, bytes: usize, uncongested_rounds: u32) {
        self.rare_limiters.get_or_insert_default().publishes.add(bytes, uncongested_rounds);
    }

    /// Returns when the connection opened, in the hub's time, if its bursts come from its address's
    /// pool. A trusted proxy's own connections have bursts of their own, since a proxy may speak
    /// for many clients.
    pub(super) fn burst_pool_since(&self, local: &Local) -> Option<Duration> {
        local.hub.burst_pool.as_ref()?;
        let opened_at = self.opened_at?.saturating_duration_since(local.hub.started);
        (!local.hub.config.listener.trusted_proxies.trusts(self.peer.ip())).then_some(opened_at)
    }

    /// Returns the limiter of a kind. Creates it on first use.
    pub(super) fn limiter(
        &mut self,
        kind: RateKind,
        limit: &RateLimit,
        local: &Local,
    ) -> &mut SessionLimiter {
        let burst_pool_since = self.burst_pool_since(local);
        if let RateKind::Messages = kind {
            return &mut self.message_limiter;
        }
        let rare_limiters = self.rare_limiters.get_or_insert_default();
        let slot = match kind {
            RateKind::Messages | RateKind::Bytes => &mut rare_limiters.bytes,
            RateKind::Tokens => &mut rare_limiters.tokens,
            RateKind::Control => &mut rare_limiters.control,
        };
        slot.get_or_insert_with(|| SessionLimiter::new(limit, burst_pool_since))
    }

    /// Checks the rate of tokens, in addition to [`Self::check_rates`].
    pub(super) fn check_token_rate(&mut self, cx: &mut Context<'_, Local>) -> Result<(), Duration> {
        let Some(limit) = cx.worker().live.token_rate_limit else { return Ok(()) };
        self.check_rare_rate(RateKind::Tokens, limit, cx)
    }

    pub(super) fn check_rare_rate(
        &mut self,
        kind: RateKind,
        limit: RateLimit,
        cx: &mut Context<'_, Local>,
    ) -> Result<(), Duration> {
        let now = cx.now();
        let local = cx.worker();
        let now = now.saturating_duration_since(local.hub.started);
        match self.limiter(kind, &limit, local).limiter.check(&limit, now) {
            Ok(()) => Ok(()),
            Err(retry) => self.on_rate_exceeded(RateCheck { kind, limit, amount: 1, now }, retry, local),
        }
    }

    /// Counts a violation of `limit`. Closes the connection if there are too many.
    pub(super) fn count_violation(&mut self, limit: Option<RateLimit>, cx: &mut Context<'_, Local>) {
        let burst = limit.map_or(0, |limit| limit.burst.get());
        let now = cx.now();
        let count = self.violations.increment(now.saturating_duration_since(cx.worker().hub.started));
        if count >= burst.max(MIN_VIOLATIONS_TO_CLOSE) {
            cx.close(CloseReason::new(CloseCode::PolicyViolation, "kept violating the rate limit"));
        }
    }
}

/// Limiters of message bytes, of tokens in messages, and of unsolicited pings and pongs. Also
/// counts the bytes of publishes that are still queued for other workers.
#[derive(Debug, Default)]
pub(super) struct RareLimiters {
    bytes: Option<SessionLimiter>,
    tokens: Option<SessionLimiter>,
    control: Option<SessionLimiter>,
    pub(super) publishes: QueuedPublishes,
}

/// Check of a rate limit.
#[derive(Debug)]
pub(super) struct RateCheck {
    kind: RateKind,
    limit: RateLimit,
    /// Messages or bytes.
    amount: usize,
    /// Hub's time.
    now: Duration,
}

/// Kind of rate limit.
#[derive(Debug, Clone, Copy)]
pub(super) enum RateKind {
    Messages,
    Bytes,
    Tokens,
    Control,
}

impl RateKind {
    const fn limit(self) -> Limit {
        match self {
            Self::Messages => Limit::Messages,
            Self::Bytes => Limit::Bytes,
            Self::Tokens => Limit::Tokens,
            Self::Control => Limit::Control,
        }
    }
}

/// Limiter with the state of its connection's first burst. 16 bytes.
#[derive(Debug, Default)]
pub(super) struct SessionLimiter {
    limiter: RateLimiter,
    first: BurstAllowance,
}

impl SessionLimiter {
    /// Creates a limiter. If its burst comes from a pool, it starts empty; `burst_pool_since` is
    /// when the connection opened.
    pub(super) fn new(limit: &RateLimit, burst_pool_since: Option<Duration>) -> Self {
        let limiter = burst_pool_since.map_or_else(RateLimiter::default, |burst_pool_since| {
            RateLimiter::empty(limit, burst_pool_since)
        });
        Self { limiter, first: BurstAllowance::default() }
    }
}

/// Published bytes of a connection that may still be queued for congested workers. 8 bytes.
#[derive(Debug, Default)]
pub(super) struct QueuedPublishes {
    /// Value of the worker's [`Local::uncongested_rounds`] at the last publish.
    since: u32,
    bytes: u32,
}

impl QueuedPublishes {
    /// Counts a publish.
    pub(super) fn add(&mut self, bytes: usize, uncongested_rounds: u32) {
        let before = self.bytes(uncongested_rounds);
        self.since = uncongested_rounds;
        self.bytes = u32::try_from(before.saturating_add(bytes)).unwrap_or(u32::MAX);
    }

    /// Returns the bytes that may still be queued.
    pub(super) fn bytes(&self, uncongested_rounds: u32) -> usize {
        if self.since == uncongested_rounds { self.bytes as usize } else { 0 }
    }
}

/// Violations in the current window. 8 bytes.
#[derive(Debug, Default)]
pub(super) struct ViolationCounter {
    /// Start of the window, in milliseconds of the hub's time, wrapping.
    since: u32,
    count: u32,
}

impl ViolationCounter {
    /// Counts a violation. Returns the number in the current window.
    pub(super) fn increment(&mut self, now: Duration) -> u32 {
        let now = now.as_millis() as u32;
        let age = Duration::from_millis(now.wrapping_sub(self.since).into());
        if self.count == 0 || age >= VIOLATION_WINDOW {
            *self = Self { since: now, count: 0 };
        }
        self.count += 1;
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn publishes_count_as_held_until_no_worker_is_behind() {
        let mut waiting = QueuedPublishes::default();
        waiting.add(1000, 7);
        waiting.add(500, 7);
        assert_eq!((waiting.bytes(7), waiting.bytes(8)), (1500, 0));
        waiting.add(10, 8);
        assert_eq!(waiting.bytes(8), 10);
        waiting.add(usize::MAX, 8);
        assert_eq!(waiting.bytes(8), u32::MAX as usize);
    }

    #[test]
    fn violations_are_counted_within_a_window() {
        let mut violations = ViolationCounter::default();
        let mut count = |seconds| violations.increment(Duration::from_secs(seconds));
        assert_eq!((count(3), count(3), count(12)), (1, 2, 3));
        assert_eq!((count(13), count(22)), (1, 2), "a new window");
        // The time wraps after 49 days.
        let wraps = u64::from(u32::MAX) / 1000;
        assert_eq!((count(wraps - 1), count(wraps + 2)), (1, 2));
    }
}
