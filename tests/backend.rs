//! Server API calls beyond single sends: unsubscribe, batches, idempotency, statistics.

use serde_json::{Value, json};

use crate::support::{Client, Response, Server, http};

async fn subscribe(client: &mut Client, topic: &str) {
    let reply = client.request(&json!({"type": "subscribe", "data": {"topic": topic}})).await;
    assert_eq!(reply["type"], "subscribed", "{reply}");
}

fn check_error(response: &Response, status: u16, code: &str) {
    assert_eq!(
        (response.status, response.json()["error"]["code"].as_str()),
        (status, Some(code)),
        "{response:?}"
    );
}

#[tokio::test]
async fn a_backend_unsubscribes_a_client_and_the_client_is_notified() {
    let server = Server::start(&["--workers", "2"]);
    let mut client = Client::connect(&server).await;
    for topic in ["a/ä", "b.>"] {
        subscribe(&mut client, topic).await;
    }
    let path = format!("/v1/clients/{}/subscriptions", client.id());
    for (topic, encoded) in [("a/ä", "a%2F%C3%A4"), ("b.>", "b.%3E")] {
        let response = http(server.api(), &format!("DELETE {path}/{encoded}"), &[], "").await;
        assert_eq!((response.status, response.json()), (200, json!({"unsubscribed": true})));
        assert_eq!(client.receive().await, json!({"type": "unsubscribed", "data": {"topic": topic}}));
        let response = http(server.api(), &format!("DELETE {path}/{encoded}"), &[], "").await;
        assert_eq!((response.status, response.json()), (200, json!({"unsubscribed": false})));
    }
    let response = http(server.api(), "POST /v1/topics/b.c/messages", &[], "1").await;
    assert_eq!(response.json(), json!({"subscribers": 0}));
    let metrics = http(server.api(), "GET /metrics", &[], "").await.body;
    assert!(metrics.lines().any(|line| line == "deeperhub_subscriptions 0"), "{metrics}");

    check_error(&http(server.api(), &format!("DELETE {path}/a..b"), &[], "").await, 400, "invalid_topic");
    let nobody = http(server.api(), "DELETE /v1/clients/nobody/subscriptions/a", &[], "").await;
    check_error(&nobody, 404, "client_not_found");
    let user = http(server.api(), "DELETE /v1/users/nobody/subscriptions/a", &[], "").await;
    assert_eq!((user.status, user.json()), (200, json!({"clients": 0})));
}

#[tokio::test]
async fn a_batch_runs_in_order_with_a_result_for_each_call() {
    let server = Server::start(&["--max-message-bytes", "100"]);
    let mut client = Client::connect(&server).await;
    subscribe(&mut client, "a").await;
    let batch = format!(
        r#"{{"calls": [
            {{"publish": {{"topic": "a", "message": {{"n" : 1.0,"n":2}} }}}},
            {{"publish": {{"topic": "a.*", "message": 1}}}},
            {{"send_to_client": {{"client_id": "{id}", "message": {{"type":"hello"}}}}}},
            {{"send_to_client": {{"client_id": "nobody", "message": {{"type":"hello"}}}}}},
            {{"send_to_user": {{"user": "nobody", "message": {{"type":"hello"}}}}}},
            {{"broadcast": {{"message": {{"no":"type"}}}}}},
            {{"publish": {{"topic": "a", "message": "{long}"}}}},
            {{"paint": {{}}}},
            {{"topic": {{"topic": "a"}}}},
            {{"unsubscribe_client": {{"client_id": "{id}", "topic": "a"}}}},
            {{"client": {{"client_id": "{id}"}}}},
            {{"broadcast": {{"message": {{"type":"last"}}}}}},
            {{"disconnect": {{"client_id": "{id}"}}}}
        ]}}"#,
        id = client.id(),
        long = "x".repeat(100),
    );
    let response = http(server.api(), "POST /v1/batch", &[], &batch).await;
    assert_eq!(response.status, 200, "{response:?}");
    let response = response.json();
    let results: Vec<_> = response["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| match &result["body"]["error"]["code"] {
            Value::String(code) => format!("{} {code}", result["status"]),
            _ => {
                let mut body = result["body"].clone();
                // The state of the connection varies.
                let connection = body.as_object_mut().and_then(|body| body.remove("connection"));
                assert_eq!(connection.is_some(), body["client_id"].is_string(), "{result}");
                format!("{} {body}", result["status"])
            }
        })
        .collect();
    let one =
        format!(r#"200 {{"client_id":"{}","positions":[],"subscriptions":[],"user":null}}"#, client.id());
    assert_eq!(
        results,
        [
            r#"200 {"subscribers":1}"#,
            "400 invalid_topic",
            "200 {}",
            "404 client_not_found",
            r#"200 {"clients":0}"#,
            "400 invalid_message",
            "413 message_too_big",
            "400 invalid_message",
            r#"200 {"subscribers":1,"topic":"a"}"#,
            r#"200 {"unsubscribed":true}"#,
            &one,
            r#"200 {"clients":1}"#,
            "200 {}",
        ]
    );
    // Deliveries are not ordered with a backend's other calls, so an unsubscribe may overtake one.
    let mut received = Vec::new();
    while received.last().is_none_or(|last| last != "last") {
        let kind = client.receive().await["type"].as_str().unwrap_or_default().to_owned();
        if kind != "message" {
            received.push(kind);
        }
    }
    assert_eq!(received, ["hello", "unsubscribed", "last"]);
    assert_eq!(client.closed().await.0, 4003);
}

#[tokio::test]
async fn batches_have_limits_of_their_own() {
    let server =
        Server::start(&["--max-message-bytes", "60", "--max-batch-calls", "2", "--max-batch-bytes", "300"]);
    let call = r#"{"publish":{"topic":"a","message":"some text that is not short"}}"#;
    for (calls, status, code) in
        [(0, 400, Some("invalid_message")), (2, 200, None), (3, 400, Some("invalid_message"))]
    {
        let body = format!(r#"{{"calls":[{}]}}"#, vec![call; calls].join(","));
        let response = http(server.api(), "POST /v1/batch", &[], &body).await;
        assert_eq!(
            (response.status, response.json()["error"]["code"].as_str()),
            (status, code),
            "{response:?}"
        );
    }
    let body = format!(r#"{{"calls":[{call}{}]}}"#, " ".repeat(300));
    check_error(&http(server.api(), "POST /v1/batch", &[], &body).await, 413, "message_too_big");
    check_error(&http(server.api(), "POST /v1/batch", &[], "{").await, 400, "invalid_json");
    check_error(&http(server.api(), "POST /v1/batch", &[], "[]").await, 400, "invalid_message");
    check_error(&http(server.api(), "GET /v1/batch", &[], "").await, 405, "method_not_allowed");
}

#[tokio::test]
async fn a_publish_with_an_idempotency_key_happens_once() {
    let server = Server::start(&[]);
    let mut client = Client::connect(&server).await;
    subscribe(&mut client, "a").await;
    let publish = async |key: &str, topic: &str, body: &str| {
        let header = format!("Idempotency-Key: {key}");
        http(server.api(), &format!("POST /v1/topics/{topic}/messages"), &[&header], body).await
    };
    let first = publish("k-1", "a", "1").await;
    let second = publish("k-1", "a", "1").await;
    assert_eq!((first.status, first.json()), (200, json!({"subscribers": 1})));
    assert_eq!((second.status, second.json()), (200, json!({"subscribers": 1})));
    assert_eq!(
        (first.header("idempotency-replayed"), second.header("idempotency-replayed")),
        (None, Some("true"))
    );
    check_error(&publish("k-1", "a", "2").await, 422, "idempotency_key_reused");
    check_error(&publish("k-1", "b", "1").await, 422, "idempotency_key_reused");
    check_error(&publish("two words", "a", "1").await, 400, "invalid_message");
    assert_eq!(publish("k-2", "a", "2").await.status, 200);

    // A failed call is not remembered.
    check_error(&publish("k-3", "a", "{").await, 400, "invalid_json");
    assert_eq!(publish("k-3", "a", "3").await.status, 200);
    let batch = r#"{"calls":[
        {"publish":{"topic":"a","message":3,"idempotency_key":"k-3"}},
        {"publish":{"topic":"a","message":4,"idempotency_key":"k-4"}},
        {"publish":{"topic":"a","message":4,"idempotency_key":"k-4"}},
        {"publish":{"topic":"a","message":5,"idempotency_key":"k-4"}}
    ]}"#;
    let results = http(server.api(), "POST /v1/batch", &[], batch).await.json();
    let statuses: Vec<_> =
        results["results"].as_array().unwrap().iter().map(|result| &result["status"]).collect();
    assert_eq!(statuses, [200, 200, 200, 422], "{results}");

    for expected in 1..5 {
        assert_eq!(client.receive().await["data"]["message"], expected);
    }
    let echo = json!({"type": "echo", "data": "end"});
    assert_eq!(client.request(&echo).await, echo, "nothing was delivered twice");
}

#[tokio::test]
async fn stats_report_the_numbers_of_a_node() {
    let server = Server::start(&["--node-id", "numbers", "--workers", "2", "--max-connections", "7"]);
    let mut client = Client::connect(&server).await;
    subscribe(&mut client, "a").await;
    client.request(&json!({"type": "nonsense"})).await;
    let stats = http(server.api(), "GET /v1/stats", &[], "").await;
    assert_eq!(stats.status, 200, "{stats:?}");
    let stats = stats.json();
    for (pointer, expected) in [
        ("/node_id", json!("numbers")),
        ("/phase", json!("serving")),
        ("/workers", json!(2)),
        ("/connections/active", json!(1)),
        ("/connections/max", json!(7)),
        ("/connections/accepted_total", json!(1)),
        ("/subscriptions", json!(1)),
        ("/topics", json!(1)),
        ("/messages/received_total", json!(2)),
        ("/messages/sent_total", json!(3)),
        ("/messages/errors_total", json!(1)),
        ("/canary/failing_workers", json!(0)),
    ] {
        assert_eq!(stats.pointer(pointer), Some(&expected), "{pointer} of {stats}");
    }
    assert!(
        stats["canary"]["round_trip_us"].is_u64() && stats["process"]["resident_bytes"].is_u64(),
        "{stats}"
    );
    assert!(stats["bytes"]["received_total"].as_u64() > Some(100), "{stats}");
}

#[tokio::test]
async fn the_busiest_topics_and_clients_are_reported() {
    let server = Server::start(&["--workers", "2", "--rate-limit", "0"]);
    let mut clients = [Client::connect(&server).await, Client::connect(&server).await];
    for client in &mut clients {
        subscribe(client, "hot").await;
    }
    let top = async |query: &str| http(server.api(), &format!("GET /v1/top{query}"), &[], "").await;
    let before = top("").await.json();
    assert_eq!((&before["topics"], &before["clients"]), (&json!([]), &json!([])), "before the first query");
    // A worker counts topics only after it has noticed the query.
    let mut found = Value::Null;
    crate::support::wait_for("the busiest topic", async {
        while found["topics"][0]["deliveries"].as_u64() < Some(20) {
            for _ in 0..5 {
                clients[0].send(&json!({"type": "publish", "data": {"topic": "hot", "message": 1}})).await;
                http(server.api(), "POST /v1/topics/cold/messages", &[], "1").await;
            }
            found = top("?limit=1").await.json();
        }
    })
    .await;
    assert_eq!(found["topics"][0]["topic"], "hot", "{found}");
    assert_eq!(found["topics"].as_array().map(Vec::len), Some(1));
    assert_eq!(found["clients"][0]["client_id"], clients[0].id(), "{found}");
    assert!(top("").await.json()["topics"].as_array().is_some_and(|topics| topics.len() == 2));
    check_error(&top("?limit=0").await, 400, "invalid_message");
}

#[tokio::test]
async fn readiness_probes_are_invisible_to_clients() {
    let server = Server::start(&["--canary-interval", "10ms"]);
    let mut client = Client::connect(&server).await;
    subscribe(&mut client, ">").await;
    let probes = async || {
        let metrics = http(server.api(), "GET /metrics", &[], "").await.body;
        let count = metrics
            .lines()
            .find_map(|line| line.strip_prefix("deeperhub_canary_round_trip_seconds_count ")?.parse().ok());
        count.unwrap_or(0_u64)
    };
    let before = probes().await;
    crate::support::wait_for("more probes", async { while probes().await < before + 5 {} }).await;
    let echo = json!({"type": "echo", "data": "first"});
    assert_eq!(client.request(&echo).await, echo, "no probe came");
    let topics = http(server.api(), "GET /v1/topics", &[], "").await.json();
    assert_eq!(topics, json!({"topics": [{"topic": ">", "subscribers": 1}]}));
    check_error(&http(server.api(), "GET /v1/topics/%24canary.0", &[], "").await, 400, "invalid_topic");
    let subscribe = json!({"type": "subscribe", "data": {"topic": "$canary.0"}});
    assert_eq!(client.request(&subscribe).await["data"]["code"], "invalid_topic");
    assert_eq!(http(server.api(), "GET /health/ready", &[], "").await.json(), json!({"status": "ready"}));
}

#[tokio::test]
async fn a_draining_node_says_why_it_is_not_ready() {
    let server = Server::start(&["--drain-timeout", "1h"]);
    let client = Client::connect(&server).await;
    server.signal("TERM");
    let response = crate::support::wait_for("the drain", async {
        loop {
            let response = http(server.api(), "GET /health/ready", &[], "").await;
            if response.status == 503 {
                break response.json();
            }
        }
    })
    .await;
    assert_eq!(response["error"]["code"], "draining", "{response}");
    assert_eq!(response["reasons"][0]["check"], "phase", "{response}");
    assert_eq!(http(server.api(), "GET /health/live", &[], "").await.status, 200);
    server.signal("TERM");
    drop(client);
}
