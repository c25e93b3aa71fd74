//! Metrics of traces.

use deeperhub_metrics::{Counter, CounterVec, labels, metrics};

labels! {
    /// Reason why spans are lost.
    #[non_exhaustive]
    pub enum SpanLoss("reason") {
        /// The export queue was full.
        QueueFull = "queue_full",
        /// The collector was unreachable, or refused the batch.
        ExportFailed = "export_failed",
        /// The collector accepted the batch, but not these spans.
        Rejected = "rejected",
        /// A worker traced too many sampled publishes at the same time. A `fan_out` span and its
        /// children count as one span.
        TooMany = "too_many",
    }
}

metrics! {
    /// Counters of recorded and lost spans. Clones share the same counters.
    pub struct TraceMetrics {
        /// Spans accepted by a collector.
        exported: Counter = "deeperhub_trace_spans_exported_total";
        /// Lost spans.
        pub(super) dropped: CounterVec<SpanLoss> = "deeperhub_trace_spans_dropped_total";
        /// Messages and handshakes of clients in sampled traces over the rate limit.
        pub(super) limited: Counter = "deeperhub_trace_clients_limited_total";
    }
}

impl TraceMetrics {
    /// Counts spans that a collector accepted.
    pub fn exported(&self, spans: u64) {
        self.exported.add(spans);
    }

    /// Counts lost spans.
    pub fn dropped(&self, loss: SpanLoss, spans: u64) {
        self.dropped.add(loss, spans);
    }
}
