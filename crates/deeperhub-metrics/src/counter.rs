//! Counters, with and without a label.

use crate::cells::{CellError, Cells, OwnedSlots, SlotRange};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows: the sum of one cell for each worker.
///
/// A counter is cheap to clone; clones are the same counter. The number wraps around at 2⁶⁴.
#[derive(Debug, Clone)]
pub struct Counter {
    slots: SlotRange,
}

impl Counter {
    /// Creates a counter at zero.
    #[must_use]
    pub fn new(cells: &Cells) -> Self {
        Self { slots: cells.reserve(1) }
    }

    /// Returns the handle of a worker's cell. `worker` counts from 0. A cell has at most one handle
    /// at a time. After the handle is dropped, another handle can be created; the cell keeps its
    /// number.
    ///
    /// # Errors
    ///
    /// Returns a [`CellError`] if there is no such worker, or if another handle of the cell exists.
    pub fn cell(&self, worker: usize) -> Result<CounterCell, CellError> {
        Ok(CounterCell { slots: self.slots.take(worker)? })
    }

    /// Returns the sum of all cells.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.slots.sum(0)
    }
}

/// The handle of a worker's cell of a [`Counter`].
#[derive(Debug)]
pub struct CounterCell {
    slots: OwnedSlots,
}

impl CounterCell {
    /// Adds one.
    #[inline]
    pub fn inc(&mut self) {
        self.add(1);
    }

    /// Adds `n`.
    #[inline]
    pub fn add(&mut self, n: u64) {
        self.slots.add(0, n);
    }

    /// Returns the number in this cell, including the counts of earlier owners.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.slots.value(0)
    }
}

/// Counters that differ in one label with a fixed list of values.
///
/// The index of a label value selects the counter, without hashing or comparing. A vector is cheap
/// to clone; clones are the same counters.
#[derive(Debug, Clone)]
pub struct CounterVec {
    label: &'static str,
    values: &'static [&'static str],
    slots: SlotRange,
}

impl CounterVec {
    /// Creates a counter at zero for each of `values` of the label `label`.
    ///
    /// # Panics
    ///
    /// Panics if there are more than 256 values.
    #[must_use]
    pub fn new(cells: &Cells, label: &'static str, values: &'static [&'static str]) -> Self {
        Self { label, values, slots: cells.reserve(values.len()) }
    }

    /// Returns the handle of a worker's cell, like [`Counter::cell`].
    ///
    /// # Errors
    ///
    /// Returns a [`CellError`] if there is no such worker, or if another handle of the cell exists.
    pub fn cell(&self, worker: usize) -> Result<CounterVecCell, CellError> {
        Ok(CounterVecCell { slots: self.slots.take(worker)?, len: self.values.len() })
    }

    /// Returns the label's name.
    #[must_use]
    pub fn label(&self) -> &'static str {
        self.label
    }

    /// Returns the label's values in the order of their indexes.
    #[must_use]
    pub fn values(&self) -> &'static [&'static str] {
        self.values
    }

    /// Returns the sum of all cells at `index`, or 0 if there is no such index.
    #[must_use]
    pub fn value(&self, index: usize) -> u64 {
        if index < self.values.len() { self.slots.sum(index) } else { 0 }
    }

    /// Returns the sum of all cells and all indexes.
    #[must_use]
    pub fn total(&self) -> u64 {
        (0..self.values.len()).map(|index| self.slots.sum(index)).fold(0, u64::wrapping_add)
    }
}

/// The handle of a worker's cell of a [`CounterVec`].
#[derive(Debug)]
pub struct CounterVecCell {
    slots: OwnedSlots,
    len: usize,
}

impl CounterVecCell {
    /// Adds one at `index`. Ignores an index out of range, but panics in debug builds.
    #[inline]
    pub fn inc(&mut self, index: usize) {
        self.add(index, 1);
    }

    /// Adds `n` at `index`, like [`inc`](Self::inc).
    #[inline]
    pub fn add(&mut self, index: usize, n: u64) {
        debug_assert!(index < self.len, "label index {index} of {}", self.len);
        if index < self.len {
            self.slots.add(index, n);
        }
    }
}

/// A counter that any thread can use, for code that does not run often.
///
/// Each call is one atomic addition on a cache line that all writers share. A counter is cheap to
/// clone; clones are the same counter.
#[derive(Debug, Clone, Default)]
pub struct SharedCounter {
    count: Arc<AtomicU64>,
}

impl SharedCounter {
    /// Creates a counter at zero.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.count.fetch_add(n, Ordering::Relaxed);
    }

    /// Returns the count.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

/// A [`CounterVec`] that any thread can use, for code that does not run often. Clones are the same
/// counters.
#[derive(Debug, Clone)]
pub struct SharedCounterVec {
    label: &'static str,
    values: &'static [&'static str],
    counts: Arc<[AtomicU64]>,
}

impl SharedCounterVec {
    /// Creates a counter at zero for each of `values` of the label `label`.
    #[must_use]
    pub fn new(label: &'static str, values: &'static [&'static str]) -> Self {
        Self { label, values, counts: values.iter().map(|_| AtomicU64::new(0)).collect() }
    }

    /// Adds one at `index`. Ignores an index out of range, but panics in debug builds.
    pub fn inc(&self, index: usize) {
        self.add(index, 1);
    }

    /// Adds `n` at `index`, like [`inc`](Self::inc).
    pub fn add(&self, index: usize, n: u64) {
        debug_assert!(index < self.counts.len(), "label index {index} of {}", self.counts.len());
        if let Some(count) = self.counts.get(index) {
            count.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Returns the label's name.
    #[must_use]
    pub fn label(&self) -> &'static str {
        self.label
    }

    /// Returns the label's values in the order of their indexes.
    #[must_use]
    pub fn values(&self) -> &'static [&'static str] {
        self.values
    }

    /// Returns the count at `index`, or 0 if there is no such index.
    #[must_use]
    pub fn value(&self, index: usize) -> u64 {
        self.counts.get(index).map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPES: &[&str] = &["text", "binary"];

    #[test]
    fn a_counter_is_the_sum_of_its_cells() {
        let counter = Counter::new(&Cells::new(2));
        let (mut first, mut second) = (counter.cell(0).unwrap(), counter.cell(1).unwrap());
        first.inc();
        second.add(41);
        assert_eq!((first.value(), second.value(), counter.clone().value()), (1, 41, 42));
    }

    #[test]
    fn a_worker_that_replaces_another_continues_with_its_count() {
        let counter = Counter::new(&Cells::new(1));
        let result = std::panic::catch_unwind(|| {
            let mut cell = counter.cell(0).unwrap();
            cell.add(3);
            std::panic::resume_unwind(Box::new("the worker panics"));
        });
        assert!(result.is_err());
        let mut cell = counter.cell(0).unwrap();
        cell.inc();
        assert_eq!(counter.value(), 4);
    }

    #[test]
    fn a_vector_counts_each_label_value_at_its_index() {
        let vec = CounterVec::new(&Cells::new(2), "type", TYPES);
        let (mut first, mut second) = (vec.cell(0).unwrap(), vec.cell(1).unwrap());
        first.inc(0);
        first.add(1, 5);
        second.inc(1);
        assert_eq!((vec.value(0), vec.value(1), vec.value(2), vec.total()), (1, 6, 0, 7));
    }

    #[test]
    #[cfg_attr(debug_assertions, should_panic(expected = "label index 2 of 2"))]
    fn an_index_out_of_range_is_ignored() {
        let cells = Cells::new(1);
        let (vec, next) = (CounterVec::new(&cells, "type", TYPES), Counter::new(&cells));
        vec.cell(0).unwrap().inc(2);
        assert_eq!((vec.total(), next.value()), (0, 0));
    }

    #[test]
    fn shared_counters_count_on_all_threads() {
        let (counter, vec) = (SharedCounter::new(), SharedCounterVec::new("type", TYPES));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        counter.inc();
                        vec.inc(1);
                    }
                });
            }
        });
        assert_eq!((counter.value(), vec.value(0), vec.value(1), vec.value(2)), (4000, 0, 4000, 0));
    }
}
