//! Passes new connections, drains and stops to the workers, without waiting for a worker.
//!
//! Each worker has a [`Mailbox`]. A change *notifies* the mailbox; the worker *checks* it at the
//! start of its next round, which takes the notification. A worker that has not checked its mailbox
//! for some time after a notification is *behind*.

mod mailbox;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deeperhub_protocol::handshake::Refusal;

use crate::admission::ConnectionPermit;
use crate::drain::DrainPlan;

pub(crate) use mailbox::Mailbox;

/// Maximum new connections queued for one worker. The acceptor pauses when every queue is full, so
/// further connections wait in the kernel.
pub(crate) const MAX_ARRIVALS: usize = 256;

/// A worker is behind if it has not checked its mailbox for this time after a notification. Rounds
/// of a busy worker are shorter.
const BEHIND_AFTER: Duration = Duration::from_millis(20);

/// If a worker has not checked its mailbox for this time after a notification, the connections in
/// its queue are moved to other workers.
const RECLAIM_AFTER: Duration = Duration::from_millis(250);

/// A new connection that is handed to a worker.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) socket: std::net::TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) permit: ConnectionPermit,
    /// Refusal to answer the handshake with, if the connection was not admitted.
    pub(crate) refusal: Option<Refusal>,
    /// Time at which the connection was accepted.
    pub(crate) accepted_at: Instant,
}

/// Lifecycle phase of a listener.
#[derive(Debug, Clone)]
pub(crate) enum Phase {
    Running,
    /// Connections are being closed, spread over time.
    Draining(Arc<DrainPlan>),
    /// The threads are ending.
    Stopping,
}

/// State shared by the threads of a listener: its phase and the workers' mailboxes. A worker reads
/// the phase when it checks its mailbox. The phase thus reaches every worker that runs, even if its
/// queue is full or another worker hangs.
#[derive(Debug)]
pub(crate) struct Control {
    phase: Mutex<Phase>,
    mailboxes: Box<[Mailbox]>,
}

impl Control {
    pub(crate) fn new(workers: usize) -> Self {
        let started = Instant::now();
        let mailboxes = (0..workers).map(|_| Mailbox::new(started)).collect();
        Self { phase: Mutex::new(Phase::Running), mailboxes }
    }

    /// Returns the current phase.
    pub(crate) fn phase(&self) -> Phase {
        lock(&self.phase).clone()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        matches!(*lock(&self.phase), Phase::Stopping)
    }

    /// Starts a drain, or replaces the plan of a running one. Does nothing once the listener is
    /// stopping.
    pub(crate) fn drain(&self, plan: Arc<DrainPlan>) {
        {
            let mut phase = lock(&self.phase);
            if matches!(*phase, Phase::Stopping) {
                return;
            }
            *phase = Phase::Draining(plan);
        }
        self.notify_all();
    }

    /// Makes all threads end.
    pub(crate) fn stop(&self) {
        *lock(&self.phase) = Phase::Stopping;
        self.notify_all();
    }

    fn notify_all(&self) {
        let now = Instant::now();
        for mailbox in &self.mailboxes {
            mailbox.notify(now);
        }
    }

    pub(crate) fn mailbox(&self, worker: usize) -> &Mailbox {
        &self.mailboxes[worker]
    }

    /// Returns the worker for the next connection, see [`choose_worker`]. Returns `None` if every
    /// queue is full. Only the acceptor calls this and the methods below.
    pub(crate) fn next_worker(&self, permit: &ConnectionPermit, now: Instant) -> Option<usize> {
        choose_worker(self.mailboxes.iter().enumerate().map(|(worker, mailbox)| WorkerLoad {
            connections: permit.connections_of(worker),
            waiting: mailbox.waiting.load(Ordering::Relaxed),
            is_behind: mailbox.is_behind(now),
        }))
    }

    /// Queues a new connection for a worker that [`next_worker`](Self::next_worker) returned.
    pub(crate) fn hand_over(&self, worker: usize, mut arrival: Arrival, now: Instant) {
        arrival.permit.assign(worker);
        self.mailboxes[worker].push(arrival, now);
    }

    /// Returns `true` if a new connection is queued for a worker.
    pub(crate) fn has_arrivals(&self) -> bool {
        self.mailboxes.iter().any(|mailbox| mailbox.waiting.load(Ordering::Relaxed) > 0)
    }

    /// Empties the queue of each worker that is missing, or unresponsive for [`RECLAIM_AFTER`], and
    /// moves its connections to other workers. Returns how many were moved. Does nothing if all
    /// workers are behind.
    pub(crate) fn reassign(&self, now: Instant) -> usize {
        let mut moved = 0;
        for mailbox in &self.mailboxes {
            let has_responsive_worker = || self.mailboxes.iter().any(|other| !other.is_behind(now));
            if !mailbox.is_unresponsive_for(RECLAIM_AFTER, now) || !has_responsive_worker() {
                continue;
            }
            for mut arrival in mailbox.take_all() {
                arrival.permit.unassign();
                // There is always a worker: at least the queue that was just emptied has room.
                if let Some(worker) = self.next_worker(&arrival.permit, now) {
                    self.hand_over(worker, arrival, now);
                    moved += 1;
                }
            }
        }
        moved
    }
}

/// Load of a worker, used to choose the worker of a new connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WorkerLoad {
    /// Connections of the worker, including those still queued for it.
    pub(crate) connections: usize,
    /// New connections queued for the worker.
    pub(crate) waiting: usize,
    /// `true` if the worker is behind.
    pub(crate) is_behind: bool,
}

/// Returns the index of the worker for the next connection: the one with the fewest connections
/// among those that are not behind. If all are behind, returns the one of them with the fewest.
/// Workers with full queues are skipped; returns `None` if there are no others.
pub(crate) fn choose_worker(candidates: impl Iterator<Item = WorkerLoad>) -> Option<usize> {
    candidates
        .enumerate()
        .filter(|(_, candidate)| candidate.waiting < MAX_ARRIVALS)
        .min_by_key(|(_, candidate)| (candidate.is_behind, candidate.connections))
        .map(|(worker, _)| worker)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock is no problem: the guarded data is valid at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
