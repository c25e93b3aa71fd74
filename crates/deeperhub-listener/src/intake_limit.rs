//! Limits a worker's intake while memory is short.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::memory_budget::MemoryBudget;

/// Period after which intake is raised to at least [`MIN_INTAKE`], even without a new measurement.
const RENEWAL_PERIOD: Duration = Duration::from_millis(100);

/// Minimum intake per period, however short memory is. It suffices for pongs and closes of many
/// clients, and for slow message traffic. Memory that something else holds never stops a worker for
/// good.
const MIN_INTAKE: u64 = 256 * 1024;

/// A worker's share of the room left below the memory budget, in byte cost.
///
/// Memory is measured a few times a second. Intake between two measurements is bounded by the room
/// left at the first. Without that bound, clients that send compressed messages could make a worker
/// hold gigabytes before the next measurement.
#[derive(Debug)]
pub(crate) struct IntakeLimit {
    memory: Option<Arc<MemoryBudget>>,
    workers: u64,
    left: u64,
    /// Measurement that `left` was computed from.
    last_measurement: u64,
    until: Option<Instant>,
}

impl IntakeLimit {
    pub(crate) fn new(memory: Option<Arc<MemoryBudget>>, workers: usize) -> Self {
        let left = if memory.is_some() { MIN_INTAKE } else { u64::MAX };
        Self { memory, workers: workers.max(1) as u64, left, last_measurement: 0, until: None }
    }

    /// Renews the limit if memory was measured again or the period is over.
    pub(crate) fn begin_round(&mut self, now: Instant) {
        let Some(memory) = &self.memory else { return };
        let measurement = memory.measurements();
        if measurement != self.last_measurement || self.until.is_none_or(|until| now >= until) {
            let left = if measurement == self.last_measurement {
                self.left
            } else {
                memory.intake_room() / self.workers
            };
            self.left = left.max(MIN_INTAKE);
            self.last_measurement = measurement;
            self.until = now.checked_add(RENEWAL_PERIOD);
        }
    }

    /// Returns the cost that may be spent now.
    pub(crate) fn left(&self) -> usize {
        usize::try_from(self.left).unwrap_or(usize::MAX)
    }

    /// Returns `true` if nothing may be read until the limit is renewed.
    pub(crate) fn is_used_up(&self) -> bool {
        self.left == 0
    }

    /// Deducts the cost of a round.
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
    fn intake_is_unlimited_without_a_memory_budget() {
        let mut intake = IntakeLimit::new(None, 1);
        intake.begin_round(Instant::now());
        intake.spend(usize::MAX);
        assert!(!intake.is_used_up());
        assert_eq!(intake.left(), usize::MAX);
    }

    #[test]
    fn workers_share_the_room_below_the_budget() {
        let memory = Arc::new(MemoryBudget::new(100 << 20));
        memory.update(55 << 20);
        let mut intake = IntakeLimit::new(Some(Arc::clone(&memory)), 2);
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
        // A late measurement takes nothing away.
        intake.begin_round(now + 2 * RENEWAL_PERIOD);
        assert_eq!(intake.left(), 10 << 20);
    }

    #[test]
    fn a_minimum_intake_remains_when_memory_is_short() {
        let memory = Arc::new(MemoryBudget::new(1 << 20));
        memory.update(1 << 30);
        let mut intake = IntakeLimit::new(Some(memory), 1);
        let mut now = Instant::now();
        for _ in 0..3 {
            intake.begin_round(now);
            assert_eq!(intake.left() as u64, MIN_INTAKE);
            intake.spend(usize::MAX);
            assert!(intake.is_used_up());
            now += RENEWAL_PERIOD;
        }
    }
}
