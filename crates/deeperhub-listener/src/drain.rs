//! Schedule of a drain: when each connection is closed, and when its client should reconnect.
//!
//! Reconnects are spread over *slots*: successive points in time, one slot length apart. Each
//! client gets a slot of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::config::Config;

/// Number of successive clients with different minimum delays. If closes are further apart than
/// slots, all clients would otherwise get the same delay, and clients with coarse timers would
/// reconnect together.
const DISTINCT_MIN_DELAYS: u64 = 100;

/// Server that the clients of a draining listener should reconnect to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReconnectTo {
    /// Other nodes of the cluster. They are running, so clients may reconnect at once.
    OtherNodes,
    /// This node, after a restart. Clients should wait for the end of the drain and for
    /// [`restart_time`](Config::restart_time).
    ThisNode,
}

/// Plan of a drain. All workers share it, so that closes and reconnects are spread over the whole
/// listener.
#[derive(Debug)]
pub(crate) struct DrainPlan {
    start: Instant,
    /// Period from the start over which the closes are spread evenly.
    close_period: Duration,
    /// Number of connections at the start, at least 1.
    open: u64,
    /// Number of closes that workers have taken.
    closes_taken: AtomicU64,
    /// Time between two slots.
    slot_length: Duration,
    /// Time from the start until the first client may reconnect.
    first_reconnect: Duration,
    /// Last slot that was taken, in nanoseconds since the start.
    last_slot: AtomicU64,
    /// Number of slots that were taken.
    slots_taken: AtomicU64,
}

impl DrainPlan {
    /// Creates a plan that spreads `open` closes over `time`. At the end of `time`, no closes are
    /// planned, so that the last clients can read their close frames. That part is as long as the
    /// close timeout, but at most a quarter of `time`.
    pub(crate) fn new(
        start: Instant,
        time: Duration,
        open: usize,
        reconnect_to: ReconnectTo,
        config: &Config,
    ) -> Self {
        let first_reconnect = match reconnect_to {
            ReconnectTo::OtherNodes => Duration::ZERO,
            ReconnectTo::ThisNode => time.saturating_add(config.restart_time),
        };
        Self {
            start,
            close_period: time - config.close_timeout.min(time / 4),
            open: open.max(1) as u64,
            closes_taken: AtomicU64::new(0),
            slot_length: Duration::from_secs_f64(1.0 / f64::from(config.reconnects_per_second.max(1))),
            first_reconnect,
            last_slot: AtomicU64::new(nanos(first_reconnect)),
            slots_taken: AtomicU64::new(0),
        }
    }

    /// Takes the next close and returns its time. Connections that were opened after the start are
    /// closed at the end of the close period.
    fn take_close(&self) -> Instant {
        let number = self.closes_taken.fetch_add(1, Ordering::Relaxed).min(self.open);
        let offset = self.close_period.as_nanos() * u128::from(number) / u128::from(self.open);
        self.start + Duration::from_nanos(u64::try_from(offset).unwrap_or(u64::MAX))
    }

    /// Returns the nanoseconds from the start to `now`.
    fn since_start(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.start))
    }

    /// Returns the time from `now` until the first client may reconnect.
    pub(crate) fn until_first_reconnect(&self, now: Instant) -> Duration {
        self.first_reconnect.saturating_sub(now.saturating_duration_since(self.start))
    }

    /// Returns the delay from `now` to the last slot taken, but at least one slot length. Takes no
    /// slot.
    fn reconnect_delay(&self, now: Instant) -> Duration {
        let last_slot = self.last_slot.load(Ordering::Relaxed);
        Duration::from_nanos(last_slot.saturating_sub(self.since_start(now))).max(self.slot_length)
    }

    /// Takes the next slot for one client and returns the delay from `now` to it.
    fn take_reconnect_delay(&self, now: Instant) -> Duration {
        let now = self.since_start(now);
        let slot_length = nanos(self.slot_length);
        let next_slot = |last_slot: u64| last_slot.max(now).saturating_add(slot_length);
        let last_slot = self
            .last_slot
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last_slot| Some(next_slot(last_slot)))
            .unwrap_or_else(|last_slot| last_slot);
        let delay = next_slot(last_slot) - now;
        let number = self.slots_taken.fetch_add(1, Ordering::Relaxed);
        let min_delay = slot_length.saturating_mul(number % DISTINCT_MIN_DELAYS + 1);
        Duration::from_nanos(delay.max(min_delay))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// One worker's part in a drain.
#[derive(Debug)]
pub(crate) struct WorkerDrain {
    plan: Arc<DrainPlan>,
    /// Time of the close that this worker has taken and not done yet.
    due: Option<Instant>,
    /// Key at which the worker looks for the next connection to close.
    pub(crate) cursor: u32,
}

impl WorkerDrain {
    pub(crate) const fn new(plan: Arc<DrainPlan>) -> Self {
        Self { plan, due: None, cursor: 0 }
    }

    /// Returns `true` if this is a part of the drain with this plan.
    pub(crate) fn is_of(&self, plan: &Arc<DrainPlan>) -> bool {
        Arc::ptr_eq(&self.plan, plan)
    }

    /// Returns the time at which the worker closes its next connection. Takes a close for it if
    /// needed. Returns `None` if no connection of the worker is open.
    pub(crate) fn next_close(&mut self, open: usize) -> Option<Instant> {
        (open > 0).then(|| *self.due.get_or_insert_with(|| self.plan.take_close()))
    }

    /// Returns `true` if the worker must close one connection now. The close then counts as done.
    pub(crate) fn take_close_if_due(&mut self, now: Instant, open: usize) -> bool {
        let is_due = self.next_close(open).is_some_and(|due| due <= now);
        if is_due {
            self.due = None;
        }
        is_due
    }

    /// Returns the reconnect delay of a client whose handshake is refused.
    pub(crate) fn reconnect_delay(&self, now: Instant) -> Duration {
        self.plan.reconnect_delay(now)
    }

    /// Takes a slot for one client and returns its reconnect delay.
    pub(crate) fn take_reconnect_delay(&self, now: Instant) -> Duration {
        self.plan.take_reconnect_delay(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn plan(time: Duration, open: usize) -> Arc<DrainPlan> {
        Arc::new(DrainPlan::new(Instant::now(), time, open, ReconnectTo::OtherNodes, &Config::default()))
    }

    /// Returns the milliseconds after the start of all closes. `open` has the number of connections
    /// of each worker.
    fn closes(plan: &Arc<DrainPlan>, mut open: Vec<usize>) -> Vec<u64> {
        let mut drains: Vec<_> = open.iter().map(|_| WorkerDrain::new(Arc::clone(plan))).collect();
        let mut times = Vec::new();
        for ms in 0..30_000 {
            for (drain, open) in drains.iter_mut().zip(&mut open) {
                while drain.take_close_if_due(plan.start + Duration::from_millis(ms), *open) {
                    *open -= 1;
                    times.push(ms);
                }
            }
        }
        times
    }

    #[test]
    fn closes_are_spread_evenly_over_the_time() {
        let times = closes(&plan(SECOND * 30, 1000), vec![1000]);
        assert_eq!((times.len(), times[0], times[999]), (1000, 0, 26_973));
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] == 27), "{times:?}");
    }

    #[test]
    fn a_few_closes_are_spread_evenly_too() {
        assert_eq!(closes(&plan(SECOND * 4, 4), vec![4]), [0, 750, 1500, 2250]);
        assert_eq!(closes(&plan(SECOND * 30, 1), vec![1]), [0]);
    }

    #[test]
    fn closes_are_spread_evenly_however_connections_are_distributed() {
        for open in [vec![3, 3], vec![1, 5], vec![0, 6], vec![2, 2, 2, 0]] {
            assert_eq!(closes(&plan(SECOND * 8, 6), open), [0, 1000, 2000, 3000, 4000, 5000]);
        }
    }

    #[test]
    fn connections_opened_after_the_start_are_closed_last() {
        assert_eq!(closes(&plan(SECOND * 4, 2), vec![4]), [0, 1500, 3000, 3000]);
    }

    #[test]
    fn without_time_all_are_closed_at_once() {
        assert_eq!(closes(&plan(Duration::ZERO, 50), vec![20, 30]), [0; 50]);
    }

    #[test]
    fn clients_of_all_workers_get_successive_slots() {
        let config = Config { reconnects_per_second: 100, ..Config::default() };
        let now = Instant::now();
        let plan = Arc::new(DrainPlan::new(now, SECOND, 3, ReconnectTo::OtherNodes, &config));
        let drains = [WorkerDrain::new(Arc::clone(&plan)), WorkerDrain::new(plan)];
        let slots = [0, 1, 0].map(|worker: usize| drains[worker].take_reconnect_delay(now));
        assert_eq!(slots, [10, 20, 30].map(Duration::from_millis));
    }

    #[test]
    fn clients_reconnect_to_this_node_after_its_restart() {
        let restart_time = SECOND * 7;
        let config = Config { reconnects_per_second: 10, restart_time, ..Config::default() };
        let start = Instant::now();
        let plan = DrainPlan::new(start, SECOND * 30, 3, ReconnectTo::ThisNode, &config);
        let slot = |seconds| plan.take_reconnect_delay(start + SECOND * seconds).as_millis();
        // Clients reconnect one by one from 37 s after the start on, whenever they are closed.
        assert_eq!((slot(0), slot(10), slot(27)), (37_100, 27_200, 10_300));
        assert_eq!(plan.until_first_reconnect(start + SECOND * 30), restart_time);
        assert_eq!(plan.until_first_reconnect(start + SECOND * 38), Duration::ZERO);
    }

    #[test]
    fn the_longest_times_do_not_overflow() {
        let config = Config { restart_time: Duration::MAX, ..Config::default() };
        let plan = DrainPlan::new(Instant::now(), Duration::MAX, 3, ReconnectTo::ThisNode, &config);
        plan.take_close();
        assert!(plan.take_reconnect_delay(plan.start) > SECOND);
    }

    #[test]
    fn delays_differ_even_if_closes_are_far_apart() {
        let plan = plan(SECOND * 30, 50);
        let slots: Vec<_> = (0..50).map(|n| plan.take_reconnect_delay(plan.start + n * SECOND / 2)).collect();
        assert!(slots.windows(2).all(|pair| pair[0] < pair[1]), "{slots:?}");
    }
}
