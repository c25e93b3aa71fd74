//! Admission of connections: limits in total and per address.

mod permit;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deeperhub_protocol::handshake::Refusal;
use deeperhub_security::{AddressLimiter, MAX_ADDRESSES, RateLimit, RetryAfter};
use tokio::sync::Notify;

pub(crate) use permit::ConnectionPermit;

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
    pub(crate) fn load(&self, worker: usize) -> usize {
        self.loads[worker].load(Ordering::Relaxed)
    }

    /// Returns the number of addresses with open connections.
    #[cfg(test)]
    pub(crate) fn address_count(&self) -> usize {
        self.lock().len()
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

#[cfg(test)]
mod tests;
