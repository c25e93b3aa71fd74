//! Nodes of one hub whose rules for history differ, or whose version keeps no history.

use serde_json::{Value, json};

use super::journals::{RULE, Trial};
use super::node_faults::wait_until_joined;
use super::streams::{publish_range, subscriber};
use super::{eventually, node, node_of, wait_until_ready};
use crate::support::{Broker, Client, Engine, Server, TemporaryDir, has_brokers, http, old_binary, text};

/// The warning about a node with other rules.
const OTHER_RULES: &str = "Cluster node has other rules for history";

/// The warning about a node of an earlier version.
const NO_HISTORY: &str = "Version of a cluster node keeps no history";

/// Returns how often a node has logged a warning about another one.
fn warnings(node: &Server, warning: &str, about: &str) -> usize {
    let about = format!("node=\"{about}\"");
    node.stderr().lines().filter(|line| line.contains(warning) && line.contains(&about)).count()
}

/// Returns the versions of all nodes, as one of them lists them.
async fn versions(node: &Server) -> Vec<String> {
    let list = http(node.api(), "GET /v1/nodes", &[], "").await.json();
    let nodes = list["nodes"].as_array().unwrap_or_else(|| panic!("{list}"));
    nodes.iter().map(|node| node["version"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn nodes_with_other_rules_are_logged_and_each_keeps_its_own_limits() {
    if !has_brokers() {
        return;
    }
    const MANY: &[&str] = &["--topic", "kept.>: history=1000"];
    const FEW: &[&str] = &["--topic", "kept.>: history=5"];
    let broker = Broker::start(Engine::Redis);
    let nodes = [("a", MANY), ("b", FEW), ("c", MANY)].map(|(name, flags)| node(&broker.url(), name, flags));
    wait_until_joined(&nodes).await;
    let [a, b, c] = &nodes;
    eventually("the warnings", async || {
        let of_b = warnings(b, OTHER_RULES, "a") + warnings(b, OTHER_RULES, "c");
        of_b == 2 && [a, c].iter().all(|node| warnings(node, OTHER_RULES, "b") == 1)
    })
    .await;
    assert_eq!((warnings(a, OTHER_RULES, "c"), warnings(c, OTHER_RULES, "a")), (0, 0));
    for node in &nodes {
        let versions = versions(node).await;
        assert_eq!((versions[0] == versions[2], versions[0] == versions[1]), (true, false), "{versions:?}");
    }

    let (mut on_a, start) = subscriber(a, json!({"topic": "kept.1"})).await;
    let (mut on_b, _) = subscriber(b, json!({"topic": "kept.1"})).await;
    publish_range(&mut Client::connect(a).await, "kept.1", 0..20).await;
    for number in 0..20 {
        for client in [&mut on_a, &mut on_b] {
            assert_eq!(client.receive().await["data"]["message"], number);
        }
    }
    let recover = async |node: &Server, offset: u64| {
        let recover = json!({"epoch": start["epoch"], "offset": offset});
        let (_, reply) = subscriber(node, json!({"topic": "kept.1", "recover": recover})).await;
        (reply["recovered"].clone(), reply["replay"].clone(), reply["reason"].clone())
    };
    let recovered = |replay: u64| (json!(true), json!(replay), Value::Null);
    assert_eq!(recover(a, 0).await, recovered(20));
    assert_eq!(recover(b, 15).await, recovered(5));
    assert_eq!(recover(b, 0).await.2, "trimmed");
    // In the store, the limits of the last publish hold.
    let stored = async || {
        let page = http(c.api(), "GET /v1/topics/kept.1/messages", &[], "").await.json();
        page["messages"].as_array().map(Vec::len)
    };
    assert_eq!(stored().await, Some(20));
    publish_range(&mut Client::connect(b).await, "kept.1", 20..21).await;
    assert_eq!(stored().await, Some(5));
    for client in [&mut on_a, &mut on_b] {
        while client.receive().await["data"]["message"] != 20 {}
    }
    assert_eq!(recover(a, 0).await, recovered(21));
    assert_eq!(recover(c, 16).await, recovered(5));
}

/// Writes a file of settings with these rules.
fn write_rules(dir: &TemporaryDir, rules: &str) {
    dir.write("hub.toml", rules);
}

#[tokio::test]
async fn a_reload_that_makes_rules_equal_ends_the_difference() {
    if !has_brokers() {
        return;
    }
    let broker = Broker::start(Engine::Redis);
    let dir = TemporaryDir::new();
    write_rules(&dir, "");
    let path = dir.path("hub.toml");
    let nodes = [
        node(&broker.url(), "a", &["--config", text(&path)]),
        node(&broker.url(), "b", &["--topic", "kept.>: history=5"]),
    ];
    wait_until_joined(&nodes).await;
    eventually("the warning", async || warnings(&nodes[1], OTHER_RULES, "a") == 1).await;
    write_rules(&dir, "[[topics]]\nmatch = 'kept.>'\nhistory = 5");
    nodes[0].signal("HUP");
    for node in &nodes {
        eventually("equal versions", async || {
            let versions = versions(node).await;
            versions[0] == versions[1]
        })
        .await;
    }
    assert_eq!(warnings(&nodes[1], OTHER_RULES, "a"), 1);
}

#[tokio::test]
async fn nodes_that_keep_no_history_are_named() {
    let Some(program) = old_binary() else { return };
    if !has_brokers() {
        return;
    }
    let broker = Broker::start(Engine::Redis);
    let nodes = [
        node_of(&program, &broker.url(), "old", &[]),
        node(&broker.url(), "new", RULE),
        node(&broker.url(), "plain", &[]),
    ];
    wait_until_joined(&nodes).await;
    eventually("the warning", async || warnings(&nodes[1], NO_HISTORY, "old") == 1).await;
    // Without rules, nothing is missing.
    assert_eq!(warnings(&nodes[2], NO_HISTORY, "old"), 0);
    for node in &nodes {
        // In the order of the names: new, old, plain.
        let versions = versions(node).await;
        let is_new = |version: &String| version.contains("+history.");
        assert!(!is_new(&versions[1]), "{versions:?}");
        assert!(is_new(&versions[0]) || std::ptr::eq(node, &nodes[0]), "{versions:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_switched_on_after_a_rolling_upgrade() {
    const PUBLISHES: u64 = 400;
    let Some(program) = old_binary() else { return };
    if !has_brokers() {
        return;
    }
    let broker = Broker::start(Engine::Redis);
    let dir = TemporaryDir::new();
    write_rules(&dir, "");
    let path = dir.path("hub.toml");
    let flags = ["--config", text(&path), "--drain-timeout", "1s"];
    let mut nodes = ["a", "b", "c"].map(|name| node_of(&program, &broker.url(), name, &flags));
    wait_until_joined(&nodes).await;
    for (index, name) in ["a", "b", "c"].into_iter().enumerate() {
        nodes[index].signal("TERM");
        assert!(nodes[index].wait().success());
        nodes[index] = node(&broker.url(), name, &flags);
        wait_until_joined(&nodes).await;
    }
    // Clients that are there before lose and repeat nothing.
    let mut clients = Vec::new();
    for node in &nodes {
        clients.push(super::subscribed(node, &["kept.1"]).await);
    }
    for client in &mut clients[1..] {
        super::wait_until_linked(&nodes[0], "kept.1", client).await;
    }
    write_rules(&dir, "[[topics]]\nmatch = 'kept.>'\nhistory = 10000");
    let mut publisher = Client::connect(&nodes[0]).await;
    for number in 0..PUBLISHES {
        // The publishing node is the last one.
        if number % 100 == 50 && number < 350 {
            nodes[2 - number as usize / 100].signal("HUP");
        }
        let data = json!({"topic": "kept.1", "message": number});
        let reply = publisher.request(&json!({"type": "publish", "id": 1, "data": data})).await;
        assert_eq!(reply["type"], "published", "{reply}");
    }
    for node in &nodes {
        node.wait_for_stderr("Reloaded");
    }
    publish_range(&mut publisher, "kept.1", PUBLISHES..PUBLISHES + 10).await;
    for client in &mut clients {
        let (mut expected, mut last) = (0, Value::Null);
        while expected < PUBLISHES + 10 {
            last = client.receive().await;
            if let Some(number) = last["data"]["message"].as_u64() {
                assert_eq!(number, expected, "{last}");
                expected += 1;
            }
        }
        assert!(last["data"]["offset"].is_u64(), "{last}");
    }
    let trial = Trial::of("kept.2", &nodes).await;
    trial.run_for(200).await;
    trial.finish(&nodes[0]).await.check_lossless();
    for node in &nodes {
        wait_until_ready(node).await;
        assert!(!node.stderr().contains(NO_HISTORY));
    }
}
