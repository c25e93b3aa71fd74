//! Counters, with and without a label.

use crate::cells::{CellError, Cells, OwnedSlots, SlotRange};
use crate::label::Label;
use crate::metric::Instrument;
use crate::snapshot::MetricData;
use std::marker::PhantomData;
use std::sync::atomic::Ordering;

/// A number that only grows: the sum of one cell for each worker and one for all other threads.
///
/// A counter is cheap to clone; clones are the same counter. The number wraps around at 2⁶⁴. The
/// default has no workers' cells.
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

    /// Adds one, on any thread. One atomic addition on a cache line that all threads share, so this
    /// is for code that does not run often.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds `n`, like [`inc`](Self::inc).
    pub fn add(&self, n: u64) {
        self.slots.shared(0).fetch_add(n, Ordering::Relaxed);
    }

    /// Returns the sum of all cells.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.slots.sum(0)
    }
}

impl Default for Counter {
    fn default() -> Self {
        Self::new(&Cells::default())
    }
}

impl Instrument for Counter {
    type Cell = CounterCell;

    fn cell(&self, worker: usize) -> Result<CounterCell, CellError> {
        Ok(CounterCell { slots: self.slots.take(worker)? })
    }

    fn read(&self) -> MetricData {
        MetricData::counter(self.value())
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

/// Counters that differ in the value of one [`Label`].
///
/// A value of the label selects the counter, without hashing or comparing. A vector is cheap to
/// clone; clones are the same counters. Counting with another label does not compile:
///
/// ```compile_fail,E0308
/// # use deeperhub_metrics::{CounterVec, labels};
/// # labels! {
/// #     /// Type of a message.
/// #     enum MessageType("type") { Text = "text" }
/// #     /// Code of an error.
/// #     enum ErrorCode("code") { Internal = "internal" }
/// # }
/// let received = CounterVec::<MessageType>::default();
/// received.inc(ErrorCode::Internal);
/// ```
#[derive(Debug, Clone)]
pub struct CounterVec<L> {
    slots: SlotRange,
    label: PhantomData<fn(L)>,
}

impl<L: Label> CounterVec<L> {
    /// Creates a counter at zero for each value of the label.
    ///
    /// # Panics
    ///
    /// Panics if there are more than 256 values.
    #[must_use]
    pub fn new(cells: &Cells) -> Self {
        Self { slots: cells.reserve(L::VALUES.len()), label: PhantomData }
    }

    /// Adds one to the counter of a label value, on any thread, like [`Counter::inc`].
    pub fn inc(&self, label: L) {
        self.add(label, 1);
    }

    /// Adds `n` to the counter of a label value, like [`inc`](Self::inc).
    pub fn add(&self, label: L, n: u64) {
        if let Some(offset) = offset(label) {
            self.slots.shared(offset).fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Returns the sum of all cells of a label value.
    #[must_use]
    pub fn value(&self, label: L) -> u64 {
        offset(label).map_or(0, |offset| self.slots.sum(offset))
    }

    /// Returns the sum of all cells of all label values.
    #[must_use]
    pub fn total(&self) -> u64 {
        (0..L::VALUES.len()).map(|offset| self.slots.sum(offset)).fold(0, u64::wrapping_add)
    }
}

impl<L: Label> Default for CounterVec<L> {
    fn default() -> Self {
        Self::new(&Cells::default())
    }
}

impl<L: Label> Instrument for CounterVec<L> {
    type Cell = CounterVecCell<L>;

    fn cell(&self, worker: usize) -> Result<CounterVecCell<L>, CellError> {
        Ok(CounterVecCell { slots: self.slots.take(worker)?, label: PhantomData })
    }

    fn read(&self) -> MetricData {
        let counts = L::VALUES.iter().enumerate();
        let counts = counts.map(|(offset, value)| (Some((L::NAME, *value)), self.slots.sum(offset).into()));
        MetricData::Counter(counts.collect())
    }
}

/// Returns the index of a label value. Returns `None` if [`Label::index`] is wrong, since the next
/// slots belong to another instrument. For an enum of [`labels!`](crate::labels!), the compiler
/// knows that this cannot happen.
#[inline]
fn offset<L: Label>(label: L) -> Option<usize> {
    let index = label.index();
    debug_assert!(index < L::VALUES.len(), "{label:?} has index {index} of {}", L::VALUES.len());
    (index < L::VALUES.len()).then_some(index)
}

/// The handle of a worker's cell of a [`CounterVec`].
#[derive(Debug)]
pub struct CounterVecCell<L> {
    slots: OwnedSlots,
    label: PhantomData<fn(L)>,
}

impl<L: Label> CounterVecCell<L> {
    /// Adds one to the counter of a label value.
    #[inline]
    pub fn inc(&mut self, label: L) {
        self.add(label, 1);
    }

    /// Adds `n` to the counter of a label value.
    #[inline]
    pub fn add(&mut self, label: L, n: u64) {
        if let Some(offset) = offset(label) {
            self.slots.add(offset, n);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::labels! {
        enum Type("type") { Text = "text", Binary = "binary" }
    }

    #[test]
    fn a_counter_is_the_sum_of_its_cells_and_of_other_threads() {
        let counter = Counter::new(&Cells::new(2));
        let (mut first, mut second) = (counter.cell(0).unwrap(), counter.cell(1).unwrap());
        first.inc();
        second.add(41);
        assert_eq!((first.value(), second.value(), counter.clone().value()), (1, 41, 42));
        counter.add(58);
        assert_eq!((first.value(), counter.value()), (1, 100));
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
    fn a_vector_counts_each_label_value() {
        let vec = CounterVec::new(&Cells::new(2));
        let (mut first, mut second) = (vec.cell(0).unwrap(), vec.cell(1).unwrap());
        first.inc(Type::Text);
        first.add(Type::Binary, 5);
        second.inc(Type::Binary);
        assert_eq!((vec.value(Type::Text), vec.value(Type::Binary), vec.total()), (1, 6, 7));
        vec.inc(Type::Text);
        assert_eq!((vec.value(Type::Text), vec.total()), (2, 8));
    }

    #[test]
    #[cfg_attr(debug_assertions, should_panic(expected = "Wrong has index 1 of 1"))]
    fn a_label_with_a_wrong_index_is_ignored() {
        #[derive(Debug, Clone, Copy)]
        struct Wrong;

        impl Label for Wrong {
            const NAME: &'static str = "wrong";
            const VALUES: &'static [&'static str] = &["only"];

            fn index(self) -> usize {
                1
            }
        }

        let cells = Cells::new(1);
        let (vec, next) = (CounterVec::new(&cells), Counter::new(&cells));
        vec.cell(0).unwrap().inc(Wrong);
        assert_eq!((vec.total(), next.value()), (0, 0));
    }

    #[test]
    fn any_thread_counts_without_a_cell() {
        let (counter, vec) = (Counter::default(), CounterVec::default());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        counter.inc();
                        vec.inc(Type::Binary);
                    }
                });
            }
        });
        assert_eq!((counter.value(), vec.value(Type::Text), vec.value(Type::Binary)), (4000, 0, 4000));
    }
}
