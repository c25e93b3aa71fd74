//! Targets of probes, and the state of their probes.

use std::time::{Duration, Instant, SystemTime};

#[derive(Debug)]
pub(super) struct State {
    pub(super) workers: Vec<ProbeTarget>,
    /// The broker, if there is a cluster.
    pub(super) broker: Option<ProbeTarget>,
    /// The cluster's store, if the broker can keep streams.
    pub(super) store: Option<StoreTarget>,
    /// Number of the next probe that is sent.
    pub(super) next_number: u64,
    /// `true` if a worker has subscribed since the canary thread last checked.
    pub(super) has_new_subscriber: bool,
    pub(super) is_stopped: bool,
}

impl State {
    pub(super) fn targets_mut(&mut self) -> impl Iterator<Item = &mut ProbeTarget> {
        let store = self.store.as_mut().map(|store| &mut store.target);
        self.workers.iter_mut().chain(&mut self.broker).chain(store)
    }

    pub(super) fn has_open_probe(&self) -> bool {
        let store = self.store.as_ref().map(|store| &store.target);
        self.workers.iter().chain(&self.broker).chain(store).any(|target| target.probe.is_open())
    }
}

/// Latest probe of a target. The probe is open while it is due or pending.
#[derive(Debug, Default)]
pub(super) enum Probe {
    /// The probe has returned, or none was due yet.
    #[default]
    None,
    /// The probe must be sent.
    Due,
    /// The probe was sent and has not returned.
    Pending { number: u64, sent_at: Instant },
}

impl Probe {
    pub(super) fn is_open(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// Returns `true` if the probe with this number is pending.
    pub(super) fn is_pending(&self, number: u64) -> bool {
        matches!(self, Self::Pending { number: pending, .. } if *pending == number)
    }
}

/// A worker, the broker, or the store.
#[derive(Debug, Default)]
pub(super) struct ProbeTarget {
    pub(super) probe: Probe,
    /// `true` if the open probe was counted as missed.
    pub(super) is_missed: bool,
    /// Round-trip time of the last probe that returned.
    pub(super) last_round_trip: Option<Duration>,
    /// `true` if the worker has subscribed to its topic. It stays `false` for other
    /// targets.
    pub(super) is_subscribed: bool,
    /// Time at which the target began to fail. `None` if it is not failing.
    pub(super) failing_since: Option<SystemTime>,
}

impl ProbeTarget {
    pub(super) fn is_failing(&self) -> bool {
        self.failing_since.is_some()
    }

    /// Makes a new probe due, which replaces an open one.
    pub(super) fn start_probe(&mut self) {
        self.probe = Probe::Due;
        self.is_missed = false;
    }

    /// Marks a due probe as pending and returns its number, which is taken from `next_number`.
    /// Returns `None` if no probe is due.
    pub(super) fn take_due(&mut self, next_number: &mut u64) -> Option<u64> {
        let Probe::Due = self.probe else { return None };
        let number = *next_number;
        *next_number += 1;
        // The probe is pending before the caller sends it, because it may return at once.
        self.probe = Probe::Pending { number, sent_at: Instant::now() };
        Some(number)
    }

    /// Completes the pending probe if it has this number, and ends a failure of the target. Returns
    /// the round-trip time, and `true` if the target was failing.
    pub(super) fn complete(&mut self, number: u64, now: Instant) -> Option<(Duration, bool)> {
        let Probe::Pending { number: pending, sent_at } = self.probe else { return None };
        if pending != number {
            return None;
        }
        self.probe = Probe::None;
        let round_trip = now.saturating_duration_since(sent_at);
        self.last_round_trip = Some(round_trip);
        Some((round_trip, self.failing_since.take().is_some()))
    }

    /// Marks an open probe as missed, so that the target is failing. Returns `true` if it was not
    /// marked before.
    pub(super) fn mark_missed(&mut self) -> bool {
        let is_newly_missed = self.probe.is_open() && !self.is_missed;
        if is_newly_missed {
            self.is_missed = true;
            self.failing_since.get_or_insert_with(SystemTime::now);
        }
        is_newly_missed
    }
}

/// Step of a probe that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum StoreStep {
    /// The node subscribes to the topic, and reads its position.
    #[default]
    Follow,
    Append,
    /// The node waits for the message.
    Receive,
    Read,
}

impl StoreStep {
    /// Returns what the store has not done.
    const fn missing(self) -> &'static str {
        match self {
            Self::Follow => "the position of a probe's topic was not read",
            Self::Append => "a probe was not appended",
            Self::Receive => "an appended probe did not arrive at this node",
            Self::Read => "an appended probe was not read back",
        }
    }
}

/// The store as a target of probes.
#[derive(Debug, Default)]
pub(super) struct StoreTarget {
    pub(super) target: ProbeTarget,
    pub(super) step: StoreStep,
    /// Error of the step, if there was one.
    pub(super) fault: Option<String>,
    /// Step that was missing when the last probe was missed.
    pub(super) failure: String,
}

impl StoreTarget {
    pub(super) fn start_probe(&mut self) {
        self.target.start_probe();
        (self.step, self.fault) = (StoreStep::Follow, None);
    }

    /// Forgets a failure, because no probe is sent.
    pub(super) fn pause(&mut self) {
        let last_round_trip = self.target.last_round_trip;
        *self = Self { target: ProbeTarget { last_round_trip, ..Default::default() }, ..Default::default() };
    }

    pub(super) fn describe(&self) -> String {
        let missing = self.step.missing();
        match &self.fault {
            Some(fault) => format!("{missing} in time: {fault}"),
            None => format!("{missing} in time"),
        }
    }
}
