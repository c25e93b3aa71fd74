//! Schedule of a drain: when each connection is closed, and when its client should come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::config::Config;

/// Clients in a row that get different delays if closes are further apart than reconnects. Without it
/// each would get the minimum delay, and clients with coarse timers would come back together.
const SPREAD: u64 = 100;

/// Server that clients of a draining listener should come back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReconnectTo {
    /// Other nodes, which are up: the first client may come back at once.
    OtherNodes,
    /// The successor of this node. It is up once this node has ended and
    /// [`restart_time`](Config::restart_time) has passed.
    ThisNode,
}

/// Plan of a drain, shared by all workers, so that closes and reconnects are even over the listener.
#[derive(Debug)]
pub(crate) struct DrainPlan {
    start: Instant,
    /// Time from the first close to one after the last.
    spread_over: Duration,
    /// Connections at the start.
    open: u64,
    /// Closes that workers have taken.
    closes: AtomicU64,
    /// Time between two reconnects.
    slot_length: Duration,
    /// Time from the start until the first client may come back.
    first_return: Duration,
    /// Start of the next reconnect slot, in nanoseconds since the start.
    next_slot: AtomicU64,
    slots_taken: AtomicU64,
}

impl DrainPlan {
    /// Spreads `open` closes evenly over `time`, less the time that the last peers need to read
    /// theirs. That is the close timeout, or a quarter of `time` if that is less. Clients come back
    /// from now on, or once this node has restarted.
    pub(crate) fn new(
        start: Instant,
        time: Duration,
        open: usize,
        reconnect_to: ReconnectTo,
        config: &Config,
    ) -> Self {
        let first_return = match reconnect_to {
            ReconnectTo::OtherNodes => Duration::ZERO,
            ReconnectTo::ThisNode => time.saturating_add(config.restart_time),
        };
        Self {
            start,
            spread_over: time - config.close_timeout.min(time / 4),
            open: open.max(1) as u64,
            closes: AtomicU64::new(0),
            slot_length: Duration::from_secs_f64(1.0 / f64::from(config.reconnects_per_second.max(1))),
            first_return,
            next_slot: AtomicU64::new(nanos(first_return)),
            slots_taken: AtomicU64::new(0),
        }
    }

    /// Takes the time of the next close. Connections opened after the start are closed last.
    fn take_close(&self) -> Instant {
        let number = self.closes.fetch_add(1, Ordering::Relaxed).min(self.open);
        let after = self.spread_over.as_nanos() * u128::from(number) / u128::from(self.open);
        self.start + Duration::from_nanos(u64::try_from(after).unwrap_or(u64::MAX))
    }

    fn since_start(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.start))
    }

    /// Returns the time until the first client may come back.
    pub(crate) fn until_first_return(&self, now: Instant) -> Duration {
        self.first_return.saturating_sub(now.saturating_duration_since(self.start))
    }

    /// Returns the delay after which one more client should come back, without taking it.
    fn reconnect_delay(&self, now: Instant) -> Duration {
        let next = self.next_slot.load(Ordering::Relaxed);
        Duration::from_nanos(next.saturating_sub(self.since_start(now))).max(self.slot_length)
    }

    /// Takes a reconnect delay for one client.
    fn take_reconnect_delay(&self, now: Instant) -> Duration {
        let now = self.since_start(now);
        let length = nanos(self.slot_length);
        let after = |next: u64| next.max(now).saturating_add(length);
        let taken =
            self.next_slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| Some(after(next)));
        let slot = after(taken.unwrap_or_else(|next| next)) - now;
        let neighbour = self.slots_taken.fetch_add(1, Ordering::Relaxed) % SPREAD + 1;
        Duration::from_nanos(slot.max(length.saturating_mul(neighbour)))
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// One worker's part in a drain.
#[derive(Debug)]
pub(crate) struct WorkerDrain {
    plan: Arc<DrainPlan>,
    /// Time of the close that this worker has taken.
    due: Option<Instant>,
    pub(crate) cursor: u32,
}

impl WorkerDrain {
    pub(crate) const fn new(plan: Arc<DrainPlan>) -> Self {
        Self { plan, due: None, cursor: 0 }
    }

    pub(crate) fn is_of(&self, plan: &Arc<DrainPlan>) -> bool {
        Arc::ptr_eq(&self.plan, plan)
    }

    /// Returns when the next connection is closed, or `None` if no connection of the worker is open.
    pub(crate) fn next_close(&mut self, open: usize) -> Option<Instant> {
        (open > 0).then(|| *self.due.get_or_insert_with(|| self.plan.take_close()))
    }

    /// Returns `true` if a connection must be closed now. Each `true` is for one connection.
    pub(crate) fn take_close_if_due(&mut self, now: Instant, open: usize) -> bool {
        let is_due = self.next_close(open).is_some_and(|due| due <= now);
        if is_due {
            self.due = None;
        }
        is_due
    }

    /// Returns the delay for a refused client.
    pub(crate) fn reconnect_delay(&self, now: Instant) -> Duration {
        self.plan.reconnect_delay(now)
    }

    /// Takes a reconnect delay for one client.
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

    /// Milliseconds after the start at which workers with so many connections each close one.
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
    fn the_same_goes_for_a_few_connections_and_a_short_time() {
        assert_eq!(closes(&plan(SECOND * 4, 4), vec![4]), [0, 750, 1500, 2250]);
        assert_eq!(closes(&plan(SECOND * 30, 1), vec![1]), [0]);
    }

    #[test]
    fn workers_share_the_time_whatever_their_part() {
        for parts in [vec![3, 3], vec![1, 5], vec![0, 6], vec![2, 2, 2, 0]] {
            assert_eq!(closes(&plan(SECOND * 8, 6), parts), [0, 1000, 2000, 3000, 4000, 5000]);
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
    fn slots_follow_each_other() {
        let config = Config { reconnects_per_second: 100, ..Config::default() };
        let now = Instant::now();
        let plan = Arc::new(DrainPlan::new(now, SECOND, 3, ReconnectTo::OtherNodes, &config));
        // The workers' clients come back one behind the other too.
        let drains = [WorkerDrain::new(Arc::clone(&plan)), WorkerDrain::new(plan)];
        let slots = [0, 1, 0].map(|worker: usize| drains[worker].take_reconnect_delay(now));
        assert_eq!(slots, [10, 20, 30].map(Duration::from_millis));
    }

    #[test]
    fn clients_of_a_node_that_is_alone_come_back_when_it_has_been_started_again() {
        let restart_time = SECOND * 7;
        let config = Config { reconnects_per_second: 10, restart_time, ..Config::default() };
        let start = Instant::now();
        let plan = DrainPlan::new(start, SECOND * 30, 3, ReconnectTo::ThisNode, &config);
        let slot = |seconds| plan.take_reconnect_delay(start + SECOND * seconds).as_millis();
        // Whenever they are closed, clients come back one by one from 37 s on.
        assert_eq!((slot(0), slot(10), slot(27)), (37_100, 27_200, 10_300));
        assert_eq!(plan.until_first_return(start + SECOND * 30), restart_time);
        assert_eq!(plan.until_first_return(start + SECOND * 38), Duration::ZERO);
    }

    #[test]
    fn no_time_is_too_long() {
        let config = Config { restart_time: Duration::MAX, ..Config::default() };
        let plan = DrainPlan::new(Instant::now(), Duration::MAX, 3, ReconnectTo::ThisNode, &config);
        plan.take_close();
        assert!(plan.take_reconnect_delay(plan.start) > SECOND);
    }

    #[test]
    fn neighbours_get_different_slots_however_far_apart_they_are_closed() {
        let plan = plan(SECOND * 30, 50);
        let slots: Vec<_> = (0..50).map(|n| plan.take_reconnect_delay(plan.start + n * SECOND / 2)).collect();
        assert!(slots.windows(2).all(|pair| pair[0] < pair[1]), "{slots:?}");
    }
}
