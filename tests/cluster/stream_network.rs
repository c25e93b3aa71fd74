//! Links between nodes and the broker that drop, delay or lose packets, or carry few, while clients
//! publish and read topics with history. Their journals are compared.

use std::time::Duration;

use serde_json::json;

use super::journals::{RULE, Trial};
use super::network::SeparateLinks;
use super::store_faults::stores;
use super::stream_faults::publish_until_unavailable;
use super::streams::{subscribe_with, subscriber};
use super::{metric, node, wait_until_ready, wait_until_unready};
use crate::support::{Broker, Client, Proxy, Server, http};

/// Runs a trial on two nodes with a link each, and causes a fault meanwhile.
async fn trial_over_links(fault: impl AsyncFn(&SeparateLinks, &Trial)) {
    for engine in stores() {
        let Some(links) = SeparateLinks::with_flags(engine, [RULE, RULE]).await else { return };
        let trial = Trial::of("kept.1", &links.nodes).await;
        fault(&links, &trial).await;
        trial.run_for(100).await;
        trial.finish(&links.nodes[1]).await.check_lossless();
        for node in &links.nodes {
            wait_until_ready(node).await;
        }
    }
}

/// Checks the answers of a node that is cut off from its store.
async fn check_cut_node(node: &Server, recover: &serde_json::Value) {
    let mut client = Client::connect(node).await;
    publish_until_unavailable(&mut client, "kept.other").await;
    let mut again = Client::connect(node).await;
    let data = json!({"topic": "kept.other", "message": 1});
    let reply = again.request(&json!({"type": "publish", "id": 1, "data": data})).await;
    assert_eq!(reply["data"]["code"], "unavailable", "{reply}");
    let answer = http(node.api(), "POST /v1/topics/kept.other/messages", &[], "1").await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    let error = subscribe_with(&mut again, json!({"topic": "kept.cold"})).await;
    assert_eq!(error["data"]["code"], "unavailable", "{error}");
    // The mirror of a followed topic answers.
    let (mut recovering, reply) = subscriber(node, json!({"topic": "kept.1", "recover": recover})).await;
    assert_eq!(reply["recovered"], true, "{reply}");
    assert!(reply["replay"].as_u64() > Some(0), "{reply}");
    assert_eq!(recovering.receive().await["type"], "message");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_serves_what_it_has_and_catches_up() {
    trial_over_links(async |links, trial| {
        let SeparateLinks { nodes: [a, b], network, .. } = links;
        let (_, start) = subscriber(b, json!({"topic": "kept.1"})).await;
        trial.run_for(100).await;
        network.drop_all(1);
        wait_until_unready(b).await;
        check_cut_node(b, &start).await;
        // The others go on.
        trial.run_for(100).await;
        wait_until_ready(a).await;
        network.heal();
        wait_until_ready(b).await;
        trial.run_for(50).await;
        // Shorter than any timeout.
        network.drop_all(0);
        tokio::time::sleep(Duration::from_millis(700)).await;
        network.heal();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thin_link_loses_nothing() {
    trial_over_links(async |links, trial| {
        links.network.limit(1, "200kbit");
        trial.run_for(400).await;
        links.network.unlimit(1);
        wait_until_ready(&links.nodes[1]).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_loses_packets_loses_no_message() {
    trial_over_links(async |links, trial| {
        for link in [0, 1] {
            links.network.lose(link, 15);
            trial.run_for(200).await;
            links.network.heal();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_link_loses_nothing() {
    for engine in stores() {
        let broker = Broker::start(engine);
        let proxy = Proxy::start(broker.address);
        let nodes = [node(&broker.url(), "a", RULE), node(&engine.url(proxy.address), "b", RULE)];
        for node in &nodes {
            wait_until_ready(node).await;
        }
        let trial = Trial::of("kept.1", &nodes).await;
        proxy.slow(Duration::from_millis(200));
        trial.run_for(300).await;
        proxy.slow(Duration::ZERO);
        trial.run_for(50).await;
        trial.finish(&nodes[1]).await.check_lossless();
        assert_eq!(metric(&nodes[0], "deeperhub_cluster_outages_total").await, 0);
    }
}
