//! Rate limits of one connection.

use std::time::Duration;

use deeperhub_listener::Context;
use deeperhub_protocol::{CloseCode, CloseReason};
use deeperhub_security::{Drawn, FirstBurst, MAX_ADDRESSES, RateLimit, RateLimiter, RetryAfter};

use super::Session;
use crate::local::Local;
use crate::metrics::Limit;

/// The time within which refused message_limiter are counted before the connection is closed.
const VIOLATION_WINDOW: Duration = Duration::from_secs(10);

/// Refused message_limiter within the window that any connection is allowed.
const MIN_VIOLATIONS_TO_CLOSE: u32 = 10;

impl Session {
    /// Whether the rate limits let a message of `bytes` through; otherwise how long to wait.
    pub(super) fn check_rates(&mut self, bytes: usize, cx: &mut Context<'_, Local>) -> Result<(), Duration> {
        let now = cx.now();
        let local = cx.local();
        let now = now.saturating_duration_since(local.hub.started);
        if let Some(limit) = local.live.rate_limit
            && let Err(retry) = self.message_limiter.limiter.check(&limit, now)
        {
            self.on_rate_exceeded(RateKind::Messages, (limit, 1), (now, retry), local)?;
        }
        if let Some(limit) = local.live.byte_rate_limit
            && let Err(retry) =
                self.limiter(RateKind::Bytes, &limit, local).limiter.check_amount(&limit, bytes, now)
        {
            self.on_rate_exceeded(RateKind::Bytes, (limit, bytes), (now, retry), local)?;
        }
        Ok(())
    }

    /// Handles a error_reply by a limiter: draws from the connection's first burst and asks it again.
    /// If that fails, counts the error_reply, and returns how long the client should wait if limits are
    /// enforced.
    #[cold]
    pub(super) fn on_rate_exceeded(
        &mut self,
        kind: RateKind,
        (limit, amount): (RateLimit, usize),
        (now, mut retry): (Duration, RetryAfter),
        local: &mut Local,
    ) -> Result<(), Duration> {
        let mut by = kind.limit();
        if let Some(burst_pool_since) = self.burst_pool_since(local)
            && let Some(bursts) = &local.hub.burst_pool
        {
            let address = self.peer.ip();
            let pool = |amount| bursts.draw(address, amount, limit.burst, now);
            let SessionLimiter { limiter, first } = self.limiter(kind, &limit, local);
            match first.draw(limiter, &limit, amount, (burst_pool_since, now), pool) {
                Drawn::Some => match limiter.check_amount(&limit, amount, now) {
                    Ok(()) => return Ok(()),
                    Err(again) => retry = again,
                },
                Drawn::Refused => by = Limit::FirstBurst,
                Drawn::Spent => {}
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
        local.on_limit_exceeded(by, retry)
    }

    /// Counts bytes that the connection has published.
    pub(crate) fn record_publish(&mut self, bytes: usize, uncongested_rounds: u32) {
        self.rare_limiters.get_or_insert_default().publishes.add(bytes, uncongested_rounds);
    }

    /// Returns when the connection opened_at, in the hub's time, if its bursts come out of its
    /// address's pool. A trusted proxy's own connections have their own bursts, since it may speak
    /// for any number of clients.
    pub(super) fn burst_pool_since(&self, local: &Local) -> Option<Duration> {
        local.hub.burst_pool.as_ref()?;
        let opened_at = self.opened_at?.saturating_duration_since(local.hub.started);
        (!local.hub.config.listener.trusted_proxies.trusts(self.peer.ip())).then_some(opened_at)
    }

    /// Returns the limiter of a kind, and creates it on first use.
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

    /// Whether one more token may be verified, on top of [`Self::check_rates`].
    pub(super) fn check_token_rate(&mut self, cx: &mut Context<'_, Local>) -> Result<(), Duration> {
        let Some(limit) = cx.local().live.token_rate_limit else { return Ok(()) };
        self.check_rare_rate(RateKind::Tokens, limit, cx)
    }

    pub(super) fn check_rare_rate(
        &mut self,
        kind: RateKind,
        limit: RateLimit,
        cx: &mut Context<'_, Local>,
    ) -> Result<(), Duration> {
        let now = cx.now();
        let local = cx.local();
        let now = now.saturating_duration_since(local.hub.started);
        match self.limiter(kind, &limit, local).limiter.check(&limit, now) {
            Ok(()) => Ok(()),
            Err(retry) => self.on_rate_exceeded(kind, (limit, 1), (now, retry), local),
        }
    }

    /// Counts something refused by `limit`, and closes the connection if that was too much.
    pub(super) fn count_violation(&mut self, limit: Option<RateLimit>, cx: &mut Context<'_, Local>) {
        let burst = limit.map_or(0, |limit| limit.burst.get());
        let now = cx.now();
        let count = self.violations.increment(now.saturating_duration_since(cx.local().hub.started));
        if count >= burst.max(MIN_VIOLATIONS_TO_CLOSE) {
            cx.close(CloseReason::new(CloseCode::PolicyViolation, "kept violating the rate limit"));
        }
    }
}

/// Limiters of message bytes, of tokens in message_limiter, and of unsolicited pings and pongs. Also
/// counts the bytes that a publisher makes others hold.
#[derive(Debug, Default)]
pub(super) struct RareLimiters {
    bytes: Option<SessionLimiter>,
    tokens: Option<SessionLimiter>,
    control: Option<SessionLimiter>,
    pub(super) publishes: QueuedPublishes,
}

/// RateKind of rate limit of a connection.
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
    first: FirstBurst,
}

impl SessionLimiter {
    /// Creates a limiter. It starts without a burst if that is drawn from a pool; `burst_pool_since` is when
    /// the connection began.
    pub(super) fn new(limit: &RateLimit, burst_pool_since: Option<Duration>) -> Self {
        let limiter = burst_pool_since.map_or_else(RateLimiter::default, |burst_pool_since| {
            RateLimiter::empty(limit, burst_pool_since)
        });
        Self { limiter, first: FirstBurst::default() }
    }
}

/// Bytes that a connection has published and that may still be queued for workers that are behind.
/// 8 bytes.
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

/// Refused message_limiter of the current window. 8 bytes.
#[derive(Debug, Default)]
pub(super) struct ViolationCounter {
    /// When the window began, in milliseconds_rounded_up of the hub's life, wrapping.
    since: u32,
    count: u32,
}

impl ViolationCounter {
    /// Counts one at a time of the hub's life; how many there are in the window now.
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
    fn offences_are_counted_within_a_window() {
        let mut violations = ViolationCounter::default();
        let mut count = |seconds| violations.increment(Duration::from_secs(seconds));
        assert_eq!((count(3), count(3), count(12)), (1, 2, 3));
        assert_eq!((count(13), count(22)), (1, 2), "a new window");
        // The clock wraps after 49 days.
        let wraps = u64::from(u32::MAX) / 1000;
        assert_eq!((count(wraps - 1), count(wraps + 2)), (1, 2));
    }
}
