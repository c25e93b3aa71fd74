//! The messages published to a topic: the truth that deliveries are compared with.

use std::collections::BTreeMap;

use deeperhub_history::Delivery;
use deeperhub_protocol::Epoch;

use super::socket::Place;

/// Seconds for which a publish with `once` is remembered.
const ONCE_SECONDS: u64 = 120;

/// State of a stream, read without a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) epoch: Epoch,
    pub(super) oldest: u64,
    pub(super) newest: u64,
    pub(super) delivery: Delivery,
}

/// A published message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Published {
    pub(super) number: u64,
    /// Serial of the connection that published it and must not get it.
    pub(super) excluded: Option<u64>,
}

/// The messages of one epoch.
#[derive(Debug)]
pub(super) struct EpochLog {
    pub(super) epoch: Epoch,
    /// Offset before the first message.
    pub(super) start: u64,
    /// `true` if the history was emptied, `false` if the stream is new.
    follows_clear: bool,
    messages: Vec<Published>,
}

impl EpochLog {
    pub(super) fn newest(&self) -> u64 {
        self.start + self.messages.len() as u64
    }

    pub(super) fn message(&self, offset: u64) -> Option<&Published> {
        let index = offset.checked_sub(self.start + 1)?;
        self.messages.get(usize::try_from(index).ok()?)
    }

    /// Returns the number of a connection's own excluded messages after an offset.
    pub(super) fn count_own(&self, offset: u64, serial: u64) -> u64 {
        let is_own =
            |offset: &u64| self.message(*offset).is_some_and(|message| message.excluded == Some(serial));
        (offset + 1..=self.newest()).filter(is_own).count() as u64
    }

    /// Returns the offset after `offset` and the connection's own excluded messages that follow it.
    pub(super) fn after_own(&self, mut offset: u64, serial: u64) -> u64 {
        while self.message(offset + 1).is_some_and(|message| message.excluded == Some(serial)) {
            offset += 1;
        }
        offset
    }
}

/// A repeatable publish: the epoch's number, the user and the text.
type OnceKey = (usize, Option<String>, u8);

/// Everything that was published to a topic.
#[derive(Debug, Default)]
pub(super) struct TopicLog {
    pub(super) epochs: Vec<EpochLog>,
    /// The stream after the last operation.
    pub(super) look: Option<Look>,
    once: BTreeMap<OnceKey, (u64, u64)>,
    /// Step of the last change other than a publish: evictions, a new epoch, a new rule.
    pub(super) changed_at: usize,
    pub(super) published_at: usize,
    /// Last step in which the topic's delivery was by sample.
    pub(super) sampled_at: usize,
}

impl TopicLog {
    /// Returns the number of an epoch in the order in which epochs began.
    pub(super) fn number(&self, epoch: Epoch) -> Option<usize> {
        self.epochs.iter().rposition(|log| log.epoch == epoch)
    }

    /// Returns `true` if all epochs after one and up to another began with a clear.
    pub(super) fn is_cleared_between(&self, before: usize, after: usize) -> bool {
        self.epochs[before + 1..=after].iter().all(|log| log.follows_clear)
    }

    /// Notes the state of the stream after an operation.
    pub(super) fn observe(&mut self, look: Option<Look>, step: usize) -> Result<(), String> {
        if let Some(Look { epoch, newest, oldest, delivery }) = look {
            if self.epochs.last().is_none_or(|log| log.epoch != epoch) {
                if self.number(epoch).is_some() {
                    return Err(format!("the epoch {epoch} comes back"));
                }
                // An emptied stream goes on with its offsets. A new stream starts at 0.
                let start = match self.look {
                    Some(before) => before.newest,
                    None => 0,
                };
                if start != newest || oldest != newest + 1 {
                    return Err(format!("the epoch {epoch} starts at {newest}, not at {start}"));
                }
                self.epochs.push(EpochLog {
                    epoch,
                    start,
                    follows_clear: self.look.is_some(),
                    messages: Vec::new(),
                });
            }
            if self.epochs.last().is_some_and(|log| log.newest() != newest) {
                return Err(format!("the newest offset is {newest}, which nobody published"));
            }
            if matches!(delivery, Delivery::Sample { .. }) {
                self.sampled_at = step;
            }
        }
        let state = |look: Look| (look.epoch, look.oldest, look.delivery);
        if look.map(state) != self.look.map(state) {
            self.changed_at = step;
        }
        self.look = look;
        Ok(())
    }

    /// Notes a publish and checks its answer.
    pub(super) fn publish(
        &mut self,
        (epoch, offset): Place,
        message: Published,
        once: Option<(Option<String>, u8)>,
        (now, step): (u64, usize),
    ) -> Result<(), String> {
        if self.number(epoch).is_none() {
            if offset != 1 || self.look.is_some() {
                return Err(format!("a new epoch starts with offset {offset}"));
            }
            self.epochs.push(EpochLog { epoch, start: 0, follows_clear: false, messages: Vec::new() });
        }
        let number = self.epochs.len() - 1;
        let log = &mut self.epochs[number];
        if log.epoch != epoch {
            return Err(format!("a publish was answered with the old epoch {epoch}"));
        }
        if let Some((user, text)) = once {
            let key = (number, user, text);
            match self.once.get(&key) {
                Some((before, at)) if now - at <= ONCE_SECONDS => {
                    return match offset == *before {
                        true => Ok(()),
                        false => Err(format!("a repeated publish got the offset {offset}, not {before}")),
                    };
                }
                _ => self.once.insert(key, (offset, now)),
            };
        }
        if offset != log.newest() + 1 {
            return Err(format!("a publish got the offset {offset} after {}", log.newest()));
        }
        log.messages.push(message);
        self.published_at = step;
        Ok(())
    }

    /// Notes a publish that its client may have repeated. Returns `true` if it was appended.
    pub(super) fn record(&mut self, place: Place, message: Published, step: usize) -> Result<bool, String> {
        let (epoch, offset) = place;
        match self.number(epoch).map(|number| &self.epochs[number]) {
            Some(log) if offset <= log.newest() => match log.message(offset) {
                Some(kept) if kept.number == message.number => Ok(false),
                other => Err(format!("message {} is answered with the place of {other:?}", message.number)),
            },
            _ => self.publish(place, message, None, (0, step)).map(|()| true),
        }
    }
}
