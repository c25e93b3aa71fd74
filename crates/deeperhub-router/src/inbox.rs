//! The queue of messages from publishers to one worker.

use crate::Config;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering, lock};
use crate::wakeups::Wakeups;
use std::collections::VecDeque;
use std::task::Waker;

/// Envelopes for which an empty queue keeps memory.
const RETAINED_CAPACITY: usize = 1024;

/// The keys that order messages: a message stays behind earlier messages with the same topic or
/// source.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OrderingKeys {
    /// The topic's hash.
    pub(crate) topic: u64,
    pub(crate) source: Option<u64>,
}

/// The limits above which an inbox is congested, and the counter of congested inboxes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SoftLimits<'a> {
    pub(crate) config: &'a Config,
    pub(crate) congestion: &'a Congestion,
}

/// One message for one worker.
#[derive(Debug)]
pub(crate) struct Envelope<M> {
    /// Position in the inbox, counted from 1.
    pub(crate) sequence: u64,
    /// The topic's hash. Two topics with the same hash are kept in order with each other, nothing
    /// worse.
    pub(crate) topic: u64,
    /// The publisher, if its messages are kept in order.
    pub(crate) source: Option<u64>,
    pub(crate) lists: ListIds,
    pub(crate) bytes: usize,
    pub(crate) message: M,
}

/// The worker's subscriber lists that an envelope is for, by their numbers.
///
/// A number may belong to another list by the time the envelope is delivered. That does no harm:
/// every subscriber of the newer list subscribed after the envelope was pushed, so it does not get
/// the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListIds {
    One(u32),
    /// Two or more, in ascending order.
    Many(Box<[u32]>),
}

impl ListIds {
    pub(crate) fn as_slice(&self) -> &[u32] {
        match self {
            Self::One(list) => std::slice::from_ref(list),
            Self::Many(lists) => lists,
        }
    }

    fn heap_bytes(&self) -> usize {
        match self {
            Self::One(_) => 0,
            Self::Many(lists) => size_of_val(&**lists),
        }
    }
}

/// Counts the inboxes over their soft limits, and holds the wakers of those that wait for the end
/// of congestion.
#[derive(Debug)]
pub(crate) struct Congestion {
    inboxes: AtomicUsize,
    waiting: Mutex<Vec<Waker>>,
}

impl Congestion {
    pub(crate) fn new() -> Self {
        Self { inboxes: AtomicUsize::new(0), waiting: Mutex::new(Vec::new()) }
    }

    pub(crate) fn is_congested(&self) -> bool {
        self.inboxes.load(Ordering::Relaxed) != 0
    }

    /// Registers `waker` to be called when congestion ends. Returns `false` if there is no
    /// congestion.
    pub(crate) fn wake_at_end(&self, waker: &Waker) -> bool {
        if !self.is_congested() {
            return false;
        }
        let mut waiting = lock(&self.waiting);
        // The last congested inbox decrements the counter before it takes this lock. Either the
        // counter shows that here, or the inbox finds the waker there.
        if !self.is_congested() {
            return false;
        }
        if !waiting.iter().any(|other| other.will_wake(waker)) {
            waiting.push(waker.clone());
        }
        true
    }

    fn begin(&self) {
        self.inboxes.fetch_add(1, Ordering::Relaxed);
    }

    fn end(&self) {
        if self.inboxes.fetch_sub(1, Ordering::Relaxed) == 1 {
            let waiting = std::mem::take(&mut *lock(&self.waiting));
            waiting.into_iter().for_each(Waker::wake);
        }
    }
}

/// A queue with many publishers and one worker.
///
/// It has no hard limit: a push never waits, because it happens under locks of the routing table.
/// Above the soft limits, publishers are asked to pause.
#[derive(Debug)]
#[repr(align(128))] // Two cache lines, since processors fetch them in pairs.
pub(crate) struct Inbox<M> {
    shard: u16,
    /// Counts the workers that have attached to this inbox. Only the latest one may use it.
    generation: AtomicU64,
    /// The worker sleeps or is about to, and its waker is in the state. Set only under the lock of
    /// the state. The worker may clear it without the lock; see [`Inbox::disarm`].
    armed: AtomicBool,
    state: Mutex<InboxState<M>>,
}

#[derive(Debug)]
struct InboxState<M> {
    queue: VecDeque<Envelope<M>>,
    /// Sequence of the latest envelope.
    last_sequence: u64,
    waker: Option<Waker>,
    /// Envelopes that the worker has not finished, queued here or taken by it, and their bytes.
    unfinished: usize,
    unfinished_bytes: usize,
    congested: bool,
}

/// Envelopes that a worker has finished since its last report, and their bytes.
#[derive(Debug, Default)]
pub(crate) struct FinishedCount {
    pub(crate) envelopes: usize,
    pub(crate) bytes: usize,
}

impl FinishedCount {
    pub(crate) fn count(&mut self, bytes: usize) {
        self.envelopes += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }
}

impl<M> Inbox<M> {
    pub(crate) fn new(shard: u16) -> Self {
        Self {
            shard,
            generation: AtomicU64::new(0),
            armed: AtomicBool::new(false),
            state: Mutex::new(InboxState {
                queue: VecDeque::new(),
                last_sequence: 0,
                waker: None,
                unfinished: 0,
                unfinished_bytes: 0,
                congested: false,
            }),
        }
    }

    /// Returns the current worker's generation.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Starts a new generation and returns it. The worker before can no longer use the inbox.
    pub(crate) fn attach(&self) -> u64 {
        let state = lock(&self.state);
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        drop(state);
        generation
    }

    /// Returns the sequence of the latest envelope.
    ///
    /// A caller that holds the lock under which publishes to a topic or pattern push knows more:
    /// their earlier envelopes have this sequence or a lower one, and later envelopes a higher one.
    pub(crate) fn last_sequence(&self) -> u64 {
        lock(&self.state).last_sequence
    }

    /// Appends an envelope. Returns `true` if the inbox is congested.
    pub(crate) fn push(
        &self,
        OrderingKeys { topic, source }: OrderingKeys,
        lists: ListIds,
        bytes: usize,
        message: M,
        limits: SoftLimits<'_>,
        wakeups: &mut Wakeups<'_>,
    ) -> bool {
        // The numbers of many matching lists may take more bytes than the message.
        let bytes = bytes.saturating_add(lists.heap_bytes());
        let mut state = lock(&self.state);
        state.last_sequence += 1;
        let sequence = state.last_sequence;
        state.queue.push_back(Envelope { sequence, topic, source, lists, bytes, message });
        state.unfinished += 1;
        state.unfinished_bytes = state.unfinished_bytes.saturating_add(bytes);
        if !state.congested
            && (state.unfinished > limits.config.inbox_soft_limit
                || state.unfinished_bytes > limits.config.inbox_soft_limit_bytes)
        {
            state.congested = true;
            limits.congestion.begin();
        }
        if self.armed.load(Ordering::Relaxed) {
            match wakeups {
                Wakeups::Immediate(wakers) => {
                    if let Some(waker) = self.take_waker(&mut state) {
                        wakers.push(waker);
                    }
                }
                // The inbox stays armed, so that the next immediate push wakes the worker without
                // waiting for the deferred wake-up.
                Wakeups::Deferred(shards) => shards.insert(self.shard),
            }
        }
        state.congested
    }

    /// Wakes the worker if it still sleeps after a push with a deferred wake-up.
    pub(crate) fn wake(&self) {
        let waker = {
            let mut state = lock(&self.state);
            // If the queue is empty, the worker has run in the meantime and has taken the
            // envelopes.
            if state.queue.is_empty() || !self.armed.load(Ordering::Relaxed) {
                return;
            }
            self.take_waker(&mut state)
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Disarms the inbox and returns the waker, which the caller must call.
    fn take_waker(&self, state: &mut InboxState<M>) -> Option<Waker> {
        self.armed.store(false, Ordering::Relaxed);
        state.waker.take()
    }

    /// Marks the worker as running. Nobody needs to wake it until it arms the inbox again, which it
    /// does before it waits.
    ///
    /// No lock is needed. A push that still sees the inbox armed wakes the worker once more than
    /// needed. A push that sees it disarmed comes before the worker's next lock, under which the
    /// worker finds the envelope.
    pub(crate) fn disarm(&self, generation: u64) {
        if self.armed.load(Ordering::Relaxed) && self.generation() == generation {
            self.armed.store(false, Ordering::Relaxed);
        }
    }

    /// Moves all envelopes into `queue`, which must be empty.
    ///
    /// Returns `false` if there are none and a waker is given: the worker is then registered as
    /// asleep. Also returns `false` if another worker has the inbox.
    pub(crate) fn take(
        &self,
        generation: u64,
        queue: &mut VecDeque<Envelope<M>>,
        waker: Option<&Waker>,
    ) -> bool {
        // Free memory before taking the lock.
        if queue.capacity() > 4 * RETAINED_CAPACITY {
            queue.shrink_to(RETAINED_CAPACITY);
        }
        let mut state = lock(&self.state);
        if self.generation() != generation {
            return false;
        }
        if state.queue.is_empty() {
            if let Some(waker) = waker {
                self.arm(&mut state, waker);
                return false;
            }
        } else {
            self.armed.store(false, Ordering::Relaxed);
            std::mem::swap(&mut state.queue, queue);
        }
        true
    }

    /// Works like [`take`](Self::take) for envelopes up to a sequence, but never registers the
    /// worker as asleep. Returns `false` if another worker has the inbox.
    pub(crate) fn take_until(
        &self,
        generation: u64,
        queue: &mut VecDeque<Envelope<M>>,
        sequence: u64,
    ) -> bool {
        let mut state = lock(&self.state);
        if self.generation() != generation {
            return false;
        }
        let later = state.queue.partition_point(|envelope| envelope.sequence <= sequence);
        let later = state.queue.split_off(later);
        std::mem::swap(&mut state.queue, queue);
        state.queue = later;
        true
    }

    /// Returns the sequence of the first envelope that the worker has not taken.
    pub(crate) fn first_sequence(&self) -> Option<u64> {
        lock(&self.state).queue.front().map(|envelope| envelope.sequence)
    }

    /// Subtracts the envelopes that the worker has finished.
    ///
    /// Returns `false` if the queue is empty and a waker is given: the worker is then registered as
    /// asleep. Also returns `false` if another worker has the inbox.
    pub(crate) fn finish(
        &self,
        generation: u64,
        finished: &mut FinishedCount,
        waker: Option<&Waker>,
        limits: SoftLimits<'_>,
    ) -> bool {
        let finished = std::mem::take(finished);
        let (relieved, more) = {
            let mut state = lock(&self.state);
            if self.generation() != generation {
                return false;
            }
            state.unfinished = state.unfinished.saturating_sub(finished.envelopes);
            state.unfinished_bytes = state.unfinished_bytes.saturating_sub(finished.bytes);
            let relieved = state.congested
                && state.unfinished <= limits.config.inbox_soft_limit / 2
                && state.unfinished_bytes <= limits.config.inbox_soft_limit_bytes / 2;
            if relieved {
                state.congested = false;
            }
            let more = match waker {
                Some(waker) if state.queue.is_empty() => {
                    self.arm(&mut state, waker);
                    false
                }
                _ => true,
            };
            (relieved, more)
        };
        if relieved {
            limits.congestion.end();
        }
        more
    }

    fn arm(&self, state: &mut InboxState<M>, waker: &Waker) {
        if !state.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            state.waker = Some(waker.clone());
        }
        self.armed.store(true, Ordering::Relaxed);
    }

    /// Empties the inbox after the routing table has removed its worker. Sequences continue.
    pub(crate) fn clear(&self, congestion: &Congestion) {
        let (queue, waker, congested) = {
            let mut state = lock(&self.state);
            self.armed.store(false, Ordering::Relaxed);
            (state.unfinished, state.unfinished_bytes) = (0, 0);
            (
                std::mem::take(&mut state.queue),
                state.waker.take(),
                std::mem::replace(&mut state.congested, false),
            )
        };
        // Messages and wakers run foreign code when they are dropped, so this happens outside the
        // lock.
        drop((queue, waker));
        if congested {
            congestion.end();
        }
    }
}
