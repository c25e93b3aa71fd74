//! The text of all metrics of a fresh server, as scrapers see it.

use crate::cli::check_snapshot;
use crate::support::{Authority, Server, TemporaryDir, http, text};

/// Prefixes of metrics whose values depend on the machine, the time or the canary's probes.
const VARYING: [&str; 9] = [
    "process_",
    "deeperhub_memory_",
    "deeperhub_canary_",
    "deeperhub_worker_round_",
    "deeperhub_queue_wait_",
    "deeperhub_io_uring_workers",
    "deeperhub_tls_certificate_",
    "deeperhub_cluster_",
    "deeperhub_api_",
];

/// A server with every feature that adds metrics.
#[derive(Debug)]
pub(crate) struct FullServer {
    server: Server,
    _authority: Authority,
    _files: TemporaryDir,
}

impl FullServer {
    pub(crate) fn start() -> Self {
        let authority = Authority::new();
        let identity = authority.server("localhost");
        let files = TemporaryDir::new();
        let secret = files.write("secret", "0123456789abcdef0123456789abcdef");
        // Nothing listens on port 1: the node starts without broker and collector.
        let mut flags = identity.flags().to_vec();
        flags.extend(["--auth-secret-file", text(&secret)]);
        flags.extend(["--cluster", "nats://127.0.0.1:1", "--otlp-endpoint", "http://127.0.0.1:1"]);
        let server = Server::start(&flags);
        Self { server, _authority: authority, _files: files }
    }

    /// Returns all metrics, in the format for these request headers.
    pub(crate) async fn metrics(&self, headers: &[&str]) -> String {
        http(self.server.api(), "GET /metrics", headers, "").await.body
    }
}

/// Replaces values that vary with `_`.
fn masked(metrics: &str) -> String {
    let mask = |line: &str| match line.rsplit_once(' ') {
        Some((series, _)) if VARYING.iter().any(|prefix| series.starts_with(prefix)) => {
            format!("{series} _\n")
        }
        _ => format!("{line}\n"),
    };
    metrics.lines().map(mask).collect()
}

#[tokio::test]
async fn the_metrics_of_a_fresh_server_match_the_snapshots() {
    let server = FullServer::start();
    check_snapshot("metrics.txt", &masked(&server.metrics(&[]).await));
    let headers = ["Accept: application/openmetrics-text"];
    check_snapshot("metrics.openmetrics.txt", &masked(&server.metrics(&headers).await));
}
