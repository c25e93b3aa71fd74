//! Proof that deliveries come through: a probe to each worker, published as any message is, that must come back in
//! time.
//!
//! Each worker subscribes itself to a topic of the server's own. A thread publishes a probe to it every interval; the
//! worker finds it among its deliveries and answers. A worker whose probe is not back in time is reported until it is.
//! It gets no further probe meanwhile, so that nothing piles up in the inbox of one that is stuck.
//!
//! In a cluster one more probe goes to the broker first, as a publish for other nodes does, and what comes back from it
//! is published to a worker.

use std::convert::Infallible;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use deeperhub_cluster::Broker;
use deeperhub_listener::RestartDelay;
use deeperhub_metrics::{Bounds, RegisterError, Registry, SharedCounter, SharedHistogram, Unit};
use deeperhub_protocol::{RawJson, Topic};
use tracing::{error, info, warn};

use crate::health::{Check, Unready};
use crate::hub::Hub;

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
/// up one of them when it goes on, not all.
const PARTS: u32 = 4;

/// Time that a stop waits for the thread. The thread ends sooner, unless a call of its hangs.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// What is known of all workers, and of the broker.
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
    faults: std::sync::atomic::AtomicUsize,
}

#[derive(Debug)]
struct State {
    workers: Vec<Probed>,
    /// The way by the broker, where there is one.
    cluster: Option<Probed>,
    /// Number of the next probe.
    next: u64,
    /// A worker began, so that a probe reaches it now.
    has_attached: bool,
    is_stopped: bool,
}

/// One worker, or the broker, as its probes show it.
#[derive(Debug, Default)]
struct Probed {
    /// It is to get a probe, and has not got it yet.
    is_due: bool,
    /// Number of the probe that is on its way, and since when.
    outstanding: Option<(u64, Instant)>,
    /// How long the last one took.
    round_trip: Option<Duration>,
    /// Whether the worker has subscribed.
    is_attached: bool,
    /// When one was first missed, of those since the last that came back in time.
    failing_since: Option<SystemTime>,
}

impl Probed {
    fn owes(&self) -> bool {
        self.is_due || self.outstanding.is_some()
    }

    /// Takes a probe that came back, if it is the one that is on its way. Answers how long it took, and whether it was
    /// missed before.
    fn came_back(&mut self, number: u64, now: Instant) -> Option<(Duration, bool)> {
        let (_, since) = self.outstanding.take_if(|(outstanding, _)| *outstanding == number)?;
        let round_trip = now.saturating_duration_since(since);
        self.round_trip = Some(round_trip);
        Some((round_trip, self.failing_since.take().is_some()))
    }

    /// Takes down that it is missed, if it is and was not before.
    fn is_newly_missed(&mut self) -> bool {
        let is_missed = self.owes() && self.failing_since.is_none();
        if is_missed {
            self.failing_since = Some(SystemTime::now());
        }
        is_missed
    }
}

impl State {
    fn all(&mut self) -> impl Iterator<Item = &mut Probed> {
        self.workers.iter_mut().chain(&mut self.cluster)
    }

    fn owes(&self) -> bool {
        self.workers.iter().chain(&self.cluster).any(Probed::owes)
    }

    /// Notes that a probe goes on its way, and numbers it.
    fn number(next: &mut u64, probed: &mut Probed) -> u64 {
        let number = *next;
        *next += 1;
        // Before it goes: the answer may be there at once.
        probed.outstanding = Some((number, Instant::now()));
        probed.is_due = false;
        number
    }
}

impl Canary {
    pub(crate) fn new(config: CanaryConfig, workers: usize, has_cluster: bool) -> Self {
        let workers = (0..workers).map(|_| Probed::default()).collect();
        let cluster = has_cluster.then(Probed::default);
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
            faults: Default::default(),
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
            move || canary.cluster_reason().is_some().into(),
        )
    }

    /// The topic that a worker subscribes itself to; then it says that it [is there](Self::attached).
    pub(crate) fn topic(&self, worker: u16) -> Option<Topic<'static>> {
        self.state().workers.get(usize::from(worker)).map(|_| topic_of(worker))
    }

    /// A worker begins, perhaps in the place of one that died: a probe that was on its way is lost with the old one's
    /// inbox, and the new one gets another.
    pub(crate) fn attached(&self, worker: u16) {
        let mut state = self.state();
        if let Some(probed) = state.workers.get_mut(usize::from(worker)) {
            probed.is_due = probed.owes();
            probed.outstanding = None;
            probed.is_attached = true;
            state.has_attached = true;
            self.changed.notify_all();
        }
    }

    /// A worker found a probe among its deliveries; `frame` is the probe as it came.
    pub(crate) fn came_back(&self, worker: u16, frame: &[u8]) {
        let now = Instant::now();
        let Some(number) = number_of(frame) else { return };
        let mut state = self.state();
        let State { workers, cluster, .. } = &mut *state;
        let own = workers.get_mut(usize::from(worker)).and_then(|probed| probed.came_back(number, now));
        if let Some((round_trip, was_missed)) = own {
            if was_missed {
                info!(worker, ?round_trip, "Probes come back again.");
            }
            self.round_trips.observe_duration(round_trip);
        } else if let Some((round_trip, was_missed)) =
            cluster.as_mut().and_then(|probed| probed.came_back(number, now))
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
    pub(crate) fn came_through_broker(&self, number: u64, hub: &Hub) {
        self.offer(number, |worker| publish(hub, worker, number));
    }

    /// Publishes a probe to one worker after the other until it has a subscriber.
    fn offer(&self, number: u64, publish: impl Fn(usize) -> u64) {
        if !self.turns(number).into_iter().any(|worker| publish(worker) > 0) {
            self.take_back(number);
        }
    }

    /// Returns the workers in the order in which they are offered a probe from the broker.
    fn turns(&self, number: u64) -> Vec<usize> {
        let state = self.state();
        let all = state.workers.len().max(1);
        let first = usize::try_from(number % all as u64).unwrap_or_default();
        let mut turns: Vec<_> = (first..all).chain(0..first).collect();
        turns.sort_by_key(|index| state.workers.get(*index).is_none_or(|p| p.failing_since.is_some()));
        turns
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
    pub(crate) fn cluster_reason(&self) -> Option<Unready> {
        Some(Unready {
            check: Check::Cluster,
            code: "cluster_stalled",
            message: "a probe through the cluster's broker did not come back in time".into(),
            worker: None,
            since: Some(self.state().cluster.as_ref()?.failing_since?),
        })
    }

    /// The workers whose probes are overdue.
    pub(crate) fn reasons(&self) -> Vec<Unready> {
        let failing = |(index, probed): (usize, &Probed)| {
            Some(Unready {
                check: Check::Canary,
                code: "delivery_stalled",
                message: format!("a probe to worker {index} did not come back in time").into(),
                worker: u16::try_from(index).ok(),
                since: Some(probed.failing_since?),
            })
        };
        self.state().workers.iter().enumerate().filter_map(failing).collect()
    }

    /// Waits until each worker has answered once, at most the timeout.
    pub(crate) fn wait_for_first(&self) {
        let unproved = |state: &mut State| state.workers.iter().any(|probed| probed.round_trip.is_none());
        let waited = self.changed.wait_timeout_while(self.state(), self.config.timeout, unproved);
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
            tests::die_if_wanted(self);
            let began = Instant::now();
            let connection = hub.broker.as_ref().map(Broker::watch);
            self.begin(hub);
            self.probe(hub);
            let has_held = connection.is_some_and(|state| matches!(state.has_changed(), Ok(false)));
            self.judge(has_held);
            if self.is_stopped_within(self.config.interval.saturating_sub(began.elapsed())) {
                return;
            }
        }
    }

    /// Decides who gets a probe.
    fn begin(&self, hub: &Hub) {
        let is_up = hub.broker.as_ref().is_some_and(Broker::is_up);
        let mut state = self.state();
        for probed in &mut state.workers {
            // One that still owes an answer gets nothing more.
            probed.is_due |= probed.outstanding.is_none();
        }
        if let Some(probed) = &mut state.cluster {
            // A broker may have lost the last one, so the next goes in any case. One that is away is told of otherwise.
            *probed = match is_up {
                true => Probed { is_due: true, outstanding: None, ..std::mem::take(probed) },
                false => Probed { round_trip: probed.round_trip, ..Probed::default() },
            };
        }
    }

    /// Publishes what is due and waits until all is back or the time is over.
    fn probe(&self, hub: &Hub) {
        for _ in 0..PARTS {
            let part = self.config.timeout / PARTS;
            // `None`: beyond the clock's range.
            let end = Instant::now().checked_add(part);
            loop {
                self.publish_due(hub);
                let goes_on = |state: &mut State| !state.is_stopped && !state.has_attached && state.owes();
                let left = end.map_or(part, |end| end.saturating_duration_since(Instant::now()));
                let waited = self.changed.wait_timeout_while(self.state(), left, goes_on);
                let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
                state.has_attached = false;
                if state.is_stopped || !state.owes() {
                    return;
                }
                if waited.timed_out() {
                    break;
                }
            }
        }
    }

    fn publish_due(&self, hub: &Hub) {
        let (mut due, mut by_broker) = (Vec::new(), None);
        {
            let mut state = self.state();
            let State { workers, cluster, next, .. } = &mut *state;
            for (worker, probed) in workers.iter_mut().enumerate().filter(|(_, probed)| probed.is_due) {
                due.push((worker, State::number(next, probed)));
            }
            if let Some(probed) = cluster.as_mut().filter(|probed| probed.is_due) {
                by_broker = Some(State::number(next, probed));
            }
        }
        for (worker, number) in due {
            if publish(hub, worker, number) == 0 {
                // It is not there yet; it says so when it is.
                self.take_back(number);
            }
        }
        if let (Some(broker), Some(number)) = (&hub.broker, by_broker)
            && broker.probe(number).is_err()
        {
            self.take_back(number);
        }
    }

    /// A probe could not go on its way: it is due again.
    fn take_back(&self, number: u64) {
        for probed in self.state().all() {
            if probed.outstanding.take_if(|(outstanding, _)| *outstanding == number).is_some() {
                probed.is_due = true;
            }
        }
    }

    /// Sets down what fails. A probe that was under way while the connection to the broker was lost says nothing.
    fn judge(&self, has_held: bool) {
        let mut state = self.state();
        if state.is_stopped {
            return;
        }
        for (worker, probed) in state.workers.iter_mut().enumerate() {
            if probed.is_newly_missed() {
                self.missed.inc();
                warn!(worker, "A probe did not come back in time; the node is not ready.");
            }
        }
        // Until a worker has subscribed, no probe can come through, whatever the broker does.
        let is_judged = has_held && state.workers.iter().any(|probed| probed.is_attached);
        if state.cluster.as_mut().is_some_and(|probed| is_judged && probed.is_newly_missed()) {
            self.cluster_missed.inc();
            warn!("A probe through the cluster's broker did not come back in time.");
        }
    }
}

/// What a worker subscribes itself to.
fn topic_of(worker: impl std::fmt::Display) -> Topic<'static> {
    Topic::reserved(format_args!("canary.{worker}"))
}

/// Publishes a probe to a worker, as any message is; answers how many subscribers it has: one, or none before it is there.
fn publish(hub: &Hub, worker: usize, number: u64) -> u64 {
    let text = number.to_string();
    match RawJson::parse(&text) {
        Ok(message) => hub.publish(&topic_of(worker), message, None, Instant::now(), None).subscribers,
        Err(_) => 0,
    }
}

/// The number at the end of a probe: `…,"message":17}}`.
fn number_of(frame: &[u8]) -> Option<u64> {
    let digits = frame.strip_suffix(b"}}")?.rsplit(|byte| *byte == b':').next()?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// The thread that sends probes; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct CanaryThread {
    canary: Arc<Canary>,
    thread: Option<JoinHandle<()>>,
    /// Channel that closes when the thread ends.
    ended: mpsc::Receiver<Infallible>,
}

impl CanaryThread {
    /// Starts it, unless the configuration says that there are no probes.
    pub(crate) fn start(hub: &Arc<Hub>) -> io::Result<Option<Self>> {
        let canary = Arc::clone(&hub.canary);
        if canary.config.interval.is_zero() {
            return Ok(None);
        }
        let hub = Arc::clone(hub);
        let (running, ended) = mpsc::channel();
        let run = move || {
            let _running = running;
            hub.canary.run(&hub);
        };
        let thread = thread::Builder::new().name("hub-canary".to_owned()).spawn(run)?;
        Ok(Some(Self { canary, thread: Some(thread), ended }))
    }
}

impl Drop for CanaryThread {
    fn drop(&mut self) {
        self.canary.state().is_stopped = true;
        self.canary.changed.notify_all();
        if self.ended.recv_timeout(STOP_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            return warn!("Canary thread did not stop in time");
        }
        if let Some(thread) = self.thread.take() {
            // A panic there was told already.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
