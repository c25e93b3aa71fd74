//! Checks of what a client publishes: once, and in order.

use std::collections::{BTreeMap, BTreeSet};

use deeperhub_client::core::RequestId;
use deeperhub_client::{Error, Position, Published};

use super::super::topics::TOPICS;

/// A publish that has succeeded.
#[derive(Debug)]
pub(in super::super) struct Acknowledged {
    pub(in super::super) topic: usize,
    /// Number of the message.
    pub(in super::super) number: u64,
    pub(in super::super) position: Option<Position>,
}

/// The publishes of one client.
#[derive(Debug, Default)]
pub(in super::super) struct Publishes {
    /// Topic and number of publishes without an answer.
    open: BTreeMap<RequestId, (usize, u64)>,
    /// Numbers of messages that the client is not to get.
    pub(in super::super) excluded: BTreeSet<u64>,
    /// The last acknowledged number of each topic.
    last: BTreeMap<usize, u64>,
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

    /// Checks the answer that a client gives to its application. Returns `None` if the publish has timed
    /// out.
    pub(super) fn on_answer(
        &mut self,
        id: RequestId,
        result: Result<Published, Error>,
    ) -> Result<Option<Acknowledged>, String> {
        let (topic, number) = self.open.remove(&id).ok_or("a publish is answered twice")?;
        let published = match result {
            Ok(published) => published,
            Err(error) if error.code() == Error::TIMEOUT => return Ok(None),
            Err(error) => return Err(format!("message {number} fails: {error}")),
        };
        if &*published.topic != TOPICS[topic] {
            return Err(format!("message {number} is published to {}", published.topic));
        }
        self.acknowledgements += 1;
        let last = self.last.insert(topic, number).unwrap_or_default();
        if last >= number {
            return Err(format!("message {number} is acknowledged after {last}"));
        }
        Ok(Some(Acknowledged { topic, number, position: published.position }))
    }

    /// Checks that all publishes are answered.
    pub(in super::super) fn check_answered(&self) -> Result<(), String> {
        match self.open.values().next() {
            None => Ok(()),
            Some((topic, number)) => Err(format!("message {number} to {} is not answered", TOPICS[*topic])),
        }
    }
}
