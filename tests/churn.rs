//! Masses of topics, patterns, pings and handshakes: other clients continue, and memory is
//! released.

use std::net::SocketAddr;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::abuse::{check_harmless, send_as_client, send_bytes};
use crate::support::wire::{RSV1, TEXT, deflated, masked};
use crate::support::{Authority, Client, Server, TlsClient, connect_tls, http, wait_for};

const PING: u8 = 0x89;

/// The last message of an attacker; its reply shows that the server has processed all messages
/// before it.
const LAST_MESSAGE: &str = r#"{"type":"echo","data":"that was all"}"#;

/// Sends messages as fast as the server accepts them and reads all replies to the end.
async fn send_all(address: SocketAddr, messages: impl Iterator<Item = String>) -> TcpStream {
    let (mut from, mut to) = send_as_client(address, []).await.into_split();
    let reader = tokio::spawn(async move {
        let (mut tail, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
        while !tail.windows(12).any(|window| window == b"that was all") {
            let read = wait_for("answers", from.read(&mut buffer)).await.expect("the connection stays");
            assert!(read > 0, "the connection ended: {}", String::from_utf8_lossy(&tail));
            // The reply may arrive in two parts.
            tail.drain(..tail.len().saturating_sub(16));
            tail.extend_from_slice(&buffer[..read]);
        }
        from
    });
    let mut batch = Vec::new();
    for message in messages.chain([LAST_MESSAGE.to_owned()]) {
        batch.extend(masked(TEXT, message.as_bytes()));
        if batch.len() > 32 * 1024 || message == LAST_MESSAGE {
            wait_for("writing", to.write_all(&batch)).await.expect("the connection stays");
            batch.clear();
        }
    }
    let from = reader.await.expect("all answers come");
    from.reunite(to).expect("certificate and key match")
}

/// Subscribes to each topic and pattern once and unsubscribes again, or publishes to it. All peers
/// and rounds use 144,000 topics and 72,000 patterns in half a million messages.
#[tokio::test]
async fn endless_new_topics_and_patterns() {
    check_harmless(&["--no-compression"], 12, |address| async move {
        let own = next_number();
        let messages = (0..2000_u32).flat_map(move |n| {
            let topic = format!("explosion.{own}.{n}.{}", "long.".repeat(10) + "name");
            [
                format!(r#"{{"type":"subscribe","data":{{"topic":"{topic}"}}}}"#),
                format!(
                    r#"{{"type":"publish","data":{{"topic":"{topic}","message":{n},"exclude_self":true}}}}"#
                ),
                format!(r#"{{"type":"unsubscribe","data":{{"topic":"{topic}"}}}}"#),
                format!(r#"{{"type":"subscribe","data":{{"topic":"{own}.{n}.*.>"}}}}"#),
                format!(r#"{{"type":"publish","data":{{"topic":"never.{own}.{n}","message":0}}}}"#),
                format!(r#"{{"type":"unsubscribe","data":{{"topic":"{own}.{n}.*.>"}}}}"#),
                // Invalid topics leave nothing behind either.
                format!(r#"{{"type":"subscribe","data":{{"topic":"no..topic.{own}.{n}"}}}}"#),
            ]
        });
        send_all(address, messages).await
    })
    .await;
}

/// Returns a number that no other call returns.
fn next_number() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT_NUMBER: AtomicU64 = AtomicU64::new(0);
    NEXT_NUMBER.fetch_add(1, Ordering::Relaxed)
}

/// The most topics that a connection may have, all still subscribed when it closes.
#[tokio::test]
async fn connections_that_close_with_every_subscription_they_may_have() {
    check_harmless(&["--max-subscriptions", "2000"], 20, |address| async move {
        let own = next_number();
        let subscribe = move |n: u32| {
            let topic =
                if n.is_multiple_of(2) { format!("held.{own}.{n}") } else { format!("*.{own}.{n}.>") };
            format!(r#"{{"type":"subscribe","data":{{"topic":"{topic}"}}}}"#)
        };
        // Some more than the limit.
        send_all(address, (0..2100).map(subscribe)).await
    })
    .await;
}

/// All peers subscribe to and unsubscribe from the same few topics, which others are subscribed to.
#[tokio::test]
async fn subscription_churn_on_shared_topics_loses_no_message() {
    let server = Server::start(&["--workers", "2", "--rate-limit", "0", "--no-compression"]);
    let mut subscriber = Client::connect(&server).await;
    let mut publisher = Client::connect(&server).await;
    for topic in ["shared.0", "shared.>"] {
        subscriber.request(&json!({"type": "subscribe", "data": {"topic": topic}})).await;
    }
    let mut attack = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let messages = (0..3000_u32).map(|n| {
            let kind = ["subscribe", "unsubscribe"][n as usize % 2];
            let topic = ["shared.0", "shared.>", "shared.*"][n as usize / 2 % 3];
            format!(r#"{{"type":"{kind}","data":{{"topic":"{topic}"}}}}"#)
        });
        attack.spawn(send_all(server.clients, messages));
    }
    let mut sent = 0;
    while !attack.is_empty() {
        let publish = json!({"type": "publish", "id": sent, "data": {"topic": "shared.0", "message": sent}});
        let published = publisher.request(&publish).await;
        assert!(published["data"]["subscribers"].as_u64() >= Some(2), "{published}");
        assert_eq!(subscriber.receive().await["data"]["message"], sent);
        sent += 1;
        while attack.try_join_next().is_some_and(|peer| peer.is_ok()) {}
    }
    let publish = json!({"type": "publish", "id": "last", "data": {"topic": "shared.0", "message": "last"}});
    wait_for("the end of the others' subscriptions", async {
        while publisher.request(&publish).await["data"]["subscribers"] != 2 {
            assert_eq!(subscriber.receive().await["data"]["message"], "last");
        }
    })
    .await;
}

#[tokio::test]
async fn endless_pings_close_their_senders() {
    check_harmless(&[], 20, |address| async move {
        let mut stream = send_as_client(address, [masked(PING, b"0123456789").repeat(20_000)]).await;
        let mut all = Vec::new();
        let _ = wait_for("the end", stream.read_to_end(&mut all)).await;
        let replies = String::from_utf8_lossy(&all);
        assert!(replies.contains("kept violating the rate limit"), "{}", replies.len());
    })
    .await;
}

#[tokio::test]
async fn endless_pings_delay_nobody_if_they_are_allowed() {
    check_harmless(&["--control-rate-limit", "0"], 20, |address| {
        send_as_client(address, std::iter::repeat_n(masked(PING, b"").repeat(5000), 20))
    })
    .await;
}

/// A few hundred bytes each that would decompress to 16 MiB.
#[tokio::test]
async fn messages_that_decompress_to_huge_sizes() {
    let bomb = deflated(&vec![b' '; 16 << 20]);
    check_harmless(&[], 50, move |address| {
        let offer = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
            Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
        let message = masked(TEXT | RSV1, &bomb);
        async move {
            let mut stream = send_bytes(address, [offer.to_vec(), message]).await;
            let mut all = Vec::new();
            let _ = wait_for("the end", stream.read_to_end(&mut all)).await;
            let replies = String::from_utf8_lossy(&all);
            assert!(replies.contains("message is over 65536 bytes"), "{replies}");
        }
    })
    .await;
}

/// Each publishes to a topic that all of them are subscribed to; none of them reads.
#[tokio::test]
async fn subscribers_of_a_hot_topic_that_never_read() {
    check_harmless(&["--max-queue-bytes", "200000", "--no-compression"], 20, |address| {
        let subscribe = masked(TEXT, br#"{"type":"subscribe","data":{"topic":"hot"}}"#);
        let message = "x".repeat(60_000);
        let publish = format!(r#"{{"type":"publish","data":{{"topic":"hot","message":"{message}"}}}}"#);
        let publish = masked(TEXT, publish.as_bytes());
        send_as_client(address, std::iter::once(subscribe).chain(std::iter::repeat_n(publish, 60)))
    })
    .await;
}

/// A full handshake takes CPU time, the target of a handshake flood.
#[tokio::test]
async fn deliveries_continue_during_endless_handshakes() {
    let authority = Authority::new();
    let identity = authority.server("server");
    let flags = ["--workers", "1", "--rate-limit", "0", "--handshake-timeout", "2s"];
    let server = Server::start(&[&identity.flags()[..], &flags].concat());
    let config = authority.trusting(None);
    let mut subscriber = TlsClient::connect(&server, &config).await;
    let mut publisher = TlsClient::connect(&server, &config).await;
    subscriber.request(&json!({"type": "subscribe", "data": {"topic": "t"}})).await;

    let mut attack = tokio::task::JoinSet::new();
    for _ in 0..6 {
        let address = server.clients;
        // Without a session cache, so that no session is resumed.
        let config = authority.trusting(None);
        attack.spawn(async move {
            let mut slow = Vec::new();
            for _ in 0..60 {
                let socket = TcpStream::connect(address).await.expect("the server accepts connections");
                let _ = crate::support::over_tls(socket, &config).await;
                // One more handshake begins and stalls.
                let mut socket = TcpStream::connect(address).await.expect("the server accepts connections");
                let _ = socket.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await;
                slow.push(socket);
            }
            slow
        });
    }
    let mut slow = Vec::new();
    let mut sent = 0;
    while !attack.is_empty() {
        let publish = json!({"type": "publish", "id": sent, "data": {"topic": "t", "message": sent}});
        assert_eq!(publisher.request(&publish).await["data"]["subscribers"], 1);
        assert_eq!(subscriber.receive().await["data"]["message"], sent);
        sent += 1;
        while let Some(done) = attack.try_join_next() {
            slow.extend(done.expect("the server accepts connections"));
        }
    }
    assert!(connect_tls(&server, &config).await.is_ok());
    wait_for("the end of the handshakes", async {
        let over = "\ndeeperhub_handshakes_total{outcome=\"timed_out\"} ";
        loop {
            let metrics = http(server.api(), "GET /metrics", &[], "").await.body;
            let count = metrics.split_once(over).and_then(|(_, rest)| rest.lines().next()?.parse().ok());
            if count >= Some(360) {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    drop(slow);
}
