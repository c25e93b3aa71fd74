use crate::bounds::{Bounds, nanos};
use crate::cells::{CellError, Cells, OwnedSlots, Slots};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How values are spread over fixed buckets, counted by workers each in cells of its own.
///
/// Cheap to clone; clones are the same histogram.
#[derive(Debug, Clone)]
pub struct Histogram {
    bounds: Bounds,
    /// The sum of all values, then the buckets, the one of `+Inf` last.
    slots: Slots,
}

impl Histogram {
    /// An empty histogram.
    #[must_use]
    pub fn new(cells: &Cells, bounds: Bounds) -> Self {
        let slots = cells.reserve(bounds.upper().len() + 2);
        Self { bounds, slots }
    }

    /// The cells of a worker, counted from 0. They belong to one handle at a time: dropping the handle
    /// gives them back with their counts.
    ///
    /// # Errors
    ///
    /// [`CellError`] when there is no such worker, or another handle of the cells is alive.
    pub fn cell(&self, worker: usize) -> Result<HistogramCell, CellError> {
        Ok(HistogramCell { bounds: self.bounds.clone(), slots: self.slots.take(worker)? })
    }

    /// What was observed so far. The worker goes on meanwhile: the sum may be a value ahead of the
    /// buckets or behind them.
    #[must_use]
    pub fn snapshot(&self) -> HistogramSnapshot {
        let sum = self.slots.sum(0);
        let buckets = (0..=self.bounds.upper().len()).map(|bucket| self.slots.sum(bucket + 1)).collect();
        HistogramSnapshot { bounds: self.bounds.clone(), buckets, sum }
    }
}

/// A worker's own part of a [`Histogram`].
#[derive(Debug)]
pub struct HistogramCell {
    bounds: Bounds,
    slots: OwnedSlots,
}

impl HistogramCell {
    /// Counts a value, in the unit of the [`Bounds`].
    #[inline]
    pub fn observe(&mut self, value: u64) {
        self.slots.add(0, value);
        self.slots.add(1 + self.bounds.bucket(value), 1);
    }

    /// Counts a time, for bounds in [seconds](Bounds::seconds).
    #[inline]
    pub fn observe_duration(&mut self, time: Duration) {
        self.observe(nanos(time));
    }
}

/// A histogram that any thread may add to, for paths that are not hot.
///
/// Cheap to clone; clones are the same histogram.
#[derive(Debug, Clone)]
pub struct SharedHistogram {
    bounds: Bounds,
    sum: Arc<AtomicU64>,
    buckets: Arc<[AtomicU64]>,
}

impl SharedHistogram {
    /// An empty histogram.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        let buckets = (0..=bounds.upper().len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, sum: Arc::default(), buckets }
    }

    /// Counts a value, in the unit of the [`Bounds`].
    pub fn observe(&self, value: u64) {
        self.sum.fetch_add(value, Ordering::Relaxed);
        if let Some(bucket) = self.buckets.get(self.bounds.bucket(value)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a time, for bounds in [seconds](Bounds::seconds).
    pub fn observe_duration(&self, time: Duration) {
        self.observe(nanos(time));
    }

    /// What was observed so far, as in [`Histogram::snapshot`].
    #[must_use]
    pub fn snapshot(&self) -> HistogramSnapshot {
        let sum = self.sum.load(Ordering::Relaxed);
        let buckets = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        HistogramSnapshot { bounds: self.bounds.clone(), buckets, sum }
    }
}

/// A histogram's numbers at one moment.
#[derive(Debug, Clone)]
pub struct HistogramSnapshot {
    bounds: Bounds,
    buckets: Box<[u64]>,
    sum: u64,
}

impl HistogramSnapshot {
    /// How many values were observed.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().copied().fold(0, u64::wrapping_add)
    }

    /// Their sum, in the unit that is observed; wraps around after 2⁶⁴.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// How many values fell into each bucket (not cumulated), in the order of
    /// [`Bounds::upper`], with the one of `+Inf` last.
    #[must_use]
    pub fn buckets(&self) -> &[u64] {
        &self.buckets
    }

    /// The buckets' bounds.
    #[must_use]
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }
}
