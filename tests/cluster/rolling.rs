//! A rolling restart: nodes restart one after the other while their clients use the others.

use std::time::{Duration, Instant};

use super::faults::{Publisher, check_order, read_numbers};
use super::{eventually, names_of_nodes, node, nodes, subscribed, wait_until_linked, wait_until_ready};
use crate::support::{Broker, Client, Engine, wait_for};

const FLAGS: &[&str] = &["--drain-timeout", "1s"];

/// Reads to the end and returns the reconnect delay of the `goodbye`.
async fn reconnect_delay(client: &mut Client) -> Duration {
    let (code, _, goodbye) = client.closed().await;
    assert_eq!(code, 1001);
    let goodbye = goodbye.expect("a drained client gets a goodbye");
    assert_eq!(goodbye["data"]["reconnect"], true, "{goodbye}");
    Duration::from_millis(goodbye["data"]["retry_after_ms"].as_u64().expect("it has a delay"))
}

#[tokio::test]
async fn clients_move_between_nodes_during_a_rolling_restart() {
    for engine in Engine::BOTH {
        let broker = Broker::start(engine);
        let mut hub = nodes::<3>(&broker.url(), FLAGS).await;
        for leaving in 0..3 {
            let topic = ["t0", "t1", "t2"][leaving];
            let (next, other) = ((leaving + 1) % 3, (leaving + 2) % 3);
            let mut staying = [next, other].map(|_| Vec::new());
            for (clients, node) in staying.iter_mut().zip([next, other]) {
                clients.push(subscribed(&hub[node], &[topic]).await);
            }
            let mut moving = Vec::new();
            for _ in 0..5 {
                moving.push(subscribed(&hub[leaving], &[topic]).await);
            }
            wait_until_linked(&hub[next], topic, &mut staying[1][0]).await;
            wait_until_linked(&hub[next], topic, &mut moving[0]).await;

            let mut publisher = Publisher::new(&hub[next], topic).await;
            hub[leaving].signal("TERM");
            wait_for("the drain", async {
                while !hub[leaving].stderr().contains("Server stopped") {
                    publisher.publish().await;
                }
            })
            .await;
            assert!(hub[leaving].wait().success());
            let gone = Instant::now();
            let mut back = Vec::new();
            for (n, client) in moving.iter_mut().enumerate() {
                let delay = wait_for("the end", reconnect_delay(client)).await;
                assert!(
                    delay < Duration::from_secs(5),
                    "other nodes are up, so the client need not wait: {delay:?}"
                );
                tokio::time::sleep_until((gone + delay).into()).await;
                let to = if n % 2 == 0 { next } else { other };
                back.push(subscribed(&hub[to], &[topic]).await);
            }
            hub[leaving] = node(&broker.url(), ["a", "b", "c"][leaving], FLAGS);
            for node in &hub {
                wait_until_ready(node).await;
                eventually("all nodes", async || names_of_nodes(node).await == ["a", "b", "c"]).await;
            }
            back.push(subscribed(&hub[leaving], &[topic]).await);
            for client in &mut back {
                wait_until_linked(&hub[next], topic, client).await;
            }

            let after = publisher.next;
            publisher.publish_many(20).await;
            let all: Vec<_> = (0..publisher.next).collect();
            for client in staying.iter_mut().flatten() {
                assert_eq!(read_numbers(client, publisher.next - 1).await, all);
            }
            for client in &mut back {
                let received = read_numbers(client, publisher.next - 1).await;
                check_order(&received);
                assert!(received.ends_with(&all[after as usize..]), "{after}: {received:?}");
            }
        }
    }
}
