//! Gauges.

use crate::cells::{CellError, Cells, OwnedSlots, SlotRange};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// A number that goes up and down: the sum of one cell for each worker.
///
/// A gauge is cheap to clone; clones are the same gauge.
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

    /// Returns the handle of a worker's cell. `worker` counts from 0. A cell has at most one handle
    /// at a time. After the handle is dropped, another handle can be created; the cell keeps its
    /// number. A restarted worker therefore sets its cell with [`GaugeCell::set`].
    ///
    /// # Errors
    ///
    /// Returns a [`CellError`] if there is no such worker, or if another handle of the cell exists.
    pub fn cell(&self, worker: usize) -> Result<GaugeCell, CellError> {
        Ok(GaugeCell { slots: self.slots.take(worker)? })
    }

    /// Returns the sum of all cells.
    #[must_use]
    pub fn value(&self) -> i64 {
        self.slots.sum(0).cast_signed()
    }
}

/// The handle of a worker's cell of a [`Gauge`].
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

/// A gauge that any thread can use, for code that does not run often.
///
/// A gauge is cheap to clone; clones are the same gauge.
#[derive(Debug, Clone, Default)]
pub struct SharedGauge {
    value: Arc<AtomicI64>,
}

impl SharedGauge {
    /// Creates a gauge at zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Subtracts one.
    pub fn dec(&self) {
        self.add(-1);
    }

    /// Adds `n`, which can be negative.
    pub fn add(&self, n: i64) {
        self.value.fetch_add(n, Ordering::Relaxed);
    }

    /// Sets the value.
    pub fn set(&self, value: i64) {
        self.value.store(value, Ordering::Relaxed);
    }

    /// Returns the value.
    #[must_use]
    pub fn value(&self) -> i64 {
        self.value.load(Ordering::Relaxed)
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
    fn a_shared_gauge_goes_up_and_down() {
        let gauge = SharedGauge::new();
        gauge.set(5);
        gauge.inc();
        gauge.clone().dec();
        gauge.add(-7);
        assert_eq!(gauge.value(), -2);
    }
}
