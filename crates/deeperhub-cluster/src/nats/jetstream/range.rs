//! Answers of reads, in the terms of the store.

use bytes::Bytes;

use super::super::request::Message;
use super::ensure::{header, number};
use super::known::MessageTime;
use super::stamp::{reset_epoch, stamp};
use crate::store::{ReadError, StorePosition, StoredEnvelope, StreamRange, StreamRead, Whole};

/// A read of a topic's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// Epoch of the topic.
    pub(super) epoch: u64,
    /// Sequence after which the messages of the epoch are.
    pub(super) base: u64,
    /// Sequence after which messages are wanted; `None` for the last messages.
    pub(super) after: Option<u64>,
    /// First sequence that is read.
    pub(super) start: u64,
    /// Messages that the store keeps of the topic, and the sequence of the oldest one, if another
    /// look told.
    pub(super) kept: Option<(u64, u64)>,
}

/// Result of a look at a stream before the read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Look {
    pub(super) newest: u64,
    /// Sequence after which no message has reached almost the largest age, or was in the stream while it
    /// had smaller limits.
    pub(super) young_after: u64,
    /// Largest number of messages of a topic.
    pub(super) max_messages: u64,
    pub(super) time_ms: u64,
}

/// Answer of a read, and the start of the topic's epoch if the answer has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) range: StreamRange,
    pub(super) mark: Option<(u64, u64)>,
    /// Sequence of the last message that was read.
    pub(super) last: u64,
}

/// Messages that a read brought, of one topic and in their order.
#[derive(Debug, Default)]
pub(super) struct Brought {
    /// Sequences and envelopes.
    pub(super) messages: Vec<(u64, Bytes)>,
    /// Time of the last one.
    pub(super) time: Option<MessageTime>,
    /// Messages that the topic has from the start of the read on.
    pub(super) count: u64,
    /// Messages of them that were not brought.
    pub(super) pending: u64,
}

impl Brought {
    /// Takes the messages of an answer.
    pub(super) fn parse(answer: &[Message]) -> Result<Self, ReadError> {
        let mut brought = Self { pending: pending(answer)?, ..Self::default() };
        for message in answer.iter().filter(|message| message.headers().status().is_none()) {
            let Some(sequence) = number(message, "Nats-Sequence") else { continue };
            let following = number(message, "Nats-Num-Pending").unwrap_or_default();
            brought.count = brought.count.max(following + 1);
            brought.messages.push((sequence, message.payload.clone()));
            brought.time = header(message, "Nats-Time-Stamp").map(MessageTime::new);
        }
        Ok(brought)
    }

    /// Returns the sequence of the last message, or 0.
    fn last(&self) -> u64 {
        self.messages.last().map_or(0, |(sequence, _)| *sequence)
    }
}

/// Makes a range of what a read brought.
pub(super) fn range(read: &StreamRead, mut plan: Plan, look: Look, brought: &Brought) -> Answer {
    let Brought { count, mut pending, .. } = *brought;
    let mut last_read = brought.last();
    let mut messages: Vec<StoredEnvelope> = Vec::with_capacity(brought.messages.len());
    let mut mark = None;
    for (sequence, envelope) in &brought.messages {
        let sequence = *sequence;
        if let Some(epoch) = reset_epoch(envelope) {
            if epoch > plan.epoch {
                plan.after = None;
            }
            if epoch >= plan.epoch {
                (plan.epoch, plan.base) = (epoch, sequence);
                messages.clear();
                mark = Some((epoch, sequence));
            }
            continue;
        }
        if sequence <= plan.base {
            continue;
        }
        let previous = messages.last().map_or(0, StoredEnvelope::offset);
        let stamped = stamp(envelope, plan.epoch, sequence, previous)
            .and_then(|bytes| StoredEnvelope::parse(bytes, &read.topic, plan.epoch));
        // Otherwise another program has written it.
        messages.extend(stamped.map(|(envelope, _)| envelope));
    }
    // A read of no messages gets one, since a batch has one at least.
    if read.messages == 0 && !messages.is_empty() {
        pending += messages.len() as u64;
        last_read = plan.after.unwrap_or(plan.base);
        messages.clear();
    }
    let top = look.newest.max(last_read).max(plan.base);
    let first = messages.first().map(StoredEnvelope::offset);
    let (kept, oldest) = plan.kept.unwrap_or((count, first.unwrap_or(top + 1)));
    let lacks_first = kept > count && plan.after.is_none();
    let after = whole_after(&plan, look, (count, first, lacks_first)).min(top);
    // The server does not tell what was before the first message. Whoever has what is vouched for lacks
    // nothing before it.
    if let Some(first) = messages.first_mut() {
        first.set_previous(after);
    }
    let whole = Whole { after, to: if pending > 0 { last_read } else { top } };
    let is_full = u32::try_from(messages.len()).is_ok_and(|read_count| read_count >= read.messages);
    let range = StreamRange {
        top: Some(StorePosition { epoch: plan.epoch, offset: top }),
        oldest,
        time: look.time_ms,
        is_cut: pending > 0 && !is_full,
        messages,
        kept,
        whole: Some(whole),
    };
    Answer { range, mark, last: last_read }
}

/// Returns the offset after which the answer has all messages of the topic, see the module's
/// documentation.
fn whole_after(plan: &Plan, look: Look, (count, first, lacks_first): (u64, Option<u64>, bool)) -> u64 {
    let after = plan.after.unwrap_or(plan.base);
    match first {
        // The limit of messages may have removed some before the first one.
        Some(first) if lacks_first || count >= look.max_messages => (first - 1).max(after),
        // The kept messages are whole, whatever their age: the oldest ones go first.
        Some(first) => look.young_after.min(first - 1).max(after),
        None => look.young_after.max(after),
    }
}

/// Returns the number of messages that follow those of an answer.
pub(super) fn pending(answer: &[Message]) -> Result<u64, ReadError> {
    let Some(last) = answer.last() else { return Ok(0) };
    match last.headers().status() {
        None | Some(204) => Ok(number(last, "Nats-Num-Pending").unwrap_or_default()),
        Some(404) => Ok(0),
        Some(status) => {
            let description = last.headers().description().to_owned();
            Err(ReadError::Refused(format!("{description} (status {status} of JetStream)")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Look = Look { newest: 100, young_after: 40, max_messages: 5, time_ms: 0 };

    fn plan(base: u64, after: Option<u64>) -> Plan {
        Plan { epoch: 9, base, after, start: after.unwrap_or(base) + 1, kept: None }
    }

    fn whole(base: u64, after: Option<u64>, count: u64, first: Option<u64>) -> u64 {
        whole_after(&plan(base, after), LOOK, (count, first, false))
    }

    #[test]
    fn a_young_position_with_few_messages_after_it_is_whole() {
        assert_eq!(whole(0, Some(50), 4, Some(60)), 50);
        assert_eq!(whole(0, Some(40), 0, None), 40);
        // The limit may have removed some.
        assert_eq!(whole(0, Some(50), 5, Some(60)), 59);
        // Messages after an old position may have reached their age, but not those after the first
        // that is kept.
        assert_eq!(whole(0, Some(10), 2, Some(60)), 40);
        assert_eq!(whole(0, Some(10), 2, Some(20)), 19);
        assert_eq!(whole(0, Some(10), 0, None), 40);
    }

    #[test]
    fn the_last_messages_are_whole_from_a_young_position_on() {
        assert_eq!(whole(0, None, 2, Some(60)), 40);
        assert_eq!(whole(0, None, 2, Some(30)), 29);
        assert_eq!(whole(0, None, 5, Some(60)), 59);
        assert_eq!(whole(0, None, 0, None), 40);
        assert_eq!(whole(45, None, 2, Some(60)), 45);
        assert_eq!(whole_after(&plan(0, None), LOOK, (2, Some(60), true)), 59);
    }
}
