//! A network that drops or delays packets between nodes and broker silently.

use std::collections::BTreeSet;

use super::faults::{Publisher, check_order, check_outage, publish_at_once, read_numbers};
use super::{metric, node, subscribed, wait_until_linked, wait_until_ready, wait_until_unready};
use crate::support::{Broker, Engine, Network, Server, WAIT_TIMEOUT};

/// A broker in a namespace and two nodes with a link each.
pub(super) struct SeparateLinks {
    pub(super) nodes: [Server; 2],
    pub(super) network: Network,
    // Must live as long as the nodes.
    _broker: Broker,
}

impl SeparateLinks {
    /// Returns `None` if the system does not allow namespaces.
    async fn new(engine: Engine, flags: &[&str]) -> Option<Self> {
        Self::with_flags(engine, [flags, &[]]).await
    }

    /// Like [`Self::new`], with flags for each node.
    pub(super) async fn with_flags(engine: Engine, flags: [&[&str]; 2]) -> Option<Self> {
        let network = Network::new(2)?;
        let broker = Broker::start_within(engine, &network);
        let url = |link| {
            let mut address = broker.address;
            address.set_ip(network.address(link).into());
            engine.url(address)
        };
        let nodes = [node(&url(0), "a", flags[0]), node(&url(1), "b", flags[1])];
        for node in &nodes {
            wait_until_ready(node).await;
        }
        Some(Self { nodes, network, _broker: broker })
    }
}

#[tokio::test]
async fn a_node_reconnects_after_packet_loss() {
    for engine in Engine::BOTH {
        let Some(SeparateLinks { nodes: [a, b], network, _broker }) = SeparateLinks::new(engine, &[]).await
        else {
            return;
        };
        check_outage([&a, &b], "t", async || network.drop_all(0), async || network.heal()).await;
    }
}

#[tokio::test]
async fn a_subscriber_behind_lost_packets_gets_messages_after_the_network_heals() {
    for engine in Engine::BOTH {
        let Some(SeparateLinks { nodes: [a, b], network, _broker }) = SeparateLinks::new(engine, &[]).await
        else {
            return;
        };
        let mut remote = subscribed(&b, &["t", "t.>"]).await;
        wait_until_linked(&a, "t", &mut remote).await;
        let mut publisher = Publisher::new(&a, "t").await;
        publisher.publish_many(30).await;
        network.drop_all(1);
        wait_until_unready(&b).await;
        publisher.publish_many(30).await;
        network.heal();
        wait_until_ready(&b).await;
        let first = publisher.next;
        publisher.publish_many(30).await;
        let received = read_numbers(&mut remote, publisher.next - 1).await;
        check_order(&received);
        assert!(received.ends_with(&(first..publisher.next).collect::<Vec<_>>()), "{first}: {received:?}");
        assert!(received.starts_with(&(0..30).collect::<Vec<_>>()), "{received:?}");
        assert_eq!(publisher.reported, BTreeSet::new());
    }
}

/// Publishes a thousand messages of 1 KiB on a node with a thin link and compares its replies with
/// the deliveries.
async fn publish_over_slow_link(engine: Engine, flags: &[&str]) -> Option<(SeparateLinks, BTreeSet<u64>)> {
    const PUBLISHES: u64 = 1000;
    let hub = SeparateLinks::new(engine, flags).await?;
    let [a, b] = &hub.nodes;
    let mut remote = subscribed(b, &["t"]).await;
    wait_until_linked(a, "t", &mut remote).await;
    hub.network.limit(0, "400kbit");
    let reported = publish_at_once(a, PUBLISHES).await;
    let mut last = None;
    let mut received = 0;
    // Such a link takes twenty seconds for them; pings come in between.
    let all = tokio::time::timeout(WAIT_TIMEOUT * 3, async {
        while received + reported.len() as u64 != PUBLISHES {
            if let Some(n) = remote.receive().await["data"]["message"][0].as_u64() {
                assert!(last < Some(n) && !reported.contains(&n), "{n} after {last:?}");
                last = Some(n);
                received += 1;
            }
        }
    });
    assert!(all.await.is_ok(), "{received} arrived, {} were reported lost: {}", reported.len(), a.stderr());
    assert_eq!(metric(a, "deeperhub_cluster_dropped_total").await, reported.len() as u64);
    Some((hub, reported))
}

#[tokio::test]
async fn a_slow_link_reports_every_lost_message() {
    for engine in Engine::BOTH {
        let Some((_, reported)) = publish_over_slow_link(engine, &["--cluster-queue-bytes", "65536"]).await
        else {
            return;
        };
        assert!(!reported.is_empty(), "the queue never filled up");
    }
}

#[tokio::test]
async fn a_slow_link_delivers_everything_that_fits_the_queue() {
    for engine in Engine::BOTH {
        let Some((hub, reported)) = publish_over_slow_link(engine, &[]).await else { return };
        assert_eq!(reported, BTreeSet::new());
        hub.network.unlimit(0);
        wait_until_ready(&hub.nodes[0]).await;
    }
}
