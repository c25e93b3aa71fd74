//! Everything that the store gave an offset.

use std::collections::{BTreeMap, BTreeSet};

use deeperhub_client::Position;
use deeperhub_cluster::StorePosition;
use deeperhub_protocol::Epoch;

use super::super::real_clients::{Log, Place};

/// A message in the log.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored {
    pub(super) number: u64,
    /// Time of the store in milliseconds.
    pub(super) time: u64,
}

/// The messages of one epoch.
#[derive(Debug, Default)]
pub(super) struct EpochLog {
    /// Messages that the store has, or has evicted by its bounds.
    pub(super) messages: BTreeMap<u64, Stored>,
    /// Messages that the store has lost.
    lost: BTreeMap<u64, BTreeSet<u64>>,
    /// Numbers of messages that were sent again when the store did not remember them any more.
    repeated: BTreeSet<u64>,
    /// The newest offset of the stream, if the topic shares it with others.
    top: u64,
    /// `true` if the store gave an offset again that a client or a running node knew.
    pub(super) is_forked: bool,
    /// `true` if the store has lost messages of this epoch.
    pub(super) has_lost: bool,
}

/// The log of one topic.
#[derive(Debug, Default)]
pub(super) struct TopicLog {
    pub(super) epochs: BTreeMap<u64, EpochLog>,
    wire: BTreeMap<Epoch, u64>,
    /// Places that clients were told.
    pub(super) told: BTreeSet<Place>,
}

impl EpochLog {
    /// Returns `true` if the message with this number was at an offset.
    pub(super) fn has(&self, offset: u64, number: u64) -> bool {
        self.messages.get(&offset).is_some_and(|message| message.number == number)
            || self.lost.get(&offset).is_some_and(|numbers| numbers.contains(&number))
    }

    pub(super) fn newest(&self) -> u64 {
        let last = |offset: Option<&u64>| offset.copied().unwrap_or(0);
        let own = last(self.messages.keys().next_back()).max(last(self.lost.keys().next_back()));
        own.max(self.top)
    }
}

impl TopicLog {
    /// Notes an epoch.
    pub(super) fn add_epoch(&mut self, epoch: u64) {
        self.wire.insert(Epoch::from_bits(epoch), epoch);
        self.epochs.entry(epoch).or_default();
    }

    /// Notes the newest offset of a stream that the topic shares with others.
    pub(super) fn note_top(&mut self, epoch: u64, top: u64) {
        self.add_epoch(epoch);
        if let Some(log) = self.epochs.get_mut(&epoch) {
            log.top = log.top.max(top);
        }
    }

    /// Notes a message. `is_known` says that a running node has another one at its place, and `forgets`
    /// that the store would not recognize an earlier message.
    pub(super) fn append(
        &mut self,
        position: StorePosition,
        message: Stored,
        is_known: bool,
        forgets: impl Fn((u64, u64)) -> bool,
    ) -> Result<(), String> {
        self.add_epoch(position.epoch);
        let place = (position.epoch, position.offset);
        let Some(log) = self.epochs.get_mut(&position.epoch) else { return Ok(()) };
        let same = log.messages.iter().filter(|(_, stored)| stored.number == message.number);
        let before = same.map(|(offset, stored)| (*offset, stored.time)).next_back();
        log.repeated.extend(before.map(|_| message.number));
        if before.is_some_and(|before| !forgets(before)) {
            return Err(format!(
                "message {} is stored twice in the epoch {}",
                message.number, position.epoch
            ));
        }
        let is_again = log.lost.contains_key(&position.offset);
        let is_told = self.told.range(place..=(position.epoch, u64::MAX)).next().is_some();
        log.is_forked |= is_again && (is_known || is_told);
        match log.messages.insert(position.offset, message) {
            None => Ok(()),
            Some(before) => Err(format!("{place:?} is given to {message:?} after {before:?}")),
        }
    }

    /// Notes what the store has lost: the messages after an offset, and those of all epochs that are
    /// not among `epochs` and not before them.
    pub(super) fn lose(&mut self, epochs: &[u64], top: u64) {
        for (number, log) in &mut self.epochs {
            if epochs.iter().all(|epoch| number < epoch) {
                continue;
            }
            let kept = if epochs.contains(number) { top } else { 0 };
            for (offset, message) in log.messages.split_off(&(kept + 1)) {
                log.lost.entry(offset).or_default().insert(message.number);
                log.has_lost = true;
            }
        }
    }
}

impl Log for TopicLog {
    fn place(&self, position: &Position) -> Result<Place, String> {
        let epoch = Epoch::parse(&position.epoch).and_then(|epoch| self.wire.get(&epoch));
        let epoch = epoch.ok_or_else(|| format!("the epoch of {position:?} is unknown"))?;
        Ok((*epoch, position.offset))
    }

    fn note_told(&mut self, place: Place) {
        self.told.insert(place);
    }

    fn has(&self, (epoch, offset): Place, number: u64) -> bool {
        self.epochs.get(&epoch).is_some_and(|log| log.has(offset, number))
    }

    fn is_forked(&self, epoch: u64) -> bool {
        self.epochs.get(&epoch).is_some_and(|log| log.is_forked)
    }

    fn is_repeated(&self, epoch: u64, number: u64) -> bool {
        self.epochs.get(&epoch).is_some_and(|log| log.repeated.contains(&number))
    }

    fn last_of_gap(&self, epoch: u64) -> Option<u64> {
        // Messages that the store has lost can be in a gap.
        self.epochs.get(&epoch).filter(|log| !log.has_lost).map(EpochLog::newest)
    }

    fn has_only_good_positions(&self, epoch: u64) -> bool {
        self.epochs.get(&epoch).is_some_and(|log| !log.has_lost)
    }

    fn first_between(&self, (epoch, after): Place, until: u64, own: &BTreeSet<u64>) -> Option<u64> {
        let log = self.epochs.get(&epoch).filter(|log| after + 1 < until && !log.is_forked)?;
        let mut between = log.messages.range(after + 1..until);
        between.find(|(_, message)| !own.contains(&message.number)).map(|(offset, _)| *offset)
    }

    fn count_between(&self, (epoch, after): Place, until: u64) -> usize {
        let log = self.epochs.get(&epoch).filter(|_| after + 1 < until);
        log.map_or(0, |log| log.messages.range(after + 1..until).count())
    }

    fn may_lack_positions(&self) -> bool {
        true
    }

    fn keeps_order_without_history(&self) -> bool {
        false
    }

    fn tells_newest_position(&self) -> bool {
        false
    }
}
