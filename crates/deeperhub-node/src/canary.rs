//! Proof that deliveries come through: a probe to each worker, published as any message is, that must come back in
//! time.
//!
//! Each worker subscribes itself to a topic of the server's own. A thread publishes a probe to it every interval; the
//! worker finds it among its deliveries and answers. A worker whose probe is not back in time is reported until it is.
//! It gets no further probe meanwhile, so that nothing piles up in the inbox of one that is stuck.
//!
//! In a cluster one more probe goes to the broker first, as a publish for other nodes does, and what comes back from it
//! is published to a worker.

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

/// How often delivery is proved, and what counts as a proof.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CanaryConfig {
    /// Time from one probe to the next. Zero: none, and readiness tells of the node's phase only. Default 5 s.
    pub interval: Duration,
    /// Time within which a probe must be back. Default 5 s.
    pub timeout: Duration,
}

impl Default for CanaryConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(5), timeout: Duration::from_secs(5) }
    }
}

/// The timeout is waited for in so many parts: a process that was stopped for long, or whose machine slept, has used
/// up one of them when it goes on, not all_probes.
const TIMEOUT_SLICES: u32 = 4;

/// What is known of all_probes workers, and of the broker.
#[derive(Debug)]
pub(crate) struct Canary {
    config: CanaryConfig,
    state: Mutex<State>,
    /// Something happened that the thread waits for.
    changed: Condvar,
    /// How long probes took, those that came too late among them.
    round_trips: SharedHistogram,
    /// Probes that were not back in time.
    missed: SharedCounter,
    /// The same of probes by the broker.
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
            "Times that probes took through router and worker",
            Unit::Seconds,
            &self.round_trips,
        )?;
        registry.register(
            "deeperhub_canary_missed_total",
            "Probes that were not back in time",
            Unit::None,
            &self.missed,
        )?;
        registry.register(
            "deeperhub_canary_restarts_total",
            "Restarts of the thread that sends probes",
            Unit::None,
            &self.restarts,
        )?;
        let canary = Arc::clone(self);
        registry.register_time_fn(
            "deeperhub_canary_last_round_trip_seconds",
            "Time that the last probe took, of the slowest worker",
            move || canary.round_trip().unwrap_or_default(),
        )?;
        let canary = Arc::clone(self);
        registry.register_gauge_fn(
            "deeperhub_canary_failing_workers",
            "Workers whose probe is overdue",
            Unit::None,
            move || i64::try_from(canary.failing_workers()).unwrap_or(i64::MAX),
        )?;
        if self.state().cluster.is_none() {
            return Ok(());
        }
        registry.register(
            "deeperhub_canary_cluster_round_trip_seconds",
            "Times that probes took through broker, router and worker",
            Unit::Seconds,
            &self.cluster_round_trips,
        )?;
        registry.register(
            "deeperhub_canary_cluster_missed_total",
            "Probes through the broker that were not back in time",
            Unit::None,
            &self.cluster_missed,
        )?;
        let canary = Arc::clone(self);
        registry.register_time_fn(
            "deeperhub_canary_cluster_last_round_trip_seconds",
            "Time that the last probe through the broker took",
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

    /// The topic that a worker subscribes itself to; then it says that it [is there](Self::on_worker_attached).
    pub(crate) fn topic(&self, worker: u16) -> Option<Topic<'static>> {
        self.state().workers.get(usize::from(worker)).map(|_| probe_topic(worker))
    }

    /// A worker begins, perhaps in the place of one that died: a probe that was on its way is lost with the old one's
    /// inbox, and the new one gets another.
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

    /// A worker found a probe among its deliveries; `frame` is the probe as it came.
    pub(crate) fn on_probe_delivered(&self, worker: u16, frame: &[u8]) {
        let now = Instant::now();
        let Some(number) = probe_number(frame) else { return };
        let mut state = self.state();
        let State { workers, cluster, .. } = &mut *state;
        let own = workers.get_mut(usize::from(worker)).and_then(|probed| probed.complete(number, now));
        if let Some((round_trip, was_missed)) = own {
            if was_missed {
                info!(worker, ?round_trip, "Probes come back again.");
            }
            self.round_trips.observe_duration(round_trip);
        } else if let Some((round_trip, was_missed)) =
            cluster.as_mut().and_then(|probed| probed.complete(number, now))
        {
            if was_missed {
                info!(?round_trip, "Probes through the broker come back again.");
            }
            self.cluster_round_trips.observe_duration(round_trip);
        } else {
            return;
        }
        self.changed.notify_all();
    }

    /// Passes on a probe that came back from the broker to a worker, preferably one that answers. A
    /// probe that reaches no worker proves nothing, and another one is due.
    pub(crate) fn on_broker_probe(&self, number: u64, hub: &Hub) {
        self.offer_to_workers(number, |worker| publish_probe(hub, worker, number));
    }

    /// Publishes a probe to one worker after the other until it has a subscriber.
    fn offer_to_workers(&self, number: u64, publish: impl Fn(usize) -> u64) {
        if !self.worker_order(number).into_iter().any(|worker| publish(worker) > 0) {
            self.mark_due_again(number);
        }
    }

    /// Returns the workers in the order in which they are offered a probe from the broker.
    fn worker_order(&self, number: u64) -> Vec<usize> {
        let state = self.state();
        let count = state.workers.len().max(1);
        let first = usize::try_from(number % count as u64).unwrap_or_default();
        let mut worker_order: Vec<_> = (first..count).chain(0..first).collect();
        worker_order.sort_by_key(|index| state.workers.get(*index).is_none_or(|p| p.failing_since.is_some()));
        worker_order
    }

    /// How long the last probe took, that of the slowest worker. `None` before the first.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.state().workers.iter().filter_map(|probed| probed.round_trip).max()
    }

    /// How long the last probe through the broker took. `None` before the first.
    pub(crate) fn cluster_round_trip(&self) -> Option<Duration> {
        self.state().cluster.as_ref()?.round_trip
    }

    pub(crate) fn failing_workers(&self) -> usize {
        self.state().workers.iter().filter(|probed| probed.failing_since.is_some()).count()
    }

    /// Why the node is not ready, where a probe through the broker is overdue.
    pub(crate) fn cluster_unready_reason(&self) -> Option<UnreadyReason> {
        Some(UnreadyReason {
            check: HealthCheck::Cluster,
            code: "cluster_stalled",
            message: "a probe through the cluster's broker did not come back in time".into(),
            worker: None,
            since: Some(self.state().cluster.as_ref()?.failing_since?),
        })
    }

    /// The workers whose probes are overdue.
    pub(crate) fn unready_reasons(&self) -> Vec<UnreadyReason> {
        let failing = |(index, probed): (usize, &ProbeState)| {
            Some(UnreadyReason {
                check: HealthCheck::Canary,
                code: "delivery_stalled",
                message: format!("a probe to worker {index} did not come back in time").into(),
                worker: u16::try_from(index).ok(),
                since: Some(probed.failing_since?),
            })
        };
        self.state().workers.iter().enumerate().filter_map(failing).collect()
    }

    /// Waits until each worker has answered once, at most the timeout.
    pub(crate) fn wait_for_first_round(&self) {
        let is_unproved = |state: &mut State| state.workers.iter().any(|probed| probed.round_trip.is_none());
        let waited = self.changed.wait_timeout_while(self.state(), self.config.timeout, is_unproved);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends probes until it is stopped, and starts again with a backoff after a panic.
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

    /// Decides who gets a probe.
    fn mark_due(&self, hub: &Hub) {
        let is_up = hub.broker.as_ref().is_some_and(Broker::is_up);
        let mut state = self.state();
        for probed in &mut state.workers {
            // One that still is_pending an answer gets nothing more.
            probed.is_due |= probed.outstanding.is_none();
        }
        if let Some(probed) = &mut state.cluster {
            // A broker may have lost the last one, so the next goes in any case. One that is away is told of otherwise.
            *probed = match is_up {
                true => ProbeState { is_due: true, outstanding: None, ..std::mem::take(probed) },
                false => ProbeState { round_trip: probed.round_trip, ..ProbeState::default() },
            };
        }
    }

    /// Publishes what is due and waits until all_probes is back or the time is over.
    fn run_probes(&self, hub: &Hub) {
        for _ in 0..TIMEOUT_SLICES {
            let part = self.config.timeout / TIMEOUT_SLICES;
            // `None`: beyond the clock's range.
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
                // It is not there yet; it says so when it is.
                self.mark_due_again(number);
            }
        }
        if let (Some(broker), Some(number)) = (&hub.broker, broker_probe)
            && broker.probe(number).is_err()
        {
            self.mark_due_again(number);
        }
    }

    /// A probe could not go on its way: it is due again.
    fn mark_due_again(&self, number: u64) {
        for probed in self.state().all_probes() {
            if probed.outstanding.take_if(|(outstanding, _)| *outstanding == number).is_some() {
                probed.is_due = true;
            }
        }
    }

    /// Sets down what fails. A probe that was under way while the connection to the broker was lost says nothing.
    fn record_missed(&self, connection_held: bool) {
        let mut state = self.state();
        if state.is_stopped {
            return;
        }
        for (worker, probed) in state.workers.iter_mut().enumerate() {
            if probed.mark_missed() {
                self.missed.inc();
                warn!(worker, "A probe did not come back in time; the node is not ready.");
            }
        }
        // Until a worker has subscribed, no probe can come through, whatever the broker does.
        let is_judged = connection_held && state.workers.iter().any(|probed| probed.is_attached);
        if state.cluster.as_mut().is_some_and(|probed| is_judged && probed.mark_missed()) {
            self.cluster_missed.inc();
            warn!("A probe through the cluster's broker did not come back in time.");
        }
    }
}

/// What a worker subscribes itself to.
fn probe_topic(worker: impl std::fmt::Display) -> Topic<'static> {
    Topic::of_server(format_args!("canary.{worker}"))
}

/// Publishes a probe to a worker, as any message is; answers how many subscribers it has: one, or none before it is there.
fn publish_probe(hub: &Hub, worker: usize, number: u64) -> u64 {
    let text = number.to_string();
    match RawJson::parse(&text) {
        Ok(message) => hub.publish(&probe_topic(worker), message, None, Instant::now(), None).subscribers,
        Err(_) => 0,
    }
}

/// The number at the end of a probe: `…,"message":17}}`.
fn probe_number(frame: &[u8]) -> Option<u64> {
    let digits = frame.strip_suffix(b"}}")?.rsplit(|byte| *byte == b':').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
