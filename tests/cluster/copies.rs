//! Broker subscriptions of a node: each message arrives once, in order, and only if a client wants
//! it.

use serde_json::json;

use super::faults::{Publisher, check_order, read_numbers};
use super::{eventually, metric, nodes, subscribe, subscribed, wait_until_linked};
use crate::support::{Broker, Client, Engine, Server, wait_for};

async fn subscriptions(node: &Server) -> u64 {
    metric(node, "deeperhub_cluster_subscriptions").await
}

async fn duplicates(node: &Server) -> u64 {
    metric(node, "deeperhub_cluster_duplicates_total").await
}

/// Waits until the broker has dropped the subscriptions that the node does not count any more. Returns
/// the number of duplicates.
async fn duplicates_of_one_subscription(from: &Server, to: &Server, topic: &str, client: &mut Client) -> u64 {
    wait_for("the end of copies", async {
        loop {
            let before = duplicates(to).await;
            // The copies of a probe come before the next one.
            wait_until_linked(from, topic, client).await;
            wait_until_linked(from, topic, client).await;
            if duplicates(to).await == before {
                return before;
            }
        }
    })
    .await
}

async fn unsubscribe(client: &mut Client, topic: &str) {
    let reply = client.request(&json!({"type": "unsubscribe", "data": {"topic": topic}})).await;
    assert_eq!(reply["type"], "unsubscribed", "{reply}");
}

/// Returns all patterns of six levels below `a` with three named levels. None covers another, and
/// all match one topic.
fn overlapping_patterns() -> Vec<String> {
    (0_u32..64)
        .filter(|bits| bits.count_ones() == 3)
        .map(|bits| {
            let level = |level: u32| if bits & (1 << level) == 0 { "*" } else { "x" };
            format!("a.{}", (0..6).map(level).collect::<Vec<_>>().join("."))
        })
        .collect()
}

#[tokio::test]
async fn overlapping_patterns_of_a_client_deliver_each_message_once() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [a, b] = nodes(&broker.url(), &[]).await;
        let mut remote =
            subscribed(&b, &["t.u.v", "t.u.*", "t.*.v", "*.u.v", "t.>", "*.*.*", "*.>", ">"]).await;
        eventually("only the broadest pattern", async || subscriptions(&b).await == 1).await;
        let before = duplicates_of_one_subscription(&a, &b, "t.u.v", &mut remote).await;
        let mut publisher = Publisher::new(&a, "t.u.v").await;
        publisher.publish_many(100).await;
        let received = read_numbers(&mut remote, publisher.next - 1).await;
        assert_eq!(received, (0..publisher.next).collect::<Vec<_>>(), "{engine:?}");
        assert_eq!(duplicates(&b).await, before, "{engine:?}");
    }
}

#[tokio::test]
async fn patterns_that_do_not_cover_each_other_cause_few_copies() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [a, b] = nodes(&broker.url(), &[]).await;
        let overlapping_patterns = overlapping_patterns();
        let names: Vec<_> = overlapping_patterns.iter().map(String::as_str).collect();
        let mut remote = subscribed(&b, &names).await;
        eventually("few broker subscriptions", async || (1..=4).contains(&subscriptions(&b).await)).await;
        wait_until_linked(&a, "a.x.x.x.x.x.x", &mut remote).await;
        let before = duplicates(&b).await;
        let mut publisher = Publisher::new(&a, "a.x.x.x.x.x.x").await;
        publisher.publish_many(100).await;
        let received = read_numbers(&mut remote, publisher.next - 1).await;
        assert_eq!(received, (0..publisher.next).collect::<Vec<_>>(), "{engine:?}");
        assert!(duplicates(&b).await - before <= 100 * 3, "{engine:?}");
        for name in &names[1..] {
            unsubscribe(&mut remote, name).await;
        }
        eventually("the pattern's own subscription", async || subscriptions(&b).await == 1).await;
        publisher.publish_many(100).await;
        let received = read_numbers(&mut remote, publisher.next - 1).await;
        assert_eq!(received, (publisher.next - 100..publisher.next).collect::<Vec<_>>(), "{engine:?}");
        drop(remote);
        eventually("no subscription", async || subscriptions(&b).await == 0).await;
    }
}

#[tokio::test]
async fn adding_and_removing_a_broad_pattern_loses_no_message() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [a, b] = nodes(&broker.url(), &[]).await;
        let mut remote = subscribed(&b, &["t", "end"]).await;
        wait_until_linked(&a, "t", &mut remote).await;
        let mut publisher = Publisher::new(&a, "t").await;
        for pattern in [">", "*"] {
            let broad = subscribed(&b, &[pattern]).await;
            // The broker drops the covered subscriptions, then restores them.
            wait_for("only the broad pattern", async {
                while subscriptions(&b).await != 1 {
                    publisher.publish().await;
                }
            })
            .await;
            drop(broad);
            wait_for("the others", async {
                while subscriptions(&b).await != 2 {
                    publisher.publish().await;
                }
            })
            .await;
        }
        publisher.publish_many(20).await;
        let received = read_numbers(&mut remote, publisher.next - 1).await;
        assert_eq!(received, (0..publisher.next).collect::<Vec<_>>(), "{engine:?}");
    }
}

#[tokio::test]
async fn publish_order_holds_while_patterns_change() {
    const ROUNDS: u64 = 12;
    const BURST: u64 = 1000;
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [a, b] = nodes(&broker.url(), &["--max-queue-bytes", "100000000"]).await;
        // Two topics: order must also hold between them.
        let mut remote = subscribed(&b, &["t.u", "t.v"]).await;
        wait_until_linked(&a, "t.u", &mut remote).await;
        wait_until_linked(&a, "t.v", &mut remote).await;
        let mut publisher = Client::connect(&a).await;
        let mut others = Vec::new();
        let patterns = ["t.*", ">", "*.u", "t.>", "*.*", "*.v"];
        for round in 0..ROUNDS {
            // When the node resumes, it receives bursts from all its subscriptions.
            let is_paused = round % 2 == 0;
            if is_paused {
                b.signal("STOP");
            }
            let first = round * BURST;
            for n in first..first + BURST {
                let topic = if n % 5 == 0 { "t.u" } else { "t.v" };
                let data = json!({"topic": topic, "message": n});
                publisher.send(&json!({"type": "publish", "data": data})).await;
                if !is_paused && n == first + BURST / 3 {
                    let pattern = patterns[round as usize / 2 % patterns.len()];
                    others.push(subscribed(&b, &[pattern]).await);
                }
            }
            publisher.request(&json!({"type": "ping"})).await;
            if is_paused {
                // Waits until the broker has every message.
                eventually("an empty broker queue", async || {
                    metric(&a, "deeperhub_cluster_queue_bytes").await == 0
                })
                .await;
                b.signal("CONT");
            }
            if round % 4 == 3 {
                others.clear();
            }
        }
        let received = read_numbers(&mut remote, ROUNDS * BURST - 1).await;
        check_order(&received);
        assert_eq!(received.len() as u64, ROUNDS * BURST, "{engine:?}");
    }
}

#[tokio::test]
async fn unused_broker_subscriptions_are_removed() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let [_a, b] = nodes(&broker.url(), &["--max-subscriptions", "5000"]).await;
        for round in 0..3 {
            let names: Vec<_> = (0..3000).map(|n| format!("room{round}.{n}")).collect();
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let client = subscribe(Client::connect(&b).await, &names).await;
            drop(client);
        }
        eventually("no subscription", async || subscriptions(&b).await == 0).await;
        eventually("no broker subscriptions", async || {
            metric(&b, "deeperhub_cluster_subscription_bytes").await == 0
        })
        .await;
    }
}
