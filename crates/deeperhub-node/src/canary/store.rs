//! Probes of the cluster's store.
//!
//! A probe is a message on a topic of this node alone. The node follows the topic, appends the
//! message, gets it from the store like a subscriber's node, and reads it back. All of this uses the
//! code and the connections of clients' topics (`mirrors/probe.rs`).

use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::Canary;
use super::target::{State, StoreStep, StoreTarget};
use crate::health::{HealthCheck, UnreadyReason};

impl Canary {
    /// Records the step of a probe that begins.
    pub(crate) fn on_store_step(&self, number: u64, step: StoreStep) {
        self.with_store_probe(number, |store| (store.step, store.fault) = (step, None));
    }

    /// Records an error of the current step.
    pub(crate) fn on_store_fault(&self, number: u64, fault: String) {
        self.with_store_probe(number, |store| store.fault = Some(fault));
    }

    fn with_store_probe(&self, number: u64, update: impl FnOnce(&mut StoreTarget)) {
        if let Some(store) = &mut self.state().store
            && store.target.probe.is_pending(number)
        {
            update(store);
        }
    }

    /// Records that a probe was read back.
    pub(crate) fn on_store_probe_returned(&self, number: u64) {
        let now = Instant::now();
        let completed = self.state().store.as_mut().and_then(|store| store.target.complete(number, now));
        let Some((round_trip, was_failing)) = completed else { return };
        if was_failing {
            info!(?round_trip, "Store probes return again");
        }
        self.store_metrics.round_trips.observe_duration(round_trip);
        self.changed.notify_all();
    }

    /// Counts an open probe of the store as missed.
    pub(super) fn record_missed_by_store(&self, state: &mut State) {
        let Some(store) = &mut state.store else { return };
        let was_failing = store.target.is_failing();
        if store.target.mark_missed() {
            store.failure = store.describe();
            self.store_metrics.missed.inc();
            if !was_failing {
                warn!(reason = store.failure, "Store probe did not return in time");
            }
        }
    }

    /// Returns the last round-trip time through the store, or `None` before the first probe has
    /// returned.
    pub(crate) fn last_store_round_trip(&self) -> Option<Duration> {
        self.state().store.as_ref()?.target.last_round_trip
    }

    /// Returns the reason why the node is unready if the store is failing.
    pub(crate) fn store_unready_reason(&self) -> Option<UnreadyReason> {
        let state = self.state();
        let store = state.store.as_ref()?;
        let since = store.target.failing_since?;
        Some(UnreadyReason {
            check: HealthCheck::Cluster,
            code: "store_stalled",
            message: format!("the cluster's store of history failed: {}", store.failure).into(),
            worker: None,
            since: Some(since),
        })
    }
}
