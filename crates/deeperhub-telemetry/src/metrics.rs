//! From the node's metrics to a collector.

use std::time::{Duration, SystemTime};

use deeperhub_node::NodeHandle;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::convert::{self, Origin};
use crate::transport::Client;

/// Reads and sends all metrics from time to time.
#[derive(Debug)]
pub(crate) struct Exporter {
    client: Client,
    node: NodeHandle,
    interval: Duration,
    /// The last attempt failed; told once, until one succeeds.
    is_failing: bool,
}

impl Exporter {
    pub(crate) fn new(client: Client, node: NodeHandle, interval: Duration) -> Self {
        Self { client, node, interval, is_failing: false }
    }

    /// Sends until it is told to stop, and then once more.
    pub(crate) async fn run(&mut self, origin: &Origin, stop: &mut watch::Receiver<bool>) {
        loop {
            let stopped = tokio::select! {
                () = tokio::time::sleep(self.interval) => false,
                // An error says that whoever could tell it is gone.
                _ = stop.wait_for(|stop| *stop) => true,
            };
            self.send(origin).await;
            if stopped {
                return;
            }
        }
    }

    /// Numbers that only grow are sent as such, so an attempt that fails loses none.
    async fn send(&mut self, origin: &Origin) {
        let request = convert::metrics(origin, &self.node.metrics_snapshot(), SystemTime::now());
        match self.client.send_metrics(request).await {
            Ok(rejected) => {
                if rejected > 0 {
                    warn!(rejected, "The collector rejected some metrics.");
                }
                if std::mem::take(&mut self.is_failing) {
                    info!("The collector takes metrics again.");
                }
            }
            Err(error) => {
                if !std::mem::replace(&mut self.is_failing, true) {
                    warn!(%error, "Metrics were not taken; trying again from time to time.");
                }
            }
        }
    }
}
