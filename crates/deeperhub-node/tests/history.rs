//! Topics with history, seen by clients and by the embedding program.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use deeperhub_node::history::Rules;
use deeperhub_node::{Config, Node, NodeHandle, StreamEvent, SubscribeError, SubscribeFrom, Topic};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// Upper bound for what happens at once on a machine with time.
const TIMEOUT: Duration = Duration::from_secs(20);

struct Client(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Client {
    async fn connect(node: &Node) -> Self {
        let url = format!("ws://{}/", node.local_addr());
        let (socket, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        let mut client = Self(socket);
        let welcome = client.receive().await;
        assert_eq!(welcome["type"], "welcome");
        client
    }

    async fn send(&mut self, message: Value) {
        self.0.send(Message::text(message.to_string())).await.unwrap();
    }

    async fn receive(&mut self) -> Value {
        loop {
            let message = tokio::time::timeout(TIMEOUT, self.0.next()).await.expect("a message in time");
            match message.unwrap().unwrap() {
                Message::Text(text) => return serde_json::from_str(&text).unwrap(),
                Message::Close(frame) => panic!("closed: {frame:?}"),
                _ => {}
            }
        }
    }

    /// Sends a message and returns the next one that arrives.
    async fn call(&mut self, message: Value) -> Value {
        self.send(message).await;
        self.receive().await
    }

    async fn subscribe(&mut self, data: Value) -> Value {
        let reply = self.call(json!({ "type": "subscribe", "id": 1, "data": data })).await;
        assert_eq!((&reply["type"], &reply["id"]), (&json!("subscribed"), &json!(1)), "{reply}");
        reply["data"].clone()
    }

    /// Receives `count` messages and returns them with their offsets.
    async fn messages(&mut self, count: usize) -> Vec<(u64, Value)> {
        let mut messages = Vec::new();
        while messages.len() < count {
            let message = self.receive().await;
            assert_eq!(message["type"], "message", "{message}");
            let data = &message["data"];
            messages.push((data["offset"].as_u64().unwrap(), data["message"].clone()));
        }
        messages
    }
}

fn start(rules: &[&str]) -> Node {
    let rules = Rules::new(rules.iter().map(|rule| rule.parse().unwrap())).unwrap();
    let mut config = Config::default().with_history_rules(rules).with_rate_limit(None);
    config.listener.workers = 2;
    Node::start(([127, 0, 0, 1], 0).into(), config).unwrap()
}

/// Publishes the numbers of a range.
fn publish(hub: &NodeHandle, topic: &str, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        hub.publish(topic, &number).unwrap();
    }
}

fn numbered(range: std::ops::RangeInclusive<u64>) -> Vec<(u64, Value)> {
    range.map(|number| (number, json!(number))).collect()
}

#[tokio::test]
async fn a_client_that_was_away_gets_what_it_missed_before_live_messages() {
    let node = start(&["chat.>: history=1000"]);
    let hub = node.handle();
    let mut client = Client::connect(&node).await;
    let start = client.subscribe(json!({ "topic": "chat.1" })).await;
    assert_eq!((&start["offset"], start.get("recovered")), (&json!(0), None));
    publish(&hub, "chat.1", 1..=2);
    assert_eq!(client.messages(2).await, numbered(1..=2));
    drop(client);

    publish(&hub, "chat.1", 3..=300);
    let mut client = Client::connect(&node).await;
    let recover = json!({ "epoch": start["epoch"], "offset": 2, "time": start["time"] });
    let resumed = client.subscribe(json!({ "topic": "chat.1", "recover": recover })).await;
    assert_eq!(
        (&resumed["recovered"], &resumed["offset"], &resumed["replay"], &resumed["epoch"]),
        (&json!(true), &json!(2), &json!(298), &start["epoch"])
    );
    publish(&hub, "chat.1", 301..=310);
    assert_eq!(client.messages(308).await, numbered(3..=310));
    // The client is at the newest message: nothing is missing.
    let mut other = Client::connect(&node).await;
    let recover = json!({ "epoch": start["epoch"], "offset": 310 });
    let resumed = other.subscribe(json!({ "topic": "chat.1", "recover": recover })).await;
    assert_eq!((&resumed["recovered"], &resumed["replay"]), (&json!(true), &json!(0)));
    node.stop().await;
}

#[tokio::test]
async fn a_position_that_is_not_good_is_refused_with_the_reason() {
    let node = start(&["chat.*: history=3", "other: history=0"]);
    let hub = node.handle();
    publish(&hub, "chat.1", 1..=10);
    let mut client = Client::connect(&node).await;
    let epoch = json!(hub.topic_history(&Topic::parse("chat.1").unwrap()).unwrap().epoch.as_str());
    let cases = [
        (json!({ "topic": "chat.1", "recover": { "epoch": "00000000", "offset": 9 } }), "epoch"),
        (json!({ "topic": "chat.1", "recover": { "epoch": "?", "offset": 9 } }), "epoch"),
        (json!({ "topic": "chat.1", "recover": { "epoch": epoch, "offset": 11 } }), "ahead"),
        (json!({ "topic": "chat.1", "recover": { "epoch": epoch, "offset": 6 } }), "trimmed"),
        (json!({ "topic": "other", "recover": { "epoch": epoch, "offset": 6 } }), "no_history"),
        (json!({ "topic": "chat.*", "recover": { "epoch": epoch, "offset": 6 } }), "pattern"),
    ];
    for (data, reason) in cases {
        let start = client.subscribe(data.clone()).await;
        assert_eq!((&start["recovered"], &start["reason"]), (&json!(false), &json!(reason)), "{data}");
        let topic = &data["topic"];
        let ended = client.call(json!({ "type": "unsubscribe", "data": { "topic": topic } })).await;
        assert_eq!(ended["type"], "unsubscribed");
    }
    client.subscribe(json!({ "topic": "chat.>" })).await;
    let recover = json!({ "epoch": epoch, "offset": 9 });
    let start = client.subscribe(json!({ "topic": "chat.1", "recover": recover })).await;
    assert_eq!((&start["recovered"], &start["reason"]), (&json!(false), &json!("overlap")));
    // With `partial`, all that is kept comes.
    let mut client = Client::connect(&node).await;
    let recover = json!({ "epoch": epoch, "offset": 2, "partial": true });
    let start = client.subscribe(json!({ "topic": "chat.1", "recover": recover })).await;
    assert_eq!(
        (&start["reason"], &start["offset"], &start["replay"]),
        (&json!("trimmed"), &json!(7), &json!(3))
    );
    assert_eq!(client.messages(3).await, numbered(8..=10));
    node.stop().await;
}

#[tokio::test]
async fn a_list_of_topics_is_answered_entry_by_entry() {
    let node = start(&["chat.>: history=10"]);
    let hub = node.handle();
    publish(&hub, "chat.1", 1..=3);
    let mut client = Client::connect(&node).await;
    let topics = json!([{ "topic": "chat.1", "history": 2 }, { "topic": "a..b" }, { "topic": "plain" }]);
    let reply = client.call(json!({ "type": "subscribe", "id": "x", "data": { "topics": topics } })).await;
    assert_eq!((&reply["type"], &reply["id"]), (&json!("subscribed"), &json!("x")));
    let entries = reply["data"]["topics"].as_array().unwrap();
    assert_eq!(
        (&entries[0]["topic"], &entries[0]["offset"], &entries[0]["replay"]),
        (&json!("chat.1"), &json!(1), &json!(2))
    );
    assert_eq!(entries[1]["error"]["code"], "invalid_topic");
    assert_eq!((&entries[2]["topic"], entries[2].get("epoch")), (&json!("plain"), None));
    assert_eq!(client.messages(2).await, numbered(2..=3));
    let reply = client.call(json!({ "type": "subscribe", "data": { "topics": [{ "topic": 1 }] } })).await;
    assert_eq!((&reply["type"], &reply["data"]["code"]), (&json!("error"), &json!("invalid_message")));
    node.stop().await;
}

#[tokio::test]
async fn a_slow_reader_gets_every_message_and_stays_connected() {
    let rules = Rules::new(["feed: history=100000 history_bytes=256MiB".parse().unwrap()]).unwrap();
    let mut config = Config::default().with_history_rules(rules).with_rate_limit(None);
    config.listener.workers = 1;
    config.listener.limits.max_queue_bytes = 256 * 1024;
    let node = Node::start(([127, 0, 0, 1], 0).into(), config).unwrap();
    let hub = node.handle();
    let mut client = Client::connect(&node).await;
    client.subscribe(json!({ "topic": "feed" })).await;
    // The kernel's buffers and the queue hold far less.
    let pad = "x".repeat(20_000);
    for number in 1..=2000 {
        hub.publish("feed", &json!({ "number": number, "pad": pad })).unwrap();
        if number % 100 == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    for expected in 1..=2000 {
        let message = client.receive().await;
        let data = &message["data"];
        assert_eq!((&data["offset"], &data["message"]["number"]), (&json!(expected), &json!(expected)));
    }
    // Live again.
    hub.publish("feed", &json!({ "number": 2001 })).unwrap();
    assert_eq!(client.receive().await["data"]["offset"], 2001);
    node.stop().await;
}

#[tokio::test]
async fn a_publish_that_is_repeated_is_stored_once() {
    let node = start(&["orders: history=10"]);
    let mut client = Client::connect(&node).await;
    client.subscribe(json!({ "topic": "orders" })).await;
    let publish = json!({ "type": "publish", "id": 7, "data": { "topic": "orders", "message": 1, "once": "a", "exclude_self": true } });
    let first = client.call(publish.clone()).await;
    let second = client.call(publish).await;
    assert_eq!(first, second);
    assert_eq!((&first["data"]["offset"], &first["type"]), (&json!(1), &json!("published")));
    let history = client.call(json!({ "type": "history", "id": 8, "data": { "topic": "orders" } })).await;
    assert_eq!(history["data"]["messages"].as_array().unwrap().len(), 1);
    assert_eq!(history["data"]["messages"][0]["message"], 1);
    node.stop().await;
}

#[tokio::test]
async fn an_emptied_history_starts_a_new_epoch_that_is_told() {
    let node = start(&["chat: history=10"]);
    let hub = node.handle();
    let mut client = Client::connect(&node).await;
    let start = client.subscribe(json!({ "topic": "chat" })).await;
    publish(&hub, "chat", 1..=2);
    client.messages(2).await;
    hub.clear_history(&Topic::parse("chat").unwrap()).await.unwrap();
    let gap = client.receive().await;
    assert_eq!((&gap["type"], &gap["data"]["reason"]), (&json!("gap"), &json!("epoch")));
    assert_ne!(gap["data"]["epoch"], start["epoch"]);
    let metrics = hub.metrics_text(deeperhub_node::metrics::Format::Prometheus);
    assert!(metrics.contains("deeperhub_gaps_total{reason=\"epoch\"} 1\n"), "{metrics}");
    publish(&hub, "chat", 3..=3);
    assert_eq!(client.messages(1).await, numbered(3..=3));
    node.stop().await;
}

#[tokio::test]
async fn a_sampled_topic_sends_the_newest_message_at_each_tick() {
    let node = start(&["ticks: history=10 delivery=sample every=50ms"]);
    let hub = node.handle();
    let mut client = Client::connect(&node).await;
    client.subscribe(json!({ "topic": "ticks" })).await;
    publish(&hub, "ticks", 1..=1000);
    let (mut position, mut received) = (0, 0);
    while position < 1000 {
        let message = client.receive().await;
        let data = &message["data"];
        let offset = data["offset"].as_u64().unwrap();
        let prev = data.get("prev").map_or(offset - 1, |prev| prev.as_u64().unwrap());
        assert_eq!(prev, position, "the chain is whole");
        (position, received) = (offset, received + 1);
    }
    assert!(received < 500, "{received} messages");
    node.stop().await;
}

#[tokio::test]
async fn a_subscriber_in_the_process_reads_from_the_history_and_then_live() {
    let node = start(&["prices: history=10"]);
    let hub = node.handle();
    assert!(matches!(hub.subscribe("other", SubscribeFrom::Newest).await, Err(SubscribeError::NoHistory)));
    publish(&hub, "prices", 1..=3);
    let mut subscriber = hub.subscribe("prices", SubscribeFrom::Last(2)).await.unwrap();
    let reader = tokio::spawn(async move {
        let mut numbers = Vec::new();
        while let Some(event) = subscriber.next().await {
            let StreamEvent::Message(message) = event else { panic!("{event:?}") };
            numbers.push((message.position().unwrap().offset, message.message().to_owned()));
        }
        numbers
    });
    for number in 4..=8 {
        publish(&hub, "prices", number..=number);
        tokio::task::yield_now().await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    node.stop().await;
    let numbers = tokio::time::timeout(TIMEOUT, reader).await.unwrap().unwrap();
    assert_eq!(numbers, (2..=8).map(|number: u64| (number, number.to_string())).collect::<Vec<_>>());
}
