//! A rolling upgrade: nodes of an earlier version and nodes of this one form one hub. The variable
//! `DEEPERHUB_OLD_BINARY` names the program of the earlier version.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::faults::{Publisher, check_order, read_numbers};
use super::{
    check_no_message, eventually, metric, names_of_nodes, node, node_of, publish, read_until_end, subscribe,
    subscribed, wait_until_linked, wait_until_ready,
};
use crate::support::{
    Broker, Client, Engine, Issuer, Server, from_now, http, old_binary, wait_for, with_token,
};

/// Starts a node of the earlier version, named `old`, and one of this version, named `new`. With
/// Redis, the new one is there first, as before a downgrade.
async fn mixed_hub(program: &Path, broker: &Broker, flags: &[&str]) -> [Server; 2] {
    let url = broker.url();
    let hub = match broker.engine {
        Engine::Nats => [node_of(program, &url, "old", flags), node(&url, "new", flags)],
        Engine::Redis => {
            let new = node(&url, "new", flags);
            wait_until_ready(&new).await;
            [node_of(program, &url, "old", flags), new]
        }
    };
    for node in &hub {
        wait_until_ready(node).await;
        eventually("both nodes", async || names_of_nodes(node).await == ["new", "old"]).await;
    }
    hub
}

async fn call(node: &Server, request: &str, body: &str) -> (u16, Value) {
    let response = http(node.api(), request, &[], body).await;
    (response.status, response.json())
}

/// Runs every call on `from` that concerns clients of `to`.
async fn check_calls(from: &Server, to: &Server, name_of_to: &str, issuer: &Issuer) {
    let token = |user: &str| issuer.token(&json!({"sub": user, "exp": from_now(Duration::from_secs(600))}));
    let mut client = subscribed(to, &["t", "rooms.>"]).await;
    wait_until_linked(from, "t", &mut client).await;
    let payload = r#"{"b" : 1.0,"a":12345678901234567890.10e5}"#;
    publish(from, "rooms.7", payload).await;
    assert_eq!(client.receive().await["data"]["topic"], "rooms.7");
    publish(from, "t", "\"end\"").await;
    assert!(read_until_end(&mut client).await.is_empty(), "each message comes once");

    let user = Client::connect_with(with_token(to, &token("zoé"))).await.expect("the token is good");
    let mut user = subscribe(user, &["rooms.>"]).await;
    let id = client.id().to_owned();
    let hello = r#"{"type":"hello","n":1}"#;
    assert_eq!(call(from, &format!("POST /v1/clients/{id}/messages"), hello).await, (200, json!({})));
    assert_eq!(client.receive().await, json!({"type": "hello", "n": 1}));
    let none = json!({"clients": 0});
    assert_eq!(call(from, "POST /v1/users/zo%C3%A9/messages", hello).await, (200, none.clone()));
    assert_eq!(user.receive().await, json!({"type": "hello", "n": 1}));
    assert_eq!(call(from, "POST /v1/broadcast", r#"{"type":"all"}"#).await, (200, none.clone()));
    for client in [&mut client, &mut user] {
        assert_eq!(client.receive().await, json!({"type": "all"}));
    }
    let found = call(from, &format!("GET /v1/clients/{id}"), "").await;
    assert_eq!((found.0, &found.1["client_id"]), (200, &json!(id)));

    // Answers between nodes tell the three outcomes apart.
    let unsubscribe = format!("DELETE /v1/clients/{id}/subscriptions/t");
    assert_eq!(call(from, &unsubscribe, "").await, (200, json!({"unsubscribed": true})));
    assert_eq!(client.receive().await, json!({"type": "unsubscribed", "data": {"topic": "t"}}));
    assert_eq!(call(from, &unsubscribe, "").await, (200, json!({"unsubscribed": false})));
    let nobody = format!("{name_of_to}.0-99-1");
    for request in [
        format!("POST /v1/clients/{nobody}/messages"),
        format!("DELETE /v1/clients/{nobody}/subscriptions/t"),
        format!("DELETE /v1/clients/{nobody}"),
    ] {
        assert_eq!(call(from, &request, hello).await.0, 404, "{request}");
    }
    let of_user = "DELETE /v1/users/zo%C3%A9/subscriptions/rooms.%3E";
    assert_eq!(call(from, of_user, "").await, (200, none.clone()));
    assert_eq!(user.receive().await, json!({"type": "unsubscribed", "data": {"topic": "rooms.>"}}));

    // Lists and counts of the whole hub.
    let rooms = call(from, "GET /v1/topics/rooms.%3E?scope=cluster", "").await.1;
    assert_eq!(rooms, json!({"topic": "rooms.>", "subscribers": 1, "unanswered": []}));
    let topics = call(from, "GET /v1/topics?scope=cluster", "").await.1;
    assert_eq!((&topics["topics"][0]["topic"], &topics["unanswered"]), (&json!("rooms.>"), &json!([])));
    let clients = call(from, "GET /v1/clients?scope=cluster", "").await.1;
    assert_eq!((clients["clients"].as_array().map(Vec::len), &clients["unanswered"]), (Some(2), &json!([])));
    let stats = call(from, "GET /v1/stats?scope=cluster", "").await.1;
    assert_eq!((&stats["nodes"], &stats["connections"]["active"]), (&json!(2), &json!(2)), "{stats}");

    assert_eq!(call(from, &format!("DELETE /v1/clients/{id}"), "").await, (200, json!({})));
    assert_eq!(client.closed().await.0, 4003);
    assert_eq!(call(from, "DELETE /v1/users/zo%C3%A9", "").await, (200, none));
    assert_eq!(user.closed().await.0, 4003);
    eventually("no clients", async || {
        call(from, "GET /v1/clients?scope=cluster", "").await.1["clients"] == json!([])
    })
    .await;
}

#[tokio::test]
async fn nodes_of_two_versions_form_one_hub() {
    let Some(program) = old_binary() else { return };
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let issuer = Issuer::new("a secret that nodes of one hub share, and nobody else");
        let [old, new] = mixed_hub(&program, &broker, &["--auth-secret-file", &issuer.file()]).await;
        check_calls(&old, &new, "new", &issuer).await;
        check_calls(&new, &old, "old", &issuer).await;
        for node in [&old, &new] {
            assert_eq!(metric(node, "deeperhub_cluster_invalid_total").await, 0, "{engine:?}");
            assert_eq!(metric(node, "deeperhub_cluster_dropped_total").await, 0, "{engine:?}");
        }

        // Calls that the earlier version does not have reach clients of new nodes only. The old
        // node ignores them, and goes on.
        let mut on_old = subscribed(&old, &["t"]).await;
        let mut on_new = subscribed(&new, &["t"]).await;
        for client in [&mut on_old, &mut on_new] {
            wait_until_linked(&new, "t", client).await;
        }
        publish(&new, "t", "\"end\"").await;
        for client in [&mut on_old, &mut on_new] {
            read_until_end(client).await;
        }
        let ended = call(&new, "DELETE /v1/topics/t/subscriptions", "").await;
        assert_eq!(ended, (200, json!({"clients": 1})));
        assert_eq!(on_new.receive().await["type"], "unsubscribed");
        assert_eq!(call(&new, "DELETE /v1/clients", "").await, (200, json!({"clients": 1})));
        assert_eq!(on_new.closed().await.0, 4003);
        let has_calls = call(&old, "DELETE /v1/topics/none/subscriptions", "").await.0 == 200;
        if has_calls {
            // The program is of a version that has these calls already.
            assert_eq!(on_old.closed().await.0, 4003);
        } else {
            publish(&new, "t", "\"end\"").await;
            assert!(read_until_end(&mut on_old).await.is_empty());
            check_no_message(&mut on_old).await;
            assert_eq!(metric(&old, "deeperhub_cluster_invalid_total").await, 2, "{engine:?}");
        }
        check_calls_again(&old, &new).await;
    }
}

/// Checks that both nodes still reach each other.
async fn check_calls_again(old: &Server, new: &Server) {
    for (from, to) in [(old, new), (new, old)] {
        let mut client = Client::connect(to).await;
        let send = format!("POST /v1/clients/{}/messages", client.id());
        assert_eq!(call(from, &send, r#"{"type":"last"}"#).await, (200, json!({})));
        assert_eq!(client.receive().await, json!({"type": "last"}));
    }
}

#[tokio::test]
async fn an_old_node_is_replaced_while_publishers_run() {
    const FLAGS: &[&str] = &["--drain-timeout", "1s"];
    let Some(program) = old_binary() else { return };
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [mut old, new] = mixed_hub(&program, &broker, FLAGS).await;
        let mut staying = subscribed(&new, &["of.old", "of.new"]).await;
        let mut local = subscribed(&new, &["of.new"]).await;
        let mut moving = subscribed(&old, &["of.new"]).await;
        wait_until_linked(&old, "of.old", &mut staying).await;
        wait_until_linked(&new, "of.new", &mut moving).await;
        let mut publisher_of_old = Publisher::new(&old, "of.old").await;
        publisher_of_old.publish_many(200).await;
        // All of them reach the other node: the old one flushes when it stops.
        let all: Vec<_> = (0..200).collect();
        assert_eq!(read_numbers(&mut staying, 199).await, all);

        let mut publisher = Publisher::new(&new, "of.new").await;
        publisher.publish_many(50).await;
        old.signal("TERM");
        wait_for("the drain", async {
            while !old.stderr().contains("Server stopped") {
                publisher.publish().await;
            }
        })
        .await;
        assert!(old.wait().success());
        assert_eq!(wait_for("the end", moving.closed()).await.0, 1001);

        let replacement = node(&broker.url(), "old", FLAGS);
        wait_for("the replacement", async {
            while names_of_nodes(&new).await != ["new", "old"] {
                publisher.publish().await;
            }
        })
        .await;
        wait_until_ready(&replacement).await;
        let mut moved = subscribed(&replacement, &["of.new"]).await;
        wait_until_linked(&new, "of.new", &mut moved).await;
        let after = publisher.next;
        publisher.publish_many(50).await;
        assert!(publisher.reported.is_empty(), "{engine:?}: the broker was there all the time");
        let last = publisher.next - 1;
        assert_eq!(read_numbers(&mut local, last).await, (0..=last).collect::<Vec<_>>(), "{engine:?}");
        assert_eq!(read_numbers(&mut staying, last).await, (0..=last).collect::<Vec<_>>(), "{engine:?}");
        let received = read_numbers(&mut moved, last).await;
        check_order(&received);
        assert!(received.ends_with(&(after..=last).collect::<Vec<_>>()), "{engine:?} {after}: {received:?}");

        // Calls of this version reach the replacement.
        let mut on_replacement = Client::connect(&replacement).await;
        assert_eq!(call(&new, "DELETE /v1/clients", "").await.0, 200);
        assert_eq!(on_replacement.closed().await.0, 4003);
    }
}
