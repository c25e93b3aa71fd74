//! Rate limiter per client address.

use super::arrivals::ArrivalTable;
use super::{RateLimit, RateLimiter, RetryAfter, nanos};
use std::net::IpAddr;
use std::time::Duration;

/// Rate limiter per client address, for events such as connecting. Threads can share it.
///
/// Addresses are grouped by [`client_network`](crate::client_network). The entry of an address is
/// removed some time after its burst has refilled. There are at most
/// [`MAX_ADDRESSES`](super::MAX_ADDRESSES) entries. If there is no room for another one, an entry
/// with most of its burst left is evicted.
#[derive(Debug)]
pub struct AddressLimiter {
    limit: RateLimit,
    arrivals: ArrivalTable,
}

impl AddressLimiter {
    /// Creates a limiter that limits each address to `limit`.
    #[must_use]
    pub fn new(limit: RateLimit) -> Self {
        Self { limit, arrivals: ArrivalTable::new(limit.burst_nanos()) }
    }

    /// Grants one event to `address` at the time `now`. The caller chooses the fixed point that
    /// times count from.
    ///
    /// Some calls also remove expired entries, in time proportional to the number of entries.
    ///
    /// # Errors
    ///
    /// [`RetryAfter`] if the event is over the limit. A refused event does not count.
    pub fn check(&self, address: IpAddr, now: Duration) -> Result<(), RetryAfter> {
        let now = nanos(now);
        self.arrivals.update(address, now, |arrival| {
            let mut limiter = RateLimiter { arrival };
            let result = limiter.check(&self.limit, Duration::from_nanos(now));
            (limiter.arrival, result)
        })
    }

    /// Returns the number of entries: addresses, and /64s of IPv6.
    #[must_use]
    pub fn addresses(&self) -> usize {
        self.arrivals.len()
    }

    /// Returns the number of entries that were evicted for lack of room since the last call.
    pub fn take_evicted(&self) -> u64 {
        self.arrivals.take_evicted()
    }
}
