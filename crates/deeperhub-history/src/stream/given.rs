//! Streams whose offsets a store gives.

use super::{Rest, Sparse, Stream};
use crate::evicted::{Evicted, EvictionReason};
use crate::mirror::{MirrorStep, StoredMessage};
use crate::policy::Retention;
use crate::seconds::Seconds;
use crate::stream::sparse::Missing;
use deeperhub_types::{Epoch, GapReason};

/// Next thing for a subscriber of a sparse stream.
#[derive(Debug)]
pub(crate) enum StreamItem<'a, M> {
    Message(u64, &'a M),
    Missing(Missing),
}

impl<M> Stream<M> {
    /// Appends a message at the offset that a store gave it. Evicts the oldest messages until
    /// `bounds` hold. A message that alone exceeds the bounds is not kept.
    ///
    /// Offsets between the newest one and the message's belong to no message of the topic. If they
    /// do, the caller first tells the stream what is missing ([`Self::skip_missing`]). Returns
    /// `false`, and changes nothing, if the offset is not above the newest one.
    pub fn append_at(
        &mut self,
        bounds: &Retention,
        now: Seconds,
        evicted: &mut Evicted<M>,
        stored: StoredMessage<M>,
    ) -> bool {
        let StoredMessage { offset, message, bytes, at, .. } = stored;
        if offset <= self.newest {
            return false;
        }
        match self.make_room(bounds, bytes, now, evicted) {
            Some(bytes) => self.push_at(message, bytes, at, offset),
            None => {
                self.skip_to(offset);
                evicted.push(message, bytes, EvictionReason::Bytes);
            }
        }
        true
    }

    /// Notes that the stream does not get the messages after the newest offset up to `to`. A cursor
    /// tells a subscriber about them in a gap. Positions before them are not recovered.
    pub fn skip_missing(&mut self, to: u64, reason: GapReason, evicted: &mut Evicted<M>) {
        if to <= self.newest {
            return;
        }
        self.sparse_mut().push_missing(Missing { to, reason });
        self.newest = to;
        while self.sparse().is_some_and(Sparse::has_too_many_missing) {
            if !self.evict(EvictionReason::Removed, evicted) {
                self.sparse_mut().pop_missing();
            }
        }
    }

    /// Moves the newest offset to one that belongs to no message, such as that of a duplicate.
    pub fn pass_to(&mut self, offset: u64) {
        if offset > self.newest {
            self.sparse_mut();
            self.newest = offset;
        }
    }

    /// Empties the stream and starts a new epoch that a store gave. The next message follows the
    /// offset `after`.
    pub fn start_epoch(&mut self, epoch: Epoch, after: u64, evicted: &mut Evicted<M>) {
        self.rest = None;
        while self.evict(EvictionReason::Removed, evicted) {}
        (self.epoch, self.newest) = (epoch, after);
    }

    /// Does a step of a [`Mirror`](crate::Mirror).
    pub fn apply(&mut self, bounds: &Retention, now: Seconds, evicted: &mut Evicted<M>, step: MirrorStep<M>) {
        match step {
            MirrorStep::NewEpoch { epoch, after } => {
                self.start_epoch(Epoch::from_bits(epoch), after, evicted);
            }
            MirrorStep::Missing { to, reason, .. } => self.skip_missing(to, reason, evicted),
            MirrorStep::Duplicate { offset } => self.pass_to(offset),
            MirrorStep::Message { message, .. } => {
                self.append_at(bounds, now, evicted, message);
            }
        }
    }

    /// Returns the offset at which a live subscriber stands: of the newest message or missing one.
    /// The next message has it as its `prev`. It differs from [`Self::newest`] only after an offset
    /// that belongs to no message.
    #[must_use]
    pub fn live_offset(&self) -> u64 {
        self.sparse().map_or(self.newest, |sparse| sparse.position_before(self.len()))
    }

    /// Adds the newest message at an offset that a store gave. The caller has made room for it.
    pub(crate) fn push_at(&mut self, message: M, bytes: u32, at: Seconds, offset: u64) {
        if offset != self.newest + 1 {
            self.sparse_mut();
        }
        self.newest = offset - 1;
        self.push(message, bytes, at);
    }

    /// Moves the newest offset to that of a message which is not kept. The stream must be empty.
    #[cold]
    pub(crate) fn skip_to(&mut self, offset: u64) {
        debug_assert!(self.is_empty(), "a hole between kept messages");
        self.newest = offset;
        if self.sparse().is_some() {
            self.rest = None;
        }
    }

    /// Returns the number of messages from an offset on, in memory or in a store.
    pub(crate) fn count_from(&self, offset: u64) -> u64 {
        match self.sparse() {
            None => (self.newest + 1).saturating_sub(offset),
            Some(sparse) => (self.len() - sparse.index_from(offset)) as u64,
        }
    }

    /// Returns the position after which the last `count` messages follow.
    pub(crate) fn position_before_last(&self, count: u64) -> u64 {
        match self.sparse() {
            Some(sparse) if count > 0 => {
                let index = (self.len() as u64).saturating_sub(count);
                sparse.position_before(usize::try_from(index).unwrap_or(usize::MAX))
            }
            _ => self.newest.saturating_sub(count),
        }
    }

    /// Returns the position before a kept message, which is the `prev` of the message.
    pub(crate) fn position_before(&self, offset: u64) -> u64 {
        let dense = offset.saturating_sub(1);
        self.sparse().map_or(dense, |sparse| sparse.position_before(sparse.index_from(offset)))
    }

    /// Returns the kept message of a sparse stream with an offset or the first one after it, or
    /// what is missing before.
    pub(crate) fn item_at(&self, offset: u64) -> Option<StreamItem<'_, M>> {
        let sparse = self.sparse()?;
        let index = sparse.index_from(offset);
        if let Some(missing) = sparse.missing_before(offset, index) {
            return Some(StreamItem::Missing(missing));
        }
        Some(StreamItem::Message(sparse.offset(index)?, self.ring.get(index)?))
    }

    /// Returns the lowest position after which no message is missing or evicted. `oldest` is the
    /// offset of the oldest message in memory or in a store.
    pub(crate) fn lowest_good(&self, oldest: u64) -> u64 {
        let last_missing = self.sparse().and_then(Sparse::last_missing);
        oldest.saturating_sub(1).max(last_missing.unwrap_or(0))
    }

    /// Returns `true` if a missing range ends at `offset` or after it.
    pub(crate) fn is_missing_from(&self, offset: u64) -> bool {
        self.sparse().and_then(Sparse::last_missing).is_some_and(|last| last >= offset)
    }

    /// Returns the sparse offsets. Most streams have nothing beside the ring, so this is one look.
    #[inline]
    pub(super) fn sparse(&self) -> Option<&Sparse> {
        match self.rest.as_deref() {
            None | Some(Rest::Store(_)) => None,
            Some(Rest::Sparse(sparse)) => Some(sparse),
        }
    }

    /// Returns `true` if not every offset is of a kept message.
    #[inline]
    pub(crate) fn is_sparse(&self) -> bool {
        self.sparse().is_some()
    }

    /// Returns the sparse offsets, after the stream was made sparse. What a store has beside the
    /// stream is forgotten, because the offsets now come from elsewhere.
    fn sparse_mut(&mut self) -> &mut Sparse {
        if self.sparse().is_none() {
            let sparse = Sparse::from_dense(self.oldest() - 1, self.newest);
            self.rest = Some(Box::new(Rest::Sparse(Box::new(sparse))));
        }
        match self.rest.as_deref_mut() {
            Some(Rest::Sparse(sparse)) => sparse,
            _ => unreachable!("the stream was made sparse"),
        }
    }
}

#[cfg(test)]
mod tests;
