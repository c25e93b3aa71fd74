//! The streams of a server.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use deeperhub_cluster::StorePosition;
use deeperhub_cluster::simulation::QueuedAppend;

use super::super::plants::{ModelBug, is_broken};
use super::appends::identity;

/// Time for which the server recognizes messages that are sent again.
const DUPLICATE_WINDOW_MS: u64 = 120_000;

const NO_POSITION: StorePosition = StorePosition { epoch: 1, offset: 1 };

/// A message of a stream.
#[derive(Debug)]
pub(in super::super) struct Record {
    pub(in super::super) topic: String,
    /// Epoch of the stream.
    pub(in super::super) stream: u64,
    pub(in super::super) sequence: u64,
    /// Sequence of the topic's message before it; 0 if there is none.
    pub(super) previous: u64,
    /// Time of the server in milliseconds.
    pub(super) time: u64,
    /// Stands for the time in nanoseconds, which tells messages of a sequence apart.
    pub(super) serial: u64,
    /// Identity by which the server recognizes the message; empty for none.
    pub(super) identity: String,
    pub(super) content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    Message(QueuedAppend),
    /// The start of an epoch of the topic, which removes the messages before it.
    Reset {
        epoch: u64,
        envelope: Vec<u8>,
    },
}

impl Record {
    /// Returns the envelope as the node has sent it, if the record is a message.
    pub(in super::super) fn payload(&self) -> Option<Bytes> {
        match &self.content {
            Content::Message(append) => Some(append.stored(NO_POSITION, 0, 0)),
            Content::Reset { .. } => None,
        }
    }
}

/// Answer to an append.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ack {
    pub(super) stream: u64,
    pub(super) sequence: u64,
    pub(super) is_duplicate: bool,
}

/// The stream of a rule.
#[derive(Debug, Clone)]
pub(super) struct Stream {
    pub(super) epoch: u64,
    pub(super) created_ms: u64,
    pub(super) newest: u64,
    /// Stands for the time of the newest message; 0 before the first one.
    pub(super) newest_serial: u64,
    pub(super) max_messages: u64,
    pub(super) max_age_ms: u64,
    /// Sequence up to which the stream may lack messages, because it had smaller limits.
    pub(super) whole_after: u64,
    /// The messages of all topics.
    pub(super) records: BTreeMap<u64, Arc<Record>>,
    /// Epochs of cleared topics, and the sequences of their marks. No limit removes them.
    pub(super) marks: BTreeMap<String, Vec<(u64, u64)>>,
    /// Sequences and times of messages, by their identities.
    identities: BTreeMap<String, (u64, u64)>,
}

/// The streams of one server. A copy is a replica.
#[derive(Debug, Clone, Default)]
pub(in super::super) struct Server {
    pub(super) streams: BTreeMap<String, Stream>,
}

/// Returns the name of a topic's rule: rules are chosen by the first level.
pub(super) fn rule_of(topic: &str) -> &str {
    topic.split('.').next().unwrap_or_default()
}

impl Stream {
    pub(super) fn new(epoch: u64, (max_messages, max_age_ms): (u64, u64), now: u64) -> Self {
        Self {
            epoch,
            created_ms: now,
            newest: 0,
            newest_serial: 0,
            max_messages,
            max_age_ms,
            whole_after: 0,
            records: BTreeMap::new(),
            marks: BTreeMap::new(),
            identities: BTreeMap::new(),
        }
    }

    /// Removes what has reached its age.
    pub(super) fn expire(&mut self, now: u64) {
        let (max_age, window) = (self.max_age_ms, self.max_age_ms.min(DUPLICATE_WINDOW_MS));
        self.records.retain(|_, record| record.time + max_age > now);
        self.identities.retain(|_, (_, time)| *time + window > now);
    }

    /// Returns the messages of a topic from a sequence on.
    pub(super) fn of_topic<'s>(
        &'s self,
        topic: &'s str,
        start: u64,
    ) -> impl DoubleEndedIterator<Item = &'s Arc<Record>> {
        self.records.range(start..).map(|(_, record)| record).filter(move |record| record.topic == topic)
    }

    /// Removes the messages of a topic beyond the limit.
    fn trim(&mut self, topic: &str) {
        let sequences: Vec<_> = self.of_topic(topic, 0).map(|record| record.sequence).collect();
        let excess = sequences.len().saturating_sub(self.max_messages as usize);
        sequences[..excess].iter().for_each(|sequence| drop(self.records.remove(sequence)));
    }

    pub(super) fn set_limits(&mut self, (max_messages, max_age_ms): (u64, u64), now: u64) {
        if (max_messages > self.max_messages || max_age_ms > self.max_age_ms)
            && !is_broken(ModelBug::RaisedLimitsForgotten)
        {
            self.whole_after = self.newest;
        }
        (self.max_messages, self.max_age_ms) = (max_messages, max_age_ms);
        let topics: Vec<_> = self.records.values().map(|record| record.topic.clone()).collect();
        topics.iter().for_each(|topic| self.trim(topic));
        self.expire(now);
    }

    /// Appends a message. `make` gets its sequence, and that of the topic's message before it.
    pub(super) fn push(&mut self, topic: &str, make: impl FnOnce(u64, u64) -> Record) -> Arc<Record> {
        let previous = self.of_topic(topic, 0).next_back().map_or(0, |record| record.sequence);
        let record = Arc::new(make(self.newest + 1, previous));
        (self.newest, self.newest_serial) = (self.newest + 1, record.serial);
        self.records.insert(self.newest, Arc::clone(&record));
        if matches!(record.content, Content::Reset { .. }) {
            let newest = self.newest;
            self.records.retain(|sequence, record| record.topic != topic || *sequence == newest);
        }
        self.trim(topic);
        record
    }

    /// Returns the sequence and the time of the message with an identity.
    pub(super) fn find(&self, identity: &str) -> Option<u64> {
        let found = self.identities.get(identity).map(|(sequence, _)| *sequence);
        found.filter(|_| !is_broken(ModelBug::ResendAppended))
    }

    pub(super) fn remember(&mut self, record: &Record) {
        self.identities.insert(record.identity.clone(), (record.sequence, record.time));
    }

    /// Forgets the identities of messages that are not kept, as a server does that starts again.
    fn start_again(&mut self) {
        let records = &self.records;
        self.identities.retain(|_, (sequence, _)| records.contains_key(sequence));
    }

    /// Returns the epochs that a new message of a topic has, for nodes that know all marks, some, or
    /// none. The last one is right.
    pub(super) fn epochs(&self, topic: &str) -> Vec<u64> {
        let marks = self.marks.get(topic).into_iter().flatten().map(|(epoch, _)| *epoch);
        std::iter::once(self.epoch).chain(marks).collect()
    }
}

impl Server {
    /// Notes that the server has started again.
    pub(in super::super) fn start_again(&mut self) {
        self.streams.values_mut().for_each(Stream::start_again);
    }

    /// Returns the epochs that messages of a topic have, and the newest sequence.
    pub(in super::super) fn positions(&self, topic: &str) -> (Vec<u64>, u64) {
        match self.streams.get(rule_of(topic)) {
            Some(stream) => (stream.epochs(topic), stream.newest),
            None => (vec![0], 0),
        }
    }

    /// Returns `true` if the server need not recognize a message of a topic that it has stored when the
    /// topic's newest one repeats it.
    pub(in super::super) fn forgets(&self, topic: &str, (sequence, time): (u64, u64), now: u64) -> bool {
        self.streams.get(rule_of(topic)).is_none_or(|stream| {
            let window = stream.max_age_ms.min(DUPLICATE_WINDOW_MS);
            let present = stream.records.get(&sequence);
            let newest = stream.of_topic(topic, 0).next_back();
            let mut epochs = stream.epochs(topic);
            let latest = epochs.iter().copied().max();
            epochs.retain(|epoch| Some(*epoch) != latest);
            // `once` is not kept when a topic is cleared, which the node of a publish may not know yet.
            let is_older = |record: &Arc<Record>| match &record.content {
                Content::Message(append) if append.once.is_some() => {
                    epochs.iter().any(|epoch| record.identity == identity(append, *epoch))
                }
                Content::Message(_) | Content::Reset { .. } => false,
            };
            time + window <= now
                || present.is_none()
                || present.is_some_and(is_older)
                || newest.is_some_and(is_older)
        })
    }

    /// Returns the epoch of a topic's newest messages, and the sequences of those that are kept.
    pub(in super::super) fn content(&mut self, topic: &str, now: u64) -> (u64, Vec<u64>) {
        let Some(stream) = self.streams.get_mut(rule_of(topic)) else { return (0, Vec::new()) };
        stream.expire(now);
        let (epoch, base) = match stream.marks.get(topic).and_then(|marks| marks.iter().max()) {
            Some((epoch, base)) => (*epoch, *base),
            None => (stream.epoch, 0),
        };
        let is_message = |record: &&Arc<Record>| matches!(record.content, Content::Message(_));
        let messages = stream.of_topic(topic, base + 1).filter(is_message);
        (epoch, messages.map(|record| record.sequence).collect())
    }
}
