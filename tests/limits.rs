//! Limits that are only observed, and what they count.

use serde_json::json;

use crate::support::{Client, Server, http};

/// The value of a metric with its labels.
async fn metric(server: &Server, name: &str) -> u64 {
    let text = http(server.api(), "GET /metrics", &[], "").await.body;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}

const RATE: [&str; 4] = ["--rate-limit", "1", "--rate-burst", "2"];

/// Answers to messages that come faster than the rate allows.
async fn hurry(server: &Server) -> Vec<String> {
    let mut client = Client::connect(server).await;
    let mut answers = Vec::new();
    for _ in 0..5 {
        let answer = client.ask(&json!({"type": "ping"})).await;
        answers.push(answer["type"].as_str().unwrap_or_default().to_owned());
    }
    answers
}

#[tokio::test]
async fn rates_that_are_observed_are_counted_and_refuse_nothing() {
    let server = Server::start(&[&RATE[..], &["--limits", "observe"]].concat());
    assert_eq!(hurry(&server).await, ["pong"; 5]);
    assert!(metric(&server, "deeperhub_messages_limited_total{limit=\"messages\"}").await >= 1);
}

#[tokio::test]
async fn rates_that_are_enforced_are_counted_as_well() {
    let server = Server::start(&RATE);
    let answers = hurry(&server).await;
    let refused = answers.iter().filter(|answer| *answer == "error").count() as u64;
    assert!(refused >= 1, "{answers:?}");
    assert_eq!(metric(&server, "deeperhub_messages_limited_total{limit=\"messages\"}").await, refused);
}

#[tokio::test]
async fn limits_of_addresses_that_are_observed_are_counted_and_refuse_nobody() {
    let server = Server::start(&["--max-connections-per-ip", "1", "--limits", "observe"]);
    let _first = Client::connect(&server).await;
    let _second = Client::connect(&server).await;
    assert_eq!(
        metric(&server, "deeperhub_connections_limited_total{limit=\"max_connections_per_ip\"}").await,
        1
    );
}

#[tokio::test]
async fn limits_that_keep_memory_in_bounds_hold_while_others_are_observed() {
    let server = Server::start(&["--max-subscriptions", "1", "--limits", "observe"]);
    let mut client = Client::connect(&server).await;
    for (topic, expected) in [("a", "subscribed"), ("b", "error")] {
        let answer = client.ask(&json!({"type": "subscribe", "data": {"topic": topic}})).await;
        assert_eq!(answer["type"], expected, "{answer}");
    }
    assert_eq!(metric(&server, "deeperhub_messages_limited_total{limit=\"subscriptions\"}").await, 1);
}
