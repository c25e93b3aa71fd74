//! Limits the bursts that an address gets by opening new connections.
//!
//! Without this limit, a client could get another full burst by reconnecting. So the limiter of a
//! new connection starts with an empty burst, and draws what it needs from a pool of its address.

use super::arrivals::ArrivalTable;
use super::{RateLimit, RateLimiter, nanos};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

/// Pool of bursts per address, for new connections. Threads can share it.
///
/// A new connection draws only as much as it sends above its rate ([`BurstAllowance`]), so many
/// clients that send little can share an address. The unit of the pool is a whole burst, of
/// messages or of bytes. Addresses are grouped and removed as in an
/// [`AddressLimiter`](super::AddressLimiter).
#[derive(Debug)]
pub struct BurstPool {
    /// Time in which a pool refills by one burst, in nanoseconds.
    interval: u64,
    /// Time in which an empty pool refills, in nanoseconds.
    capacity: u64,
    arrivals: ArrivalTable,
}

impl BurstPool {
    /// Creates a pool of `limit.burst` bursts for each address, which refills by `limit.per_second`
    /// bursts a second.
    #[must_use]
    pub fn new(limit: RateLimit) -> Self {
        let capacity = limit.burst_nanos();
        Self { interval: limit.interval(), capacity, arrivals: ArrivalTable::new(capacity) }
    }

    /// Draws up to `amount` messages or bytes from the pool of `address` at the time `now`. One
    /// burst of the pool is `burst` messages or bytes. Returns the amount drawn, which is less than
    /// `amount` if the pool has less.
    pub fn draw(&self, address: IpAddr, amount: u32, burst: NonZeroU32, now: Duration) -> u32 {
        let now = nanos(now);
        let (interval, burst) = (u128::from(self.interval), u128::from(burst.get()));
        self.arrivals.update(address, now, |arrival| {
            let arrival = arrival.max(now);
            let available_nanos = now.saturating_add(self.capacity).saturating_sub(arrival);
            let available = u128::from(available_nanos) * burst / interval;
            let drawn = u32::try_from(available).unwrap_or(u32::MAX).min(amount);
            let cost = (u128::from(drawn) * interval).div_ceil(burst);
            (arrival.saturating_add(u64::try_from(cost).unwrap_or(u64::MAX)), drawn)
        })
    }

    /// Returns the number of entries: addresses, and /64s of IPv6.
    #[must_use]
    pub fn addresses(&self) -> usize {
        self.arrivals.len()
    }

    /// Returns the number of evicted entries, as
    /// [`AddressLimiter::take_evicted`](super::AddressLimiter::take_evicted) does.
    pub fn take_evicted(&self) -> u64 {
        self.arrivals.take_evicted()
    }
}

/// Limit on the amount that a new connection draws from a [`BurstPool`], in 8 bytes.
///
/// The connection's [`RateLimiter`] starts [empty](RateLimiter::empty). The connection may draw the
/// difference to a limiter that started full. At first, the difference is one burst. Each draw
/// reduces it. A pause reduces it, too, because the empty limiter refills while the full one stops
/// at one burst. After a pause, the difference is at most one burst less the refill since the last
/// draw. The spent part is therefore the larger of the earlier spent part and that refill, not
/// their sum. A connection that draws nothing while a whole burst refills has nothing left to draw.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct BurstAllowance {
    /// Part of the burst that the connection can no longer draw.
    spent: u32,
    /// Age of the connection at its last draw, in milliseconds.
    last_draw: u32,
}

/// Outcome of a draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrawOutcome {
    /// The limiter's burst was refilled by the amount drawn. Check the limiter again.
    Some,
    /// The connection has drawn all that it may.
    Spent,
    /// The connection may draw more, but the pool of its address is empty.
    Refused,
}

impl BurstAllowance {
    /// Divisor of a burst for the smallest draw, so that a connection locks the pool some 20 times,
    /// not once per message. 1/20 of a burst of 200 messages is about the number that a client
    /// sends at its start.
    const MIN_DRAW_DIVISOR: u32 = 20;

    /// Draws at least `needed` messages or bytes, if the allowance and the pool have that many.
    /// Refills the burst of `limiter` by the amount drawn. The connection started at `begun`.
    /// `pool` takes the requested amount and returns the amount drawn.
    pub fn draw(
        &mut self,
        limiter: &mut RateLimiter,
        limit: &RateLimit,
        needed: usize,
        (begun, now): (Duration, Duration),
        pool: impl FnOnce(u32) -> u32,
    ) -> DrawOutcome {
        let burst = limit.burst.get();
        let age = u32::try_from(now.saturating_sub(begun).as_millis()).unwrap_or(u32::MAX);
        let nanos_since_draw = u64::from(age.saturating_sub(self.last_draw)) * 1_000_000;
        let refilled = u32::try_from(nanos_since_draw / limit.interval()).unwrap_or(u32::MAX);
        self.spent = self.spent.max(refilled);
        self.last_draw = age;
        let remaining = burst.saturating_sub(self.spent);
        if remaining == 0 {
            return DrawOutcome::Spent;
        }
        let needed = u32::try_from(needed).unwrap_or(u32::MAX);
        let requested = needed.max(burst / Self::MIN_DRAW_DIVISOR).min(remaining);
        let drawn = pool(requested).min(remaining);
        if drawn == 0 {
            return DrawOutcome::Refused;
        }
        self.spent = self.spent.saturating_add(drawn);
        limiter.grant(limit, drawn, now);
        DrawOutcome::Some
    }
}
