//! Limits on how often something may happen.
//!
//! [`governor`] decides, by its generic cell rate algorithm; what is ours is where the state lies and whose time it is.

use crate::client_network;
use ahash::RandomState;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};
use governor::{NotUntil, Quota};
use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often something may happen: `burst` at once, and `per_second` in the long run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RateLimit {
    /// What is granted anew in a second. Default: 100.
    pub per_second: NonZeroU32,
    /// What may happen at once after a pause. Default: 200.
    pub burst: NonZeroU32,
}

impl RateLimit {
    /// A limit of `per_second` with bursts of `burst`.
    #[must_use]
    pub const fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        Self { per_second, burst }
    }

    fn quota(self) -> Quota {
        Quota::per_second(self.per_second).allow_burst(self.burst)
    }

    /// Returns the time in which one more is earned, in nanoseconds, as governor computes it.
    fn interval(self) -> u64 {
        (1_000_000_000 / u64::from(self.per_second.get())).max(1)
    }

    /// Returns the time in which a whole burst is earned, in nanoseconds.
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

/// A limit as governor takes it.
impl From<RateLimit> for Quota {
    fn from(limit: RateLimit) -> Self {
        limit.quota()
    }
}

/// What becomes of what is over a limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum LimitMode {
    /// It is refused. The default.
    #[default]
    Enforce,
    /// It is counted and goes through: to find out whom a limit would meet before it is enforced.
    Observe,
}

/// Too often: after this time it would be granted, if nothing else is until then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
#[error("too often; again in {:.3} s", .0.as_secs_f64())]
pub struct RetryAfter(pub Duration);

/// How far a connection has used up its [`RateLimit`]. 8 bytes; the limit itself is shared by all connections.
///
/// Its state is governor's: the theoretical arrival time of the next message. Governor's own limiter keeps the limit,
/// a clock and its start beside that; so a check makes one on the stack, whose clock stands at the time given.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct RateLimiter {
    /// In nanoseconds of the caller's time; 0 before the first.
    arrival: u64,
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

    /// Whether one more is granted at the time `now`, counted from whatever point the caller keeps to.
    ///
    /// A time before that of the last call counts as that much longer to wait. The limit may change between calls.
    ///
    /// # Errors
    ///
    /// [`RetryAfter`] when it is too often; that uses up nothing.
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

    /// As [`check`](Self::check) for `amount` at once, such as the bytes of a message. None are always granted; more
    /// than the burst take the whole burst, so that what is larger than it is granted now and then, not never.
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
            // More than the burst, which the amount was cut to.
            Err(_) => Ok(()),
        }
    }
}

/// The state of one check. The limiter starts at `now`, so it counts from there.
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

/// A clock that stands.
#[derive(Clone)]
struct At(u64);

impl Clock for At {
    type Instant = Nanos;

    #[inline]
    fn now(&self) -> Nanos {
        Nanos::new(self.0)
    }
}

/// How often each address may do something, such as connect. For any number of threads.
///
/// An IPv6 address counts as its /64, which is what one household or one machine has to choose from; an IPv4 address
/// written as IPv6 (`::ffff:1.2.3.4`) is that IPv4 address. An address is forgotten some time after
/// its burst is whole again. At most [`MAX_ADDRESSES`] are remembered; beyond that, one with most
/// of its burst left is evicted.
#[derive(Debug)]
pub struct AddressLimiter {
    limit: RateLimit,
    arrivals: ArrivalTable,
}

impl AddressLimiter {
    /// Limits each address to `limit`.
    #[must_use]
    pub fn new(limit: RateLimit) -> Self {
        Self { limit, arrivals: ArrivalTable::new(limit.burst_nanos()) }
    }

    /// Whether one more is granted to `address` at the time `now`, counted from whatever point the caller keeps to.
    ///
    /// Occasionally a call also removes expired addresses, in time proportional to the number
    /// remembered.
    ///
    /// # Errors
    ///
    /// [`RetryAfter`] when it is too often; that uses up nothing.
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
    /// ([`MAX_ADDRESSES`]), and resets it.
    pub fn take_evicted(&self) -> u64 {
        self.arrivals.take_evicted()
    }
}

/// Bursts for new connections, shared per address: a client that reconnects gets no burst beyond
/// those of its address. For any number of threads.
///
/// While a connection is new, it draws from the pool what it sends beyond its rate
/// ([`BurstAllowance`]). So clients that share an address and send little at first take little. The
/// unit is a whole burst, of messages or of bytes. Addresses are grouped and forgotten as in an
/// [`AddressLimiter`].
#[derive(Debug)]
pub struct BurstPool {
    /// Time in which one burst is gained, in nanoseconds.
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

    /// How many addresses (or /64s) are remembered.
    #[must_use]
    pub fn addresses(&self) -> usize {
        self.arrivals.len()
    }

    /// Returns the number of evicted addresses, as [`AddressLimiter::take_evicted`] does.
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

/// Result of a draw.
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

/// Maximum number of addresses that an [`AddressLimiter`] or a [`BurstPool`] remembers, in about 3
/// MiB.
pub const MAX_ADDRESSES: usize = 65_536;

/// Number of shards of the address table, which threads can use in parallel.
const SHARDS: usize = 64;

/// Theoretical arrival time of the next event for each address (see [`RateLimiter`]), in
/// nanoseconds of the caller's time. A time in the past carries no information, so it need not be
/// kept.
struct ArrivalTable {
    shards: Box<[Mutex<HashMap<IpAddr, u64, RandomState>>]>,
    hasher: RandomState,
    /// The time between two sweeps, in nanoseconds.
    sweep_interval: u64,
    next_sweep: AtomicU64,
    evicted: AtomicU64,
}

impl ArrivalTable {
    /// Shortest and longest time between two sweeps of expired addresses, in nanoseconds.
    const SWEEP_INTERVAL: (u64, u64) = (1_000_000_000, 60_000_000_000);

    /// Returns an empty table for bursts that are whole again after `full_after` nanoseconds.
    fn new(full_after: u64) -> Self {
        let sweep_interval = full_after.clamp(Self::SWEEP_INTERVAL.0, Self::SWEEP_INTERVAL.1);
        let hasher = RandomState::new();
        Self {
            shards: (0..SHARDS).map(|_| Mutex::new(HashMap::with_hasher(hasher.clone()))).collect(),
            hasher,
            sweep_interval,
            next_sweep: AtomicU64::new(sweep_interval),
            evicted: AtomicU64::new(0),
        }
    }

    /// Replaces the arrival time of `address` with the one that `decide` returns for it.
    fn update<R>(&self, address: IpAddr, now: u64, decide: impl FnOnce(u64) -> (u64, R)) -> R {
        self.sweep(now);
        let address = client_network(address);
        let mut shard = lock(&self.shards[self.hasher.hash_one(address) as usize % SHARDS]);
        let (arrival, result) = decide(shard.get(&address).copied().unwrap_or(0));
        if arrival > now {
            if shard.len() >= MAX_ADDRESSES / SHARDS && !shard.contains_key(&address) {
                self.make_room(&mut shard, now);
            }
            shard.insert(address, arrival);
        }
        result
    }

    /// Removes expired addresses. If there are none, evicts the one with the earliest arrival time.
    fn make_room(&self, shard: &mut HashMap<IpAddr, u64, RandomState>, now: u64) {
        shard.retain(|_, arrival| *arrival > now);
        if shard.len() < MAX_ADDRESSES / SHARDS {
            return;
        }
        if let Some((&first, _)) = shard.iter().min_by_key(|(_, arrival)| **arrival) {
            shard.remove(&first);
            self.evicted.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn sweep(&self, now: u64) {
        let due = self.next_sweep.load(Ordering::Relaxed);
        let next = now.saturating_add(self.sweep_interval);
        // One of the threads that see it due does it.
        let claim =
            || self.next_sweep.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if now >= due && claim() {
            for shard in &self.shards {
                let mut shard = lock(shard);
                shard.retain(|_, arrival| *arrival > now);
                if shard.capacity() / 4 > shard.len() {
                    shard.shrink_to_fit();
                }
            }
        }
    }

    fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    fn take_evicted(&self) -> u64 {
        // The count is mostly 0, and a load does not take the cache line from other cores.
        if self.evicted.load(Ordering::Relaxed) == 0 { 0 } else { self.evicted.swap(0, Ordering::Relaxed) }
    }
}

impl fmt::Debug for ArrivalTable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ArrivalTable").field("addresses", &self.len()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn retry_after(not_until: &NotUntil<Nanos>, now: u64) -> RetryAfter {
    RetryAfter(not_until.wait_time_from(Nanos::new(now)))
}

/// Half of what fits, about 292 years, is the end of time: sums with it still fit.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).min(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv6Addr;

    fn limit(per_second: u32, burst: u32) -> RateLimit {
        RateLimit::new(NonZeroU32::new(per_second).unwrap(), NonZeroU32::new(burst).unwrap())
    }

    fn granted(limiter: &mut RateLimiter, limit: RateLimit, now: Duration) -> usize {
        std::iter::from_fn(|| limiter.check(&limit, now).ok()).take(100_000).count()
    }

    #[test]
    fn a_burst_is_granted_at_once_and_the_next_is_told_when() {
        let (mut limiter, limit, now) = (RateLimiter::default(), limit(100, 200), Duration::from_secs(7));
        assert_eq!(granted(&mut limiter, limit, now), 200);
        assert_eq!(limiter.check(&limit, now), Err(RetryAfter(Duration::from_millis(10))));
        assert_eq!(
            limiter.check(&limit, now + Duration::from_millis(4)),
            Err(RetryAfter(Duration::from_millis(6)))
        );
        assert_eq!(limiter.check(&limit, now + Duration::from_millis(10)), Ok(()));
        assert_eq!(
            limiter.check(&limit, now + Duration::from_millis(10)),
            Err(RetryAfter(Duration::from_millis(10)))
        );
    }

    #[test]
    fn a_pause_makes_the_burst_whole_and_no_larger() {
        let (mut limiter, limit) = (RateLimiter::default(), limit(100, 200));
        assert_eq!(granted(&mut limiter, limit, Duration::ZERO), 200);
        assert_eq!(granted(&mut limiter, limit, Duration::from_secs(1)), 100);
        assert_eq!(granted(&mut limiter, limit, Duration::from_secs(3)), 200);
        assert_eq!(granted(&mut limiter, limit, Duration::from_secs(9000)), 200);
    }

    #[test]
    fn an_amount_counts_as_often_as_it_is_large() {
        let (mut limiter, limit, now) = (RateLimiter::default(), limit(100, 200), Duration::from_secs(7));
        assert_eq!(limiter.check_amount(&limit, 150, now), Ok(()));
        assert_eq!(limiter.check_amount(&limit, 100, now), Err(RetryAfter(Duration::from_millis(500))));
        assert_eq!(limiter.check_amount(&limit, 0, now), Ok(()));
        assert_eq!(limiter.check_amount(&limit, 50, now), Ok(()));
        assert_eq!(limiter.check_amount(&limit, 1, now), Err(RetryAfter(Duration::from_millis(10))));
        assert_eq!(limiter.check_amount(&limit, 100, now + Duration::from_secs(1)), Ok(()));
    }

    #[test]
    fn an_amount_over_the_burst_takes_all_of_it() {
        let (mut limiter, limit, now) = (RateLimiter::default(), limit(100, 200), Duration::from_secs(7));
        assert_eq!(limiter.check_amount(&limit, usize::MAX, now), Ok(()));
        assert_eq!(limiter.check_amount(&limit, 1000, now), Err(RetryAfter(Duration::from_secs(2))));
        assert_eq!(limiter.check_amount(&limit, 1000, now + Duration::from_secs(2)), Ok(()));
    }

    #[test]
    fn the_extremes_of_limits_and_times_are_decided() {
        for limit in [limit(1, 1), limit(1, u32::MAX), limit(u32::MAX, 1), limit(u32::MAX, u32::MAX)] {
            let mut limiter = RateLimiter::default();
            for now in [Duration::ZERO, Duration::MAX, Duration::from_secs(1), Duration::MAX] {
                let _ = limiter.check(&limit, now);
            }
            let addresses = AddressLimiter::new(limit);
            for now in [Duration::ZERO, Duration::MAX, Duration::from_secs(1), Duration::MAX] {
                let _ = addresses.check(Ipv6Addr::LOCALHOST.into(), now);
            }
        }
    }

    #[test]
    fn a_connection_keeps_eight_bytes_and_eight_of_its_first_burst() {
        assert_eq!((size_of::<RateLimiter>(), size_of::<BurstAllowance>()), (8, 8));
    }

    /// Connections of one address that draw their bursts of messages from one pool.
    struct Drawing {
        limit: RateLimit,
        pool: BurstPool,
        address: IpAddr,
    }

    struct Connection {
        limiter: RateLimiter,
        first: BurstAllowance,
        begun: Duration,
    }

    impl Drawing {
        /// Allows 10 messages a second in bursts of 20. An address gains a burst each second and
        /// holds 3.
        fn new() -> Self {
            let address = IpAddr::from([192, 0, 2, 1]);
            Self { limit: limit(10, 20), pool: BurstPool::new(limit(1, 3)), address }
        }

        fn connect(&self, begun: Duration) -> Connection {
            let limiter = RateLimiter::empty(&self.limit, begun);
            Connection { limiter, first: BurstAllowance::default(), begun }
        }

        fn send(&self, connection: &mut Connection, now: Duration) -> Result<(), DrawOutcome> {
            let Connection { limiter, first, begun } = connection;
            loop {
                if limiter.check(&self.limit, now).is_ok() {
                    return Ok(());
                }
                let pool = |amount| self.pool.draw(self.address, amount, self.limit.burst, now);
                match first.draw(limiter, &self.limit, 1, (*begun, now), pool) {
                    DrawOutcome::Some => {}
                    drawn => return Err(drawn),
                }
            }
        }

        /// Returns how many messages in a row get through.
        fn send_all(&self, connection: &mut Connection, now: Duration) -> (usize, DrawOutcome) {
            let mut sent = 0;
            loop {
                match self.send(connection, now) {
                    Ok(()) => sent += 1,
                    Err(drawn) => return (sent, drawn),
                }
            }
        }
    }

    #[test]
    fn a_new_connection_has_a_burst_as_before() {
        let (drawing, start) = (Drawing::new(), Duration::from_secs(7));
        for (sent, left) in [(0, 20), (1, 20), (5, 20), (20, 10), (15, 15)] {
            let drawing = Drawing { pool: BurstPool::new(limit(1, 3)), ..drawing };
            let mut connection = drawing.connect(start);
            for _ in 0..sent {
                assert_eq!(drawing.send(&mut connection, start), Ok(()));
            }
            let later = start + Duration::from_secs(1);
            let (more, drawn) = drawing.send_all(&mut connection, later);
            // The unused rest of the last draw comes on top.
            assert!((left..=left + 1).contains(&more), "{sent}, then {more}");
            assert_eq!(drawn, DrawOutcome::Spent);
        }
        // An old connection has a whole burst without the pool.
        let mut old = drawing.connect(start);
        assert_eq!(drawing.send_all(&mut old, start + Duration::from_secs(2)), (20, DrawOutcome::Spent));
        assert_eq!(drawing.pool.addresses(), 0);
        assert_eq!(drawing.send_all(&mut old, start + Duration::from_secs(3)), (10, DrawOutcome::Spent));
    }

    #[test]
    fn whoever_connects_again_finds_the_pool_of_the_address_as_it_was_left() {
        let (drawing, start) = (Drawing::new(), Duration::from_secs(7));
        let all = |now| drawing.send_all(&mut drawing.connect(now), now);
        for _ in 0..3 {
            assert_eq!(all(start), (20, DrawOutcome::Spent));
        }
        assert_eq!(all(start), (0, DrawOutcome::Refused));
        assert_eq!(all(start + Duration::from_millis(500)), (10, DrawOutcome::Refused));
        assert_eq!(all(start + Duration::from_millis(1500)), (20, DrawOutcome::Spent));
        assert_eq!(all(start + Duration::from_secs(100)), (20, DrawOutcome::Spent));
        // Without the pool, a connection earns at its rate.
        let mut poor = drawing.connect(start);
        assert_eq!(drawing.send(&mut poor, start), Err(DrawOutcome::Refused));
        assert_eq!(drawing.send(&mut poor, start + Duration::from_millis(100)), Ok(()));
    }

    #[test]
    fn clients_that_send_little_share_an_address_in_large_numbers() {
        let (drawing, start) = (Drawing::new(), Duration::from_secs(7));
        let mut clients: Vec<_> = (0..30).map(|_| drawing.connect(start)).collect();
        for client in &mut clients {
            assert_eq!(drawing.send(client, start), Ok(()));
        }
        // A hundred more clients connect within ten seconds and send one message each.
        for n in 0..100 {
            let now = start + Duration::from_secs(3) + Duration::from_millis(100 * n);
            assert_eq!(drawing.send(&mut drawing.connect(now), now), Ok(()), "{n}");
        }
    }

    #[test]
    fn other_addresses_and_other_kinds_of_bursts_draw_shares() {
        let pool = BurstPool::new(limit(1, 2));
        let now = Duration::from_secs(7);
        let draw = |address: &str, amount, burst| {
            pool.draw(address.parse().unwrap(), amount, NonZeroU32::new(burst).unwrap(), now)
        };
        assert_eq!(draw("192.0.2.1", 1 << 20, 1 << 20), 1 << 20, "one of bytes");
        assert_eq!(draw("192.0.2.1", 15, 20), 15, "three quarters of one of messages");
        assert_eq!(draw("192.0.2.1", 15, 20), 5);
        assert_eq!(draw("192.0.2.1", 1, u32::MAX), 0);
        assert_eq!(draw("192.0.2.2", 100, 20), 40);
        assert_eq!((draw("2001:db8::1", 40, 20), draw("2001:db8::2", 1, 20)), (40, 0));
    }

    #[test]
    fn only_so_many_addresses_are_remembered() {
        let pool = BurstPool::new(limit(1, 1));
        let (burst, now) = (NonZeroU32::new(100).unwrap(), Duration::from_secs(1) / 2);
        let address = |n: u32| IpAddr::from(n.to_be_bytes());
        for n in 0..100_000 {
            // The first addresses draw the most, so they are evicted last.
            let amount = if n < 100 { 100 } else { 10 };
            assert_eq!(pool.draw(address(n), amount, burst, now), amount);
        }
        assert!(pool.addresses() <= MAX_ADDRESSES, "{}", pool.addresses());
        assert_eq!(pool.take_evicted(), 100_000 - pool.addresses() as u64);
        assert_eq!(pool.take_evicted(), 0);
        for n in 0..100 {
            assert_eq!(pool.draw(address(n), 1, burst, now), 0, "{n}");
        }
        assert_eq!(pool.draw(address(0), 1, burst, Duration::from_secs(9)), 1);
        assert_eq!(pool.addresses(), 1);
    }

    #[test]
    fn each_address_has_its_own_limit() {
        let limiter = AddressLimiter::new(limit(1, 1));
        let check = |address: &str| limiter.check(address.parse().unwrap(), Duration::from_secs(1));
        for address in ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1"] {
            assert_eq!(check(address), Ok(()), "{address}");
            assert_eq!(check(address), Err(RetryAfter(Duration::from_secs(1))), "{address}");
        }
    }

    #[test]
    fn an_ipv6_network_counts_as_one_address_and_a_mapped_address_as_ipv4() {
        let limiter = AddressLimiter::new(limit(1, 1));
        let check = |address: &str| limiter.check(address.parse().unwrap(), Duration::from_secs(1)).is_ok();
        assert!(
            check("2001:db8:1:2::1")
                && !check("2001:db8:1:2:ffff:ffff:ffff:ffff")
                && check("2001:db8:1:3::1")
        );
        assert!(check("192.0.2.1") && !check("::ffff:192.0.2.1") && check("::ffff:192.0.2.2"));
        assert_eq!(limiter.addresses(), 4);
    }

    #[test]
    fn addresses_are_forgotten_once_their_burst_is_whole() {
        let limiter = AddressLimiter::new(limit(1, 2));
        for host in 0..100 {
            let _ = limiter.check(IpAddr::from([192, 0, 2, host]), Duration::from_secs(1));
        }
        assert_eq!(limiter.addresses(), 100);
        let late = IpAddr::from([198, 51, 100, 1]);
        assert_eq!(limiter.check(late, Duration::from_secs(100)), Ok(()));
        assert_eq!(limiter.addresses(), 1);
    }

    #[test]
    fn an_address_that_keeps_coming_is_not_forgotten() {
        let limiter = AddressLimiter::new(limit(1, 3));
        let address = IpAddr::from([192, 0, 2, 1]);
        let granted = (0..1000)
            .filter(|&step| limiter.check(address, Duration::from_millis(100 * step)).is_ok())
            .count();
        assert_eq!(granted, 3 + 99, "a burst, and one for each second of the rest");
    }

    proptest! {
        /// The rule itself, in whole numbers: a bucket that holds `burst` and gains one each 1/per_second.
        #[test]
        fn a_limiter_agrees_with_governors_own(
            per_second in 1..1000_u32,
            burst in 1..50_u32,
            pauses in prop::collection::vec(0..2_000_000_000_u64, 1..100),
        ) {
            let limit = limit(per_second, burst);
            let clock = governor::clock::FakeRelativeClock::default();
            let governors = governor::RateLimiter::direct_with_clock(limit.quota(), clock.clone());
            let (mut ours, mut now) = (RateLimiter::default(), Duration::from_secs(1));
            // Short pauses, so that the limit is met, and long ones now and then.
            for pause in pauses {
                let pause = Duration::from_nanos(if pause % 7 == 0 { pause } else { pause % 3_000_000 });
                now += pause;
                clock.advance(pause);
                let expected = governors.check().map_err(|not_until| {
                    RetryAfter(not_until.wait_time_from(governor::clock::Clock::now(&clock)))
                });
                prop_assert_eq!(ours.check(&limit, now), expected);
            }
        }

        /// Checks that connections of one address never get more than they earn and the pool has.
        #[test]
        fn an_address_gets_its_pool_and_what_its_connections_earn(
            steps in prop::collection::vec((0..4_u8, 0..400_u64, 0..40_usize), 1..200),
        ) {
            let (drawing, start) = (Drawing::new(), Duration::from_secs(7));
            let (mut now, mut sent, mut earning) = (start, 0_u64, Duration::ZERO);
            let mut connections = vec![drawing.connect(now)];
            for (what, pause, messages) in steps {
                let pause = Duration::from_millis(pause);
                now += pause;
                earning += pause * connections.len() as u32;
                match what {
                    0 => connections.push(drawing.connect(now)),
                    1 => {
                        connections.pop();
                    }
                    _ => {}
                }
                if let Some(connection) = connections.last_mut() {
                    let granted = (0..messages).map_while(|_| drawing.send(connection, now).ok()).count();
                    sent += granted as u64;
                }
                let earned = earning.as_millis() / 100;
                let pool = 20 * (3000 + (now - start).as_millis()) / 1000;
                prop_assert!(u128::from(sent) <= earned + pool, "{} of {} and {}", sent, earned, pool);
            }
        }

        #[test]
        fn a_draw_takes_what_it_says(
            draws in prop::collection::vec((0..3_000_000_000_u64, 0..5_000_u32, 1..3_000_u32), 1..60),
        ) {
            // `taken` is in bursts; the pool holds 4 and gains 2 a second.
            let pool = BurstPool::new(limit(2, 4));
            let address = IpAddr::from([192, 0, 2, 1]);
            let (mut now, mut taken) = (Duration::from_secs(1), 0.0_f64);
            let start = now;
            for (pause, amount, burst) in draws {
                now += Duration::from_nanos(pause);
                let drawn = pool.draw(address, amount, NonZeroU32::new(burst).unwrap(), now);
                prop_assert!(drawn <= amount);
                taken += f64::from(drawn) / f64::from(burst);
                prop_assert!(taken <= 4.0 + 2.0 * (now - start).as_secs_f64() + 1e-6, "{}", taken);
            }
        }

        #[test]
        fn what_is_told_to_wait_is_granted_then(steps in prop::collection::vec(0..40_u64, 1..200), burst in 1..5_u32) {
            let (mut limiter, limit, mut now) = (RateLimiter::default(), limit(100, burst), Duration::ZERO);
            for step in steps {
                now += Duration::from_millis(step);
                if let Err(RetryAfter(wait)) = limiter.check(&limit, now) {
                    prop_assert!(limiter.check(&limit, now + wait - Duration::from_nanos(1)).is_err());
                    now += wait;
                    prop_assert_eq!(limiter.check(&limit, now), Ok(()));
                }
            }
        }
    }
}
