//! Takes new connections from the kernel and gives each to a worker.

use std::io;
use std::net::{IpAddr, SocketAddr};
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

/// Tokens of the acceptor's events.
const SOCKET: Token = Token(0);
const STOP: Token = Token(1);

/// Opens the listening socket.
pub(crate) fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
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
    listener: TcpListener,
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
        mut listener: TcpListener,
        workers: Vec<mpsc::Sender<ToWorker>>,
        places: Arc<Places>,
        draining: Arc<AtomicBool>,
        config: &Config,
        metrics: Metrics,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.registry().register(&mut listener, SOCKET, Interest::READABLE)?;
        let stop = Arc::new(Waker::new(poll.registry(), STOP)?);
        let standing = Arc::new(Places::new(MAX_STANDING, None, None, workers.len()));
        let slots = Slots::new(config.reconnects_per_second, Instant::now());
        let memory = config.memory.clone();
        Ok(Self {
            poll,
            listener,
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
            if events.iter().any(|event| event.token() == STOP) {
                return;
            }
            if last.elapsed() < SOON {
                std::thread::sleep(GATHER);
            }
            // Events come in edges: accept until there is none left.
            let mut exhausted = false;
            while !exhausted {
                match self.listener.accept() {
                    Ok((socket, peer)) => {
                        failing = false;
                        accepted.push((socket, peer));
                        if accepted.len() < BATCH {
                            continue;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => exhausted = true,
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
                        if self.poll.poll(&mut events, Some(PAUSE)).is_ok()
                            && events.iter().any(|event| event.token() == STOP)
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

/// Whether an error of `accept` says something about the connection, not about this process (accept(2)).
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, PermissionDenied};
    const EPROTO: i32 = 71;
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted | PermissionDenied)
        || error.raw_os_error() == Some(EPROTO)
}
