//! Places at which the node has stored what clients publish.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::socket::Place;

/// Time for which the node recognises a repeated publish, less the second that its clock rounds.
const ONCE_TIME: Duration = Duration::from_secs(119);

/// The messages of clients that the node has stored.
#[derive(Debug, Default)]
pub(super) struct StoredPublishes {
    /// The last number of each client in the log of each topic.
    last: BTreeMap<(u8, usize), u64>,
    /// Places of each message, and the times when it was stored.
    places: BTreeMap<u64, Vec<(Place, Duration)>>,
}

impl StoredPublishes {
    /// Notes that the node has stored a client's message.
    pub(super) fn on_stored(
        &mut self,
        client: u8,
        (topic, number): (usize, u64),
        place: Place,
        now: Duration,
    ) -> Result<(), String> {
        let places = self.places.entry(number).or_default();
        let is_repeated = |(other, at): &(Place, Duration)| other.0 == place.0 && now - *at < ONCE_TIME;
        if let Some((first, _)) = places.iter().find(|stored| is_repeated(stored)) {
            return Err(format!("message {number} is stored at {first:?} and at {place:?}"));
        }
        places.push((place, now));
        let last = self.last.entry((client, topic)).or_default();
        if number < *last {
            return Err(format!("message {number} is stored after {last}"));
        }
        *last = number;
        Ok(())
    }

    /// Returns `true` if a message was stored at a place.
    pub(super) fn is_stored(&self, number: u64, place: Place) -> bool {
        self.places.get(&number).is_some_and(|places| places.iter().any(|(stored, _)| *stored == place))
    }
}
