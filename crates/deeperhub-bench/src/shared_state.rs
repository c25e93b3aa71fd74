//! What the threads of a run tell each other.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use mio::Waker;

use crate::plan::Plan;

/// Counters and signals of a run. Threads add to them once a round, not once a message.
#[derive(Debug)]
pub(crate) struct SharedState {
    /// What times are counted from.
    epoch: Instant,
    /// When the load starts, in nanoseconds since the epoch; 0 until every thread has its connections.
    start: AtomicU64,
    /// Threads that have not got all their connections yet.
    connecting: AtomicUsize,
    /// Threads that may still send.
    sending: AtomicUsize,
    stopped: AtomicBool,
    /// Connections that are ready, for the progress bar.
    pub(crate) opened: AtomicU64,
    /// Connections that will not become ready.
    pub(crate) failed: AtomicU64,
    /// Messages that were sent.
    pub(crate) sent: AtomicU64,
    /// Deliveries that the messages sent so far should give.
    pub(crate) expected: AtomicU64,
    /// Deliveries that came, each counted once.
    pub(crate) delivered: AtomicU64,
    /// The same for each publisher.
    done: Vec<AtomicU64>,
    /// How many deliveries a publisher waits for; none when 0.
    goals: Vec<AtomicU64>,
    /// Subscribers of each topic that read.
    subscribers: Vec<AtomicU32>,
    /// One for each thread.
    wakers: Vec<OnceLock<Waker>>,
}

impl SharedState {
    pub(crate) fn new(plan: &Plan) -> Self {
        let counter_vec = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            epoch: Instant::now(),
            start: AtomicU64::new(0),
            connecting: AtomicUsize::new(plan.threads),
            sending: AtomicUsize::new(plan.threads),
            stopped: AtomicBool::new(false),
            opened: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            expected: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            done: counter_vec(plan.publishers),
            goals: counter_vec(plan.publishers),
            subscribers: (0..plan.topics).map(|_| AtomicU32::new(0)).collect(),
            wakers: (0..plan.threads).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Nanoseconds since the epoch.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A thread has its connections; the last one starts the load a moment later, when all may have noticed.
    pub(crate) fn connected(&self) {
        const START_DELAY_NANOS: u64 = 20_000_000;
        if self.connecting.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.start.store(self.now() + START_DELAY_NANOS, Ordering::Release);
            self.wake_all();
        }
    }

    /// When the load starts; `None` as long as connections are missing.
    pub(crate) fn start(&self) -> Option<u64> {
        Some(self.start.load(Ordering::Acquire)).filter(|start| *start > 0)
    }

    /// A thread sends no more.
    pub(crate) fn finished_sending(&self) {
        self.sending.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether any thread may still send.
    pub(crate) fn is_sending(&self) -> bool {
        self.sending.load(Ordering::Acquire) > 0
    }

    /// Ends the run before its time.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.wake_all();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(crate) fn set_waker(&self, thread: usize, waker: Waker) {
        if let Some(cell) = self.wakers.get(thread) {
            // Each thread sets its own, once.
            let _ = cell.set(waker);
        }
    }

    fn wake_all(&self) {
        (0..self.wakers.len()).for_each(|thread| self.wake(thread));
    }

    fn wake(&self, thread: usize) {
        if let Some(waker) = self.wakers.get(thread).and_then(OnceLock::get) {
            // A thread that cannot be woken looks by itself every few milliseconds.
            let _ = waker.wake();
        }
    }

    /// Adds deliveries of a publisher's messages, seen by `thread`, and wakes the publisher if it waits for them.
    pub(crate) fn add_done(&self, publisher: usize, deliveries: u64, thread: usize) {
        let (Some(done), Some(goal)) = (self.done.get(publisher), self.goals.get(publisher)) else { return };
        let before = done.fetch_add(deliveries, Ordering::SeqCst);
        let goal = goal.load(Ordering::SeqCst);
        let owner = publisher % self.wakers.len().max(1);
        if owner != thread && before < goal && before + deliveries >= goal {
            self.wake(owner);
        }
    }

    /// Deliveries of a publisher's messages that came so far.
    #[inline]
    pub(crate) fn done(&self, publisher: usize) -> u64 {
        self.done.get(publisher).map_or(0, |done| done.load(Ordering::SeqCst))
    }

    /// Tells how many deliveries a publisher waits for. Whoever calls this looks at [`Self::done`] again afterwards.
    pub(crate) fn set_goal(&self, publisher: usize, deliveries: u64) {
        if let Some(goal) = self.goals.get(publisher) {
            goal.store(deliveries, Ordering::SeqCst);
        }
    }

    /// Subscribers of a topic that read.
    #[inline]
    pub(crate) fn subscribers(&self, topic: u32) -> u64 {
        self.subscribers.get(topic as usize).map_or(0, |count| u64::from(count.load(Ordering::Relaxed)))
    }

    pub(crate) fn subscribed(&self, topic: u32) {
        if let Some(count) = self.subscribers.get(topic as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn unsubscribed(&self, topic: u32) {
        if let Some(count) = self.subscribers.get(topic as usize) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
