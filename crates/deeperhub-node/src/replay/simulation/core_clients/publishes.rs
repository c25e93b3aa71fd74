//! Checks of what clients publish: once, in order, and where the answer says.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use deeperhub_client::core::RequestId;
use deeperhub_client::{Error, Published};
use deeperhub_protocol::Epoch;

use super::super::log::TopicLog;
use super::super::socket::Place;
use super::super::topics::TOPICS;
use super::operation::CLIENTS;

/// Time for which the node recognises a repeated publish, less the second that its clock rounds.
const ONCE_TIME: Duration = Duration::from_secs(119);

/// The publishes of one client.
#[derive(Debug, Default)]
struct OfClient {
    /// Topic and number of publishes without an answer.
    open: BTreeMap<RequestId, (usize, u64)>,
    /// Numbers of messages that the client is not to get.
    excluded: BTreeSet<u64>,
    /// The last number in the log of each topic.
    stored: BTreeMap<usize, u64>,
    /// The last acknowledged number of each topic.
    acknowledged: BTreeMap<usize, u64>,
    acknowledgements: usize,
}

/// The publishes of all clients.
#[derive(Debug)]
pub(super) struct Publishes {
    by_client: Vec<OfClient>,
    /// Places of each message, and the times when it was stored.
    places: BTreeMap<u64, Vec<(Place, Duration)>>,
}

impl Default for Publishes {
    fn default() -> Self {
        let by_client = (0..CLIENTS).map(|_| OfClient::default()).collect();
        Self { by_client, places: BTreeMap::new() }
    }
}

impl Publishes {
    /// Notes a publish that a client was asked for.
    pub(super) fn on_asked(
        &mut self,
        client: u8,
        (id, topic, number): (RequestId, usize, u64),
        is_excluded: bool,
    ) {
        let client = &mut self.by_client[usize::from(client)];
        client.open.insert(id, (topic, number));
        if is_excluded {
            client.excluded.insert(number);
        }
    }

    /// Notes that the node has stored a client's message.
    pub(super) fn on_stored(
        &mut self,
        client: u8,
        (topic, number): (usize, u64),
        place: Place,
        now: Duration,
    ) -> Result<(), String> {
        let client = &mut self.by_client[usize::from(client)];
        let places = self.places.entry(number).or_default();
        let is_repeated = |(other, at): &(Place, Duration)| other.0 == place.0 && now - *at < ONCE_TIME;
        if let Some((first, _)) = places.iter().find(|stored| is_repeated(stored)) {
            return Err(format!("message {number} is stored at {first:?} and at {place:?}"));
        }
        places.push((place, now));
        let last = client.stored.entry(topic).or_default();
        if number < *last {
            return Err(format!("message {number} is stored after {last}"));
        }
        *last = number;
        Ok(())
    }

    /// Checks the answer that a client gives to its application.
    pub(super) fn on_answer(
        &mut self,
        client: u8,
        id: RequestId,
        result: Result<Published, Error>,
        logs: &[TopicLog],
    ) -> Result<(), String> {
        let client = &mut self.by_client[usize::from(client)];
        let (topic, number) = client.open.remove(&id).ok_or("a publish is answered twice")?;
        let published = match result {
            Ok(published) => published,
            Err(error) if error.code() == Error::TIMEOUT => return Ok(()),
            Err(error) => return Err(format!("message {number} fails: {error}")),
        };
        if &*published.topic != TOPICS[topic] {
            return Err(format!("message {number} is published to {}", published.topic));
        }
        client.acknowledgements += 1;
        let last = client.acknowledged.insert(topic, number).unwrap_or_default();
        if last >= number {
            return Err(format!("message {number} is acknowledged after {last}"));
        }
        let Some(position) = published.position else {
            let has_history = logs[topic].look.is_some();
            return if has_history { Err(format!("message {number} has no position")) } else { Ok(()) };
        };
        let epoch = Epoch::parse(&position.epoch).ok_or("a position has no epoch")?;
        let log = logs[topic].number(epoch).map(|number| &logs[topic].epochs[number]);
        let stored = log.and_then(|log| log.message(position.offset)).map(|message| message.number);
        let places = self.places.get(&number).map(Vec::as_slice).unwrap_or_default();
        let is_noted = places.iter().any(|(place, _)| *place == (epoch, position.offset));
        if stored != Some(number) || !is_noted {
            return Err(format!("message {number} is acknowledged at {position:?}, where {stored:?} is"));
        }
        Ok(())
    }

    /// Returns the numbers of messages that a client is not to get.
    pub(super) fn excluded(&self, client: usize) -> &BTreeSet<u64> {
        &self.by_client[client].excluded
    }

    /// Returns the number of publishes that succeeded.
    pub(super) fn acknowledgements(&self) -> usize {
        self.by_client.iter().map(|client| client.acknowledgements).sum()
    }

    /// Checks that all publishes of a client are answered.
    pub(super) fn check_answered(&self, client: usize) -> Result<(), String> {
        match self.by_client[client].open.values().next() {
            None => Ok(()),
            Some((topic, number)) => {
                Err(format!("message {number} of client {client} to {} is not answered", TOPICS[*topic]))
            }
        }
    }
}
