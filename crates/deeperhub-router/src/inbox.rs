//! The queue of messages from publishers to one worker.

use crate::Config;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering, lock};
use crate::wakeups::Wakeups;
use std::collections::VecDeque;
use std::task::Waker;

/// Capacity, in envelopes, to which an empty queue is shrunk if it has more than four times as
/// much.
const RETAINED_CAPACITY: usize = 1024;

/// The keys that order messages: a message is delivered after earlier messages with the same topic
/// or source.
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
    /// The topic's hash. Messages of two topics with the same hash are only ordered more strictly
    /// than required.
    pub(crate) topic: u64,
    /// The publisher, if its messages are kept in order.
    pub(crate) source: Option<u64>,
    pub(crate) lists: ListIds,
    pub(crate) bytes: usize,
    pub(crate) message: M,
}

/// Numbers of the subscriber lists that get an envelope.
///
/// A number may belong to another list when the envelope is delivered. This does no harm: each
/// subscriber of the newer list subscribed after the envelope was pushed, so it does not get the
/// message.
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

/// Counts the congested inboxes, and holds the wakers of publishers that wait for the end of
/// congestion. An inbox is congested from the time it exceeds a soft limit until it is at or below
/// half of both.
#[derive(Debug)]
pub(crate) struct Congestion {
    congested_inboxes: AtomicUsize,
    wakers: Mutex<Vec<Waker>>,
}

impl Congestion {
    pub(crate) fn new() -> Self {
        Self { congested_inboxes: AtomicUsize::new(0), wakers: Mutex::new(Vec::new()) }
    }

    pub(crate) fn is_congested(&self) -> bool {
        self.congested_inboxes.load(Ordering::Relaxed) != 0
    }

    /// Registers `waker` to be called when congestion ends. Returns `false` if there is no
    /// congestion.
    pub(crate) fn wake_at_end(&self, waker: &Waker) -> bool {
        if !self.is_congested() {
            return false;
        }
        let mut wakers = lock(&self.wakers);
        // The last congested inbox decrements the counter before it takes this lock. Either this
        // call sees the counter at 0, or the inbox finds the waker.
        if !self.is_congested() {
            return false;
        }
        if !wakers.iter().any(|other| other.will_wake(waker)) {
            wakers.push(waker.clone());
        }
        true
    }

    fn begin(&self) {
        self.congested_inboxes.fetch_add(1, Ordering::Relaxed);
    }

    fn end(&self) {
        if self.congested_inboxes.fetch_sub(1, Ordering::Relaxed) == 1 {
            let wakers = std::mem::take(&mut *lock(&self.wakers));
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

/// A queue with many publishers and one worker.
///
/// The queue has no hard limit: a push happens under locks of the routing table, so it never waits.
/// Above the soft limits, publishers are asked to pause.
#[derive(Debug)]
#[repr(align(128))] // Two cache lines, since processors fetch them in pairs.
pub(crate) struct Inbox<M> {
    shard: u16,
    /// Counts the workers that have attached to this inbox. Only the latest one may use it.
    generation: AtomicU64,
    /// `true` if a push must wake the worker, because the worker sleeps or is about to. The waker
    /// is then in the state. The flag is set only under the lock of the state, but the worker may
    /// clear it without the lock; see [`Inbox::disarm`].
    armed: AtomicBool,
    state: Mutex<InboxState<M>>,
}

#[derive(Debug)]
struct InboxState<M> {
    queue: VecDeque<Envelope<M>>,
    /// Sequence of the latest envelope.
    last_sequence: u64,
    /// Waker of the worker from the last time that the inbox was armed.
    waker: Option<Waker>,
    /// Number of envelopes that the worker has not finished: those in the queue, and those that it
    /// has taken.
    unfinished: usize,
    /// Bytes of the unfinished envelopes.
    unfinished_bytes: usize,
    /// `true` from the time at which a soft limit is exceeded until both counts are at most half of
    /// their limits.
    congested: bool,
}

/// Number and bytes of the envelopes that a worker has finished since its last call of
/// [`Inbox::finish`].
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

    /// Starts a new generation and returns it. Workers of earlier generations can no longer use the
    /// inbox.
    pub(crate) fn attach(&self) -> u64 {
        let state = lock(&self.state);
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        drop(state);
        generation
    }

    /// Returns the sequence of the latest envelope.
    ///
    /// If the caller holds the lock of a topic or pattern, no envelope of it is pushed meanwhile.
    /// Envelopes that are pushed later have a higher sequence.
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
        // Count the list numbers too: if many lists match, they take more bytes than the message.
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

    /// Marks the worker as running, so that pushes do not wake it. The worker arms the inbox again
    /// before it waits.
    ///
    /// No lock is needed. A push that still sees the inbox armed only wakes the worker once more
    /// than needed. A push that sees it disarmed happens before the worker next locks the state, so
    /// the worker then finds the envelope.
    pub(crate) fn disarm(&self, generation: u64) {
        if self.armed.load(Ordering::Relaxed) && self.generation() == generation {
            self.armed.store(false, Ordering::Relaxed);
        }
    }

    /// Moves all envelopes into `queue`, which must be empty.
    ///
    /// If there are none and a waker is given, arms the inbox with it and returns `false`. Also
    /// returns `false` if another worker has attached to the inbox.
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

    /// Works like [`take`](Self::take) for envelopes up to a sequence, but never arms the inbox.
    /// Returns `false` if another worker has attached to the inbox.
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
        let end = state.queue.partition_point(|envelope| envelope.sequence <= sequence);
        let later = state.queue.split_off(end);
        std::mem::swap(&mut state.queue, queue);
        state.queue = later;
        true
    }

    /// Returns the sequence of the first envelope that the worker has not taken.
    pub(crate) fn first_sequence(&self) -> Option<u64> {
        lock(&self.state).queue.front().map(|envelope| envelope.sequence)
    }

    /// Calls `read` with the envelopes that the worker has not taken, the oldest first, until it
    /// returns a value.
    pub(crate) fn find_map<R>(&self, read: impl FnMut(&Envelope<M>) -> Option<R>) -> Option<R> {
        lock(&self.state).queue.iter().find_map(read)
    }

    /// Subtracts the envelopes that the worker has finished.
    ///
    /// If the queue is empty and a waker is given, arms the inbox with it and returns `false`. Also
    /// returns `false` if another worker has attached to the inbox.
    pub(crate) fn finish(
        &self,
        generation: u64,
        finished: &mut FinishedCount,
        waker: Option<&Waker>,
        limits: SoftLimits<'_>,
    ) -> bool {
        let finished = std::mem::take(finished);
        let (ends_congestion, may_have_more) = {
            let mut state = lock(&self.state);
            if self.generation() != generation {
                return false;
            }
            state.unfinished = state.unfinished.saturating_sub(finished.envelopes);
            state.unfinished_bytes = state.unfinished_bytes.saturating_sub(finished.bytes);
            let ends_congestion = state.congested
                && state.unfinished <= limits.config.inbox_soft_limit / 2
                && state.unfinished_bytes <= limits.config.inbox_soft_limit_bytes / 2;
            if ends_congestion {
                state.congested = false;
            }
            let may_have_more = match waker {
                Some(waker) if state.queue.is_empty() => {
                    self.arm(&mut state, waker);
                    false
                }
                _ => true,
            };
            (ends_congestion, may_have_more)
        };
        if ends_congestion {
            limits.congestion.end();
        }
        may_have_more
    }

    /// Registers the worker as asleep.
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
