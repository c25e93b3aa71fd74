//! Rate limiter per client address.

use super::arrivals::ArrivalTable;
use super::{RateLimit, RateLimiter, RetryAfter, nanos};
use std::net::IpAddr;
use std::time::Duration;

/// Rate limiter per client address, for events such as connecting. Threads may share it.
///
/// Addresses are grouped by [`client_network`](crate::client_network). An address is forgotten some time after its burst has
/// refilled. At most [`MAX_ADDRESSES`](super::MAX_ADDRESSES) are remembered; beyond that, one with most of its burst left is
/// evicted.
#[derive(Debug)]
pub struct AddressLimiter {
    limit: RateLimit,
    arrivals: ArrivalTable,
}

impl AddressLimiter {
    /// Returns a limiter that limits each address to `limit`.
    #[must_use]
    pub fn new(limit: RateLimit) -> Self {
        Self { limit, arrivals: ArrivalTable::new(limit.burst_nanos()) }
    }

    /// Grants one event to `address` at the time `now`, which counts from any fixed point of the
    /// caller's choice.
    ///
    /// Occasionally a call also removes expired addresses, in time proportional to the number
    /// remembered.
    ///
    /// # Errors
    ///
    /// [`RetryAfter`] if the event is over the limit. A refused event uses up nothing.
    pub fn check(&self, address: IpAddr, now: Duration) -> Result<(), RetryAfter> {
        let now = nanos(now);
        self.arrivals.update(address, now, |arrival| {
            let mut limiter = RateLimiter { arrival };
            let checked = limiter.check(&self.limit, Duration::from_nanos(now));
            (limiter.arrival, checked)
        })
    }

    /// Returns the number of addresses (or /64s) remembered.
    #[must_use]
    pub fn addresses(&self) -> usize {
        self.arrivals.len()
    }

    /// Returns the number of addresses evicted since the last call because there were too many
    /// ([`MAX_ADDRESSES`](super::MAX_ADDRESSES)), and resets it.
    pub fn take_evicted(&self) -> u64 {
        self.arrivals.take_evicted()
    }
}
