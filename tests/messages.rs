//! Messages of clients and their replies.

use serde_json::{Value, json};

use crate::support::{Client, Server, http};

async fn subscribed(server: &Server, topics: &[&str]) -> Client {
    let mut client = Client::connect(server).await;
    for topic in topics {
        let reply = client.request(&json!({"type": "subscribe", "data": {"topic": topic}})).await;
        assert_eq!(reply, json!({"type": "subscribed", "data": {"topic": topic}}));
    }
    client
}

fn publish(topic: &str, message: &Value) -> Value {
    json!({"type": "publish", "id": 1, "data": {"topic": topic, "message": message}})
}

#[tokio::test]
async fn a_welcome_has_the_client_id_and_the_limits() {
    let server = Server::start(&["--max-message-bytes", "1000", "--ping-interval", "7s"]);
    let client = Client::connect(&server).await;
    let data = &client.welcome["data"];
    assert!(!client.id().is_empty());
    assert_eq!(data["version"], env!("CARGO_PKG_VERSION"));
    let limits = json!({
        "max_message_bytes": 1000,
        "max_delivery_bytes": data["limits"]["max_delivery_bytes"],
        "max_subscriptions": 128,
        "ping_interval_ms": 7000,
    });
    assert_eq!(data["limits"], limits);
}

#[tokio::test]
async fn the_longest_delivery_is_as_long_as_the_welcome_says() {
    let server = Server::start(&["--max-message-bytes", "1000"]);
    let topic = "\"".repeat(255);
    let mut client = subscribed(&server, &[&topic]).await;
    let announced = client.welcome["data"]["limits"]["max_delivery_bytes"].as_u64().expect("it is a number");
    // A backend's publish has the longest payload. Each byte of topic and `tracestate` is escaped.
    let traceparent = "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let tracestate = format!("tracestate: {}", "\\".repeat(512));
    let call = format!("POST /v1/topics/{}/messages", "%22".repeat(255));
    let body = format!("  {}\n", "7".repeat(997));
    for (body, expected) in [("7".repeat(1000), announced), (body, announced - 3)] {
        let response = http(server.api(), &call, &[traceparent, &tracestate], &body).await;
        assert_eq!(response.status, 200, "{response:?}");
        assert_eq!(client.receive_text().await.len() as u64, expected);
    }
    let response = http(server.api(), &call, &[], &"7".repeat(1001)).await;
    assert_eq!(response.status, 413, "{response:?}");
    let raw = format!(r#"{{"type":"x","data":"{}"}}"#, "y".repeat(1000 - 22));
    assert_eq!(raw.len(), 1000);
    let response = http(server.api(), &format!("POST /v1/clients/{}/messages", client.id()), &[], &raw).await;
    assert_eq!(response.status, 200, "{response:?}");
    assert!((client.receive_text().await.len() as u64) < announced);
}

#[tokio::test]
async fn null_for_an_optional_field_counts_as_absent() {
    let server = Server::start(&[]);
    let mut client = subscribed(&server, &["a"]).await;
    let text =
        r#"{"type":"publish","id":null,"meta":null,"data":{"topic":"a","message":1,"exclude_self":null}}"#;
    client.send_text(text).await;
    assert_eq!(client.receive().await["data"]["message"], 1);
    let pong = client.request(&json!({"type": "ping", "id": null, "data": null, "meta": null})).await;
    assert_eq!(pong, json!({"type": "pong"}));
    let call = json!({"publish": {"topic": "a", "message": 2, "idempotency_key": null}});
    let response =
        http(server.api(), "POST /v1/batch", &[], &json!({ "calls": [call] }).to_string()).await.json();
    assert_eq!(response["results"][0]["status"], 200, "{response}");
    assert_eq!(client.receive().await["data"]["message"], 2);
}

#[tokio::test]
async fn payloads_are_echoed_byte_for_byte() {
    let server = Server::start(&[]);
    let mut client = Client::connect(&server).await;
    let payload = r#"{"b":1.0,"a" : 12345678901234567890.10e5,"s":"\u00e9é"}"#;
    client.send_text(&format!(r#"{{"type":"echo","id":"\u0061","data":{payload}}}"#)).await;
    let reply = {
        use futures_util::StreamExt;
        client.socket.next().await.unwrap().unwrap().into_text().unwrap()
    };
    assert_eq!(reply.as_str(), format!(r#"{{"type":"echo","id":"\u0061","data":{payload}}}"#));
}

#[tokio::test]
async fn a_publish_reaches_every_subscriber_once() {
    let server = Server::start(&["--workers", "2"]);
    let mut exact = subscribed(&server, &["a.b"]).await;
    let mut overlapping = subscribed(&server, &["a.b", "a.*", "a.>"]).await;
    let mut other = subscribed(&server, &["a.c"]).await;
    let mut publisher = Client::connect(&server).await;

    let reply = publisher.request(&publish("a.b", &json!({"n": 1}))).await;
    assert_eq!(reply, json!({"type": "published", "id": 1, "data": {"topic": "a.b", "subscribers": 4}}));
    let delivery =
        json!({"type": "message", "data": {"topic": "a.b", "message": {"n": 1}, "from": publisher.id()}});
    assert_eq!(exact.receive().await, delivery);
    assert_eq!(overlapping.receive().await, delivery);
    for client in [&mut exact, &mut overlapping, &mut other] {
        // Nothing arrives before the reply.
        assert_eq!(client.request(&json!({"type": "ping", "id": 9})).await, json!({"type": "pong", "id": 9}));
    }
}

#[tokio::test]
async fn a_publisher_gets_its_own_message_unless_it_excludes_itself() {
    let server = Server::start(&[]);
    let mut client = subscribed(&server, &["t", ">"]).await;
    client.send(&publish("t", &json!(1))).await;
    let mut both = [client.receive().await, client.receive().await];
    both.sort_by_key(|message| message["type"] == "message");
    assert_eq!(both[0]["data"]["subscribers"], 2);
    assert_eq!(both[1]["data"]["message"], 1);

    let excluded =
        json!({"type": "publish", "id": 2, "data": {"topic": "t", "message": 2, "exclude_self": true}});
    let reply = client.request(&excluded).await;
    assert_eq!(reply["data"]["subscribers"], 0);
    assert_eq!(client.request(&json!({"type": "ping"})).await["type"], "pong");
}

#[tokio::test]
async fn no_message_follows_unsubscribed() {
    let server = Server::start(&[]);
    let mut client = subscribed(&server, &["t"]).await;
    let reply = client.request(&json!({"type": "unsubscribe", "id": "x", "data": {"topic": "t"}})).await;
    assert_eq!(reply, json!({"type": "unsubscribed", "id": "x", "data": {"topic": "t"}}));
    assert_eq!(client.request(&publish("t", &json!(1))).await["data"]["subscribers"], 0);
    assert_eq!(client.request(&json!({"type": "ping"})).await["type"], "pong");
}

#[tokio::test]
async fn an_invalid_message_gets_an_error_and_the_next_one_works() {
    let server = Server::start(&[]);
    let mut client = Client::connect(&server).await;
    for (text, code, field) in [
        ("{", "invalid_json", Value::Null),
        ("[]", "invalid_message", Value::Null),
        (r#"{"type":"nonsense"}"#, "unknown_type", json!("type")),
        (r#"{"type":"subscribe","data":{"topic":"a b"}}"#, "invalid_topic", json!("topic")),
        (r#"{"type":"publish","data":{"topic":"a.*","message":1}}"#, "invalid_topic", json!("topic")),
        (r#"{"type":"subscribe","data":{}}"#, "invalid_message", json!("topic")),
        (r#"{"type":"authenticate","data":{"token":"x"}}"#, "token_invalid", Value::Null),
    ] {
        client.send_text(text).await;
        let error = client.receive().await;
        assert_eq!(
            (&error["type"], &error["data"]["code"]),
            (&json!("error"), &json!(code)),
            "{text}: {error}"
        );
        assert_eq!(error["data"]["field"], field, "{text}: {error}");
    }
    assert_eq!(client.request(&json!({"type": "echo", "data": 1})).await["data"], 1);
}

#[tokio::test]
async fn messages_of_a_topic_have_the_same_order_for_all_subscribers() {
    const PUBLISHES: u64 = 200;
    let server = Server::start(&["--workers", "2", "--rate-limit", "0"]);
    let mut subscribers = Vec::new();
    for _ in 0..4 {
        subscribers.push(subscribed(&server, &["t"]).await);
    }
    let publishers: Vec<_> = {
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(Client::connect(&server).await);
        }
        clients
    };
    let tasks: Vec<_> = publishers
        .into_iter()
        .enumerate()
        .map(|(publisher, mut client)| {
            tokio::spawn(async move {
                for n in 0..PUBLISHES {
                    let data = json!({"topic": "t", "message": [publisher, n]});
                    client.send(&json!({"type": "publish", "data": data})).await;
                }
                client.request(&json!({"type": "ping"})).await;
            })
        })
        .collect();
    let mut orders = Vec::new();
    for client in &mut subscribers {
        let mut order = Vec::new();
        for _ in 0..PUBLISHES * 3 {
            order.push(client.receive().await["data"]["message"].clone());
        }
        orders.push(order);
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert!(orders.windows(2).all(|pair| pair[0] == pair[1]));
    for publisher in 0..3 {
        let own: Vec<_> =
            orders[0].iter().filter(|m| m[0] == publisher).map(|m| m[1].as_u64().unwrap()).collect();
        assert_eq!(own, (0..PUBLISHES).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn subscriptions_are_limited() {
    let server = Server::start(&["--max-subscriptions", "2"]);
    let mut client = subscribed(&server, &["a", "b.*"]).await;
    let error = client.request(&json!({"type": "subscribe", "id": 5, "data": {"topic": "c"}})).await;
    assert_eq!((&error["id"], &error["data"]["code"]), (&json!(5), &json!("too_many_subscriptions")));
    assert_eq!(
        client.request(&json!({"type": "subscribe", "data": {"topic": "a"}})).await["type"],
        "subscribed"
    );
}

#[tokio::test]
async fn a_client_that_keeps_violating_the_rate_limit_is_closed_with_1008() {
    let server = Server::start(&["--rate-limit", "1", "--rate-burst", "2"]);
    let mut client = Client::connect(&server).await;
    let mut refused = 0;
    for n in 0..20 {
        client.send(&json!({"type": "ping", "id": n})).await;
    }
    let (code, _, goodbye) = loop {
        use futures_util::StreamExt;
        let message = client.socket.next().await.unwrap().unwrap();
        let value: Value = serde_json::from_str(message.to_text().unwrap()).unwrap();
        match value["type"].as_str() {
            Some("error") => {
                assert_eq!(value["data"]["code"], "rate_limited");
                assert!(value["data"]["retry_after_ms"].as_u64().unwrap() > 0);
                refused += 1;
            }
            Some("goodbye") => {
                let (code, reason, _) = client.closed().await;
                break (code, reason, value);
            }
            _ => {}
        }
    };
    assert_eq!((code, refused), (1008, 10));
    assert_eq!(goodbye["data"]["reconnect"], true);
}

#[tokio::test]
async fn a_message_over_the_limit_is_closed_with_1009() {
    let server = Server::start(&["--max-message-bytes", "100"]);
    let mut client = Client::connect(&server).await;
    client.send_text(&"x".repeat(101)).await;
    assert_eq!(client.closed().await.0, 1009);
}

/// The example client of `deeperhub-protocol`.
#[allow(dead_code)]
#[path = "../crates/deeperhub-protocol/examples/client.rs"]
mod example_client;

#[tokio::test]
async fn the_example_client_receives_its_own_message() {
    let server = Server::start(&[]);
    let url = server.url("/ws");
    let run = move || {
        let mut printed = Vec::new();
        example_client::run(&url, &mut printed).expect("the example succeeds");
        String::from_utf8(printed).expect("messages are text")
    };
    let printed = tokio::task::spawn_blocking(run).await.expect("the example does not panic");
    let received: Vec<Value> =
        printed.lines().map(|line| serde_json::from_str(line).expect("a message is JSON")).collect();
    assert_eq!(received.len(), 4, "{printed}");
    assert_eq!((&received[0]["type"], &received[1]["type"]), (&json!("welcome"), &json!("subscribed")));
    let mut rest: Vec<_> = received[2..].iter().map(|message| message["type"].as_str()).collect();
    rest.sort_unstable();
    assert_eq!(rest, [Some("message"), Some("published")]);
    let delivery = received.iter().find(|message| message["type"] == "message").expect("it was delivered");
    assert_eq!(delivery["data"]["message"], json!({"score": "2:1"}));
}
