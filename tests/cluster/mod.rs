//! Several nodes as one hub, over real brokers.

/// Makes a test of each scenario for each kind of broker. A scenario gets a broker that keeps streams.
macro_rules! over_both_brokers {
    ($($scenario:ident),+ $(,)?) => {
        over_both_brokers! { @nats Nats $($scenario)+ }
        over_both_brokers! { @redis Redis $($scenario)+ }
    };
    (@$module:ident $engine:ident $($scenario:ident)+) => {
        mod $module {
            use crate::support::{Broker, Engine, has_brokers};
            $(
                #[tokio::test]
                async fn $scenario() {
                    if has_brokers() {
                        super::$scenario(Broker::start_with_streams(Engine::$engine)).await;
                    }
                }
            )+
        }
    };
}

mod busy;
mod copies;
mod differing_nodes;
mod faults;
mod jetstream;
mod jetstream_access;
mod journal_checks;
mod journals;
mod lists;
mod long_trials;
mod lost_messages;
mod messages;
mod network;
mod node_faults;
mod own_messages;
mod publishers;
mod readers;
mod rolling;
mod secure;
mod servers;
mod store_failover;
mod store_faults;
mod stream_faults;
mod stream_network;
mod stream_operations;
mod streams;
mod upgrade;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, Server, WAIT_TIMEOUT, http, wait_for};

/// Bound on a recovery: the longest retry delay, the wait for other nodes and a busy machine.
const RECOVERY_TIMEOUT: Duration = WAIT_TIMEOUT;

/// Starts a node without rate limits, because the tests send many messages.
fn node(url: &str, id: &str, flags: &[&str]) -> Server {
    Server::start(&node_flags(url, id, flags))
}

/// Starts a node like [`node`], of another program.
fn node_of(program: &Path, url: &str, id: &str, flags: &[&str]) -> Server {
    Server::start_program(program, &node_flags(url, id, flags))
}

fn node_flags<'f>(url: &'f str, id: &'f str, flags: &[&'f str]) -> Vec<&'f str> {
    let own = ["--cluster", url, "--node-id", id, "--rate-limit", "0", "--workers", "2"];
    [&own[..], flags].concat()
}

/// Starts nodes with the names a, b, c… and waits until each knows all others.
pub(crate) async fn nodes<const N: usize>(url: &str, flags: &[&str]) -> [Server; N] {
    let nodes = std::array::from_fn(|index| {
        let id = char::from(b'a' + u8::try_from(index).expect("there are few nodes")).to_string();
        node(url, &id, flags)
    });
    for node in &nodes {
        wait_until_ready(node).await;
        eventually("all nodes", async || names_of_nodes(node).await.len() == N).await;
    }
    nodes
}

async fn names_of_nodes(node: &Server) -> Vec<String> {
    let list = http(node.api(), "GET /v1/nodes", &[], "").await.json();
    let nodes = list["nodes"].as_array().cloned().unwrap_or_default();
    nodes.iter().filter_map(|node| Some(node["node_id"].as_str()?.to_owned())).collect()
}

/// Waits until a condition holds.
async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    wait_for(what, async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

async fn readiness(node: &Server) -> u16 {
    http(node.api(), "GET /health/ready", &[], "").await.status
}

async fn wait_until_ready(node: &Server) {
    eventually("readiness", async || readiness(node).await == 200).await;
}

async fn wait_until_unready(node: &Server) {
    eventually("the end of readiness", async || readiness(node).await == 503).await;
    let reasons = http(node.api(), "GET /health/ready", &[], "").await.json();
    assert_eq!(reasons["error"]["code"], "cluster_unavailable", "{reasons}");
}

async fn subscribed(node: &Server, topics: &[&str]) -> Client {
    subscribe(Client::connect(node).await, topics).await
}

async fn subscribe(mut client: Client, topics: &[&str]) -> Client {
    for topic in topics {
        let reply = client.request(&json!({"type": "subscribe", "data": {"topic": topic}})).await;
        assert_eq!(reply["type"], "subscribed", "{reply}");
    }
    client
}

/// Publishes through the API of a node and returns the response.
async fn publish(node: &Server, topic: &str, message: &str) -> Value {
    let response = http(node.api(), &format!("POST /v1/topics/{topic}/messages"), &[], message).await;
    assert_eq!(response.status, 200, "{}", response.body);
    response.json()
}

/// Waits until publishes on a node reach a client of another: the broker gets a subscription
/// shortly after the client does.
async fn wait_until_linked(from: &Server, topic: &str, client: &mut Client) {
    let mut probe = 0;
    wait_for("the link between two nodes", async {
        loop {
            probe += 1;
            publish(from, topic, &format!("{{\"probe\":{probe}}}")).await;
            let wait = Duration::from_millis(200);
            // Other messages may still arrive; the test does not need them.
            let mut last = tokio::time::timeout(wait, probe_of(client)).await.unwrap_or_default();
            // All probes sent after it arrive too.
            while last > 0 && last < probe {
                last = probe_of(client).await;
            }
            if last > 0 {
                return;
            }
        }
    })
    .await;
}

/// Returns the number of the next probe.
async fn probe_of(client: &mut Client) -> u64 {
    loop {
        if let Some(probe) = client.receive().await["data"]["message"]["probe"].as_u64() {
            return probe;
        }
    }
}

/// Reads deliveries until one is `"end"`, and returns the others by topic.
async fn read_until_end(client: &mut Client) -> BTreeMap<String, Vec<Value>> {
    let mut received = BTreeMap::<String, Vec<Value>>::new();
    loop {
        let message = client.receive().await;
        assert_eq!(message["type"], "message", "{message}");
        let data = &message["data"];
        if data["message"] == "end" {
            return received;
        }
        let topic = data["topic"].as_str().expect("a delivery has a topic");
        received.entry(topic.to_owned()).or_default().push(data["message"].clone());
    }
}

/// Returns a metric of a node.
async fn metric(node: &Server, name: &str) -> u64 {
    let text = http(node.api(), "GET /metrics", &[], "").await.body;
    let sum: f64 = text
        .lines()
        .filter(|line| line.split(['{', ' ']).next() == Some(name))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum();
    sum as u64
}

/// Checks that no message is pending: it would arrive before the reply to a ping.
async fn check_no_message(client: &mut Client) {
    let response = client.request(&json!({"type": "ping", "id": "nothing"})).await;
    assert_eq!(response, json!({"type": "pong", "id": "nothing"}));
}
