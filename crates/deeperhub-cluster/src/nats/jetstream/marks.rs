//! Marks of cleared topics, read from their stream and compared with what the node knows.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::super::request::Message;
use super::api::{ApiError, NO_MESSAGE};
use super::ensure::{Store, header, number};
use super::known::{Mark, RuleStream};
use super::names::StreamNames;
use super::source::direct;
use super::stamp::reset_epoch;

/// Marks in one answer.
const MARKS_PER_READ: u64 = 1000;

/// Parses a message below the subjects of marks: the topic, and its mark.
fn parse<'m>(names: &StreamNames, message: &'m Message) -> Option<(&'m str, Mark)> {
    let (topic, _) = names.topic(header(message, "Nats-Subject")?)?;
    let (epoch, after) = (reset_epoch(&message.payload)?, number(message, "Nats-Sequence")?);
    Some((topic, Mark { epoch, after }))
}

impl Store {
    /// Notes the mark of a topic.
    pub(super) fn note_mark(&self, names: &StreamNames, message: &Message) {
        if let Some((topic, mark)) = parse(names, message) {
            self.known(names, |known| known.see_mark(topic, mark));
        }
    }

    /// Reads the marks of all cleared topics. Most streams have none.
    pub(super) async fn marks(
        &mut self,
        names: &StreamNames,
        epoch: u64,
    ) -> Result<HashMap<String, Mark>, ApiError> {
        let stream = names.stream(epoch);
        let mut marks = HashMap::new();
        let mut sequence = 1;
        loop {
            let request = json!({ "seq": sequence, "next_by_subj": names.marks(), "batch": MARKS_PER_READ });
            let call = direct(&stream, request, true);
            let messages = self.exchanges.run(&[call]).await?.pop().unwrap_or_default();
            for (topic, mark) in messages.iter().filter_map(|message| parse(names, message)) {
                marks.insert(topic.to_owned(), mark);
                sequence = sequence.max(mark.after + 1);
            }
            let rest = messages.last().and_then(|last| number(last, "Nats-Num-Pending"));
            if rest.unwrap_or_default() == 0 {
                return Ok(marks);
            }
        }
    }

    /// Returns `true` if a stream lacks a mark that the node knew before `marks` were read. No limit
    /// removes the last mark of a topic.
    pub(super) async fn has_lost_mark(
        &self,
        names: &StreamNames,
        epoch: u64,
        before: &RuleStream,
        marks: &HashMap<String, Mark>,
    ) -> Result<bool, ApiError> {
        if before.epoch != epoch {
            return Ok(false);
        }
        for (topic, known) in &before.marks {
            if marks.get(&**topic).is_none_or(|mark| mark.epoch < known.epoch)
                // The marks may come from a replica that is late.
                && self.marked_epoch(&names.stream(epoch), &names.mark(topic)).await? < known.epoch
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Reads the epoch that the last message of a subject begins from the stream's leader; 0 if
    /// there is none.
    async fn marked_epoch(&self, stream: &str, subject: &str) -> Result<u64, ApiError> {
        let request = json!({ "last_by_subj": subject });
        let answer = match self.api.call(&format!("STREAM.MSG.GET.{stream}"), &request).await {
            Err(error) if error.is(NO_MESSAGE) => return Ok(0),
            answer => answer?,
        };
        let envelope = answer.pointer("/message/data").and_then(Value::as_str);
        let envelope = envelope.and_then(|text| STANDARD.decode(text).ok());
        Ok(envelope.and_then(|envelope| reset_epoch(&envelope)).unwrap_or(0))
    }
}
