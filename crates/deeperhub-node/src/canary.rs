//! The canary: a thread that proves delivery with periodic test messages, called probes.
//!
//! Each worker subscribes to a reserved topic. At each interval the thread publishes a probe to
//! this topic, in the same way as any message, and the worker reports the delivered probe. In a
//! cluster, one more probe travels through the broker like a message for other nodes. When the
//! broker returns it, this node publishes it to a worker.
//!
//! Each worker, and the broker, is a target of probes. A probe that does not return within the
//! timeout is missed. Its target is then failing until a probe of this target returns. While a
//! worker is failing, the node is unready. A failing broker also makes it unready, unless
//! [`ClusterConfig::ready_alone`](crate::ClusterConfig::ready_alone) is set.
//!
//! A worker gets no new probe before the last one has returned, so that probes do not accumulate in
//! its inbox.

mod target;
mod thread;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deeperhub_cluster::Broker;
use deeperhub_listener::RestartDelay;
use deeperhub_metrics::{RegisterError, Registry, Unit};
use deeperhub_protocol::{RawJson, Topic};
use tracing::{error, info, warn};

use crate::health::{HealthCheck, UnreadyReason};
use crate::hub::Hub;
use crate::metrics::{CanaryMetrics, ClusterCanaryMetrics};
use target::{Probe, ProbeTarget, State};
pub(crate) use thread::CanaryThread;

/// Interval and timeout of the probes that prove delivery.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CanaryConfig {
    /// Time between probes. With zero, no probes are sent, and readiness does not depend on them.
    /// Default 5 s.
    pub interval: Duration,
    /// Time within which a probe must return. Default 5 s.
    pub timeout: Duration,
}

impl CanaryConfig {
    /// Returns a configuration without probes. Readiness then does not depend on them.
    #[must_use]
    pub fn disabled() -> Self {
        Self { interval: Duration::ZERO, ..Self::default() }
    }

    /// Returns a configuration with probes at each interval, which must return within the timeout.
    #[must_use]
    pub const fn new(interval: Duration, timeout: Duration) -> Self {
        Self { interval, timeout }
    }
}

impl Default for CanaryConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(5), timeout: Duration::from_secs(5) }
    }
}

/// Number of slices in which the thread waits for the timeout. A process that was suspended uses up
/// only one slice when it resumes, not the whole timeout.
const TIMEOUT_SLICES: u32 = 4;

/// State of the probes to all targets, with metrics.
#[derive(Debug)]
pub(crate) struct Canary {
    config: CanaryConfig,
    state: Mutex<State>,
    /// Notified when the state changes in a way for which the canary thread waits.
    changed: Condvar,
    metrics: CanaryMetrics,
    cluster_metrics: ClusterCanaryMetrics,
    /// Number of panics that a test has requested.
    #[cfg(test)]
    requested_panics: std::sync::atomic::AtomicUsize,
}

impl Canary {
    pub(crate) fn new(config: CanaryConfig, workers: usize, has_cluster: bool) -> Self {
        let workers = (0..workers).map(|_| ProbeTarget::default()).collect();
        let broker = has_cluster.then(ProbeTarget::default);
        Self {
            config,
            state: Mutex::new(State {
                workers,
                broker,
                next_number: 1,
                has_new_subscriber: false,
                is_stopped: false,
            }),
            changed: Condvar::new(),
            metrics: CanaryMetrics::default(),
            cluster_metrics: ClusterCanaryMetrics::default(),
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
    pub(crate) fn on_broker_probe(&self, number: u64, hub: &Hub) {
        self.offer_to_workers(number, |worker| publish_probe(hub, worker, number));
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

    /// Sends probes until the node stops. Restarts with a backoff after a panic.
    fn run(&self, hub: &Hub) {
        let mut delay = RestartDelay::default();
        loop {
            let began = Instant::now();
            if catch_unwind(AssertUnwindSafe(|| self.probe_until_stopped(hub))).is_ok() {
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

    fn probe_until_stopped(&self, hub: &Hub) {
        loop {
            #[cfg(test)]
            tests::panic_if_requested(self);
            let began = Instant::now();
            let broker_state = hub.broker.as_ref().map(Broker::watch);
            self.mark_due(hub.broker.as_ref().is_some_and(Broker::is_up));
            self.run_probes(hub);
            let stayed_connected = broker_state.is_some_and(|state| matches!(state.has_changed(), Ok(false)));
            self.record_missed(stayed_connected);
            if self.is_stopped_within(self.config.interval.saturating_sub(began.elapsed())) {
                return;
            }
        }
    }

    /// Marks the targets that get a probe in this interval.
    fn mark_due(&self, is_broker_connected: bool) {
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
    }

    /// Publishes due probes, and waits until all have returned or the timeout is over.
    fn run_probes(&self, hub: &Hub) {
        for _ in 0..TIMEOUT_SLICES {
            let slice = self.config.timeout / TIMEOUT_SLICES;
            // The end is `None` if it is beyond the range of the clock.
            let slice_end = Instant::now().checked_add(slice);
            loop {
                self.publish_due(hub);
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

    fn publish_due(&self, hub: &Hub) {
        let (mut worker_probes, mut broker_probe) = (Vec::new(), None);
        {
            let mut state = self.state();
            let State { workers, broker, next_number, .. } = &mut *state;
            for (worker, target) in workers.iter_mut().enumerate() {
                worker_probes.extend(target.take_due(next_number).map(|number| (worker, number)));
            }
            if let Some(target) = broker {
                broker_probe = target.take_due(next_number);
            }
        }
        for (worker, number) in worker_probes {
            if publish_probe(hub, worker, number) == 0 {
                // The worker has not subscribed yet. It calls `on_worker_subscribed` later.
                self.mark_due_again(number);
            }
        }
        if let (Some(broker), Some(number)) = (&hub.broker, broker_probe)
            && broker.probe(number).is_err()
        {
            self.mark_due_again(number);
        }
    }

    /// Makes a pending probe due again, because it was not sent, or because it returned from the
    /// broker but reached no worker.
    fn mark_due_again(&self, number: u64) {
        for target in self.state().targets_mut() {
            if target.probe.is_pending(number) {
                target.probe = Probe::Due;
            }
        }
    }

    /// Counts open probes as missed, each only once. `stayed_connected` is `true` if the state of
    /// the broker's connection did not change meanwhile. If it is `false`, the probe through the
    /// broker does not count.
    fn record_missed(&self, stayed_connected: bool) {
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

/// Returns the topic of a worker's probes.
fn probe_topic(worker: impl std::fmt::Display) -> Topic<'static> {
    Topic::reserved(format_args!("canary.{worker}"))
}

/// Publishes a probe to a worker in the same way as any message. Returns the number of subscribers:
/// 1, or 0 if the worker has not subscribed yet.
fn publish_probe(hub: &Hub, worker: usize, number: u64) -> u64 {
    let text = number.to_string();
    match RawJson::parse(&text) {
        Ok(message) => hub.publish(&probe_topic(worker), message, None, Instant::now(), None).subscribers,
        Err(_) => 0,
    }
}

/// Returns the number at the end of a probe: `…,"message":17}}`.
fn probe_number(frame: &[u8]) -> Option<u64> {
    let digits = frame.strip_suffix(b"}}")?.rsplit(|byte| *byte == b':').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
