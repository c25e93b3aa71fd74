//! Patterns that overlap as much as they can: they cost their clients' share, and nobody else's.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::support::{Client, Server, patiently};

/// As many as a client may have by default.
const PATTERNS: usize = 128;

/// Clients that subscribe to the patterns.
const CLIENTS: usize = 10;

/// Levels of the longest topic.
const LEVELS: usize = 128;

/// Topics that all patterns agree with up to the last level, which is `last`.
fn deep_topic(last: &str) -> String {
    "a.".repeat(LEVELS - 1) + last
}

/// A client with [`PATTERNS`] patterns that differ from all others' in their first levels, and have a name in the last.
async fn subscriber(server: &Server, client: usize, last: &str) -> Client {
    let mut connection = Client::connect(server).await;
    for number in client * PATTERNS..(client + 1) * PATTERNS {
        let first: String = (0..16).map(|level| if number >> level & 1 == 0 { "a." } else { "*." }).collect();
        let name = first + &"*.".repeat(LEVELS - 17) + last;
        let answer = connection.ask(&json!({"type": "subscribe", "data": {"topic": name}})).await;
        assert_eq!(answer["type"], "subscribed", "{answer}");
    }
    connection
}

/// Publishes the numbers up to `count` as fast as the server takes them, and waits for the answer to the last.
async fn publish(server: &Server, topic: &str, count: usize) -> Value {
    let mut publisher = Client::connect(server).await;
    for number in 0..count {
        let mut publish = json!({"type": "publish", "data": {"topic": topic, "message": number}});
        if number + 1 == count {
            publish["id"] = json!(number);
        }
        publisher.send(&publish).await;
    }
    publisher.receive().await["data"].take()
}

#[tokio::test]
async fn topics_that_overlapping_patterns_nearly_match_hold_up_nobody() {
    const PUBLISHES: usize = 4_000;
    const ECHOES: usize = 20;
    let server = Server::start(&["--workers", "1", "--rate-limit", "0"]);
    let mut subscribers = Vec::new();
    for client in 0..CLIENTS {
        subscribers.push(subscriber(&server, client, "x").await);
    }
    let mut bystander = Client::connect(&server).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&is_over);
    let echoes = tokio::spawn(async move {
        let mut echoes = 0;
        // Those that came back while the others' publishes were still under way.
        while !stop.load(Ordering::Relaxed) {
            let echo = json!({"type": "echo", "id": echoes, "data": "y"});
            assert_eq!(bystander.ask(&echo).await, echo);
            echoes += 1;
        }
        echoes
    });
    // With a step for each level of each pattern these take minutes, instead of a second or two.
    let published =
        patiently("the end of all publishes", publish(&server, &deep_topic("a"), PUBLISHES)).await;
    is_over.store(true, Ordering::Relaxed);
    assert_eq!(published["subscribers"], 0);
    let echoes = echoes.await.expect("the bystander's echoes came back");
    assert!(echoes >= ECHOES, "{echoes} echoes during {PUBLISHES} publishes");
}

#[tokio::test]
async fn messages_that_all_of_many_patterns_match_come_once_to_each_client() {
    const PUBLISHES: usize = 100;
    let server = Server::start(&["--workers", "2", "--rate-limit", "0"]);
    let mut subscribers = Vec::new();
    for client in 0..CLIENTS {
        subscribers.push(subscriber(&server, client, "*").await);
    }
    let topic = deep_topic("a");
    let published = publish(&server, &topic, PUBLISHES).await;
    assert_eq!(published["subscribers"], CLIENTS * PATTERNS);
    for subscriber in &mut subscribers {
        for number in 0..PUBLISHES {
            let message = subscriber.receive().await;
            assert_eq!(
                (&message["data"]["topic"], &message["data"]["message"]),
                (&json!(topic), &json!(number))
            );
        }
        // Nothing comes twice.
        assert_eq!(subscriber.ask(&json!({"type": "ping"})).await["type"], "pong");
    }
}
