//! The rounds in which probes are sent and awaited.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use deeperhub_cluster::Broker;
use deeperhub_listener::RestartDelay;
use tracing::{error, warn};

use super::target::{Probe, ProbeTarget, State};
use super::{Canary, ProbePublisher};

/// Number of slices in which the thread waits for the timeout. A process that was suspended uses up
/// only one slice when it resumes, not the whole timeout.
const TIMEOUT_SLICES: u32 = 4;

impl Canary {
    /// Sends probes until the node stops. Restarts with a backoff after a panic.
    pub(super) fn run(&self, publisher: &impl ProbePublisher) {
        let mut delay = RestartDelay::default();
        loop {
            let began = Instant::now();
            if catch_unwind(AssertUnwindSafe(|| self.probe_until_stopped(publisher))).is_ok() {
                return;
            }
            self.metrics.restarts.inc();
            error!("Canary thread panicked; restarting");
            if self.is_stopped_within(delay.after(began.elapsed())) {
                return;
            }
        }
    }

    /// Waits for `time`, or until the canary is stopped. Returns `true` if it is stopped.
    fn is_stopped_within(&self, time: Duration) -> bool {
        let result = self.changed.wait_timeout_while(self.state(), time, |state| !state.is_stopped);
        result.unwrap_or_else(PoisonError::into_inner).0.is_stopped
    }

    fn probe_until_stopped(&self, publisher: &impl ProbePublisher) {
        loop {
            #[cfg(test)]
            super::tests::panic_if_requested(self);
            let began = Instant::now();
            let broker_state = publisher.broker().map(Broker::watch);
            self.mark_due(publisher.broker().is_some_and(Broker::is_up), publisher.uses_store());
            self.run_probes(publisher);
            let stayed_connected = broker_state.is_some_and(|state| matches!(state.has_changed(), Ok(false)));
            self.record_missed(stayed_connected);
            if self.is_stopped_within(self.config.interval.saturating_sub(began.elapsed())) {
                return;
            }
        }
    }

    /// Marks the targets that get a probe in this interval.
    pub(super) fn mark_due(&self, is_broker_connected: bool, uses_store: bool) {
        let mut state = self.state();
        // A worker whose probe is open gets no other.
        for target in state.workers.iter_mut().filter(|target| !target.probe.is_open()) {
            target.start_probe();
        }
        if let Some(target) = &mut state.broker {
            if is_broker_connected {
                // The broker may have lost the last probe, so a new one replaces it.
                target.start_probe();
            } else {
                // No probe is needed: `Hub::broker_fault` reports a disconnected broker.
                *target = ProbeTarget { last_round_trip: target.last_round_trip, ..Default::default() };
            }
        }
        match &mut state.store {
            Some(store) if is_broker_connected && uses_store => store.start_probe(),
            Some(store) => store.pause(),
            None => {}
        }
    }

    /// Publishes due probes, and waits until all have returned or the timeout is over.
    fn run_probes(&self, publisher: &impl ProbePublisher) {
        for _ in 0..TIMEOUT_SLICES {
            let slice = self.config.timeout / TIMEOUT_SLICES;
            // The end is `None` if it is beyond the range of the clock.
            let slice_end = Instant::now().checked_add(slice);
            loop {
                self.publish_due(publisher);
                let must_wait = |state: &mut State| {
                    !state.is_stopped && !state.has_new_subscriber && state.has_open_probe()
                };
                let remaining = slice_end.map_or(slice, |end| end.saturating_duration_since(Instant::now()));
                let result = self.changed.wait_timeout_while(self.state(), remaining, must_wait);
                let (mut state, wait) = result.unwrap_or_else(PoisonError::into_inner);
                state.has_new_subscriber = false;
                if state.is_stopped || !state.has_open_probe() {
                    return;
                }
                if wait.timed_out() {
                    break;
                }
            }
        }
    }

    fn publish_due(&self, publisher: &impl ProbePublisher) {
        let (mut worker_probes, mut broker_probe, mut store_probe) = (Vec::new(), None, None);
        {
            let mut state = self.state();
            let State { workers, broker, store, next_number, .. } = &mut *state;
            for (worker, target) in workers.iter_mut().enumerate() {
                worker_probes.extend(target.take_due(next_number).map(|number| (worker, number)));
            }
            if let Some(target) = broker {
                broker_probe = target.take_due(next_number);
            }
            if let Some(store) = store {
                store_probe = store.target.take_due(next_number);
            }
        }
        for (worker, number) in worker_probes {
            if publisher.publish_probe(worker, number) == 0 {
                // The worker has not subscribed yet. It calls `on_worker_subscribed` later.
                self.mark_due_again(number);
            }
        }
        if let (Some(broker), Some(number)) = (publisher.broker(), broker_probe)
            && broker.probe(number).is_err()
        {
            self.mark_due_again(number);
        }
        if let Some(number) = store_probe
            && !publisher.publish_store_probe(number)
        {
            self.mark_due_again(number);
        }
    }

    /// Makes a pending probe due again, because it was not sent, or because it returned from the
    /// broker but reached no worker.
    pub(super) fn mark_due_again(&self, number: u64) {
        for target in self.state().targets_mut() {
            if target.probe.is_pending(number) {
                target.probe = Probe::Due;
            }
        }
    }

    /// Counts open probes as missed, each only once. `stayed_connected` is `true` if the state of
    /// the broker's connection did not change meanwhile. If it is `false`, the probes through broker
    /// and store do not count.
    pub(super) fn record_missed(&self, stayed_connected: bool) {
        let mut state = self.state();
        if state.is_stopped {
            return;
        }
        for (worker, target) in state.workers.iter_mut().enumerate() {
            let was_failing = target.is_failing();
            if target.mark_missed() {
                self.metrics.missed.inc();
                if !was_failing {
                    warn!(worker, "Probe did not return in time; node unready");
                }
            }
        }
        if stayed_connected {
            self.record_missed_by_store(&mut state);
        }
        // Until a worker has subscribed, no probe can return, even if the broker works.
        let can_return = stayed_connected && state.workers.iter().any(|target| target.is_subscribed);
        if let Some(target) = &mut state.broker
            && can_return
        {
            let was_failing = target.is_failing();
            if target.mark_missed() {
                self.cluster_metrics.missed.inc();
                if !was_failing {
                    warn!("Broker probe did not return in time");
                }
            }
        }
    }
}
