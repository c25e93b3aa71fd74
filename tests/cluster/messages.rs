//! Every kind of message across nodes.

use futures_util::StreamExt;
use serde_json::json;

use super::{
    check_no_message, metric, nodes, publish, read_until_end, subscribe, subscribed, wait_until_linked,
};
use crate::support::{Broker, Client, Engine, Issuer, from_now, has_brokers, http, with_token};

#[tokio::test]
async fn a_publish_reaches_subscribers_of_other_nodes_once_and_unchanged() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [a, b, c] = nodes(&broker.url(), &[]).await;
        let mut own = subscribed(&a, &["sports.football"]).await;
        let mut exact = subscribed(&b, &["sports.football"]).await;
        let mut overlapping = subscribed(&b, &["sports.football", "sports.*", "sports.>", ">"]).await;
        let mut pattern = subscribed(&c, &["*.football"]).await;
        let mut other = subscribed(&c, &["sports.football.results", "sports.*.x"]).await;
        wait_until_linked(&a, "sports.football", &mut exact).await;
        wait_until_linked(&a, "sports.football", &mut pattern).await;
        for (node, client) in [(&a, &mut own), (&b, &mut overlapping), (&c, &mut pattern), (&b, &mut exact)] {
            publish(node, "sports.football", "\"end\"").await;
            read_until_end(client).await;
        }

        let mut publisher = Client::connect(&a).await;
        let payload = r#"{"b" : 1.0,"a":12345678901234567890.10e5,"s":"\u00e9é"}"#;
        publisher
            .send_text(&format!(
                r#"{{"type":"publish","id":7,"data":{{"topic":"sports.football","message":{payload}}}}}"#
            ))
            .await;
        let reply = publisher.receive().await;
        // The count covers this node only.
        let published = json!({"topic": "sports.football", "subscribers": 1});
        assert_eq!(reply, json!({"type": "published", "id": 7, "data": published}));
        let expected = format!(
            r#"{{"type":"message","data":{{"topic":"sports.football","message":{payload},"from":"{}"}}}}"#,
            publisher.id()
        );
        for client in [&mut own, &mut exact, &mut overlapping, &mut pattern] {
            loop {
                let message = client.socket.next().await.unwrap().unwrap();
                let text = message.to_text().unwrap();
                // The ends of other clients' probes may still arrive.
                if !text.contains("\"end\"") && !text.contains("probe") {
                    assert_eq!(text, expected, "{engine:?}");
                    break;
                }
            }
        }
        publish(&b, "sports.football", "\"end\"").await;
        for client in [&mut own, &mut exact, &mut overlapping, &mut pattern] {
            let received = read_until_end(client).await;
            assert_eq!(received, Default::default(), "{engine:?}: a message arrived twice");
        }
        check_no_message(&mut other).await;
    }
}

#[tokio::test]
async fn trace_contexts_reach_other_nodes() {
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [a, b] = nodes(&broker.url(), &[]).await;
        let mut local = subscribed(&a, &["t"]).await;
        let mut remote = subscribed(&b, &["t"]).await;
        wait_until_linked(&a, "t", &mut remote).await;
        publish(&a, "t", "\"end\"").await;
        read_until_end(&mut remote).await;
        read_until_end(&mut local).await;
        let header = format!("traceparent: {traceparent}");
        http(a.api(), "POST /v1/topics/t/messages", &[&header], "1").await;
        let (local, remote) = (local.receive().await, remote.receive().await);
        // All deliveries of a publish belong to the same trace, on every node.
        assert_eq!(remote["data"], local["data"]);
        let trace = |message: &serde_json::Value| {
            message["meta"]["traceparent"].as_str().and_then(|text| text.split('-').nth(1)).map(str::to_owned)
        };
        assert!(trace(&local).is_none() || trace(&local) == trace(&remote), "{local} {remote}");
    }
}

#[tokio::test]
async fn sends_and_disconnects_reach_clients_of_other_nodes() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [a, b, c] = nodes(&broker.url(), &[]).await;
        let mut client = Client::connect(&b).await;
        let mut bystander = Client::connect(&c).await;
        let id = client.id().to_owned();
        assert!(id.starts_with("b."), "{id}");

        let send = format!("POST /v1/clients/{id}/messages");
        let sent = http(a.api(), &send, &[], r#"{"type":"hello","n" : 1.0}"#).await;
        assert_eq!(sent.status, 200, "{}", sent.body);
        let message = client.socket.next().await.unwrap().unwrap();
        assert_eq!(message.to_text().unwrap(), r#"{"type":"hello","n" : 1.0}"#);
        let one = http(a.api(), &format!("GET /v1/clients/{id}"), &[], "").await;
        assert_eq!((one.status, &one.json()["client_id"]), (200, &json!(id)));

        for unknown in ["b.0-99-1", "nobody.0-0-1", "b", "a.0-99-1"] {
            let response =
                http(a.api(), &format!("POST /v1/clients/{unknown}/messages"), &[], r#"{"type":"x"}"#).await;
            assert_eq!(
                (response.status, &response.json()["error"]["code"]),
                (404, &json!("client_not_found"))
            );
        }

        let broadcast = http(a.api(), "POST /v1/broadcast", &[], r#"{"type":"all"}"#).await;
        // The count covers this node only.
        assert_eq!(broadcast.json(), json!({"clients": 0}));
        assert_eq!(client.receive().await, json!({"type": "all"}));
        assert_eq!(bystander.receive().await, json!({"type": "all"}));

        let gone = http(a.api(), &format!("DELETE /v1/clients/{id}"), &[], "").await;
        assert_eq!(gone.status, 200, "{}", gone.body);
        assert_eq!(client.closed().await.0, 4003);
        let again = http(a.api(), &format!("DELETE /v1/clients/{id}"), &[], "").await;
        assert_eq!(again.status, 404);
        check_no_message(&mut bystander).await;
    }
}

#[tokio::test]
async fn a_user_is_reached_on_every_node() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let issuer = Issuer::new("a secret that nodes of one hub share, and nobody else");
        let [a, b, c] = nodes(&broker.url(), &["--auth-secret-file", &issuer.file()]).await;
        let token = |user: &str| {
            issuer.token(&json!({"sub": user, "exp": from_now(std::time::Duration::from_secs(600))}))
        };
        let mut clients = Vec::new();
        for node in [&a, &b, &c] {
            clients.push(Client::connect_with(with_token(node, &token("zoé"))).await.unwrap());
        }
        let mut other = Client::connect_with(with_token(&b, &token("other"))).await.unwrap();
        let sent = http(a.api(), "POST /v1/users/zo%C3%A9/messages", &[], r#"{"type":"for-you"}"#).await;
        assert_eq!(sent.json(), json!({"clients": 1}));
        for client in &mut clients {
            assert_eq!(client.receive().await, json!({"type": "for-you"}));
        }
        check_no_message(&mut other).await;
    }
}

#[tokio::test]
async fn publishers_keep_their_order_over_many_topics() {
    const TOPICS: usize = 60;
    const PUBLISHES_PER_TOPIC: usize = 20;
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [a, b, c] = nodes(&broker.url(), &["--max-subscriptions", "200"]).await;
        let topics: Vec<_> = (0..TOPICS).map(|n| format!("room.{n}.é[x]?")).collect();
        let names: Vec<_> = topics.iter().map(String::as_str).collect();
        let mut subscribers = Vec::new();
        for node in [&b, &c] {
            let client = Client::connect(node).await;
            subscribers.push(subscribe(client, &["end", "room.*.é[x]?"]).await);
            let client = Client::connect(node).await;
            let mut client = subscribe(client, &names).await;
            client = subscribe(client, &["end"]).await;
            subscribers.push(client);
        }
        for client in &mut subscribers {
            wait_until_linked(&a, "end", client).await;
        }
        for client in &mut subscribers {
            // Skips the probes of other clients.
            publish(&a, "end", "\"end\"").await;
            read_until_end(client).await;
        }
        // The broker has the other subscriptions by then: each node sends them in order.
        let mut publishers =
            [Client::connect(&a).await, Client::connect(&a).await, Client::connect(&b).await];
        for n in 0..PUBLISHES_PER_TOPIC {
            for (who, publisher) in publishers.iter_mut().enumerate() {
                for topic in &names {
                    let data = json!({"topic": topic, "message": [who, n]});
                    publisher.send(&json!({"type": "publish", "data": data})).await;
                }
            }
        }
        for publisher in &mut publishers {
            check_no_message(publisher).await;
        }
        for client in &mut subscribers {
            let mut received = std::collections::BTreeMap::<_, Vec<_>>::new();
            let mut count = 0;
            while count < TOPICS * PUBLISHES_PER_TOPIC * 3 {
                let message = client.receive().await;
                let data = &message["data"];
                if data["topic"] == "end" {
                    continue;
                }
                let topic = data["topic"].as_str().unwrap().to_owned();
                let who = data["message"][0].as_u64().unwrap();
                received.entry((topic, who)).or_default().push(data["message"][1].as_u64().unwrap());
                count += 1;
            }
            assert_eq!(received.len(), TOPICS * 3);
            let in_order: Vec<_> = (0..PUBLISHES_PER_TOPIC as u64).collect();
            for (of, numbers) in received {
                assert_eq!(numbers, in_order, "{engine:?} {of:?}");
            }
        }
        assert_eq!(metric(&a, "deeperhub_cluster_dropped_total").await, 0);
    }
}

#[tokio::test]
async fn hubs_with_different_prefixes_are_separate() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [a, b] = nodes(&broker.url(), &["--cluster-prefix", "one"]).await;
        // A node with the same name in another hub.
        let other = super::node(&broker.url(), "a", &["--cluster-prefix", "two"]);
        super::wait_until_ready(&other).await;
        let mut local = subscribed(&b, &["t"]).await;
        let mut stranger = subscribed(&other, &["t", ">"]).await;
        wait_until_linked(&a, "t", &mut local).await;
        check_no_message(&mut stranger).await;
        assert_eq!(super::names_of_nodes(&other).await, ["a"]);
    }
}

#[tokio::test]
async fn topics_are_sent_only_to_nodes_with_a_subscriber() {
    if !has_brokers() {
        return;
    }
    let broker = Broker::start(Engine::Redis);
    let [a, b] = nodes(&broker.url(), &[]).await;
    let subscribers = |channel: &str| {
        let mut lines = broker.redis_lines(&format!("PUBSUB NUMSUB {channel}"));
        lines.pop().unwrap_or_default()
    };
    assert_eq!(subscribers("deeperhub:t:t"), ":0");
    let client = subscribed(&b, &["t"]).await;
    super::eventually("the subscription", async || subscribers("deeperhub:t:t") == ":1").await;
    let second = subscribed(&b, &["t"]).await;
    drop(client);
    super::eventually("one subscriber", async || {
        http(b.api(), "GET /v1/topics/t", &[], "").await.json()["subscribers"] == 1
    })
    .await;
    assert_eq!(subscribers("deeperhub:t:t"), ":1");
    drop(second);
    super::eventually("the end of the subscription", async || subscribers("deeperhub:t:t") == ":0").await;
    drop(a);
}

#[tokio::test]
async fn topics_and_payloads_of_every_kind_reach_other_nodes_unchanged() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [a, b] = nodes(&broker.url(), &["--max-queue-bytes", "10000000"]).await;
        let longest = "é".repeat(127) + "x";
        let topics = [
            "a[b]?c",
            "\\\\",
            "[^a]",
            "a.[b-z].\\*",
            "{x}",
            "日本.語",
            "%2F/:#",
            longest.as_str(),
            "x\"y",
            "t:t",
            "hub.t",
        ];
        // A wildcard replaces a whole level only.
        let topics = topics.map(|topic| topic.replace('*', "+").replace("\\\\", "\\"));
        let names: Vec<_> = topics.iter().map(String::as_str).collect();
        let mut exact = subscribed(&b, &names).await;
        let mut all = subscribed(&b, &[">"]).await;
        wait_until_linked(&a, "probe", &mut all).await;
        let last = subscribed(&b, &["probe"]).await;
        let mut exact_and_probe = super::subscribe(exact, &["probe"]).await;
        wait_until_linked(&a, "probe", &mut exact_and_probe).await;
        exact = exact_and_probe;
        let large = format!("\"{}\"", "\\u00e9ü".repeat(8000));
        let payloads = [
            "1.000",
            "-0.0e+7",
            "123456789012345678901234567890",
            r#"{ "b":1 ,"a":[ ] }"#,
            r#""\ud83d\ude00 😀\/""#,
            &large,
        ];
        let mut publisher = Client::connect(&a).await;
        for topic in &names {
            for payload in payloads {
                let name = serde_json::to_string(topic).unwrap();
                publisher
                    .send_text(&format!(
                        r#"{{"type":"publish","data":{{"topic":{name},"message":{payload}}}}}"#
                    ))
                    .await;
            }
        }
        for client in [&mut exact, &mut all] {
            let mut received = std::collections::BTreeMap::<String, Vec<String>>::new();
            while received.values().map(Vec::len).sum::<usize>() < names.len() * payloads.len() {
                let message = client.socket.next().await.unwrap().unwrap();
                let text = message.to_text().unwrap_or_default();
                let Some((_, rest)) = text.split_once("\"message\":") else { continue };
                let parsed: serde_json::Value = serde_json::from_str(text).unwrap();
                let topic = parsed["data"]["topic"].as_str().unwrap().to_owned();
                if topic != "probe" {
                    let (payload, _) = rest.rsplit_once(",\"from\"").unwrap();
                    received.entry(topic).or_default().push(payload.to_owned());
                }
            }
            for topic in &names {
                assert_eq!(
                    received.get(*topic).map(Vec::as_slice),
                    Some(&payloads.map(str::to_owned)[..]),
                    "{engine:?}"
                );
            }
        }
        drop(last);
    }
}

#[tokio::test]
async fn unsubscribe_and_disconnect_reach_clients_of_other_nodes() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let issuer = Issuer::new("a secret that nodes of one hub share, and nobody else");
        let [a, b] = nodes(&broker.url(), &["--auth-secret-file", &issuer.file()]).await;
        let token =
            issuer.token(&json!({"sub": "ana", "exp": from_now(std::time::Duration::from_secs(600))}));
        let client = Client::connect_with(with_token(&b, &token)).await.unwrap();
        let mut client = subscribe(client, &["x", "y.>"]).await;
        let path = format!("DELETE /v1/clients/{}/subscriptions/x", client.id());
        for expected in [true, false] {
            let response = http(a.api(), &path, &[], "").await;
            assert_eq!((response.status, response.json()), (200, json!({"unsubscribed": expected})));
        }
        assert_eq!(client.receive().await, json!({"type": "unsubscribed", "data": {"topic": "x"}}));
        let response = http(a.api(), "DELETE /v1/users/ana/subscriptions/y.%3E", &[], "").await;
        // The count covers this node only.
        assert_eq!(response.json(), json!({"clients": 0}));
        assert_eq!(client.receive().await, json!({"type": "unsubscribed", "data": {"topic": "y.>"}}));
        assert_eq!(http(a.api(), "DELETE /v1/users/ana", &[], "").await.status, 200);
        assert_eq!(client.closed().await.0, 4003);
    }
}
