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

/// Rate limiter of one connection, in 8 bytes. All connections share the [`RateLimit`] itself.
///
/// The state is governor's theoretical arrival time of the next message. Governor's own limiter also
/// stores the limit, a clock and its start. So each check builds one on the stack, with a clock that
/// is fixed at the given time.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct RateLimiter {
    /// Theoretical arrival time in nanoseconds of the caller's clock; 0 before the first event.
    pub(super) arrival: u64,
}

impl RateLimiter {
    /// Returns a limiter that started at `begun` with an empty burst. It grants only what it has
    /// earned since then.
    #[must_use]
    pub fn empty(limit: &RateLimit, begun: Duration) -> Self {
        Self { arrival: nanos(begun).saturating_add(limit.burst_nanos()) }
    }

    /// Credits `amount` in advance, so that as many more are granted from now on. The total never
    /// exceeds the burst.
    pub fn grant(&mut self, limit: &RateLimit, amount: u32, now: Duration) {
        let earlier = limit.interval().saturating_mul(amount.into());
        self.arrival = self.arrival.saturating_sub(earlier).max(nanos(now));
    }

    /// Grants one event at the time `now`, which counts from any fixed point of the caller's choice.
    ///
    /// If `now` is before the last call's time, the wait becomes that much longer. The limit may change
    /// between calls.
    ///
    /// # Errors
    ///
    /// [`RetryAfter`] if the event is over the limit. A refused event uses up nothing.
    #[inline]
    pub fn check(&mut self, limit: &RateLimit, now: Duration) -> Result<(), RetryAfter> {
        let now = nanos(now);
        let store = Arrival { arrival: Cell::new(self.arrival), now };
        let limiter =
            governor::RateLimiter::<_, _, _, NoOpMiddleware<Nanos>>::new(limit.quota(), &store, At(now));
        let checked = limiter.check();
        self.arrival = store.arrival.get();
        checked.map_err(|not_until| retry_after(&not_until, now))
    }

    /// Grants `amount` at once, such as the bytes of a message. Zero is always granted. More than the
    /// burst costs a whole burst, so that large messages are granted from time to time, not never.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check).
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
        let checked = limiter.check_n(amount);
        self.arrival = store.arrival.get();
        match checked {
            Ok(Ok(())) => Ok(()),
            Ok(Err(not_until)) => Err(retry_after(&not_until, now)),
            // `amount` is at most the burst, so this cannot happen.
            Err(_) => Ok(()),
        }
    }
}

/// State of one check. The limiter starts at `now`, so governor's times are relative to it.
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
