use super::*;

fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

#[test]
fn dropped_permits_free_capacity() {
    let admission = Arc::new(Admission::new(2, None, None, 2));
    let mut first = admission.try_admit(address("127.0.0.1")).unwrap();
    let mut second = admission.try_admit(address("127.0.0.1")).unwrap();
    first.assign(0);
    second.assign(0);
    second.assign(1);
    assert_eq!((admission.load(0), admission.load(1)), (1, 1));
    assert_eq!(admission.try_admit(address("127.0.0.1")).unwrap_err(), AdmissionError::ServerFull);
    drop(first);
    assert_eq!((second.connections_of(0), second.connections_of(1)), (0, 1));
    drop(admission.try_admit(address("127.0.0.2")).unwrap());
    drop(second);
    assert_eq!((admission.open(), admission.load(0), admission.load(1)), (0, 0, 0));
}

#[test]
fn an_ipv6_network_of_64_bits_is_one_address() {
    let admission = Arc::new(Admission::new(10, Some(1), None, 1));
    let _one = admission.try_admit(address("2001:db8::1")).unwrap();
    assert_eq!(admission.try_admit(address("2001:db8::ffff")).unwrap_err(), AdmissionError::AddressFull);
    let _mapped = admission.try_admit(address("::ffff:10.0.0.1")).unwrap();
    assert_eq!(admission.try_admit(address("10.0.0.1")).unwrap_err(), AdmissionError::AddressFull);
    assert_eq!(admission.open(), 2);
}

#[test]
fn addresses_without_connections_use_no_memory() {
    let admission = Arc::new(Admission::new(1000, Some(1), None, 1));
    let permits: Vec<_> =
        (0..200).map(|n| admission.try_admit(Some(IpAddr::from([10, 0, 0, n]))).unwrap()).collect();
    drop(permits);
    assert!(admission.lock().is_empty());
    assert!(admission.lock().capacity() < 100);
}

#[test]
fn a_permit_is_charged_to_a_client_that_becomes_known_later() {
    let admission = Arc::new(Admission::new(10, Some(1), None, 1));
    let (mut one, mut other) = (admission.try_admit(None).unwrap(), admission.try_admit(None).unwrap());
    let client = address("192.0.2.1").unwrap();
    assert_eq!(one.charge_address(client), Ok(()));
    assert_eq!(other.charge_address(client), Err(AdmissionError::AddressFull));
    drop(one);
    assert_eq!(other.charge_address(client), Ok(()));
    drop(other);
    assert!(admission.lock().is_empty());
}

#[test]
fn an_address_over_its_rate_gets_429() {
    let one = std::num::NonZeroU32::MIN;
    let admission = Arc::new(Admission::new(10, None, Some(RateLimit::new(one, one)), 1));
    drop(admission.try_admit(address("192.0.2.1")).unwrap());
    let refusal = admission.try_admit(address("192.0.2.1")).unwrap_err().refusal(|| ADDRESS_LIMIT_RETRY);
    assert_eq!((refusal.status, refusal.code), (429, "rate_limited"));
    assert!(admission.try_admit(address("192.0.2.2")).is_ok());
}

#[test]
fn loopback_is_limited_only_if_configured() {
    let one = std::num::NonZeroU32::MIN;
    let refused = |limits_loopback, from: &str| {
        let admission = Admission::new(10, None, Some(RateLimit::new(one, one)), 1);
        let admission = Arc::new(admission.with_loopback_limited(limits_loopback));
        drop(admission.try_admit(address(from)).unwrap());
        admission.try_admit(address(from)).is_err()
    };
    for loopback in ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"] {
        assert!(!refused(false, loopback) && refused(true, loopback), "{loopback}");
    }
    assert!(refused(false, "192.0.2.1"));
}

/// Simulates clients behind one NAT that reconnect after a restart, then a client that
/// reconnects without delay.
#[test]
fn the_default_rate_admits_reconnects_after_a_restart_but_not_without_delay() {
    let config = crate::Config::default();
    let rate = AddressLimiter::new(config.connection_rate_per_ip.unwrap());
    let from = address("192.0.2.1").unwrap();
    // A thousand clients at once, then one for each reconnect slot, for a minute.
    let interval = Duration::from_secs(1) / config.reconnects_per_second;
    let first_clients = (0..1000).map(|_| Duration::ZERO);
    let paced = (1..=60 * config.reconnects_per_second).map(|n| interval * n);
    let refused = first_clients.chain(paced).filter(|&at| rate.check(from, at).is_err()).count();
    assert_eq!(refused, 0);
    // Ten thousand attempts within the next second.
    let attempts = (0..10_000).map(|n| Duration::from_secs(60) + Duration::from_micros(100) * n);
    let admitted = attempts.filter(|&at| rate.check(from, at).is_ok()).count();
    assert!(admitted <= 201, "{admitted}");
}
