//! Telemetry that leaves the process: spans and metrics by OTLP.
//!
//! Nothing that serves clients ever waits for a collector. Spans go through a bounded queue, and what does not fit is
//! dropped and counted; metrics are read from the same cells as the text for Prometheus, when it is time to send them.

mod convert;
mod environment;
mod metrics;
mod spans;
mod transport;

use std::sync::Arc;
use std::time::Duration;

use deeperhub_node::NodeHandle;
use deeperhub_node::trace::{TraceMetrics, Tracer};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::warn;

pub(crate) use environment::{TelemetryConfig, telemetry_config};

use convert::Origin;
use spans::SpanQueue;
use transport::with_causes;

/// What is set up before the node, as its tracer is part of the node's configuration.
#[derive(Debug)]
pub(crate) struct Prepared {
    config: TelemetryConfig,
    spans: Option<spans::Exporter>,
    tracer: Tracer,
}

/// The exporters while they run.
#[derive(Debug)]
pub(crate) struct Telemetry {
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Prepared {
    /// Makes the tracer. What cannot be set up is warned about and left out: a hub without telemetry is better than
    /// none.
    pub(crate) fn new(config: TelemetryConfig) -> Self {
        for warning in &config.warnings {
            warn!("{warning}");
        }
        let metrics = TraceMetrics::default();
        let client = config.traces.as_ref().and_then(|target| {
            transport::Client::new(target)
                .inspect_err(|error| warn!(error = with_causes(error), "Spans cannot be exported."))
                .ok()
        });
        let (spans, tracer) = match client {
            Some(client) => {
                let (queue, exporter) = SpanQueue::new(client, &config, metrics.clone());
                (Some(exporter), Tracer::new(config.sampler, Arc::new(queue), metrics))
            }
            None => (None, Tracer::default()),
        };
        Self { config, spans, tracer }
    }

    /// What the node needs.
    pub(crate) fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Starts to export what the node records, on the runtime of the caller.
    pub(crate) fn start(self, node: &NodeHandle) -> Telemetry {
        let (stop, stopped) = watch::channel(false);
        let origin = Arc::new(Origin::new(&self.config, node.node_id()));
        let mut tasks = Vec::new();
        if let Some(spans) = self.spans {
            tasks.push(tokio::spawn(spans.run(Arc::clone(&origin), stopped.clone())));
        }
        if let Some(target) = &self.config.metrics {
            match transport::Client::new(target) {
                Ok(client) => {
                    let exporter = metrics::Exporter::new(client, node.clone(), self.config.metrics_interval);
                    tasks.push(tokio::spawn(exporter.run(origin, stopped)));
                }
                Err(error) => warn!(error = with_causes(&error), "Metrics cannot be exported."),
            }
        }
        Telemetry { stop, tasks }
    }
}

impl Telemetry {
    /// Sends what waits, for at most `time`. To be called when nothing is recorded any more.
    pub(crate) async fn stop(self, time: Duration) {
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
