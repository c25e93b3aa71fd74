//! Starts, supervises and stops the tasks that export over OTLP.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use deeperhub_metrics::Counter;
use deeperhub_node::NodeHandle;
use deeperhub_node::trace::{TraceMetrics, Tracer};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, warn};

use crate::client::{Client, with_causes};
use crate::config::{Destination, TelemetryConfig};
use crate::metric_exporter::MetricExporter;
use crate::otlp::Origin;
use crate::span_exporter::{SpanExporter, SpanQueue};

/// Delay before an exporter restarts after a panic. Limits CPU use if it panics each time.
const PANIC_RESTART_DELAY: Duration = Duration::from_secs(1);

/// OTLP exporters that are not started yet.
///
/// Create them before the node, because their [`tracer`](Self::tracer) is part of the node's
/// configuration.
#[derive(Debug)]
pub struct Exporters {
    config: TelemetryConfig,
    /// The span exporter, and the queue that the node's tracer records spans in.
    spans: Option<(SpanExporter, Arc<SpanQueue>)>,
    metrics: Option<Client>,
    trace_metrics: TraceMetrics,
    panics: Counter,
}

/// OTLP exporters that are running.
#[derive(Debug)]
pub struct RunningExporters {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Exporters {
    /// Creates the exporters. Also returns warnings for people. Reads certificate files, so the
    /// call may block.
    ///
    /// An exporter that cannot be created is left out with a warning, because a hub without
    /// telemetry is better than no hub.
    #[must_use]
    pub fn new(config: TelemetryConfig) -> (Self, Vec<String>) {
        let mut warnings = config.warnings.clone();
        let mut client = |destination: &Option<Destination>, signal: &str| {
            let client = Client::new(destination.as_ref()?);
            client
                .map_err(|error| {
                    warnings.push(format!("{signal} cannot be exported: {}", with_causes(&error)))
                })
                .ok()
        };
        let trace_metrics = TraceMetrics::default();
        let spans = client(&config.traces, "spans").map(|client| {
            let (queue, exporter) = SpanQueue::new(client, &config, trace_metrics.clone());
            (exporter, Arc::new(queue))
        });
        let metrics = client(&config.metrics, "metrics");
        (Self { config, spans, metrics, trace_metrics, panics: Counter::default() }, warnings)
    }

    /// Returns the tracer for the node's configuration. If no spans are exported, the tracer
    /// records none.
    #[must_use]
    pub fn tracer(&self) -> Tracer {
        let Some((_, queue)) = &self.spans else { return Tracer::default() };
        Tracer::new(self.config.sampler, queue.clone(), self.trace_metrics.clone())
    }

    /// Returns the [`tracer`](Self::tracer) with a limit on traces that clients mark as sampled
    /// ([`Tracer::with_client_rate`]). Limits the cost that clients can cause.
    #[must_use]
    pub fn tracer_with_client_rate(&self, per_second: u32) -> Tracer {
        let tracer = self.tracer();
        if tracer.is_recording() { tracer.with_client_rate(per_second) } else { tracer }
    }

    /// Returns the counter of exporter panics. A panicked exporter restarts after a second.
    #[must_use]
    pub fn panics(&self) -> Counter {
        self.panics.clone()
    }

    /// Starts to export the node's spans and metrics, in tasks of the current tokio runtime.
    ///
    /// # Panics
    ///
    /// Panics if it is called outside of a tokio runtime.
    #[must_use]
    pub fn start(self, node: &NodeHandle) -> RunningExporters {
        let Self { config, spans, metrics, panics, .. } = self;
        let (stop_sender, stop_receiver) = watch::channel(false);
        let origin = Arc::new(Origin::new(&config, node.node_id()));
        let mut tasks = Vec::new();
        if let Some((mut exporter, _)) = spans {
            let (origin, mut stop, panics) = (Arc::clone(&origin), stop_receiver.clone(), panics.clone());
            tasks.push(tokio::spawn(async move {
                while catch_panic(exporter.run(&origin, &mut stop)).await.is_err() {
                    wait_after_panic("spans", &panics).await;
                }
            }));
        }
        if let Some(client) = metrics {
            let mut exporter = MetricExporter::new(client, node.clone(), config.metrics_interval);
            let mut stop = stop_receiver;
            tasks.push(tokio::spawn(async move {
                while catch_panic(exporter.run(&origin, &mut stop)).await.is_err() {
                    wait_after_panic("metrics", &panics).await;
                }
            }));
        }
        RunningExporters { stop: stop_sender, tasks }
    }
}

impl RunningExporters {
    /// Ends the exporters after they have sent the queued spans and the last metrics. Waits at most
    /// `timeout` for them.
    ///
    /// Call it after the node has stopped, because spans that are recorded later are lost.
    pub async fn stop(self, timeout: Duration) {
        self.stop.send_replace(true);
        let all_ended = tokio::time::timeout(timeout, async {
            for task in self.tasks {
                if let Err(error) = task.await {
                    warn!(%error, "Exporter task failed");
                }
            }
        });
        if all_ended.await.is_err() {
            warn!(?timeout, "Exporters did not stop in time");
        }
    }
}

/// Counts and logs a panic, and waits before the exporter restarts.
async fn wait_after_panic(signal: &'static str, panics: &Counter) {
    panics.inc();
    error!(signal, "Exporter panicked; restarting");
    tokio::time::sleep(PANIC_RESTART_DELAY).await;
}

/// Runs a future and returns its panic as an error. State that the future borrows must be valid at
/// each point where it can panic.
async fn catch_panic<T>(future: impl Future<Output = T>) -> thread::Result<T> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_a_future_is_an_error() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let run = |panics: bool| {
            runtime.block_on(catch_panic(async {
                tokio::task::yield_now().await;
                assert!(!panics, "it panics");
                7
            }))
        };
        assert_eq!(run(false).ok(), Some(7));
        assert!(run(true).is_err());
    }
}
