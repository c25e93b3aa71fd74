//! Samples of the node's statistics, for lines over the last minutes.
//!
//! A sample reads the sums that the node keeps anyway, so it costs nothing per message. The server
//! records them, and not each page that shows them: after an incident, a page that is opened late
//! shows what led to it.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use deeperhub_node::{NodeHandle, Stats};
use serde::Serialize;

/// Time between two samples.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);

/// Maximum number of samples: those of 15 minutes.
const MAX_SAMPLES: usize = 180;

/// Minimum time between two samples. Below the interval, because a timer may fire a little early.
const MIN_INTERVAL: Duration = Duration::from_millis(4_500);

/// Names of the values in a sample.
const COLUMNS: [&str; 24] = [
    "at_unix_ms",
    "connections",
    "subscriptions",
    "topics",
    "received_total",
    "sent_total",
    "errors_total",
    "received_bytes_total",
    "sent_bytes_total",
    "queued_bytes",
    "slow_total",
    "refused_total",
    "behind",
    "history_bytes",
    "latency_p50_us",
    "latency_p99_us",
    "canary_round_trip_us",
    "canary_cluster_round_trip_us",
    "store_round_trip_us",
    "store_waiting_appends",
    "store_reads_total",
    "store_failed_reads_total",
    "memory_bytes",
    "cpu_ms_total",
];

/// One value per column; null if there is none.
type Row = [Option<u64>; COLUMNS.len()];

/// The last samples.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    rows: VecDeque<Row>,
    recorded_at: Option<Instant>,
}

impl Samples {
    /// Records a sample, unless the last one is too recent.
    pub(crate) fn record_if_due(&self, node: &NodeHandle) {
        let now = Instant::now();
        let is_recent = |at| now.saturating_duration_since(at) < MIN_INTERVAL;
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.recorded_at.is_some_and(is_recent) {
            return;
        }
        ring.recorded_at = Some(now);
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        ring.push(row(millis(at), &node.stats()));
    }

    /// Returns the samples after a time in milliseconds since the Unix epoch.
    pub(crate) fn after(&self, unix_ms: u64) -> StatsSamples {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let samples = ring.rows.iter().filter(|row| row[0] > Some(unix_ms)).copied().collect();
        StatsSamples { interval_ms: millis(INTERVAL), columns: COLUMNS, samples }
    }
}

impl Ring {
    fn push(&mut self, row: Row) {
        if self.rows.len() == MAX_SAMPLES {
            self.rows.pop_front();
        }
        self.rows.push_back(row);
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn row(at_unix_ms: u64, stats: &Stats) -> Row {
    let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let (totals, latency) = (&stats.totals, stats.publish_latency);
    let process = deeperhub_metrics::ProcessUsage::read();
    [
        Some(at_unix_ms),
        Some(totals.connections),
        Some(totals.subscriptions),
        Some(totals.topics),
        Some(totals.received_total),
        Some(totals.sent_total),
        Some(totals.errors_total),
        Some(totals.received_bytes_total),
        Some(totals.sent_bytes_total),
        Some(totals.queued_bytes),
        Some(totals.slow_consumers_total),
        Some(totals.refused_total),
        Some(totals.subscriptions_behind),
        Some(totals.history_bytes),
        latency.map(|latency| micros(latency.p50)),
        latency.map(|latency| micros(latency.p99)),
        stats.canary_round_trip.map(micros),
        stats.canary_cluster_round_trip.map(micros),
        stats.store.and_then(|store| store.round_trip).map(micros),
        stats.store.map(|store| store.waiting_appends),
        stats.store.map(|store| store.reads_total),
        stats.store.map(|store| store.failed_reads_total),
        stats.memory.map(|memory| memory.used).or_else(|| process.as_ref().map(|used| used.resident_bytes)),
        process.and_then(|used| Duration::try_from_secs_f64(used.cpu_seconds).ok()).map(millis),
    ]
}

/// Samples of a node's statistics. A name that ends in `_total` counts from the node's start.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct StatsSamples {
    /// Time between two samples.
    interval_ms: u64,
    /// Names of the values of a sample. The first one is `at_unix_ms`.
    #[cfg_attr(test, schema(value_type = Vec<String>))]
    columns: [&'static str; COLUMNS.len()],
    /// Samples, the oldest first: a value per column, or null.
    #[cfg_attr(test, schema(value_type = Vec<Vec<Option<u64>>>))]
    samples: Vec<Row>,
}

#[cfg(test)]
mod tests {
    use deeperhub_node::{Config, Node};

    use super::*;

    fn times(samples: &StatsSamples) -> Vec<u64> {
        samples.samples.iter().filter_map(|row| row[0]).collect()
    }

    #[test]
    fn the_oldest_samples_are_dropped() {
        let samples = Samples::default();
        for at in 1..=200 {
            let mut row = Row::default();
            row[0] = Some(at);
            samples.ring.lock().unwrap().push(row);
        }
        assert_eq!(times(&samples.after(0)), (21..=200).collect::<Vec<_>>());
        assert_eq!(times(&samples.after(198)), [199, 200]);
        assert!(times(&samples.after(200)).is_empty());
    }

    #[tokio::test]
    async fn a_sample_has_the_values_of_the_statistics() {
        let node = Node::start(([127, 0, 0, 1], 0).into(), Config::default()).unwrap();
        let samples = Samples::default();
        samples.record_if_due(&node.handle());
        samples.record_if_due(&node.handle());
        let recorded = samples.after(0);
        assert_eq!(recorded.samples.len(), 1, "the second call comes too soon");
        let value = |name| {
            let column = COLUMNS.iter().position(|column| *column == name).unwrap();
            recorded.samples[0][column]
        };
        assert_eq!(value("connections"), Some(0));
        assert_eq!(value("latency_p50_us"), None);
        assert!(value("memory_bytes") > Some(0) && value("at_unix_ms") > Some(1_600_000_000_000));
    }
}
