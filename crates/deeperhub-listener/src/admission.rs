//! Admission of connections: limits in total and per address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deeperhub_protocol::handshake::Refusal;
use deeperhub_security::{AddressLimiter, MAX_ADDRESSES, RateLimit, RetryAfter};
use tokio::sync::Notify;

/// Unit of limits per address: an IPv4 address, or an IPv6 /64 network, since one host may own a
/// whole /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum AddressKey {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl AddressKey {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let mut network = [0; 8];
                network.copy_from_slice(&v6.octets()[..8]);
                Self::V6(network)
            }
        }
    }
}

/// Retry delay of a client behind a proxy, if the client's address has too many connections.
pub(crate) const ADDRESS_LIMIT_RETRY: Duration = Duration::from_secs(5);

/// Counts open connections and enforces the limits on them. The address map has at most one entry
/// for each connection.
#[derive(Debug)]
pub(crate) struct Admission {
    /// Maximum connections in total.
    max: AtomicUsize,
    /// Maximum connections per address; 0 means no limit.
    max_per_address: AtomicUsize,
    /// Limit on the rate of new connections per address.
    rate: Option<AddressLimiter>,
    /// `true` if the rate also applies to loopback addresses.
    limits_loopback: bool,
    started: Instant,
    /// Open connections.
    open: AtomicUsize,
    /// Open connections per address, counted while addresses have a limit.
    addresses: Mutex<HashMap<AddressKey, usize>>,
    /// Connections of each worker.
    loads: Box<[AtomicUsize]>,
    /// Notified when no connection is open any more.
    all_closed: Notify,
}

/// Limit that a new connection exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AdmissionError {
    /// The maximum number of connections is open.
    ServerFull,
    /// The maximum number of connections of one address is open.
    AddressFull,
    /// The address exceeds its rate of new connections.
    RateLimited(RetryAfter),
}

impl AdmissionError {
    /// Returns `true` for a limit per address, `false` for the limit in total.
    pub(crate) fn is_per_address(self) -> bool {
        !matches!(self, Self::ServerFull)
    }

    /// Returns the refusal for the client. A rate limit gives its own retry delay; `delay` returns
    /// that of the other limits.
    pub(crate) fn refusal(self, delay: impl FnOnce() -> Duration) -> Refusal {
        match self {
            Self::ServerFull => Refusal::too_many_connections(delay()),
            Self::AddressFull => Refusal::rate_limited(delay()),
            Self::RateLimited(RetryAfter(time)) => Refusal::rate_limited(time),
        }
    }
}

impl Admission {
    pub(crate) fn new(
        max: usize,
        max_per_address: Option<usize>,
        rate: Option<RateLimit>,
        workers: usize,
    ) -> Self {
        Self {
            max: AtomicUsize::new(max),
            max_per_address: AtomicUsize::new(max_per_address.unwrap_or(0)),
            rate: rate.map(AddressLimiter::new),
            limits_loopback: true,
            started: Instant::now(),
            open: AtomicUsize::new(0),
            addresses: Mutex::default(),
            loads: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            all_closed: Notify::new(),
        }
    }

    /// Sets whether the rate of new connections also applies to loopback addresses.
    pub(crate) fn with_loopback_limited(mut self, limits_loopback: bool) -> Self {
        self.limits_loopback = limits_loopback;
        self
    }

    /// Replaces the limits on the number of connections. Open connections stay. Those opened while
    /// addresses had no limit do not count for their address.
    pub(crate) fn set_limits(&self, max: usize, max_per_address: Option<usize>) {
        self.max.store(max, Ordering::Relaxed);
        self.max_per_address.store(max_per_address.unwrap_or(0), Ordering::Relaxed);
    }

    /// Returns a permit for a new connection, or the limit that the connection exceeds. Only the
    /// acceptor calls this. If `address` is `None`, no address is charged until
    /// [`charge_address`](ConnectionPermit::charge_address) is called.
    pub(crate) fn try_admit(
        self: &Arc<Self>,
        address: Option<IpAddr>,
    ) -> Result<ConnectionPermit, AdmissionError> {
        if self.open.load(Ordering::Relaxed) >= self.max.load(Ordering::Relaxed) {
            return Err(AdmissionError::ServerFull);
        }
        let address = address.map_or(Ok(None), |address| self.count_address(address))?;
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(ConnectionPermit { admission: Arc::clone(self), address, worker: None })
    }

    /// Counts a new connection of an address. If connections per address are limited, returns the
    /// key that the permit counts down when the connection ends.
    fn count_address(&self, address: IpAddr) -> Result<Option<AddressKey>, AdmissionError> {
        if let Some(rate) = &self.rate
            && (self.limits_loopback || !address.to_canonical().is_loopback())
        {
            let result = rate.check(address, self.started.elapsed());
            let evicted = rate.take_evicted();
            if evicted > 0 {
                tracing::warn!(evicted, max = MAX_ADDRESSES, "Rate limiter evicted addresses in use");
            }
            result.map_err(AdmissionError::RateLimited)?;
        }
        let max = match self.max_per_address.load(Ordering::Relaxed) {
            0 => return Ok(None),
            max => max,
        };
        let key = AddressKey::of(address);
        let mut addresses = self.lock();
        let count = addresses.entry(key).or_insert(0);
        if *count >= max {
            return Err(AdmissionError::AddressFull);
        }
        *count += 1;
        Ok(Some(key))
    }

    /// Returns the number of open connections.
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Returns the number of connections of one worker.
    #[cfg(test)]
    fn load(&self, worker: usize) -> usize {
        self.loads[worker].load(Ordering::Relaxed)
    }

    /// Waits until no connection is open.
    pub(crate) async fn wait_empty(&self) {
        loop {
            let all_closed = self.all_closed.notified();
            tokio::pin!(all_closed);
            all_closed.as_mut().enable();
            if self.open() == 0 {
                return;
            }
            all_closed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<AddressKey, usize>> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Permit for one connection. The connection counts against the limits until its permit is dropped.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    admission: Arc<Admission>,
    /// Address that the connection counts for.
    address: Option<AddressKey>,
    /// Worker that the connection counts for.
    worker: Option<u16>,
}

impl ConnectionPermit {
    /// Counts the connection for an address that was unknown when the permit was taken.
    pub(crate) fn charge_address(&mut self, address: IpAddr) -> Result<(), AdmissionError> {
        if self.address.is_none() {
            self.address = self.admission.count_address(address)?;
        }
        Ok(())
    }

    /// Counts the connection for a worker, and no longer for its last worker.
    pub(crate) fn assign(&mut self, worker: usize) {
        self.unassign();
        if let (Some(load), Ok(worker)) = (self.admission.loads.get(worker), u16::try_from(worker)) {
            load.fetch_add(1, Ordering::Relaxed);
            self.worker = Some(worker);
        }
    }

    /// Stops counting the connection for its worker.
    pub(crate) fn unassign(&mut self) {
        if let Some(load) =
            self.worker.take().and_then(|worker| self.admission.loads.get(usize::from(worker)))
        {
            load.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Returns the number of connections of a worker.
    pub(crate) fn connections_of(&self, worker: usize) -> usize {
        self.admission.loads.get(worker).map_or(0, |load| load.load(Ordering::Relaxed))
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.unassign();
        if let Some(key) = self.address {
            let mut addresses = self.admission.lock();
            if let Some(count) = addresses.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    addresses.remove(&key);
                    if addresses.capacity() > 64 && addresses.len() < addresses.capacity() / 4 {
                        addresses.shrink_to_fit();
                    }
                }
            }
        }
        if self.admission.open.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.admission.all_closed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
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
}
