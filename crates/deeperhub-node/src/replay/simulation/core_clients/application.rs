//! An application that checks what one handle tells it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use deeperhub_client::{Event, Gap, Message, Position, SubscriptionState};
use deeperhub_history::Delivery;
use deeperhub_protocol::Epoch;

use super::super::log::{EpochLog, TopicLog};
use super::super::socket::Payload;
use super::super::topics::TOPICS;

/// Counts of what happened in a run.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) acknowledgements: usize,
    messages: usize,
    gaps: usize,
    /// Times at which a handle was live again, and had missed nothing.
    recovered: usize,
    /// Times at which a handle was live again, and had missed messages.
    missed: usize,
    /// Own messages that were skipped.
    excluded: usize,
}

impl Progress {
    pub(super) fn add(&mut self, other: &Self) {
        self.acknowledgements += other.acknowledgements;
        self.messages += other.messages;
        self.gaps += other.gaps;
        self.recovered += other.recovered;
        self.missed += other.missed;
        self.excluded += other.excluded;
    }

    /// Returns `true` if everything happened.
    pub(super) fn has_everything(&self) -> bool {
        let Self { acknowledgements, messages, gaps, recovered, missed, excluded } = *self;
        [acknowledgements, messages, gaps, recovered, missed, excluded].iter().all(|count| *count > 0)
    }
}

/// Number of an epoch, and an offset in it.
type Place = (usize, u64);

/// The events of a handle so far.
#[derive(Debug)]
pub(super) struct Application {
    /// Each message comes, or a gap tells that it is missing.
    is_lossless: bool,
    /// Where the handle stands, as it was told.
    at: Option<Place>,
    seen: BTreeSet<Place>,
    /// The last offset of each epoch.
    last: BTreeMap<usize, u64>,
    /// The last message without a position of each publisher.
    last_numbers: BTreeMap<Option<Arc<str>>, u64>,
    /// The gaps since the handle was told that it recovers.
    gaps_in_recovery: Option<usize>,
    pub(super) progress: Progress,
}

impl Application {
    pub(super) fn new(topic: usize) -> Self {
        Self {
            is_lossless: ["loss.", "shut."].iter().any(|prefix| TOPICS[topic].starts_with(prefix)),
            at: None,
            seen: BTreeSet::new(),
            last: BTreeMap::new(),
            last_numbers: BTreeMap::new(),
            gaps_in_recovery: None,
            progress: Progress::default(),
        }
    }

    /// Sets the position before the first message.
    pub(super) fn start(&mut self, position: &Position, log: &TopicLog) -> Result<(), String> {
        self.at = Some(place_of(position, log)?);
        Ok(())
    }

    /// Checks an event. `own` has the numbers of messages that the client is not to get.
    pub(super) fn on_event(
        &mut self,
        event: &Event,
        log: &TopicLog,
        own: &BTreeSet<u64>,
    ) -> Result<(), String> {
        match event {
            Event::Message(message) => self.on_message(message, log, own),
            Event::Gap(gap) if self.is_lossless => self.on_gap(gap, log, own),
            Event::State(state) if self.is_lossless => self.on_state(state),
            _ => Ok(()),
        }
    }

    fn on_message(&mut self, message: &Message, log: &TopicLog, own: &BTreeSet<u64>) -> Result<(), String> {
        let Payload { n: number } = message.message().map_err(|error| error.to_string())?;
        self.progress.messages += 1;
        let Some(position) = &message.position else {
            // Without history, a publisher whose answer was lost publishes twice.
            let last = self.last_numbers.insert(message.from.clone(), number).unwrap_or_default();
            if log.look.is_some() || number < last {
                return Err(format!("message {number} without a position comes after {last}"));
            }
            return Ok(());
        };
        let place = place_of(position, log)?;
        let (epoch, offset) = place;
        let published = log.epochs[epoch].message(offset).map(|message| message.number);
        if published != Some(number) {
            return Err(format!("message {number} stands in place of {published:?}"));
        }
        if !self.seen.insert(place) {
            return Err(format!("message {number} comes twice"));
        }
        let last = self.last.insert(epoch, offset).unwrap_or_default();
        if last > offset {
            return Err(format!("offset {offset} comes after {last}"));
        }
        if self.is_lossless {
            if let Some(at) = self.at {
                self.pass(at, place, log, own)?;
            }
            self.at = Some(place);
        }
        Ok(())
    }

    /// Checks that only own messages are between a place and a later one.
    fn pass(&mut self, at: Place, to: Place, log: &TopicLog, own: &BTreeSet<u64>) -> Result<(), String> {
        if at.0 != to.0 {
            return Err(format!("the epoch of {to:?} is not told at {at:?}"));
        }
        if at.1 >= to.1 {
            return Err(format!("{to:?} comes at {at:?}"));
        }
        check_own(&log.epochs[at.0], at.1, to.1 - 1, own)?;
        self.progress.excluded += (to.1 - 1 - at.1) as usize;
        Ok(())
    }

    fn on_gap(&mut self, gap: &Gap, log: &TopicLog, own: &BTreeSet<u64>) -> Result<(), String> {
        self.progress.gaps += 1;
        self.gaps_in_recovery = self.gaps_in_recovery.map(|gaps| gaps + 1);
        let position = gap.position.as_ref().ok_or("a gap has no position")?;
        let place = place_of(position, log)?;
        let epoch = &log.epochs[place.0];
        if place.1 > epoch.newest() {
            return Err(format!("a gap ends after {}", epoch.newest()));
        }
        match (gap.from, gap.to) {
            (Some(from), Some(to)) => {
                if to != place.1 || from > to || from == 0 {
                    return Err("a gap has no messages".to_owned());
                }
                if let Some(at) = self.at {
                    self.pass(at, (place.0, from), log, own)?;
                }
            }
            // Its length is unknown, as that of a new epoch is.
            _ if self.at.is_some_and(|at| at > place) => {
                return Err(format!("a gap leads back from {:?}", self.at));
            }
            _ => {}
        }
        self.at = Some(place);
        Ok(())
    }

    fn on_state(&mut self, state: &SubscriptionState) -> Result<(), String> {
        match state {
            SubscriptionState::Recovering => self.gaps_in_recovery = Some(0),
            SubscriptionState::Live { recovered, .. } => {
                let gaps = self.gaps_in_recovery.take();
                if *recovered == Some(true) && gaps.is_some_and(|gaps| gaps > 0) {
                    return Err(format!("a handle has recovered with {gaps:?} gaps"));
                }
                self.progress.recovered += usize::from(*recovered == Some(true));
                self.progress.missed += usize::from(*recovered == Some(false));
            }
            _ => {}
        }
        Ok(())
    }

    /// Checks that the handle is at the newest message. `position` is the client's own.
    pub(super) fn check_arrived(
        &self,
        position: Option<&Position>,
        log: &TopicLog,
        own: &BTreeSet<u64>,
    ) -> Result<(), String> {
        let Some(look) = log.look else { return Ok(()) };
        let position = position.map(|position| place_of(position, log)).transpose()?;
        // An application is not told of own messages, and by other deliveries not of each one.
        let at = if self.is_lossless { self.at.or(position) } else { position };
        let Some(at) = at else { return Err("a handle has no position".to_owned()) };
        let epoch = &log.epochs[at.0];
        let is_sampled = matches!(look.delivery, Delivery::Sample { .. });
        match epoch.epoch == look.epoch {
            _ if is_sampled => Ok(()),
            true => check_own(epoch, at.1, look.newest, own),
            false => Err(format!("a handle stays in the epoch {}", epoch.epoch)),
        }
    }
}

/// Checks that the messages after an offset up to another one are own ones.
fn check_own(epoch: &EpochLog, after: u64, until: u64, own: &BTreeSet<u64>) -> Result<(), String> {
    let is_own = |offset: &u64| epoch.message(*offset).is_some_and(|message| own.contains(&message.number));
    match (after + 1..=until).find(|offset| !is_own(offset)) {
        None => Ok(()),
        Some(offset) => Err(format!("offset {offset} after {after} is neither handed over nor told")),
    }
}

fn place_of(position: &Position, log: &TopicLog) -> Result<Place, String> {
    let epoch = Epoch::parse(&position.epoch).and_then(|epoch| log.number(epoch));
    Ok((epoch.ok_or_else(|| format!("the epoch of {position:?} is unknown"))?, position.offset))
}
