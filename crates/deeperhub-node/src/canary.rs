//! Probes that prove delivery: one per worker, published like any message, that must return in
//! time.
//!
//! Each worker subscribes to a reserved topic. A thread publishes a probe to it at each interval,
//! and the worker reports the probe when it is delivered. A worker whose probe is overdue is
//! reported as unready until it returns. Such a worker gets no further probe, so that nothing piles
//! up in its inbox.
//!
//! In a cluster one more probe goes through the broker, like a publish for other nodes. When it
//! returns, it is published to a worker.

mod probe;
mod thread;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deeperhub_cluster::Broker;
use deeperhub_listener::RestartDelay;
use deeperhub_metrics::{Bounds, RegisterError, Registry, SharedCounter, SharedHistogram, Unit};
use deeperhub_protocol::{RawJson, Topic};
use tracing::{error, info, warn};

use crate::health::{HealthCheck, UnreadyReason};
use crate::hub::Hub;
use probe::{ProbeState, State};
pub(crate) use thread::CanaryThread;

/// Interval and timeout of the probes that prove delivery.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CanaryConfig {
    /// Time between probes. Zero: no probes, and readiness reflects the node's phase only. Default
    /// 5 s.
    pub interval: Duration,
    /// Time within which a probe must return. Default 5 s.
    pub timeout: Duration,
}

impl CanaryConfig {
    /// Sends no probes: readiness reflects the node's phase only.
    #[must_use]
    pub fn disabled() -> Self {
        Self { interval: Duration::ZERO, ..Self::default() }
    }

    /// Sends a probe at each interval, which must return within the timeout.
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

/// State of the probes of all workers and of the broker, with metrics.
#[derive(Debug)]
pub(crate) struct Canary {
    config: CanaryConfig,
    state: Mutex<State>,
    /// Notified on changes that the thread waits for.
    changed: Condvar,
    /// Round-trip times of probes, including late ones.
    round_trips: SharedHistogram,
    /// Probes that did not return in time.
    missed: SharedCounter,
    /// Round-trip times of probes through the broker.
    cluster_round_trips: SharedHistogram,
    cluster_missed: SharedCounter,
    /// Restarts of the thread after a panic.
    restarts: SharedCounter,
    /// Number of panics that a test still injects.
    #[cfg(test)]
    injected_panics: std::sync::atomic::AtomicUsize,
}

impl Canary {
    pub(crate) fn new(config: CanaryConfig, workers: usize, has_cluster: bool) -> Self {
        let workers = (0..workers).map(|_| ProbeState::default()).collect();
        let cluster = has_cluster.then(ProbeState::default);
        let bounds = || Bounds::seconds(Duration::from_micros(10), Duration::from_secs(60));
        Self {
            config,
            state: Mutex::new(State { workers, cluster, next: 1, has_attached: false, is_stopped: false }),
            changed: Condvar::new(),
            round_trips: SharedHistogram::new(bounds()),
            missed: SharedCounter::new(),
            cluster_round_trips: SharedHistogram::new(bounds()),
            cluster_missed: SharedCounter::new(),
            restarts: SharedCounter::new(),
            #[cfg(test)]
            injected_panics: Default::default(),
        }
    }

    pub(crate) fn register(self: &Arc<Self>, registry: &mut Registry) -> Result<(), RegisterError> {
        registry.register(
            "deeperhub_canary_round_trip_seconds",
            "Round-trip times of probes through router and worker",
            Unit::Seconds,
            &self.round_trips,
        )?;
        registry.register(
            "deeperhub_canary_missed_total",
            "Probes that did not return in time",
            Unit::None,
            &self.missed,
        )?;
        registry.register(
            "deeperhub_canary_restarts_total",
            "Restarts of the probe thread after a panic",
            Unit::None,
            &self.restarts,
        )?;
        let canary = Arc::clone(self);
        registry.register_time_fn(
            "deeperhub_canary_last_round_trip_seconds",
            "Longest of the workers' last probe round-trip times",
            move || canary.round_trip().unwrap_or_default(),
        )?;
        let canary = Arc::clone(self);
        registry.register_gauge_fn(
            "deeperhub_canary_failing_workers",
            "Workers with an overdue probe",
            Unit::None,
            move || i64::try_from(canary.failing_workers()).unwrap_or(i64::MAX),
        )?;
        if self.state().cluster.is_none() {
            return Ok(());
        }
        registry.register(
            "deeperhub_canary_cluster_round_trip_seconds",
            "Round-trip times of probes through broker, router and worker",
            Unit::Seconds,
            &self.cluster_round_trips,
        )?;
        registry.register(
            "deeperhub_canary_cluster_missed_total",
            "Probes through the broker that did not return in time",
            Unit::None,
            &self.cluster_missed,
        )?;
        let canary = Arc::clone(self);
        registry.register_time_fn(
            "deeperhub_canary_cluster_last_round_trip_seconds",
            "Round-trip time of the last probe through the broker",
            move || canary.cluster_round_trip().unwrap_or_default(),
        )?;
        let canary = Arc::clone(self);
        registry.register_gauge_fn(
            "deeperhub_canary_cluster_failing",
            "1 while a probe through the broker is overdue",
            Unit::None,
            move || canary.cluster_unready_reason().is_some().into(),
        )
    }

    /// Returns the topic that a worker subscribes to before it calls
    /// [`on_worker_attached`](Self::on_worker_attached).
    pub(crate) fn topic(&self, worker: u16) -> Option<Topic<'static>> {
        self.state().workers.get(usize::from(worker)).map(|_| probe_topic(worker))
    }

    /// Records that a worker has subscribed, possibly as a replacement. A pending probe was lost
    /// with the inbox of the replaced worker, so another one becomes due.
    pub(crate) fn on_worker_attached(&self, worker: u16) {
        let mut state = self.state();
        if let Some(probed) = state.workers.get_mut(usize::from(worker)) {
            probed.is_due = probed.is_pending();
            probed.outstanding = None;
            probed.is_attached = true;
            state.has_attached = true;
            self.changed.notify_all();
        }
    }

    /// Records that a probe was delivered to a worker. `frame` is the delivered frame.
    pub(crate) fn on_probe_delivered(&self, worker: u16, frame: &[u8]) {
        let now = Instant::now();
        let Some(number) = probe_number(frame) else { return };
        let mut state = self.state();
        let State { workers, cluster, .. } = &mut *state;
        let own = workers.get_mut(usize::from(worker)).and_then(|probed| probed.complete(number, now));
        if let Some((round_trip, was_missed)) = own {
            if was_missed {
                info!(worker, ?round_trip, "Probes return again");
            }
            self.round_trips.observe_duration(round_trip);
        } else if let Some((round_trip, was_missed)) =
            cluster.as_mut().and_then(|probed| probed.complete(number, now))
        {
            if was_missed {
                info!(?round_trip, "Broker probes return again");
            }
            self.cluster_round_trips.observe_duration(round_trip);
        } else {
            return;
        }
        self.changed.notify_all();
    }

    /// Publishes a probe that returned from the broker to a worker, preferably one that answers. A
    /// probe that reaches no worker proves nothing, so another one becomes due.
    pub(crate) fn on_broker_probe(&self, number: u64, hub: &Hub) {
        self.offer_to_workers(number, |worker| publish_probe(hub, worker, number));
    }

    /// Publishes a probe to one worker after the other until one has a subscriber.
    fn offer_to_workers(&self, number: u64, publish: impl Fn(usize) -> u64) {
        if !self.worker_order(number).into_iter().any(|worker| publish(worker) > 0) {
            self.mark_due_again(number);
        }
    }

    /// Returns the workers in the order in which a probe from the broker is offered to them.
    fn worker_order(&self, number: u64) -> Vec<usize> {
        let state = self.state();
        let count = state.workers.len().max(1);
        let first = usize::try_from(number % count as u64).unwrap_or_default();
        let mut worker_order: Vec<_> = (first..count).chain(0..first).collect();
        worker_order.sort_by_key(|index| state.workers.get(*index).is_none_or(|p| p.failing_since.is_some()));
        worker_order
    }

    /// Returns the longest of the workers' last round-trip times. `None` before the first probe
    /// returned.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.state().workers.iter().filter_map(|probed| probed.round_trip).max()
    }

    /// Returns the last round-trip time through the broker. `None` before the first probe returned.
    pub(crate) fn cluster_round_trip(&self) -> Option<Duration> {
        self.state().cluster.as_ref()?.round_trip
    }

    pub(crate) fn failing_workers(&self) -> usize {
        self.state().workers.iter().filter(|probed| probed.failing_since.is_some()).count()
    }

    /// Returns the reason why the node is unready if a probe through the broker is overdue.
    pub(crate) fn cluster_unready_reason(&self) -> Option<UnreadyReason> {
        Some(UnreadyReason {
            check: HealthCheck::Cluster,
            code: "cluster_stalled",
            message: "a probe through the cluster's broker did not return in time".into(),
            worker: None,
            since: Some(self.state().cluster.as_ref()?.failing_since?),
        })
    }

    /// Returns one reason for each worker whose probe is overdue.
    pub(crate) fn unready_reasons(&self) -> Vec<UnreadyReason> {
        let failing = |(index, probed): (usize, &ProbeState)| {
            Some(UnreadyReason {
                check: HealthCheck::Canary,
                code: "delivery_stalled",
                message: format!("a probe to worker {index} did not return in time").into(),
                worker: u16::try_from(index).ok(),
                since: Some(probed.failing_since?),
            })
        };
        self.state().workers.iter().enumerate().filter_map(failing).collect()
    }

    /// Waits until each worker has answered once, for at most the timeout.
    pub(crate) fn wait_for_first_round(&self) {
        let is_unproved = |state: &mut State| state.workers.iter().any(|probed| probed.round_trip.is_none());
        let waited = self.changed.wait_timeout_while(self.state(), self.config.timeout, is_unproved);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
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
            self.restarts.inc();
            error!("Canary thread panicked; restarting");
            if self.is_stopped_within(delay.after(began.elapsed())) {
                return;
            }
        }
    }

    fn is_stopped_within(&self, time: Duration) -> bool {
        let waited = self.changed.wait_timeout_while(self.state(), time, |state| !state.is_stopped);
        waited.unwrap_or_else(PoisonError::into_inner).0.is_stopped
    }

    fn probe_until_stopped(&self, hub: &Hub) {
        loop {
            #[cfg(test)]
            tests::panic_if_injected(self);
            let began = Instant::now();
            let connection = hub.broker.as_ref().map(Broker::watch);
            self.mark_due(hub);
            self.run_probes(hub);
            let connection_held = connection.is_some_and(|state| matches!(state.has_changed(), Ok(false)));
            self.record_missed(connection_held);
            if self.is_stopped_within(self.config.interval.saturating_sub(began.elapsed())) {
                return;
            }
        }
    }

    /// Marks the workers, and the broker, that get a probe in this interval.
    fn mark_due(&self, hub: &Hub) {
        let is_up = hub.broker.as_ref().is_some_and(Broker::is_up);
        let mut state = self.state();
        for probed in &mut state.workers {
            // A worker with a pending probe gets no other.
            probed.is_due |= probed.outstanding.is_none();
        }
        if let Some(probed) = &mut state.cluster {
            // The broker may have lost the last probe, so the next one is sent in any case. A
            // broker that is disconnected has a reason of its own.
            *probed = match is_up {
                true => ProbeState { is_due: true, outstanding: None, ..std::mem::take(probed) },
                false => ProbeState { round_trip: probed.round_trip, ..ProbeState::default() },
            };
        }
    }

    /// Publishes due probes, and waits until all have returned or the timeout is over.
    fn run_probes(&self, hub: &Hub) {
        for _ in 0..TIMEOUT_SLICES {
            let part = self.config.timeout / TIMEOUT_SLICES;
            // `None`: beyond the range of the clock.
            let end = Instant::now().checked_add(part);
            loop {
                self.publish_due(hub);
                let goes_on =
                    |state: &mut State| !state.is_stopped && !state.has_attached && state.is_pending();
                let left = end.map_or(part, |end| end.saturating_duration_since(Instant::now()));
                let waited = self.changed.wait_timeout_while(self.state(), left, goes_on);
                let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
                state.has_attached = false;
                if state.is_stopped || !state.is_pending() {
                    return;
                }
                if waited.timed_out() {
                    break;
                }
            }
        }
    }

    fn publish_due(&self, hub: &Hub) {
        let (mut due, mut broker_probe) = (Vec::new(), None);
        {
            let mut state = self.state();
            let State { workers, cluster, next, .. } = &mut *state;
            for (worker, probed) in workers.iter_mut().enumerate().filter(|(_, probed)| probed.is_due) {
                due.push((worker, State::assign_number(next, probed)));
            }
            if let Some(probed) = cluster.as_mut().filter(|probed| probed.is_due) {
                broker_probe = Some(State::assign_number(next, probed));
            }
        }
        for (worker, number) in due {
            if publish_probe(hub, worker, number) == 0 {
                // The worker has not subscribed yet; it reports when it has.
                self.mark_due_again(number);
            }
        }
        if let (Some(broker), Some(number)) = (&hub.broker, broker_probe)
            && broker.probe(number).is_err()
        {
            self.mark_due_again(number);
        }
    }

    /// Marks a probe that could not be sent as due again.
    fn mark_due_again(&self, number: u64) {
        for probed in self.state().all_probes() {
            if probed.outstanding.take_if(|(outstanding, _)| *outstanding == number).is_some() {
                probed.is_due = true;
            }
        }
    }

    /// Records missed probes. A probe that was pending while the connection to the broker was lost
    /// is not counted.
    fn record_missed(&self, connection_held: bool) {
        let mut state = self.state();
        if state.is_stopped {
            return;
        }
        for (worker, probed) in state.workers.iter_mut().enumerate() {
            if probed.mark_missed() {
                self.missed.inc();
                warn!(worker, "Probe did not return in time; node unready");
            }
        }
        // Until a worker has subscribed, no probe can return, whatever the broker does.
        let is_judged = connection_held && state.workers.iter().any(|probed| probed.is_attached);
        if state.cluster.as_mut().is_some_and(|probed| is_judged && probed.mark_missed()) {
            self.cluster_missed.inc();
            warn!("Broker probe did not return in time");
        }
    }
}

/// Returns the topic that a worker subscribes to.
fn probe_topic(worker: impl std::fmt::Display) -> Topic<'static> {
    Topic::reserved(format_args!("canary.{worker}"))
}

/// Publishes a probe to a worker like any message. Returns the number of subscribers: 1, or 0
/// before the worker has subscribed.
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
