//! What a histogram counted lately, for those who look now and then.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use deeperhub_metrics::HistogramSnapshot;

/// With a look each second, the numbers are those of the last 5 to 10 seconds.
const QUANTILE_WINDOW: Duration = Duration::from_secs(5);

/// How values lie: half of them are at most `p50`, and so on. Between the bounds of buckets they are taken to lie evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quantiles {
    /// The median.
    pub p50: Duration,
    /// 99 of 100 are at most this.
    pub p99: Duration,
    /// 999 of 1,000 are at most this.
    pub p999: Duration,
}

/// Keeps what a histogram had at former looks.
#[derive(Debug, Default)]
pub(crate) struct RecentQuantiles {
    snapshots: Mutex<Snapshots>,
}

#[derive(Debug, Default)]
struct Snapshots {
    before: Option<HistogramSnapshot>,
    last: Option<(Instant, HistogramSnapshot)>,
}

impl RecentQuantiles {
    /// What came since the look before the last (at the first, since the start). `None`: nothing.
    pub(crate) fn quantiles(&self, current: HistogramSnapshot, now: Instant) -> Option<Quantiles> {
        let mut snapshots = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        if snapshots.last.as_ref().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= QUANTILE_WINDOW)
        {
            let last = snapshots.last.replace((now, current.clone()));
            snapshots.before = last.map(|(_, snapshot)| snapshot);
        }
        let recent = match &snapshots.before {
            Some(before) => current.since(before),
            None => current,
        };
        let quantile = |share| Duration::try_from_secs_f64(recent.quantile(share)?).ok();
        Some(Quantiles { p50: quantile(0.5)?, p99: quantile(0.99)?, p999: quantile(0.999)? })
    }
}

#[cfg(test)]
mod tests {
    use deeperhub_metrics::{Bounds, SharedHistogram};

    use super::*;

    #[test]
    fn old_values_are_forgotten() {
        let bounds = Bounds::seconds(Duration::from_millis(1), Duration::from_secs(10));
        let histogram = SharedHistogram::new(bounds);
        let (recent, start) = (RecentQuantiles::default(), Instant::now());
        let look = |seconds| recent.quantiles(histogram.snapshot(), start + Duration::from_secs(seconds));
        assert_eq!(look(0), None);
        histogram.observe_duration(Duration::from_secs(8));
        assert!(look(1).is_some_and(|quantiles| quantiles.p50 > Duration::from_secs(4)));
        assert!(look(5).is_some(), "it is not long ago");
        for _ in 0..1000 {
            histogram.observe_duration(Duration::from_millis(1));
        }
        let mixed = look(9).unwrap();
        assert!(mixed.p50 <= Duration::from_millis(1) && mixed.p999 <= Duration::from_millis(1));
        look(10);
        assert_eq!(look(15), None, "nothing came since");
    }
}
