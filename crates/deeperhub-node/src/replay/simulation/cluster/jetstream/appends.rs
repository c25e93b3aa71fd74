//! Appends of a batch, with the answers to each.

use std::collections::BTreeMap;
use std::sync::Arc;

use deeperhub_cluster::simulation::QueuedAppend;
use deeperhub_cluster::{AppendError, AppendNumber, Appended};

use super::super::plants::{ModelBug, is_broken};
use super::server::{Ack, Content, Record, rule_of};
use super::session::{Session, limits_of};

type Outcome = (AppendNumber, Result<Appended, AppendError>);

/// An append on its way to the server.
#[derive(Debug, Clone)]
pub(in super::super) struct LateAppend {
    append: QueuedAppend,
    /// Epoch of the stream that the append names.
    stream: u64,
    identity: String,
}

/// An attempt to append the messages of a batch.
#[derive(Debug, Default)]
pub(in super::super) struct Attempt {
    open: Vec<LateAppend>,
    /// `None` if the message was for another stream, or the stream was not there.
    acks: Vec<Option<Ack>>,
    /// The highest sequence of each rule's stream before the attempt.
    highest: BTreeMap<String, u64>,
}

impl Attempt {
    /// Returns the appends that the server has not executed.
    pub(in super::super) fn into_rest(self) -> impl Iterator<Item = LateAppend> {
        self.open.into_iter().skip(self.acks.len())
    }

    pub(in super::super) fn is_executed(&self) -> bool {
        self.acks.len() == self.open.len()
    }
}

impl Session<'_> {
    /// Finds the streams of a batch.
    pub(in super::super) fn prepare(&mut self, batch: &[QueuedAppend]) -> Attempt {
        for append in batch {
            self.ensure(&append.topic, limits_of(append.limits));
            self.compare_epoch(&append.topic, append.known);
        }
        self.attempt(batch.to_vec())
    }

    fn attempt(&mut self, appends: Vec<QueuedAppend>) -> Attempt {
        let mut attempt = Attempt::default();
        for append in appends {
            let known = self.known(&append.topic);
            attempt.highest.insert(rule_of(&append.topic).to_owned(), known.highest);
            let (stream, (epoch, _)) = (known.epoch, known.epoch_of(&append.topic));
            let identity = identity(&append, epoch);
            attempt.open.push(LateAppend { append, stream, identity });
        }
        attempt
    }

    /// Executes the next append of an attempt.
    pub(in super::super) fn execute(&mut self, attempt: &mut Attempt) -> Option<Arc<Record>> {
        let late = attempt.open.get(attempt.acks.len())?.clone();
        let (ack, record) = self.append(late);
        attempt.acks.push(ack);
        record
    }

    /// Executes an append of a lost connection.
    pub(in super::super) fn execute_late(&mut self, late: LateAppend) -> Option<Arc<Record>> {
        self.append(late).1
    }

    fn append(&mut self, late: LateAppend) -> (Option<Ack>, Option<Arc<Record>>) {
        let LateAppend { append, stream: expected, identity } = late;
        let topic = append.topic.clone();
        let now = self.now;
        let serial = self.given.new_serial();
        let Some(stream) = self.stream(&topic) else { return (None, None) };
        if stream.epoch != expected && !is_broken(ModelBug::ExpectedStreamIgnored) {
            return (None, None);
        }
        let epoch = stream.epoch;
        if let Some(sequence) = stream.find(&identity) {
            return (Some(Ack { stream: epoch, sequence, is_duplicate: true }), None);
        }
        let record = stream.push(&topic, |sequence, previous| Record {
            topic: topic.clone(),
            stream: epoch,
            sequence,
            previous,
            time: now,
            serial,
            identity,
            content: Content::Message(append),
        });
        stream.remember(&record);
        self.sent.push(Arc::clone(&record));
        (Some(Ack { stream: epoch, sequence: record.sequence, is_duplicate: false }), Some(record))
    }

    /// Handles the answers to an attempt. Returns the next attempt, if some appends need one.
    pub(in super::super) fn receive(
        &mut self,
        attempt: Attempt,
        outcomes: &mut Vec<Outcome>,
    ) -> Option<Attempt> {
        let Attempt { open, acks, highest } = attempt;
        let mut lost = Vec::new();
        let mut done = Vec::new();
        for (late, ack) in open.iter().zip(&acks) {
            let topic = &*late.append.topic;
            let Some(ack) = ack else {
                self.known(topic).is_checked = false;
                done.push(None);
                continue;
            };
            let known = highest.get(rule_of(topic)).copied().unwrap_or_default();
            if !ack.is_duplicate && ack.sequence <= known && !is_broken(ModelBug::SequenceTakenAgain) {
                lost.push(rule_of(topic));
            }
            done.push(Some(self.appended(late, *ack)));
        }
        lost.dedup();
        for rule in &lost {
            // The stream took this at positions that nodes know of other messages.
            self.replace(rule);
        }
        let mut again = Vec::new();
        for (late, appended) in open.iter().zip(done) {
            match appended.filter(|_| !lost.contains(&rule_of(&late.append.topic))) {
                Some(appended) => outcomes.push((late.append.number, Ok(appended))),
                None => again.push(late.append.clone()),
            }
        }
        again.iter().for_each(|append| self.ensure(&append.topic, limits_of(append.limits)));
        (!again.is_empty()).then(|| self.attempt(again))
    }

    fn appended(&mut self, late: &LateAppend, ack: Ack) -> Appended {
        let (topic, own) = (&*late.append.topic, late.append.time);
        let position = match self.known.of_stream(rule_of(topic), ack.stream) {
            Some(known) => {
                known.see_append(ack.sequence, &late.identity);
                known.position(topic, ack.sequence)
            }
            None => deeperhub_cluster::StorePosition { epoch: ack.stream, offset: ack.sequence },
        };
        // No other message has the identity of one without `once`.
        if !ack.is_duplicate || late.append.once.is_none() {
            return Appended { position, time: own, is_repeat: false };
        }
        let stream = self.stream(topic).filter(|stream| stream.epoch == ack.stream);
        let first = stream.and_then(|stream| stream.records.get(&ack.sequence).cloned());
        match first.as_ref().map(|first| &first.content) {
            Some(Content::Message(first)) => {
                let is_repeat = first.identity() != late.append.identity();
                Appended { position, time: first.time, is_repeat }
            }
            // The stream's limits have removed it. Whole seconds are compared with no message.
            _ => Appended { position, time: own - own % 1000, is_repeat: true },
        }
    }
}

/// Returns the identity by which the server recognizes a message.
pub(super) fn identity(append: &QueuedAppend, epoch: u64) -> String {
    match &append.once {
        Some((user, text)) => format!("o{epoch} {} {user} {text}", append.topic),
        None => {
            let (incarnation, sequence) = append.origin();
            format!("{incarnation}.{sequence}")
        }
    }
}
