//! Topics with history on NATS JetStream: what differs from Redis.

use serde_json::{Value, json};

use super::streams::{RULE, Received, publish_range, subscriber};
use super::{eventually, metric, node, nodes, wait_until_ready};
use crate::support::{Broker, Client, Engine, Server, has_brokers, http, run, wait_for};

fn position_of(data: &Value) -> Value {
    json!({"epoch": data["epoch"], "offset": data["offset"], "time": data["time"]})
}

#[tokio::test]
async fn a_server_that_cannot_keep_history_is_refused() {
    if !has_brokers() {
        return;
    }
    // Debian's server is too old.
    let broker = Broker::start(Engine::Nats);
    let cluster = ["--cluster", &broker.url(), "--port", "0", "--api-listen", "127.0.0.1:0"];
    let expected = "the broker of the cluster cannot keep history: the server has version 2.";
    for command in [&["config", "check"][..], &["serve"]] {
        let refused = run(&[command, &cluster, RULE].concat(), &[]);
        assert_ne!(refused.code, Some(0), "{refused:?}");
        assert!(refused.stderr.contains(expected), "{refused:?}");
        assert!(refused.stderr.contains("use NATS 2.11 or later"), "{refused:?}");
    }
    // Messages that are not stored do not need it.
    let [node] = nodes(&broker.url(), &["--topic", "a: history=0"]).await;
    let mut client = Client::connect(&node).await;
    let data = json!({"topic": "a", "message": 1});
    assert_eq!(client.request(&json!({"type": "publish", "id": 1, "data": data})).await["type"], "published");
}

#[tokio::test]
async fn readiness_proves_that_the_store_works() {
    if !has_brokers() {
        return;
    }
    let broker = Broker::start_with_streams(Engine::Nats);
    let flags = [RULE, &["--canary-interval", "200ms", "--canary-timeout", "2s"]].concat();
    let a = node(&broker.url(), "a", &flags);
    wait_until_ready(&a).await;
    let round_trips = "deeperhub_canary_store_round_trip_seconds_count";
    eventually("probes of the store", async || metric(&a, round_trips).await > 2).await;
    assert_eq!(metric(&a, "deeperhub_canary_store_failing").await, 0);
    // They take no offsets of the rule's topics.
    let mut publisher = Client::connect(&a).await;
    let published = publish_range(&mut publisher, "kept.1", 0..1).await;
    assert_eq!(published[0]["offset"], 1);
}

#[tokio::test]
async fn a_quiet_topic_recovers_on_another_node_while_others_are_busy() {
    if !has_brokers() {
        return;
    }
    let broker = Broker::start_with_streams(Engine::Nats);
    let [a, b] = nodes(&broker.url(), RULE).await;
    let mut publisher = Client::connect(&a).await;
    let (mut client, start) = subscriber(&a, json!({"topic": "kept.quiet"})).await;
    publish_range(&mut publisher, "kept.busy", 0..50).await;
    publish_range(&mut publisher, "kept.quiet", 0..2).await;
    let mut received = Received::default();
    received.read(&mut client, 2).await;
    publish_range(&mut publisher, "kept.busy", 50..80).await;
    assert_eq!(received.offsets, [51, 52]);
    for (offset, replay) in [(start["offset"].clone(), 2), (json!(51), 1), (json!(52), 0)] {
        let recover = json!({"epoch": start["epoch"], "offset": offset});
        let (mut again, reply) = subscriber(&b, json!({"topic": "kept.quiet", "recover": recover})).await;
        assert_eq!((&reply["recovered"], &reply["replay"]), (&json!(true), &json!(replay)), "{reply}");
        Received::default().read(&mut again, replay).await;
    }
    // A new subscriber stands at the newest message of all topics.
    let (_, reply) = subscriber(&b, json!({"topic": "kept.new"})).await;
    assert_eq!(reply["offset"], 82, "{reply}");
}

#[tokio::test]
async fn subscribers_of_a_quiet_topic_are_told_their_position() {
    if !has_brokers() {
        return;
    }
    let broker = Broker::start_with_streams(Engine::Nats);
    // Subscribers are told after two seconds, at the next check of quiet topics.
    let rule = ["--topic", "kept.>: history=1000 ttl=20s"];
    let [a, b] = nodes(&broker.url(), &rule).await;
    let mut publisher = Client::connect(&a).await;
    publish_range(&mut publisher, "kept.quiet", 0..1).await;
    let (mut client, start) = subscriber(&a, json!({"topic": "kept.quiet"})).await;
    publish_range(&mut publisher, "kept.busy", 0..50).await;
    let position = wait_for("the position", client.receive()).await;
    assert_eq!((&position["type"], &position["data"]["topic"]), (&json!("position"), &json!("kept.quiet")));
    let data = &position["data"];
    assert_eq!((&data["epoch"], &data["offset"]), (&start["epoch"], &json!(51)), "{position}");
    // It is a position like any other.
    let recover = position_of(data);
    let (_, reply) = subscriber(&b, json!({"topic": "kept.quiet", "recover": recover})).await;
    assert_eq!(reply["recovered"], true, "{reply}");
    let published = publish_range(&mut publisher, "kept.quiet", 1..2).await;
    let message = wait_for("the message", async {
        loop {
            let message = client.receive().await;
            if message["type"] == "message" {
                return message;
            }
        }
    })
    .await;
    assert_eq!(message["data"]["offset"], published[0]["offset"], "{message}");
    // The chain of messages passes positions over.
    assert!(message["data"]["prev"].as_u64().unwrap() <= 51, "{message}");
}

/// Returns the numbers of a page and the offset with which the next one starts.
async fn page(client: &mut Client, data: Value) -> (Vec<u64>, Value) {
    let reply = client.request(&json!({"type": "history", "id": 3, "data": data})).await;
    assert_eq!(reply["type"], "history", "{reply}");
    let messages = reply["data"]["messages"].as_array().unwrap();
    let numbers = messages.iter().map(|message| message["message"].as_u64().unwrap()).collect();
    (numbers, reply["data"]["next"].clone())
}

#[tokio::test]
async fn pages_of_a_history_with_holes_count_messages() {
    if !has_brokers() {
        return;
    }
    let broker = Broker::start_with_streams(Engine::Nats);
    let [a, b] = nodes(&broker.url(), RULE).await;
    let mut publisher = Client::connect(&a).await;
    // The messages of the topic have the offsets 3, 6, 9, …
    for number in 0..20 {
        publish_range(&mut publisher, "kept.other", 0..2).await;
        publish_range(&mut publisher, "kept.1", number..number + 1).await;
    }
    let mut on_cold = Client::connect(&b).await;
    let (mut on_warm, _) = subscriber(&a, json!({"topic": "kept.1"})).await;
    for client in [&mut on_cold, &mut on_warm] {
        for (data, expected, next) in [
            (json!({"limit": 3}), vec![0, 1, 2], json!(12)),
            (json!({"from": 57}), vec![18, 19], Value::Null),
            (json!({"from": 8, "limit": 2}), vec![2, 3], json!(15)),
            (json!({"from": -3}), vec![17, 18, 19], Value::Null),
            (json!({"from": -3, "limit": 2}), vec![17, 18], json!(60)),
            (json!({"order": "desc", "limit": 2}), vec![19, 18], json!(54)),
            (json!({"order": "desc", "from": 7}), vec![1, 0], Value::Null),
            (json!({"order": "desc", "from": -2, "limit": 2}), vec![18, 17], json!(51)),
            (json!({"from": 100}), vec![], Value::Null),
        ] {
            let mut data = data;
            data["topic"] = json!("kept.1");
            let (numbers, found) = page(client, data.clone()).await;
            assert_eq!(numbers, expected, "{data}");
            // An offset between two messages names the next one in the page's order.
            let descends = data["order"] == "desc";
            let is_next = |next: &Value, found: &Value| match (next.as_u64(), found.as_u64()) {
                (Some(next), Some(found)) if descends => found >= next && found < next + 3,
                (Some(next), Some(found)) => found <= next && found + 3 > next,
                (None, None) => true,
                _ => false,
            };
            assert!(is_next(&next, &found), "{data}: {found} instead of {next}");
        }
    }
    check_topic(&a).await;
    check_topic(&b).await;
}

/// Checks what the API says of the topic.
async fn check_topic(node: &Server) {
    let topic = http(node.api(), "GET /v1/topics/kept.1", &[], "").await.json();
    assert_eq!(
        (&topic["history"]["offset"], &topic["history"]["oldest"]),
        (&json!(60), &json!(3)),
        "{topic}"
    );
    assert_eq!(topic["history"]["messages"], 20, "{topic}");
}
