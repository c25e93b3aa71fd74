//! Takes new connections from the kernel and gives each to a worker.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use deeperhub_protocol::handshake::Refusal;
use deeperhub_security::LimitMode;
use deeperhub_security::proxy::TrustedProxies;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};
use tokio::sync::mpsc;

use crate::budget::MemoryBudget;
use crate::config::Config;
use crate::metrics::Metrics;
use crate::places::{NoPlace, Place, Places};
use crate::slots::Slots;
use crate::worker::ToWorker;

/// Pause after an error that only time can cure.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections at one time that are told why there is no place for them. More are dropped unanswered.
const MAX_STANDING: usize = 256;

/// Connections that are accepted before the first of them is handed over. A worker that is woken by the first finds
/// the others too, and where it shares a core with the acceptor they change places once instead of for each.
const BATCH: usize = 64;

/// How soon after the last connections the next must come for the acceptor to let more of them gather.
const SOON: Duration = Duration::from_millis(2);

/// For how long they gather. Connections that come one by one wait for nothing; in a rush, in which each would wake the
/// acceptor, it is woken for several at once, and so are the workers: 4 of 57 µs of each connection's processor time.
const GATHER: Duration = Duration::from_micros(500);

/// Token of the acceptor's own events; those of its sockets are their positions.
const STOP: Token = Token(usize::MAX);

/// Ports that are tried until one is free at both loopback addresses.
const MAX_TRIES: u32 = 100;

/// Where a listener listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListenOn {
    /// One address. `[::]` takes IPv4 as well where the system is set up so, as most are; port 0:
    /// any free one.
    Address(SocketAddr),
    /// Both loopback addresses, 127.0.0.1 and ::1, as what `localhost` stands for depends on the
    /// client. Where the system has one of them only, that one.
    Loopback {
        /// The port of both; 0: any that is free at both.
        port: u16,
    },
}

impl From<SocketAddr> for ListenOn {
    fn from(address: SocketAddr) -> Self {
        Self::Address(address)
    }
}

/// Opens the listening sockets, at least one.
///
/// # Errors
///
/// The address that cannot be listened on, and why.
pub(crate) fn listen_on(on: ListenOn, backlog: u32) -> Result<Vec<TcpListener>, (SocketAddr, io::Error)> {
    let port = match on {
        ListenOn::Address(address) => {
            return listen(address, backlog).map(|socket| vec![socket]).map_err(|error| (address, error));
        }
        ListenOn::Loopback { port } => port,
    };
    let mut tries = 0;
    loop {
        tries += 1;
        match listen_on_loopback(port, backlog) {
            // The port that the system chose for the first address is taken at the second.
            Err((_, error)) if port == 0 && error.kind() == io::ErrorKind::AddrInUse && tries < MAX_TRIES => {
            }
            done => return done,
        }
    }
}

fn listen_on_loopback(port: u16, backlog: u32) -> Result<Vec<TcpListener>, (SocketAddr, io::Error)> {
    let mut sockets = Vec::with_capacity(2);
    let mut missing = None;
    let mut port = port;
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let address = SocketAddr::new(ip, port);
        let opened = listen(address, backlog).and_then(|socket| Ok((socket.local_addr()?.port(), socket)));
        match opened {
            Ok((taken, socket)) => {
                port = taken;
                sockets.push(socket);
            }
            Err(error) if is_unavailable(&error) => missing = Some((address, error)),
            Err(error) => return Err((address, error)),
        }
    }
    match missing {
        Some(missing) if sockets.is_empty() => Err(missing),
        _ => Ok(sockets),
    }
}

/// Whether the system has no such address, or nothing of its protocol at all.
fn is_unavailable(error: &io::Error) -> bool {
    const EPROTONOSUPPORT: i32 = 93;
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable
        || matches!(error.raw_os_error(), Some(EPROTONOSUPPORT | EAFNOSUPPORT))
}

/// Opens a listening socket.
fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket =
        socket2::Socket::new(domain, socket2::Type::STREAM.nonblocking(), Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    // Linux hands it down to accepted sockets, which saves a system call for each.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(TcpListener::from_std(socket.into()))
}

/// The acceptor: a thread with a poll of its own, so that accepted sockets are made non-blocking by the call that
/// accepts them and are registered once, by their worker.
#[derive(Debug)]
pub(crate) struct Acceptor {
    poll: Poll,
    listeners: Vec<TcpListener>,
    stop: Arc<Waker>,
    pub(crate) workers: Vec<mpsc::Sender<ToWorker>>,
    pub(crate) places: Arc<Places>,
    standing: Arc<Places>,
    slots: Slots,
    memory: Option<Arc<MemoryBudget>>,
    limit_mode: LimitMode,
    pub(crate) draining: Arc<AtomicBool>,
    trusted_proxies: TrustedProxies,
    pub(crate) metrics: Metrics,
}

impl Acceptor {
    pub(crate) fn new(
        mut listeners: Vec<TcpListener>,
        workers: Vec<mpsc::Sender<ToWorker>>,
        places: Arc<Places>,
        draining: Arc<AtomicBool>,
        config: &Config,
        metrics: Metrics,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        for (index, listener) in listeners.iter_mut().enumerate() {
            poll.registry().register(listener, Token(index), Interest::READABLE)?;
        }
        let stop = Arc::new(Waker::new(poll.registry(), STOP)?);
        let standing = Arc::new(Places::new(MAX_STANDING, None, None, workers.len()));
        let slots = Slots::new(config.reconnects_per_second, Instant::now());
        let memory = config.memory.clone();
        Ok(Self {
            poll,
            listeners,
            stop,
            workers,
            places,
            standing,
            slots,
            memory,
            limit_mode: config.limit_mode,
            draining,
            trusted_proxies: config.trusted_proxies.clone(),
            metrics,
        })
    }

    /// Ends [`run`](Self::run) when it is woken.
    pub(crate) fn stopper(&self) -> Arc<Waker> {
        Arc::clone(&self.stop)
    }

    /// Accepts until it is stopped.
    pub(crate) fn run(mut self) {
        let mut failing = false;
        let mut events = Events::with_capacity(4);
        let mut accepted = Vec::with_capacity(BATCH);
        // Events come in edges: a socket is ready until it has given all.
        let mut ready = vec![false; self.listeners.len()];
        let mut last = Instant::now();
        loop {
            match self.poll.poll(&mut events, None) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!(%error, "The listening socket cannot be watched; no more connections.");
                    return;
                }
            }
            if is_stopped(&events, &mut ready) {
                return;
            }
            if last.elapsed() < SOON {
                std::thread::sleep(GATHER);
            }
            let mut next = 0;
            while let Some(index) = next_ready(&ready, next) {
                match self.listeners[index].accept() {
                    Ok((socket, peer)) => {
                        failing = false;
                        accepted.push((socket, peer));
                        if accepted.len() < BATCH {
                            continue;
                        }
                        // The others have their turn.
                        next = index + 1;
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready[index] = false,
                    Err(error) => {
                        self.metrics.accept_errors.inc();
                        if concerns_one_connection(&error) {
                            continue;
                        }
                        if !failing {
                            tracing::error!(%error, "Connections cannot be accepted; trying again until they can.");
                        }
                        failing = true;
                        self.hand_over_all(&mut accepted);
                        // Also the way to hear of a stop meanwhile.
                        if self.poll.poll(&mut events, Some(PAUSE)).is_ok() && is_stopped(&events, &mut ready)
                        {
                            return;
                        }
                    }
                }
                self.hand_over_all(&mut accepted);
            }
            last = Instant::now();
        }
    }

    fn hand_over_all(&self, accepted: &mut Vec<(mio::net::TcpStream, SocketAddr)>) {
        for (socket, peer) in accepted.drain(..) {
            self.hand_over(socket.into(), peer);
        }
    }

    fn hand_over(&self, socket: std::net::TcpStream, peer: SocketAddr) {
        // IPv4 comes as IPv6 where the socket takes both.
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        // Of a proxy the client is not known yet.
        let address = (!self.trusted_proxies.trusts(peer.ip())).then(|| peer.ip());
        let (place, refusal) = match self.admit(address) {
            Ok(place) => (Ok(place), None),
            Err(refusal) => (self.standing.take(None), Some(refusal)),
        };
        let Ok(place) = place else {
            self.metrics.accept_drops.inc();
            return;
        };
        let Some(worker) = self.workers.get(place.worker()) else { return };
        // A worker that is behind makes the acceptor wait; the kernel's backlog does the rest. One that has ended
        // takes no more, and the socket is closed.
        let _ = worker.blocking_send(ToWorker::Connection {
            socket,
            peer,
            place,
            refusal,
            since: Instant::now(),
        });
    }

    /// A place, or why there is none and when the client should come back.
    fn admit(&self, address: Option<IpAddr>) -> Result<Place, Refusal> {
        let slot = || self.slots.take(Instant::now());
        if self.draining.load(Ordering::Relaxed) {
            return Err(Refusal::draining(slot()));
        }
        if self.memory.as_ref().is_some_and(|memory| !memory.has_room()) {
            self.metrics.memory_refusals.inc();
            return Err(Refusal::too_many_connections(slot()));
        }
        let refuse = |no_place: NoPlace| {
            self.metrics.limited(no_place);
            no_place.refusal(slot)
        };
        match self.places.take(address) {
            // What is only observed is counted for no address.
            Err(no_place) if no_place.is_of_address() && self.limit_mode == LimitMode::Observe => {
                self.metrics.limited(no_place);
                self.places.take(None).map_err(refuse)
            }
            taken => taken.map_err(refuse),
        }
    }
}

/// Notes which sockets have connections. Returns `true` if the acceptor is stopped.
fn is_stopped(events: &Events, ready: &mut [bool]) -> bool {
    for event in events {
        if let Some(ready) = ready.get_mut(event.token().0) {
            *ready = true;
        }
    }
    events.iter().any(|event| event.token() == STOP)
}

/// The first socket from `from` on, and round, that has connections.
fn next_ready(ready: &[bool], from: usize) -> Option<usize> {
    let (before, behind) = ready.split_at(from.min(ready.len()));
    let position = |part: &[bool]| part.iter().position(|ready| *ready);
    position(behind).map(|index| before.len() + index).or_else(|| position(before))
}

/// Whether an error of `accept` says something about the connection, not about this process (accept(2)).
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, PermissionDenied};
    const EPROTO: i32 = 71;
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | PermissionDenied)
        || error.raw_os_error() == Some(EPROTO)
}

#[cfg(test)]
mod tests {
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
    fn a_port_that_is_taken_at_one_of_them_is_said_to_be_taken() {
        let Ok(taken) = std::net::TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) else { return };
        let address = taken.local_addr().unwrap();
        let refused = listen_on(ListenOn::Loopback { port: address.port() }, 16);
        // Where another program has it at 127.0.0.1, that is what is told.
        let (told, error) = refused.unwrap_err();
        assert_eq!((told.port(), error.kind()), (address.port(), io::ErrorKind::AddrInUse));
    }

    #[test]
    fn sockets_take_turns() {
        assert_eq!(next_ready(&[true, true], 0), Some(0));
        assert_eq!(next_ready(&[true, true], 1), Some(1));
        assert_eq!(next_ready(&[true, true], 2), Some(0));
        assert_eq!(next_ready(&[true, false], 1), Some(0));
        assert_eq!(next_ready(&[false, false], 1), None);
    }
}
