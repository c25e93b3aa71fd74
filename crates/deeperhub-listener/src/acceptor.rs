//! The acceptor thread: accepts new connections and hands each to a worker.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use deeperhub_protocol::handshake::Refusal;
use deeperhub_security::LimitMode;
use deeperhub_security::proxy::TrustedProxies;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::admission::{Admission, AdmissionError, ConnectionPermit};
use crate::config::Config;
use crate::control::{Arrival, Control, Phase};
use crate::memory_budget::MemoryBudget;
use crate::metrics::Metrics;
use crate::reconnect_pacer::ReconnectPacer;
use crate::restart::RestartDelay;

/// Pause after an error of `accept` or of polling that concerns the whole process, such as a lack
/// of file descriptors.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Maximum refused connections at one time that get an HTTP response. Further ones are dropped, so
/// that refusals cost a bounded amount of memory.
const MAX_PENDING_REFUSALS: usize = 256;

/// Maximum connections that are accepted before they are handed over together. A worker then wakes
/// once for several of them, which saves context switches if the worker shares a core with the
/// acceptor.
const ACCEPT_BATCH: usize = 64;

/// Connections that arrive within this time after the last accepted ones count as a rush. In a
/// rush, the acceptor waits for [`RUSH_DELAY`] before it accepts.
const RUSH_INTERVAL: Duration = Duration::from_millis(2);

/// Delay before accepting in a rush, so that acceptor and workers wake once for several
/// connections. Connections that arrive one at a time are not delayed.
const RUSH_DELAY: Duration = Duration::from_micros(500);

/// Token of the stop waker. A listening socket's token is its index.
const STOP_TOKEN: Token = Token(usize::MAX);

/// First pause of accepting while every worker's queue is full; each further pause doubles it.
const MIN_BACKPRESSURE_PAUSE: Duration = Duration::from_millis(1);

/// Maximum pause of accepting while every worker's queue is full.
const MAX_BACKPRESSURE_PAUSE: Duration = Duration::from_millis(50);

/// Interval at which the acceptor checks for stalled workers while connections are queued.
const REASSIGN_INTERVAL: Duration = Duration::from_millis(100);

/// Maximum attempts to find a port that is free on both loopback addresses.
const MAX_PORT_ATTEMPTS: u32 = 100;

/// Addresses that a listener binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListenOn {
    /// One address. `[::]` also accepts IPv4 if the system allows it, as most do. Port 0 picks any
    /// free port.
    Address(SocketAddr),
    /// Both loopback addresses, 127.0.0.1 and ::1, because `localhost` may resolve to either. A
    /// system that has only one of them binds that one.
    Loopback {
        /// Port of both addresses; 0 picks one that is free on both.
        port: u16,
    },
}

/// Opens the listening sockets, at least one.
///
/// # Errors
///
/// Returns the address that could not be bound, with the system's error.
pub(crate) fn listen_on(on: ListenOn, backlog: u32) -> Result<Vec<TcpListener>, (SocketAddr, io::Error)> {
    let port = match on {
        ListenOn::Address(address) => {
            return listen(address, backlog).map(|socket| vec![socket]).map_err(|error| (address, error));
        }
        ListenOn::Loopback { port } => port,
    };
    let mut attempts = 0;
    loop {
        attempts += 1;
        match listen_on_loopback(port, backlog) {
            // The port that the system chose for the first address is taken on the second: retry.
            Err((_, error))
                if port == 0 && error.kind() == io::ErrorKind::AddrInUse && attempts < MAX_PORT_ATTEMPTS => {}
            result => return result,
        }
    }
}

/// Opens listening sockets on the loopback addresses that the system has, all with the same port.
fn listen_on_loopback(port: u16, backlog: u32) -> Result<Vec<TcpListener>, (SocketAddr, io::Error)> {
    let mut sockets = Vec::with_capacity(2);
    let mut unavailable = None;
    let mut port = port;
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let address = SocketAddr::new(ip, port);
        let opened = listen(address, backlog).and_then(|socket| Ok((socket.local_addr()?.port(), socket)));
        match opened {
            Ok((bound_port, socket)) => {
                port = bound_port;
                sockets.push(socket);
            }
            Err(error) if is_unavailable(&error) => unavailable = Some((address, error)),
            Err(error) => return Err((address, error)),
        }
    }
    match unavailable {
        Some(unavailable) if sockets.is_empty() => Err(unavailable),
        _ => Ok(sockets),
    }
}

/// Returns `true` if the system lacks the address or its protocol family.
fn is_unavailable(error: &io::Error) -> bool {
    const EPROTONOSUPPORT: i32 = if cfg!(target_vendor = "apple") { 43 } else { 93 };
    const EAFNOSUPPORT: i32 = if cfg!(target_vendor = "apple") { 47 } else { 97 };
    error.kind() == io::ErrorKind::AddrNotAvailable
        || matches!(error.raw_os_error(), Some(EPROTONOSUPPORT | EAFNOSUPPORT))
}

/// Opens a listening socket.
fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    // Accepted sockets inherit this option on Linux, which saves a system call for each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(TcpListener::from_std(socket.into()))
}

/// Accepts connections on a thread of its own. Accepted sockets are non-blocking already, and are
/// registered only with the reactor of their worker.
#[derive(Debug)]
pub(crate) struct Acceptor {
    poll: Poll,
    listeners: Vec<TcpListener>,
    /// For each socket, `true` if it may have connections to accept. Events are edge-triggered, so
    /// a socket stays ready until `accept` returns `WouldBlock`.
    ready: Vec<bool>,
    /// Waker that interrupts polling when the listener stops.
    stop: Arc<Waker>,
    control: Arc<Control>,
    pub(crate) admission: Arc<Admission>,
    /// Permits of connections that get a refusal.
    refusal_admission: Arc<Admission>,
    reconnect_pacer: ReconnectPacer,
    memory: Option<Arc<MemoryBudget>>,
    limit_mode: LimitMode,
    trusted_proxies: TrustedProxies,
    pub(crate) metrics: Metrics,
    /// Number of panics that are still to be raised.
    #[cfg(test)]
    injected_panics: Arc<std::sync::atomic::AtomicUsize>,
}

impl Acceptor {
    pub(crate) fn new(
        mut listeners: Vec<TcpListener>,
        control: Arc<Control>,
        admission: Arc<Admission>,
        config: &Config,
        metrics: Metrics,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        for (index, listener) in listeners.iter_mut().enumerate() {
            poll.registry().register(listener, Token(index), Interest::READABLE)?;
        }
        let stop = Arc::new(Waker::new(poll.registry(), STOP_TOKEN)?);
        let refusal_admission = Arc::new(Admission::new(MAX_PENDING_REFUSALS, None, None, config.workers));
        let reconnect_pacer = ReconnectPacer::new(config.reconnects_per_second, Instant::now());
        let memory = config.memory.clone();
        Ok(Self {
            poll,
            ready: vec![true; listeners.len()],
            listeners,
            stop,
            control,
            admission,
            refusal_admission,
            reconnect_pacer,
            memory,
            limit_mode: config.limit_mode,
            trusted_proxies: config.trusted_proxies.clone(),
            metrics,
            #[cfg(test)]
            injected_panics: Arc::default(),
        })
    }

    /// Returns the waker that wakes the acceptor, so that [`run`](Self::run) notices that the
    /// listener is stopping.
    pub(crate) fn stopper(&self) -> Arc<Waker> {
        Arc::clone(&self.stop)
    }

    /// Accepts connections until the listener stops. After a panic, the acceptor starts again with
    /// the same listening sockets; only connections that were not handed over yet are lost.
    pub(crate) fn run(mut self) {
        let mut delay = RestartDelay::default();
        loop {
            let started_at = Instant::now();
            if catch_unwind(AssertUnwindSafe(|| self.accept_until_stopped())).is_ok() {
                return;
            }
            self.metrics.acceptor_restarts.inc();
            tracing::error!("Acceptor thread panicked; restarting");
            if self.is_stopped_within(delay.after(started_at.elapsed())) {
                return;
            }
        }
    }

    /// Accepts connections and hands them over until the listener is stopping.
    fn accept_until_stopped(&mut self) {
        // Only the first of several errors in a row is logged.
        let mut is_failing = false;
        let mut events = Events::with_capacity(4);
        let mut accepted = Vec::with_capacity(ACCEPT_BATCH);
        let (mut last_batch_at, mut last_reassign_at) = (Instant::now(), Instant::now());
        // The first poll does not block: events are edge-triggered, and an acceptor that panicked
        // may have consumed those of waiting connections.
        let mut timeout = Some(Duration::ZERO);
        loop {
            match self.poll.poll(&mut events, timeout) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    if !is_failing {
                        tracing::error!(%error, "Listening socket cannot be polled; retrying");
                    }
                    is_failing = true;
                    std::thread::sleep(ERROR_PAUSE);
                }
            }
            if self.control.is_stopping() {
                return;
            }
            for event in &events {
                if let Some(ready) = self.ready.get_mut(event.token().0) {
                    *ready = true;
                }
            }
            #[cfg(test)]
            tests::panic_if_injected(&self.injected_panics);
            if last_batch_at.elapsed() < RUSH_INTERVAL && !events.is_empty() {
                std::thread::sleep(RUSH_DELAY);
            }
            let mut first_index = 0;
            while let Some(index) = next_ready(&self.ready, first_index) {
                match self.listeners[index].accept() {
                    Ok((socket, peer)) => {
                        is_failing = false;
                        accepted.push((socket, peer));
                        if accepted.len() < ACCEPT_BATCH {
                            continue;
                        }
                        // The other sockets come next.
                        first_index = index + 1;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.ready[index] = false,
                    Err(error) => {
                        self.metrics.accept_errors.inc();
                        if is_connection_error(&error) {
                            continue;
                        }
                        if !is_failing {
                            tracing::error!(%error, "Connections cannot be accepted; retrying");
                        }
                        is_failing = true;
                        self.hand_over_all(&mut accepted);
                        if self.is_stopped_within(ERROR_PAUSE) {
                            return;
                        }
                    }
                }
                self.hand_over_all(&mut accepted);
                if self.control.is_stopping() {
                    return;
                }
                // During a long rush, this loop may not end for some time.
                if last_reassign_at.elapsed() >= REASSIGN_INTERVAL {
                    self.reassign();
                    last_reassign_at = Instant::now();
                }
            }
            self.reassign();
            last_reassign_at = Instant::now();
            timeout = self.control.has_arrivals().then_some(REASSIGN_INTERVAL);
            last_batch_at = Instant::now();
        }
    }

    /// Moves connections queued for a stalled worker to other workers.
    fn reassign(&self) {
        let moved = self.control.reassign(Instant::now());
        if moved > 0 {
            self.metrics.arrivals_moved.add(moved as u64);
            tracing::warn!(moved, "New connections reassigned from a stalled worker");
        }
    }

    /// Waits for `time`, during which new connections stay in the kernel's backlog. Returns `true`,
    /// possibly early, if the listener is stopping.
    fn is_stopped_within(&mut self, time: Duration) -> bool {
        // Polling consumes edge-triggered events here, so every socket may be ready afterwards.
        self.ready.fill(true);
        let mut events = Events::with_capacity(4);
        let deadline = Instant::now() + time;
        loop {
            let remaining = deadline.saturating_duration_since(Instant::now());
            if self.control.is_stopping() || remaining.is_zero() {
                return self.control.is_stopping();
            }
            if self.poll.poll(&mut events, Some(remaining)).is_err() {
                std::thread::sleep(remaining.min(ERROR_PAUSE));
            }
        }
    }

    /// Hands each accepted connection to a worker. Waits only while every worker's queue is full;
    /// new connections then stay in the kernel's backlog.
    fn hand_over_all(&mut self, accepted: &mut Vec<(mio::net::TcpStream, SocketAddr)>) {
        let mut pause = MIN_BACKPRESSURE_PAUSE;
        for (socket, peer) in accepted.drain(..) {
            let Some(arrival) = self.admit_arrival(socket.into(), peer) else { continue };
            let worker = loop {
                let now = Instant::now();
                if let Some(worker) = self.control.next_worker(&arrival.permit, now) {
                    break worker;
                }
                self.metrics.accept_pauses.inc();
                if pause == MIN_BACKPRESSURE_PAUSE {
                    tracing::warn!("Accept paused: all workers are behind");
                }
                if self.is_stopped_within(pause) {
                    return;
                }
                pause = (pause * 2).min(MAX_BACKPRESSURE_PAUSE);
                self.reassign();
            };
            self.control.hand_over(worker, arrival, Instant::now());
        }
    }

    /// Gives an accepted connection its permit, and a refusal if [`admit`](Self::admit) refuses it.
    /// Returns `None` if the connection must be dropped, because too many others are being refused.
    fn admit_arrival(&self, socket: std::net::TcpStream, peer: SocketAddr) -> Option<Arrival> {
        // A socket for both families reports an IPv4 address as an IPv6 one.
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        // The address of a client behind a proxy is not known yet.
        let address = (!self.trusted_proxies.trusts(peer.ip())).then(|| peer.ip());
        let (permit, refusal) = match self.admit(address) {
            Ok(permit) => (Ok(permit), None),
            Err(refusal) => (self.refusal_admission.try_admit(None), Some(refusal)),
        };
        let Ok(permit) = permit else {
            self.metrics.accept_drops.inc();
            return None;
        };
        Some(Arrival { socket, peer, permit, refusal, accepted_at: Instant::now() })
    }

    /// Returns a permit for a new connection, or the refusal if the connection is over a limit or
    /// the listener is draining or stopping. A refusal tells the client when to reconnect.
    fn admit(&self, address: Option<IpAddr>) -> Result<ConnectionPermit, Refusal> {
        let now = Instant::now();
        let delay = || self.reconnect_pacer.next_delay(now, Duration::ZERO);
        match self.control.phase() {
            Phase::Running => {}
            Phase::Draining(plan) => {
                let delay = self.reconnect_pacer.next_delay(now, plan.until_first_reconnect(now));
                return Err(Refusal::draining(delay));
            }
            Phase::Stopping => return Err(Refusal::draining(delay())),
        }
        if self.memory.as_ref().is_some_and(|memory| !memory.has_room()) {
            self.metrics.memory_refusals.inc();
            return Err(Refusal::too_many_connections(delay()));
        }
        let refuse = |error: AdmissionError| {
            self.metrics.record_limited(error);
            error.refusal(delay)
        };
        match self.admission.try_admit(address) {
            // In observe mode, the connection is counted as limited, and admitted without being
            // charged to its address.
            Err(error) if error.is_per_address() && self.limit_mode == LimitMode::Observe => {
                self.metrics.record_limited(error);
                self.admission.try_admit(None).map_err(refuse)
            }
            result => result.map_err(refuse),
        }
    }
}

/// Returns the index of the first ready socket at or after `first_index`. If there is none, starts
/// again at index 0.
fn next_ready(ready: &[bool], first_index: usize) -> Option<usize> {
    let mut indices = (first_index..ready.len()).chain(0..first_index.min(ready.len()));
    indices.find(|&index| ready[index])
}

/// Returns `true` if an error of `accept` concerns only one connection, not the process (see
/// accept(2)).
fn is_connection_error(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, PermissionDenied};
    const EPROTO: i32 = if cfg!(target_vendor = "apple") { 100 } else { 71 };
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | PermissionDenied)
        || error.raw_os_error() == Some(EPROTO)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use deeperhub_metrics::Cells;

    use super::*;

    fn addresses(sockets: &[TcpListener]) -> Vec<SocketAddr> {
        sockets.iter().map(|socket| socket.local_addr().unwrap()).collect()
    }

    #[test]
    fn both_loopback_addresses_get_the_same_port() {
        for _ in 0..10 {
            let sockets = listen_on(ListenOn::Loopback { port: 0 }, 16).unwrap();
            let addresses = addresses(&sockets);
            assert!(!addresses.is_empty() && addresses.iter().all(|address| address.ip().is_loopback()));
            assert!(addresses[0].port() > 0);
            assert!(addresses.iter().all(|address| address.port() == addresses[0].port()), "{addresses:?}");
            let again = listen_on(ListenOn::Loopback { port: addresses[0].port() }, 16);
            assert!(again.is_err_and(|(_, error)| error.kind() == io::ErrorKind::AddrInUse));
        }
    }

    #[test]
    fn a_port_taken_on_one_loopback_address_is_an_error() {
        let Ok(other) = std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else { return };
        let address = other.local_addr().unwrap();
        let result = listen_on(ListenOn::Loopback { port: address.port() }, 16);
        // If another program holds the port on 127.0.0.1, the error names that address.
        let (failed_address, error) = result.unwrap_err();
        assert_eq!((failed_address.port(), error.kind()), (address.port(), io::ErrorKind::AddrInUse));
    }

    #[test]
    fn the_next_ready_socket_is_found_from_any_index() {
        assert_eq!(next_ready(&[true, true], 0), Some(0));
        assert_eq!(next_ready(&[true, true], 1), Some(1));
        assert_eq!(next_ready(&[true, true], 2), Some(0));
        assert_eq!(next_ready(&[true, false], 1), Some(0));
        assert_eq!(next_ready(&[false, false], 1), None);
    }

    /// Panics if the test injected a panic.
    pub(super) fn panic_if_injected(injected_panics: &AtomicUsize) {
        let result =
            injected_panics.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| count.checked_sub(1));
        assert!(result.is_err(), "this panic was injected by a test");
    }

    #[test]
    fn an_acceptor_continues_with_its_listening_socket_after_a_panic() {
        let socket = listen(([127, 0, 0, 1], 0).into(), 128).unwrap();
        let address = socket.local_addr().unwrap();
        let control = Arc::new(Control::new(1));
        let admission = Arc::new(Admission::new(10, None, None, 1));
        let metrics = Metrics::new(&Cells::new(1));
        let config = Config { workers: 1, ..Config::default() };
        let acceptor =
            Acceptor::new(vec![socket], Arc::clone(&control), admission, &config, metrics.clone()).unwrap();
        let (injected_panics, stopper) = (Arc::clone(&acceptor.injected_panics), acceptor.stopper());
        let thread = std::thread::spawn(move || acceptor.run());
        let check_accepts = || {
            let client = std::net::TcpStream::connect(address).unwrap();
            let deadline = Instant::now() + Duration::from_secs(30);
            loop {
                if let Some(arrival) = control.mailbox(0).pop() {
                    assert_eq!(arrival.peer, client.local_addr().unwrap());
                    return;
                }
                assert!(Instant::now() < deadline, "the connection is not accepted");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        check_accepts();
        injected_panics.store(2, Ordering::Relaxed);
        check_accepts();
        check_accepts();
        assert_eq!(metrics.acceptor_restarts.value(), 2);
        control.stop();
        stopper.wake().unwrap();
        thread.join().unwrap();
    }
}
