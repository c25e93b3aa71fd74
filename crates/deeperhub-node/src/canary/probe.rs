//! State of the probes.

use std::time::{Duration, Instant, SystemTime};

#[derive(Debug)]
pub(super) struct State {
    pub(super) workers: Vec<ProbeState>,
    /// The way by the broker, where there is one.
    pub(super) cluster: Option<ProbeState>,
    /// Number of the next probe.
    pub(super) next: u64,
    /// A worker began, so that a probe reaches it now.
    pub(super) has_attached: bool,
    pub(super) is_stopped: bool,
}

/// One worker, or the broker, as its probes show it.
#[derive(Debug, Default)]
pub(super) struct ProbeState {
    /// It is to get a probe, and has not got it yet.
    pub(super) is_due: bool,
    /// Number of the probe that is on its way, and since when.
    pub(super) outstanding: Option<(u64, Instant)>,
    /// How long the last one took.
    pub(super) round_trip: Option<Duration>,
    /// Whether the worker has subscribed.
    pub(super) is_attached: bool,
    /// When one was first missed, of those since the last that came back in time.
    pub(super) failing_since: Option<SystemTime>,
}

impl ProbeState {
    pub(super) fn is_pending(&self) -> bool {
        self.is_due || self.outstanding.is_some()
    }

    /// Takes a probe that came back, if it is the one that is on its way. Answers how long it took, and whether it was
    /// missed before.
    pub(super) fn complete(&mut self, number: u64, now: Instant) -> Option<(Duration, bool)> {
        let (_, since) = self.outstanding.take_if(|(outstanding, _)| *outstanding == number)?;
        let round_trip = now.saturating_duration_since(since);
        self.round_trip = Some(round_trip);
        Some((round_trip, self.failing_since.take().is_some()))
    }

    /// Takes down that it is missed, if it is and was not before.
    pub(super) fn mark_missed(&mut self) -> bool {
        let is_missed = self.is_pending() && self.failing_since.is_none();
        if is_missed {
            self.failing_since = Some(SystemTime::now());
        }
        is_missed
    }
}

impl State {
    pub(super) fn all_probes(&mut self) -> impl Iterator<Item = &mut ProbeState> {
        self.workers.iter_mut().chain(&mut self.cluster)
    }

    pub(super) fn is_pending(&self) -> bool {
        self.workers.iter().chain(&self.cluster).any(ProbeState::is_pending)
    }

    /// Notes that a probe goes on its way, and numbers it.
    pub(super) fn assign_number(next: &mut u64, probed: &mut ProbeState) -> u64 {
        let number = *next;
        *next += 1;
        // Before it goes: the answer may be there at once.
        probed.outstanding = Some((number, Instant::now()));
        probed.is_due = false;
        number
    }
}
