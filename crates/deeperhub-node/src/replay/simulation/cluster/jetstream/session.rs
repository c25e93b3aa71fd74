//! Requests of a node to the server before it appends or reads.

use std::sync::Arc;

use deeperhub_cluster::{
    Envelope, Message, Origin, ResetStream, ResetWhen, StorePosition, StreamLimits, Topic,
};

use super::super::plants::{ModelBug, is_broken};
use super::super::store::Given;
use super::known::{Known, RuleStream};
use super::server::{Content, Record, Server, Stream, rule_of};

/// A node at the server.
pub(in super::super) struct Session<'a> {
    pub(in super::super) server: &'a mut Server,
    pub(in super::super) known: &'a mut Known,
    pub(in super::super) given: &'a mut Given,
    /// Time of the server.
    pub(in super::super) now: u64,
    /// Time of the node.
    pub(in super::super) node_ms: u64,
    /// Messages that the server sends to the nodes that follow their topics.
    pub(in super::super) sent: &'a mut Vec<Arc<Record>>,
}

impl Session<'_> {
    pub(super) fn known(&mut self, topic: &str) -> &mut RuleStream {
        self.known.of_rule(rule_of(topic))
    }

    /// Returns the stream of a topic, which exists after [`Self::ensure`].
    pub(super) fn stream(&mut self, topic: &str) -> Option<&mut Stream> {
        let stream = self.server.streams.get_mut(rule_of(topic))?;
        stream.expire(self.now);
        Some(stream)
    }

    /// Returns the stream of a topic that the node knows, if it is still there.
    pub(super) fn known_stream(&mut self, topic: &str) -> Option<&mut Stream> {
        let epoch = self.known(topic).epoch;
        self.stream(topic).filter(|stream| stream.epoch == epoch)
    }

    /// Makes sure that a topic's rule has a stream, as [`Self::ensure`], and that it is there now.
    pub(super) fn ensure_now(&mut self, topic: &str, limits: (u64, u64)) {
        self.ensure(topic, limits);
        if self.known_stream(topic).is_none() {
            self.known(topic).is_checked = false;
            self.ensure(topic, limits);
        }
    }

    /// Makes sure that a topic's rule has a stream, and that the stream has all that the node knows.
    pub(in super::super) fn ensure(&mut self, topic: &str, limits: (u64, u64)) {
        let known = self.known(topic);
        if known.is_checked && known.wanted == limits {
            return;
        }
        let known = known.clone();
        if let Some(stream) = self.stream(topic) {
            if has_lost(&known, stream) || has_lost_mark(&known, stream) {
                self.server.streams.remove(rule_of(topic));
            } else if is_append_removed(&known, stream) {
                self.known(topic).forget_given_again();
            }
        }
        if self.stream(topic).is_none() {
            self.create(topic, limits);
        }
        let now = self.now;
        let Some(stream) = self.stream(topic) else { return };
        stream.set_limits(limits, now);
        let newest = (stream.newest, stream.newest_serial);
        let (epoch, marks) = (stream.epoch, stream.marks.clone());
        let known = self.known(topic);
        if known.epoch < epoch {
            known.begin(epoch);
        }
        for (topic, marks) in marks.iter().filter(|_| !is_broken(ModelBug::MarksUnread)) {
            marks.iter().for_each(|mark| known.see_mark(topic, *mark));
        }
        known.see_newest(newest);
        (known.is_checked, known.wanted) = (true, limits);
    }

    /// Creates a stream whose epoch is larger than all that the node knows.
    fn create(&mut self, topic: &str, limits: (u64, u64)) {
        // Clocks of nodes agree here: epochs of nodes that know nothing of one another are ordered.
        let least = self.now.max(self.known(topic).largest_epoch() + 1);
        let epoch = self.given.new_epoch(least);
        self.server.streams.insert(rule_of(topic).to_owned(), Stream::new(epoch, limits, self.now));
        self.known(topic).begin(epoch);
    }

    /// Deletes a stream, so that one with a larger epoch takes its place.
    pub(super) fn replace(&mut self, topic: &str) {
        self.server.streams.remove(rule_of(topic));
        self.known(topic).is_checked = false;
    }

    /// Begins a larger epoch of a topic.
    pub(super) fn mark(&mut self, topic: &str, known_epoch: u64) -> StorePosition {
        let known = self.known(topic);
        let present = known.epoch_of(topic).0;
        if self.known_stream(topic).is_none() {
            return StorePosition { epoch: present, offset: 0 };
        }
        let epoch = self.given.new_epoch(self.now.max(present.max(known_epoch) + 1));
        let (now, node_ms, serial) = (self.now, self.node_ms, self.given.new_serial());
        let identity = format!("r{serial}");
        let Some(stream) = self.stream(topic) else { return StorePosition { epoch, offset: 0 } };
        // The mark is a message of another subject.
        stream.newest += 1;
        let mark = (epoch, stream.newest);
        stream.marks.entry(topic.to_owned()).or_default().push(mark);
        let stream_epoch = stream.epoch;
        let record = stream.push(topic, |sequence, previous| Record {
            topic: topic.to_owned(),
            stream: stream_epoch,
            sequence,
            previous,
            time: now,
            serial,
            identity: identity.clone(),
            content: Content::Reset { epoch, envelope: reset_envelope(topic, epoch, node_ms, serial) },
        });
        let offset = record.sequence;
        let known = self.known(topic);
        known.note_given(stream_epoch, offset);
        if is_broken(ModelBug::MarksNotCompared) {
            known.see(offset);
        } else {
            known.see_append(offset, &identity);
        }
        known.see_mark(topic, (epoch, offset));
        self.sent.push(record);
        StorePosition { epoch, offset }
    }

    /// Answers a request for a new epoch.
    pub(in super::super) fn reset(&mut self, reset: &ResetStream) -> StorePosition {
        let topic = reset.topic.as_str();
        let limits = limits_of(reset.limits);
        self.ensure(topic, limits);
        let known_epoch = reset.known.map_or(0, |known| known.epoch);
        let is_rewritten = reset.when == ResetWhen::StoreHasRewritten;
        if reset.when != ResetWhen::Always {
            let newest = self.known_stream(topic).map(|stream| stream.newest);
            let Some(newest) = newest else {
                self.known(topic).is_checked = false;
                self.ensure(topic, limits);
                return self.present(topic, 0);
            };
            let present = self.present(topic, newest);
            match reset.known {
                Some(known) if known.epoch > present.epoch => {}
                Some(known) if known.epoch == present.epoch && (known.offset > newest || is_rewritten) => {
                    self.replace(topic);
                    let stream = self.known(topic);
                    stream.epoch = stream.epoch.max(known.epoch);
                    self.ensure(topic, limits);
                    return self.present(topic, 0);
                }
                _ => return present,
            }
        }
        self.mark(topic, known_epoch)
    }

    fn present(&mut self, topic: &str, newest: u64) -> StorePosition {
        let (epoch, after) = self.known(topic).epoch_of(topic);
        StorePosition { epoch, offset: newest.max(after) }
    }

    /// Compares a topic with the position that the node knows, before the node appends.
    pub(super) fn compare_epoch(&mut self, topic: &str, position: Option<StorePosition>) {
        let Some(position) = position else { return };
        let known = self.known(topic);
        let (epoch, _) = known.epoch_of(topic);
        if epoch == position.epoch {
            known.see(position.offset);
        }
        if position.epoch > epoch {
            self.mark(topic, position.epoch);
        }
    }
}

/// Returns `true` if a stream lacks messages that the node knew.
fn has_lost(known: &RuleStream, stream: &Stream) -> bool {
    if known.epoch != stream.epoch {
        return known.epoch > stream.epoch;
    }
    if stream.newest < known.highest {
        return true;
    }
    let newest_got = known.last.map_or(0, |(sequence, _)| sequence);
    // If the newest known message is there, so are those before it.
    if let Some((sequence, identity)) = &known.last_append
        && *sequence > newest_got
        && let Some(record) = stream.records.get(sequence)
        && !is_broken(ModelBug::AppendNotIdentified)
    {
        return record.identity != *identity;
    }
    let Some((sequence, serial)) = known.last else { return false };
    if let Some(present) = stream.records.get(&sequence) {
        return present.serial != serial && !is_broken(ModelBug::TimesNotCompared);
    }
    // The limits of the stream may have removed it, or the message that has taken its place. But no
    // earlier sequence has a later time.
    let later = stream.records.values().find(|record| record.serial >= serial);
    later.is_some_and(|later| later.sequence < sequence && later.serial != serial)
        && !is_broken(ModelBug::RemovedNotCompared)
}

/// Returns `true` if a stream lacks a mark that the node knew. No limit removes the last one of a topic.
fn has_lost_mark(known: &RuleStream, stream: &Stream) -> bool {
    let newest = |topic: &str| stream.marks.get(topic)?.iter().map(|(epoch, _)| *epoch).max();
    known.epoch == stream.epoch
        && known.marks().any(|(topic, epoch)| newest(topic).is_none_or(|newest| newest < epoch))
        && !is_broken(ModelBug::MarksNotCompared)
}

/// Returns `true` if the limits have removed the newest known message, or the one in its place, and
/// only its acknowledgement has told of it. That tells no time, so a loss can stay unnoticed.
fn is_append_removed(known: &RuleStream, stream: &Stream) -> bool {
    let newest_got = known.last.map_or(0, |(sequence, _)| sequence);
    known.last_append.as_ref().is_some_and(|(sequence, _)| {
        known.epoch == stream.epoch && *sequence > newest_got && !stream.records.contains_key(sequence)
    })
}

/// Returns the number of messages and their age in milliseconds.
pub(in super::super) fn limits_of(limits: StreamLimits) -> (u64, u64) {
    (limits.messages.into(), limits.ttl.as_millis() as u64)
}

fn reset_envelope(topic: &str, epoch: u64, time: u64, serial: u64) -> Vec<u8> {
    let topic = Topic::parse(topic).expect("a topic");
    let origin = Origin { node: "resets", incarnation: 1 };
    Envelope { origin, sequence: serial, message: Message::StreamReset { epoch, time, topic } }.write()
}
