//! Metrics of the server API.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use deeperhub_metrics::Unit;
use deeperhub_node::{CustomMetric, MetricKind};

/// Metrics of a server API. A node exports them if it gets
/// [`custom_metrics`](Self::custom_metrics). Clones share the same counters.
#[derive(Debug, Clone, Default)]
pub struct ApiMetrics(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicUsize,
    event_streams: AtomicUsize,
    held_bytes: AtomicUsize,
    idempotency_bytes: AtomicUsize,
    evicted: AtomicU64,
    refused: AtomicU64,
    timeouts: AtomicU64,
    overloads: AtomicU64,
    tls_handshakes_failed: AtomicU64,
}

impl ApiMetrics {
    /// Returns the metrics for [`deeperhub_node::Config::custom_metrics`].
    #[must_use]
    pub fn custom_metrics(&self) -> Vec<CustomMetric> {
        let metric = |name, help, unit, kind, read: fn(&Counters) -> u64| {
            let counters = Arc::clone(&self.0);
            CustomMetric::new(name, help, unit, kind, move || read(&counters))
        };
        vec![
            metric(
                "deeperhub_api_connections",
                "Open server API connections",
                Unit::None,
                MetricKind::Gauge,
                |counters| counters.connections.load(Ordering::Relaxed) as u64,
            ),
            metric(
                "deeperhub_api_event_streams",
                "Open event streams of the server API",
                Unit::None,
                MetricKind::Gauge,
                |counters| counters.event_streams.load(Ordering::Relaxed) as u64,
            ),
            metric(
                "deeperhub_api_held_bytes",
                "Bytes of request bodies, and of responses over 8 KiB, in memory",
                Unit::Bytes,
                MetricKind::Gauge,
                |counters| counters.held_bytes.load(Ordering::Relaxed) as u64,
            ),
            metric(
                "deeperhub_api_idempotency_bytes",
                "Approximate bytes of remembered idempotency keys and their outcomes",
                Unit::Bytes,
                MetricKind::Gauge,
                |counters| counters.idempotency_bytes.load(Ordering::Relaxed) as u64,
            ),
            metric(
                "deeperhub_api_connections_evicted_total",
                "Idle server API connections evicted for new ones",
                Unit::None,
                MetricKind::Counter,
                |counters| counters.evicted.load(Ordering::Relaxed),
            ),
            metric(
                "deeperhub_api_connections_refused_total",
                "Server API connections refused with 503 at the connection limit",
                Unit::None,
                MetricKind::Counter,
                |counters| counters.refused.load(Ordering::Relaxed),
            ),
            metric(
                "deeperhub_api_timeouts_total",
                "Server API connections closed because the caller sent or read too slowly",
                Unit::None,
                MetricKind::Counter,
                |counters| counters.timeouts.load(Ordering::Relaxed),
            ),
            metric(
                "deeperhub_api_overloads_total",
                "Server API requests refused with 503 at the memory limit",
                Unit::None,
                MetricKind::Counter,
                |counters| counters.overloads.load(Ordering::Relaxed),
            ),
            metric(
                "deeperhub_api_tls_handshakes_failed_total",
                "Failed TLS handshakes of the server API",
                Unit::None,
                MetricKind::Counter,
                |counters| counters.tls_handshakes_failed.load(Ordering::Relaxed),
            ),
        ]
    }

    pub(crate) fn set_connections(&self, open: usize) {
        self.0.connections.store(open, Ordering::Relaxed);
    }

    pub(crate) fn set_idempotency_bytes(&self, bytes: usize) {
        self.0.idempotency_bytes.store(bytes, Ordering::Relaxed);
    }

    pub(crate) fn connection_evicted(&self) {
        self.0.evicted.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn connection_refused(&self) {
        self.0.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn timed_out(&self) {
        self.0.timeouts.fetch_add(1, Ordering::Relaxed);
    }

    #[cfg(feature = "tls")]
    pub(crate) fn tls_handshake_failed(&self) {
        self.0.tls_handshakes_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an event stream until the guard is dropped. Returns `None` if `max` are already open.
    pub(crate) fn open_event_stream(&self, max: usize) -> Option<EventStreamGuard> {
        let streams = &self.0.event_streams;
        let more = |open| (open < max).then_some(open + 1);
        streams.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(EventStreamGuard(self.clone()))
    }

    /// Returns an empty count of held bytes.
    pub(crate) fn hold(&self) -> HeldBytes {
        HeldBytes { metrics: self.clone(), bytes: 0 }
    }
}

/// Guard of one open event stream.
#[derive(Debug)]
pub(crate) struct EventStreamGuard(ApiMetrics);

impl Drop for EventStreamGuard {
    fn drop(&mut self) {
        self.0.0.event_streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Bytes that one request holds. They count until this is dropped.
#[derive(Debug)]
pub(crate) struct HeldBytes {
    metrics: ApiMetrics,
    bytes: usize,
}

impl HeldBytes {
    /// Adds bytes and returns `true`, unless all requests together would then hold more than `max`.
    pub(crate) fn try_grow(&mut self, bytes: usize, max: usize) -> bool {
        let counters = &self.metrics.0;
        let more = |held: usize| held.checked_add(bytes).filter(|&held| held <= max);
        if counters.held_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            counters.overloads.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(limit = "max_api_bytes", max, "Server API memory limit reached");
            return false;
        }
        self.bytes += bytes;
        true
    }

    /// Adds bytes that are already held, whatever the limit.
    pub(crate) fn grow(&mut self, bytes: usize) {
        self.metrics.0.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.metrics.0.held_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(metrics: &ApiMetrics, name: &str) -> u64 {
        metrics.custom_metrics().iter().find(|metric| metric.name() == name).unwrap().read()
    }

    #[test]
    fn held_bytes_of_all_requests_share_a_limit() {
        let metrics = ApiMetrics::default();
        let (mut first, mut second) = (metrics.hold(), metrics.hold());
        assert!(first.try_grow(60, 100));
        assert!(!second.try_grow(41, 100) && second.try_grow(40, 100));
        second.grow(5);
        assert_eq!(read(&metrics, "deeperhub_api_held_bytes"), 105);
        drop(first);
        assert_eq!(read(&metrics, "deeperhub_api_held_bytes"), 45);
        drop(second);
        assert_eq!(read(&metrics, "deeperhub_api_held_bytes"), 0);
        assert_eq!(read(&metrics, "deeperhub_api_overloads_total"), 1);
    }

    #[test]
    fn event_streams_are_limited() {
        let metrics = ApiMetrics::default();
        let first = metrics.open_event_stream(1);
        assert!(first.is_some() && metrics.open_event_stream(1).is_none());
        drop(first);
        assert!(metrics.open_event_stream(1).is_some());
        assert_eq!(read(&metrics, "deeperhub_api_event_streams"), 0);
    }
}
