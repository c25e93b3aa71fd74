//! Rate limits per connection and per address.
//!
//! The algorithm is [`governor`]'s generic cell rate algorithm. This module stores the algorithm's
//! state in 8 bytes and takes the time as an argument.
//!
//! In terms of a token bucket: a limit's bucket holds `burst` events, refills by `per_second`
//! events a second, and each granted event removes one.

mod address;
mod arrivals;
mod burst;
mod limiter;
#[cfg(test)]
mod tests;

pub use address::AddressLimiter;
pub use arrivals::MAX_ADDRESSES;
pub use burst::{BurstAllowance, BurstPool, DrawOutcome};
pub use limiter::RateLimiter;

use governor::Quota;
use std::num::NonZeroU32;
use std::time::Duration;

/// A rate limit: `per_second` events in the long run, and bursts of `burst` events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RateLimit {
    /// Events granted per second. Default: 100.
    pub per_second: NonZeroU32,
    /// Events granted at once after a pause. Default: 200.
    pub burst: NonZeroU32,
}

impl RateLimit {
    /// Returns a limit of `per_second` with bursts of `burst`.
    #[must_use]
    pub const fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        Self { per_second, burst }
    }

    fn quota(self) -> Quota {
        Quota::per_second(self.per_second).allow_burst(self.burst)
    }

    /// Returns the time in which the burst refills by one event, in nanoseconds, as governor
    /// computes it.
    fn interval(self) -> u64 {
        (1_000_000_000 / u64::from(self.per_second.get())).max(1)
    }

    /// Returns the time in which an empty burst refills, in nanoseconds.
    fn burst_nanos(self) -> u64 {
        self.interval() * u64::from(self.burst.get())
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        const PER_SECOND: NonZeroU32 = NonZeroU32::new(100).unwrap();
        const BURST: NonZeroU32 = NonZeroU32::new(200).unwrap();
        Self::new(PER_SECOND, BURST)
    }
}

impl From<RateLimit> for Quota {
    fn from(limit: RateLimit) -> Self {
        limit.quota()
    }
}

/// Treatment of events over a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum LimitMode {
    /// Refuses them. The default.
    #[default]
    Enforce,
    /// Counts and grants them, to find out which clients a limit would affect before it is
    /// enforced.
    Observe,
}

/// Error for an event over the limit. Contains the time after which the event would be granted if
/// no other event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[error("rate limit exceeded; retry in {:.3} s", .0.as_secs_f64())]
pub struct RetryAfter(pub Duration);

/// Converts a time to nanoseconds. Saturates at half of the range (about 292 years), so that sums
/// of two times do not overflow.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).min(u64::MAX / 2)
}
