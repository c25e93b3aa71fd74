//! A view of a stream whose offsets a store gives.

mod check;
#[cfg(test)]
mod holes;
mod pending;
mod read;
#[cfg(test)]
pub(crate) mod simulation;
#[cfg(test)]
mod tests;
mod values;

use crate::planted::planted;
use crate::stream::Stream;
use deeperhub_types::Epoch;
use pending::Pending;
pub use values::{
    CheckResult, LiveResult, MirrorStep, ReadRequest, ReadResult, StorePosition, StoredMessage, StreamRead,
    SubscribeCheck,
};

/// Keeps a [`Stream`] equal to the stream of a store, which also gives the offsets.
///
/// Messages come live from a broker that can lose some, and from reads of the store that are
/// answered late. The mirror says which [`MirrorStep`]s make the stream whole and in order. It lies
/// beside the stream, under the same lock. It has no I/O and no clock.
///
/// A mirror is cold until somebody follows the topic. [`Self::on_followed`] then asks for a read,
/// after which the mirror is settled: each live message whose `prev` is the newest offset is
/// applied at once. A message after a hole waits until a read has filled the hole, or has said that
/// the store does not have it. At most one read is under way.
///
/// A larger epoch number replaces a smaller one, so a mirror never goes back. If the store has less
/// than the mirror knows, it has lost its newest messages, and gives their offsets to other
/// messages. The mirror keeps what it has and reports this. Each append to the store should carry
/// [`Self::known`]: the store starts a new epoch if it knows less.
///
/// ```
/// use deeperhub_history::{Epoch, Evicted, LiveResult, Mirror, Retention, Seconds};
/// use deeperhub_history::{StoredMessage, Stream, StreamRead};
///
/// let bounds = Retention { messages: 100, bytes: 1000, ttl_seconds: 60 };
/// let (now, mut evicted) = (Seconds::new(0), Evicted::new());
/// let (mut stream, mut mirror) = (Stream::new(Epoch::from_bits(0)), Mirror::new(0));
/// let stored = |offset, message| {
///     StoredMessage { offset, prev: offset - 1, message, bytes: 1, at: now, is_duplicate: false }
/// };
/// // The topic is followed now, and the store has one message.
/// let read = mirror.on_followed(&stream).ok_or("no read")?;
/// let answer = |top, messages| StreamRead { epoch: 9, top, floor: 0, whole_to: 0, messages };
/// let answered = answer(1, vec![stored(1, "a")]);
/// for step in mirror.on_read(&stream, read.number, answered).steps {
///     stream.apply(&bounds, now, &mut evicted, step);
/// }
/// // The live message 2 is lost, so message 3 waits for a read.
/// let live = mirror.on_live(&stream, 9, stored(3, "c"), 1 << 20);
/// let LiveResult::Waits(Some(read)) = live else { return Err("not noticed") };
/// let answered = answer(3, vec![stored(2, "b"), stored(3, "c")]);
/// for step in mirror.on_read(&stream, read.number, answered).steps {
///     stream.apply(&bounds, now, &mut evicted, step);
/// }
/// assert!(mirror.is_settled());
/// assert!(stream.messages(..).eq([(1, &"a"), (2, &"b"), (3, &"c")]));
/// # Ok::<(), &str>(())
/// ```
#[derive(Debug)]
pub struct Mirror<M> {
    state: State,
    /// Epoch of the stream as a number; 0 while the mirror knows none.
    epoch: u64,
    /// The same epoch as clients see it, which live messages need compared.
    wire_epoch: Epoch,
    /// Highest position that the mirror has heard of. All waiting messages are of its epoch.
    highest: StorePosition,
    /// The read that is under way.
    reading: Option<Reading>,
    next_number: u32,
    /// Most mirrors have nothing that waits.
    pending: Option<Box<Pending<M>>>,
    /// Top of the last check, if the mirror did not have it.
    ahead: u64,
    /// Top of the store in the last check or read, if it was behind and nothing came since.
    behind: Option<StorePosition>,
    /// `true` if messages may have been lost since the last check, because the store was away.
    is_unchecked: bool,
    /// `true` if no read can be done now.
    is_paused: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nobody follows the topic. The stream is a cache.
    Cold,
    /// The first read since the topic is followed has not ended.
    Reading,
    /// The stream is whole, as far as the mirror knows.
    Warm,
    /// A read must fill a hole.
    Healing,
}

#[derive(Debug)]
struct Reading {
    number: u32,
    /// Highest position that the mirror had heard of when it asked.
    known: StorePosition,
    /// Position after which messages were wanted.
    after: StorePosition,
}

impl<M> Mirror<M> {
    /// Creates a cold mirror. `first_read` is the number of its first read. If the mirror replaces
    /// an earlier one of the same topic, the number should differ from all of that one's, so that
    /// late answers are recognized.
    #[must_use]
    pub const fn new(first_read: u32) -> Self {
        Self {
            state: State::Cold,
            epoch: 0,
            wire_epoch: Epoch::from_bits(0),
            highest: StorePosition { epoch: 0, offset: 0 },
            reading: None,
            next_number: first_read,
            pending: None,
            ahead: 0,
            behind: None,
            is_unchecked: false,
            is_paused: false,
        }
    }

    /// Returns `true` if the stream is whole, as far as the mirror knows, and no read is needed.
    #[must_use]
    pub const fn is_settled(&self) -> bool {
        matches!(self.state, State::Warm)
    }

    /// Returns `true` if nobody follows the topic.
    #[must_use]
    pub const fn is_cold(&self) -> bool {
        matches!(self.state, State::Cold)
    }

    /// Returns `true` if the mirror should be compared with the store's top ([`Self::on_top`])
    /// before others rely on it, because the store was away.
    #[must_use]
    pub const fn is_unchecked(&self) -> bool {
        self.is_unchecked
    }

    /// Returns `true` if a read is under way.
    #[must_use]
    pub const fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// Returns the highest position that the mirror has heard of, applied or not. Appends carry it,
    /// so a store that has lost its newest messages notices that.
    #[must_use]
    pub const fn known(&self) -> Option<StorePosition> {
        if self.highest.epoch == 0 { None } else { Some(self.highest) }
    }

    /// Returns the bytes of the messages that wait for a read.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.pending.as_ref().map_or(0, |pending| pending.bytes())
    }

    /// Notes that the broker now brings the topic's messages, for the first time or after it was
    /// away. Returns the read that the mirror needs.
    ///
    /// The caller calls this when the broker has confirmed that. Any message is then either in the
    /// answer of the read, or comes live.
    #[must_use = "the mirror waits for the answer"]
    pub fn on_followed(&mut self, stream: &Stream<M>) -> Option<ReadRequest> {
        if self.state == State::Cold {
            self.state = State::Reading;
            self.is_unchecked = false;
        }
        self.retry(stream)
    }

    /// Notes that nobody follows the topic any more. The stream stays, as a cache.
    pub fn on_lost_interest(&mut self) {
        self.state = State::Cold;
        self.reading = None;
        self.pending = None;
        (self.ahead, self.behind, self.is_unchecked) = (0, None, false);
    }

    /// Notes that the broker or the store is away. A read that was under way is given up. The
    /// mirror asks for no read until [`Self::on_followed`] or [`Self::retry`] is called.
    pub fn on_disconnected(&mut self) {
        if !planted!(DisconnectLeavesRead) {
            self.reading = None;
        }
        self.is_paused = true;
        self.is_unchecked = self.state != State::Cold && !planted!(DisconnectForgotten);
    }

    /// Notes that a read has failed. The mirror asks for no other until [`Self::retry`] is called.
    pub fn on_read_failed(&mut self, number: u32) {
        if self.reading.take_if(|reading| reading.number == number).is_some() {
            self.is_paused = true;
        }
    }

    /// Returns the read that the mirror needs, after one has failed. While the broker is away, only
    /// [`Self::on_followed`] is right, because an answer would not be followed by what comes live.
    #[must_use = "the mirror waits for the answer"]
    pub fn retry(&mut self, stream: &Stream<M>) -> Option<ReadRequest> {
        self.is_paused = planted!(RetryForgotten) && self.is_paused;
        self.compare_epochs(stream);
        self.request(stream.newest())
    }

    /// Handles a live message. `max_pending` is the limit in bytes for the messages that wait.
    pub fn on_live(
        &mut self,
        stream: &Stream<M>,
        epoch: u64,
        message: StoredMessage<M>,
        max_pending: usize,
    ) -> LiveResult<M> {
        let is_old = epoch < self.highest.epoch && !planted!(OldEpochTaken);
        let is_valid = epoch > 0 && (1..=StorePosition::MAX_OFFSET).contains(&message.offset);
        if self.state == State::Cold || is_old || !is_valid {
            return LiveResult::Ignored;
        }
        self.compare_epochs(stream);
        let is_current = epoch == self.epoch || planted!(LiveEpochIgnored);
        if is_current && self.state != State::Reading {
            if message.offset <= stream.newest() && !planted!(LiveDuplicateApplied) {
                return LiveResult::Duplicate(message);
            }
            // A store that was away may have given the offsets before this message to others, so the
            // message waits until they are compared.
            let waits = self.is_unchecked && !planted!(UncheckedLiveApplied);
            if (message.prev <= stream.newest() && !waits) || planted!(HoleIgnored) {
                self.hear(StorePosition { epoch, offset: message.offset });
                return LiveResult::Apply(step(message, stream.live_offset()));
            }
        }
        self.hear(StorePosition { epoch, offset: message.offset });
        self.pending.get_or_insert_with(|| Box::new(Pending::new())).push(message, max_pending);
        if self.state == State::Warm {
            self.state = State::Healing;
        }
        LiveResult::Waits(self.request(stream.newest()))
    }

    /// Notes the position that the store gave to a message of this node.
    pub fn on_appended(&mut self, position: StorePosition) {
        self.hear(position);
    }

    /// Notes a position that the store has.
    fn hear(&mut self, position: StorePosition) {
        if position <= self.highest || position.offset > StorePosition::MAX_OFFSET {
            return;
        }
        if position.epoch > self.highest.epoch {
            self.pending = None;
            self.ahead = 0;
        }
        self.highest = position;
        self.behind = None;
    }

    /// Notes that the stream has an epoch, after the steps that were decided.
    const fn set_epoch(&mut self, epoch: u64) {
        (self.epoch, self.wire_epoch) = (epoch, Epoch::from_bits(epoch));
    }

    /// Forgets the epoch if the stream has another one, because it was emptied or replaced.
    fn compare_epochs(&mut self, stream: &Stream<M>) {
        if self.epoch != 0 && stream.epoch() != self.wire_epoch {
            self.epoch = 0;
            if self.state == State::Warm {
                self.state = State::Healing;
            }
        }
    }

    /// Returns the read that is needed, unless one is under way or not possible now. `newest` is
    /// the offset up to which the stream has all messages of its epoch.
    fn request(&mut self, newest: u64) -> Option<ReadRequest> {
        let is_needed = matches!(self.state, State::Reading | State::Healing);
        let is_busy = self.reading.is_some() && !planted!(TwoReads);
        if !is_needed || is_busy || self.is_paused {
            return None;
        }
        let number = self.next_number;
        self.next_number = self.next_number.wrapping_add(1);
        let after = if self.highest.epoch > self.epoch {
            // Whatever the mirror has is of no use in the new epoch.
            (self.epoch != 0).then_some(StorePosition { epoch: self.highest.epoch, offset: 0 })
        } else {
            let offset = newest + u64::from(planted!(ReadTooFar));
            (self.epoch != 0).then_some(StorePosition { epoch: self.epoch, offset })
        };
        self.reading = Some(Reading { number, known: self.highest, after: after.unwrap_or_default() });
        Some(ReadRequest { number, after })
    }
}

/// Returns the step for a message that follows what subscribers have, at the offset `prev`.
fn step<M>(message: StoredMessage<M>, prev: u64) -> MirrorStep<M> {
    if message.is_duplicate && !planted!(StoreDuplicateApplied) {
        MirrorStep::Duplicate { offset: message.offset }
    } else {
        MirrorStep::Message { message, prev }
    }
}
