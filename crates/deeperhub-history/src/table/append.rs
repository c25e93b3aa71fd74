//! Appends of messages to the streams of a table.

use std::convert::Infallible;

use super::{Appended, MAX_EVICTED_PER_APPEND, StreamId, StreamTable, live_entry};
use crate::evicted::{Evicted, EvictionReason};
use crate::mirror::StoredMessage;
use crate::policy::Policy;
use crate::ring::Slot;
use crate::rules::Rule;
use crate::seconds::Seconds;
use crate::stream::Stream;
use deeperhub_types::Epoch;

/// Maximum number of expired messages that one append evicts from other streams. More than one, so
/// that a table with steady traffic gets rid of expired messages without any sweep.
const MAX_EXPIRED_PER_APPEND: usize = 4;

impl<M, N> StreamTable<M, N> {
    /// Appends a message to a stream. Returns `None` if the stream was removed.
    ///
    /// `seal` gets the epoch and the message's offset, so that the message can contain them. It
    /// returns the message and its bytes.
    ///
    /// Evicts, in this order: what exceeds the stream's bounds, a few expired messages of the rule,
    /// and what exceeds the budget. The new message itself is not evicted for the budget.
    pub fn append(
        &mut self,
        id: StreamId,
        now: Seconds,
        evicted: &mut Evicted<M>,
        seal: impl FnOnce(Epoch, u64) -> (M, usize),
    ) -> Option<Appended> {
        let seal = |epoch, offset, _: &Policy| Ok::<_, Infallible>(seal(epoch, offset));
        match self.try_append(id, now, evicted, seal) {
            Ok(appended) => appended,
        }
    }

    /// Appends a message, like [`Self::append`], unless `seal` fails. It then changes nothing, and
    /// the offset is given to another message. `seal` also gets the policy of the stream: a message
    /// that exceeds its bounds is not kept.
    ///
    /// # Errors
    /// Returns the error of `seal`.
    pub fn try_append<E>(
        &mut self,
        id: StreamId,
        now: Seconds,
        evicted: &mut Evicted<M>,
        seal: impl FnOnce(Epoch, u64, &Policy) -> Result<(M, usize), E>,
    ) -> Result<Option<Appended>, E> {
        let next = |stream: &Stream<M>| Some(stream.newest() + 1);
        self.append_with(id, now, evicted, next, seal, |stream, message, kept, offset| match kept {
            Some(bytes) => {
                stream.push(message, bytes, now);
                None
            }
            None => {
                stream.skip_to(offset);
                Some(message)
            }
        })
    }

    /// Appends a message at the offset that a store gave it, like [`Stream::append_at`]. Evicts
    /// like [`Self::append`]. Returns `None`, and changes nothing, if the stream was removed or if
    /// the offset is not above the newest one.
    ///
    /// Sparse offsets take up to 16 bytes for each message, which the budget does not count.
    /// [`BudgetLimits::message_overhead`](crate::BudgetLimits::message_overhead) can contain them.
    pub fn append_at(
        &mut self,
        id: StreamId,
        now: Seconds,
        evicted: &mut Evicted<M>,
        stored: StoredMessage<M>,
    ) -> Option<Appended> {
        let StoredMessage { offset, message, bytes, at, .. } = stored;
        let given = |stream: &Stream<M>| (offset > stream.newest()).then_some(offset);
        let seal = |_, _, _: &Policy| Ok::<_, Infallible>((message, bytes));
        let push = |stream: &mut Stream<M>, message, kept, offset| match kept {
            Some(bytes) => {
                stream.push_at(message, bytes, at, offset);
                None
            }
            None => {
                stream.skip_to(offset);
                Some(message)
            }
        };
        match self.append_with(id, now, evicted, given, seal, push) {
            Ok(appended) => appended,
        }
    }

    /// Appends a message. `offset_of` returns its offset; `None` changes nothing. `push` adds the
    /// message with its bytes, or uses its offset and gives the message back if it is not kept.
    #[inline]
    fn append_with<E>(
        &mut self,
        id: StreamId,
        now: Seconds,
        evicted: &mut Evicted<M>,
        offset_of: impl FnOnce(&Stream<M>) -> Option<u64>,
        seal: impl FnOnce(Epoch, u64, &Policy) -> Result<(M, usize), E>,
        push: impl FnOnce(&mut Stream<M>, M, Option<u32>, u64) -> Option<M>,
    ) -> Result<Option<Appended>, E> {
        let Some(entry) = live_entry(&mut self.entries, id) else { return Ok(None) };
        let rule = entry.rule;
        let Some(policy) = self.budget.rules().get(rule).map(Rule::policy) else { return Ok(None) };
        let bounds = policy.retention();
        let stream = &mut entry.stream;
        let epoch = stream.epoch();
        let Some(offset) = offset_of(stream) else { return Ok(None) };
        let (message, bytes) = seal(epoch, offset, policy)?;
        // Whether messages of the rule have expired is seen by the first message of a second: the
        // queue that says so is in cold cache lines.
        let is_first = std::mem::replace(&mut entry.touched, now) != now;
        // Most messages take the place of the oldest one in a full history. Then nothing else can
        // change: the stream stays in its queues, no message of the rule has expired, and the budget
        // has room for the difference.
        if let Some((kept, freed)) = stream.fits_for_oldest(&bounds, bytes)
            && entry.queued.by_age
            && (entry.is_followed || entry.queued.idle)
            && !(is_first && self.queues[rule.index()].has_expired(bounds.ttl_seconds, now))
            && self.budget.has_room_for(kept.into(), freed.into())
        {
            if let Some(slot) = stream.take_oldest() {
                evicted.push(slot.message, slot.bytes as usize, EvictionReason::Messages);
            }
            push(stream, message, Some(kept), offset);
            self.budget.adjust(rule, kept.into(), freed.into());
            return Ok(Some(Appended { epoch, offset, is_over_budget: false }));
        }
        let overhead = self.budget.message_overhead();
        let (before, messages) = (stream.charge(overhead), stream.len());
        let kept = stream.make_room(&bounds, bytes, now, evicted);
        let freed = before - stream.charge(overhead);
        self.messages -= (messages - stream.len()) as u64;
        let added = kept.map_or(0, |bytes| Slot::<M>::charge_of(bytes, overhead));
        self.budget.adjust(rule, added, freed);
        self.expire(rule, now, MAX_EXPIRED_PER_APPEND, evicted);
        // The new message is not in the stream yet, so it is not a candidate.
        self.evict_over_budget(Some(rule), now, MAX_EVICTED_PER_APPEND, evicted);
        let Some(entry) = self.entries[id.index as usize].as_mut() else { return Ok(None) };
        match push(&mut entry.stream, message, kept, offset) {
            None => self.messages += 1,
            Some(message) => evicted.push(message, bytes, EvictionReason::Bytes),
        }
        self.note_spent(id, now);
        self.enqueue(id);
        Ok(Some(Appended { epoch, offset, is_over_budget: self.budget.excess() > 0 }))
    }
}
