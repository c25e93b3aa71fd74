//! Limits a worker's *intake* while memory is short: the client input that it reads and handles.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::memory_budget::MemoryBudget;

/// Period after which a worker may take in at least [`MIN_INTAKE`] again, even without a new
/// measurement.
const RENEWAL_PERIOD: Duration = Duration::from_millis(100);

/// Minimum intake per period, however short memory is. It suffices for pongs and closes of many
/// clients, and for slow message traffic. Without the minimum, a worker could stop for good because
/// something else holds the memory.
const MIN_INTAKE: u64 = 256 * 1024;

/// A worker's share of the memory left in the budget, in [byte cost](crate::round).
///
/// Memory is measured a few times a second. The intake between two measurements is bounded by the
/// memory left at the first. Without that bound, clients that send compressed messages could make a
/// worker hold gigabytes before the next measurement.
#[derive(Debug)]
pub(crate) struct IntakeLimit {
    memory: Option<Arc<MemoryBudget>>,
    workers: u64,
    /// Cost that may still be spent.
    remaining: u64,
    /// Number of the measurement that `remaining` was computed from.
    last_measurement: u64,
    /// End of the period. `None` before the first round.
    period_end: Option<Instant>,
}

impl IntakeLimit {
    pub(crate) fn new(memory: Option<Arc<MemoryBudget>>, workers: usize) -> Self {
        let remaining = if memory.is_some() { MIN_INTAKE } else { u64::MAX };
        Self { memory, workers: workers.max(1) as u64, remaining, last_measurement: 0, period_end: None }
    }

    /// Renews the limit if there is a new measurement or the period is over.
    pub(crate) fn begin_round(&mut self, now: Instant) {
        let Some(memory) = &self.memory else { return };
        let measurement = memory.measurements();
        if measurement != self.last_measurement || self.period_end.is_none_or(|end| now >= end) {
            if measurement != self.last_measurement {
                self.remaining = memory.intake_room() / self.workers;
            }
            self.remaining = self.remaining.max(MIN_INTAKE);
            self.last_measurement = measurement;
            self.period_end = now.checked_add(RENEWAL_PERIOD);
        }
    }

    /// Returns the cost that may still be spent.
    pub(crate) fn remaining(&self) -> usize {
        usize::try_from(self.remaining).unwrap_or(usize::MAX)
    }

    /// Returns `true` if no input may be read until the limit is renewed.
    pub(crate) fn is_used_up(&self) -> bool {
        self.remaining == 0
    }

    /// Deducts cost that was spent.
    pub(crate) fn spend(&mut self, cost: usize) {
        if self.memory.is_some() {
            self.remaining = self.remaining.saturating_sub(cost as u64);
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
        assert_eq!(intake.remaining(), usize::MAX);
    }

    #[test]
    fn workers_share_the_room_below_the_budget() {
        let memory = Arc::new(MemoryBudget::new(100 << 20));
        memory.update(55 << 20);
        let mut intake = IntakeLimit::new(Some(Arc::clone(&memory)), 2);
        let now = Instant::now();
        intake.begin_round(now);
        assert_eq!(intake.remaining(), 20 << 20, "half of the 40 MiB up to 95 %");
        intake.spend(20 << 20);
        assert!(intake.is_used_up());
        intake.begin_round(now);
        assert!(intake.is_used_up(), "the limit is renewed before a measurement");
        memory.update(75 << 20);
        intake.begin_round(now);
        assert_eq!(intake.remaining(), 10 << 20);
        // The end of a period does not lower the limit.
        intake.begin_round(now + 2 * RENEWAL_PERIOD);
        assert_eq!(intake.remaining(), 10 << 20);
    }

    #[test]
    fn a_minimum_intake_remains_when_memory_is_short() {
        let memory = Arc::new(MemoryBudget::new(1 << 20));
        memory.update(1 << 30);
        let mut intake = IntakeLimit::new(Some(memory), 1);
        let mut now = Instant::now();
        for _ in 0..3 {
            intake.begin_round(now);
            assert_eq!(intake.remaining() as u64, MIN_INTAKE);
            intake.spend(usize::MAX);
            assert!(intake.is_used_up());
            now += RENEWAL_PERIOD;
        }
    }
}
