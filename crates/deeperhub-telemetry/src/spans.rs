//! From the node's spans to a collector: a bounded queue and the task that empties it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use deeperhub_node::trace::{Span, SpanLoss, SpanSink, TraceMetrics};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::convert::{self, Origin};
use crate::environment::TelemetryConfig;
use crate::transport::Client;

/// The first pause before a batch is tried again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest of these pauses.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Spans that wait to be sent. The exporter is woken for a whole batch only: to be woken for each span would cost more
/// than all the rest of it.
#[derive(Debug)]
struct Waiting<T = Span> {
    spans: Mutex<VecDeque<T>>,
    /// The most there may be.
    capacity: usize,
    batch: usize,
    /// Told when there is a batch.
    has_batch: Notify,
}

/// Where the node's threads put spans. What does not fit is dropped and counted: nobody waits.
#[derive(Debug)]
pub(crate) struct SpanQueue {
    waiting: Arc<Waiting>,
    metrics: TraceMetrics,
}

/// Empties the queue.
#[derive(Debug)]
pub(crate) struct Exporter {
    waiting: Arc<Waiting>,
    client: Client,
    delay: Duration,
    export_timeout: Duration,
    metrics: TraceMetrics,
    /// The last batch was lost; told once, until one is taken again.
    is_failing: bool,
}

impl<T> Waiting<T> {
    fn new(capacity: usize, batch: usize) -> Self {
        Self { spans: Mutex::new(VecDeque::new()), capacity, batch, has_batch: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False: there is no room.
    fn push(&self, span: T) -> bool {
        let mut spans = self.lock();
        if spans.len() >= self.capacity {
            return false;
        }
        spans.push_back(span);
        let is_batch = spans.len() == self.batch;
        drop(spans);
        if is_batch {
            self.has_batch.notify_one();
        }
        true
    }

    /// The oldest, at most a batch.
    fn take(&self) -> Vec<T> {
        let mut spans = self.lock();
        let count = spans.len().min(self.batch);
        spans.drain(..count).collect()
    }

    /// Returns when there is a batch, at once where there is one already.
    async fn batch(&self) {
        while self.lock().len() < self.batch {
            self.has_batch.notified().await;
        }
    }
}

impl SpanQueue {
    pub(crate) fn new(client: Client, config: &TelemetryConfig, metrics: TraceMetrics) -> (Self, Exporter) {
        let waiting = Arc::new(Waiting::new(config.queue, config.batch));
        let exporter = Exporter {
            waiting: Arc::clone(&waiting),
            client,
            delay: config.delay,
            export_timeout: config.export_timeout,
            metrics: metrics.clone(),
            is_failing: false,
        };
        (Self { waiting, metrics }, exporter)
    }
}

impl SpanSink for SpanQueue {
    fn record(&self, span: Span) {
        if !self.waiting.push(span) {
            self.metrics.dropped(SpanLoss::QueueFull, 1);
        }
    }
}

impl Exporter {
    /// Sends batches until it is told to stop, and then what is left in the queue.
    pub(crate) async fn run(&mut self, origin: &Origin, stop: &mut watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = self.waiting.batch() => {}
                () = tokio::time::sleep(self.delay) => {}
                // An error says that whoever could tell it to stop is gone.
                _ = stop.wait_for(|stop| *stop) => {}
            }
            // In this order: what was recorded before the end is sent.
            let is_last = *stop.borrow() || stop.has_changed().is_err();
            let batch = self.waiting.take();
            if !batch.is_empty() {
                self.send(origin, batch, stop).await;
            } else if is_last {
                return;
            }
        }
    }

    /// Tries for a bounded time. While it waits the queue fills, and then drops.
    async fn send(&mut self, origin: &Origin, batch: Vec<Span>, stop: &mut watch::Receiver<bool>) {
        let spans = batch.len() as u64;
        let mut batch_lost = LostUnlessDone { spans, metrics: self.metrics.clone() };
        let request = convert::spans(origin, batch.into_iter());
        let give_up = Instant::now() + self.export_timeout;
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.client.send_spans(request.clone()).await {
                Ok(rejected) => {
                    let rejected = rejected.min(spans);
                    batch_lost.spans = 0;
                    self.metrics.exported(spans - rejected);
                    self.metrics.dropped(SpanLoss::Rejected, rejected);
                    if std::mem::take(&mut self.is_failing) {
                        info!("The collector takes spans again.");
                    }
                    return;
                }
                Err(error) => error,
            };
            // Not in step with others that lost the same collector.
            let wait = error.retry_after().unwrap_or_else(|| pause.mul_f64(0.5 + 0.5 * fastrand::f64()));
            if !error.is_transient() || *stop.borrow() || !fits(wait, give_up, Instant::now()) {
                if !std::mem::replace(&mut self.is_failing, true) {
                    warn!(%error, "Spans are lost; that the next ones are too is counted, not told.");
                }
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => pause = (pause * 2).min(LONGEST_PAUSE),
                // Once more, and then no more.
                _ = stop.wait_for(|stop| *stop) => {}
            }
        }
    }
}

/// Returns `true` if `wait` ends by `end`. Compares durations, because a collector may request a
/// wait so long that adding it to an `Instant` would overflow.
fn fits(wait: Duration, end: Instant, now: Instant) -> bool {
    wait <= end.saturating_duration_since(now)
}

/// Guard that counts the spans of a batch as lost on drop, including a panic.
#[derive(Debug)]
struct LostUnlessDone {
    spans: u64,
    metrics: TraceMetrics,
}

impl Drop for LostUnlessDone {
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
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_exporter_is_woken_for_a_whole_batch_only() {
        let waiting = Waiting::new(10, 3);
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(Arc::clone(&wakes));
        let mut cx = Context::from_waker(&waker);
        let mut batch = pin!(waiting.batch());
        assert!(batch.as_mut().poll(&mut cx).is_pending());
        assert!(waiting.push(1) && waiting.push(2));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 0);
        assert!(waiting.push(3) && waiting.push(4));
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        assert!(batch.as_mut().poll(&mut cx).is_ready());
        assert_eq!((waiting.take(), waiting.take(), waiting.take()), (vec![1, 2, 3], vec![4], vec![]));
    }

    #[test]
    fn no_wait_is_too_long_to_be_compared() {
        let now = Instant::now();
        let end = now + Duration::from_secs(30);
        assert!(fits(Duration::from_secs(30), end, now));
        assert!(!fits(Duration::from_secs(31), end, now));
        assert!(!fits(Duration::from_secs(u64::MAX), end, now));
        assert!(!fits(Duration::MAX, now, end));
    }

    #[test]
    fn there_is_room_for_so_many() {
        let waiting = Waiting::new(2, 2);
        assert_eq!([1, 2, 3].map(|span| waiting.push(span)), [true, true, false]);
        assert_eq!(waiting.take(), [1, 2]);
        assert!(waiting.push(4));
    }
}
