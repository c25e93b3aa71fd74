//! Nodes that are killed, paused or restarted while clients publish and read topics with history.
//! Their journals are compared.

use serde_json::json;

use super::journals::{RULE, Trial};
use super::store_faults::stores;
use super::streams::{publish_range, subscribe_with, subscriber};
use super::{eventually, metric, names_of_nodes, node, nodes, wait_until_ready};
use crate::support::{Balancer, Broker, Client, Engine, Server, has_brokers};

const NAMES: [&str; 3] = ["a", "b", "c"];

/// A balancer for each node, which prefers its node.
pub(super) struct Balancers(Vec<Balancer>);

impl Balancers {
    pub(super) async fn new(nodes: &[Server]) -> Self {
        let mut balancers = Vec::new();
        for _ in nodes {
            balancers.push(Balancer::start(&[]).await);
        }
        let balancers = Self(balancers);
        balancers.route(nodes, None);
        balancers
    }

    /// Routes clients to these nodes, except for one that is away.
    pub(super) fn route(&self, nodes: &[Server], away: Option<usize>) {
        for (first, balancer) in self.0.iter().enumerate() {
            let order = (0..nodes.len()).map(|index| (first + index) % nodes.len());
            let present: Vec<_> =
                order.filter(|index| Some(*index) != away).map(|index| &nodes[index]).collect();
            balancer.set(&present);
        }
    }

    pub(super) fn urls(&self) -> Vec<String> {
        self.0.iter().map(Balancer::url).collect()
    }
}

/// Waits until all nodes are ready and know one another.
pub(super) async fn wait_until_joined(nodes: &[Server]) {
    for node in nodes {
        wait_until_ready(node).await;
        eventually("all nodes", async || names_of_nodes(node).await.len() == nodes.len()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_killed_nodes_go_on_at_others_without_a_loss() {
    for engine in stores() {
        let broker = Broker::start(engine);
        let mut nodes = nodes::<3>(&broker.url(), RULE).await;
        let balancers = Balancers::new(&nodes).await;
        let trial = Trial::start("kept.1", &balancers.urls(), &balancers.urls()).await;
        for index in 0..3 {
            trial.run_for(100).await;
            nodes[index].signal("KILL");
            balancers.route(&nodes, Some(index));
            nodes[index].wait();
            trial.run_for(100).await;
            nodes[index] = node(&broker.url(), NAMES[index], RULE);
            wait_until_joined(&nodes).await;
            balancers.route(&nodes, None);
        }
        trial.run_for(100).await;
        trial.finish(&nodes[0]).await.check_lossless();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_node_gets_all_messages_when_it_goes_on() {
    for engine in stores() {
        let broker = Broker::start(engine);
        let nodes: [Server; 2] = nodes(&broker.url(), RULE).await;
        let urls = nodes.each_ref().map(|node| node.url("/"));
        // Only the other node has publishers, so that they go on.
        let trial = Trial::start("kept.1", &urls[..1], &urls).await;
        for (is_forgotten, messages) in [(true, 200), (false, 50)] {
            nodes[1].signal("STOP");
            trial.run_for(messages).await;
            if is_forgotten {
                eventually("the end of its heartbeats", async || names_of_nodes(&nodes[0]).await == ["a"])
                    .await;
            }
            nodes[1].signal("CONT");
            wait_until_joined(&nodes).await;
        }
        trial.run_for(100).await;
        trial.finish(&nodes[1]).await.check_lossless();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_loses_and_repeats_nothing() {
    const FLAGS: &[&str] = &["--drain-timeout", "2s"];
    for engine in stores() {
        let flags = [RULE, FLAGS].concat();
        let broker = Broker::start(engine);
        let mut nodes = nodes::<3>(&broker.url(), &flags).await;
        let balancers = Balancers::new(&nodes).await;
        let trial = Trial::start("kept.1", &balancers.urls(), &balancers.urls()).await;
        for index in 0..3 {
            trial.run_for(100).await;
            nodes[index].signal("TERM");
            balancers.route(&nodes, Some(index));
            assert!(nodes[index].wait().success(), "{}", nodes[index].stderr());
            trial.run_for(50).await;
            nodes[index] = node(&broker.url(), NAMES[index], &flags);
            wait_until_joined(&nodes).await;
            balancers.route(&nodes, None);
        }
        trial.run_for(100).await;
        trial.finish(&nodes[0]).await.check_lossless();
    }
}

#[tokio::test]
async fn a_cold_node_recovers_clients_from_all_that_the_store_keeps() {
    const COUNT: u64 = 200;
    for engine in stores() {
        let broker = Broker::start(engine);
        let [a, b] = nodes(&broker.url(), RULE).await;
        let mut publisher = Client::connect(&a).await;
        let (mut reader, start) = subscriber(&a, json!({"topic": "kept.1"})).await;
        // More than one answer of the store has.
        let text = "x".repeat(5000);
        for number in 0..COUNT {
            let data = json!({"topic": "kept.1", "message": [number, text]});
            let reply = publisher.request(&json!({"type": "publish", "id": 1, "data": data})).await;
            assert_eq!(reply["data"]["offset"], number + 1, "{reply}");
        }
        let recover = json!({"epoch": start["epoch"], "offset": start["offset"]});
        let (mut recovered, reply) = subscriber(&b, json!({"topic": "kept.1", "recover": recover})).await;
        assert_eq!((&reply["recovered"], &reply["replay"]), (&json!(true), &json!(COUNT)), "{reply}");
        for client in [&mut reader, &mut recovered] {
            for number in 0..COUNT {
                assert_eq!(client.receive().await["data"]["message"][0], number);
            }
        }
    }
}

/// Returns the number of calls of scripts that Redis has served.
fn scripts_called(broker: &Broker) -> u64 {
    let lines = broker.redis_lines("INFO commandstats");
    let calls = lines.iter().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls="));
    calls.and_then(|calls| calls.split(',').next()?.parse().ok()).unwrap_or(0)
}

#[tokio::test]
async fn clients_that_move_to_a_cold_node_cost_one_read_of_each_topic() {
    if !has_brokers() {
        return;
    }
    const TOPICS: usize = 10;
    const CLIENTS: usize = 150;
    let broker = Broker::start(Engine::Redis);
    let [mut a, b] = nodes(&broker.url(), RULE).await;
    let mut publisher = Client::connect(&b).await;
    let topic = |number: usize| format!("kept.{}", number % TOPICS);
    let mut positions = Vec::new();
    for number in 0..CLIENTS {
        let mut client = Client::connect(&a).await;
        let reply = subscribe_with(&mut client, json!({"topic": topic(number)})).await;
        let (epoch, offset) = (&reply["data"]["epoch"], &reply["data"]["offset"]);
        positions.push(json!({"epoch": epoch, "offset": offset}));
    }
    for number in 0..TOPICS {
        publish_range(&mut publisher, &topic(number), 0..20).await;
    }
    a.signal("KILL");
    a.wait();
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client::connect(&b).await);
    }
    let calls = scripts_called(&broker);
    for (number, client) in clients.iter_mut().enumerate() {
        let data = json!({"topic": topic(number), "recover": positions[number]});
        client.send(&json!({"type": "subscribe", "id": 1, "data": data})).await;
    }
    for client in &mut clients {
        let reply = client.receive().await;
        assert_eq!(
            (&reply["data"]["recovered"], &reply["data"]["replay"]),
            (&json!(true), &json!(20)),
            "{reply}"
        );
        for number in 0..20 {
            assert_eq!(client.receive().await["data"]["message"], number);
        }
    }
    assert_eq!(scripts_called(&broker) - calls, TOPICS as u64);
    assert_eq!(metric(&b, "deeperhub_store_reads_total").await, TOPICS as u64);
}
