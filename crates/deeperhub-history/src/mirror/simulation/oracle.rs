//! Checks of what a mirror decides against what the store has had.

use super::store::{Kind, Store};
use crate::{Epoch, GapReason, MirrorStep, Stream};

/// Position of the live subscribers, and how often each kind of step came.
#[derive(Debug, Default)]
pub(super) struct Oracle {
    pub(super) epoch: u64,
    /// Offset up to which subscribers were told everything.
    pub(super) told: u64,
    /// Offset of the last step.
    pub(super) newest: u64,
    pub(super) counts: Counts,
    /// Offsets and contents of the applied messages of this epoch.
    applied: Vec<(u64, u64)>,
}

#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Counts {
    pub(super) messages: u64,
    pub(super) epochs: u64,
    pub(super) trimmed: u64,
    pub(super) lost: u64,
    pub(super) duplicates: u64,
    pub(super) behind: u64,
    pub(super) waits: u64,
    pub(super) late: u64,
}

impl Oracle {
    /// Checks a step before it is applied.
    pub(super) fn check(&mut self, step: &MirrorStep<u64>, store: &Store) -> Result<(), String> {
        match step {
            MirrorStep::NewEpoch { epoch, after } => self.check_epoch(*epoch, *after, store)?,
            MirrorStep::Missing { from, to, reason } => {
                if *from != self.told + 1 || to < from || *to <= self.newest {
                    return Err(format!("gap {from}..={to} for a subscriber at {}", self.told));
                }
                self.check_missing(self.newest, *to, *reason, store)?;
                match reason {
                    GapReason::Trimmed => self.counts.trimmed += 1,
                    _ => self.counts.lost += 1,
                }
                (self.told, self.newest) = (*to, *to);
            }
            MirrorStep::Duplicate { offset } => {
                self.check_chain(*offset, store)?;
                self.entry(*offset, Kind::Duplicate, store)?;
                self.newest = *offset;
                self.counts.duplicates += 1;
            }
            MirrorStep::Message { message, prev } => {
                self.check_chain(message.offset, store)?;
                let content = self.entry(message.offset, Kind::Message, store)?;
                if content != message.message || *prev != self.told {
                    return Err(format!("{message:?} with prev {prev} for {content} after {}", self.told));
                }
                self.applied.push((message.offset, content));
                (self.told, self.newest) = (message.offset, message.offset);
                self.counts.messages += 1;
            }
        }
        Ok(())
    }

    /// Checks the stream after a step was applied.
    pub(super) fn check_stream(&self, stream: &Stream<u64>) -> Result<(), String> {
        let kept: Vec<_> = stream.messages(..).map(|(offset, content)| (offset, *content)).collect();
        let is_right = stream.epoch() == Epoch::from_bits(self.epoch)
            && stream.newest() == self.newest
            && stream.live_offset() == self.told
            && self.applied.ends_with(&kept);
        if is_right { Ok(()) } else { Err(format!("{stream:?} does not agree with {self:?}")) }
    }

    fn check_epoch(&mut self, epoch: u64, after: u64, store: &Store) -> Result<(), String> {
        if epoch <= self.epoch {
            return Err(format!("epoch {epoch} after {}", self.epoch));
        }
        // Subscribers are told nothing of what comes before the start, so it must be gone.
        let is_gone = |(offset, entry): (&u64, &super::store::Entry)| {
            *offset <= store.floor(epoch) || entry.is_lost || entry.kind != Kind::Message
        };
        let mut before = store.entries.range((epoch, 0)..=(epoch, after));
        // A store that has lost the epoch cannot say what was in it.
        let may_skip = epoch != store.epoch || self.epoch == 0;
        if !may_skip && !before.all(|((_, offset), entry)| is_gone((offset, entry))) {
            return Err(format!("epoch {epoch} starts after {after}"));
        }
        (self.epoch, self.told, self.newest) = (epoch, after, after);
        self.applied.clear();
        self.counts.epochs += 1;
        Ok(())
    }

    /// Checks that nothing lies between the last step and an offset.
    fn check_chain(&self, offset: u64, store: &Store) -> Result<(), String> {
        let from = self.newest + 1;
        if offset < from {
            return Err(format!("offset {offset} after {}", self.newest));
        }
        // If the epoch goes on, a crash has lost only what nobody knew.
        let mut skipped = store.entries.range((self.epoch, from)..(self.epoch, offset));
        match skipped.find(|(_, entry)| !entry.is_lost) {
            Some(((_, skipped), _)) => Err(format!("{skipped} is skipped before {offset}")),
            None => Ok(()),
        }
    }

    fn entry(&self, offset: u64, kind: Kind, store: &Store) -> Result<u64, String> {
        match store.entries.get(&(self.epoch, offset)) {
            Some(entry) if entry.kind == kind => Ok(entry.content),
            other => Err(format!("{other:?} at {offset} is not a {kind:?}")),
        }
    }

    /// Checks that the messages after `from` up to `to` are really gone, for the reason.
    fn check_missing(&self, from: u64, to: u64, reason: GapReason, store: &Store) -> Result<(), String> {
        let floor = store.floor(self.epoch);
        for ((_, offset), entry) in store.entries.range((self.epoch, from + 1)..=(self.epoch, to)) {
            let is_trimmed = *offset <= floor;
            let is_lost = entry.is_lost || entry.kind == Kind::Damaged || store.epoch != self.epoch;
            let is_right = match reason {
                // An offset that a crash has lost may be between those that the bounds evicted.
                GapReason::Trimmed => is_trimmed || entry.is_lost,
                // A duplicate may be lost with the messages around it.
                GapReason::Lost => is_lost || entry.kind == Kind::Duplicate,
                _ => false,
            };
            if !is_right {
                return Err(format!("{offset} is told as {reason}: {entry:?}, evicted up to {floor}"));
            }
        }
        Ok(())
    }
}
