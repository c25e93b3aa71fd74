//! State that the threads of a run share.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use mio::Waker;

use crate::plan::{MeasurementWindow, Plan};
use crate::scenario::StopCondition;

/// Counters and signals of a run. Threads add to the counters once per poll, not once per message.
#[derive(Debug)]
pub(crate) struct SharedState {
    /// Point from which all times of the run count.
    epoch: Instant,
    /// Start of the load in nanoseconds since the epoch; 0 until all threads have opened their
    /// connections.
    start: AtomicU64,
    /// Start and end of the returns of `recover`, in nanoseconds since the epoch.
    returns: [OnceLock<u64>; 2],
    /// Number of times that a thread has reached the end of a phase of `recover`.
    arrivals: AtomicUsize,
    /// Clients of `recover` that are live again, for the progress bar.
    pub(crate) live: AtomicU64,
    /// Threads that are still opening connections.
    connecting: AtomicUsize,
    /// Threads that may still send.
    sending: AtomicUsize,
    stopped: AtomicBool,
    /// Connections that opened, for the progress bar.
    pub(crate) opened: AtomicU64,
    /// Connections that failed to open.
    pub(crate) failed: AtomicU64,
    /// Messages sent.
    pub(crate) sent: AtomicU64,
    /// Deliveries that the messages sent so far should cause.
    pub(crate) expected: AtomicU64,
    /// Deliveries without duplicates. Deliveries that can no longer arrive, because the server
    /// rejected their message, are added.
    pub(crate) delivered: AtomicU64,
    /// Deliveries of each publisher's messages.
    delivered_by_publisher: Vec<AtomicU64>,
    /// Number of deliveries that each publisher waits for; 0 before its first wait.
    goals: Vec<AtomicU64>,
    /// Reading subscribers of each topic.
    subscribers: Vec<AtomicU32>,
    /// Waker of each thread.
    wakers: Vec<OnceLock<Waker>>,
}

impl SharedState {
    pub(crate) fn new(plan: &Plan) -> Self {
        let zeros = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            epoch: Instant::now(),
            start: AtomicU64::new(0),
            returns: [OnceLock::new(), OnceLock::new()],
            arrivals: AtomicUsize::new(0),
            live: AtomicU64::new(0),
            connecting: AtomicUsize::new(plan.threads),
            sending: AtomicUsize::new(plan.threads),
            stopped: AtomicBool::new(false),
            opened: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            expected: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            delivered_by_publisher: zeros(plan.publishers),
            goals: zeros(plan.publishers),
            subscribers: (0..plan.topics).map(|_| AtomicU32::new(0)).collect(),
            wakers: (0..plan.threads).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Returns the nanoseconds since the epoch of the run.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Reports that a thread has opened its connections. The last thread starts the load after a
    /// short delay, in which all threads wake up.
    pub(crate) fn connected(&self) {
        const START_DELAY_NANOS: u64 = 20_000_000;
        if self.connecting.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.start.store(self.now() + START_DELAY_NANOS, Ordering::Release);
            self.wake_all();
        }
    }

    /// Returns the start of the load, or `None` while threads are opening connections.
    pub(crate) fn start(&self) -> Option<u64> {
        Some(self.start.load(Ordering::Acquire)).filter(|start| *start > 0)
    }

    /// Returns the time to measure, or `None` before the load or the returns start.
    pub(crate) fn measurement_window(&self, plan: &Plan) -> Option<MeasurementWindow> {
        let start = self.start()?;
        let StopCondition::AllReturned { .. } = plan.stop else {
            return Some(plan.measurement_window(start));
        };
        let [from, to] = &self.returns;
        Some(MeasurementWindow { from: *from.get()?, to: to.get().copied().unwrap_or(u64::MAX) })
    }

    /// Returns the time at which the first client returns. The first call sets it.
    pub(crate) fn returns_start(&self) -> u64 {
        *self.returns[0].get_or_init(|| self.now())
    }

    /// Returns the time at which all clients had returned. The first call sets it.
    pub(crate) fn returns_end(&self) -> u64 {
        *self.returns[1].get_or_init(|| self.now())
    }

    /// Reports that a thread is at the end of a phase. Returns the number of arrivals at which all
    /// threads are. A thread must wait for it before its next call.
    pub(crate) fn arrive(&self) -> usize {
        let threads = self.wakers.len().max(1);
        let before = self.arrivals.fetch_add(1, Ordering::AcqRel);
        let all = (before / threads + 1) * threads;
        if before + 1 == all {
            self.wake_all();
        }
        all
    }

    /// Returns `true` if there were this many arrivals.
    pub(crate) fn has_arrived(&self, arrivals: usize) -> bool {
        self.arrivals.load(Ordering::Acquire) >= arrivals
    }

    /// Reports that a thread has finished sending.
    pub(crate) fn finished_sending(&self) {
        self.sending.fetch_sub(1, Ordering::AcqRel);
    }

    /// Returns `true` if any thread may still send.
    pub(crate) fn is_sending(&self) -> bool {
        self.sending.load(Ordering::Acquire) > 0
    }

    /// Aborts the run.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.wake_all();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    pub(crate) fn set_waker(&self, thread: usize, waker: Waker) {
        if let Some(cell) = self.wakers.get(thread) {
            // Each thread sets its own cell once.
            let _ = cell.set(waker);
        }
    }

    fn wake_all(&self) {
        (0..self.wakers.len()).for_each(|thread| self.wake(thread));
    }

    fn wake(&self, thread: usize) {
        if let Some(waker) = self.wakers.get(thread).and_then(OnceLock::get) {
            // A thread that cannot be woken checks again after its longest poll wait.
            let _ = waker.wake();
        }
    }

    /// Adds deliveries of a publisher's messages that arrived at `thread`. Wakes the publisher's
    /// thread if these deliveries reach the publisher's goal.
    pub(crate) fn add_delivered(&self, publisher: usize, deliveries: u64, thread: usize) {
        let (Some(delivered), Some(goal)) =
            (self.delivered_by_publisher.get(publisher), self.goals.get(publisher))
        else {
            return;
        };
        let before = delivered.fetch_add(deliveries, Ordering::SeqCst);
        let goal = goal.load(Ordering::SeqCst);
        let owner = publisher % self.wakers.len().max(1);
        if owner != thread && before < goal && before + deliveries >= goal {
            self.wake(owner);
        }
    }

    /// Returns the deliveries of a publisher's messages.
    #[inline]
    pub(crate) fn delivered_of(&self, publisher: usize) -> u64 {
        self.delivered_by_publisher.get(publisher).map_or(0, |count| count.load(Ordering::SeqCst))
    }

    /// Sets the number of deliveries that a publisher waits for. Callers must read
    /// [`Self::delivered_of`] again afterwards, because the goal may have been reached before.
    pub(crate) fn set_goal(&self, publisher: usize, deliveries: u64) {
        if let Some(goal) = self.goals.get(publisher) {
            goal.store(deliveries, Ordering::SeqCst);
        }
    }

    /// Returns the number of reading subscribers of a topic.
    #[inline]
    pub(crate) fn subscribers(&self, topic: u32) -> u64 {
        self.subscribers.get(topic as usize).map_or(0, |count| u64::from(count.load(Ordering::Relaxed)))
    }

    /// Adds a subscriber of a topic.
    pub(crate) fn subscribed(&self, topic: u32) {
        if let Some(count) = self.subscribers.get(topic as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Removes a subscriber of a topic.
    pub(crate) fn unsubscribed(&self, topic: u32) {
        if let Some(count) = self.subscribers.get(topic as usize) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
