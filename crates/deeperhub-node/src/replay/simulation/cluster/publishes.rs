//! Checks of what clients publish: once, and where the answer says.

use std::collections::{BTreeMap, BTreeSet};

use deeperhub_client::core::RequestId;
use deeperhub_client::{Error, Published};

use super::super::topics::TOPICS;
use super::log::TopicLog;

/// The publishes of one client.
#[derive(Debug, Default)]
pub(super) struct Publishes {
    /// Topic and number of publishes without an answer.
    open: BTreeMap<RequestId, (usize, u64)>,
    /// Numbers of messages that the client is not to get.
    pub(super) excluded: BTreeSet<u64>,
    /// The last acknowledged number of each topic.
    acknowledged: BTreeMap<usize, u64>,
    pub(super) acknowledgements: usize,
}

impl Publishes {
    /// Notes a publish that a client was asked for.
    pub(super) fn on_asked(&mut self, (id, topic, number): (RequestId, usize, u64), is_excluded: bool) {
        self.open.insert(id, (topic, number));
        if is_excluded {
            self.excluded.insert(number);
        }
    }

    /// Checks the answer that a client gives to its application.
    pub(super) fn on_answer(
        &mut self,
        id: RequestId,
        result: Result<Published, Error>,
        logs: &mut [TopicLog],
    ) -> Result<(), String> {
        let (topic, number) = self.open.remove(&id).ok_or("a publish is answered twice")?;
        let published = match result {
            Ok(published) => published,
            Err(error) if error.code() == Error::TIMEOUT => return Ok(()),
            Err(error) => return Err(format!("message {number} fails: {error}")),
        };
        if &*published.topic != TOPICS[topic] {
            return Err(format!("message {number} is published to {}", published.topic));
        }
        self.acknowledgements += 1;
        let last = self.acknowledged.insert(topic, number).unwrap_or_default();
        if last >= number {
            return Err(format!("message {number} is acknowledged after {last}"));
        }
        // A topic can be without history for a while.
        let Some(position) = published.position else { return Ok(()) };
        let place = logs[topic].place(&position)?;
        logs[topic].told.insert(place);
        match logs[topic].epochs.get(&place.0) {
            Some(log) if log.has(place.1, number) => Ok(()),
            _ => Err(format!("message {number} is acknowledged at {place:?}, where it never was")),
        }
    }

    /// Checks that all publishes are answered.
    pub(super) fn check_answered(&self) -> Result<(), String> {
        match self.open.values().next() {
            None => Ok(()),
            Some((topic, number)) => Err(format!("message {number} to {} is not answered", TOPICS[*topic])),
        }
    }
}
