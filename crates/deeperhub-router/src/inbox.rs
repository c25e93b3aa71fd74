//! The hand-over from publishers to one worker.

use crate::Config;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering, lock};
use crate::wakeups::Wakeups;
use std::collections::VecDeque;
use std::task::Waker;

/// Room for envelopes that an empty inbox keeps.
const RETAINED_CAPACITY: usize = 1024;

/// What a message is kept in order with: others of its topic, and others of its source.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OrderingKeys {
    /// The topic's hash.
    pub(crate) topic: u64,
    pub(crate) source: Option<u64>,
}

/// The limits above which an inbox is congested, and the count of those that are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SoftLimits<'a> {
    pub(crate) config: &'a Config,
    pub(crate) congestion: &'a Congestion,
}

/// One message for one worker.
#[derive(Debug)]
pub(crate) struct Envelope<M> {
    /// Counts the envelopes of an inbox, from 1.
    pub(crate) sequence: u64,
    /// The topic's hash. Two topics of one hash would be kept in order with each other, no more.
    pub(crate) topic: u64,
    /// Who published it, if that is to be kept in order.
    pub(crate) source: Option<u64>,
    pub(crate) lists: ListIds,
    pub(crate) bytes: usize,
    pub(crate) message: M,
}

/// The worker's lists of subscribers that an envelope is for, by the worker's own numbers.
///
/// A number may have got another meaning by the time the envelope is opened. That does no harm:
/// everyone on the newer list subscribed after the envelope was last_sequence, so it is not for them.
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

/// Inboxes that are over their soft limits, and who waits for that to end.
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

    /// False: there is none any more. True: the waker is called when it ends.
    pub(crate) fn wake_at_end(&self, waker: &Waker) -> bool {
        if !self.is_congested() {
            return false;
        }
        let mut waiting = lock(&self.waiting);
        // The last inbox to come down takes this lock after it was counted out: either that shows
        // here, or the waker is found there.
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

/// Many publishers push, one worker takes. It has no hard bound: a push never waits, since it
/// happens under locks of the routing table. What is over the soft limits makes publishers pause.
// Two cache lines, as processors fetch them in pairs.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Inbox<M> {
    shard: u16,
    /// Counts the workers that this inbox has had; only the latest has a say.
    generation: AtomicU64,
    /// The worker sleeps, or is about to, and its waker is in the state. Set under the lock of
    /// the state only; the worker may clear it without, see [`Inbox::disarm`].
    armed: AtomicBool,
    state: Mutex<InboxState<M>>,
}

#[derive(Debug)]
struct InboxState<M> {
    queue: VecDeque<Envelope<M>>,
    /// Number of the last envelope.
    last_sequence: u64,
    waker: Option<Waker>,
    /// Envelopes that the worker has not finished, here or in its own hands, and their bytes.
    unfinished: usize,
    unfinished_bytes: usize,
    congested: bool,
}

/// What a worker has finished since it last said so.
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

    /// The current worker's number.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Ends what the worker before may do, and names the next.
    pub(crate) fn attach(&self) -> u64 {
        let state = lock(&self.state);
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        drop(state);
        generation
    }

    /// Number of the last envelope. A caller that holds the lock under which a topic's (or a
    /// pattern's) publishes push knows that theirs up to now are not above it, and later ones are.
    pub(crate) fn last_sequence(&self) -> u64 {
        lock(&self.state).last_sequence
    }

    /// Answers whether the inbox is congested.
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
                // It stays armed, so that the next push of somebody else need not wait for this one's wake-up.
                Wakeups::Deferred(shards) => shards.insert(self.shard),
            }
        }
        state.congested
    }

    /// Wakes the worker if it still sleeps over a push that has only noted it.
    pub(crate) fn wake(&self) {
        let waker = {
            let mut state = lock(&self.state);
            // With nothing here it has run meanwhile, and taken what it was noted for.
            if state.queue.is_empty() || !self.armed.load(Ordering::Relaxed) {
                return;
            }
            self.take_waker(&mut state)
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Whoever gets the waker has to call it.
    fn take_waker(&self, state: &mut InboxState<M>) -> Option<Waker> {
        self.armed.store(false, Ordering::Relaxed);
        state.waker.take()
    }

    /// The worker runs, and will take or sleep before it waits: nobody needs to wake it until then.
    ///
    /// No lock is needed. A push that still sees it armed wakes once too often; one that sees it
    /// disarmed is ordered before the worker's next lock, which finds the envelope.
    pub(crate) fn disarm(&self, generation: u64) {
        if self.armed.load(Ordering::Relaxed) && self.generation() == generation {
            self.armed.store(false, Ordering::Relaxed);
        }
    }

    /// Moves everything into `queue`, which is empty. When there is nothing and a waker is given,
    /// the worker is registered as asleep; false means that.
    pub(crate) fn take(
        &self,
        generation: u64,
        queue: &mut VecDeque<Envelope<M>>,
        waker: Option<&Waker>,
    ) -> bool {
        // Not inside the lock.
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

    /// As [`take`](Self::take), up to an envelope's number, and without falling asleep. False: another worker has the
    /// inbox.
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

    /// Number of the first envelope that the worker has not taken.
    pub(crate) fn first_sequence(&self) -> Option<u64> {
        lock(&self.state).queue.front().map(|envelope| envelope.sequence)
    }

    /// Counts what the worker has finished, and, with a waker, registers it as asleep if there is
    /// nothing; false means that.
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

    /// Empties it, after the routing table has forgotten its worker. Numbers go on.
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
        // Messages and wakers may do anything when they are dropped: not under the lock.
        drop((queue, waker));
        if congested {
            congestion.end();
        }
    }
}
