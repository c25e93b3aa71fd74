//! State of the probes.

use std::time::{Duration, Instant, SystemTime};

#[derive(Debug)]
pub(super) struct State {
    pub(super) workers: Vec<ProbeState>,
    /// Probe through the broker, if there is one.
    pub(super) cluster: Option<ProbeState>,
    /// Number of the next probe.
    pub(super) next: u64,
    /// A worker has subscribed since the thread last checked.
    pub(super) has_attached: bool,
    pub(super) is_stopped: bool,
}

/// Probe state of one worker, or of the broker.
#[derive(Debug, Default)]
pub(super) struct ProbeState {
    /// A probe is due and was not sent yet.
    pub(super) is_due: bool,
    /// Number and start time of the pending probe.
    pub(super) outstanding: Option<(u64, Instant)>,
    /// Round-trip time of the last probe that returned.
    pub(super) round_trip: Option<Duration>,
    /// Whether the worker has subscribed.
    pub(super) is_attached: bool,
    /// Time of the first missed probe since one last returned in time.
    pub(super) failing_since: Option<SystemTime>,
}

impl ProbeState {
    pub(super) fn is_pending(&self) -> bool {
        self.is_due || self.outstanding.is_some()
    }

    /// Completes the pending probe if it has this number. Returns its round-trip time, and whether
    /// it was missed before.
    pub(super) fn complete(&mut self, number: u64, now: Instant) -> Option<(Duration, bool)> {
        let (_, since) = self.outstanding.take_if(|(outstanding, _)| *outstanding == number)?;
        let round_trip = now.saturating_duration_since(since);
        self.round_trip = Some(round_trip);
        Some((round_trip, self.failing_since.take().is_some()))
    }

    /// Marks a pending probe as missed. Returns `true` if it was not marked before.
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

    /// Marks a probe as pending and returns its number.
    pub(super) fn assign_number(next: &mut u64, probed: &mut ProbeState) -> u64 {
        let number = *next;
        *next += 1;
        // Set before the publish, because the answer may arrive at once.
        probed.outstanding = Some((number, Instant::now()));
        probed.is_due = false;
        number
    }
}
