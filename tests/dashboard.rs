//! The dashboard and the alerts, against the existing metrics and a real Prometheus.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    Broker, Client, Collector, Engine, Prometheus, ROOT, Server, TemporaryDir, has_brokers, http,
};
use crate::telemetry::{sampled, server};

fn file(name: &str) -> String {
    std::fs::read_to_string(format!("{ROOT}/{name}")).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn panels() -> Vec<Value> {
    let dashboard: Value = serde_json::from_str(&file("deploy/grafana/deeperhub.json")).expect("it is JSON");
    dashboard["panels"].as_array().expect("it has panels").clone()
}

/// Returns the names of our metrics in a text, without histogram suffixes.
fn metrics_named_in(text: &str) -> Vec<String> {
    let mut names: Vec<String> = text
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("deeperhub_") || word.starts_with("process_"))
        .map(|word| {
            let parts = ["_bucket", "_sum", "_count"];
            parts.iter().find_map(|part| word.strip_suffix(part)).unwrap_or(word).to_owned()
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

#[tokio::test]
async fn dashboard_and_alerts_use_existing_metrics() {
    // Nothing listens there; the node still has cluster metrics.
    let in_cluster = Server::start(&["--cluster", "redis://127.0.0.1:1", "--topic", "kept.>: history=1"]);
    let folder = TemporaryDir::new();
    let path = folder.path("history").display().to_string();
    let with_disk = Server::start(&["--history-store", "disk", "--history-dir", &path]);
    let mut text = String::new();
    for server in [&in_cluster, &with_disk] {
        text += &http(server.api(), "GET /metrics", &[], "").await.body;
    }
    for name in ["deploy/grafana/deeperhub.json", "deploy/prometheus/alerts.yml"] {
        let names = metrics_named_in(&file(name));
        assert!(names.len() > 5, "{name}: {names:?}");
        for metric in names {
            assert!(
                text.contains(&format!("# TYPE {metric} ")),
                "{name} names {metric}, which is not a metric"
            );
        }
    }
}

#[test]
fn panels_have_unique_ids_and_positions() {
    let panels = panels();
    let mut ids: Vec<_> = panels.iter().filter_map(|panel| panel["id"].as_u64()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), panels.len(), "panel ids are unique");
    let place = |panel: &Value| {
        let side = |name: &str| panel["gridPos"][name].as_u64().expect("a panel has a place");
        (side("x")..side("x") + side("w"), side("y")..side("y") + side("h"))
    };
    for (index, panel) in panels.iter().enumerate() {
        let (x, y) = place(panel);
        assert!(x.end <= 24, "{} is too wide", panel["title"]);
        for other in &panels[index + 1..] {
            let (other_x, other_y) = place(other);
            let overlap = x.start < other_x.end
                && other_x.start < x.end
                && y.start < other_y.end
                && other_y.start < y.end;
            assert!(!overlap, "{} lies over {}", panel["title"], other["title"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_dashboard_query_has_results_under_load() {
    if !has_brokers() {
        return;
    }
    let broker = Broker::start(Engine::Redis);
    let collector = Collector::http().await;
    let url = broker.url();
    let flags =
        ["--cluster", &url, "--rate-limit", "0", "--canary-interval", "200ms", "--topic", "kept: history=9"];
    let server = server(&collector, &flags, &[]);
    let prometheus = Prometheus::scraping(server.api());
    let load = async {
        loop {
            sampled(&server, 20).await;
            let mut client = Client::connect(&server).await;
            client.request(&json!({"type": "nonsense"})).await;
            client.request(&json!({"type": "subscribe", "data": {"topic": "kept"}})).await;
            // The reply or the delivery: the load does not depend on either.
            client
                .request(&json!({"type": "publish", "id": 1, "data": {"topic": "kept", "message": 1}}))
                .await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let look = async {
        let mut queries = 0;
        for panel in panels() {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let expression = target["expr"].as_str().expect("a target has an expression");
                let query = expression
                    .replace("$job", ".*")
                    .replace("$instance", ".*")
                    .replace("$__rate_interval", "20s");
                assert!(!query.contains('$'), "{query}");
                let found = prometheus.query(&query).await;
                assert!(
                    found.as_array().is_some_and(|found| !found.is_empty()),
                    "{}: {query}",
                    panel["title"]
                );
                queries += 1;
            }
        }
        assert!(queries > 50, "{queries}");
        // The displayed value is the measured one.
        let p99 =
            "histogram_quantile(0.99, sum by (le) (rate(deeperhub_publish_latency_seconds_bucket[20s])))";
        let value =
            prometheus.query(p99).await[0]["value"][1].as_str().and_then(|value| value.parse::<f64>().ok());
        assert!(value.is_some_and(|seconds| seconds > 0.0 && seconds < 30.0), "{value:?}");
    };
    tokio::select! {
        () = load => unreachable!("the load has no end"),
        () = look => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_scrapes_metrics_and_exemplars() {
    let collector = Collector::http().await;
    let server = server(&collector, &[], &[]);
    assert_eq!(sampled(&server, 5).await, 5);
    let prometheus = Prometheus::scraping(server.api());
    let received = prometheus.query("deeperhub_messages_received_total{type=\"publish\"}").await;
    assert_eq!(received[0]["value"][1], "5");
    assert_eq!(prometheus.query("up").await[0]["value"][1], "1");
    let parameters =
        [("query", "deeperhub_publish_latency_seconds_bucket"), ("start", "0"), ("end", "4000000000")];
    let exemplars = prometheus.request("/api/v1/query_exemplars", &parameters).await;
    let trace_id = exemplars[0]["exemplars"][0]["labels"]["trace_id"].as_str();
    assert_eq!(trace_id.map(str::len), Some(32), "{exemplars}");
}
