//! Faults of the broker that keeps streams, while clients publish and read. Their journals are
//! compared.

use std::time::Duration;

use serde_json::json;
use tokio::task::block_in_place;

use super::journals::{RULE, Trial};
use super::streams::{subscribe_with, subscriber};
use super::{metric, nodes, readiness, wait_until_ready, wait_until_unready};
use crate::support::{Broker, Client, Engine, Server, has_brokers, http};

/// Brokers that keep streams.
pub(super) fn stores() -> impl Iterator<Item = Engine> {
    [Engine::Redis].into_iter().filter(|_| has_brokers())
}

/// Returns the flags of a broker that has all its data after a crash. Redis would otherwise answer up
/// to two seconds before it writes.
pub(super) const fn with_data_on_disk(engine: Engine) -> &'static [&'static str] {
    match engine {
        Engine::Redis => &["--appendonly", "yes", "--appendfsync", "always"],
        Engine::Nats => &["-js"],
    }
}

/// Runs a trial on two nodes, with a fault between each two parts of it.
async fn trial_with(
    broker: &Broker,
    rounds: usize,
    mut fault: impl AsyncFnMut(&[Server], usize),
) -> super::journals::TrialRecord {
    let nodes: [Server; 2] = nodes(&broker.url(), RULE).await;
    let trial = Trial::of("kept.1", &nodes).await;
    for round in 0..rounds {
        trial.run_for(100).await;
        fault(&nodes, round).await;
    }
    trial.run_for(100).await;
    let record = trial.finish(&nodes[0]).await;
    for node in &nodes {
        wait_until_ready(node).await;
        assert_eq!(metric(node, "deeperhub_cluster_invalid_total").await, 0);
    }
    record
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_store_that_keeps_its_data_loses_nothing() {
    for engine in stores() {
        let mut broker = Broker::start_with(engine, with_data_on_disk(engine));
        let nodes: [Server; 2] = nodes(&broker.url(), RULE).await;
        let trial = Trial::of("kept.1", &nodes).await;
        for round in 0..3 {
            trial.run_for(100).await;
            block_in_place(|| broker.kill());
            if round == 0 {
                wait_until_unready(&nodes[0]).await;
                trial.run_until_refused().await;
            }
            block_in_place(|| broker.restart());
        }
        trial.run_for(100).await;
        let record = trial.finish(&nodes[0]).await;
        record.check_lossless();
        assert!(record.refused() > 0);
        wait_until_ready(&nodes[1]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_restarts_empty_is_told_to_every_reader() {
    for engine in stores() {
        let mut broker = Broker::start(engine);
        let nodes: [Server; 2] = nodes(&broker.url(), RULE).await;
        let trial = Trial::of("kept.1", &nodes).await;
        for _ in 0..3 {
            trial.run_for(100).await;
            block_in_place(|| broker.restart());
        }
        trial.run_for(100).await;
        let record = trial.finish(&nodes[0]).await;
        record.check();
        for journal in &record.journals {
            assert!(!journal.holes.is_empty());
            assert!(journal.holes.iter().all(|reason| reason == "epoch"), "{:?}", journal.holes);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_store_loses_nothing() {
    for engine in stores() {
        let broker = Broker::start(engine);
        let record = trial_with(&broker, 3, async |nodes, round| {
            broker.signal("STOP");
            if round == 0 {
                wait_until_unready(&nodes[0]).await;
                wait_until_unready(&nodes[1]).await;
            } else {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            broker.signal("CONT");
        });
        record.await.check_lossless();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_killed_by_the_store_lose_nothing() {
    if !has_brokers() {
        return;
    }
    let broker = Broker::start(Engine::Redis);
    let record = trial_with(&broker, 8, async |nodes, round| {
        let kind = ["normal", "pubsub"][round % 2];
        block_in_place(|| broker.redis_lines(&format!("CLIENT KILL TYPE {kind}")));
        if round % 4 == 3 {
            wait_until_ready(&nodes[0]).await;
        }
    });
    record.await.check_lossless();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_hangs_for_seconds_loses_nothing() {
    if !has_brokers() {
        return;
    }
    let broker = Broker::start_with(Engine::Redis, &["--enable-debug-command", "yes"]);
    let record = trial_with(&broker, 2, async |_, round| {
        let seconds = ["1", "5"][round];
        let reply = block_in_place(|| broker.redis_lines(&format!("DEBUG SLEEP {seconds}")));
        assert_eq!(reply, ["+OK"]);
    });
    record.await.check_lossless();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_memory_refuses_and_loses_nothing() {
    if !has_brokers() {
        return;
    }
    let broker = Broker::start_with(Engine::Redis, &["--maxmemory-policy", "noeviction"]);
    let nodes: [Server; 2] = nodes(&broker.url(), RULE).await;
    let trial = Trial::of("kept.1", &nodes).await;
    let (_, start) = subscriber(&nodes[1], json!({"topic": "kept.1"})).await;
    for topic in ["kept.new", "kept.other"] {
        trial.run_for(100).await;
        block_in_place(|| broker.redis_lines("CONFIG SET maxmemory 1"));
        trial.run_until_refused().await;
        for topic in ["kept.1", topic] {
            let answer =
                http(nodes[0].api(), &format!("POST /v1/topics/{topic}/messages"), &[], "\"x 1\"").await;
            assert_eq!(
                (answer.status, answer.header("retry-after").is_some()),
                (503, true),
                "{}",
                answer.body
            );
        }
        // Kept messages can be read, and topics without history go on.
        let (_, reply) = subscriber(&nodes[1], json!({"topic": "kept.1", "recover": start})).await;
        assert_eq!(reply["recovered"], true, "{reply}");
        assert_eq!(http(nodes[0].api(), "POST /v1/topics/plain/messages", &[], "1").await.status, 200);
        // A stream of a new topic cannot begin.
        let mut client = Client::connect(&nodes[0]).await;
        let error = subscribe_with(&mut client, json!({"topic": topic})).await;
        assert_eq!(error["data"]["code"], "unavailable", "{error}");
        block_in_place(|| broker.redis_lines("CONFIG SET maxmemory 0"));
    }
    trial.run_for(100).await;
    let record = trial.finish(&nodes[0]).await;
    record.check_lossless();
    assert!(record.refused() > 0);
    // The refused subscribes have left nothing behind that begins a stream later.
    assert_eq!(broker.redis_lines("EXISTS {deeperhub:h:kept.new}m"), [":0"]);
    for node in &nodes {
        assert_eq!(readiness(node).await, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_the_store_loses_are_told_where_messages_are_missing() {
    if !has_brokers() {
        return;
    }
    let broker = Broker::start(Engine::Redis);
    let delete = |keys: &[&str]| {
        let keys =
            keys.iter().map(|end| format!("{{deeperhub:h:kept.1}}{end}")).collect::<Vec<_>>().join(" ");
        block_in_place(|| broker.redis_lines(&format!("DEL {keys}")))
    };
    // Without the messages, positions go on. The nodes have what the store has lost.
    let record = trial_with(&broker, 2, async |_, _| assert_eq!(delete(&[""]), [":1"])).await;
    record.check_lossless();
    // Without the position, the store cannot know which offsets it has given.
    for keys in [&["m"][..], &["", "m"]] {
        let record = trial_with(&broker, 2, async |_, _| {
            assert_eq!(delete(keys), [format!(":{}", keys.len())]);
        });
        let record = record.await;
        record.check();
        assert!(record.acknowledged() > 200);
        for journal in &record.journals {
            assert!(!journal.holes.is_empty());
            assert!(journal.holes.iter().all(|reason| reason == "epoch"), "{:?}", journal.holes);
        }
    }
}
