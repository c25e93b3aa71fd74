//! A real Prometheus that scrapes servers.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::net::TcpStream;

use super::{Peer, TemporaryDir, free_port, http, install, wait_for};

/// A real Prometheus that scrapes servers; stopped on drop.
#[derive(Debug)]
pub(crate) struct Prometheus {
    address: SocketAddr,
    child: Child,
    _files: TemporaryDir,
}

impl Prometheus {
    /// Scrapes the server API at `target` five times a second.
    ///
    /// # Panics
    ///
    /// If it cannot be installed.
    pub(crate) fn scraping(target: SocketAddr) -> Self {
        install(&[Peer::Prometheus]);
        let files = TemporaryDir::new();
        let config = format!(
            "scrape_configs:\n- job_name: deeperhub\n  scrape_interval: 200ms\n  scrape_timeout: 200ms\n  \
             static_configs: [{{targets: ['{target}']}}]\n"
        );
        let config = files.write("prometheus.yml", &config);
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", files.path("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--enable-feature=exemplar-storage")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus runs");
        Self { address, child, _files: files }
    }

    /// Returns the `data` of an API response as soon as it has results. `parameters` are names and
    /// values.
    ///
    /// # Panics
    ///
    /// If there are none in time.
    pub(crate) async fn request(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let parameters = parameters.iter().map(|(name, value)| format!("{name}={}", encoded(value)));
        let request = format!("GET {path}?{}", parameters.collect::<Vec<_>>().join("&"));
        wait_for(&request, async {
            loop {
                if TcpStream::connect(self.address).await.is_ok() {
                    let response = http(self.address, &request, &[], "").await.json();
                    assert_ne!(response["errorType"], "bad_data", "{request}: {response}");
                    let data = &response["data"];
                    let results = data.as_array().or_else(|| data["result"].as_array());
                    if results.is_some_and(|results| !results.is_empty()) {
                        return data.clone();
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
    }

    /// Returns the current results of a query.
    pub(crate) async fn query(&self, query: &str) -> Value {
        self.request("/api/v1/query", &[("query", query)]).await["result"].clone()
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Percent-encodes a text for a query.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}
