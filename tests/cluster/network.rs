//! A network that drops or delays packets between nodes and broker silently.

use std::collections::BTreeSet;

use super::faults::{Publisher, check_order, numbers, outage, publish_at_once};
use super::{linked, metric, node, ready, subscribed, unready};
use crate::support::{Broker, Engine, Network, PATIENCE, Server};

/// A broker in a namespace and two nodes with a link each.
struct Apart {
    nodes: [Server; 2],
    network: Network,
    // Must live as long as the nodes.
    _broker: Broker,
}

impl Apart {
    /// Returns `None` if the system does not allow namespaces.
    async fn new(engine: Engine, flags: &[&str]) -> Option<Self> {
        let network = Network::new(2)?;
        let broker = Broker::start_within(engine, &network);
        let url = |link| {
            let mut address = broker.address;
            address.set_ip(network.address(link).into());
            engine.url(address)
        };
        let nodes = [node(&url(0), "a", flags), node(&url(1), "b", &[])];
        for node in &nodes {
            ready(node).await;
        }
        Some(Self { nodes, network, _broker: broker })
    }
}

#[tokio::test]
async fn a_node_whose_packets_are_lost_notices_and_comes_back() {
    for engine in Engine::BOTH {
        let Some(Apart { nodes: [a, b], network, _broker }) = Apart::new(engine, &[]).await else { return };
        outage([&a, &b], "t", async || network.drop_all(0), async || network.heal()).await;
    }
}

#[tokio::test]
async fn a_subscriber_behind_lost_packets_gets_what_comes_after_its_return() {
    for engine in Engine::BOTH {
        let Some(Apart { nodes: [a, b], network, _broker }) = Apart::new(engine, &[]).await else { return };
        let mut there = subscribed(&b, &["t", "t.>"]).await;
        linked(&a, "t", &mut there).await;
        let mut publisher = Publisher::new(&a, "t").await;
        publisher.many(30).await;
        network.drop_all(1);
        unready(&b).await;
        publisher.many(30).await;
        network.heal();
        ready(&b).await;
        let first = publisher.next;
        publisher.many(30).await;
        let received = numbers(&mut there, publisher.next - 1).await;
        check_order(&received);
        assert!(received.ends_with(&(first..publisher.next).collect::<Vec<_>>()), "{first}: {received:?}");
        assert!(received.starts_with(&(0..30).collect::<Vec<_>>()), "{received:?}");
        assert_eq!(publisher.told, BTreeSet::new());
    }
}

/// Publishes a thousand messages of 1 KiB on a node with a thin link and compares its replies with
/// the deliveries.
async fn over_a_thin_link(engine: Engine, flags: &[&str]) -> Option<(Apart, BTreeSet<u64>)> {
    const PUBLISHES: u64 = 1000;
    let apart = Apart::new(engine, flags).await?;
    let [a, b] = &apart.nodes;
    let mut there = subscribed(b, &["t"]).await;
    linked(a, "t", &mut there).await;
    apart.network.limit(0, "400kbit");
    let told = publish_at_once(a, PUBLISHES).await;
    let mut last = None;
    let mut received = 0;
    // Such a link takes twenty seconds for them; pings come in between.
    let all = tokio::time::timeout(PATIENCE * 3, async {
        while received + told.len() as u64 != PUBLISHES {
            if let Some(n) = there.receive().await["data"]["message"][0].as_u64() {
                assert!(last < Some(n) && !told.contains(&n), "{n} after {last:?}");
                last = Some(n);
                received += 1;
            }
        }
    });
    assert!(all.await.is_ok(), "{received} came, {} were told to be lost: {}", told.len(), a.stderr());
    assert_eq!(metric(a, "deeperhub_cluster_dropped_total").await, told.len() as u64);
    Some((apart, told))
}

#[tokio::test]
async fn a_thin_link_carries_what_fits_and_each_loss_is_told() {
    for engine in Engine::BOTH {
        let Some((_, told)) = over_a_thin_link(engine, &["--cluster-queue-bytes", "65536"]).await else {
            return;
        };
        assert!(!told.is_empty(), "the queue was never full");
    }
}

#[tokio::test]
async fn what_a_thin_link_needs_long_for_gets_over_nonetheless() {
    for engine in Engine::BOTH {
        let Some((apart, told)) = over_a_thin_link(engine, &[]).await else { return };
        assert_eq!(told, BTreeSet::new());
        apart.network.unlimit(0);
        ready(&apart.nodes[0]).await;
    }
}
