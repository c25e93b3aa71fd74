//! A primary of Redis that fails while a replica has all messages, or lacks the last ones.

use serde_json::json;
use tokio::task::block_in_place;

use super::journals::{RULE, Trial};
use super::streams::{publish_range, subscriber};
use super::{eventually, node, nodes, wait_until_ready, wait_until_unready};
use crate::support::{Broker, Client, Engine, Proxy, Server, has_brokers, wait_for};

/// A primary and its replica, whose link can be cut.
struct Pair {
    primary: Broker,
    replica: Broker,
    link: Proxy,
}

impl Pair {
    async fn start() -> Self {
        let primary = Broker::start_with(Engine::Redis, &["--repl-diskless-sync-delay", "0"]);
        let link = Proxy::start(primary.address);
        let port = link.address.port().to_string();
        let replica = Broker::start_with(Engine::Redis, &["--replicaof", "127.0.0.1", &port]);
        let pair = Self { primary, replica, link };
        pair.wait_until_replicated().await;
        pair
    }

    /// Waits until the replica has all that the primary has. `WAIT` would not do: it looks at the
    /// writes of its own connection.
    async fn wait_until_replicated(&self) {
        let is_replicated = || {
            let lines = self.primary.redis_lines("INFO replication");
            let of_primary = lines.iter().find_map(|line| line.strip_prefix("master_repl_offset:"));
            let replica = lines.iter().find(|line| line.starts_with("slave0:"));
            let of_replica =
                replica.and_then(|line| line.split(',').find_map(|field| field.strip_prefix("offset=")));
            of_primary.is_some() && of_primary == of_replica
        };
        eventually("the replica", async || block_in_place(is_replicated)).await;
    }

    fn url(&self) -> String {
        format!("redis://{},{}", self.primary.address, self.replica.address)
    }

    /// Ends the primary and promotes the replica.
    fn fail_over(&mut self) {
        self.primary.kill();
        assert_eq!(self.replica.redis_lines("REPLICAOF NO ONE"), ["+OK"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_with_all_messages_takes_over_without_a_loss() {
    if !has_brokers() {
        return;
    }
    let mut pair = Pair::start().await;
    let nodes: [Server; 2] = nodes(&pair.url(), RULE).await;
    let trial = Trial::of("kept.1", &nodes).await;
    trial.run_for(200).await;
    // The primary takes no more messages until the replica has all of them.
    block_in_place(|| assert_eq!(pair.primary.redis_lines("CLIENT PAUSE 60000 WRITE"), ["+OK"]));
    pair.wait_until_replicated().await;
    block_in_place(|| pair.fail_over());
    trial.run_for(200).await;
    trial.finish(&nodes[0]).await.check_lossless();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_without_the_last_messages_starts_a_new_epoch() {
    if !has_brokers() {
        return;
    }
    let mut pair = Pair::start().await;
    let nodes: [Server; 2] = nodes(&pair.url(), RULE).await;
    let trial = Trial::of("kept.1", &nodes).await;
    trial.run_for(200).await;
    pair.link.cut();
    trial.run_for(200).await;
    block_in_place(|| pair.fail_over());
    trial.run_for(200).await;
    let record = trial.finish(&nodes[0]).await;
    record.check();
    for journal in &record.journals {
        assert!(!journal.holes.is_empty());
        assert!(journal.holes.iter().all(|reason| reason == "epoch"), "{:?}", journal.holes);
    }
}

/// The new primary first gets messages of a node that does not know that others are lost, and gives
/// their offsets to these messages.
async fn give_offsets_again(lost: u64, new: u64) {
    let mut pair = Pair::start().await;
    let [to_primary, to_replica] = [&pair.primary, &pair.replica].map(|broker| Proxy::start(broker.address));
    let follower = node(&format!("redis://{},{}", to_primary.address, to_replica.address), "follower", RULE);
    let publisher = node(&pair.url(), "publisher", RULE);
    wait_until_ready(&follower).await;
    wait_until_ready(&publisher).await;
    let mut client = Client::connect(&publisher).await;
    let (mut reader, _) = subscriber(&follower, json!({"topic": "kept.1"})).await;
    publish_range(&mut client, "kept.1", 0..10).await;
    pair.wait_until_replicated().await;
    pair.link.cut();
    publish_range(&mut client, "kept.1", 10..10 + lost).await;
    for number in 0..10 + lost {
        assert_eq!(reader.receive().await["data"]["message"], number);
    }
    to_replica.cut();
    block_in_place(|| pair.fail_over());
    // Otherwise the follower may take the old connection for a good one, and be called ready.
    wait_until_unready(&follower).await;
    wait_until_ready(&publisher).await;
    let first = 100;
    for number in first..first + new {
        let data = json!({"topic": "kept.1", "message": number, "once": number.to_string()});
        let publish = json!({"type": "publish", "id": number, "data": data});
        eventually("a publish", async || client.request(&publish).await["type"] == "published").await;
    }
    to_replica.mend();
    wait_until_ready(&follower).await;
    publish_range(&mut client, "kept.1", 200..201).await;
    // A new epoch may begin after that message, and then does not have it.
    let gap = wait_for("a gap", async {
        loop {
            let message = reader.receive().await;
            assert_ne!(message["data"]["message"], 200, "{lost} lost, {new} new");
            if message["type"] == "gap" {
                break message;
            }
        }
    })
    .await;
    assert_eq!(gap["data"]["reason"], "epoch", "{lost} lost, {new} new: {gap}");
    publish_range(&mut client, "kept.1", 201..202).await;
    wait_for("a message of the new epoch", async {
        while reader.receive().await["data"]["message"] != 201 {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_given_again_are_told_as_a_new_epoch() {
    if !has_brokers() {
        return;
    }
    // The new primary has less than the follower when the follower is back.
    give_offsets_again(5, 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_given_again_while_a_node_was_away_are_told_as_a_new_epoch() {
    if !has_brokers() {
        return;
    }
    // The new primary has as much as the follower, or more.
    for new in [5, 20] {
        give_offsets_again(5, new).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_a_lost_message_is_told_although_nobody_followed_its_topic() {
    if !has_brokers() {
        return;
    }
    let mut pair = Pair::start().await;
    let reading = node(&pair.url(), "reading", RULE);
    let publishing = node(&pair.url(), "publishing", RULE);
    wait_until_ready(&reading).await;
    wait_until_ready(&publishing).await;
    let mut client = Client::connect(&publishing).await;
    let (mut reader, _) = subscriber(&reading, json!({"topic": "kept.1"})).await;
    publish_range(&mut client, "kept.1", 0..10).await;
    pair.wait_until_replicated().await;
    pair.link.cut();
    publish_range(&mut client, "kept.1", 10..15).await;
    let mut positions = Vec::new();
    for _ in 0..15 {
        let data = reader.receive().await["data"].clone();
        positions.push(json!({"epoch": data["epoch"], "offset": data["offset"], "time": data["time"]}));
    }
    // Only the reader knows the lost messages.
    drop(reader);
    drop(reading);
    block_in_place(|| pair.fail_over());
    wait_until_ready(&publishing).await;
    for number in 100..110 {
        let data = json!({"topic": "kept.1", "message": number, "once": number.to_string()});
        let publish = json!({"type": "publish", "id": number, "data": data});
        eventually("a publish", async || client.request(&publish).await["type"] == "published").await;
    }
    let recover = async |position: &serde_json::Value| {
        let data = json!({"topic": "kept.1", "recover": position});
        subscriber(&publishing, data).await.1
    };
    for position in &positions {
        let reply = recover(position).await;
        let offset = position["offset"].as_u64().unwrap();
        // The time of a message can be that of a look by chance, which is compared with nothing.
        let is_lost = offset > 10 && position["time"].as_u64().unwrap() % 1000 > 0;
        let expected =
            if is_lost { (&json!(false), &json!("epoch")) } else { (&json!(true), &serde_json::Value::Null) };
        assert_eq!((&reply["recovered"], &reply["reason"]), expected, "{position}: {reply}");
        assert_eq!(reply["epoch"], position["epoch"], "no node has noticed the loss");
    }
    let without_time = json!({"epoch": positions[14]["epoch"], "offset": 15});
    assert_eq!(recover(&without_time).await["recovered"], true);
    // The positions of all replies are good.
    let start = recover(&positions[9]).await;
    let again = json!({"epoch": start["epoch"], "offset": start["offset"], "time": start["time"]});
    assert_eq!(recover(&again).await["recovered"], true, "{start}");
}
