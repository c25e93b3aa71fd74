//! How much a worker may take in while memory is short.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::budget::MemoryBudget;

/// How long what may be taken in lasts at the least, whether or not somebody measures.
const PERIOD: Duration = Duration::from_millis(100);

/// What may be taken in each period however short memory is: enough for pongs and closes of many, and for messages to go
/// on slowly. Nothing stands still for good because of memory that something else holds.
const FLOOR: u64 = 256 * 1024;

/// A worker's part of the room that is left below the memory budget, in the cost of what it takes in.
///
/// Memory is measured a few times a second. What comes in between two measurements is bounded by what was left at the
/// first: without that, clients that send compressed messages can make a worker hold gigabytes before anybody looks.
#[derive(Debug)]
pub(crate) struct Intake {
    memory: Option<Arc<MemoryBudget>>,
    workers: u64,
    left: u64,
    /// The measurement that `left` is from.
    seen: u64,
    until: Option<Instant>,
}

impl Intake {
    pub(crate) fn new(memory: Option<Arc<MemoryBudget>>, workers: usize) -> Self {
        let left = if memory.is_some() { FLOOR } else { u64::MAX };
        Self { memory, workers: workers.max(1) as u64, left, seen: 0, until: None }
    }

    /// Looks for a new measurement.
    pub(crate) fn begin_round(&mut self, now: Instant) {
        let Some(memory) = &self.memory else { return };
        let measurement = memory.measurements();
        if measurement != self.seen || self.until.is_none_or(|until| now >= until) {
            let left = if measurement == self.seen { self.left } else { memory.room() / self.workers };
            self.left = left.max(FLOOR);
            self.seen = measurement;
            self.until = now.checked_add(PERIOD);
        }
    }

    /// Cost that may be spent now.
    pub(crate) fn left(&self) -> usize {
        usize::try_from(self.left).unwrap_or(usize::MAX)
    }

    /// Whether nothing may be read until memory is measured again.
    pub(crate) fn is_used_up(&self) -> bool {
        self.left == 0
    }

    /// Takes off what a round has taken in.
    pub(crate) fn spend(&mut self, cost: usize) {
        if self.memory.is_some() {
            self.left = self.left.saturating_sub(cost as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_budget_nothing_is_ever_used_up() {
        let mut intake = Intake::new(None, 1);
        intake.begin_round(Instant::now());
        intake.spend(usize::MAX);
        assert!(!intake.is_used_up());
        assert_eq!(intake.left(), usize::MAX);
    }

    #[test]
    fn what_is_left_below_the_budget_is_shared_by_the_workers() {
        let memory = Arc::new(MemoryBudget::new(100 << 20));
        memory.update(55 << 20);
        let mut intake = Intake::new(Some(Arc::clone(&memory)), 2);
        let now = Instant::now();
        intake.begin_round(now);
        assert_eq!(intake.left(), 20 << 20, "half of what is left up to 95 %");
        intake.spend(20 << 20);
        assert!(intake.is_used_up());
        intake.begin_round(now);
        assert!(intake.is_used_up(), "until it is measured again");
        memory.update(75 << 20);
        intake.begin_round(now);
        assert_eq!(intake.left(), 10 << 20);
        // A measurement that is late takes nothing away.
        intake.begin_round(now + 2 * PERIOD);
        assert_eq!(intake.left(), 10 << 20);
    }

    #[test]
    fn something_goes_on_however_short_memory_is_and_whoever_measures() {
        let memory = Arc::new(MemoryBudget::new(1 << 20));
        memory.update(1 << 30);
        let mut intake = Intake::new(Some(memory), 1);
        let mut now = Instant::now();
        for _ in 0..3 {
            intake.begin_round(now);
            assert_eq!(intake.left() as u64, FLOOR);
            intake.spend(usize::MAX);
            assert!(intake.is_used_up());
            now += PERIOD;
        }
    }
}
