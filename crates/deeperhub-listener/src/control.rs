//! Passes new connections, drains and stops to the workers, without waiting for a worker.
//!
//! Each worker has a [`Mailbox`]. A change *notifies* the mailbox; the worker *checks* it at the
//! start of its next round, which takes the notification. A worker that has not checked its mailbox
//! for some time after a notification is *behind*.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use deeperhub_protocol::handshake::Refusal;

use crate::admission::ConnectionPermit;
use crate::drain::DrainPlan;

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

/// Notifications and queued connections for one worker.
#[derive(Debug)]
pub(crate) struct Mailbox {
    /// `true` if the phase or the queue changed since the worker last checked. Each round reads it
    /// once.
    is_notified: AtomicBool,
    /// Time of the first notification since the last check, in milliseconds since `started`.
    notified_at: AtomicU64,
    started: Instant,
    waker: Mutex<Option<Waker>>,
    arrivals: Mutex<VecDeque<Arrival>>,
    /// Length of `arrivals`, readable without its lock. Only the acceptor increases it.
    waiting: AtomicUsize,
    /// `true` if the worker panicked and its replacement has not started yet.
    is_vacant: AtomicBool,
}

impl Mailbox {
    fn new(started: Instant) -> Self {
        Self {
            is_notified: AtomicBool::new(true),
            notified_at: AtomicU64::new(0),
            started,
            waker: Mutex::new(None),
            arrivals: Mutex::default(),
            waiting: AtomicUsize::new(0),
            is_vacant: AtomicBool::new(false),
        }
    }

    /// Sets the waker that notifications wake.
    pub(crate) fn attach(&self, waker: &Waker) {
        *lock(&self.waker) = Some(waker.clone());
    }

    /// Sets whether the worker is missing. The acceptor reads this.
    pub(crate) fn set_vacant(&self, is_vacant: bool) {
        self.is_vacant.store(is_vacant, Ordering::Relaxed);
    }

    /// Notifies the mailbox. Wakes the worker unless there already is a notification.
    fn notify(&self, now: Instant) {
        if !self.is_notified.swap(true, Ordering::AcqRel) {
            self.notified_at.store(self.millis(now), Ordering::Relaxed);
            if let Some(waker) = &*lock(&self.waker) {
                waker.wake_by_ref();
            }
        }
    }

    /// Returns `true` if the mailbox was notified since the last call.
    pub(crate) fn take_notification(&self) -> bool {
        self.is_notified.load(Ordering::Relaxed) && self.is_notified.swap(false, Ordering::AcqRel)
    }

    /// Notifies the mailbox without waking the worker. Called on the worker's thread, before its
    /// next round.
    pub(crate) fn notify_self(&self, now: Instant) {
        self.notified_at.store(self.millis(now), Ordering::Relaxed);
        self.is_notified.store(true, Ordering::Release);
    }

    /// Returns the milliseconds from `started` to `now`.
    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    fn push(&self, arrival: Arrival, now: Instant) {
        {
            let mut arrivals = lock(&self.arrivals);
            arrivals.push_back(arrival);
            self.waiting.store(arrivals.len(), Ordering::Relaxed);
        }
        self.notify(now);
    }

    /// Takes the next new connection from the queue.
    pub(crate) fn pop(&self) -> Option<Arrival> {
        let mut arrivals = lock(&self.arrivals);
        let arrival = arrivals.pop_front()?;
        self.waiting.store(arrivals.len(), Ordering::Relaxed);
        Some(arrival)
    }

    /// Empties the queue and returns its connections.
    fn take_all(&self) -> VecDeque<Arrival> {
        let mut arrivals = lock(&self.arrivals);
        self.waiting.store(0, Ordering::Relaxed);
        std::mem::take(&mut *arrivals)
    }

    /// Returns `true` if the worker is behind or missing.
    fn is_behind(&self, now: Instant) -> bool {
        self.is_unresponsive_for(BEHIND_AFTER, now)
    }

    /// Returns `true` if the worker is missing, or has not checked its mailbox for `time` since a
    /// notification.
    fn is_unresponsive_for(&self, time: Duration, now: Instant) -> bool {
        let unchecked_millis = || self.millis(now).saturating_sub(self.notified_at.load(Ordering::Relaxed));
        self.is_vacant.load(Ordering::Relaxed)
            || self.is_notified.load(Ordering::Acquire) && u128::from(unchecked_millis()) >= time.as_millis()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock is no problem: the guarded data is valid at any time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::admission::Admission;

    fn candidate(connections: usize, waiting: usize, is_behind: bool) -> WorkerLoad {
        WorkerLoad { connections, waiting, is_behind }
    }

    #[test]
    fn the_worker_with_the_fewest_connections_gets_the_next() {
        let candidates = [candidate(7, 3, false), candidate(5, 9, false), candidate(5, 0, false)];
        assert_eq!(choose_worker(candidates.into_iter()), Some(1));
    }

    #[test]
    fn workers_that_are_behind_are_chosen_last() {
        let responsive = candidate(9000, MAX_ARRIVALS - 1, false);
        assert_eq!(choose_worker([candidate(0, 1, true), responsive].into_iter()), Some(1));
        assert_eq!(choose_worker([candidate(2, 1, true), candidate(1, 1, true)].into_iter()), Some(1));
    }

    #[test]
    fn a_worker_with_a_full_queue_gets_no_connection() {
        let full = candidate(0, MAX_ARRIVALS, false);
        assert_eq!(choose_worker([full, candidate(9, 1, true)].into_iter()), Some(1));
        assert_eq!(choose_worker([full, full].into_iter()), None);
        assert_eq!(choose_worker([].into_iter()), None);
    }

    /// Source of new connections with one permit each.
    struct Arrivals {
        listener: TcpListener,
        admission: Arc<Admission>,
        clients: Vec<TcpStream>,
    }

    impl Arrivals {
        fn new(workers: usize) -> Self {
            let admission = Arc::new(Admission::new(10_000, None, None, workers));
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            Self { listener, admission, clients: Vec::new() }
        }

        fn next(&mut self) -> Arrival {
            let Self { listener, admission, clients } = self;
            clients.push(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
            let (socket, peer) = listener.accept().unwrap();
            let permit = admission.try_admit(None).unwrap();
            Arrival { socket, peer, permit, refusal: None, accepted_at: Instant::now() }
        }
    }

    /// Returns the number of queued connections of each worker.
    fn queue_lengths(control: &Control) -> Vec<usize> {
        control.mailboxes.iter().map(|mailbox| lock(&mailbox.arrivals).len()).collect()
    }

    fn hand_to_next_worker(control: &Control, arrival: Arrival, now: Instant) {
        let worker = control.next_worker(&arrival.permit, now).unwrap();
        control.hand_over(worker, arrival, now);
    }

    /// Takes each worker's first notification and returns the time.
    fn take_first_notifications(control: &Control) -> Instant {
        assert!(control.mailboxes.iter().all(Mailbox::take_notification));
        Instant::now()
    }

    /// Takes the notification and the queue, as a worker does at the start of a round.
    fn check_mailbox(mailbox: &Mailbox) -> Vec<Arrival> {
        mailbox.take_notification();
        std::iter::from_fn(|| mailbox.pop()).collect()
    }

    #[test]
    fn new_connections_skip_workers_that_are_behind_and_full_queues() {
        let (control, mut arrivals) = (Control::new(2), Arrivals::new(2));
        let start = take_first_notifications(&control);
        hand_to_next_worker(&control, arrivals.next(), start);
        hand_to_next_worker(&control, arrivals.next(), start);
        assert_eq!(queue_lengths(&control), [1, 1]);
        // The second worker empties its queue; the first does not.
        let later = start + BEHIND_AFTER * 2;
        let first = check_mailbox(control.mailbox(1));
        for _ in 0..3 {
            hand_to_next_worker(&control, arrivals.next(), later);
            assert_eq!(queue_lengths(&control), [1, 1]);
            assert_eq!(check_mailbox(control.mailbox(1)).len(), 1);
        }
        drop(first);
        control.mailbox(1).set_vacant(true);
        while queue_lengths(&control) != [MAX_ARRIVALS; 2] {
            hand_to_next_worker(&control, arrivals.next(), start);
        }
        let one_more = arrivals.next();
        assert_eq!(control.next_worker(&one_more.permit, start), None);
        control.mailbox(0).pop().unwrap();
        hand_to_next_worker(&control, one_more, start);
        let admission = Arc::clone(&arrivals.admission);
        assert_eq!(admission.open(), 2 * MAX_ARRIVALS);
        drop(control);
        assert_eq!(admission.open(), 0);
    }

    #[test]
    fn connections_queued_for_a_hanging_worker_are_reassigned() {
        let (control, mut arrivals) = (Control::new(2), Arrivals::new(2));
        let start = take_first_notifications(&control);
        for _ in 0..4 {
            hand_to_next_worker(&control, arrivals.next(), start);
        }
        assert!(control.has_arrivals());
        let admission = Arc::clone(&arrivals.admission);
        let late = start + RECLAIM_AFTER;
        assert_eq!(control.reassign(late), 0, "all workers are behind");
        drop(check_mailbox(control.mailbox(1)));
        assert_eq!(control.reassign(start + BEHIND_AFTER), 0, "the worker may only be busy");
        assert_eq!(control.reassign(late), 2);
        assert_eq!(queue_lengths(&control), [0, 2]);
        let moved = check_mailbox(control.mailbox(1));
        assert_eq!((moved[0].permit.connections_of(0), moved[0].permit.connections_of(1)), (0, 2));
        // The first worker still has not checked its mailbox, so it gets no further connection.
        hand_to_next_worker(&control, arrivals.next(), late);
        assert_eq!(queue_lengths(&control), [0, 1]);
        drop((moved, control));
        assert_eq!(admission.open(), 0);
    }

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_worker_is_woken_once_until_it_checks_its_mailbox() {
        let (control, count) = (Control::new(1), Arc::new(Count::default()));
        let mailbox = control.mailbox(0);
        mailbox.attach(&Waker::from(Arc::clone(&count)));
        assert!(mailbox.take_notification(), "a new worker has a notification");
        assert!(!mailbox.take_notification());
        let mut arrivals = Arrivals::new(1);
        for _ in 0..3 {
            hand_to_next_worker(&control, arrivals.next(), Instant::now());
        }
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert!(mailbox.take_notification());
        control.stop();
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        assert!(control.is_stopping());
    }
}
