//! Histograms and their snapshots.

use crate::bounds::{Bounds, nanos};
use crate::cells::{CellError, Cells, OwnedSlots, SlotRange};
use crate::exemplar::{Exemplar, Exemplars};
use crate::metric::Instrument;
use crate::snapshot::MetricData;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

/// A distribution of values over fixed buckets: the sum of one cell for each worker and one for all
/// other threads.
///
/// A histogram is cheap to clone; clones are the same histogram.
#[derive(Debug, Clone)]
pub struct Histogram {
    bounds: Bounds,
    /// The sum of all observed values, then the count of each bucket. The last bucket is `+Inf`.
    slots: SlotRange,
    exemplars: Exemplars,
}

impl Histogram {
    /// Creates an empty histogram.
    #[must_use]
    pub fn new(cells: &Cells, bounds: Bounds) -> Self {
        let slots = cells.reserve(bounds.upper().len() + 2);
        let exemplars = Exemplars::new(bounds.upper().len() + 1);
        Self { bounds, slots, exemplars }
    }

    /// Counts a value, in the observed unit of the [`Bounds`], on any thread. Two atomic additions
    /// on cache lines that all threads share, so this is for code that does not run often.
    pub fn observe(&self, value: u64) {
        self.slots.shared(0).fetch_add(value, Ordering::Relaxed);
        self.slots.shared(1 + self.bounds.bucket(value)).fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a time, for bounds in [seconds](Bounds::seconds), like [`observe`](Self::observe).
    pub fn observe_duration(&self, time: Duration) {
        self.observe(nanos(time));
    }

    /// Returns the present counts. If a worker counts a value during the call, the value can be in
    /// the sum but not in the buckets, or the reverse.
    #[must_use]
    pub fn snapshot(&self) -> HistogramSnapshot {
        let sum = self.slots.sum(0);
        let buckets = (0..=self.bounds.upper().len()).map(|bucket| self.slots.sum(bucket + 1)).collect();
        let exemplars = self.exemplars.snapshot();
        HistogramSnapshot { bounds: self.bounds.clone(), buckets, sum, exemplars }
    }
}

impl Instrument for Histogram {
    type Cell = HistogramCell;

    fn cell(&self, worker: usize) -> Result<HistogramCell, CellError> {
        let (bounds, exemplars) = (self.bounds.clone(), self.exemplars.clone());
        Ok(HistogramCell { bounds, slots: self.slots.take(worker)?, exemplars })
    }

    fn read(&self) -> MetricData {
        MetricData::Histogram(self.snapshot())
    }
}

/// The handle of a worker's cell of a [`Histogram`].
#[derive(Debug)]
pub struct HistogramCell {
    bounds: Bounds,
    slots: OwnedSlots,
    exemplars: Exemplars,
}

impl HistogramCell {
    /// Counts a value, in the observed unit of the [`Bounds`].
    #[inline]
    pub fn observe(&mut self, value: u64) {
        self.slots.add(0, value);
        self.slots.add(1 + self.bounds.bucket(value), 1);
    }

    /// Stores an observed time, with the trace span in which it was observed, as the exemplar of
    /// its bucket.
    ///
    /// The call takes a lock, so use it only for the few observations of sampled traces. If another
    /// thread holds the lock, the exemplar is dropped.
    pub fn exemplar(&self, time: Duration, trace_id: u128, span_id: u64, at: SystemTime) {
        let value = nanos(time);
        self.exemplars.store(self.bounds.bucket(value), Exemplar { value, trace_id, span_id, at });
    }

    /// Counts the same value `times` times.
    #[inline]
    pub fn observe_many(&mut self, value: u64, times: u64) {
        self.slots.add(0, value.wrapping_mul(times));
        self.slots.add(1 + self.bounds.bucket(value), times);
    }

    /// Counts a time, for bounds in [seconds](Bounds::seconds).
    #[inline]
    pub fn observe_duration(&mut self, time: Duration) {
        self.observe(nanos(time));
    }

    /// Counts the same time `times` times, for bounds in [seconds](Bounds::seconds).
    #[inline]
    pub fn observe_durations(&mut self, time: Duration, times: u64) {
        self.observe_many(nanos(time), times);
    }
}

/// The counts of a histogram at one moment.
#[derive(Debug, Clone)]
pub struct HistogramSnapshot {
    bounds: Bounds,
    buckets: Box<[u64]>,
    sum: u64,
    exemplars: Box<[Option<Exemplar>]>,
}

impl HistogramSnapshot {
    /// Returns the number of observed values.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().copied().fold(0, u64::wrapping_add)
    }

    /// Returns the sum of the observed values, in the observed unit. The sum wraps around at 2⁶⁴.
    #[must_use]
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Returns the number of values in each bucket, without the values of lower buckets. The order
    /// is that of [`Bounds::upper`], with `+Inf` last.
    #[must_use]
    pub fn buckets(&self) -> &[u64] {
        &self.buckets
    }

    /// Returns the latest exemplar of each bucket, or `None` for a bucket without exemplars. The
    /// slice is empty for a difference of snapshots ([`since`](Self::since)).
    #[must_use]
    pub fn exemplars(&self) -> &[Option<Exemplar>] {
        &self.exemplars
    }

    /// Returns the bounds of the buckets.
    #[must_use]
    pub fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Returns the difference to an earlier snapshot of the same histogram: the values that were
    /// observed after it. The difference has no exemplars.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let pairs = self.buckets.iter().zip(&earlier.buckets);
        Self {
            bounds: self.bounds.clone(),
            buckets: pairs.map(|(now, then)| now.saturating_sub(*then)).collect(),
            sum: self.sum.wrapping_sub(earlier.sum),
            exemplars: Box::default(),
        }
    }

    /// Returns the quantile `share` (0 to 1) in the exposed unit: seconds for times.
    ///
    /// Interpolates linearly within a bucket. If the quantile is above all bounds, returns the last
    /// bound. Returns `None` if there are no values.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let mut rank = share.clamp(0.0, 1.0) * self.count() as f64;
        let upper = self.bounds.upper();
        let mut lower = 0.0;
        for (&bound, &count) in upper.iter().zip(&self.buckets) {
            let bound = self.bounds.exposed(bound);
            if count > 0 && rank <= count as f64 {
                return Some(lower + (bound - lower) * rank / count as f64);
            }
            rank -= count as f64;
            lower = bound;
        }
        (self.count() > 0).then_some(lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_are_counted_in_nanoseconds() {
        let bounds = Bounds::seconds(Duration::from_millis(1), Duration::from_millis(5));
        let histogram = Histogram::new(&Cells::new(1), bounds);
        let mut cell = histogram.cell(0).unwrap();
        for micros in [1, 1000, 1001, 5000, 5001] {
            cell.observe_duration(Duration::from_micros(micros));
        }
        let snapshot = histogram.snapshot();
        assert_eq!(snapshot.buckets(), [2, 1, 1, 1]);
        assert_eq!((snapshot.count(), snapshot.sum()), (5, 12_003_000));
    }

    #[test]
    fn quantiles_are_interpolated_within_buckets() {
        let histogram = Histogram::new(&Cells::default(), Bounds::exact([10, 20, 40]));
        assert_eq!(histogram.snapshot().quantile(0.5), None);
        (0..10).for_each(|_| histogram.observe(15));
        let first = histogram.snapshot();
        assert_eq!((first.quantile(0.5), first.quantile(1.0)), (Some(15.0), Some(20.0)));
        (0..30).for_each(|_| histogram.observe(30));
        let both = histogram.snapshot();
        assert_eq!((both.quantile(0.25), both.quantile(0.625)), (Some(20.0), Some(30.0)));
        let second = both.since(&first);
        assert_eq!((second.count(), second.sum(), second.quantile(0.5)), (30, 900, Some(30.0)));
        histogram.observe(1000);
        assert_eq!(histogram.snapshot().since(&both).quantile(0.5), Some(40.0));
    }

    #[test]
    fn a_new_owner_continues_with_the_counts() {
        let histogram = Histogram::new(&Cells::new(1), Bounds::exact([10]));
        histogram.cell(0).unwrap().observe(10);
        assert_eq!(histogram.cell(0).map(|mut cell| cell.observe(11)), Ok(()));
        assert_eq!(histogram.snapshot().buckets(), [1, 1]);
    }

    proptest! {
        #[test]
        fn every_value_is_counted_once(values in prop::collection::vec((0..2_usize, any::<u32>()), 0..60)) {
            let bounds = Bounds::bytes(1 << 20);
            let histogram = Histogram::new(&Cells::new(2), bounds.clone());
            let shared = Histogram::new(&Cells::default(), bounds.clone());
            let mut cells = [histogram.cell(0).unwrap(), histogram.cell(1).unwrap()];
            for &(worker, value) in &values {
                cells[worker].observe(value.into());
                shared.observe(value.into());
            }
            let (snapshot, shared) = (histogram.snapshot(), shared.snapshot());
            prop_assert_eq!(snapshot.count(), values.len() as u64);
            prop_assert_eq!(snapshot.sum(), values.iter().map(|&(_, value)| u64::from(value)).sum::<u64>());
            prop_assert_eq!(snapshot.buckets(), shared.buckets());
            prop_assert_eq!(snapshot.sum(), shared.sum());
            let mut at_most = 0;
            for (&bound, &bucket) in bounds.upper().iter().zip(snapshot.buckets()) {
                at_most += bucket;
                let expected = values.iter().filter(|&&(_, value)| u64::from(value) <= bound).count();
                prop_assert_eq!(at_most, expected as u64);
            }
        }
    }
}
