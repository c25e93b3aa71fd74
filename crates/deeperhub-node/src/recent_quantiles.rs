//! Quantiles of a histogram's recent values.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use deeperhub_metrics::HistogramSnapshot;

/// Minimum time between two stored snapshots. If quantiles are read each second, they thus cover
/// the last 5 to 10 seconds.
const QUANTILE_WINDOW: Duration = Duration::from_secs(5);

/// Quantiles of a distribution. Values between two bucket bounds count as evenly spread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Quantiles {
    /// Median.
    pub p50: Duration,
    /// 99th percentile.
    pub p99: Duration,
    /// 99.9th percentile.
    pub p999: Duration,
}

/// Computes quantiles of a histogram's recent values from snapshots of earlier reads.
#[derive(Debug, Default)]
pub(crate) struct RecentQuantiles {
    snapshots: Mutex<Snapshots>,
}

#[derive(Debug, Default)]
struct Snapshots {
    /// Snapshot before the latest one.
    previous: Option<HistogramSnapshot>,
    latest: Option<(Instant, HistogramSnapshot)>,
}

impl RecentQuantiles {
    /// Returns the quantiles of the values since the previous snapshot, or of all values before
    /// there is one. Returns `None` if there were no values. Stores `current` as a snapshot if the
    /// latest one is older than [`QUANTILE_WINDOW`].
    pub(crate) fn quantiles(&self, current: HistogramSnapshot, now: Instant) -> Option<Quantiles> {
        let mut snapshots = self.snapshots.lock().unwrap_or_else(PoisonError::into_inner);
        if snapshots
            .latest
            .as_ref()
            .is_none_or(|(at, _)| now.saturating_duration_since(*at) >= QUANTILE_WINDOW)
        {
            let previous = snapshots.latest.replace((now, current.clone()));
            snapshots.previous = previous.map(|(_, snapshot)| snapshot);
        }
        let recent = match &snapshots.previous {
            Some(previous) => current.since(previous),
            None => current,
        };
        let quantile = |rank| Duration::try_from_secs_f64(recent.quantile(rank)?).ok();
        Some(Quantiles { p50: quantile(0.5)?, p99: quantile(0.99)?, p999: quantile(0.999)? })
    }
}

#[cfg(test)]
mod tests {
    use deeperhub_metrics::{Bounds, Cells, Histogram};

    use super::*;

    #[test]
    fn old_values_drop_out() {
        let bounds = Bounds::seconds(Duration::from_millis(1), Duration::from_secs(10));
        let histogram = Histogram::new(&Cells::default(), bounds);
        let (recent, start) = (RecentQuantiles::default(), Instant::now());
        let read = |seconds| recent.quantiles(histogram.snapshot(), start + Duration::from_secs(seconds));
        assert_eq!(read(0), None);
        histogram.observe_duration(Duration::from_secs(8));
        assert!(read(1).is_some_and(|quantiles| quantiles.p50 > Duration::from_secs(4)));
        assert!(read(5).is_some(), "the value is within the window");
        for _ in 0..1000 {
            histogram.observe_duration(Duration::from_millis(1));
        }
        let mixed = read(9).unwrap();
        assert!(mixed.p50 <= Duration::from_millis(1) && mixed.p999 <= Duration::from_millis(1));
        read(10);
        assert_eq!(read(15), None, "no values since the previous snapshot");
    }
}
