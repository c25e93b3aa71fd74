//! Limits on how often something may happen.
//!
//! [`governor`] decides, by its generic cell rate algorithm; what is ours is where the state lies and whose time it is.

use crate::client_network;
use ahash::RandomState;
use governor::clock::Clock;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::keyed::DashMapStateStore;
use governor::state::{NotKeyed, StateStore};
use governor::{NotUntil, Quota};
use std::cell::Cell;
use std::fmt;
use std::net::IpAddr;
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
        self.limiter.check_key(&client_network(address)).map_err(|not_until| retry_after(&not_until, now))
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
    fn a_connection_keeps_eight_bytes() {
        assert_eq!(size_of::<RateLimiter>(), 8);
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
