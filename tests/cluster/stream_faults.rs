//! Faults of the broker that keeps streams, and what clients get.

use std::time::Duration;

use serde_json::{Value, json};

use super::streams::{RULE, Received, publish_range, subscribe_with, subscriber};
use super::{eventually, metric, node, nodes, wait_until_ready, wait_until_unready};
use crate::support::{Broker, Client, Engine, Proxy, Server, has_brokers, http, wait_for};

/// Publishes a number until the node says that the store is away. Returns the error.
pub(super) async fn publish_until_unavailable(client: &mut Client, topic: &str) -> Value {
    wait_for("the end of the connection to the store", async {
        loop {
            let data = json!({"topic": topic, "message": "probe"});
            client.send(&json!({"type": "publish", "id": 7, "data": data})).await;
            // Without a connection that is known to be lost, the answer comes when there is one again.
            match tokio::time::timeout(Duration::from_millis(100), client.receive()).await {
                Ok(reply) if reply["type"] == "error" => return reply,
                _ => {}
            }
        }
    })
    .await
}

over_both_brokers! {
    nothing_is_lost_while_the_store_is_away,
    an_empty_store_starts_a_new_epoch_which_is_told,
    clients_of_a_killed_node_recover_on_another,
    clients_that_wait_for_a_hung_store_are_answered,
    a_topic_that_is_followed_again_is_read_from_where_it_was,
    tail_follows_a_topic_of_another_node,
}

async fn nothing_is_lost_while_the_store_is_away(broker: Broker) {
    let proxy = Proxy::start(broker.address);
    let a = node(&broker.url(), "a", RULE);
    let b = node(&broker.engine.url(proxy.address), "b", RULE);
    wait_until_ready(&a).await;
    wait_until_ready(&b).await;
    let mut publisher = Client::connect(&a).await;
    let (mut client, start) = subscriber(&b, json!({"topic": "kept.1"})).await;
    publish_range(&mut publisher, "kept.1", 0..10).await;
    let mut received = Received::default();
    received.read(&mut client, 10).await;

    proxy.cut();
    let mut refused = Client::connect(&b).await;
    let error = publish_until_unavailable(&mut refused, "kept.other").await;
    assert_eq!(error["data"]["code"], "unavailable", "{error}");
    assert!(error["data"]["retry_after_ms"].as_u64().is_some_and(|wait| wait > 0), "{error}");
    let answer = http(b.api(), "POST /v1/topics/kept.other/messages", &[], "1").await;
    assert_eq!((answer.status, answer.header("retry-after").is_some()), (503, true), "{}", answer.body);
    // A warm mirror answers, and a cold topic is refused.
    let recover = json!({"epoch": start["epoch"], "offset": 4});
    let (mut other, reply) = subscriber(&b, json!({"topic": "kept.1", "recover": recover})).await;
    assert_eq!((&reply["recovered"], &reply["replay"]), (&json!(true), &json!(6)), "{reply}");
    Received::default().read(&mut other, 6).await;
    let mut cold = Client::connect(&b).await;
    let error = subscribe_with(&mut cold, json!({"topic": "kept.cold"})).await;
    assert_eq!(error["data"]["code"], "unavailable", "{error}");
    assert!(error["data"]["retry_after_ms"].as_u64().is_some_and(|wait| wait > 0), "{error}");
    assert_eq!(http(b.api(), "GET /v1/topics/kept.cold/messages", &[], "").await.status, 503);
    assert_eq!(http(b.api(), "DELETE /v1/topics/kept.1/messages", &[], "").await.status, 503);
    wait_until_unready(&b).await;
    publish_range(&mut publisher, "kept.1", 10..30).await;

    proxy.mend();
    received.read(&mut client, 30).await;
    assert_eq!(received.messages, (0..30).map(Value::from).collect::<Vec<_>>());
    wait_until_ready(&b).await;
    let mut again = Client::connect(&b).await;
    publish_range(&mut again, "kept.1", 30..35).await;
    received.read(&mut client, 35).await;
    // The failed subscribe has left nothing behind.
    let reply = subscribe_with(&mut cold, json!({"topic": "kept.cold"})).await;
    assert_eq!(reply["type"], "subscribed", "{reply}");
}

#[tokio::test]
async fn lost_connections_of_subscribers_lose_no_message() {
    if !has_brokers() {
        return;
    }
    let broker = Broker::start(Engine::Redis);
    let [a, b] = nodes(&broker.url(), RULE).await;
    let (mut on_a, _) = subscriber(&a, json!({"topic": "kept.1"})).await;
    let (mut on_b, _) = subscriber(&b, json!({"topic": "kept.1"})).await;
    let mut publisher = Client::connect(&a).await;
    for number in 0..100 {
        if number % 20 == 10 {
            broker.redis_lines("CLIENT KILL TYPE pubsub");
        }
        let data = json!({"topic": "kept.1", "message": number, "once": number.to_string()});
        while publisher.request(&json!({"type": "publish", "id": 7, "data": data})).await["type"] == "error" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    for client in [&mut on_a, &mut on_b] {
        let mut received = Received::default();
        received.read(client, 100).await;
        assert_eq!(received.messages, (0..100).map(Value::from).collect::<Vec<_>>());
    }
    wait_until_ready(&a).await;
    wait_until_ready(&b).await;
}

async fn an_empty_store_starts_a_new_epoch_which_is_told(mut broker: Broker) {
    let [a, b] = nodes(&broker.url(), RULE).await;
    let (mut on_a, start) = subscriber(&a, json!({"topic": "kept.1"})).await;
    let (mut on_b, _) = subscriber(&b, json!({"topic": "kept.1"})).await;
    let mut publisher = Client::connect(&a).await;
    publish_range(&mut publisher, "kept.1", 0..5).await;
    for client in [&mut on_a, &mut on_b] {
        Received::default().read(client, 5).await;
    }
    broker.restart_empty();
    let mut epochs = Vec::new();
    for client in [&mut on_a, &mut on_b] {
        let gap = client.receive().await;
        assert_eq!((&gap["type"], &gap["data"]["reason"]), (&json!("gap"), &json!("epoch")), "{gap}");
        assert_ne!(gap["data"]["epoch"], start["epoch"]);
        epochs.push(gap["data"]["epoch"].clone());
    }
    assert_eq!(epochs[0], epochs[1]);
    wait_until_ready(&a).await;
    let published = publish_range(&mut publisher, "kept.1", 5..8).await;
    assert_eq!(published[0]["epoch"], epochs[0]);
    for client in [&mut on_a, &mut on_b] {
        let mut received = Received::default();
        received.read(client, 3).await;
        assert_eq!(received.messages, [5, 6, 7]);
    }
    // Emptied while the connections stay, the next publish tells that this node knows more.
    broker.empty_streams();
    let after = publish_range(&mut publisher, "kept.1", 8..9).await;
    assert_ne!(after[0]["epoch"], epochs[0]);
    for client in [&mut on_a, &mut on_b] {
        let gap = client.receive().await;
        assert_eq!(gap["data"]["reason"], "epoch", "{gap}");
        assert_eq!(client.receive().await["data"]["message"], 8);
    }
    let recover = json!({"epoch": start["epoch"], "offset": 5});
    let (_, reply) = subscriber(&b, json!({"topic": "kept.1", "recover": recover})).await;
    assert_eq!((&reply["recovered"], &reply["reason"]), (&json!(false), &json!("epoch")), "{reply}");
}

async fn clients_of_a_killed_node_recover_on_another(broker: Broker) {
    let [a, b] = nodes(&broker.url(), RULE).await;
    let mut publisher = Client::connect(&b).await;
    let (mut client, start) = subscriber(&a, json!({"topic": "kept.1"})).await;
    publish_range(&mut publisher, "kept.1", 0..5).await;
    let mut received = Received::default();
    received.read(&mut client, 5).await;
    a.signal("KILL");
    publish_range(&mut publisher, "kept.1", 5..12).await;
    let recover = json!({"epoch": start["epoch"], "offset": received.offsets.last()});
    let (mut client, reply) = subscriber(&b, json!({"topic": "kept.1", "recover": recover})).await;
    assert_eq!(reply["recovered"], true, "{reply}");
    received.read(&mut client, 12).await;
    assert_eq!(received.messages, (0..12).map(Value::from).collect::<Vec<_>>());
}

async fn clients_that_wait_for_a_hung_store_are_answered(broker: Broker) {
    let [node] = nodes(&broker.url(), RULE).await;
    broker.signal("STOP");
    let mut waiting = Client::connect(&node).await;
    waiting.send(&json!({"type": "subscribe", "id": 1, "data": {"topic": "kept.1"}})).await;
    waiting.send(&json!({"type": "ping", "id": 2})).await;
    // One client leaves while it waits.
    let mut leaving = Client::connect(&node).await;
    leaving.send(&json!({"type": "subscribe", "id": 1, "data": {"topic": "kept.1"}})).await;
    drop(leaving);
    let error = waiting.receive().await;
    assert_eq!((&error["type"], &error["data"]["code"]), (&json!("error"), &json!("unavailable")), "{error}");
    assert_eq!(waiting.receive().await["type"], "pong");
    // Another client leaves, and its key is used again.
    eventually("no subscription", async || metric(&node, "deeperhub_subscriptions").await == 0).await;
    broker.signal("CONT");
    wait_until_ready(&node).await;
    wait_for("a subscription", async {
        loop {
            let reply = subscribe_with(&mut waiting, json!({"topic": "kept.1"})).await;
            if reply["type"] == "subscribed" {
                break;
            }
            assert_eq!(reply["data"]["code"], "unavailable", "{reply}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    assert_eq!(metric(&node, "deeperhub_subscriptions").await, 1);
}

async fn a_topic_that_is_followed_again_is_read_from_where_it_was(broker: Broker) {
    let [a, b] = nodes(&broker.url(), RULE).await;
    let mut publisher = Client::connect(&a).await;
    let (mut client, start) = subscriber(&b, json!({"topic": "kept.1"})).await;
    publish_range(&mut publisher, "kept.1", 0..5).await;
    let mut received = Received::default();
    received.read(&mut client, 5).await;
    for round in 1..4 {
        let topic = json!({"type": "unsubscribe", "id": 2, "data": {"topic": "kept.1"}});
        assert_eq!(client.request(&topic).await["type"], "unsubscribed");
        publish_range(&mut publisher, "kept.1", 5 * round..5 * round + 5).await;
        let recover = json!({"epoch": start["epoch"], "offset": received.offsets.last()});
        let reply = subscribe_with(&mut client, json!({"topic": "kept.1", "recover": recover})).await;
        assert_eq!(
            (&reply["data"]["recovered"], &reply["data"]["replay"]),
            (&json!(true), &json!(5)),
            "{reply}"
        );
        received.read(&mut client, 5 * round as usize + 5).await;
    }
    assert_eq!(received.messages, (0..20).map(Value::from).collect::<Vec<_>>());
}

async fn tail_follows_a_topic_of_another_node(broker: Broker) {
    let [a, b] = nodes(&broker.url(), RULE).await;
    let mut publisher = Client::connect(&a).await;
    publish_range(&mut publisher, "kept.1", 0..5).await;
    let mut lines = tail(&b, "kept.1", "-2").await;
    assert_eq!((lines.next().await, lines.next().await), (json!(3), json!(4)));
    // A client of the node comes and goes meanwhile.
    let (client, _) = subscriber(&b, json!({"topic": "kept.1"})).await;
    drop(client);
    eventually("no subscription", async || metric(&b, "deeperhub_subscriptions").await == 0).await;
    publish_range(&mut publisher, "kept.1", 5..8).await;
    for number in 5..8 {
        assert_eq!(lines.next().await, json!(number));
    }
}

/// The payloads that `tail` prints.
struct Tail {
    _child: tokio::process::Child,
    lines: tokio::io::Lines<tokio::io::BufReader<tokio::process::ChildStdout>>,
}

impl Tail {
    async fn next(&mut self) -> Value {
        let line = wait_for("a line", self.lines.next_line()).await.unwrap().expect("it runs");
        serde_json::from_str(&line).unwrap()
    }
}

async fn tail(node: &Server, topic: &str, from: &str) -> Tail {
    use tokio::io::AsyncBufReadExt;
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_deeperhub-ws"))
        .args(["tail", topic, "--from", from, "--api-listen", &node.api().to_string()])
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the program can be started");
    let lines = tokio::io::BufReader::new(child.stdout.take().unwrap()).lines();
    Tail { _child: child, lines }
}
