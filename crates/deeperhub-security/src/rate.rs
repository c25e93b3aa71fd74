//! Limits on how often something may happen.
//!
//! [`governor`] decides, by its generic cell rate algorithm; what is ours is where the state lies and whose time it is.

use ahash::RandomState;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::keyed::DashMapStateStore;
use governor::state::{NotKeyed, StateStore};
use governor::{NotUntil, Quota};
use std::cell::Cell;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
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
/// written as IPv6 (`::ffff:1.2.3.4`) is that IPv4 address. An address is forgotten some time after its burst is whole
/// again, so the memory is bounded by how many addresses come within a few such times.
pub struct AddressLimiter {
    limiter:
        governor::RateLimiter<IpAddr, DashMapStateStore<IpAddr, RandomState>, Latest, NoOpMiddleware<Nanos>>,
    latest: Latest,
    /// The time between two sweeps, in nanoseconds.
    sweep_every: u64,
    next_sweep: AtomicU64,
}

impl AddressLimiter {
    /// The longest and the shortest time between two sweeps for addresses to forget.
    const SWEEP: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

    /// Limits each address to `limit`.
    #[must_use]
    pub fn new(limit: RateLimit) -> Self {
        let whole_again = limit.quota().burst_size_replenished_in();
        let sweep_every = nanos(whole_again.clamp(Self::SWEEP.0, Self::SWEEP.1));
        let latest = Latest::default();
        let store = DashMapStateStore::with_hasher(RandomState::new());
        let limiter = governor::RateLimiter::new(limit.quota(), store, latest.clone());
        Self { limiter, latest, sweep_every, next_sweep: AtomicU64::new(sweep_every) }
    }

    /// Whether one more is granted to `address` at the time `now`, counted from whatever point the caller keeps to.
    ///
    /// A time before that of another call counts as that one's. Once in a while a call also forgets addresses, which
    /// takes as long as there are many.
    ///
    /// # Errors
    ///
    /// [`RetryAfter`] when it is too often; that uses up nothing.
    pub fn check(&self, address: IpAddr, now: Duration) -> Result<(), RetryAfter> {
        let now = self.latest.advance(nanos(now));
        self.sweep(now);
        self.limiter.check_key(&network(address)).map_err(|not_until| retry_after(&not_until, now))
    }

    /// How many addresses (or /64s) are remembered.
    #[must_use]
    pub fn addresses(&self) -> usize {
        self.limiter.len()
    }

    fn sweep(&self, now: u64) {
        let due = self.next_sweep.load(Ordering::Relaxed);
        let next = now.saturating_add(self.sweep_every);
        // One of the threads that see it due does it.
        let claim =
            || self.next_sweep.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if now >= due && claim() {
            self.limiter.retain_recent();
            self.limiter.shrink_to_fit();
        }
    }
}

impl fmt::Debug for AddressLimiter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AddressLimiter").field("addresses", &self.addresses()).finish_non_exhaustive()
    }
}

/// A clock that shows the latest time that any thread brought.
#[derive(Clone, Default)]
struct Latest(Arc<AtomicU64>);

impl Latest {
    fn advance(&self, now: u64) -> u64 {
        self.0.fetch_max(now, Ordering::Relaxed).max(now)
    }
}

impl Clock for Latest {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        Nanos::new(self.0.load(Ordering::Relaxed))
    }
}

fn retry_after(not_until: &NotUntil<Nanos>, now: u64) -> RetryAfter {
    RetryAfter(not_until.wait_time_from(Nanos::new(now)))
}

/// Half of what fits, about 292 years, is the end of time: sums with it still fit.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).min(u64::MAX / 2)
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}
