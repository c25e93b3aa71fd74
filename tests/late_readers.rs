//! Clients that read late: queued messages arrive whole, once and in order, regardless of partial
//! writes.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, client_async};

use crate::support::{Capability, Client, Server, metric, wait_for};

/// Flags without limits that these tests do not cover.
const FLAGS: &[&str] = &["--workers", "1", "--rate-limit", "0", "--max-queue-bytes", "67108864"];

/// Connects a client with a small receive buffer, so that the server's socket is soon full.
async fn with_small_buffer(server: &Server) -> Client {
    let url = server.url("/");
    let address = url.trim_start_matches("ws://").trim_end_matches('/').parse().unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let stream = socket.connect(address).await.unwrap();
    let (socket, _): (WebSocketStream<_>, _) =
        wait_for("the handshake", client_async(url, MaybeTlsStream::Plain(stream))).await.unwrap();
    let mut client = Client { socket, welcome: Value::Null };
    client.welcome = client.receive().await;
    client
}

#[tokio::test]
async fn long_echoes_reach_a_client_that_reads_late() {
    const MESSAGES: usize = 1000;
    let server = Server::start(FLAGS);
    let mut client = with_small_buffer(&server).await;
    // Different lengths, so that the socket fills up at different positions within a frame.
    let message = |n: usize| {
        let data = json!({"n": n, "pad": "é".repeat(4000 + n * 37 % 5000)});
        json!({"type": "echo", "id": n, "data": data})
    };
    let mut pings = 0;
    for n in 0..MESSAGES {
        client.send(&message(n)).await;
        if n % 10 == 0 {
            wait_for("a ping", client.socket.send(Message::Ping(n.to_string().into()))).await.unwrap();
            pings += 1;
        }
    }
    wait_for_queued_messages(&server).await;
    let (mut echoes, mut pongs) = (0, 0);
    while echoes < MESSAGES {
        match wait_for("an echo", client.socket.next()).await.unwrap().unwrap() {
            Message::Text(text) => {
                assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), message(echoes));
                echoes += 1;
            }
            Message::Pong(_) => pongs += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(pongs <= pings);
    assert_eq!(client.request(&json!({"type": "ping", "id": 1})).await, json!({"type": "pong", "id": 1}));
}

#[tokio::test]
async fn bursts_to_many_reach_clients_that_read_late() {
    check_bursts("auto").await;
}

#[tokio::test]
async fn bursts_reach_late_readers_without_io_uring() {
    check_bursts("off").await;
}

async fn check_bursts(io_uring: &str) {
    const ROUNDS: usize = 300;
    const BURST: usize = 8;
    let server = Server::start(&[FLAGS, &["--io-uring", io_uring]].concat());
    if io_uring == "off" {
        assert_eq!(metric(&server, "deeperhub_io_uring_workers").await, 0);
    } else if Capability::IoUring.check(uses_io_uring(&server).await).is_none() {
        return;
    }
    let mut late = Vec::new();
    for _ in 0..6 {
        late.push(with_small_buffer(&server).await);
    }
    let mut prompt = Vec::new();
    for _ in 0..8 {
        prompt.push(Client::connect(&server).await);
    }
    for (n, client) in late.iter_mut().chain(&mut prompt).enumerate() {
        let topics: &[&str] = if n % 2 == 0 { &["a"] } else { &["a", "b.*"] };
        for topic in topics {
            let reply = client.request(&json!({"type": "subscribe", "data": {"topic": topic}})).await;
            assert_eq!(reply["type"], "subscribed");
        }
    }
    let mut publisher = Client::connect(&server).await;
    let message = |n: usize| json!({"n": n, "pad": "x".repeat(2000 + n * 131 % 3000)});
    let topic = |n: usize| if n.is_multiple_of(3) { "b.c" } else { "a" };
    for round in 0..ROUNDS {
        for n in round * BURST..(round + 1) * BURST {
            let data = json!({"topic": topic(n), "message": message(n)});
            feed_message(&mut publisher, &json!({"type": "publish", "data": data})).await;
        }
        wait_for("a burst", publisher.socket.flush()).await.unwrap();
    }
    wait_for_queued_messages(&server).await;
    for (n, client) in prompt.iter_mut().chain(&mut late).enumerate() {
        for n in (0..ROUNDS * BURST).filter(|m| n % 2 == 1 || topic(*m) == "a") {
            let delivery = client.receive().await;
            assert_eq!(delivery["data"]["topic"], topic(n));
            assert_eq!(delivery["data"]["message"], message(n));
        }
        assert_eq!(client.request(&json!({"type": "ping", "id": 1})).await, json!({"type": "pong", "id": 1}));
    }
}

/// Waits until the server's worker uses io_uring. Returns an error if it cannot.
async fn uses_io_uring(server: &Server) -> Result<(), &'static str> {
    wait_for("a worker that uses io_uring or logs why not", async {
        loop {
            if metric(server, "deeperhub_io_uring_workers").await > 0 {
                return Ok(());
            }
            if server.stderr().contains("io_uring unavailable") {
                return Err("the server cannot use it");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

/// Waits until the server reports non-empty queues: sockets are full then.
async fn wait_for_queued_messages(server: &Server) {
    wait_for("queues that are not empty", async {
        while metric(server, "deeperhub_queue_bytes").await == 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

async fn feed_message(client: &mut Client, message: &Value) {
    wait_for("sending", client.socket.feed(Message::text(message.to_string()))).await.unwrap();
}
