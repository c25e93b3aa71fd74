//! From the node's spans to a collector: a bounded queue and the task that empties it.

use std::sync::Arc;
use std::time::Duration;

use deeperhub_node::trace::{Span, SpanLoss, SpanSink, TraceMetrics};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::convert::{self, Origin};
use super::environment::TelemetryConfig;
use super::transport::Client;

/// The first pause before a batch is tried again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// The longest of these pauses.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Where the node's threads put spans. What does not fit is dropped and counted: nobody waits.
#[derive(Debug)]
pub(crate) struct SpanQueue {
    sender: mpsc::Sender<Span>,
    metrics: TraceMetrics,
}

/// Empties the queue.
#[derive(Debug)]
pub(crate) struct Exporter {
    queue: mpsc::Receiver<Span>,
    client: Client,
    batch: usize,
    delay: Duration,
    export_timeout: Duration,
    metrics: TraceMetrics,
    /// The last batch was lost; told once, until one is taken again.
    is_failing: bool,
}

impl SpanQueue {
    pub(crate) fn new(client: Client, config: &TelemetryConfig, metrics: TraceMetrics) -> (Self, Exporter) {
        let (sender, queue) = mpsc::channel(config.queue);
        let exporter = Exporter {
            queue,
            client,
            batch: config.batch,
            delay: config.delay,
            export_timeout: config.export_timeout,
            metrics: metrics.clone(),
            is_failing: false,
        };
        (Self { sender, metrics }, exporter)
    }
}

impl SpanSink for SpanQueue {
    fn record(&self, span: Span) {
        if self.sender.try_send(span).is_err() {
            self.metrics.dropped(SpanLoss::QueueFull, 1);
        }
    }
}

impl Exporter {
    /// Sends batches until it is told to stop, and then what is left in the queue.
    pub(crate) async fn run(mut self, origin: Arc<Origin>, mut stop: watch::Receiver<bool>) {
        let mut batch = Vec::with_capacity(self.batch);
        loop {
            let is_last = self.gather(&mut batch, &mut stop).await;
            if !batch.is_empty() {
                self.send(&origin, &mut batch, &mut stop).await;
            } else if is_last {
                return;
            }
        }
    }

    /// Waits for a span, and then for others to go with it. True: it was told to stop, or the node is gone.
    async fn gather(&mut self, batch: &mut Vec<Span>, stop: &mut watch::Receiver<bool>) -> bool {
        let mut deadline = None;
        while batch.len() < self.batch {
            let room = self.batch - batch.len();
            if *stop.borrow() {
                while batch.len() < self.batch
                    && let Ok(span) = self.queue.try_recv()
                {
                    batch.push(span);
                }
                return true;
            }
            tokio::select! {
                taken = self.queue.recv_many(batch, room) => {
                    if taken == 0 {
                        return true;
                    }
                    deadline.get_or_insert_with(|| Instant::now() + self.delay);
                }
                () = sleep_until(deadline) => return false,
                // An error says that whoever could tell it to stop is gone.
                changed = stop.wait_for(|stop| *stop) => {
                    if changed.is_err() {
                        return true;
                    }
                }
            }
        }
        false
    }

    /// Tries for a bounded time. While it waits the queue fills, and then drops.
    async fn send(&mut self, origin: &Origin, batch: &mut Vec<Span>, stop: &mut watch::Receiver<bool>) {
        let spans = batch.len() as u64;
        let request = convert::spans(origin, batch.drain(..));
        let give_up = Instant::now() + self.export_timeout;
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.client.send_spans(request.clone()).await {
                Ok(rejected) => {
                    let rejected = rejected.min(spans);
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
            if !error.is_transient() || *stop.borrow() || Instant::now() + wait > give_up {
                self.metrics.dropped(SpanLoss::ExportFailed, spans);
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

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
