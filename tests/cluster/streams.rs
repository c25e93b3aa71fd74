//! Topics with history whose streams the broker keeps.

use serde_json::{Value, json};

use super::{metric, nodes};
use crate::support::{Broker, Client, Engine, Server, http};

/// Keeps what the tests publish.
pub(super) const RULE: &[&str] = &["--topic", "kept.>: history=1000 ttl=10m"];

/// The messages that a client received on a topic with history.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub(super) messages: Vec<Value>,
    pub(super) offsets: Vec<u64>,
    /// Offset before each message.
    before: Vec<u64>,
    epochs: Vec<String>,
}

impl Received {
    fn add(&mut self, data: &Value) {
        self.messages.push(data["message"].clone());
        let offset = data["offset"].as_u64().unwrap_or_else(|| panic!("no offset in {data}"));
        self.offsets.push(offset);
        self.before.push(data["prev"].as_u64().unwrap_or(offset - 1));
        self.epochs.push(data["epoch"].as_str().unwrap_or_default().to_owned());
    }

    /// Reads messages until there are `count`. Each names the offset of the one before.
    pub(super) async fn read(&mut self, client: &mut Client, count: usize) {
        while self.messages.len() < count {
            let message = client.receive().await;
            // JetStream's offsets go on without messages of the topic.
            if message["type"] == "position" {
                continue;
            }
            assert_eq!(message["type"], "message", "{message} after {self:?}");
            self.add(&message["data"]);
        }
        let mut chain = self.offsets.iter().zip(self.before.iter().skip(1));
        assert!(chain.all(|(offset, before)| offset == before), "{self:?}");
        assert!(self.epochs.windows(2).all(|pair| pair[0] == pair[1]), "{:?}", self.epochs);
    }
}

pub(super) async fn subscribe_with(client: &mut Client, data: Value) -> Value {
    client.request(&json!({"type": "subscribe", "id": 1, "data": data})).await
}

/// Subscribes a new client. Returns it with the data of its reply.
pub(super) async fn subscriber(node: &Server, data: Value) -> (Client, Value) {
    let mut client = Client::connect(node).await;
    let reply = subscribe_with(&mut client, data).await;
    assert_eq!(reply["type"], "subscribed", "{reply}");
    let data = reply["data"].clone();
    (client, data)
}

/// Publishes a message and returns the data of the reply.
async fn publish(client: &mut Client, data: Value) -> Value {
    let reply = client.request(&json!({"type": "publish", "id": 7, "data": data})).await;
    assert_eq!((&reply["type"], &reply["id"]), (&json!("published"), &json!(7)), "{reply}");
    reply["data"].clone()
}

/// Publishes the numbers of a range to a topic. Returns the positions.
pub(super) async fn publish_range(
    client: &mut Client,
    topic: &str,
    range: std::ops::Range<u64>,
) -> Vec<Value> {
    let mut positions = Vec::new();
    for number in range {
        positions.push(publish(client, json!({"topic": topic, "message": number})).await);
    }
    positions
}

fn position_of(data: &Value) -> Value {
    json!({"epoch": data["epoch"], "offset": data["offset"], "time": data["time"]})
}

over_both_brokers! {
    two_nodes_deliver_one_order_with_dense_offsets,
    a_client_recovers_on_another_node,
    a_cold_node_reads_each_topic_once,
    the_history_of_a_topic_is_read_without_following_it,
    clearing_a_history_is_told_on_all_nodes,
    a_repeated_publish_is_stored_once_on_any_node,
    an_excluded_publisher_gets_its_message_on_no_node,
}

async fn two_nodes_deliver_one_order_with_dense_offsets(broker: Broker) {
    const COUNT: u64 = 100;
    let [a, b] = nodes(&broker.url(), RULE).await;
    let (mut on_a, start) = subscriber(&a, json!({"topic": "kept.1"})).await;
    let (mut on_b, other_start) = subscriber(&b, json!({"topic": "kept.1"})).await;
    assert_eq!((&start["epoch"], &start["offset"]), (&other_start["epoch"], &json!(0)));
    let mut from_pattern = Client::connect(&b).await;
    subscribe_with(&mut from_pattern, json!({"topic": "kept.*"})).await;
    let (mut first, mut second) = (Client::connect(&a).await, Client::connect(&b).await);
    let (one, two) = tokio::join!(
        publish_range(&mut first, "kept.1", 0..COUNT),
        publish_range(&mut second, "kept.1", COUNT..2 * COUNT),
    );
    let count = 2 * COUNT as usize;
    let mut received = [Received::default(), Received::default(), Received::default()];
    for (client, received) in [&mut on_a, &mut on_b, &mut from_pattern].into_iter().zip(&mut received) {
        received.read(client, count).await;
    }
    let [one_node, other_node, pattern] = &received;
    assert_eq!((&one_node.messages, &one_node.offsets), (&other_node.messages, &other_node.offsets));
    assert_eq!((&one_node.messages, &one_node.offsets), (&pattern.messages, &pattern.offsets));
    assert_eq!(one_node.offsets, (1..=2 * COUNT).collect::<Vec<_>>());
    assert!(one_node.epochs.iter().all(|epoch| *epoch == start["epoch"]));
    // Each publisher was told where its message is.
    for (number, published) in one.iter().chain(&two).enumerate() {
        let offset = published["offset"].as_u64().unwrap() as usize;
        assert_eq!(one_node.messages[offset - 1], json!(number), "{published}");
        assert_eq!(published["epoch"], start["epoch"]);
    }
    // So is a backend.
    let response = http(b.api(), "POST /v1/topics/kept.1/messages", &[], "\"api\"").await;
    assert_eq!(response.status, 200, "{}", response.body);
    assert_eq!(response.json()["offset"], 2 * COUNT + 1);
    for client in [&mut on_a, &mut on_b] {
        assert_eq!(client.receive().await["data"]["message"], "api");
    }
    let batch = json!({"calls": [{"publish": {"topic": "kept.1", "message": 1}}]}).to_string();
    let results = http(a.api(), "POST /v1/batch", &[], &batch).await.json();
    assert_eq!(results["results"][0]["body"]["offset"], 2 * COUNT + 2, "{results}");
}

async fn a_client_recovers_on_another_node(broker: Broker) {
    let [a, b] = nodes(&broker.url(), RULE).await;
    let mut publisher = Client::connect(&a).await;
    let (mut client, start) = subscriber(&a, json!({"topic": "kept.1"})).await;
    publish_range(&mut publisher, "kept.1", 0..10).await;
    let mut received = Received::default();
    received.read(&mut client, 10).await;
    drop(client);
    let published = publish_range(&mut publisher, "kept.1", 10..30).await;
    // Nobody follows the topic on the other node.
    let recover = json!({"epoch": start["epoch"], "offset": 10});
    let (mut client, reply) = subscriber(&b, json!({"topic": "kept.1", "recover": recover})).await;
    assert_eq!((&reply["recovered"], &reply["replay"]), (&json!(true), &json!(20)), "{reply}");
    received.read(&mut client, 30).await;
    publish_range(&mut publisher, "kept.1", 30..40).await;
    received.read(&mut client, 40).await;
    assert_eq!(received.messages, (0..40).map(Value::from).collect::<Vec<_>>());
    // A position that the mirror does not have yet is compared with the store.
    let last = publish_range(&mut publisher, "kept.1", 40..41).await;
    let (_, reply) = subscriber(&b, json!({"topic": "kept.1", "recover": position_of(&last[0])})).await;
    assert_eq!(reply["recovered"], true, "{reply}");
    // Positions of another stream, of the future and of messages that were not kept.
    for (recover, reason) in [
        (json!({"epoch": "00000000", "offset": 3}), "epoch"),
        (json!({"epoch": start["epoch"], "offset": 1000}), "ahead"),
    ] {
        let (_, reply) = subscriber(&b, json!({"topic": "kept.1", "recover": recover})).await;
        assert_eq!((&reply["recovered"], &reply["reason"]), (&json!(false), &json!(reason)), "{reply}");
    }
    assert_eq!(published[0]["offset"], 11);
    // A list is answered as a whole, whichever of its topics are cold.
    let topics = json!({"topics": [
        {"topic": "kept.new", "history": 1}, {"topic": "plain"}, {"topic": "kept.1", "history": 2},
        {"topic": "kept..bad"}, {"topic": "kept.other"}
    ]});
    let mut client = Client::connect(&b).await;
    let reply = subscribe_with(&mut client, topics).await;
    let entries = reply["data"]["topics"].as_array().unwrap_or_else(|| panic!("{reply}"));
    assert_eq!(entries.len(), 5, "{reply}");
    // On JetStream, the topics of a rule share their offsets.
    let start = if broker.engine == Engine::Redis { json!(0) } else { last[0]["offset"].clone() };
    assert_eq!((&entries[0]["offset"], &entries[4]["offset"]), (&start, &start), "{reply}");
    assert!(entries[1].get("offset").is_none(), "{reply}");
    assert_eq!(entries[2]["replay"], 2, "{reply}");
    assert_eq!(entries[3]["error"]["code"], "invalid_topic", "{reply}");
}

async fn a_cold_node_reads_each_topic_once(broker: Broker) {
    const TOPICS: u64 = 20;
    const CLIENTS: u64 = 200;
    let [a, b] = nodes(&broker.url(), RULE).await;
    let mut publisher = Client::connect(&a).await;
    for topic in 0..TOPICS {
        publish_range(&mut publisher, &format!("kept.{topic}"), 0..5).await;
    }
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client::connect(&b).await);
    }
    for (number, client) in (0..).zip(&mut clients) {
        let topic = format!("kept.{}", number % TOPICS);
        let data = json!({"topic": topic, "history": 3});
        client.send(&json!({"type": "subscribe", "id": 1, "data": data})).await;
        // Later messages of a client wait for the reply.
        client.send(&json!({"type": "ping", "id": 2})).await;
    }
    for client in &mut clients {
        let reply = client.receive().await;
        assert_eq!((&reply["type"], &reply["data"]["replay"]), (&json!("subscribed"), &json!(3)), "{reply}");
        let mut messages = Vec::new();
        let mut has_pong = false;
        while messages.len() < 3 || !has_pong {
            let message = client.receive().await;
            match message["type"].as_str() {
                Some("message") => messages.push(message["data"]["message"].clone()),
                Some("pong") => has_pong = true,
                // JetStream's offsets go on without messages of the topic.
                Some("position") => {}
                _ => panic!("{message}"),
            }
        }
        assert_eq!(messages, [2, 3, 4]);
    }
    assert_eq!(metric(&b, "deeperhub_store_reads_total").await, TOPICS);
}

async fn the_history_of_a_topic_is_read_without_following_it(broker: Broker) {
    let [a, b] = nodes(&broker.url(), RULE).await;
    let mut publisher = Client::connect(&a).await;
    let published = publish_range(&mut publisher, "kept.1", 0..30).await;
    let mut client = Client::connect(&b).await;
    for (data, expected, next) in [
        (json!({"limit": 3}), vec![0, 1, 2], json!(4)),
        (json!({"from": 29}), vec![28, 29], Value::Null),
        (json!({"from": -3}), vec![27, 28, 29], Value::Null),
        (json!({"order": "desc", "limit": 2}), vec![29, 28], json!(28)),
        (json!({"order": "desc", "from": 2}), vec![1, 0], Value::Null),
        (json!({"from": 10, "limit": 2}), vec![9, 10], json!(12)),
        (json!({"from": 100}), vec![], Value::Null),
    ] {
        let mut data = data;
        data["topic"] = json!("kept.1");
        let reply = client.request(&json!({"type": "history", "id": 3, "data": data})).await;
        assert_eq!(reply["type"], "history", "{reply}");
        let messages = reply["data"]["messages"].as_array().unwrap();
        let numbers: Vec<_> = messages.iter().map(|message| message["message"].clone()).collect();
        assert_eq!(
            (numbers, &reply["data"]["next"]),
            (expected.into_iter().map(Value::from).collect(), &next)
        );
        assert_eq!(reply["data"]["offset"], 30, "{reply}");
    }
    let page = http(b.api(), "GET /v1/topics/kept.1/messages?from=-2", &[], "").await.json();
    assert_eq!((&page["offset"], &page["epoch"]), (&json!(30), &published[0]["epoch"]), "{page}");
    let numbers: Vec<_> = page["messages"].as_array().unwrap().iter().map(|m| m["message"].clone()).collect();
    assert_eq!(numbers, [28, 29]);
    let topic = http(b.api(), "GET /v1/topics/kept.1", &[], "").await.json();
    assert_eq!((&topic["history"]["offset"], &topic["history"]["messages"]), (&json!(30), &json!(30)));
    let unused = http(b.api(), "GET /v1/topics/kept.unused/messages", &[], "").await.json();
    assert_eq!(unused["messages"], json!([]));
    // It is no interest in the topic.
    assert_eq!(metric(&b, "deeperhub_history_streams").await, 0);
}

async fn clearing_a_history_is_told_on_all_nodes(broker: Broker) {
    let [a, b] = nodes(&broker.url(), RULE).await;
    let mut publisher = Client::connect(&a).await;
    let (mut on_a, start) = subscriber(&a, json!({"topic": "kept.1"})).await;
    let (mut on_b, _) = subscriber(&b, json!({"topic": "kept.1"})).await;
    publish_range(&mut publisher, "kept.1", 0..3).await;
    for client in [&mut on_a, &mut on_b] {
        Received::default().read(client, 3).await;
    }
    assert_eq!(http(b.api(), "DELETE /v1/topics/kept.1/messages", &[], "").await.status, 204);
    let mut epochs = Vec::new();
    for client in [&mut on_a, &mut on_b] {
        let gap = client.receive().await;
        assert_eq!((&gap["type"], &gap["data"]["reason"]), (&json!("gap"), &json!("epoch")), "{gap}");
        epochs.push(gap["data"]["epoch"].clone());
    }
    assert_eq!(epochs[0], epochs[1]);
    assert_ne!(epochs[0], start["epoch"]);
    let published = publish_range(&mut publisher, "kept.1", 3..4).await;
    for client in [&mut on_a, &mut on_b] {
        let message = client.receive().await;
        assert_eq!(message["data"]["message"], 3, "{message}");
        assert_eq!(position_of(&message["data"]), position_of(&published[0]));
        assert_eq!(message["data"]["epoch"], epochs[0]);
    }
    let page = http(a.api(), "GET /v1/topics/kept.1/messages", &[], "").await.json();
    assert_eq!(page["messages"].as_array().unwrap().len(), 1, "{page}");
}

async fn a_repeated_publish_is_stored_once_on_any_node(broker: Broker) {
    let [a, b] = nodes(&broker.url(), RULE).await;
    let (mut client, _) = subscriber(&b, json!({"topic": "kept.1"})).await;
    let (mut first, mut second) = (Client::connect(&a).await, Client::connect(&b).await);
    let data = json!({"topic": "kept.1", "message": "once", "once": "x-1"});
    let published = publish(&mut first, data.clone()).await;
    let repeated = publish(&mut second, data).await;
    assert_eq!(position_of(&published), position_of(&repeated));
    publish(&mut second, json!({"topic": "kept.1", "message": "end"})).await;
    let mut received = Received::default();
    received.read(&mut client, 2).await;
    assert_eq!(received.messages, ["once", "end"]);
}

async fn an_excluded_publisher_gets_its_message_on_no_node(broker: Broker) {
    let [a, b] = nodes(&broker.url(), RULE).await;
    let (mut publisher, start) = subscriber(&a, json!({"topic": "kept.1"})).await;
    let (mut other, _) = subscriber(&b, json!({"topic": "kept.1"})).await;
    let own = publish(&mut publisher, json!({"topic": "kept.1", "message": 1, "exclude_self": true})).await;
    assert_eq!((&own["offset"], &own["subscribers"]), (&json!(1), &json!(0)), "{own}");
    let mut backend = Client::connect(&b).await;
    publish(&mut backend, json!({"topic": "kept.1", "message": 2})).await;
    let message = publisher.receive().await;
    assert_eq!(
        (&message["data"]["message"], &message["data"]["offset"]),
        (&json!(2), &json!(2)),
        "{message}"
    );
    let mut received = Received::default();
    received.read(&mut other, 2).await;
    assert_eq!(received.messages, [1, 2]);
    // A recovery of its own messages belongs to another connection, which gets them.
    let recover = json!({"epoch": start["epoch"], "offset": 0});
    let (mut again, reply) = subscriber(&b, json!({"topic": "kept.1", "recover": recover})).await;
    assert_eq!(reply["replay"], 2, "{reply}");
    Received::default().read(&mut again, 2).await;
}
