//! Messages that the broker does not bring to a node, although their connection stays.

use serde_json::json;

use super::journals::{RULE, Trial};
use super::streams::{Received, publish_range, subscriber};
use super::{eventually, metric, node, wait_until_ready};
use crate::support::{Broker, Client, Engine, LossyProxy, Server, has_brokers};

/// Two nodes, the second one behind a proxy that drops messages.
struct LossyHub {
    nodes: [Server; 2],
    proxy: LossyProxy,
    _broker: Broker,
}

impl LossyHub {
    async fn start() -> Self {
        let broker = Broker::start(Engine::Redis);
        let proxy = LossyProxy::start(broker.address);
        let lossy = Engine::Redis.url(proxy.address);
        let nodes = [node(&broker.url(), "a", RULE), node(&lossy, "b", RULE)];
        for node in &nodes {
            wait_until_ready(node).await;
        }
        Self { nodes, proxy, _broker: broker }
    }
}

#[tokio::test]
async fn a_lost_message_comes_before_the_next_one() {
    if !has_brokers() {
        return;
    }
    let LossyHub { nodes: [a, b], proxy, _broker } = LossyHub::start().await;
    let (mut client, _) = subscriber(&b, json!({"topic": "kept.1"})).await;
    let mut publisher = Client::connect(&a).await;
    let mut received = Received::default();
    let mut next = 0;
    for lost in [1, 2, 40] {
        publish_range(&mut publisher, "kept.1", next..next + 5).await;
        received.read(&mut client, next as usize + 5).await;
        proxy.drop_next("t:kept.1", lost);
        publish_range(&mut publisher, "kept.1", next + 5..next + 6 + lost).await;
        next += 6 + lost;
        received.read(&mut client, next as usize).await;
        assert!(proxy.has_dropped());
    }
    assert_eq!(received.messages, (0..next).map(serde_json::Value::from).collect::<Vec<_>>());
    assert_eq!(metric(&b, "deeperhub_mirror_holes_total").await, 3);
    assert_eq!(metric(&b, "deeperhub_cluster_outages_total").await, 0);
}

#[tokio::test]
async fn a_lost_last_message_comes_after_a_check_of_the_store() {
    if !has_brokers() {
        return;
    }
    let LossyHub { nodes: [a, b], proxy, _broker } = LossyHub::start().await;
    let (mut client, _) = subscriber(&b, json!({"topic": "kept.1"})).await;
    let mut publisher = Client::connect(&a).await;
    publish_range(&mut publisher, "kept.1", 0..5).await;
    let mut received = Received::default();
    received.read(&mut client, 5).await;
    proxy.drop_next("t:kept.1", 1);
    publish_range(&mut publisher, "kept.1", 5..6).await;
    eventually("the loss", async || proxy.has_dropped()).await;
    received.read(&mut client, 6).await;
    assert_eq!(received.messages, [0, 1, 2, 3, 4, 5]);
    assert_eq!(metric(&b, "deeperhub_mirror_holes_total").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn often_lost_messages_are_healed_under_load() {
    if !has_brokers() {
        return;
    }
    let LossyHub { nodes, proxy, _broker } = LossyHub::start().await;
    let trial = Trial::of("kept.1", &nodes).await;
    for round in 0..20 {
        proxy.drop_next("t:kept.1", 1 + round % 7);
        trial.run_for(20).await;
    }
    trial.finish(&nodes[1]).await.check_lossless();
    assert!(metric(&nodes[1], "deeperhub_mirror_holes_total").await >= 15);
}
