//! The canary: a thread that proves delivery with periodic test messages, called probes.
//!
//! Each worker subscribes to a reserved topic. At each interval the thread publishes a probe to
//! this topic, in the same way as any message, and the worker reports the delivered probe. In a
//! cluster, one more probe travels through the broker like a message for other nodes. When the
//! broker returns it, this node publishes it to a worker.
//!
//! If the cluster keeps streams, the store is probed as well (`store.rs`).
//!
//! Each worker, the broker and the store is a target of probes. A probe that does not return within the
//! timeout is missed. Its target is then failing until a probe of this target returns. While a
//! worker is failing, the node is unready. A failing broker or store also makes it unready, unless
//! [`ClusterConfig::ready_alone`](crate::ClusterConfig::ready_alone) is set.
//!
//! A worker gets no new probe before the last one has returned, so that probes do not accumulate in
//! its inbox.

mod rounds;
mod store;
mod target;
mod thread;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deeperhub_cluster::Broker;
use deeperhub_metrics::{RegisterError, Registry, Unit};
use deeperhub_protocol::Topic;
use tracing::info;

use crate::config::CanaryConfig;
use crate::health::{HealthCheck, UnreadyReason};
use crate::metrics::{CanaryMetrics, ClusterCanaryMetrics, StoreCanaryMetrics};
pub(crate) use target::StoreStep;
use target::{Probe, ProbeTarget, State, StoreTarget};
pub(crate) use thread::CanaryThread;

/// Publisher of probes: a node.
pub(crate) trait ProbePublisher {
    /// Publishes a probe to a worker in the same way as any message. Returns the number of
    /// subscribers: 1, or 0 if the worker has not subscribed yet.
    fn publish_probe(&self, worker: usize, number: u64) -> u64;

    /// Returns the connection to the other nodes, if there is a cluster.
    fn broker(&self) -> Option<&Broker>;

    /// Returns `true` if the cluster's store keeps messages of this node's rules.
    fn uses_store(&self) -> bool;

    /// Sends a probe to the cluster's store. Returns `false` if it was not sent.
    fn publish_store_probe(&self, number: u64) -> bool;
}

/// Targets of probes besides the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClusterTargets {
    /// There is no cluster.
    None,
    Broker,
    /// The broker can keep streams, too.
    BrokerAndStore,
}

/// State of the probes to all targets, with metrics.
#[derive(Debug)]
pub(crate) struct Canary {
    config: CanaryConfig,
    state: Mutex<State>,
    /// Notified when the state changes in a way for which the canary thread waits.
    changed: Condvar,
    metrics: CanaryMetrics,
    cluster_metrics: ClusterCanaryMetrics,
    store_metrics: StoreCanaryMetrics,
    /// Number of panics that a test has requested.
    #[cfg(test)]
    requested_panics: std::sync::atomic::AtomicUsize,
}

impl Canary {
    pub(crate) fn new(config: CanaryConfig, workers: usize, cluster: ClusterTargets) -> Self {
        let workers = (0..workers).map(|_| ProbeTarget::default()).collect();
        let broker = (cluster != ClusterTargets::None).then(ProbeTarget::default);
        let store = (cluster == ClusterTargets::BrokerAndStore).then(StoreTarget::default);
        Self {
            config,
            state: Mutex::new(State {
                workers,
                broker,
                store,
                next_number: 1,
                has_new_subscriber: false,
                is_stopped: false,
            }),
            changed: Condvar::new(),
            metrics: CanaryMetrics::default(),
            cluster_metrics: ClusterCanaryMetrics::default(),
            store_metrics: StoreCanaryMetrics::default(),
            #[cfg(test)]
            requested_panics: Default::default(),
        }
    }

    pub(crate) fn register(self: &Arc<Self>, registry: &mut Registry) -> Result<(), RegisterError> {
        self.metrics.register(registry)?;
        let canary = Arc::clone(self);
        registry.register_time_fn(
            "deeperhub_canary_last_round_trip_seconds",
            "Longest of the workers' last probe round-trip times",
            move || canary.last_round_trip().unwrap_or_default(),
        )?;
        let canary = Arc::clone(self);
        registry.register_gauge_fn(
            "deeperhub_canary_failing_workers",
            "Workers whose probe did not return in time",
            Unit::None,
            move || i64::try_from(canary.failing_workers()).unwrap_or(i64::MAX),
        )?;
        if self.state().broker.is_none() {
            return Ok(());
        }
        self.cluster_metrics.register(registry)?;
        let canary = Arc::clone(self);
        registry.register_time_fn(
            "deeperhub_canary_cluster_last_round_trip_seconds",
            "Round-trip time of the last probe through the broker",
            move || canary.last_cluster_round_trip().unwrap_or_default(),
        )?;
        let canary = Arc::clone(self);
        registry.register_gauge_fn(
            "deeperhub_canary_cluster_failing",
            "1 if a probe through the broker did not return in time, 0 again when one returns",
            Unit::None,
            move || canary.cluster_unready_reason().is_some().into(),
        )?;
        if self.state().store.is_none() {
            return Ok(());
        }
        self.store_metrics.register(registry)?;
        let canary = Arc::clone(self);
        registry.register_time_fn(
            "deeperhub_canary_store_last_round_trip_seconds",
            "Round-trip time of the last probe through the cluster's store",
            move || canary.last_store_round_trip().unwrap_or_default(),
        )?;
        let canary = Arc::clone(self);
        registry.register_gauge_fn(
            "deeperhub_canary_store_failing",
            "1 if a probe of the cluster's store did not return in time, 0 again when one returns",
            Unit::None,
            move || canary.store_unready_reason().is_some().into(),
        )
    }

    /// Returns the topic of a worker's probes, or `None` if there is no such worker. The worker
    /// subscribes to the topic and then calls [`on_worker_subscribed`](Self::on_worker_subscribed).
    pub(crate) fn topic(&self, worker: u16) -> Option<Topic<'static>> {
        self.state().workers.get(usize::from(worker)).map(|_| probe_topic(worker))
    }

    /// Records that a worker, which may replace another, has subscribed to its topic. A pending
    /// probe was lost with the inbox of the replaced worker, so it becomes due again.
    pub(crate) fn on_worker_subscribed(&self, worker: u16) {
        let mut state = self.state();
        if let Some(target) = state.workers.get_mut(usize::from(worker)) {
            if target.probe.is_open() {
                target.probe = Probe::Due;
            }
            target.is_subscribed = true;
            state.has_new_subscriber = true;
            self.changed.notify_all();
        }
    }

    /// Records that a probe was delivered to a worker. `frame` is the delivered frame.
    pub(crate) fn on_probe_delivered(&self, worker: u16, frame: &[u8]) {
        let now = Instant::now();
        let Some(number) = probe_number(frame) else { return };
        let mut state = self.state();
        let State { workers, broker, .. } = &mut *state;
        let worker_probe =
            workers.get_mut(usize::from(worker)).and_then(|target| target.complete(number, now));
        if let Some((round_trip, was_failing)) = worker_probe {
            if was_failing {
                info!(worker, ?round_trip, "Probes return again");
            }
            self.metrics.round_trips.observe_duration(round_trip);
        } else if let Some((round_trip, was_failing)) =
            broker.as_mut().and_then(|target| target.complete(number, now))
        {
            if was_failing {
                info!(?round_trip, "Broker probes return again");
            }
            self.cluster_metrics.round_trips.observe_duration(round_trip);
        } else {
            return;
        }
        self.changed.notify_all();
    }

    /// Publishes to a worker a probe that came back from the broker. Prefers workers that are not
    /// failing. If no worker has subscribed, the probe becomes due again.
    pub(crate) fn on_broker_probe(&self, number: u64, publisher: &impl ProbePublisher) {
        self.offer_to_workers(number, |worker| publisher.publish_probe(worker, number));
    }

    /// Publishes a probe to one worker after the other until one receives it. If no worker has
    /// subscribed, the probe becomes due again. `publish` returns the number of subscribers.
    fn offer_to_workers(&self, number: u64, publish: impl Fn(usize) -> u64) {
        if !self.worker_order(number).into_iter().any(|worker| publish(worker) > 0) {
            self.mark_due_again(number);
        }
    }

    /// Returns the workers in the order in which a probe from the broker is offered to them:
    /// failing workers come last.
    fn worker_order(&self, number: u64) -> Vec<usize> {
        let state = self.state();
        let count = state.workers.len().max(1);
        let first = usize::try_from(number % count as u64).unwrap_or_default();
        let mut worker_order: Vec<_> = (first..count).chain(0..first).collect();
        worker_order.sort_by_key(|&worker| state.workers.get(worker).is_none_or(ProbeTarget::is_failing));
        worker_order
    }

    /// Returns the longest of the workers' last round-trip times, or `None` before the first probe
    /// has returned.
    pub(crate) fn last_round_trip(&self) -> Option<Duration> {
        self.state().workers.iter().filter_map(|target| target.last_round_trip).max()
    }

    /// Returns the last round-trip time through the broker, or `None` before the first probe has
    /// returned.
    pub(crate) fn last_cluster_round_trip(&self) -> Option<Duration> {
        self.state().broker.as_ref()?.last_round_trip
    }

    pub(crate) fn failing_workers(&self) -> usize {
        self.state().workers.iter().filter(|target| target.is_failing()).count()
    }

    /// Returns the reason why the node is unready if the broker is failing.
    pub(crate) fn cluster_unready_reason(&self) -> Option<UnreadyReason> {
        Some(UnreadyReason {
            check: HealthCheck::Cluster,
            code: "cluster_stalled",
            message: "a probe through the cluster's broker did not return in time".into(),
            worker: None,
            since: Some(self.state().broker.as_ref()?.failing_since?),
        })
    }

    /// Returns one reason for each failing worker.
    pub(crate) fn unready_reasons(&self) -> Vec<UnreadyReason> {
        let reason = |(index, target): (usize, &ProbeTarget)| {
            Some(UnreadyReason {
                check: HealthCheck::Canary,
                code: "delivery_stalled",
                message: format!("a probe to worker {index} did not return in time").into(),
                worker: u16::try_from(index).ok(),
                since: Some(target.failing_since?),
            })
        };
        self.state().workers.iter().enumerate().filter_map(reason).collect()
    }

    /// Waits until each worker's first probe has returned, for at most the timeout.
    pub(crate) fn wait_for_first_round(&self) {
        let is_incomplete =
            |state: &mut State| state.workers.iter().any(|target| target.last_round_trip.is_none());
        let result = self.changed.wait_timeout_while(self.state(), self.config.timeout, is_incomplete);
        drop(result.unwrap_or_else(PoisonError::into_inner));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the topic of a worker's probes.
pub(crate) fn probe_topic(worker: impl std::fmt::Display) -> Topic<'static> {
    Topic::reserved(format_args!("canary.{worker}"))
}

/// Returns the number at the end of a probe: `…,"message":17}}`.
fn probe_number(frame: &[u8]) -> Option<u64> {
    let digits = frame.strip_suffix(b"}}")?.rsplit(|byte| *byte == b':').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
