//! An application that checks what one handle tells it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use deeperhub_client::{Event, Gap, Message, Position, SubscriptionState};

use super::super::socket::Payload;
use super::log::{Log, Place};

/// Counts of what happened in a run.
#[derive(Debug, Default, Clone, Copy)]
pub(in super::super) struct Progress {
    pub(in super::super) acknowledgements: usize,
    pub(in super::super) messages: usize,
    pub(in super::super) gaps: usize,
    /// Gaps that told a new epoch.
    pub(in super::super) epochs: usize,
    /// Times at which a handle was live again, and had missed nothing.
    pub(in super::super) recovered: usize,
    /// Times at which a handle was live again, and had missed messages.
    pub(in super::super) missed: usize,
    /// Own messages that were skipped.
    pub(in super::super) excluded: usize,
}

impl Progress {
    pub(in super::super) const fn add(&mut self, other: &Self) {
        self.acknowledgements += other.acknowledgements;
        self.messages += other.messages;
        self.gaps += other.gaps;
        self.epochs += other.epochs;
        self.recovered += other.recovered;
        self.missed += other.missed;
        self.excluded += other.excluded;
    }

    /// Returns `true` if everything happened.
    pub(in super::super) fn has_everything(&self) -> bool {
        let Self { acknowledgements, messages, gaps, epochs, recovered, missed, excluded } = *self;
        [acknowledgements, messages, gaps, epochs, recovered, missed, excluded].iter().all(|count| *count > 0)
    }
}

/// The events of a handle so far.
#[derive(Debug)]
pub(in super::super) struct Application {
    /// Each message comes, or a gap tells that it is missing.
    is_lossless: bool,
    /// Where the handle stands, as it was told.
    at: Option<Place>,
    seen: BTreeSet<Place>,
    /// Numbers of the messages of each epoch.
    numbers: BTreeSet<(u64, u64)>,
    /// The last offset of each epoch.
    last: BTreeMap<u64, u64>,
    /// The last message without a position of each publisher.
    last_numbers: BTreeMap<Option<Arc<str>>, u64>,
    /// The gaps since the handle was told that it recovers.
    gaps_in_recovery: Option<usize>,
    pub(in super::super) progress: Progress,
}

impl Application {
    pub(super) fn new(is_lossless: bool) -> Self {
        Self {
            is_lossless,
            at: None,
            seen: BTreeSet::new(),
            numbers: BTreeSet::new(),
            last: BTreeMap::new(),
            last_numbers: BTreeMap::new(),
            gaps_in_recovery: None,
            progress: Progress::default(),
        }
    }

    /// Sets the position before the first message.
    pub(super) fn start(&mut self, position: &Position, log: &mut impl Log) -> Result<(), String> {
        self.at = Some(told_place(position, log)?);
        Ok(())
    }

    /// Checks an event. `own` has the numbers of messages that the client is not to get.
    pub(super) fn on_event(
        &mut self,
        event: &Event,
        log: &mut impl Log,
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
        log: &mut impl Log,
        own: &BTreeSet<u64>,
    ) -> Result<(), String> {
        let Payload { n: number } = message.message().map_err(|error| error.to_string())?;
        self.progress.messages += 1;
        let Some(position) = &message.position else {
            self.at = None;
            // Without history, a publisher whose answer was lost publishes twice.
            let last = self.last_numbers.insert(message.from.clone(), number).unwrap_or_default();
            if !log.may_lack_positions() || log.keeps_order_without_history() && number < last {
                return Err(format!("message {number} without a position comes after {last}"));
            }
            return Ok(());
        };
        let place = told_place(position, log)?;
        let (epoch, offset) = place;
        if !log.has(place, number) {
            return Err(format!("message {number} never stood at {place:?}"));
        }
        let is_forked = log.is_forked(epoch);
        let is_second = !self.numbers.insert((epoch, number)) && !log.is_repeated(epoch, number);
        if !self.seen.insert(place) && !is_forked || is_second {
            return Err(format!("message {number} comes twice"));
        }
        let last = self.last.insert(epoch, offset).unwrap_or_default();
        if last >= offset && !is_forked {
            return Err(format!("offset {offset} comes after {last}"));
        }
        if self.is_lossless
            && let Some(at) = self.at
        {
            self.pass(at, place, log, own)?;
        }
        self.at = Some(place);
        Ok(())
    }

    fn on_gap(&mut self, gap: &Gap, log: &mut impl Log, own: &BTreeSet<u64>) -> Result<(), String> {
        self.progress.gaps += 1;
        self.gaps_in_recovery = self.gaps_in_recovery.map(|gaps| gaps + 1);
        let Some(position) = &gap.position else {
            self.at = None;
            return if log.may_lack_positions() { Ok(()) } else { Err("a gap has no position".to_owned()) };
        };
        let place = told_place(position, log)?;
        if let Some(newest) = log.last_of_gap(place.0).filter(|newest| place.1 > *newest) {
            return Err(format!("a gap ends after {newest}"));
        }
        let has_same_epoch = self.at.is_some_and(|at| at.0 == place.0);
        if &*gap.reason == "epoch" && has_same_epoch && log.has_only_good_positions(place.0) {
            return Err(format!("a good position is refused, at {:?}", self.at));
        }
        match (gap.from, gap.to) {
            (Some(from), Some(to)) => {
                if to != place.1 || from > to || from == 0 {
                    return Err("a gap has no messages".to_owned());
                }
                if let Some(at) = self.at.filter(|_| self.is_lossless) {
                    self.pass(at, (place.0, from), log, own)?;
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

    /// Checks that only own messages are between a place and a later one.
    fn pass(&mut self, at: Place, to: Place, log: &impl Log, own: &BTreeSet<u64>) -> Result<(), String> {
        if at.0 != to.0 {
            return Err(format!("the epoch of {to:?} is not told at {at:?}"));
        }
        if at.1 >= to.1 && !log.is_forked(to.0) {
            return Err(format!("{to:?} comes at {at:?}"));
        }
        if let Some(offset) = log.first_between(at, to.1, own) {
            return Err(format!("offset {offset} after {at:?} is neither handed over nor told"));
        }
        self.progress.excluded += log.count_between(at, to.1);
        Ok(())
    }

    /// Checks that the handle is at the newest message of an epoch. `position` is the client's own.
    /// `must_have_position` says that there is a message since the topic has got its history.
    pub(in super::super) fn check_arrived(
        &self,
        position: Option<&Position>,
        log: &impl Log,
        (epoch, must_have_position): (u64, bool),
        own: &BTreeSet<u64>,
    ) -> Result<(), String> {
        let position = position.map(|position| log.place(position)).transpose()?;
        // An application is not told of own messages, and by other deliveries not of each one.
        let at = if self.is_lossless { self.at.or(position) } else { position };
        let Some(at) = at else {
            return if must_have_position { Err("a handle has no position".to_owned()) } else { Ok(()) };
        };
        if at.0 != epoch {
            return Err(format!("a handle stays in the epoch {}, and the newest one is {epoch}", at.0));
        }
        match log.first_between(at, u64::MAX, own) {
            Some(offset) if self.is_lossless || log.tells_newest_position() => {
                Err(format!("offset {offset} after {at:?} does not come"))
            }
            _ => Ok(()),
        }
    }
}

fn told_place(position: &Position, log: &mut impl Log) -> Result<Place, String> {
    let place = log.place(position)?;
    log.note_told(place);
    Ok(place)
}
