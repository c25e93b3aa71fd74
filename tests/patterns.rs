//! Patterns that overlap as much as possible: they must not delay other clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Client, Server, wait_for};

/// Patterns per client; the default `--max-subscriptions`.
const PATTERNS: usize = 128;

/// Clients that subscribe to the patterns.
const CLIENTS: usize = 10;

/// Levels of the longest topic.
const LEVELS: usize = 128;

/// Returns a topic that matches all patterns up to the last level, which is `last`.
fn deep_topic(last: &str) -> String {
    "a.".repeat(LEVELS - 1) + last
}

/// Connects a client with [`PATTERNS`] patterns that differ from all others in their first levels
/// and end in `last`.
async fn subscriber(server: &Server, client: usize, last: &str) -> Client {
    let mut connection = Client::connect(server).await;
    for number in client * PATTERNS..(client + 1) * PATTERNS {
        let first: String = (0..16).map(|level| if number >> level & 1 == 0 { "a." } else { "*." }).collect();
        let name = first + &"*.".repeat(LEVELS - 17) + last;
        let response = connection.request(&json!({"type": "subscribe", "data": {"topic": name}})).await;
        assert_eq!(response["type"], "subscribed", "{response}");
    }
    connection
}

/// An echo client that counts replies until it is stopped.
struct EchoClient {
    is_over: Arc<AtomicBool>,
    echoes: tokio::task::JoinHandle<usize>,
}

impl EchoClient {
    async fn start(server: &Server) -> Self {
        let mut client = Client::connect(server).await;
        let is_over = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&is_over);
        let echoes = tokio::spawn(async move {
            let mut echoes = 0;
            while !stop.load(Ordering::Relaxed) {
                let echo = json!({"type": "echo", "id": echoes, "data": "y"});
                assert_eq!(client.request(&echo).await, echo);
                echoes += 1;
            }
            echoes
        });
        Self { is_over, echoes }
    }

    async fn stop(self) -> usize {
        self.is_over.store(true, Ordering::Relaxed);
        self.echoes.await.expect("the healthy client's echoes were answered")
    }
}

/// Publishes `count` numbers as fast as the server reads them, and returns the reply to the last
/// one.
async fn publish(server: &Server, topic: &str, count: usize) -> Value {
    let mut publisher = Client::connect(server).await;
    for number in 0..count {
        let mut publish = json!({"type": "publish", "data": {"topic": topic, "message": number}});
        if number + 1 == count {
            publish["id"] = json!(number);
        }
        publisher.send(&publish).await;
    }
    publisher.receive().await
}

#[tokio::test]
async fn nearly_matching_topics_do_not_delay_other_clients() {
    const PUBLISHES: usize = 1_000;
    const ECHOES: usize = 3;
    /// CPU time per publish in a debug build. Matching each level of each pattern takes several
    /// times as long.
    const MAX_CPU_PER_PUBLISH: Duration = Duration::from_millis(4);
    let server = Server::start(&["--workers", "1", "--rate-limit", "0"]);
    let mut subscribers = Vec::new();
    for client in 0..CLIENTS {
        subscribers.push(subscriber(&server, client, "x").await);
    }
    let echo_client = EchoClient::start(&server).await;
    let before = server.processor_time();
    let published = wait_for("the end of all publishes", publish(&server, &deep_topic("a"), PUBLISHES)).await;
    let taken = server.processor_time() - before;
    // Echoes that returned during the publishes.
    let echoes = echo_client.stop().await;
    assert_eq!(published["data"]["subscribers"], 0, "{published}");

    assert!(echoes >= ECHOES, "{echoes} echoes during {PUBLISHES} publishes");
    assert!(
        taken < MAX_CPU_PER_PUBLISH * PUBLISHES as u32,
        "{taken:?} of CPU time for {PUBLISHES} publishes"
    );
}

#[tokio::test]
async fn messages_that_match_many_patterns_arrive_once() {
    const PUBLISHES: usize = 100;
    let server = Server::start(&["--workers", "2", "--rate-limit", "0"]);
    let mut subscribers = Vec::new();
    for client in 0..CLIENTS {
        subscribers.push(subscriber(&server, client, "*").await);
    }
    let topic = deep_topic("a");
    let published = publish(&server, &topic, PUBLISHES).await;
    assert_eq!(published["data"]["subscribers"], CLIENTS * PATTERNS, "{published}");
    for subscriber in &mut subscribers {
        for number in 0..PUBLISHES {
            let message = subscriber.receive().await;
            assert_eq!(
                (&message["data"]["topic"], &message["data"]["message"]),
                (&json!(topic), &json!(number))
            );
        }
        // No message is delivered twice.
        assert_eq!(subscriber.request(&json!({"type": "ping"})).await["type"], "pong");
    }
}
