//! Telemetry that leaves the process: spans and metrics by OTLP.
//!
//! Nothing that serves clients ever waits for a collector. Spans go through a bounded queue, and what does not fit is
//! dropped and counted; metrics are read from the same cells as the text for Prometheus, when it is time to send them.

mod convert;
mod environment;
mod metrics;
mod spans;
mod transport;

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use deeperhub_metrics::SharedCounter;
use deeperhub_node::NodeHandle;
use deeperhub_node::trace::{Sampler, TraceMetrics, Tracer};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{error, warn};

pub use environment::{TelemetryConfig, telemetry_config};
pub use transport::certificates;

use convert::Origin;
use environment::Target;
use spans::SpanQueue;
use transport::{Client, with_causes};

/// Delay before a panicked exporter restarts.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// What is set up before the node, as its tracer is part of the node's configuration.
#[derive(Debug)]
pub struct Prepared {
    config: TelemetryConfig,
    /// The span exporter and the sink that fills its queue.
    spans: Option<(spans::Exporter, Arc<SpanQueue>)>,
    metrics: Option<Client>,
    trace_metrics: TraceMetrics,
    panics: SharedCounter,
}

/// The exporters while they run.
#[derive(Debug)]
pub struct Telemetry {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Prepared {
    /// Creates the exporters; reads certificates, which may block. An exporter that fails is left
    /// out with a warning: a hub without telemetry is better than none.
    pub fn new(config: TelemetryConfig) -> (Self, Vec<String>) {
        let mut warnings = config.warnings.clone();
        let mut client = |target: &Option<Target>, what: &str| {
            let client = Client::new(target.as_ref()?);
            client
                .map_err(|error| warnings.push(format!("{what} cannot be exported: {}", with_causes(&error))))
                .ok()
        };
        let trace_metrics = TraceMetrics::default();
        let spans = client(&config.traces, "spans").map(|client| {
            let (queue, exporter) = SpanQueue::new(client, &config, trace_metrics.clone());
            (exporter, Arc::new(queue))
        });
        let metrics = client(&config.metrics, "metrics");
        (Self { config, spans, metrics, trace_metrics, panics: SharedCounter::new() }, warnings)
    }

    /// Returns the node's tracer. For `client_rate` see [`Tracer::with_client_rate`].
    pub fn tracer(&self, client_rate: u32) -> Tracer {
        let Some((_, queue)) = &self.spans else { return Tracer::default() };
        let sampler: Sampler = self.config.sampler;
        Tracer::new(sampler, queue.clone(), self.trace_metrics.clone()).with_client_rate(client_rate)
    }

    /// Returns the counter of exporter panics.
    pub fn panics(&self) -> SharedCounter {
        self.panics.clone()
    }

    /// Starts to export what the node records, on the runtime of the caller.
    pub fn start(self, node: &NodeHandle) -> Telemetry {
        let Self { config, spans, metrics, panics, .. } = self;
        let (stop, stopped) = watch::channel(false);
        let origin = Arc::new(Origin::new(&config, node.node_id()));
        let mut tasks = Vec::new();
        if let Some((mut exporter, _)) = spans {
            let (origin, mut stop, panics) = (Arc::clone(&origin), stopped.clone(), panics.clone());
            tasks.push(tokio::spawn(async move {
                while caught(exporter.run(&origin, &mut stop)).await.is_err() {
                    after_panic("spans", &panics).await;
                }
            }));
        }
        if let Some(client) = metrics {
            let mut exporter = metrics::Exporter::new(client, node.clone(), config.metrics_interval);
            let mut stop = stopped;
            tasks.push(tokio::spawn(async move {
                while caught(exporter.run(&origin, &mut stop)).await.is_err() {
                    after_panic("metrics", &panics).await;
                }
            }));
        }
        Telemetry { stop, tasks }
    }
}

/// Counts and logs a panic, and waits before the exporter restarts.
async fn after_panic(what: &'static str, panics: &SharedCounter) {
    panics.inc();
    error!(what, "Exporter panicked; restarting.");
    tokio::time::sleep(AFTER_PANIC).await;
}

/// Runs a future and returns its panic as an error. Borrowed state must stay valid after a panic.
async fn caught<T>(future: impl Future<Output = T>) -> thread::Result<T> {
    let mut future = pin!(future);
    poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await
}

impl Telemetry {
    /// Sends what waits, for at most `time`. To be called when nothing is recorded any more.
    pub async fn stop(self, time: Duration) {
        self.stop.send_replace(true);
        let ended = tokio::time::timeout(time, async {
            for task in self.tasks {
                if let Err(error) = task.await {
                    warn!(%error, "An exporter failed.");
                }
            }
        });
        if ended.await.is_err() {
            warn!("The collector did not take the last of the telemetry in time.");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_a_future_is_an_error() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let ended = |panics: bool| {
            runtime.block_on(caught(async {
                tokio::task::yield_now().await;
                assert!(!panics, "it panics");
                7
            }))
        };
        assert_eq!(ended(false).ok(), Some(7));
        assert!(ended(true).is_err());
    }
}
