//! Gauges.

use crate::cells::{CellError, Cells, OwnedSlots, SlotRange};
use crate::metric::Instrument;
use crate::snapshot::MetricData;
use std::sync::atomic::Ordering;

/// A number that goes up and down: the sum of one cell for each worker and one for all other
/// threads.
///
/// A gauge is cheap to clone; clones are the same gauge. The default has no workers' cells.
#[derive(Debug, Clone)]
pub struct Gauge {
    slots: SlotRange,
}

impl Gauge {
    /// Creates a gauge at zero.
    #[must_use]
    pub fn new(cells: &Cells) -> Self {
        Self { slots: cells.reserve(1) }
    }

    /// Adds one, on any thread. One atomic addition on a cache line that all threads share, so this
    /// is for code that does not run often.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Subtracts one, like [`inc`](Self::inc).
    pub fn dec(&self) {
        self.add(-1);
    }

    /// Adds `n`, which can be negative, like [`inc`](Self::inc).
    pub fn add(&self, n: i64) {
        self.slots.shared(0).fetch_add(n.cast_unsigned(), Ordering::Relaxed);
    }

    /// Sets the number of the threads without a cell. For a gauge without workers' cells, that is
    /// the gauge's value.
    pub fn set(&self, value: i64) {
        self.slots.shared(0).store(value.cast_unsigned(), Ordering::Relaxed);
    }

    /// Adds `n` and returns `true`, unless the number of the threads without a cell would then be
    /// over `max`. The gauge can thus count what it limits.
    #[must_use]
    pub fn try_add(&self, n: i64, max: i64) -> bool {
        let add = |value: u64| {
            let sum = value.cast_signed().checked_add(n).filter(|&sum| sum <= max)?;
            Some(sum.cast_unsigned())
        };
        self.slots.shared(0).fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    /// Returns the sum of all cells.
    #[must_use]
    pub fn value(&self) -> i64 {
        self.slots.sum(0).cast_signed()
    }
}

impl Default for Gauge {
    fn default() -> Self {
        Self::new(&Cells::default())
    }
}

impl Instrument for Gauge {
    type Cell = GaugeCell;

    fn cell(&self, worker: usize) -> Result<GaugeCell, CellError> {
        Ok(GaugeCell { slots: self.slots.take(worker)? })
    }

    fn read(&self) -> MetricData {
        MetricData::Gauge(self.value().into())
    }
}

/// The handle of a worker's cell of a [`Gauge`]. A worker that replaces another
/// [sets](Self::set) it, because the cell still has the other worker's number.
#[derive(Debug)]
pub struct GaugeCell {
    slots: OwnedSlots,
}

impl GaugeCell {
    /// Adds one.
    #[inline]
    pub fn inc(&mut self) {
        self.add(1);
    }

    /// Subtracts one.
    #[inline]
    pub fn dec(&mut self) {
        self.add(-1);
    }

    /// Adds `n`, which can be negative.
    #[inline]
    pub fn add(&mut self, n: i64) {
        self.slots.add(0, n.cast_unsigned());
    }

    /// Sets this cell's value.
    #[inline]
    pub fn set(&mut self, value: i64) {
        self.slots.set(0, value.cast_unsigned());
    }

    /// Returns this cell's value.
    #[must_use]
    pub fn value(&self) -> i64 {
        self.slots.value(0).cast_signed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_is_the_sum_of_its_cells_and_can_be_negative() {
        let gauge = Gauge::new(&Cells::new(2));
        let (mut first, mut second) = (gauge.cell(0).unwrap(), gauge.cell(1).unwrap());
        first.inc();
        second.add(-3);
        second.dec();
        assert_eq!((first.value(), second.value(), gauge.value()), (1, -4, -3));
    }

    #[test]
    fn a_restarted_worker_sets_its_cell() {
        let gauge = Gauge::new(&Cells::new(2));
        let (mut first, mut second) = (gauge.cell(0).unwrap(), gauge.cell(1).unwrap());
        first.add(10);
        second.add(5);
        drop(second);
        let mut second = gauge.cell(1).unwrap();
        assert_eq!(second.value(), 5);
        second.set(0);
        assert_eq!(gauge.value(), 10);
    }

    #[test]
    fn any_thread_can_move_a_gauge() {
        let gauge = Gauge::new(&Cells::new(1));
        gauge.cell(0).unwrap().set(100);
        gauge.set(5);
        gauge.inc();
        gauge.clone().dec();
        gauge.add(-7);
        assert_eq!(gauge.value(), 98);
    }

    #[test]
    fn a_limit_refuses_what_exceeds_it() {
        let gauge = Gauge::default();
        assert!(gauge.try_add(60, 100) && !gauge.try_add(41, 100) && gauge.try_add(40, 100));
        assert!(!gauge.try_add(i64::MAX, i64::MAX));
        assert_eq!(gauge.value(), 100);
    }
}
