//! An application that checks what one handle tells it.

use std::collections::{BTreeMap, BTreeSet};

use deeperhub_client::{Event, Gap, Message, Position, SubscriptionState};

use super::super::socket::Payload;
use super::log::{Place, TopicLog};
use super::settings::is_lossless;

/// Counts of what happened in a run.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Progress {
    pub(super) messages: usize,
    pub(super) gaps: usize,
    pub(super) epochs: usize,
    pub(super) recovered: usize,
    pub(super) missed: usize,
    pub(super) acknowledgements: usize,
}

impl Progress {
    pub(super) fn add(&mut self, other: &Self) {
        self.messages += other.messages;
        self.gaps += other.gaps;
        self.epochs += other.epochs;
        self.recovered += other.recovered;
        self.missed += other.missed;
        self.acknowledgements += other.acknowledgements;
    }

    /// Returns `true` if everything happened.
    pub(super) fn has_everything(&self) -> bool {
        let Self { messages, gaps, epochs, recovered, missed, acknowledgements } = *self;
        [messages, gaps, epochs, recovered, missed, acknowledgements].iter().all(|count| *count > 0)
    }
}

/// The events of a handle so far.
#[derive(Debug)]
pub(super) struct Application {
    is_lossless: bool,
    /// Where the handle stands, as it was told.
    pub(super) at: Option<Place>,
    seen: BTreeSet<Place>,
    /// Numbers of the messages of each epoch.
    numbers: BTreeSet<(u64, u64)>,
    /// The last offset of each epoch.
    last: BTreeMap<u64, u64>,
    /// The gaps since the handle was told that it recovers.
    gaps_in_recovery: Option<usize>,
    pub(super) progress: Progress,
}

impl Application {
    pub(super) fn new(topic: usize) -> Self {
        Self {
            is_lossless: is_lossless(topic),
            at: None,
            seen: BTreeSet::new(),
            numbers: BTreeSet::new(),
            last: BTreeMap::new(),
            gaps_in_recovery: None,
            progress: Progress::default(),
        }
    }

    /// Sets the position before the first message.
    pub(super) fn start(&mut self, position: &Position, log: &mut TopicLog) -> Result<(), String> {
        let place = log.place(position)?;
        log.told.insert(place);
        self.at = Some(place);
        Ok(())
    }

    /// Checks an event. `own` has the numbers of messages that the client is not to get.
    pub(super) fn on_event(
        &mut self,
        event: &Event,
        log: &mut TopicLog,
        own: &BTreeSet<u64>,
    ) -> Result<(), String> {
        match event {
            Event::Message(message) => self.on_message(message, log, own),
            Event::Gap(gap) => self.on_gap(gap, log, own),
            Event::State(state) => self.on_state(state),
            _ => Ok(()),
        }
    }

    fn on_message(
        &mut self,
        message: &Message,
        log: &mut TopicLog,
        own: &BTreeSet<u64>,
    ) -> Result<(), String> {
        let Payload { n: number } = message.message().map_err(|error| error.to_string())?;
        self.progress.messages += 1;
        let Some(position) = &message.position else {
            // A topic without history for now.
            self.at = None;
            return Ok(());
        };
        let place = log.place(position)?;
        let (epoch, offset) = place;
        log.told.insert(place);
        if !log.epochs.get(&epoch).is_some_and(|log| log.has(offset, number)) {
            return Err(format!("message {number} never stood at {place:?}"));
        }
        let is_forked = log.epochs.get(&epoch).is_some_and(|log| log.is_forked);
        if !self.seen.insert(place) && !is_forked || !self.numbers.insert((epoch, number)) {
            return Err(format!("message {number} comes twice"));
        }
        let last = self.last.insert(epoch, offset).unwrap_or_default();
        if last >= offset && !is_forked {
            return Err(format!("offset {offset} comes after {last}"));
        }
        if self.is_lossless
            && let Some(at) = self.at
        {
            pass(at, place, log, own)?;
        }
        self.at = Some(place);
        Ok(())
    }

    fn on_gap(&mut self, gap: &Gap, log: &mut TopicLog, own: &BTreeSet<u64>) -> Result<(), String> {
        self.progress.gaps += 1;
        self.gaps_in_recovery = self.gaps_in_recovery.map(|gaps| gaps + 1);
        let Some(position) = &gap.position else {
            // A topic without history for now.
            self.at = None;
            return Ok(());
        };
        let place = log.place(position)?;
        log.told.insert(place);
        let Some(epoch) = log.epochs.get(&place.0) else { return Ok(()) };
        if place.1 > epoch.newest() && !epoch.has_lost {
            return Err(format!("a gap ends after {}", epoch.newest()));
        }
        let has_same_epoch = self.at.is_some_and(|at| at.0 == place.0);
        if &*gap.reason == "epoch" && has_same_epoch && !epoch.has_lost {
            return Err(format!("a good position is refused, at {:?}", self.at));
        }
        match (gap.from, gap.to) {
            (Some(from), Some(to)) => {
                if to != place.1 || from > to || from == 0 {
                    return Err("a gap has no messages".to_owned());
                }
                if let Some(at) = self.at.filter(|_| self.is_lossless) {
                    pass(at, (place.0, from), log, own)?;
                }
            }
            // Its length is unknown, as that of a new epoch is.
            _ if self.at.is_some_and(|at| at > place) => {
                return Err(format!("a gap leads back from {:?}", self.at));
            }
            _ => self.progress.epochs += usize::from(&*gap.reason == "epoch"),
        }
        self.at = Some(place);
        Ok(())
    }

    fn on_state(&mut self, state: &SubscriptionState) -> Result<(), String> {
        match state {
            SubscriptionState::Recovering => self.gaps_in_recovery = Some(0),
            SubscriptionState::Live { recovered, .. } => {
                let gaps = self.gaps_in_recovery.take();
                if self.is_lossless && *recovered == Some(true) && gaps.is_some_and(|gaps| gaps > 0) {
                    return Err(format!("a handle has recovered with {gaps:?} gaps"));
                }
                self.progress.recovered += usize::from(*recovered == Some(true));
                self.progress.missed += usize::from(*recovered == Some(false));
            }
            _ => {}
        }
        Ok(())
    }

    /// Checks that the handle is at the newest message of the store. `position` is the client's own.
    /// `is_published` says that there is a message since the topic has got its history.
    pub(super) fn check_arrived(
        &self,
        position: Option<&Position>,
        log: &TopicLog,
        (epoch, is_published): (u64, bool),
        own: &BTreeSet<u64>,
    ) -> Result<(), String> {
        let position = position.map(|position| log.place(position)).transpose()?;
        // An application is not told of own messages.
        let at = if self.is_lossless { self.at.or(position) } else { position };
        // A topic can have got its history later, and no message since.
        let Some(at) = at else {
            return if is_published { Err("a handle has no position".to_owned()) } else { Ok(()) };
        };
        if at.0 != epoch {
            return Err(format!("a handle stays in the epoch {}, and the store is in {epoch}", at.0));
        }
        match log.epochs.get(&epoch).and_then(|log| log.first_between(at.1, u64::MAX, own)) {
            Some(offset) if self.is_lossless => Err(format!("offset {offset} after {at:?} does not come")),
            _ => Ok(()),
        }
    }
}

/// Checks that only own messages are between a place and a later one.
fn pass(at: Place, to: Place, log: &TopicLog, own: &BTreeSet<u64>) -> Result<(), String> {
    let Some(epoch) = log.epochs.get(&to.0) else { return Ok(()) };
    if at.0 != to.0 {
        return Err(format!("the epoch of {to:?} is not told at {at:?}"));
    }
    if at.1 >= to.1 && !epoch.is_forked {
        return Err(format!("{to:?} comes at {at:?}"));
    }
    match epoch.first_between(at.1, to.1, own) {
        None => Ok(()),
        Some(offset) => Err(format!("offset {offset} after {at:?} is neither handed over nor told")),
    }
}
