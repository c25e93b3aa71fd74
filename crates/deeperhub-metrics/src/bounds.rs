//! Bucket bounds of histograms.

use std::sync::Arc;
use std::time::Duration;

/// Maximum number of bounds of a histogram, without `+Inf`. Limits the size of each scrape, and
/// keeps a histogram within the slots of one block of [`Cells`](crate::Cells).
const MAX_BOUNDS: usize = 96;

/// The upper bounds of a histogram's buckets, and the unit in which the histogram is exposed.
///
/// Observed values are whole numbers of a small unit: bytes, or nanoseconds that are exposed as
/// seconds. A value equal to a bound belongs to that bound's bucket (`le`). A value above the last
/// bound belongs to the bucket `+Inf`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Bounds {
    inner: Arc<BoundsInner>,
}

#[derive(Debug)]
struct BoundsInner {
    upper: Box<[u64]>,
    search: Search,
    /// Number of observed units in one exposed unit, such as 1e9 nanoseconds in a second.
    observed_per_exposed: f64,
}

/// The way to find the bucket of a value.
#[derive(Debug, Clone, Copy)]
enum Search {
    /// The bounds are powers of two: bound `i` is `2^(first + (i << step_log2))`, so the bucket can
    /// be computed.
    Powers { first: u32, step_log2: u32 },
    /// The bounds have any values, so the bucket is found with a binary search.
    Sorted,
}

impl Bounds {
    /// Returns powers of four, from 64 bytes to the first power that is at least `max_bytes`, but
    /// at most 2⁶².
    #[must_use]
    pub fn bytes(max_bytes: u64) -> Self {
        const FIRST: u32 = 6;
        const STEP_LOG2: u32 = 1;
        let mut upper = vec![1 << FIRST];
        while let Some(&last) = upper.last()
            && last < max_bytes
            && let Some(next) = u64::checked_mul(last, 4)
        {
            upper.push(next);
        }
        Self::from_parts(upper, Search::Powers { first: FIRST, step_log2: STEP_LOG2 }, 1.0)
    }

    /// Returns times in steps of 1, 2.5 and 5 in each decade, exposed as seconds. The first bound
    /// is the step at or below `min`, but at least a microsecond. The last bound is the first step
    /// that is at least `min` and `max`, but at most 5 × 10⁹ seconds.
    ///
    /// Count values of such a histogram with
    /// [`observe_duration`](crate::HistogramCell::observe_duration), or in nanoseconds.
    #[must_use]
    pub fn seconds(min: Duration, max: Duration) -> Self {
        let (min, max) = (nanos(min), nanos(max));
        let decades = (3..19).map(|exponent| 10_u64.pow(exponent));
        let steps = decades.flat_map(|decade| [decade, decade / 10 * 25, decade.saturating_mul(5)]);
        Self::from_parts(steps_covering(steps, min, max), Search::Sorted, 1e9)
    }

    /// Returns times like [`seconds`](Self::seconds), but in twelve steps in each decade: 1, 1.2,
    /// 1.5, 1.8, 2.2 … 8.2. Quantiles of such a histogram, including the 99.9th percentile, are
    /// accurate to a tenth.
    ///
    /// # Panics
    ///
    /// Panics if more than 96 steps are needed. Up to 7 decades between `min` and `max` always fit.
    #[must_use]
    pub fn fine_seconds(min: Duration, max: Duration) -> Self {
        const STEPS: [u64; 12] = [100, 120, 150, 180, 220, 270, 330, 390, 470, 560, 680, 820];
        let (min, max) = (nanos(min).max(1000), nanos(max));
        let decades = (1..16).map(|exponent| 10_u64.pow(exponent));
        let steps = decades.flat_map(|decade| STEPS.map(|step| step.saturating_mul(decade)));
        Self::from_parts(steps_covering(steps, min, max), Search::Sorted, 1e9)
    }

    /// Returns the given bounds, sorted and without duplicates. The unit is exposed unchanged.
    ///
    /// # Panics
    ///
    /// Panics if there are more than 96 bounds.
    #[must_use]
    pub fn exact(upper: impl IntoIterator<Item = u64>) -> Self {
        let mut upper: Vec<u64> = upper.into_iter().collect();
        upper.sort_unstable();
        upper.dedup();
        Self::from_parts(upper, Search::Sorted, 1.0)
    }

    fn from_parts(upper: Vec<u64>, search: Search, observed_per_exposed: f64) -> Self {
        assert!(
            upper.len() <= MAX_BOUNDS,
            "a histogram has at most {MAX_BOUNDS} bounds, not {}",
            upper.len()
        );
        Self { inner: Arc::new(BoundsInner { upper: upper.into(), search, observed_per_exposed }) }
    }

    /// Returns the bounds in ascending order, in the observed unit.
    #[must_use]
    pub fn upper(&self) -> &[u64] {
        &self.inner.upper
    }

    /// Returns the index of a value's bucket. The bucket `+Inf` has the index after the last bound.
    #[inline]
    pub(crate) fn bucket(&self, value: u64) -> usize {
        match self.inner.search {
            Search::Powers { first, step_log2 } => {
                // The exponent of the smallest power of two that is at least the value.
                let exponent = u64::BITS - value.saturating_sub(1).leading_zeros();
                let above = exponent.saturating_sub(first);
                let bucket = (above + (1 << step_log2) - 1) >> step_log2;
                (bucket as usize).min(self.inner.upper.len())
            }
            Search::Sorted => self.inner.upper.partition_point(|&bound| bound < value),
        }
    }

    /// Converts a value from the observed to the exposed unit. For bounds of times, this is from
    /// nanoseconds to seconds; other values stay unchanged.
    #[must_use]
    pub fn exposed(&self, value: u64) -> f64 {
        value as f64 / self.inner.observed_per_exposed
    }
}

/// Returns a time in nanoseconds. A time over 584 years becomes the largest `u64`.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Returns the ascending `steps` from the last one at or below `min` to the first one that is at
/// least `min` and `max`.
fn steps_covering(steps: impl Iterator<Item = u64>, min: u64, max: u64) -> Vec<u64> {
    let mut upper = Vec::new();
    for step in steps {
        if step <= min {
            upper.clear();
        }
        upper.push(step);
        if step >= max && step >= min {
            break;
        }
    }
    upper
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Returns the bucket by its definition: the first bucket whose bound is at least the value.
    fn expected_bucket(bounds: &Bounds, value: u64) -> usize {
        bounds.upper().iter().position(|&bound| value <= bound).unwrap_or(bounds.upper().len())
    }

    #[test]
    fn sizes_are_powers_of_four_up_to_the_maximum() {
        assert_eq!(Bounds::bytes(0).upper(), [64]);
        assert_eq!(Bounds::bytes(64).upper(), [64]);
        assert_eq!(Bounds::bytes(65).upper(), [64, 256]);
        assert_eq!(Bounds::bytes(65_536).upper(), [64, 256, 1024, 4096, 16_384, 65_536]);
        let largest = Bounds::bytes(u64::MAX);
        assert_eq!(largest.upper().last(), Some(&(1 << 62)));
        assert_eq!(largest.bucket(u64::MAX), largest.upper().len());
    }

    #[test]
    fn times_have_three_steps_in_each_decade() {
        let bounds = Bounds::seconds(Duration::from_micros(300), Duration::from_millis(9));
        let seconds: Vec<f64> = bounds.upper().iter().map(|&bound| bounds.exposed(bound)).collect();
        assert_eq!(seconds, [0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01]);
        assert_eq!(Bounds::seconds(Duration::ZERO, Duration::ZERO).upper(), [1000]);
        assert!(Bounds::seconds(Duration::ZERO, Duration::MAX).upper().len() <= MAX_BOUNDS);
        assert_eq!(
            Bounds::seconds(Duration::from_secs(2), Duration::from_secs(1)).upper(),
            [1_000_000_000, 2_500_000_000]
        );
    }

    #[test]
    fn exact_bounds_are_sorted_without_duplicates() {
        assert_eq!(Bounds::exact([10, 1, 10, 5]).upper(), [1, 5, 10]);
        assert_eq!(Bounds::exact([]).bucket(7), 0);
    }

    #[test]
    #[should_panic(expected = "at most 96 bounds, not 97")]
    fn too_many_bounds_panic() {
        let _ = Bounds::exact(0..97);
    }

    #[test]
    fn fine_steps_are_at_most_a_quarter_apart() {
        let bounds = Bounds::fine_seconds(Duration::from_micros(10), Duration::from_secs(10));
        let upper = bounds.upper();
        assert_eq!((upper.first(), upper.last(), upper.len()), (Some(&10_000), Some(&10_000_000_000), 73));
        assert!(upper.windows(2).all(|pair| pair[0] < pair[1] && pair[1] * 4 <= pair[0] * 5), "{upper:?}");
    }

    #[test]
    fn each_bound_is_the_largest_value_of_its_bucket() {
        for max in [64, 65_536, u64::MAX] {
            let bounds = Bounds::bytes(max);
            for (index, &bound) in bounds.upper().iter().enumerate() {
                assert_eq!((bounds.bucket(bound), bounds.bucket(bound + 1)), (index, index + 1), "{bound}");
            }
            assert_eq!(bounds.bucket(0), 0);
        }
    }

    proptest! {
        #[test]
        fn a_value_is_in_the_first_bucket_whose_bound_is_not_below_it(value: u64, shift in 0..64_u32, max: u64,
                                                                      exact in prop::collection::vec(any::<u16>(), 0..64)) {
            let times = Bounds::seconds(Duration::from_nanos(max >> shift), Duration::from_nanos(max));
            let exact = Bounds::exact(exact.iter().map(|&bound| u64::from(bound)));
            for bounds in [Bounds::bytes(max), Bounds::bytes(max >> shift), times, exact] {
                prop_assert!(bounds.upper().is_sorted_by(|a, b| a < b));
                // A wrong search fails most likely at the bounds and next to them.
                let near = bounds.upper().iter().flat_map(|&bound| [bound.saturating_sub(1), bound, bound + 1]);
                for value in near.chain([value >> shift, 0, u64::MAX]) {
                    prop_assert_eq!(bounds.bucket(value), expected_bucket(&bounds, value), "{}", value);
                }
            }
        }

        #[test]
        fn bounds_cover_the_requested_range(min: u64, max: u64, shift in 0..64_u32) {
            let (min, max) = (min >> shift, max >> (63 - shift));
            let sizes = Bounds::bytes(max);
            prop_assert!(sizes.upper().last() >= Some(&max.min(1 << 62)));
            let times = Bounds::seconds(Duration::from_nanos(min), Duration::from_nanos(max));
            prop_assert!(times.upper().last() >= Some(&max.min(5_000_000_000_000_000_000)));
            prop_assert!(times.upper().first() <= Some(&min.max(1000)));
        }
    }
}
