//! Sends the node's spans to a collector. The node's threads push spans to a bounded queue, and a
//! task sends them in batches.

use std::sync::Arc;
use std::time::Duration;

use deeperhub_node::trace::{Span, SpanLoss, SpanSink, TraceMetrics};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::client::Client;
use crate::config::TelemetryConfig;
use crate::otlp::{self, Origin};
use crate::queue::{BatchQueue, Pushed};

/// Backoff before the first retry of a batch. Each further backoff is twice as long.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);

/// Maximum backoff.
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// A queue, and the notification of its consumer that a batch is complete.
#[derive(Debug)]
struct Shared<T = Span> {
    queue: BatchQueue<T>,
    batch_complete: Notify,
}

/// Sink that the node's threads record spans in. Drops and counts spans if the queue is full.
#[derive(Debug)]
pub(crate) struct SpanQueue {
    shared: Arc<Shared>,
    metrics: TraceMetrics,
}

/// Takes batches from the queue and sends them.
#[derive(Debug)]
pub(crate) struct SpanExporter {
    shared: Arc<Shared>,
    client: Client,
    batch_delay: Duration,
    export_timeout: Duration,
    metrics: TraceMetrics,
    /// `true` if the last batch was lost. Only the first loss in a row is logged.
    is_failing: bool,
}

impl<T> Shared<T> {
    fn new(capacity: usize, batch_size: usize) -> Self {
        Self { queue: BatchQueue::new(capacity, batch_size), batch_complete: Notify::new() }
    }

    /// Queues a span. Returns `false` if the queue is full.
    fn push(&self, span: T) -> bool {
        match self.queue.push(span) {
            Pushed::Queued => true,
            Pushed::CompletesBatch => {
                self.batch_complete.notify_one();
                true
            }
            Pushed::Full => false,
        }
    }

    /// Waits until a whole batch is queued.
    async fn wait_for_batch(&self) {
        while !self.queue.has_batch() {
            self.batch_complete.notified().await;
        }
    }
}

impl SpanQueue {
    /// Creates a queue and the exporter that takes its spans.
    pub(crate) fn new(
        client: Client,
        config: &TelemetryConfig,
        metrics: TraceMetrics,
    ) -> (Self, SpanExporter) {
        let batch_size = config.max_batch_spans.clamp(1, config.max_queued_spans.max(1));
        let shared = Arc::new(Shared::new(config.max_queued_spans, batch_size));
        let exporter = SpanExporter {
            shared: Arc::clone(&shared),
            client,
            batch_delay: config.batch_delay,
            export_timeout: config.export_timeout,
            metrics: metrics.clone(),
            is_failing: false,
        };
        (Self { shared, metrics }, exporter)
    }
}

impl SpanSink for SpanQueue {
    fn record(&self, span: Span) {
        if !self.shared.push(span) {
            self.metrics.dropped(SpanLoss::QueueFull, 1);
        }
    }
}

impl SpanExporter {
    /// Sends batches until `stop` is set or its sender is dropped, and then the spans that are
    /// still queued.
    pub(crate) async fn run(&mut self, origin: &Origin, stop: &mut watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = self.shared.wait_for_batch() => {}
                () = tokio::time::sleep(self.batch_delay) => {}
                // An error means that the sender was dropped.
                _ = stop.wait_for(|stop| *stop) => {}
            }
            // The flag is read before the queue, so that spans recorded before the stop are sent.
            let is_stopping = *stop.borrow() || stop.has_changed().is_err();
            let batch = self.shared.queue.take_batch();
            if !batch.is_empty() {
                self.send(origin, batch, stop).await;
            } else if is_stopping {
                return;
            }
        }
    }

    /// Sends a batch. After a failure, retries it if the retry can start within the export timeout.
    /// After a stop, makes at most one more attempt. Meanwhile the queue may fill up.
    async fn send(&mut self, origin: &Origin, batch: Vec<Span>, stop: &mut watch::Receiver<bool>) {
        let spans = batch.len() as u64;
        let mut loss_guard = CountLostOnDrop { spans, metrics: self.metrics.clone() };
        let request = otlp::traces_request(origin, batch.into_iter());
        let deadline = Instant::now() + self.export_timeout;
        let mut backoff = FIRST_BACKOFF;
        loop {
            let error = match self.client.send_spans(request.clone()).await {
                Ok(rejected) => {
                    let rejected = rejected.min(spans);
                    loss_guard.spans = 0;
                    self.metrics.exported(spans - rejected);
                    self.metrics.dropped(SpanLoss::Rejected, rejected);
                    if std::mem::take(&mut self.is_failing) {
                        info!("Export of spans recovered");
                    }
                    return;
                }
                Err(error) => error,
            };
            // Jitter spreads the retries of nodes that lost the same collector.
            let wait = error.retry_after().unwrap_or_else(|| backoff.mul_f64(0.5 + 0.5 * fastrand::f64()));
            if !error.is_retryable() || *stop.borrow() || !ends_in_time(wait, deadline, Instant::now()) {
                if !std::mem::replace(&mut self.is_failing, true) {
                    warn!(%error, spans, "Export of spans failed; counting further losses silently");
                }
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => backoff = (backoff * 2).min(MAX_BACKOFF),
                // A stop ends the wait; the next attempt is the last one.
                _ = stop.wait_for(|stop| *stop) => {}
            }
        }
    }
}

/// Returns `true` if `wait` ends by the deadline. Compares durations, because a collector can
/// request a wait so long that adding it to an `Instant` would overflow.
fn ends_in_time(wait: Duration, deadline: Instant, now: Instant) -> bool {
    wait <= deadline.saturating_duration_since(now)
}

/// Guard that counts the spans of a batch as lost when the guard is dropped, also during a panic.
#[derive(Debug)]
struct CountLostOnDrop {
    spans: u64,
    metrics: TraceMetrics,
}

impl Drop for CountLostOnDrop {
    fn drop(&mut self) {
        self.metrics.dropped(SpanLoss::ExportFailed, self.spans);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake, Waker};

    use super::*;

    #[derive(Default)]
    struct WakeCounter(AtomicUsize);

    impl Wake for WakeCounter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_exporter_is_woken_for_a_whole_batch_only() {
        let shared = Shared::new(10, 3);
        let wakes = Arc::new(WakeCounter::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let mut cx = Context::from_waker(&waker);
        let mut batch = pin!(shared.wait_for_batch());
        assert!(batch.as_mut().poll(&mut cx).is_pending());
        assert!(shared.push(1) && shared.push(2));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
        assert!(shared.push(3) && shared.push(4));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(batch.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn no_wait_is_too_long_to_be_compared() {
        let now = Instant::now();
        let end = now + Duration::from_secs(30);
        assert!(ends_in_time(Duration::from_secs(30), end, now));
        assert!(!ends_in_time(Duration::from_secs(31), end, now));
        assert!(!ends_in_time(Duration::from_secs(u64::MAX), end, now));
        assert!(!ends_in_time(Duration::MAX, now, end));
    }
}
