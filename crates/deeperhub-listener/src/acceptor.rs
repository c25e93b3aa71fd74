//! The acceptor thread: accepts new connections and hands each to a worker.

mod admit;
mod listen;

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use deeperhub_security::LimitMode;
use deeperhub_security::proxy::TrustedProxies;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token, Waker};

use crate::admission::Admission;
use crate::config::Config;
use crate::control::Control;
use crate::memory_budget::MemoryBudget;
use crate::metrics::Metrics;
use crate::reconnect_pacer::ReconnectPacer;
use crate::restart::RestartDelay;

pub use listen::ListenOn;
pub(crate) use listen::listen_on;

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
mod tests;
