//! Faults between nodes and broker, and the messages that clients receive.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::{
    RECOVERY_TIMEOUT, eventually, metric, node, nodes, publish, readiness, subscribed, wait_until_linked,
    wait_until_ready, wait_until_unready,
};
use crate::support::{Broker, Client, Engine, Proxy, Server, TemporaryDir, has_brokers, http, wait_for};

/// Publishes numbers and records each reply.
pub(super) struct Publisher {
    client: Client,
    topic: &'static str,
    pub(super) next: u64,
    /// Numbers that the node reported as not delivered to other nodes.
    pub(super) reported: BTreeSet<u64>,
}

impl Publisher {
    pub(super) async fn new(node: &Server, topic: &'static str) -> Self {
        Self { client: Client::connect(node).await, topic, next: 0, reported: BTreeSet::new() }
    }

    /// Publishes the next number. Returns `true` if other nodes get it.
    pub(super) async fn publish(&mut self) -> bool {
        let n = self.next;
        self.next += 1;
        let data = json!({"topic": self.topic, "message": n});
        let reply = self.client.request(&json!({"type": "publish", "id": n, "data": data})).await;
        assert_eq!(reply["type"], "published", "{reply}");
        let reaches_others = reply["data"]["cluster"].is_null();
        if !reaches_others {
            assert_eq!(reply["data"]["cluster"], "unavailable", "{reply}");
            self.reported.insert(n);
        }
        reaches_others
    }

    /// Publishes until the node reports that other nodes do not get the messages.
    pub(super) async fn publish_until_lost(&mut self) {
        wait_for("the loss of the cluster", async {
            while self.publish().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    /// Publishes until other nodes get the messages.
    pub(super) async fn publish_until_reached(&mut self) {
        wait_for("the return of the cluster", async {
            while !self.publish().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    pub(super) async fn publish_many(&mut self, count: u64) {
        for _ in 0..count {
            self.publish().await;
        }
    }
}

/// Reads numbers up to and including `last`.
pub(super) async fn read_numbers(client: &mut Client, last: u64) -> Vec<u64> {
    let mut received = Vec::new();
    loop {
        let message = client.receive().await;
        let Some(n) = message["data"]["message"].as_u64() else { continue };
        received.push(n);
        if n == last {
            return received;
        }
    }
}

/// Checks that no number is repeated or out of order.
pub(super) fn check_order(received: &[u64]) {
    assert!(received.windows(2).all(|pair| pair[0] < pair[1]), "{received:?}");
}

/// Returns numbers that were neither received nor reported lost: the broker had them when it ended.
fn unreported(published: u64, received: &[u64], reported: &BTreeSet<u64>) -> Vec<u64> {
    let received: BTreeSet<_> = received.iter().copied().collect();
    (0..published).filter(|n| !received.contains(n) && !reported.contains(n)).collect()
}

/// Breaks the link between two nodes with `break_link` and restores it with `restore_link`.
/// Compares the messages that a subscriber of one node received with the replies to a publisher of
/// the other.
pub(super) async fn check_outage(
    [a, b]: [&Server; 2],
    topic: &'static str,
    break_link: impl AsyncFnOnce(),
    restore_link: impl AsyncFnOnce(),
) {
    let mut remote = subscribed(b, &[topic]).await;
    let mut local = subscribed(a, &[topic]).await;
    wait_until_linked(a, topic, &mut remote).await;
    let mut publisher = Publisher::new(a, topic).await;
    publisher.publish_many(50).await;
    break_link().await;
    publisher.publish_until_lost().await;
    wait_until_unready(a).await;
    publisher.publish_many(20).await;
    assert!(publisher.reported.len() >= 20);
    restore_link().await;
    publisher.publish_until_reached().await;
    wait_for("readiness", async {
        tokio::time::timeout(RECOVERY_TIMEOUT, wait_until_ready(a)).await.expect("recovery is bounded");
        wait_until_ready(b).await;
    })
    .await;
    publisher.publish_many(50).await;

    let last = publisher.next - 1;
    let received = read_numbers(&mut remote, last).await;
    check_order(&received);
    let unreported = unreported(publisher.next, &received, &publisher.reported);
    // Only numbers that the broker held, or got while the other node was not back.
    assert!(
        unreported.len() <= 10,
        "lost without a report: {unreported:?}, reported: {:?}",
        publisher.reported
    );
    // This node's own clients missed nothing.
    assert_eq!(read_numbers(&mut local, last).await, (0..=last).collect::<Vec<_>>());
    assert_eq!(metric(a, "deeperhub_cluster_dropped_total").await, publisher.reported.len() as u64);
}

#[tokio::test]
async fn messages_lost_by_a_killed_broker_are_reported() {
    for engine in Engine::BOTH {
        let broker = std::cell::RefCell::new(Broker::start(engine));
        let url = broker.borrow().url();
        let [a, b] = nodes(&url, &[]).await;
        check_outage(
            [&a, &b],
            "t",
            async || broker.borrow_mut().kill(),
            async || broker.borrow_mut().restart(),
        )
        .await;
        let log = a.stderr();
        assert_eq!(log.matches("Broker unreachable").count(), 1, "{log}");
        assert_eq!(log.matches("Reconnected to the broker").count(), 1, "{log}");
    }
}

#[tokio::test]
async fn a_paused_broker_is_noticed_and_used_again() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [a, b] = nodes(&broker.url(), &[]).await;
        check_outage([&a, &b], "t", async || broker.signal("STOP"), async || broker.signal("CONT")).await;
    }
}

#[tokio::test]
async fn messages_lost_by_a_cut_connection_are_reported() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let proxy = Proxy::start(broker.address);
        let a = node(&engine.url(proxy.address), "a", &[]);
        let b = node(&broker.url(), "b", &[]);
        wait_until_ready(&a).await;
        wait_until_ready(&b).await;
        check_outage([&a, &b], "t", async || proxy.cut(), async || proxy.mend()).await;
    }
}

#[tokio::test]
async fn a_subscriber_behind_a_cut_connection_gets_messages_after_it_is_restored() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let proxy = Proxy::start(broker.address);
        let a = node(&broker.url(), "a", &[]);
        let b = node(&engine.url(proxy.address), "b", &[]);
        wait_until_ready(&a).await;
        wait_until_ready(&b).await;
        let mut remote = subscribed(&b, &["t", "t.>"]).await;
        wait_until_linked(&a, "t", &mut remote).await;
        let mut publisher = Publisher::new(&a, "t").await;
        publisher.publish_many(30).await;
        proxy.cut();
        wait_until_unready(&b).await;
        publisher.publish_many(30).await;
        proxy.mend();
        wait_until_ready(&b).await;
        let first = publisher.next;
        publisher.publish_many(30).await;
        let received = read_numbers(&mut remote, publisher.next - 1).await;
        check_order(&received);
        let after: Vec<_> = received.into_iter().filter(|n| *n >= first).collect();
        assert_eq!(after, (first..publisher.next).collect::<Vec<_>>());
        assert_eq!(publisher.reported, BTreeSet::new());
    }
}

#[tokio::test]
async fn connections_killed_by_redis_are_reopened() {
    if !has_brokers() {
        return;
    }
    for kind in ["normal", "pubsub"] {
        let broker = Broker::start(Engine::Redis);
        let [a, b] = nodes(&broker.url(), &[]).await;
        let mut remote = subscribed(&b, &["t"]).await;
        wait_until_linked(&a, "t", &mut remote).await;
        let mut publisher = Publisher::new(&a, "t").await;
        publisher.publish_many(30).await;
        let outages = metric(&a, "deeperhub_cluster_outages_total").await;
        broker.redis_lines(&format!("CLIENT KILL TYPE {kind}"));
        eventually("the loss to be noticed", async || {
            publisher.publish().await;
            metric(&a, "deeperhub_cluster_outages_total").await > outages
        })
        .await;
        wait_until_ready(&a).await;
        wait_until_ready(&b).await;
        wait_until_linked(&a, "t", &mut remote).await;
        publisher.publish_until_reached().await;
        let first = publisher.next;
        publisher.publish_many(30).await;
        let received = read_numbers(&mut remote, publisher.next - 1).await;
        check_order(&received);
        let after: Vec<_> = received.into_iter().filter(|n| *n >= first).collect();
        assert_eq!(after, (first..publisher.next).collect::<Vec<_>>(), "{kind}");
    }
}

#[tokio::test]
async fn a_killed_node_is_noticed_and_the_others_continue() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [a, b, mut c] = nodes(&broker.url(), &[]).await;
        let lost = Client::connect(&c).await;
        let mut remote = subscribed(&b, &["t"]).await;
        wait_until_linked(&a, "t", &mut remote).await;
        let mut publisher = Publisher::new(&a, "t").await;
        publisher.publish_many(20).await;
        c.signal("KILL");
        c.wait();
        publisher.publish_many(20).await;
        let received = read_numbers(&mut remote, publisher.next - 1).await;
        assert_eq!(received, (0..publisher.next).collect::<Vec<_>>());
        assert_eq!(publisher.reported, BTreeSet::new());
        eventually("the node to be removed", async || super::names_of_nodes(&a).await == ["a", "b"]).await;
        let send = format!("POST /v1/clients/{}/messages", lost.id());
        assert_eq!(http(a.api(), &send, &[], r#"{"type":"x"}"#).await.status, 404);
        wait_until_ready(&a).await;
    }
}

#[tokio::test]
async fn a_draining_node_loses_no_message_of_other_nodes() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [a, b, mut c] = nodes(&broker.url(), &["--drain-timeout", "1s"]).await;
        let mut remote = subscribed(&b, &["t"]).await;
        let mut leaving = subscribed(&c, &["t"]).await;
        wait_until_linked(&a, "t", &mut remote).await;
        wait_until_linked(&a, "t", &mut leaving).await;
        let mut publisher = Publisher::new(&a, "t").await;
        c.signal("TERM");
        wait_for("the drain", async {
            while c.stderr().matches("Server stopped").count() == 0 {
                publisher.publish().await;
            }
        })
        .await;
        let (code, _, goodbye) = leaving.closed().await;
        assert_eq!(code, 1001);
        assert!(goodbye.is_some_and(|goodbye| goodbye["data"]["retry_after_ms"].is_u64()));
        assert!(c.wait().success());
        publisher.publish_many(10).await;
        let received = read_numbers(&mut remote, publisher.next - 1).await;
        assert_eq!(received, (0..publisher.next).collect::<Vec<_>>());
    }
}

/// Publishes numbered messages of 1 KiB on `t` before it reads a reply. Returns the numbers that
/// the node reported as not delivered to other nodes.
pub(super) async fn publish_at_once(node: &Server, count: u64) -> BTreeSet<u64> {
    let mut publisher = Client::connect(node).await;
    let filler = "x".repeat(1000);
    for n in 0..count {
        let data = json!({"topic": "t", "message": [n, filler]});
        publisher.send(&json!({"type": "publish", "id": n, "data": data})).await;
    }
    let mut reported = BTreeSet::new();
    for n in 0..count {
        let reply = publisher.receive().await;
        assert_eq!((&reply["type"], &reply["id"]), (&json!("published"), &json!(n)));
        if reply["data"]["cluster"] == "unavailable" {
            reported.insert(n);
        }
    }
    reported
}

#[tokio::test]
async fn a_slow_broker_delays_no_client_and_reports_every_loss() {
    const PUBLISHES: u64 = 1500;
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let proxy = Proxy::start(broker.address);
        let a = node(&engine.url(proxy.address), "a", &["--cluster-queue-bytes", "65536"]);
        let b = node(&broker.url(), "b", &[]);
        wait_until_ready(&a).await;
        wait_until_ready(&b).await;
        let mut local = subscribed(&a, &["t"]).await;
        let mut remote = subscribed(&b, &["t"]).await;
        wait_until_linked(&a, "t", &mut remote).await;
        proxy.slow(Duration::from_millis(20));
        let reported = publish_at_once(&a, PUBLISHES).await;
        assert!(!reported.is_empty(), "the queue never filled up");
        let number = |message: &Value| message["data"]["message"][0].as_u64();
        let mut n = 0;
        while n < PUBLISHES {
            if let Some(received) = number(&local.receive().await) {
                assert_eq!(received, n);
                n += 1;
            }
        }
        proxy.slow(Duration::ZERO);
        let mut received = BTreeSet::new();
        let mut last = None;
        while received.len() as u64 + (reported.len() as u64) < PUBLISHES {
            if let Some(n) = number(&remote.receive().await) {
                assert!(last < Some(n), "{n} after {last:?}");
                last = Some(n);
                assert!(received.insert(n) && !reported.contains(&n), "{n}");
            }
        }
        assert_eq!(metric(&a, "deeperhub_cluster_dropped_total").await, reported.len() as u64);
    }
}

/// Returns `true` if a node reports an overdue probe through the broker.
async fn is_stalled(node: &Server) -> bool {
    let response = http(node.api(), "GET /health/ready", &[], "").await;
    let reasons = response.json()["reasons"].as_array().cloned().unwrap_or_default();
    let stalled = |reason: &Value| reason["check"] == "cluster" && reason["code"] == "cluster_stalled";
    let is_stalled = reasons.iter().any(stalled);
    assert!(!is_stalled || response.status == 503);
    is_stalled
}

#[tokio::test]
async fn readiness_includes_probes_through_the_broker() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let proxy = Proxy::start(broker.address);
        let probes = ["--canary-interval", "50ms", "--canary-timeout", "400ms"];
        let a = node(&engine.url(proxy.address), "a", &probes);
        let flags = [&probes[..], &["--cluster-unavailable", "ready"]].concat();
        let alone = node(&engine.url(proxy.address), "b", &flags);
        let round_trips = async || metric(&a, "deeperhub_canary_cluster_round_trip_seconds_count").await;
        eventually("probes that return", async || round_trips().await >= 3).await;
        let stats = http(a.api(), "GET /v1/stats", &[], "").await.json();
        assert!(stats["canary"]["cluster_round_trip_us"].as_u64().is_some_and(|time| time > 0), "{stats}");

        // The connections stay open; their data is late.
        proxy.slow(Duration::from_millis(600));
        eventually("a missed probe", async || is_stalled(&a).await).await;
        assert!(metric(&a, "deeperhub_canary_cluster_missed_total").await >= 1);
        eventually("a missed probe of the other node", async || {
            metric(&alone, "deeperhub_canary_cluster_failing").await == 1
        })
        .await;
        assert!(!is_stalled(&alone).await, "it serves without its cluster, as configured");
        proxy.slow(Duration::ZERO);
        eventually("probes that return again", async || !is_stalled(&a).await).await;
        wait_until_ready(&a).await;
    }
}

#[tokio::test]
async fn a_node_without_its_broker_serves_its_own_clients() {
    for engine in Engine::BOTH {
        let mut broker = Broker::start(engine);
        let url = broker.url();
        broker.kill();
        let a = node(&url, "a", &[]);
        wait_until_unready(&a).await;
        let alone = node(&url, "b", &["--cluster-unavailable", "ready"]);
        assert_eq!(readiness(&alone).await, 200);
        for node in [&a, &alone] {
            let mut client = subscribed(node, &["t"]).await;
            let response = publish(node, "t", "1").await;
            assert_eq!(response, json!({"subscribers": 1, "cluster": "unavailable"}));
            assert_eq!(client.receive().await["data"]["message"], 1);
        }
        let sent = http(a.api(), "POST /v1/clients/b.0-0-1/messages", &[], r#"{"type":"x"}"#).await;
        assert_eq!((sent.status, &sent.json()["error"]["code"]), (503, &json!("cluster_unavailable")));
        broker.restart();
        wait_until_ready(&a).await;
        let mut client = subscribed(&alone, &["t"]).await;
        eventually("both nodes", async || super::names_of_nodes(&a).await == ["a", "b"]).await;
        wait_until_linked(&a, "t", &mut client).await;
    }
}

/// A retry of a publish that missed the other nodes is delivered there, and to no subscriber twice.
#[tokio::test]
async fn a_retry_with_an_idempotency_key_completes_a_partial_publish() {
    for engine in Engine::BOTH {
        let mut broker = Broker::start(engine);
        let [a, b] = nodes(&broker.url(), &[]).await;
        let (mut local, mut remote) = (subscribed(&a, &["t"]).await, subscribed(&b, &["t"]).await);
        wait_until_linked(&a, "t", &mut remote).await;
        let publish = async |body: &str| {
            let header = "Idempotency-Key: k-1";
            let response = http(a.api(), "POST /v1/topics/t/messages", &[header], body).await;
            let is_replayed = response.header("idempotency-replayed") == Some("true");
            (response.status, response.json(), is_replayed)
        };
        let batch = r#"{"calls":[{"publish":{"topic":"t","message":"batch","idempotency_key":"k-2"}}]}"#;
        let in_batch = async || {
            let response = http(a.api(), "POST /v1/batch", &[], batch).await.json();
            response["results"][0]["body"].clone()
        };
        let half = json!({"subscribers": 1, "cluster": "unavailable"});
        broker.kill();
        wait_until_unready(&a).await;
        assert_eq!(publish("1").await, (200, half.clone(), false));
        assert_eq!(publish("1").await, (200, half.clone(), true), "still in vain");
        assert_eq!(publish("2").await.0, 422, "another message");
        assert_eq!(in_batch().await, half);

        broker.restart();
        for node in [&a, &b] {
            wait_until_ready(node).await;
        }
        eventually("both nodes", async || super::names_of_nodes(&a).await == ["a", "b"]).await;
        // Uses other messages to check that the link is open.
        wait_until_linked(&a, "t", &mut remote).await;
        let whole = json!({"subscribers": 1});
        assert_eq!(publish("1").await, (200, whole.clone(), false));
        assert_eq!(publish("1").await, (200, whole.clone(), true));
        assert_eq!(in_batch().await, whole);
        assert_eq!(in_batch().await, whole);
        super::publish(&a, "t", "\"end\"").await;
        for (client, name) in [(&mut remote, "remote"), (&mut local, "local")] {
            let mut got = Vec::new();
            while got.last() != Some(&json!("end")) {
                let message = client.receive().await["data"]["message"].clone();
                if !message.to_string().contains("probe") {
                    got.push(message);
                }
            }
            assert_eq!(got, [json!(1), json!("batch"), json!("end")], "{name}");
        }
    }
}

#[tokio::test]
async fn passwords_authenticate_and_are_never_shown() {
    for engine in Engine::BOTH {
        let flags: &[&str] = match engine {
            Engine::Nats => &["--user", "hub", "--pass", "hunt%er2"],
            Engine::Redis => &["--requirepass", "hunt%er2"],
        };
        let broker = Broker::start_with(engine, flags);
        let url = |password: &str| match engine {
            Engine::Nats => format!("nats://hub:{password}@{}", broker.address),
            Engine::Redis => format!("redis://:{password}@{}", broker.address),
        };
        // The first server does not answer, so the node tries the next.
        let servers = url("hunt%25er2").replacen('@', "@127.0.0.1:1,", 1);
        let a = node(&servers, "a", &[]);
        let refused = node(&url("hunter3"), "b", &["--log-level", "debug"]);
        wait_until_ready(&a).await;
        wait_until_unready(&refused).await;
        for node in [&a, &refused] {
            let log = node.stderr();
            assert!(!log.contains("hunt"), "{log}");
        }
        let show = crate::support::run(&["config", "show", "--cluster", &url("hunter3")], &[]);
        assert!(show.stdout.contains("********@") && !show.stdout.contains("hunter3"), "{}", show.stdout);
    }
}

#[tokio::test]
async fn a_node_paused_briefly_gets_every_message() {
    const PUBLISHES: u64 = 20_000;
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [a, b] = nodes(&broker.url(), &["--max-queue-bytes", "100000000"]).await;
        let mut remote = subscribed(&b, &["t"]).await;
        wait_until_linked(&a, "t", &mut remote).await;
        let mut publisher = Client::connect(&a).await;
        b.signal("STOP");
        for n in 0..PUBLISHES {
            publisher
                .send_text(&format!(r#"{{"type":"publish","data":{{"topic":"t","message":{n}}}}}"#))
                .await;
        }
        // The broker has all messages, or the node would not have replied.
        publisher.request(&json!({"type": "ping"})).await;
        eventually("an empty broker queue", async || metric(&a, "deeperhub_cluster_queue_bytes").await == 0)
            .await;
        b.signal("CONT");
        let received = read_numbers(&mut remote, PUBLISHES - 1).await;
        check_order(&received);
        assert_eq!(received.len() as u64, PUBLISHES, "{engine:?}");
        assert_eq!(metric(&b, "deeperhub_cluster_dropped_total").await, 0, "{engine:?}");
    }
}

#[tokio::test]
async fn of_two_nodes_with_one_name_the_later_stops_after_an_outage() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let proxy = Proxy::start(broker.address);
        let flags = ["--drain-timeout", "0"];
        let mut first = node(&engine.url(proxy.address), "a", &flags);
        let other = node(&broker.url(), "b", &flags);
        wait_until_ready(&first).await;
        wait_until_ready(&other).await;
        proxy.cut();
        wait_until_unready(&first).await;
        eventually("the first node to be removed", async || super::names_of_nodes(&other).await == ["b"])
            .await;
        // The name is free now.
        let mut second = node(&broker.url(), "a", &flags);
        wait_until_ready(&second).await;
        proxy.mend();
        // The node that was started first stays.
        assert_eq!(second.wait().code(), Some(1), "{}", second.stderr());
        assert!(second.stderr().contains("another node of the cluster is named"), "{}", second.stderr());
        wait_until_ready(&first).await;
        let mut client = subscribed(&first, &["t"]).await;
        wait_until_linked(&other, "t", &mut client).await;
        eventually("both nodes", async || super::names_of_nodes(&other).await == ["a", "b"]).await;
        first.signal("TERM");
        assert_eq!(first.wait().code(), Some(0));
    }
}

#[tokio::test]
async fn accepted_messages_are_flushed_during_the_drain() {
    const PUBLISHES: u64 = 250;
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let proxy = Proxy::start(broker.address);
        let mut a = node(&engine.url(proxy.address), "a", &["--drain-timeout", "60s"]);
        let b = node(&broker.url(), "b", &[]);
        wait_until_ready(&a).await;
        wait_until_ready(&b).await;
        let mut remote = subscribed(&b, &["t"]).await;
        wait_until_linked(&a, "t", &mut remote).await;
        // About 40 kB/s.
        proxy.slow(Duration::from_millis(100));
        let reported = publish_at_once(&a, PUBLISHES).await;
        assert_eq!(reported, BTreeSet::new());
        a.signal("TERM");
        assert_eq!(a.wait().code(), Some(0));
        let log = a.stderr();
        assert!(!log.contains("Stopped before the broker confirmed all messages"), "{log}");
        let mut received = Vec::new();
        while received.last() != Some(&(PUBLISHES - 1)) {
            received.extend(remote.receive().await["data"]["message"][0].as_u64());
        }
        assert_eq!(received, (0..PUBLISHES).collect::<Vec<_>>(), "{engine:?}");
    }
}

#[tokio::test]
async fn messages_not_flushed_in_time_are_reported() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let proxy = Proxy::start(broker.address);
        let mut a = node(&engine.url(proxy.address), "a", &["--drain-timeout", "0"]);
        wait_until_ready(&a).await;
        proxy.slow(Duration::from_millis(700));
        let reported = publish_at_once(&a, 500).await;
        assert_eq!(reported, BTreeSet::new());
        a.signal("TERM");
        assert_eq!(a.wait().code(), Some(0));
        let log = a.stderr();
        assert!(log.contains("Stopped before the broker confirmed all messages"), "{log}");
    }
}

#[tokio::test]
async fn a_message_over_the_brokers_limit_has_its_own_error() {
    let files = TemporaryDir::new();
    let file = files.path("nats.conf");
    std::fs::write(&file, "max_payload: 20000\n").unwrap();
    let broker = Broker::start_with(Engine::Nats, &["-c", file.to_str().unwrap()]);
    let [a, b] = nodes(&broker.url(), &["--max-subscriptions", "200"]).await;
    a.wait_for_stderr("NATS server takes smaller messages than this node");
    let large = format!("\"{}\"", "x".repeat(30_000));
    let response = http(a.api(), "POST /v1/topics/t/messages", &[], &large).await;
    assert_eq!((response.status, response.json()), (200, json!({"subscribers": 0, "cluster": "too_large"})));
    let sent = http(a.api(), "POST /v1/broadcast", &[], &format!(r#"{{"type":"x","of":{large}}}"#)).await;
    assert_eq!(sent.json(), json!({"clients": 0, "cluster": "too_large"}));
    let mut publisher = Client::connect(&a).await;
    let data = json!({"topic": "t", "message": "x".repeat(30_000)});
    let reply = publisher.request(&json!({"type": "publish", "id": 1, "data": data})).await;
    assert_eq!(reply["data"], json!({"topic": "t", "subscribers": 0, "cluster": "too_large"}));
    let remote = Client::connect(&b).await;
    let send = format!("POST /v1/clients/{}/messages", remote.id());
    let sent = http(a.api(), &send, &[], &format!(r#"{{"type":"x","of":{large}}}"#)).await;
    assert_eq!((sent.status, &sent.json()["error"]["code"]), (413, &json!("message_too_big")));

    // Lists longer than one response are complete over several pages.
    let names: Vec<_> = (0..150).map(|n| format!("{n:03}{}", "x".repeat(200))).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let _remote = super::subscribe(remote, &names).await;
    let (mut topics, mut cursor) = (BTreeSet::new(), String::new());
    loop {
        let list = http(a.api(), &format!("GET /v1/topics?scope=cluster{cursor}"), &[], "").await.json();
        assert_eq!(list["unanswered"], json!([]), "{list}");
        let page = list["topics"].as_array().unwrap().clone();
        topics.extend(page.iter().filter_map(|topic| Some(topic["topic"].as_str()?.to_owned())));
        match list["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(topics.iter().map(String::as_str).collect::<Vec<_>>(), names);
}
