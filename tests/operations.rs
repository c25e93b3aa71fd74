//! Operations on all clients of a hub: disconnecting them, and ending their subscriptions.

use serde_json::json;
use tokio::task::JoinSet;

use crate::support::{Broker, Client, Engine, Issuer, Server, from_now, http, metric, with_token};

async fn subscribed(server: &Server, topics: &[&str]) -> Client {
    let mut client = Client::connect(server).await;
    for topic in topics {
        let reply = client.request(&json!({"type": "subscribe", "data": {"topic": topic}})).await;
        assert_eq!(reply["type"], "subscribed", "{reply}");
    }
    client
}

/// Checks that no message is pending, and that the connection is open.
async fn check_idle(client: &mut Client) {
    let reply = client.request(&json!({"type": "ping", "id": "idle"})).await;
    assert_eq!(reply, json!({"type": "pong", "id": "idle"}));
}

#[tokio::test]
async fn the_subscriptions_to_a_topic_end_for_all_clients() {
    let server = Server::start(&["--workers", "2"]);
    let mut subscribers = Vec::new();
    for _ in 0..4 {
        subscribers.push(subscribed(&server, &["rooms.*", "rooms.7"]).await);
    }
    let mut other = subscribed(&server, &["rooms.>", "rooms.8"]).await;
    // The pattern is a name here, so topics that it matches stay.
    for (path, topic) in [("rooms.*", "rooms.*"), ("rooms%2E7", "rooms.7")] {
        let path = format!("DELETE /v1/topics/{path}/subscriptions");
        let response = http(server.api(), &path, &[], "").await;
        assert_eq!((response.status, response.json()), (200, json!({"clients": 4})));
        let notice = json!({"type": "unsubscribed", "data": {"topic": topic}});
        for client in &mut subscribers {
            assert_eq!(client.receive().await, notice);
        }
        let again = http(server.api(), &path, &[], "").await;
        assert_eq!((again.status, again.json()), (200, json!({"clients": 0})));
    }
    let published = http(server.api(), "POST /v1/topics/rooms.7/messages", &[], "1").await;
    assert_eq!(published.json(), json!({"subscribers": 1}));
    assert_eq!(other.receive().await["data"]["message"], 1);
    for client in subscribers.iter_mut().chain([&mut other]) {
        check_idle(client).await;
    }
    assert_eq!(metric(&server, "deeperhub_subscriptions").await, 2);
    assert_eq!(metric(&server, r#"deeperhub_messages_sent_total{type="unsubscribed"}"#).await, 8);

    for topic in ["a..b", "%FF", "%24canary.0", "a*"] {
        let response = http(server.api(), &format!("DELETE /v1/topics/{topic}/subscriptions"), &[], "").await;
        let code = &response.json()["error"]["code"];
        assert_eq!((response.status, code), (400, &json!("invalid_topic")), "{topic}");
    }
    let wrong = http(server.api(), "GET /v1/topics/a/subscriptions", &[], "").await;
    assert_eq!((wrong.status, &wrong.json()["error"]["code"]), (405, &json!("method_not_allowed")));
}

#[tokio::test]
async fn all_clients_are_disconnected_and_may_reconnect() {
    const CLIENTS: usize = 1000;
    // One worker, so that disconnecting all takes several rounds.
    let server = Server::start(&["--workers", "1", "--rate-limit", "0", "--max-connections", "2000"]);
    let mut connecting = JoinSet::new();
    let (url, mut clients) = (server.url("/"), Vec::new());
    for number in 0..CLIENTS {
        let url = url.clone();
        connecting.spawn(async move { Client::connect_with(url).await.expect("it is accepted") });
        // The system's queue of new connections is short on some machines.
        if number % 50 == 49 {
            clients.append(&mut std::mem::take(&mut connecting).join_all().await);
        }
    }
    for topic in ["room", "rooms.*"] {
        for client in &mut clients {
            client.send(&json!({"type": "subscribe", "data": {"topic": topic}})).await;
        }
        for client in &mut clients {
            assert_eq!(client.receive().await["type"], "subscribed");
        }
    }
    let ended = http(server.api(), "DELETE /v1/topics/room/subscriptions", &[], "").await;
    assert_eq!((ended.status, ended.json()), (200, json!({"clients": CLIENTS})));
    let gone = http(server.api(), "DELETE /v1/clients", &[], "").await;
    assert_eq!((gone.status, gone.json()), (200, json!({"clients": CLIENTS})));
    let mut late = Client::connect(&server).await;
    for client in &mut clients {
        assert_eq!(client.receive().await, json!({"type": "unsubscribed", "data": {"topic": "room"}}));
        let (code, reason, goodbye) = client.closed().await;
        assert_eq!((code, reason.as_str()), (4003, "disconnected by the server API"));
        assert_eq!(goodbye.expect("there is a goodbye")["data"]["reconnect"], false);
    }
    // The call says nothing about clients that arrive after it.
    check_idle(&mut late).await;
    assert_eq!(metric(&server, r#"deeperhub_connections_closed_total{by="4003"}"#).await, CLIENTS as u64);
    let one = http(server.api(), "DELETE /v1/clients", &[], "").await;
    assert_eq!(one.json(), json!({"clients": 1}));
    assert_eq!(late.closed().await.0, 4003);
    // A client ID that is left out by mistake is no call for all clients.
    assert_eq!(http(server.api(), "DELETE /v1/clients/", &[], "").await.status, 404);
}

#[tokio::test]
async fn clients_without_a_required_token_are_disconnected_too() {
    let issuer = Issuer::new("a secret of this test that is long enough");
    let file = issuer.file();
    let server = Server::start(&["--auth-secret-file", &file, "--auth-required"]);
    let token = issuer.token(&json!({"sub": "ada", "exp": from_now(std::time::Duration::from_secs(600))}));
    let mut clients = [
        Client::connect(&server).await,
        Client::connect_with(with_token(&server, &token)).await.expect("the token is good"),
    ];
    let broadcast = http(server.api(), "POST /v1/broadcast", &[], r#"{"type":"x"}"#).await;
    assert_eq!(broadcast.json(), json!({"clients": 1}), "messages need a token");
    let response = http(server.api(), "DELETE /v1/clients", &[], "").await;
    assert_eq!(response.json(), json!({"clients": 2}));
    for client in &mut clients {
        assert_eq!(client.closed().await.0, 4003);
    }
}

#[tokio::test]
async fn operations_on_all_clients_need_the_key() {
    let server = Server::start(&["--api-key", "the-key-of-the-api"]);
    let mut client = subscribed(&server, &["a"]).await;
    for call in ["DELETE /v1/clients", "DELETE /v1/topics/a/subscriptions"] {
        let refused = http(server.api(), call, &[], "").await;
        assert_eq!((refused.status, &refused.json()["error"]["code"]), (401, &json!("unauthorized")));
        let foreign = ["Authorization: Bearer the-key-of-the-api", "Origin: https://elsewhere.example"];
        let refused = http(server.api(), call, &foreign, "").await;
        assert_eq!((refused.status, &refused.json()["error"]["code"]), (403, &json!("origin_not_allowed")));
    }
    check_idle(&mut client).await;
    let key = ["Authorization: Bearer the-key-of-the-api"];
    let ended = http(server.api(), "DELETE /v1/topics/a/subscriptions", &key, "").await;
    assert_eq!((ended.status, ended.json()), (200, json!({"clients": 1})));
    let gone = http(server.api(), "DELETE /v1/clients", &key, "").await;
    assert_eq!((gone.status, gone.json()), (200, json!({"clients": 1})));
}

#[tokio::test]
async fn a_batch_carries_operations_on_all_clients() {
    let server = Server::start(&["--workers", "2"]);
    let mut client = subscribed(&server, &["a"]).await;
    let batch = r#"{"calls": [
        {"unsubscribe_all": {"topic": "a..b"}},
        {"unsubscribe_all": {"topic": "a"}},
        {"unsubscribe_all": {}},
        {"disconnect_all": {"user": "ada"}},
        {"disconnect_all": {}}
    ]}"#;
    let results = http(server.api(), "POST /v1/batch", &[], batch).await.json();
    let results: Vec<_> = (0..5)
        .map(|index| {
            let result = &results["results"][index];
            (result["status"].as_u64().unwrap_or_default(), result["body"]["clients"].as_u64())
        })
        .collect();
    // An operation on a user that is written like this is refused, instead of reaching everyone.
    assert_eq!(results, [(400, None), (200, Some(1)), (400, None), (400, None), (200, Some(1))]);
    assert_eq!(client.receive().await["type"], "unsubscribed");
    assert_eq!(client.closed().await.0, 4003);
}

#[tokio::test]
async fn operations_on_all_clients_reach_every_node() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [a, b, c] = crate::cluster::nodes(&broker.url(), &[]).await;
        let mut clients = Vec::new();
        for node in [&a, &b, &b, &c] {
            clients.push(subscribed(node, &["rooms.*", "rooms.7"]).await);
        }
        let ended = http(b.api(), "DELETE /v1/topics/rooms.*/subscriptions", &[], "").await;
        // The count covers this node only.
        assert_eq!((ended.status, ended.json()), (200, json!({"clients": 2})));
        for client in &mut clients {
            assert_eq!(client.receive().await, json!({"type": "unsubscribed", "data": {"topic": "rooms.*"}}));
            check_idle(client).await;
        }
        let gone = http(a.api(), "DELETE /v1/clients", &[], "").await;
        assert_eq!((gone.status, gone.json()), (200, json!({"clients": 1})));
        for client in &mut clients {
            assert_eq!(client.closed().await.0, 4003, "{engine:?}");
        }
        let mut late = Client::connect(&c).await;
        check_idle(&mut late).await;
    }
}
