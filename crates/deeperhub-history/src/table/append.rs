//! Appends of messages to the streams of a table.

use std::convert::Infallible;

use super::{Appended, MAX_EVICTED_PER_APPEND, StreamId, StreamTable};
use crate::evicted::{Evicted, EvictionReason};
use crate::policy::Retention;
use crate::ring::Slot;
use crate::seconds::Seconds;
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
        let seal = |epoch, offset, _: &Retention| Ok::<_, Infallible>(seal(epoch, offset));
        match self.try_append(id, now, evicted, seal) {
            Ok(appended) => appended,
        }
    }

    /// Appends a message, like [`Self::append`], unless `seal` fails. It then changes nothing, and
    /// the offset is given to another message. `seal` also gets the bounds of the stream: a message
    /// that exceeds them is not kept.
    ///
    /// # Errors
    /// Returns the error of `seal`.
    pub fn try_append<E>(
        &mut self,
        id: StreamId,
        now: Seconds,
        evicted: &mut Evicted<M>,
        seal: impl FnOnce(Epoch, u64, &Retention) -> Result<(M, usize), E>,
    ) -> Result<Option<Appended>, E> {
        let Some(bounds) = self.entry(id).and_then(|entry| Some(self.policy(entry.rule)?.retention())) else {
            return Ok(None);
        };
        let Some(entry) = self.entries[id.index as usize].as_mut() else { return Ok(None) };
        let rule = entry.rule;
        let stream = &mut entry.stream;
        let overhead = self.budget.message_overhead();
        let (epoch, offset) = (stream.epoch(), stream.newest() + 1);
        let (before, messages) = (stream.charge(overhead), stream.len());
        let (message, bytes) = seal(epoch, offset, &bounds)?;
        entry.touched = now;
        let kept = stream.make_room(&bounds, bytes, now, evicted);
        let freed = before - stream.charge(overhead);
        self.messages -= (messages - stream.len()) as u64;
        let added = kept.map_or(0, |bytes| Slot::<M>::charge_of(bytes, overhead));
        self.budget.adjust(rule, added, freed);
        self.expire(rule, now, MAX_EXPIRED_PER_APPEND, evicted);
        // The new message is not in the stream yet, so it is not a candidate.
        self.evict_over_budget(Some(rule), now, MAX_EVICTED_PER_APPEND, evicted);
        let Some(entry) = self.entries[id.index as usize].as_mut() else { return Ok(None) };
        let stream = &mut entry.stream;
        match kept {
            Some(bytes) => {
                stream.push(message, bytes, now);
                self.messages += 1;
            }
            None => {
                stream.skip();
                evicted.push(message, EvictionReason::Bytes);
            }
        }
        self.note_spent(id, now);
        self.enqueue(id);
        Ok(Some(Appended { epoch, offset, is_over_budget: self.budget.excess() > 0 }))
    }
}
