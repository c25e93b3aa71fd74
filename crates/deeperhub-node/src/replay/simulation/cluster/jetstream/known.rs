//! Knowledge of a node about the streams.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use deeperhub_cluster::StorePosition;

use super::super::plants::{ModelBug, is_broken};
use super::server::{Content, Record, Server, rule_of};

/// Knowledge of a node about each rule's stream. It outlives connections.
#[derive(Debug, Default)]
pub(in super::super) struct Known {
    rules: BTreeMap<String, RuleStream>,
}

#[derive(Debug, Default, Clone)]
pub(super) struct RuleStream {
    /// Epoch of the stream; 0 if none is known.
    pub(super) epoch: u64,
    /// The highest sequence that the node has seen.
    pub(super) highest: u64,
    /// Sequence and time of the newest message that the node has got or looked at.
    pub(super) last: Option<(u64, u64)>,
    /// Sequence and identity of the newest message that the node has appended.
    pub(super) last_append: Option<(u64, String)>,
    /// Epochs of cleared topics, and the sequences after which they hold.
    marks: BTreeMap<String, (u64, u64)>,
    /// `true` if the stream was compared on this connection.
    pub(super) is_checked: bool,
    /// Messages of a topic and their age, as the rule wanted them at that time.
    pub(super) wanted: (u64, u64),
    /// Sequences that the stream has given again, and that the node had seen.
    given_again: BTreeSet<u64>,
}

impl RuleStream {
    pub(super) fn epoch_of(&self, topic: &str) -> (u64, u64) {
        match self.marks.get(topic) {
            Some((epoch, after)) if *epoch > self.epoch => (*epoch, *after),
            _ => (self.epoch, 0),
        }
    }

    pub(super) fn position(&self, topic: &str, sequence: u64) -> StorePosition {
        let (epoch, after) = self.epoch_of(topic);
        StorePosition { epoch: if sequence > after { epoch } else { self.epoch }, offset: sequence }
    }

    pub(super) fn see(&mut self, sequence: u64) {
        self.highest = self.highest.max(sequence);
    }

    /// Notes that the server gives a sequence, which the node may know of another message.
    pub(super) fn note_given(&mut self, epoch: u64, sequence: u64) {
        if self.epoch == epoch && self.highest >= sequence {
            self.given_again.insert(sequence);
        }
    }

    /// Forgets the sequences that were given again: the node cannot know that they were.
    pub(super) fn forget_given_again(&mut self) {
        self.given_again.clear();
    }

    pub(super) fn see_message(&mut self, sequence: u64, serial: u64) {
        self.see(sequence);
        if self.last.is_none_or(|(last, _)| last < sequence) {
            self.last = Some((sequence, serial));
        }
    }

    pub(super) fn see_append(&mut self, sequence: u64, identity: &str) {
        self.see(sequence);
        if self.last_append.as_ref().is_none_or(|(last, _)| *last < sequence) {
            self.last_append = Some((sequence, identity.to_owned()));
        }
    }

    /// Notes the newest sequence of the stream, and the time of its message.
    pub(super) fn see_newest(&mut self, (sequence, serial): (u64, u64)) {
        if serial == 0 || is_broken(ModelBug::LookNotIdentified) {
            self.see(sequence);
        } else {
            self.see_message(sequence, serial);
        }
    }

    pub(super) fn see_mark(&mut self, topic: &str, mark: (u64, u64)) {
        let known = self.marks.entry(topic.to_owned()).or_insert(mark);
        *known = (*known).max(mark);
    }

    /// Returns the topics that were cleared, with their epochs.
    pub(super) fn marks(&self) -> impl Iterator<Item = (&str, u64)> {
        self.marks.iter().map(|(topic, (epoch, _))| (&**topic, *epoch))
    }

    pub(super) fn begin(&mut self, epoch: u64) {
        *self = Self { epoch, ..Self::default() };
    }

    pub(super) fn largest_epoch(&self) -> u64 {
        self.marks.values().map(|(epoch, _)| *epoch).fold(self.epoch, u64::max)
    }
}

impl Known {
    pub(super) fn of_rule(&mut self, rule: &str) -> &mut RuleStream {
        self.rules.entry(rule.to_owned()).or_default()
    }

    /// Notes that the node has a new connection.
    pub(in super::super) fn on_connected(&mut self) {
        self.rules.values_mut().for_each(|known| known.is_checked = false);
    }

    /// Returns what is known of the stream that the server named. Returns `None` if that stream is
    /// older than the known one.
    pub(super) fn of_stream(&mut self, rule: &str, epoch: u64) -> Option<&mut RuleStream> {
        let known = self.of_rule(rule);
        if known.epoch > epoch {
            return None;
        }
        if known.epoch < epoch {
            known.begin(epoch);
        }
        Some(known)
    }

    /// Notes that the server gives a sequence, which the node may know of another message.
    pub(in super::super) fn note_given(&mut self, record: &Record) {
        self.of_rule(rule_of(&record.topic)).note_given(record.stream, record.sequence);
    }

    /// Checks that no stream lives on that has given a sequence again which the node had seen. If
    /// limits have removed the later message, reads from there tell a gap.
    pub(in super::super) fn check_replaced(&self, server: &Server) -> Result<(), String> {
        for (rule, known) in &self.rules {
            let stream = server.streams.get(rule).filter(|stream| stream.epoch == known.epoch);
            let is_kept =
                |sequence: &&u64| stream.is_some_and(|stream| stream.records.contains_key(sequence));
            if let Some(sequence) = known.given_again.iter().find(is_kept) {
                let epoch = known.epoch;
                return Err(format!(
                    "the stream {epoch} of {rule} lives on, which has given {sequence} again"
                ));
            }
        }
        Ok(())
    }

    /// Returns the envelope of a message that the server sends to the node.
    pub(in super::super) fn stamp(&mut self, record: &Record) -> Option<Bytes> {
        let (topic, sequence) = (&*record.topic, record.sequence);
        let known = self.of_stream(rule_of(topic), record.stream)?;
        match &record.content {
            Content::Message(append) => {
                if known.is_checked || is_broken(ModelBug::LiveHidesLoss) {
                    known.see_message(sequence, record.serial);
                }
                let (_, after) = known.epoch_of(topic);
                let previous = if record.previous > after { record.previous } else { 0 };
                Some(append.stored(known.position(topic, sequence), previous, append.time))
            }
            Content::Reset { epoch, envelope } => {
                if known.is_checked && !is_broken(ModelBug::MarksNotCompared) {
                    known.see_message(sequence, record.serial);
                }
                known.see_mark(topic, (*epoch, sequence));
                Some(envelope.clone().into())
            }
        }
    }
}
