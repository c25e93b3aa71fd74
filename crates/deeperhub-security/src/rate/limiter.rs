//! Rate limiter of one connection.

use super::{RateLimit, RetryAfter, nanos};
use governor::NotUntil;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};
use std::cell::Cell;
use std::num::NonZeroU32;
use std::time::Duration;

/// Rate limiter of one connection, in 8 bytes. Connections share the [`RateLimit`], which each call
/// gets as an argument.
///
/// The state is the theoretical arrival time of the next event. Governor's own limiter also stores
/// the limit, a clock and a start time. So each check builds such a limiter on the stack, with a
/// clock that is fixed at the given time.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct RateLimiter {
    /// Theoretical arrival time in nanoseconds of the caller's clock; 0 before the first event.
    pub(super) arrival: u64,
}

impl RateLimiter {
    /// Creates a limiter that started at `begun` with an empty burst. The burst has refilled since
    /// then at the rate of the limit.
    #[must_use]
    pub fn empty(limit: &RateLimit, begun: Duration) -> Self {
        Self { arrival: nanos(begun).saturating_add(limit.burst_nanos()) }
    }

    /// Refills the burst by `amount` at once, at most to a full burst.
    pub fn grant(&mut self, limit: &RateLimit, amount: u32, now: Duration) {
        let refill_time = limit.interval().saturating_mul(amount.into());
        self.arrival = self.arrival.saturating_sub(refill_time).max(nanos(now));
    }

    /// Grants one event at the time `now`. The caller chooses the fixed point that times count
    /// from.
    ///
    /// If `now` is before the time of the last call, the wait is longer by the difference. The
    /// limit may change between calls.
    ///
    /// # Errors
    ///
    /// [`RetryAfter`] if the event is over the limit. A refused event does not count.
    #[inline]
    pub fn check(&mut self, limit: &RateLimit, now: Duration) -> Result<(), RetryAfter> {
        let now = nanos(now);
        let store = Arrival { arrival: Cell::new(self.arrival), now };
        let limiter =
            governor::RateLimiter::<_, _, _, NoOpMiddleware<Nanos>>::new(limit.quota(), &store, At(now));
        let result = limiter.check();
        self.arrival = store.arrival.get();
        result.map_err(|not_until| retry_after(&not_until, now))
    }

    /// Grants `amount` at once, such as the bytes of a message. Zero is always granted. More than a
    /// burst counts as a whole burst, because it could never be granted otherwise.
    ///
    /// # Errors
    ///
    /// [`RetryAfter`] if the amount is over the limit. A refused amount does not count.
    #[inline]
    pub fn check_amount(
        &mut self,
        limit: &RateLimit,
        amount: usize,
        now: Duration,
    ) -> Result<(), RetryAfter> {
        let amount = u32::try_from(amount).unwrap_or(u32::MAX).min(limit.burst.get());
        let Some(amount) = NonZeroU32::new(amount) else { return Ok(()) };
        let now = nanos(now);
        let store = Arrival { arrival: Cell::new(self.arrival), now };
        let limiter =
            governor::RateLimiter::<_, _, _, NoOpMiddleware<Nanos>>::new(limit.quota(), &store, At(now));
        let result = limiter.check_n(amount);
        self.arrival = store.arrival.get();
        match result {
            Ok(Ok(())) => Ok(()),
            Ok(Err(not_until)) => Err(retry_after(&not_until, now)),
            // Amounts over the burst are an error, but `amount` is at most the burst.
            Err(_) => Ok(()),
        }
    }
}

/// Adapter of the state for one check. Governor's times are relative to the start of its limiter,
/// which is `now`.
struct Arrival {
    arrival: Cell<u64>,
    now: u64,
}

impl StateStore for &Arrival {
    type Key = NotKeyed;

    #[inline]
    fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, decide: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        let (outcome, arrival) = decide(Some(Nanos::new(self.arrival.get().saturating_sub(self.now))))?;
        self.arrival.set(self.now.saturating_add(arrival.as_u64()));
        Ok(outcome)
    }
}

/// A clock that is fixed at one time.
#[derive(Clone)]
struct At(u64);

impl Clock for At {
    type Instant = Nanos;

    #[inline]
    fn now(&self) -> Nanos {
        Nanos::new(self.0)
    }
}

fn retry_after(not_until: &NotUntil<Nanos>, now: u64) -> RetryAfter {
    RetryAfter(not_until.wait_time_from(Nanos::new(now)))
}
