//! Proof that deliveries come through: a probe to each worker, published as any message is, that must come back in
//! time.
//!
//! Each worker subscribes itself to a topic of the server's own. A thread publishes a probe to it every interval; the
//! worker finds it among its deliveries and answers. A worker whose probe is not back in time is reported until it is.
//! It gets no further probe meanwhile, so that nothing piles up in the inbox of one that is stuck.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use deeperhub_metrics::{Bounds, RegisterError, Registry, SharedCounter, SharedHistogram, Unit};
use deeperhub_protocol::{RawJson, Topic};
use tracing::{info, warn};

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

/// What is known of all workers.
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
}

#[derive(Debug)]
struct State {
    workers: Vec<Probed>,
    /// Number of the next probe.
    next: u64,
    /// A worker began, so that a probe reaches it now.
    has_attached: bool,
    is_stopped: bool,
}

/// One worker as its probes show it.
#[derive(Debug)]
struct Probed {
    /// What the worker subscribes itself to.
    topic: Topic<'static>,
    /// It is to get a probe, and has not got it yet.
    is_due: bool,
    /// Number of the probe that is on its way, and since when.
    outstanding: Option<(u64, Instant)>,
    /// How long the last one took.
    round_trip: Option<Duration>,
    /// When one was first missed, of those since the last that came back in time.
    failing_since: Option<SystemTime>,
}

impl Probed {
    fn owes(&self) -> bool {
        self.is_due || self.outstanding.is_some()
    }
}

impl Canary {
    pub(crate) fn new(config: CanaryConfig, workers: usize) -> Self {
        let probed = |worker| Probed {
            topic: Topic::of_server(format_args!("canary.{worker}")),
            is_due: false,
            outstanding: None,
            round_trip: None,
            failing_since: None,
        };
        let workers = (0..workers).map(probed).collect();
        let bounds = Bounds::seconds(Duration::from_micros(10), Duration::from_secs(60));
        Self {
            config,
            state: Mutex::new(State { workers, next: 1, has_attached: false, is_stopped: false }),
            changed: Condvar::new(),
            round_trips: SharedHistogram::new(bounds),
            missed: SharedCounter::new(),
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
            move || i64::try_from(canary.reasons().len()).unwrap_or(i64::MAX),
        )
    }

    /// The topic that a worker subscribes itself to; then it says that it [is there](Self::attached).
    pub(crate) fn topic(&self, worker: u16) -> Option<Topic<'static>> {
        Some(self.state().workers.get(usize::from(worker))?.topic.clone())
    }

    /// A worker begins, perhaps in the place of one that died: a probe that was on its way is lost with the old one's
    /// inbox, and the new one gets another.
    pub(crate) fn attached(&self, worker: u16) {
        let mut state = self.state();
        if let Some(probed) = state.workers.get_mut(usize::from(worker)) {
            probed.is_due = probed.owes();
            probed.outstanding = None;
            state.has_attached = true;
            self.changed.notify_all();
        }
    }

    /// A worker found a probe among its deliveries; `frame` is the probe as it came.
    pub(crate) fn came_back(&self, worker: u16, frame: &[u8]) {
        let now = Instant::now();
        let mut state = self.state();
        let Some(probed) = state.workers.get_mut(usize::from(worker)) else { return };
        if let Some((number, since)) = probed.outstanding
            && number_of(frame) == Some(number)
        {
            let round_trip = now.saturating_duration_since(since);
            probed.outstanding = None;
            probed.round_trip = Some(round_trip);
            if probed.failing_since.take().is_some() {
                info!(worker, ?round_trip, "Probes come back again.");
            }
            self.round_trips.observe_duration(round_trip);
            self.changed.notify_all();
        }
    }

    /// How long the last probe took, that of the slowest worker. `None` before the first.
    pub(crate) fn round_trip(&self) -> Option<Duration> {
        self.state().workers.iter().filter_map(|probed| probed.round_trip).max()
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

    /// Sends probes until it is stopped.
    fn run(&self, hub: &Hub) {
        loop {
            let began = Instant::now();
            for probed in &mut self.state().workers {
                // One that still owes an answer gets nothing more.
                probed.is_due |= probed.outstanding.is_none();
            }
            self.probe(hub);
            self.judge();
            let rest = self.config.interval.saturating_sub(began.elapsed());
            let waited = self.changed.wait_timeout_while(self.state(), rest, |state| !state.is_stopped);
            if waited.unwrap_or_else(PoisonError::into_inner).0.is_stopped {
                return;
            }
        }
    }

    /// Publishes what is due and waits until all is back or the time is over.
    fn probe(&self, hub: &Hub) {
        for _ in 0..PARTS {
            let end = Instant::now() + self.config.timeout / PARTS;
            loop {
                self.publish_due(hub);
                let goes_on = |state: &mut State| {
                    !state.is_stopped && !state.has_attached && state.workers.iter().any(Probed::owes)
                };
                let left = end.saturating_duration_since(Instant::now());
                let waited = self.changed.wait_timeout_while(self.state(), left, goes_on);
                let (mut state, waited) = waited.unwrap_or_else(PoisonError::into_inner);
                state.has_attached = false;
                if state.is_stopped || !state.workers.iter().any(Probed::owes) {
                    return;
                }
                if waited.timed_out() {
                    break;
                }
            }
        }
    }

    fn publish_due(&self, hub: &Hub) {
        let mut due = Vec::new();
        {
            let mut state = self.state();
            let State { workers, next, .. } = &mut *state;
            for (index, probed) in workers.iter_mut().enumerate().filter(|(_, probed)| probed.is_due) {
                // Before the publish: the answer may be there before that returns.
                probed.outstanding = Some((*next, Instant::now()));
                probed.is_due = false;
                due.push((index, probed.topic.clone(), *next));
                *next += 1;
            }
        }
        for (index, topic, number) in due {
            let text = number.to_string();
            let Ok(message) = RawJson::parse(&text) else { continue };
            let published = hub.publish(&topic, message, None, Instant::now(), None);
            if published.subscribers == 0
                && let Some(probed) = self.state().workers.get_mut(index)
                && probed.outstanding.is_some_and(|(outstanding, _)| outstanding == number)
            {
                // It is not there yet; it says so when it is.
                (probed.outstanding, probed.is_due) = (None, true);
            }
        }
    }

    /// Sets down which workers fail.
    fn judge(&self) {
        let mut state = self.state();
        if state.is_stopped {
            return;
        }
        for (worker, probed) in state.workers.iter_mut().enumerate() {
            if probed.owes() && probed.failing_since.is_none() {
                probed.failing_since = Some(SystemTime::now());
                self.missed.inc();
                warn!(worker, "A probe did not come back in time; the node is not ready.");
            }
        }
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
}

impl CanaryThread {
    /// Starts it, unless the configuration says that there are no probes.
    pub(crate) fn start(hub: &Arc<Hub>) -> io::Result<Option<Self>> {
        let canary = Arc::clone(&hub.canary);
        if canary.config.interval.is_zero() {
            return Ok(None);
        }
        let hub = Arc::clone(hub);
        let thread =
            thread::Builder::new().name("hub-canary".to_owned()).spawn(move || hub.canary.run(&hub))?;
        Ok(Some(Self { canary, thread: Some(thread) }))
    }
}

impl Drop for CanaryThread {
    fn drop(&mut self) {
        self.canary.state().is_stopped = true;
        self.canary.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic there was told already.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
