use super::*;
use proptest::prelude::*;
use std::net::{IpAddr, Ipv6Addr};

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
    /// Allows 10 messages a second in bursts of 20. The pool of an address
    /// holds 3 bursts and gains one each second.
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

    /// Sends until a message is refused. Returns the number of sent messages and the refusal.
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
        // The unused rest of the last draw may allow one more message.
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
        check("2001:db8:1:2::1") && !check("2001:db8:1:2:ffff:ffff:ffff:ffff") && check("2001:db8:1:3::1")
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
    let granted =
        (0..1000).filter(|&step| limiter.check(address, Duration::from_millis(100 * step)).is_ok()).count();
    assert_eq!(granted, 3 + 99, "a burst, and one for each second of the rest");
}

proptest! {
    /// Compares the limiter with governor's. Both are a bucket that holds `burst` tokens and gains
    /// `per_second` tokens a second.
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
        // Most pauses are short, so that the limit is reached. Some are long, so that it recovers.
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

    /// Checks that connections of one address send at most what they earn plus what the pool has.
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
