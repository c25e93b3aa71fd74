//! The memory budget of the whole program.

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Error;

use crate::support::{Authority, Client, Server, TlsClient, connect_tls, metric, wait_for};

/// More than the idle program takes, and far less than one slow client could make it queue here.
const BUDGET: u64 = 128 << 20;

fn server() -> Server {
    let budget = BUDGET.to_string();
    Server::start(&[
        "--max-memory",
        &budget,
        "--max-queue-bytes",
        "1073741824",
        "--rate-limit",
        "0",
        "--no-compression",
        // Frequent pings would detect that the slow client does not answer.
        "--ping-interval",
        "0",
    ])
}

/// Publishes to a client that never reads until the server evicts it. Returns the number of
/// messages.
async fn flood(server: &Server) -> usize {
    let mut publisher = Client::connect(server).await;
    let payload = "x".repeat(60_000);
    let message = json!({"type": "publish", "data": {"topic": "flood", "message": payload}}).to_string();
    for count in 1..=8000 {
        publisher.send_text(&message).await;
        if count % 20 == 0 {
            // Replies are in order, so the server has processed the publishes.
            let pong = publisher.request(&json!({"type": "ping"})).await;
            assert_eq!(pong["type"], "pong");
            if metric(server, "deeperhub_memory_sheds_total").await > 0 {
                return count;
            }
        }
    }
    panic!(
        "{} of memory are in use, and no client was evicted",
        metric(server, "process_resident_memory_bytes").await
    );
}

#[tokio::test]
async fn the_client_with_the_largest_queue_is_evicted_before_memory_runs_out() {
    let server = server();
    let mut slow = Client::connect(&server).await;
    slow.request(&json!({"type": "subscribe", "data": {"topic": "flood"}})).await;
    let mut healthy = Client::connect(&server).await;

    flood(&server).await;

    // The client has a few seconds to read the end.
    let (code, _, _) = slow.closed().await;
    assert_eq!(code, 1013);
    let echo = healthy.request(&json!({"type": "echo", "id": 1, "data": "still here"})).await;
    assert_eq!(echo["data"], "still here");
    // Memory is released, and new connections are accepted again.
    wait_for("room for a new connection", async {
        while let Err(error) = connect_async(server.url("/")).await {
            let Error::Http(response) = error else { panic!("{error}") };
            assert_eq!(response.status(), 503);
            assert!(response.headers().contains_key("retry-after"), "{response:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn connections_over_the_memory_budget_are_refused_with_retry_after() {
    // Less than the idle program takes.
    let server = Server::start(&["--max-memory", "1000000"]);
    wait_for("a refusal", async {
        loop {
            match connect_async(server.url("/")).await {
                // Before the first memory check.
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Err(Error::Http(response)) => {
                    assert_eq!(response.status(), 503);
                    let wait =
                        response.headers()["retry-after"].to_str().ok().and_then(|wait| wait.parse().ok());
                    assert!((1..=60).contains(&wait.unwrap_or(0)), "{response:?}");
                    let body = response.into_body().unwrap_or_default();
                    assert!(String::from_utf8_lossy(&body).contains("\"too_many_connections\""), "{body:?}");
                    break;
                }
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
    assert!(metric(&server, "deeperhub_memory_refusals_total").await >= 1);
}

/// TLS connections that have sent most of a record, which the server must keep until the rest
/// arrives.
#[tokio::test]
async fn clients_with_partial_tls_records_are_evicted_before_memory_runs_out() {
    const PEERS: usize = 1000;
    let authority = Authority::new();
    let identity = authority.server("server");
    let others = ["--workers", "2", "--max-connections", "2000", "--handshake-timeout", "60s"];
    let flags = [&identity.flags()[..], &others].concat();
    // Memory of the idle program, and then with idle connections; each of those takes 16 KiB more
    // later.
    let alone = Server::start(&flags).resident_bytes();
    let idle = alone + 10 * 1024 * PEERS as u64;
    let budget = idle / 8 * 10;
    let server = Server::start(&[&flags[..], &["--max-memory", &budget.to_string()]].concat());
    let config = authority.trusting(None);
    let mut healthy = TlsClient::connect(&server, &config).await;

    let mut attackers = Vec::new();
    for _ in 0..PEERS {
        attackers.push(TlsClient::connect(&server, &config).await);
    }
    assert_eq!(metric(&server, "deeperhub_memory_sheds_total").await, 0, "idle connections fit");

    let mut record = vec![0x17, 3, 3, 0x40, 0x10];
    record.extend([0x5a; 0x4000]);
    for (n, attacker) in attackers.iter_mut().enumerate() {
        let (socket, _) = attacker.socket.get_mut().get_mut();
        let _ = socket.write_all(&record).await;
        if n % 20 == 0 {
            // The program checks its memory ten times a second, less often on a busy machine, and
            // its last tenth is only 4 MB here. So no more is sent at once than it can notice.
            if server.resident_bytes() > budget / 100 * 86 {
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
            assert_eq!(healthy.request(&json!({"type": "echo", "data": n})).await["data"], n);
            assert!(server.resident_bytes() <= budget, "{} of {budget}", server.resident_bytes());
        }
    }
    wait_for("an evicted client", async {
        while metric(&server, "deeperhub_memory_sheds_total").await == 0 {
            assert!(server.resident_bytes() <= budget, "{} of {budget}", server.resident_bytes());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(healthy.request(&json!({"type": "echo", "data": "still here"})).await["data"], "still here");
    drop(attackers);
    wait_for("room for a new connection", async {
        loop {
            // A refused client gets its response over TLS.
            let stream = connect_tls(&server, &config).await.expect("TLS");
            if TlsClient::over(stream, server.url("/")).await.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}
