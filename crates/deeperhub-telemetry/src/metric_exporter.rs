//! Sends the node's metrics to a collector.

use std::time::{Duration, SystemTime};

use deeperhub_node::NodeHandle;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::client::Client;
use crate::otlp::{self, Origin};

/// Reads and sends all metrics at an interval.
#[derive(Debug)]
pub(crate) struct MetricExporter {
    client: Client,
    node: NodeHandle,
    interval: Duration,
    /// `true` if the last attempt failed. Only the first failure in a row is logged.
    is_failing: bool,
}

impl MetricExporter {
    pub(crate) const fn new(client: Client, node: NodeHandle, interval: Duration) -> Self {
        Self { client, node, interval, is_failing: false }
    }

    /// Sends all metrics at the interval until `stop` is set or its sender is dropped, and then
    /// once more.
    pub(crate) async fn run(&mut self, origin: &Origin, stop: &mut watch::Receiver<bool>) {
        loop {
            let is_stopping = tokio::select! {
                () = tokio::time::sleep(self.interval) => false,
                // An error means that the sender was dropped.
                _ = stop.wait_for(|stop| *stop) => true,
            };
            self.send(origin).await;
            if is_stopping {
                return;
            }
        }
    }

    /// Sends all metrics. Sums are cumulative, so a failed attempt loses no counts.
    async fn send(&mut self, origin: &Origin) {
        let request = otlp::metrics_request(origin, &self.node.metrics_snapshot(), SystemTime::now());
        match self.client.send_metrics(request).await {
            Ok(rejected) => {
                if rejected > 0 {
                    warn!(rejected, "Collector rejected data points");
                }
                if std::mem::take(&mut self.is_failing) {
                    info!("Export of metrics recovered");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    warn!(%error, interval = ?self.interval, "Export of metrics failed; retrying");
                }
            }
        }
    }
}
