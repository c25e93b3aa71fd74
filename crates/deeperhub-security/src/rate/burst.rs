//! Bursts of new connections.

use super::arrivals::ArrivalTable;
use super::{RateLimit, RateLimiter, nanos};
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

/// Pool of bursts per address, for new connections. Reconnecting yields no burst beyond the pool.
/// Threads may share it.
///
/// A new connection draws from the pool the messages that it sends beyond its rate
/// ([`BurstAllowance`]). So clients that share an address and send little at first take little. The
/// unit is a whole burst, of messages or of bytes. Addresses are grouped and forgotten as in an
/// [`AddressLimiter`](super::AddressLimiter).
#[derive(Debug)]
pub struct BurstPool {
    /// Time in which one burst is refilled, in nanoseconds.
    interval: u64,
    /// Time in which an empty pool fills up, in nanoseconds.
    capacity: u64,
    arrivals: ArrivalTable,
}

impl BurstPool {
    /// Returns a pool that holds `limit.burst` bursts for each address and gains `limit.per_second`
    /// of them a second.
    #[must_use]
    pub fn new(limit: RateLimit) -> Self {
        let capacity = limit.burst_nanos();
        Self { interval: limit.interval(), capacity, arrivals: ArrivalTable::new(capacity) }
    }

    /// Draws up to `amount` from the pool of `address` at the time `now`, where a whole burst is
    /// `burst`. Returns the amount drawn, which is less than `amount` if the pool has less.
    pub fn draw(&self, address: IpAddr, amount: u32, burst: NonZeroU32, now: Duration) -> u32 {
        let now = nanos(now);
        let (interval, burst) = (u128::from(self.interval), u128::from(burst.get()));
        self.arrivals.update(address, now, |arrival| {
            let arrival = arrival.max(now);
            let there = now.saturating_add(self.capacity).saturating_sub(arrival);
            let units = u128::from(there) * burst / interval;
            let drawn = u32::try_from(units).unwrap_or(u32::MAX).min(amount);
            let cost = (u128::from(drawn) * interval).div_ceil(burst);
            (arrival.saturating_add(u64::try_from(cost).unwrap_or(u64::MAX)), drawn)
        })
    }

    /// Returns the number of addresses (or /64s) remembered.
    #[must_use]
    pub fn addresses(&self) -> usize {
        self.arrivals.len()
    }

    /// Returns the number of evicted addresses, as
    /// [`AddressLimiter::take_evicted`](super::AddressLimiter::take_evicted) does.
    pub fn take_evicted(&self) -> u64 {
        self.arrivals.take_evicted()
    }
}

/// The part of a [`RateLimit`]'s burst that a new connection has drawn. 8 bytes.
///
/// The connection's [`RateLimiter`] starts [empty](RateLimiter::empty), and may draw the burst that
/// a full one would have. A full limiter earns nothing, so earnings before a draw reduce what is
/// left to draw. Once the connection is as old as a burst takes to earn, nothing is left, and the
/// limiter alone decides.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct BurstAllowance {
    /// Amount drawn of the burst, or earned while a full limiter would have earned nothing.
    spent: u32,
    /// Age of the connection at its last draw, in milliseconds.
    last: u32,
}

/// Outcome of a draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrawOutcome {
    /// The limiter was credited; check it again.
    Some,
    /// The connection has nothing left to draw.
    Spent,
    /// The connection has something left to draw, but the pool is empty.
    Refused,
}

impl BurstAllowance {
    /// Divisor for the smallest draw: 1/20 of a burst, so that the pool is asked only a few times.
    /// Of a burst of 200 messages, that is what a client sends at its start.
    const MIN_DRAW_DIVISOR: u32 = 20;

    /// Draws enough for `needed` more, for a connection that started at `begun`, and credits it to
    /// `limiter`. `pool` returns as much of the requested amount as it has.
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
        let idle = u64::from(age.saturating_sub(self.last)) * 1_000_000;
        self.spent = self.spent.max(u32::try_from(idle / limit.interval()).unwrap_or(u32::MAX));
        self.last = age;
        let left = burst.saturating_sub(self.spent);
        if left == 0 {
            return DrawOutcome::Spent;
        }
        let needed = u32::try_from(needed).unwrap_or(u32::MAX);
        let granted = pool(needed.max(burst / Self::MIN_DRAW_DIVISOR).min(left)).min(left);
        if granted == 0 {
            return DrawOutcome::Refused;
        }
        self.spent = self.spent.saturating_add(granted);
        limiter.grant(limit, granted, now);
        DrawOutcome::Some
    }
}
