//! Metrics of the server API.

use deeperhub_metrics::{Counter, Gauge, metrics};
use deeperhub_node::CustomMetric;

metrics! {
    /// Metrics of a server API. A node exports them if it gets
    /// [`custom_metrics`](Self::custom_metrics). Clones are the same metrics.
    pub struct ApiMetrics {
        /// Open server API connections.
        connections: Gauge = "deeperhub_api_connections";
        /// Open event streams of the server API.
        event_streams: Gauge = "deeperhub_api_event_streams";
        /// Bytes of request bodies, and of responses over 8 KiB, in memory.
        held_bytes: Gauge = "deeperhub_api_held_bytes";
        /// Approximate bytes of remembered idempotency keys and their outcomes.
        idempotency_bytes: Gauge = "deeperhub_api_idempotency_bytes";
        /// Idle server API connections evicted for new ones.
        evicted: Counter = "deeperhub_api_connections_evicted_total";
        /// Server API connections refused with 503 at the connection limit.
        refused: Counter = "deeperhub_api_connections_refused_total";
        /// Server API connections closed because the caller sent or read too slowly.
        timeouts: Counter = "deeperhub_api_timeouts_total";
        /// Server API requests refused with 503 at the memory limit.
        overloads: Counter = "deeperhub_api_overloads_total";
        /// Failed TLS handshakes of the server API.
        tls_handshakes_failed: Counter = "deeperhub_api_tls_handshakes_failed_total";
    }
}

impl ApiMetrics {
    /// Returns the metrics for [`deeperhub_node::Config::custom_metrics`].
    #[must_use]
    pub fn custom_metrics(&self) -> Vec<CustomMetric> {
        self.metrics().map(CustomMetric::from).collect()
    }

    pub(crate) fn set_connections(&self, open: usize) {
        self.connections.set(gauge(open));
    }

    pub(crate) fn set_idempotency_bytes(&self, bytes: usize) {
        self.idempotency_bytes.set(gauge(bytes));
    }

    pub(crate) fn connection_evicted(&self) {
        self.evicted.inc();
    }

    pub(crate) fn connection_refused(&self) {
        self.refused.inc();
    }

    pub(crate) fn timed_out(&self) {
        self.timeouts.inc();
    }

    #[cfg(feature = "tls")]
    pub(crate) fn tls_handshake_failed(&self) {
        self.tls_handshakes_failed.inc();
    }

    /// Counts an event stream until the guard is dropped. Returns `None` if `max` are already open.
    pub(crate) fn open_event_stream(&self, max: usize) -> Option<EventStreamGuard> {
        let streams = &self.event_streams;
        streams.try_add(1, gauge(max)).then(|| EventStreamGuard(streams.clone()))
    }

    /// Returns an empty count of held bytes.
    pub(crate) fn hold(&self) -> HeldBytes {
        HeldBytes { all: self.held_bytes.clone(), overloads: self.overloads.clone(), bytes: 0 }
    }
}

/// Returns a number as the value of a gauge.
fn gauge(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Guard of one open event stream.
#[derive(Debug)]
pub(crate) struct EventStreamGuard(Gauge);

impl Drop for EventStreamGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Bytes that one request holds. They count until this is dropped.
#[derive(Debug)]
pub(crate) struct HeldBytes {
    /// Bytes of all requests.
    all: Gauge,
    overloads: Counter,
    bytes: i64,
}

impl HeldBytes {
    /// Adds bytes and returns `true`, unless all requests together would then hold more than `max`.
    pub(crate) fn try_grow(&mut self, bytes: usize, max: usize) -> bool {
        let bytes = gauge(bytes);
        if !self.all.try_add(bytes, gauge(max)) {
            self.overloads.inc();
            tracing::warn!(limit = "max_api_bytes", max, "Server API memory limit reached");
            return false;
        }
        self.bytes += bytes;
        true
    }

    /// Adds bytes that are already held, whatever the limit.
    pub(crate) fn grow(&mut self, bytes: usize) {
        let bytes = gauge(bytes);
        self.all.add(bytes);
        self.bytes += bytes;
    }
}

impl Drop for HeldBytes {
    fn drop(&mut self) {
        self.all.add(-self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_bytes_of_all_requests_share_a_limit() {
        let metrics = ApiMetrics::default();
        let (mut first, mut second) = (metrics.hold(), metrics.hold());
        assert!(first.try_grow(60, 100));
        assert!(!second.try_grow(41, 100) && second.try_grow(40, 100));
        second.grow(5);
        assert_eq!(metrics.held_bytes.value(), 105);
        drop(first);
        assert_eq!(metrics.held_bytes.value(), 45);
        drop(second);
        assert_eq!(metrics.held_bytes.value(), 0);
        assert_eq!(metrics.overloads.value(), 1);
    }

    #[test]
    fn event_streams_are_limited() {
        let metrics = ApiMetrics::default();
        let first = metrics.open_event_stream(1);
        assert!(first.is_some() && metrics.open_event_stream(1).is_none());
        drop(first);
        assert!(metrics.open_event_stream(1).is_some());
        assert_eq!(metrics.event_streams.value(), 0);
    }
}
