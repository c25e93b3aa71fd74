//! Reads, and looks at the newest positions.

use std::sync::Arc;

use deeperhub_cluster::simulation::stored_envelope;
use deeperhub_cluster::{StorePosition, StreamProgress, StreamRange, StreamRead, StreamTop, Whole};

use super::super::plants::{ModelBug, is_broken};
use super::server::{Content, Record, Stream};
use super::session::{Session, limits_of};

/// Largest difference of the clocks of servers, and delay of an expiry.
const AGE_MARGIN_MS: u64 = 5000;

/// A read of a topic's messages.
struct Plan {
    epoch: u64,
    base: u64,
    after: Option<u64>,
    start: u64,
    kept: Option<(u64, u64)>,
}

/// Result of a look at a stream before the read.
struct Look {
    newest: u64,
    newest_serial: u64,
    young_after: u64,
    max_messages: u64,
}

impl Session<'_> {
    /// Answers a read with at most `max` messages.
    pub(in super::super) fn read(&mut self, read: &StreamRead, max: usize) -> StreamRange {
        let topic = read.topic.as_str();
        self.ensure_now(topic, limits_of(read.limits));
        let look = self.look(topic);
        let (epoch, _) = self.known(topic).epoch_of(topic);
        if read.after.is_none_or(|after| after.epoch != epoch) {
            self.note_marks(topic);
        }
        let mut plan = self.plan(read);
        self.seek_last(read, &look, &mut plan);
        let Some(stream) = self.stream(topic) else { unreachable!("the stream exists") };
        let records: Vec<_> = stream.of_topic(topic, plan.start).cloned().collect();
        let mut count = max.min(read.messages.max(1) as usize).min(records.len());
        if is_broken(ModelBug::ReadLacksLast) && count > 1 {
            count -= 1;
        }
        let pending = (records.len() - count) as u64;
        let known = self.known(topic);
        known.see_newest((look.newest, look.newest_serial));
        if let Some(last) = records[..count].last() {
            known.see_message(last.sequence, last.serial);
        }
        let (range, mark) = parse(read, plan, &look, (&records[..count], pending), self.now);
        if let Some(mark) = mark {
            self.known(topic).see_mark(topic, mark);
        }
        range
    }

    fn look(&mut self, topic: &str) -> Look {
        let now = self.now;
        let Some(stream) = self.stream(topic) else { unreachable!("the stream exists") };
        let margin = AGE_MARGIN_MS.min(stream.max_age_ms / 2);
        let young_from = now.saturating_sub(stream.max_age_ms - margin);
        let young_after = if stream.created_ms < young_from {
            let young = stream.records.values().find(|record| record.time >= young_from);
            young.map_or(stream.newest, |record| record.sequence - 1)
        } else {
            0
        };
        let Stream { newest, newest_serial, max_messages, .. } = *stream;
        Look { newest, newest_serial, young_after: young_after.max(stream.whole_after), max_messages }
    }

    fn note_marks(&mut self, topic: &str) {
        if is_broken(ModelBug::MarksUnread) {
            return;
        }
        let last = self.stream(topic).and_then(|stream| stream.marks.get(topic)?.last().copied());
        if let Some(mark) = last {
            self.known(topic).see_mark(topic, mark);
        }
    }

    fn plan(&mut self, read: &StreamRead) -> Plan {
        let topic = read.topic.as_str();
        let (epoch, base) = self.known(topic).epoch_of(topic);
        let after = read.after.filter(|after| after.epoch == epoch).map(|after| after.offset.max(base));
        Plan { epoch, base, after, start: after.unwrap_or(base) + 1, kept: None }
    }

    /// Finds the first of the last messages, if not all are wanted.
    fn seek_last(&mut self, read: &StreamRead, look: &Look, plan: &mut Plan) {
        let wanted = u64::from(read.messages);
        if plan.after.is_some() || wanted >= look.max_messages {
            return;
        }
        let topic = read.topic.as_str();
        let Some(stream) = self.stream(topic) else { return };
        let sequences: Vec<_> = stream.of_topic(topic, plan.start).map(|record| record.sequence).collect();
        let Some(first) = sequences.first() else { return };
        let count = sequences.len() as u64;
        plan.kept = Some((count, *first));
        if count > wanted {
            let index = (count - wanted) as usize;
            plan.start = sequences.get(index).copied().unwrap_or(look.newest + 1);
        }
    }

    /// Returns the newest position of a topic.
    pub(in super::super) fn top(&mut self, topic: &str, limits: (u64, u64)) -> StreamTop {
        self.ensure_now(topic, limits);
        self.note_marks(topic);
        let Some(stream) = self.stream(topic) else { unreachable!("the stream exists") };
        let (newest, serial) = (stream.newest, stream.newest_serial);
        let last = stream.of_topic(topic, 0).next_back().map_or(0, |record| record.sequence);
        self.known(topic).see_newest((newest, serial));
        let (epoch, base) = self.known(topic).epoch_of(topic);
        let offset = if last > base { last } else { 0 };
        let vouched = newest.max(offset);
        StreamTop {
            position: Some(StorePosition { epoch, offset }),
            progress: Some(StreamProgress { newest: newest.max(offset), vouched }),
            time: self.now,
        }
    }
}

/// Returns the answer of a read, and the start of the topic's epoch if the answer has it.
fn parse(
    read: &StreamRead,
    mut plan: Plan,
    look: &Look,
    (records, mut pending): (&[Arc<Record>], u64),
    now: u64,
) -> (StreamRange, Option<(u64, u64)>) {
    let count = records.len() as u64 + pending;
    let mut last_read = records.last().map_or(0, |record| record.sequence);
    let mut messages: Vec<(&Record, u64)> = Vec::new();
    let mut mark = None;
    for record in records {
        let sequence = record.sequence;
        if let Content::Reset { epoch, .. } = record.content {
            if epoch > plan.epoch {
                plan.after = None;
            }
            if epoch >= plan.epoch {
                (plan.epoch, plan.base) = (epoch, sequence);
                messages.clear();
                mark = Some((epoch, sequence));
            }
        } else if sequence > plan.base {
            let previous = messages.last().map_or(0, |(last, _)| last.sequence);
            messages.push((&**record, previous));
        }
    }
    if read.messages == 0 && !messages.is_empty() {
        pending += messages.len() as u64;
        last_read = plan.after.unwrap_or(plan.base);
        messages.clear();
    }
    let top = look.newest.max(last_read).max(plan.base);
    let first = messages.first().map(|(first, _)| first.sequence);
    let (kept, oldest) = plan.kept.unwrap_or((count, first.unwrap_or(top + 1)));
    let lacks_first = kept > count && plan.after.is_none();
    let after = whole_after(&plan, look, (count, first, lacks_first)).min(top);
    // The server does not tell the message before the first one.
    if let Some((_, previous)) = messages.first_mut() {
        *previous = after;
    }
    let envelopes = messages.iter().filter_map(|(record, previous)| {
        let Content::Message(append) = &record.content else { return None };
        let position = StorePosition { epoch: plan.epoch, offset: record.sequence };
        stored_envelope(append.stored(position, *previous, append.time), &read.topic, plan.epoch)
    });
    let range = StreamRange {
        top: Some(StorePosition { epoch: plan.epoch, offset: top }),
        oldest,
        time: now,
        is_cut: pending > 0 && messages.len() < read.messages as usize,
        messages: envelopes.collect(),
        kept,
        whole: Some(Whole { after, to: if pending > 0 { last_read } else { top } }),
    };
    (range, mark)
}

/// Returns the offset after which the answer has all messages of the topic.
fn whole_after(plan: &Plan, look: &Look, (count, first, lacks_first): (u64, Option<u64>, bool)) -> u64 {
    let after = plan.after.unwrap_or(plan.base);
    if is_broken(ModelBug::WholeTooEarly) {
        return after;
    }
    match first {
        Some(first) if lacks_first || count >= look.max_messages => (first - 1).max(after),
        Some(first) => look.young_after.min(first - 1).max(after),
        None => look.young_after.max(after),
    }
}
