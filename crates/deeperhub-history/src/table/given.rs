//! Streams of a table whose offsets a store gives.

use super::{StreamId, StreamTable};
use crate::evicted::Evicted;
use crate::mirror::MirrorStep;
use crate::seconds::Seconds;
use deeperhub_types::{Epoch, GapReason};

/// Result of [`StreamTable::apply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied {
    /// `true` if the budget is exceeded and this table cannot help
    /// ([`Appended::is_over_budget`](crate::Appended::is_over_budget)).
    pub is_over_budget: bool,
}

impl<M, N> StreamTable<M, N> {
    /// Empties a stream and starts a new epoch that a store gave ([`Stream::start_epoch`]). Returns
    /// `false` if the stream was removed.
    ///
    /// [`Stream::start_epoch`]: crate::Stream::start_epoch
    pub fn start_epoch(
        &mut self,
        id: StreamId,
        epoch: Epoch,
        after: u64,
        now: Seconds,
        evicted: &mut Evicted<M>,
    ) -> bool {
        self.change(id, now, |stream| stream.start_epoch(epoch, after, evicted))
    }

    /// Notes that a stream does not get the messages up to an offset ([`Stream::skip_missing`]).
    /// Returns `false` if the stream was removed.
    ///
    /// [`Stream::skip_missing`]: crate::Stream::skip_missing
    pub fn skip_missing(
        &mut self,
        id: StreamId,
        to: u64,
        reason: GapReason,
        now: Seconds,
        evicted: &mut Evicted<M>,
    ) -> bool {
        self.change(id, now, |stream| stream.skip_missing(to, reason, evicted))
    }

    /// Moves the newest offset of a stream to one that belongs to no message ([`Stream::pass_to`]).
    /// Returns `false` if the stream was removed.
    ///
    /// [`Stream::pass_to`]: crate::Stream::pass_to
    pub fn pass_to(&mut self, id: StreamId, offset: u64) -> bool {
        let entry = self.entry_mut(id);
        entry.map(|entry| entry.stream.pass_to(offset)).is_some()
    }

    /// Does a step of a [`Mirror`](crate::Mirror). Returns `None` if the stream was removed.
    ///
    /// The caller pushes the step to subscribers under the same lock.
    pub fn apply(
        &mut self,
        id: StreamId,
        now: Seconds,
        evicted: &mut Evicted<M>,
        step: MirrorStep<M>,
    ) -> Option<Applied> {
        let is_there = match step {
            MirrorStep::NewEpoch { epoch, after } => {
                self.start_epoch(id, Epoch::from_bits(epoch), after, now, evicted)
            }
            MirrorStep::Missing { to, reason, .. } => self.skip_missing(id, to, reason, now, evicted),
            MirrorStep::Duplicate { offset } => self.pass_to(id, offset),
            MirrorStep::Message { message, .. } => {
                let appended = self.append_at(id, now, evicted, message);
                if let Some(appended) = appended {
                    return Some(Applied { is_over_budget: appended.is_over_budget });
                }
                self.entry(id).is_some()
            }
        };
        is_there.then_some(Applied { is_over_budget: false })
    }
}

#[cfg(test)]
mod tests;
