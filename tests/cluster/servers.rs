//! Brokers with several servers: nodes fail over to the next.

use super::faults::{Publisher, check_order, read_numbers};
use super::{
    eventually, names_of_nodes, node, subscribed, wait_until_linked, wait_until_ready, wait_until_unready,
};
use crate::support::{Broker, Engine, free_port, has_brokers};

#[tokio::test]
async fn nodes_on_different_nats_servers_form_one_hub_and_survive_a_server() {
    if !has_brokers() {
        return;
    }
    let routes = format!("nats://127.0.0.1:{}", free_port());
    let mut first = Broker::start_with(Engine::Nats, &["--cluster_name", "hub", "--cluster", &routes]);
    let own = format!("nats://127.0.0.1:{}", free_port());
    let second =
        Broker::start_with(Engine::Nats, &["--cluster_name", "hub", "--cluster", &own, "--routes", &routes]);
    let both = format!("nats://{},{}", first.address, second.address);
    let a = node(&both, "a", &[]);
    let b = node(&both, "b", &[]);
    let other = node(&format!("nats://{},{}", second.address, first.address), "c", &[]);
    let all = [&a, &b, &other];
    for node in all {
        wait_until_ready(node).await;
        eventually("all nodes", async || names_of_nodes(node).await == ["a", "b", "c"]).await;
    }
    let mut remote = subscribed(&b, &["t", "t.>"]).await;
    let mut beyond = subscribed(&other, &["*", "t"]).await;
    wait_until_linked(&a, "t", &mut remote).await;
    wait_until_linked(&a, "t", &mut beyond).await;
    let mut publisher = Publisher::new(&a, "t").await;
    publisher.publish_many(50).await;
    for client in [&mut remote, &mut beyond] {
        assert_eq!(read_numbers(client, 49).await, (0..50).collect::<Vec<_>>());
    }

    first.kill();
    publisher.publish_until_lost().await;
    publisher.publish_until_reached().await;
    for node in all {
        wait_until_ready(node).await;
        eventually("all nodes", async || names_of_nodes(node).await == ["a", "b", "c"]).await;
    }
    wait_until_linked(&a, "t", &mut remote).await;
    wait_until_linked(&a, "t", &mut beyond).await;
    let after = publisher.next;
    publisher.publish_many(50).await;
    for client in [&mut remote, &mut beyond] {
        let received = read_numbers(client, publisher.next - 1).await;
        check_order(&received);
        assert!(received.ends_with(&(after..publisher.next).collect::<Vec<_>>()), "{after}: {received:?}");
    }
    let log = a.stderr();
    assert_eq!(log.matches("Broker unreachable").count(), 1, "{log}");
}

#[tokio::test]
async fn a_redis_replica_is_skipped_until_it_is_promoted() {
    if !has_brokers() {
        return;
    }
    let mut primary = Broker::start(Engine::Redis);
    let port = primary.address.port().to_string();
    let replica = Broker::start_with(Engine::Redis, &["--replicaof", "127.0.0.1", &port]);
    // The replica is listed first.
    let both = format!("redis://{},{}", replica.address, primary.address);
    let a = node(&both, "a", &[]);
    let b = node(&both, "b", &[]);
    wait_until_ready(&a).await;
    wait_until_ready(&b).await;
    let mut remote = subscribed(&b, &["t", "t.>"]).await;
    wait_until_linked(&a, "t", &mut remote).await;
    let mut publisher = Publisher::new(&a, "t").await;
    publisher.publish_many(50).await;
    assert_eq!(read_numbers(&mut remote, 49).await, (0..50).collect::<Vec<_>>());

    primary.kill();
    publisher.publish_until_lost().await;
    wait_until_unready(&a).await;
    wait_until_unready(&b).await;
    replica.redis_lines("REPLICAOF NO ONE");
    publisher.publish_until_reached().await;
    wait_until_ready(&a).await;
    wait_until_ready(&b).await;
    wait_until_linked(&a, "t", &mut remote).await;
    let after = publisher.next;
    publisher.publish_many(50).await;
    let received = read_numbers(&mut remote, publisher.next - 1).await;
    check_order(&received);
    assert!(received.ends_with(&(after..publisher.next).collect::<Vec<_>>()), "{after}: {received:?}");
}
