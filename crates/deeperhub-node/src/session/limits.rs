//! Rate limits of one connection. Times are given as hub time: the time since the hub's start.

use std::time::Duration;

use deeperhub_listener::Context;
use deeperhub_protocol::{CloseCode, CloseReason};
use deeperhub_security::{BurstAllowance, DrawOutcome, MAX_ADDRESSES, RateLimit, RateLimiter, RetryAfter};

use super::Session;
use crate::metrics::Limit;
use crate::worker::NodeWorker;

/// Length of the window in which violations of rate limits are counted.
const VIOLATION_WINDOW: Duration = Duration::from_secs(10);

/// Minimum violations in a window at which a connection is closed. See
/// [`Session::count_violation`].
const MIN_VIOLATIONS_TO_CLOSE: u32 = 10;

impl Session {
    /// Checks the rates of messages and bytes for a message of `bytes`.
    ///
    /// # Errors
    ///
    /// Returns the time to wait if a rate is exceeded and limits are enforced.
    pub(super) fn check_rates(
        &mut self,
        bytes: usize,
        cx: &mut Context<'_, NodeWorker>,
    ) -> Result<(), Duration> {
        let now = cx.now();
        let worker = cx.worker();
        let now = now.saturating_duration_since(worker.hub.started);
        if let Some(limit) = worker.limits.session.rate_limit
            && let Err(retry) = self.message_limiter.limiter.check(&limit, now)
        {
            let check = RateCheck { kind: RateKind::Messages, limit, amount: 1, now };
            self.on_rate_exceeded(check, retry, worker)?;
        }
        if let Some(limit) = worker.limits.session.byte_rate_limit
            && let Err(retry) =
                self.limiter(RateKind::Bytes, &limit, worker).limiter.check_amount(&limit, bytes, now)
        {
            let check = RateCheck { kind: RateKind::Bytes, limit, amount: bytes, now };
            self.on_rate_exceeded(check, retry, worker)?;
        }
        Ok(())
    }

    /// Checks the rate of messages for a message that counts as `count` more than one.
    ///
    /// # Errors
    ///
    /// Returns the time to wait if the rate is exceeded and limits are enforced.
    pub(crate) fn check_more_messages(
        &mut self,
        count: usize,
        cx: &mut Context<'_, NodeWorker>,
    ) -> Result<(), Duration> {
        let now = cx.now();
        let worker = cx.worker();
        let Some(limit) = worker.limits.session.rate_limit.filter(|_| count > 0) else { return Ok(()) };
        let now = now.saturating_duration_since(worker.hub.started);
        // A message cannot count as more than the burst, or it would never be accepted.
        let amount = count.min(limit.burst.get() as usize);
        match self.message_limiter.limiter.check_amount(&limit, amount, now) {
            Ok(()) => Ok(()),
            Err(retry) => {
                let check = RateCheck { kind: RateKind::Messages, limit, amount, now };
                self.on_rate_exceeded(check, retry, worker)
            }
        }
    }

    /// Handles a rejection by a limiter. If the connection's burst comes from its address's pool,
    /// draws from the pool and checks the limiter again. If the limiter still rejects the amount,
    /// counts it as over the limit.
    ///
    /// # Errors
    ///
    /// Returns the time to wait if the amount is over the limit and limits are enforced.
    #[cold]
    pub(super) fn on_rate_exceeded(
        &mut self,
        RateCheck { kind, limit, amount, now }: RateCheck,
        mut retry: RetryAfter,
        worker: &mut NodeWorker,
    ) -> Result<(), Duration> {
        let mut exceeded = kind.limit();
        if let Some(burst_pool_since) = self.burst_pool_since(worker)
            && let Some(bursts) = &worker.hub.burst_pool
        {
            let address = self.peer.ip();
            let pool = |amount| bursts.draw(address, amount, limit.burst, now);
            let SessionLimiter { limiter, burst_allowance } = self.limiter(kind, &limit, worker);
            match burst_allowance.draw(limiter, &limit, amount, (burst_pool_since, now), pool) {
                DrawOutcome::Some => match limiter.check_amount(&limit, amount, now) {
                    Ok(()) => return Ok(()),
                    Err(later_retry) => retry = later_retry,
                },
                DrawOutcome::Refused => exceeded = Limit::FirstBurst,
                DrawOutcome::Spent => {}
            }
            let evicted = bursts.take_evicted();
            if evicted > 0 {
                tracing::warn!(evicted, max = MAX_ADDRESSES, "Too many addresses in the burst pool");
            }
        }
        worker.on_limit_exceeded(exceeded, retry)
    }

    /// Counts bytes that the connection has published.
    pub(crate) fn record_publish(&mut self, bytes: usize, uncongested_rounds: u32) {
        self.rare_limiters.get_or_insert_default().publishes.add(bytes, uncongested_rounds);
    }

    /// Returns the hub time at which the connection opened, if its bursts come from its address's
    /// pool. Connections of a trusted proxy itself have their own bursts, because one proxy serves
    /// many clients.
    pub(super) fn burst_pool_since(&self, worker: &NodeWorker) -> Option<Duration> {
        worker.hub.burst_pool.as_ref()?;
        let opened_at = self.opened_at?.saturating_duration_since(worker.hub.started);
        (!worker.hub.config.listener.trusted_proxies.trusts(self.peer.ip())).then_some(opened_at)
    }

    /// Returns the limiter of a kind. Creates it on first use.
    pub(super) fn limiter(
        &mut self,
        kind: RateKind,
        limit: &RateLimit,
        worker: &NodeWorker,
    ) -> &mut SessionLimiter {
        let burst_pool_since = self.burst_pool_since(worker);
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

    /// Checks the rate of tokens. [`Self::check_rates`] has checked the message before.
    ///
    /// # Errors
    ///
    /// Returns the time to wait if the rate is exceeded and limits are enforced.
    pub(super) fn check_token_rate(&mut self, cx: &mut Context<'_, NodeWorker>) -> Result<(), Duration> {
        let Some(limit) = cx.worker().limits.session.token_rate_limit else { return Ok(()) };
        self.check_rare_rate(RateKind::Tokens, limit, cx)
    }

    /// Checks a rate other than those of [`Self::check_rates`], with the same errors.
    pub(super) fn check_rare_rate(
        &mut self,
        kind: RateKind,
        limit: RateLimit,
        cx: &mut Context<'_, NodeWorker>,
    ) -> Result<(), Duration> {
        let now = cx.now();
        let worker = cx.worker();
        let now = now.saturating_duration_since(worker.hub.started);
        match self.limiter(kind, &limit, worker).limiter.check(&limit, now) {
            Ok(()) => Ok(()),
            Err(retry) => self.on_rate_exceeded(RateCheck { kind, limit, amount: 1, now }, retry, worker),
        }
    }

    /// Counts a violation of a rate limit. Closes the connection at [`MIN_VIOLATIONS_TO_CLOSE`]
    /// violations in the current window, or at the burst of `limit` if that is larger.
    pub(super) fn count_violation(&mut self, limit: Option<RateLimit>, cx: &mut Context<'_, NodeWorker>) {
        let burst = limit.map_or(0, |limit| limit.burst.get());
        let now = cx.now();
        let count = self.violations.increment(now.saturating_duration_since(cx.worker().hub.started));
        if count >= burst.max(MIN_VIOLATIONS_TO_CLOSE) {
            cx.close(CloseReason::new(CloseCode::PolicyViolation, "kept violating the rate limit"));
        }
    }
}

/// State that few connections need: limiters of message bytes, tokens, and pings and pongs, and a
/// counter of queued publishes.
#[derive(Debug, Default)]
pub(super) struct RareLimiters {
    bytes: Option<SessionLimiter>,
    tokens: Option<SessionLimiter>,
    control: Option<SessionLimiter>,
    pub(super) publishes: QueuedPublishes,
}

/// Arguments of a rate limit's check.
#[derive(Debug)]
pub(super) struct RateCheck {
    kind: RateKind,
    limit: RateLimit,
    /// Number of messages or bytes.
    amount: usize,
    /// Hub time of the check.
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

/// Limiter, with the state of the connection's draws from its address's burst pool. 16 bytes.
#[derive(Debug, Default)]
pub(super) struct SessionLimiter {
    limiter: RateLimiter,
    burst_allowance: BurstAllowance,
}

impl SessionLimiter {
    /// Creates a limiter. `burst_pool_since` is the hub time at which the connection opened, if its
    /// burst comes from a pool. The limiter then starts without a burst.
    pub(super) fn new(limit: &RateLimit, burst_pool_since: Option<Duration>) -> Self {
        let limiter =
            burst_pool_since.map_or_else(RateLimiter::default, |since| RateLimiter::empty(limit, since));
        Self { limiter, burst_allowance: BurstAllowance::default() }
    }
}

/// Published bytes of a connection that may still be queued for congested workers: those since the
/// last round in which no worker was congested. 8 bytes.
#[derive(Debug, Default)]
pub(super) struct QueuedPublishes {
    /// Value of the worker's [`NodeWorker::uncongested_rounds`] at the last publish.
    uncongested_rounds: u32,
    bytes: u32,
}

impl QueuedPublishes {
    /// Counts a publish.
    pub(super) fn add(&mut self, bytes: usize, uncongested_rounds: u32) {
        let queued = self.bytes(uncongested_rounds);
        self.uncongested_rounds = uncongested_rounds;
        self.bytes = u32::try_from(queued.saturating_add(bytes)).unwrap_or(u32::MAX);
    }

    /// Returns the bytes that may still be queued.
    pub(super) fn bytes(&self, uncongested_rounds: u32) -> usize {
        if self.uncongested_rounds == uncongested_rounds { self.bytes as usize } else { 0 }
    }
}

/// Violations in the current window. 8 bytes.
#[derive(Debug, Default)]
pub(super) struct ViolationCounter {
    /// Start of the window in milliseconds of hub time, wrapping.
    window_start: u32,
    count: u32,
}

impl ViolationCounter {
    /// Counts a violation. Returns the number of violations in the current window.
    pub(super) fn increment(&mut self, now: Duration) -> u32 {
        let now = now.as_millis() as u32;
        let age = Duration::from_millis(now.wrapping_sub(self.window_start).into());
        if self.count == 0 || age >= VIOLATION_WINDOW {
            *self = Self { window_start: now, count: 0 };
        }
        self.count += 1;
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_bytes_count_until_the_next_uncongested_round() {
        let mut queued = QueuedPublishes::default();
        queued.add(1000, 7);
        queued.add(500, 7);
        assert_eq!((queued.bytes(7), queued.bytes(8)), (1500, 0));
        queued.add(10, 8);
        assert_eq!(queued.bytes(8), 10);
        queued.add(usize::MAX, 8);
        assert_eq!(queued.bytes(8), u32::MAX as usize);
    }

    #[test]
    fn violations_are_counted_within_a_window() {
        let mut violations = ViolationCounter::default();
        let mut count = |seconds| violations.increment(Duration::from_secs(seconds));
        assert_eq!((count(3), count(3), count(12)), (1, 2, 3));
        assert_eq!((count(13), count(22)), (1, 2), "a new window");
        // The time wraps after 49 days.
        let wrap = u64::from(u32::MAX) / 1000;
        assert_eq!((count(wrap - 1), count(wrap + 2)), (1, 2));
    }
}
