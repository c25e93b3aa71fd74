//! The stream of one topic: its epoch, its newest offset, and the messages that are kept.

mod given;
mod sparse;
mod store;

use crate::evicted::{Evicted, EvictionReason};
use crate::policy::Retention;
use crate::ring::{Ring, Slot};
use crate::seconds::Seconds;
use deeperhub_types::{Epoch, Position};
pub(crate) use given::StreamItem;
use sparse::Sparse;
use std::ops::{Bound, RangeBounds};
use store::StoreState;

/// The messages of one topic that are kept, with the topic's epoch and newest offset.
///
/// Offsets start at 1 and are dense: the message after offset 41 has offset 42. Kept messages are
/// always the newest ones without a hole. If a store gives the offsets ([`Self::append_at`]), some of
/// them can belong to no message, and messages can be missing ([`Self::skip_missing`]).
///
/// ```
/// use deeperhub_history::{Epoch, Evicted, Retention, Seconds, Stream};
///
/// let bounds = Retention { messages: 2, bytes: 1000, ttl_seconds: 60 };
/// let mut stream = Stream::new(Epoch::from_bits(7));
/// let mut evicted = Evicted::new();
/// for text in ["a", "b", "c"] {
///     let seal = |_epoch, offset| (format!("{offset}{text}"), 2);
///     stream.append(&bounds, Seconds::new(0), &mut evicted, seal);
/// }
/// assert_eq!((stream.oldest(), stream.newest()), (2, 3));
/// assert!(evicted.messages().eq(["1a"]));
/// assert!(stream.messages(1..).map(|(_, text)| text.as_str()).eq(["2b", "3c"]));
/// ```
#[derive(Debug)]
pub struct Stream<M> {
    epoch: Epoch,
    /// Offset of the newest message, kept or not; 0 before the first one.
    newest: u64,
    ring: Ring<M>,
    /// State of a stream that a store keeps, too.
    rest: Option<Box<Rest>>,
}

/// State that only streams of a store have, and few of them.
#[derive(Debug)]
enum Rest {
    /// The store keeps what the stream gives to it.
    Store(StoreState),
    /// The store gives offsets that are not dense. A box keeps the other variant small.
    Sparse(Box<Sparse>),
}

/// The epoch that a stream had before it was restored, for example after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Predecessor {
    /// The epoch.
    pub epoch: Epoch,
    /// Newest offset of that epoch that was restored. A position up to it is valid in the new
    /// epoch. A position beyond it has seen messages that are lost.
    pub newest: u64,
}

/// A message of a restored stream.
#[derive(Debug)]
pub struct Restored<M> {
    /// The message.
    pub message: M,
    /// Its bytes.
    pub bytes: usize,
    /// Time of its publish.
    pub at: Seconds,
}

impl<M> Stream<M> {
    /// Creates an empty stream.
    #[must_use]
    pub const fn new(epoch: Epoch) -> Self {
        Self { epoch, newest: 0, ring: Ring::new(), rest: None }
    }

    /// Creates a stream from what a store has kept. `messages` are the last ones up to the offset
    /// `newest`, oldest first and without holes.
    ///
    /// After an unclean stop, the caller chooses a new epoch and names the old one as
    /// `predecessor`. Clients that saw no more than the store has are then recovered.
    #[must_use]
    pub fn restore(
        epoch: Epoch,
        newest: u64,
        predecessor: Option<Predecessor>,
        messages: impl IntoIterator<Item = Restored<M>>,
    ) -> Self {
        let state = |predecessor| StoreState { predecessor: Some(predecessor), ..StoreState::default() };
        let rest = predecessor.map(|predecessor| Box::new(Rest::Store(state(predecessor))));
        let mut stream = Self { epoch, newest, ring: Ring::new(), rest };
        for Restored { message, bytes, at } in messages {
            // A stream has no more messages than offsets.
            if stream.ring.len() as u64 == newest {
                stream.ring.pop();
            }
            stream.ring.push(message, u32::try_from(bytes).unwrap_or(u32::MAX), at);
        }
        stream
    }

    /// Returns the epoch.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Returns the offset of the newest message, kept or not; 0 before the first one.
    #[must_use]
    pub const fn newest(&self) -> u64 {
        self.newest
    }

    /// Returns the offset of the oldest kept message, or the next offset if none is kept.
    ///
    /// If a store gives sparse offsets, returns the offset after the last evicted message. It belongs
    /// to no message, or to the oldest kept one.
    #[inline]
    #[must_use]
    pub fn oldest(&self) -> u64 {
        match self.sparse() {
            None => self.dense_oldest(),
            Some(sparse) => sparse.floor() + 1,
        }
    }

    /// Returns the position of the newest message. `time_ms` is the time of this look in
    /// milliseconds since the Unix epoch.
    #[must_use]
    pub const fn position(&self, time_ms: u64) -> Position {
        Position { epoch: self.epoch, offset: self.newest, time: time_ms }
    }

    /// Returns the number of kept messages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// Returns `true` if no message is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ring.len() == 0
    }

    /// Returns the bytes of the kept messages, as they were counted when they were appended.
    #[must_use]
    pub const fn bytes(&self) -> u32 {
        self.ring.bytes()
    }

    /// Returns the kept message with an offset.
    #[must_use]
    pub fn message(&self, offset: u64) -> Option<&M> {
        let index = match self.sparse() {
            None => usize::try_from(offset.checked_sub(self.oldest())?).ok()?,
            Some(sparse) => sparse.index_of(offset)?,
        };
        self.ring.get(index)
    }

    /// Returns the offset of the oldest message of a stream that is not sparse, like [`Self::oldest`].
    #[inline]
    pub(crate) fn dense_oldest(&self) -> u64 {
        // A stream never has more messages than offsets.
        self.newest - self.ring.len() as u64 + 1
    }

    /// Returns the kept message at an index, counted from the oldest.
    #[inline]
    pub(crate) fn message_at(&self, index: u64) -> Option<&M> {
        self.ring.get(usize::try_from(index).ok()?)
    }

    /// Returns the kept messages in a range of offsets, oldest first. The iterator has two ends, so it
    /// can also be read from the newest message back. Messages outside of the range cost nothing.
    pub fn messages(&self, offsets: impl RangeBounds<u64>) -> impl DoubleEndedIterator<Item = (u64, &M)> {
        let (oldest, end) = (self.oldest(), self.newest + 1);
        let from = match offsets.start_bound() {
            Bound::Included(&offset) => offset,
            Bound::Excluded(&offset) => offset.saturating_add(1),
            Bound::Unbounded => oldest,
        };
        let to = match offsets.end_bound() {
            Bound::Included(&offset) => offset.saturating_add(1),
            Bound::Excluded(&offset) => offset,
            Bound::Unbounded => end,
        };
        let (from, to, sparse) = (from.clamp(oldest, end), to.clamp(oldest, end), self.sparse());
        // A ring is far shorter than the limit of the number.
        let index_of = |offset| sparse.map_or((offset - oldest) as usize, |sparse| sparse.index_from(offset));
        (index_of(from)..index_of(to)).filter_map(move |index| {
            let offset = match sparse {
                None => oldest + index as u64,
                Some(sparse) => sparse.offset(index)?,
            };
            Some((offset, self.ring.get(index)?))
        })
    }

    /// Appends a message and returns its offset. Evicts the oldest messages until `bounds` hold.
    ///
    /// `seal` gets the epoch and the message's offset, so that the message can contain them. It
    /// returns the message and its bytes. A message that alone exceeds the bounds is not kept, but
    /// its offset is used.
    pub fn append(
        &mut self,
        bounds: &Retention,
        now: Seconds,
        evicted: &mut Evicted<M>,
        seal: impl FnOnce(Epoch, u64) -> (M, usize),
    ) -> u64 {
        let offset = self.newest + 1;
        let (message, bytes) = seal(self.epoch, offset);
        match self.make_room(bounds, bytes, now, evicted) {
            Some(bytes) => self.push(message, bytes, now),
            None => {
                self.skip_to(offset);
                evicted.push(message, bytes, EvictionReason::Bytes);
            }
        }
        offset
    }

    /// Evicts messages until one more message of `bytes` fits into `bounds`. Returns its bytes, or
    /// `None` if the message alone exceeds the bounds; then the stream is empty.
    pub(crate) fn make_room(
        &mut self,
        bounds: &Retention,
        bytes: usize,
        now: Seconds,
        evicted: &mut Evicted<M>,
    ) -> Option<u32> {
        self.expire(bounds.ttl_seconds, now, evicted);
        let bytes = u32::try_from(bytes).ok().filter(|bytes| bounds.messages > 0 && *bytes <= bounds.bytes);
        match bytes {
            Some(bytes) => {
                let rest =
                    Retention { messages: bounds.messages - 1, bytes: bounds.bytes - bytes, ..*bounds };
                self.trim(&rest, evicted);
                self.ring.reserve(bounds.messages as usize);
            }
            // Kept messages have no holes, so none may stay if the newest one is not kept.
            None => {
                self.forget_stored();
                while self.evict(EvictionReason::Bytes, evicted) {}
            }
        }
        bytes
    }

    /// Returns the bytes of a message, and those of the oldest one, if the stream is as long as it
    /// may be and the message can take the place of the oldest one. Returns `None` for streams with
    /// state beside the ring.
    #[inline]
    pub(crate) fn fits_for_oldest(&self, bounds: &Retention, bytes: usize) -> Option<(u32, u32)> {
        let oldest = self.ring.oldest()?.bytes;
        let bytes = u32::try_from(bytes).ok()?;
        let left = u64::from(self.ring.bytes().saturating_sub(oldest));
        let fits = self.rest.is_none()
            && self.ring.len() == bounds.messages as usize
            && left + u64::from(bytes) <= u64::from(bounds.bytes);
        fits.then_some((bytes, oldest))
    }

    /// Removes the oldest message of a stream without state beside the ring. Its slot stays for the
    /// message that is pushed next.
    #[inline]
    pub(crate) fn take_oldest(&mut self) -> Option<Slot<M>> {
        self.ring.take_oldest()
    }

    /// Evicts messages until `bounds` hold, except for their age.
    pub(crate) fn trim(&mut self, bounds: &Retention, evicted: &mut Evicted<M>) {
        while self.ring.len() > bounds.messages as usize {
            self.evict(EvictionReason::Messages, evicted);
        }
        while self.ring.bytes() > bounds.bytes {
            self.evict(EvictionReason::Bytes, evicted);
        }
    }

    /// Adds the message after the newest one. The caller has made room for it.
    #[inline]
    pub(crate) fn push(&mut self, message: M, bytes: u32, now: Seconds) {
        self.ring.push(message, bytes, now);
        self.newest += 1;
        if self.rest.is_some() {
            self.note_pushed();
        }
    }

    /// Evicts the messages that are older than `ttl_seconds`.
    pub fn expire(&mut self, ttl_seconds: u32, now: Seconds, evicted: &mut Evicted<M>) {
        while self.oldest_at().is_some_and(|at| now.since(at) > ttl_seconds) {
            self.evict(EvictionReason::Age, evicted);
        }
    }

    /// Empties the stream and starts a new epoch. The offset goes on, so it is never given twice.
    ///
    /// `random` gives the new epoch ([`Epoch::from_bits`]). It differs from the present one.
    pub fn clear(&mut self, random: u64, evicted: &mut Evicted<M>) {
        let epoch = Epoch::from_bits(random);
        self.epoch = if epoch == self.epoch { Epoch::from_bits(random ^ 1) } else { epoch };
        self.rest = None;
        while self.evict(EvictionReason::Removed, evicted) {}
    }

    /// Evicts the oldest message. Returns `false` if there is none.
    pub(crate) fn evict(&mut self, reason: EvictionReason, evicted: &mut Evicted<M>) -> bool {
        match self.ring.pop() {
            Some(slot) => {
                if self.rest.is_some() {
                    self.note_evicted();
                }
                evicted.push(slot.message, slot.bytes as usize, reason);
                true
            }
            None => false,
        }
    }

    /// Updates what is known beside the ring after a message was added.
    #[cold]
    fn note_pushed(&mut self) {
        if let Some(Rest::Sparse(sparse)) = self.rest.as_deref_mut() {
            sparse.push(self.newest);
        }
    }

    /// Updates what is known beside the ring after its oldest message was evicted.
    #[cold]
    fn note_evicted(&mut self) {
        match self.rest.as_deref_mut() {
            Some(Rest::Sparse(sparse)) => {
                sparse.pop();
                if sparse.is_dense(self.newest) {
                    self.rest = None;
                }
            }
            // A message over the bounds of the rule is kept in no place, nor are older ones.
            _ => self.forget_stored(),
        }
    }

    /// Returns the time of the oldest kept message.
    pub(crate) fn oldest_at(&self) -> Option<Seconds> {
        self.ring.oldest().map(|slot| slot.at)
    }

    /// Returns the bytes that the oldest kept message is charged in a budget with `overhead` for
    /// each message.
    pub(crate) fn oldest_charge(&self, overhead: u32) -> Option<u64> {
        self.ring.oldest().map(|slot| slot.charge(overhead))
    }

    /// Returns the bytes that the kept messages are charged, like [`Self::oldest_charge`].
    pub(crate) fn charge(&self, overhead: u32) -> u64 {
        self.ring.charge(overhead)
    }

    /// Returns the memory of the stream on the heap, without what messages point to.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let rest = self.rest.as_deref().map(|rest| {
            let inner = match rest {
                Rest::Store(state) => state.stored.heap_bytes(),
                Rest::Sparse(sparse) => sparse.heap_bytes(),
            };
            size_of_val(rest) + inner
        });
        self.ring.heap_bytes() + rest.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests;
