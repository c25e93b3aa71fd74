//! Streams in a cluster as operators see them: readiness, metrics, checks of the broker, rights.

use std::time::Duration;

use serde_json::json;

use super::streams::{RULE, Received, publish_range, subscribe_with, subscriber};
use super::{eventually, metric, node, nodes, wait_until_ready};
use crate::support::{
    Authority, Broker, Client, Engine, Finished, ROOT, Server, TemporaryDir, free_port, has_brokers, http,
    run, text,
};

/// Probes that come often and that a loaded machine answers in time.
const PROBES: &[&str] = &["--canary-interval", "200ms", "--canary-timeout", "2s"];

/// Returns the first reason why a node is unready, if it is.
async fn unready_reason(node: &Server) -> Option<(String, String)> {
    let answer = http(node.api(), "GET /health/ready", &[], "").await;
    let error = &answer.json()["error"];
    Some((error["code"].as_str()?.to_owned(), error["message"].as_str()?.to_owned()))
}

/// Lets a broker refuse all messages, because its memory counts as full.
async fn fill(broker: &Broker) {
    broker.redis_lines("CONFIG SET maxmemory 1");
    // Redis notices it with one of the next commands.
    let script = "EVAL \"return redis.call('SET', 'x', 'y')\" 0";
    eventually("a full broker", async || {
        broker.redis_lines(script).iter().any(|line| line.starts_with("-OOM"))
    })
    .await;
}

async fn wait_until_stalled(node: &Server, step: &str) {
    let mut last = None;
    eventually("a failing store", async || {
        last = unready_reason(node).await;
        last.as_ref().is_some_and(|(code, message)| code == "store_stalled" && message.contains(step))
    })
    .await;
    assert_eq!(metric(node, "deeperhub_canary_store_failing").await, 1);
    assert!(metric(node, "deeperhub_canary_store_missed_total").await > 0);
}

#[tokio::test]
async fn readiness_proves_that_the_store_appends_sends_and_gives_back() {
    if !has_brokers() {
        return;
    }
    let broker = Broker::start(Engine::Redis);
    let flags = [RULE, PROBES].concat();
    let a = node(&broker.url(), "a", &flags);
    wait_until_ready(&a).await;
    let round_trips = "deeperhub_canary_store_round_trip_seconds_count";
    eventually("probes of the store", async || metric(&a, round_trips).await > 2).await;
    // Probes are no messages of clients.
    for name in ["deeperhub_store_appends_total", "deeperhub_store_reads_total", "deeperhub_history_streams"]
    {
        assert_eq!(metric(&a, name).await, 0, "{name}");
    }
    assert_eq!(http(a.api(), "GET /v1/topics", &[], "").await.json()["topics"], json!([]));

    // A full server still carries messages, and appends none.
    fill(&broker).await;
    wait_until_stalled(&a, "a probe was not appended in time: the store refused the message: OOM").await;
    a.wait_for_stderr("Store probe did not return in time");
    let answer = http(a.api(), "POST /v1/topics/kept.1/messages", &[], "1").await;
    assert_eq!((answer.status, answer.json()["error"]["code"].clone()), (503, json!("unavailable")));
    eventually("refused appends", async || metric(&a, "deeperhub_store_appends_total").await > 0).await;
    let metrics = http(a.api(), "GET /metrics", &[], "").await.body;
    assert!(metrics.contains("deeperhub_store_appends_total{result=\"refused\"} 1"), "{metrics}");
    broker.redis_lines("CONFIG SET maxmemory 0");
    wait_until_ready(&a).await;
    assert_eq!(metric(&a, "deeperhub_canary_store_failing").await, 0);

    // Nodes without history need no store.
    let plain = node(&broker.url(), "b", PROBES);
    wait_until_ready(&plain).await;
    fill(&broker).await;
    let missed = metric(&a, "deeperhub_canary_store_missed_total").await;
    eventually("another failure", async || metric(&a, "deeperhub_canary_store_missed_total").await > missed)
        .await;
    assert_eq!(unready_reason(&plain).await, None);
    assert_eq!(metric(&plain, round_trips).await, 0);
}

#[tokio::test]
async fn metrics_tell_what_mirrors_do() {
    if !has_brokers() {
        return;
    }
    let broker = Broker::start(Engine::Redis);
    let [a, b] = nodes(&broker.url(), RULE).await;
    let mut publisher = Client::connect(&a).await;
    let (mut client, _) = subscriber(&b, json!({"topic": "kept.1"})).await;
    publish_range(&mut publisher, "kept.1", 0..3).await;
    Received::default().read(&mut client, 3).await;
    assert_eq!(
        (metric(&a, "deeperhub_mirrors_warm").await, metric(&b, "deeperhub_mirrors_warm").await),
        (0, 1)
    );
    assert_eq!(metric(&b, "deeperhub_connections_parked").await, 0);
    assert_eq!(metric(&b, "deeperhub_mirror_new_epochs_total").await, 0);
    assert_eq!(http(a.api(), "DELETE /v1/topics/kept.1/messages", &[], "").await.status, 204);
    assert_eq!(client.receive().await["data"]["reason"], "epoch");
    assert_eq!(metric(&b, "deeperhub_mirror_new_epochs_total").await, 1);
    // After an outage, what is followed is compared with the store.
    let checks = metric(&b, "deeperhub_mirror_checks_total").await;
    broker.redis_lines("CLIENT KILL TYPE pubsub");
    eventually("a check", async || metric(&b, "deeperhub_mirror_checks_total").await > checks).await;
    drop(client);
    eventually("the end of interest", async || metric(&b, "deeperhub_mirrors_warm").await == 0).await;
}

#[tokio::test]
async fn a_refused_publish_can_be_repeated_with_its_idempotency_key() {
    if !has_brokers() {
        return;
    }
    let broker = Broker::start(Engine::Redis);
    let a = node(&broker.url(), "a", RULE);
    wait_until_ready(&a).await;
    let publish = async |key: &str| {
        let header = format!("Idempotency-Key: {key}");
        http(a.api(), "POST /v1/topics/kept.1/messages", &[&header], "\"x\"").await
    };
    let batch = async |key: &str| {
        let call = json!({"publish": {"topic": "kept.1", "message": "y", "idempotency_key": key}});
        let body = json!({"calls": [call]}).to_string();
        http(a.api(), "POST /v1/batch", &[], &body).await.json()["results"][0].clone()
    };
    fill(&broker).await;
    for _ in 0..2 {
        assert_eq!(publish("one").await.status, 503);
        assert_eq!(batch("two").await["status"], 503);
    }
    broker.redis_lines("CONFIG SET maxmemory 0");
    let published = publish("one").await;
    assert_eq!(
        (published.status, published.header("idempotency-replayed")),
        (200, None),
        "{}",
        published.body
    );
    assert_eq!(published.json()["offset"], 1);
    let again = publish("one").await;
    assert_eq!((again.json(), again.header("idempotency-replayed")), (published.json(), Some("true")));
    let in_batch = batch("two").await;
    assert_eq!((&in_batch["status"], &in_batch["body"]["offset"]), (&json!(200), &json!(2)), "{in_batch}");
    assert_eq!(batch("two").await, in_batch);
    let page = http(a.api(), "GET /v1/topics/kept.1/messages", &[], "").await.json();
    assert_eq!(page["messages"].as_array().map(Vec::len), Some(2), "{page}");
}

#[tokio::test]
async fn a_client_whose_rule_is_removed_does_not_wait_for_the_store() {
    if !has_brokers() {
        return;
    }
    let broker = Broker::start(Engine::Redis);
    let files = TemporaryDir::new();
    let both = "topic = ['kept.>: history=9', 'gone.>: history=9']";
    let path = files.write("hub.toml", both);
    let a = node(&broker.url(), "a", &["--config", text(&path), "--canary-interval", "0ms"]);
    // The store's own deadline may pass first on a machine that is busy.
    for attempt in 0..10 {
        wait_until_ready(&a).await;
        let mut clients = [Client::connect(&a).await, Client::connect(&a).await, Client::connect(&a).await];
        broker.signal("STOP");
        let [kept, gone, page] = &mut clients;
        let subscribe = |topic: String| json!({"type": "subscribe", "id": 1, "data": {"topic": topic}});
        kept.send(&subscribe(format!("kept.{attempt}"))).await;
        gone.send(&subscribe(format!("gone.{attempt}"))).await;
        let data = json!({"topic": format!("gone.page{attempt}")});
        page.send(&json!({"type": "history", "id": 1, "data": data})).await;
        files.write("hub.toml", "topic = ['kept.>: history=9']");
        a.signal("HUP");
        let (subscribed, history) = (gone.receive().await, page.receive().await);
        let others = tokio::time::timeout(Duration::ZERO, kept.receive()).await;
        broker.signal("CONT");
        files.write("hub.toml", both);
        a.signal("HUP");
        if others.is_err() {
            assert_eq!(subscribed["type"], "subscribed", "{subscribed}");
            assert_eq!(subscribed["data"].get("epoch"), None, "{subscribed}");
            assert_eq!((&history["type"], &history["data"]["messages"]), (&json!("history"), &json!([])));
            return;
        }
    }
    panic!("clients without a rule waited as long as others");
}

/// Returns the rights that docs/cluster.md lists for a user with streams.
fn documented_rights() -> Vec<String> {
    let page = std::fs::read_to_string(format!("{ROOT}/docs/cluster.md")).expect("the page exists");
    let command = page.split("ACL SETUSER hub on '>PASSWORD' ").nth(1).expect("the page lists rights");
    let rights = command.split("```").next().unwrap_or_default();
    let words = rights.split_whitespace().filter(|word| *word != "\\");
    words.map(|word| word.trim_matches('\'').to_owned()).collect()
}

/// Returns the flags of a Redis server whose only user has a password and some rights.
fn user_flags(rights: &[String]) -> Vec<&str> {
    let user = ["--user", "default", "off", "--user", "hub", "on", ">secret"];
    user.into_iter().chain(rights.iter().map(String::as_str)).collect()
}

#[tokio::test]
async fn nodes_work_over_tls_with_the_documented_rights() {
    if !has_brokers() {
        return;
    }
    let rights = documented_rights();
    let authority = Authority::new();
    let broker =
        Broker::start_over_tls_with(Engine::Redis, &authority.server("broker"), &user_flags(&rights));
    let url = broker.url().replace("rediss://", "rediss://hub:secret@");
    let flags = [RULE, PROBES, &["--cluster-ca", text(&authority.cert)]].concat();
    let checked = run(&[&["config", "check", "--cluster", &url], &flags[..]].concat(), &[]);
    assert_eq!((checked.code, &*checked.stderr), (Some(0), ""), "{checked:?}");

    let [a, b] = nodes(&url, &flags).await;
    let (mut client, start) = subscriber(&b, json!({"topic": "kept.1"})).await;
    let mut pattern = Client::connect(&b).await;
    subscribe_with(&mut pattern, json!({"topic": "kept.*"})).await;
    let mut publisher = Client::connect(&a).await;
    publish_range(&mut publisher, "kept.1", 0..5).await;
    Received::default().read(&mut client, 5).await;
    Received::default().read(&mut pattern, 5).await;
    let once = json!({"type": "publish", "id": 1, "data": {"topic": "kept.1", "message": 5, "once": "x"}});
    let published = publisher.request(&once).await;
    assert_eq!(publisher.request(&once).await["data"]["offset"], published["data"]["offset"]);
    drop(client);
    let recover = json!({"epoch": start["epoch"], "offset": 2});
    let (mut client, reply) = subscriber(&a, json!({"topic": "kept.1", "recover": recover})).await;
    assert_eq!((&reply["recovered"], &reply["replay"]), (&json!(true), &json!(4)), "{reply}");
    Received::default().read(&mut client, 4).await;
    assert_eq!(http(b.api(), "DELETE /v1/topics/kept.1/messages", &[], "").await.status, 204);
    assert_eq!(client.receive().await["data"]["reason"], "epoch");
    for node in [&a, &b] {
        let round_trips = "deeperhub_canary_store_round_trip_seconds_count";
        eventually("probes of the store", async || metric(node, round_trips).await > 1).await;
        assert_eq!(unready_reason(node).await, None);
        assert!(!node.stderr().contains("NOPERM"), "{}", node.stderr());
    }
}

/// Runs `config check` with a rule.
fn check(url: &str, flags: &[&str]) -> Finished {
    run(&[&["config", "check", "--cluster", url], flags].concat(), &[])
}

#[test]
fn the_check_names_what_the_broker_lacks() {
    if !has_brokers() {
        return;
    }
    let rights = documented_rights();
    let lacking: Vec<_> =
        rights.iter().filter(|right| !["+lrange", "+psubscribe"].contains(&&***right)).cloned().collect();
    let broker = Broker::start_with(Engine::Redis, &user_flags(&lacking));
    let url = format!("redis://hub:secret@{}", broker.address);
    let checked = check(&url, RULE);
    let expected = "the broker of the cluster cannot keep history: the user lacks rights that nodes need; \
                    grant them with ACL SETUSER: +lrange +psubscribe";
    assert_eq!(checked.code, Some(2), "{checked:?}");
    assert!(checked.stderr.contains(expected), "{checked:?}");
    // Without history, nodes need less.
    let checked = check(&url, &[]);
    assert_eq!(checked.code, Some(2), "{checked:?}");
    let expected = "the broker of the cluster cannot be used: the user lacks rights that nodes need; \
                    grant them with ACL SETUSER: +psubscribe\n";
    assert!(checked.stderr.contains(expected), "{checked:?}");
    let wrong = check(&url.replace("secret", "wrong"), RULE);
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
    assert!(wrong.stderr.contains("the server refused the user or the password"), "{wrong:?}");
    assert!(!wrong.stderr.contains(":wrong@"), "{wrong:?}");

    let evicting =
        Broker::start_with(Engine::Redis, &["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    let checked = check(&evicting.url(), RULE);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let warning =
        "warning: the broker of the cluster may lose history: the server's maxmemory-policy allkeys-lru";
    assert!(checked.stderr.contains(warning), "{checked:?}");
    let port = evicting.address.port().to_string();
    let replica = Broker::start_with(Engine::Redis, &["--replicaof", "127.0.0.1", &port]);
    for flags in [RULE, &[]] {
        let checked = check(&replica.url(), flags);
        assert_eq!(checked.code, Some(2), "{checked:?}");
        assert!(checked.stderr.contains("the server is a replica, which takes no messages"), "{checked:?}");
    }
    let nobody = check(&format!("redis://127.0.0.1:{}", free_port()), RULE);
    assert_eq!(nobody.code, Some(0), "{nobody:?}");
    assert!(nobody.stderr.contains("it was not checked whether it can keep history"), "{nobody:?}");
}

#[test]
fn the_store_of_a_cluster_needs_a_cluster() {
    let alone = run(&["config", "check", "--history-store", "cluster"], &[]);
    assert_eq!(alone.code, Some(2), "{alone:?}");
    assert!(alone.stderr.contains("--history-store is cluster and there is no cluster"), "{alone:?}");
    let shown = run(&["config", "show", "--cluster", "redis://127.0.0.1:1"], &[]);
    assert!(shown.stdout.contains("history_store = \"cluster\""), "{shown:?}");
}

#[tokio::test]
async fn a_traced_publish_has_a_span_of_the_store() {
    if !has_brokers() {
        return;
    }
    let broker = Broker::start(Engine::Redis);
    let collector = crate::support::Collector::http().await;
    let url = broker.url();
    let flags = [&["--cluster", &url, "--node-id", "a"], RULE].concat();
    let server = crate::telemetry::server(&collector, &flags, &[]);
    wait_until_ready(&server).await;
    let (mut client, _) = subscriber(&server, json!({"topic": "kept.1"})).await;
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let publish = json!({"type": "publish", "id": 1, "data": {"topic": "kept.1", "message": 1},
                         "meta": {"traceparent": traceparent}});
    client.send(&publish).await;
    let published = collector.span("publish", |span| span.name == "publish").await;
    let store = collector.span("store", |span| span.name == "store").await;
    let fan_out = collector.span("fan_out", |span| span.name == "fan_out").await;
    for span in [&store, &fan_out] {
        assert_eq!((&span.trace_id, &span.parent_id), (&published.trace_id, &published.span_id));
    }
    assert_eq!(store.span.kind(), opentelemetry_proto::tonic::trace::v1::span::SpanKind::Client);
    assert_eq!(store.attributes["deeperhub.offset"], "1");
    assert!(published.span.start_time_unix_nano <= store.span.start_time_unix_nano);
    assert_eq!(fan_out.attributes["deeperhub.subscribers"], "1");
}
