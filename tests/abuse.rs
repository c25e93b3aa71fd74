//! Bad input of every kind: the server reports it or closes the connection, other clients are
//! unaffected, and memory is released.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::wire::{Wire, masked};
use crate::support::{Client, Server, WAIT_TIMEOUT, http, wait_for};

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const PING: u8 = 0x89;

/// Tolerated growth of memory after an attack; far below the memory that an attack takes.
const MEMORY_TOLERANCE: u64 = 16 << 20;

/// A client that keeps sending echoes while others misbehave.
struct EchoClient {
    echoes: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl EchoClient {
    async fn start(server: &Server) -> Self {
        let mut client = Client::connect(server).await;
        let (echoes, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (counted, stopped) = (Arc::clone(&echoes), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let n = counted.load(Ordering::Relaxed);
                let echo = json!({"type": "echo", "id": n, "data": "y".repeat(100)});
                assert_eq!(client.request(&echo).await, echo);
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
        Self { echoes, stop, task }
    }

    /// Waits for an echo that was sent after this call.
    async fn wait_for_echo(&self) {
        let now = self.echoes.load(Ordering::Relaxed);
        wait_for("an echo of the healthy client", async {
            while self.echoes.load(Ordering::Relaxed) < now + 2 {
                assert!(!self.task.is_finished(), "the healthy client's connection failed");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("the healthy client did not fail");
    }
}

/// Runs many misbehaving peers at once, three times. `peer` returns its connection, which stays
/// open until all peers are done.
pub(crate) async fn check_harmless<P, F, C>(flags: &[&str], peers: usize, peer: P)
where
    P: Fn(std::net::SocketAddr) -> F,
    F: Future<Output = C> + Send + 'static,
    C: Send + 'static,
{
    let server = Server::start(&[flags, &["--workers", "1", "--rate-limit", "0"]].concat());
    let echo_client = EchoClient::start(&server).await;
    let (mut resident, mut files) = (0, 0);
    for round in 0..3 {
        let mut attack = JoinSet::new();
        for _ in 0..peers {
            attack.spawn(peer(server.clients));
        }
        echo_client.wait_for_echo().await;
        let connections = attack.join_all().await;
        echo_client.wait_for_echo().await;
        drop(connections);
        wait_for("the end of the others' connections and subscriptions", async {
            while !is_only_one_left(&server).await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        if round == 0 {
            // From here on, the buffers that a worker keeps have their final size.
            (resident, files) = (server.resident_bytes(), server.open_files());
        }
    }
    echo_client.stop().await;
    let (resident_now, files_now) = (server.resident_bytes(), server.open_files());
    assert!(resident_now <= resident + MEMORY_TOLERANCE, "{resident} bytes grew to {resident_now}");
    assert!(files_now <= files + 4, "{files} files grew to {files_now}");
}

async fn is_only_one_left(server: &Server) -> bool {
    let metrics = http(server.api(), "GET /metrics", &[], "").await.body;
    let topics = http(server.api(), "GET /v1/topics", &[], "").await.json();
    metrics.contains("\ndeeperhub_connections_active 1\n")
        && metrics.contains("\ndeeperhub_subscriptions 0\n")
        && topics["topics"] == json!([])
}

/// Connects and writes bytes for as long as the server accepts them, without reading.
pub(crate) async fn send_bytes(
    address: std::net::SocketAddr,
    parts: impl IntoIterator<Item = Vec<u8>>,
) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("the server accepts connections");
    for part in parts {
        // The server stops reading from a peer that does not read; the write timeout ends such a
        // peer.
        match tokio::time::timeout(Duration::from_millis(500), stream.write_all(&part)).await {
            Ok(Ok(())) => {}
            _ => break,
        }
    }
    stream
}

const HANDSHAKE: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// Like [`send_bytes`], after a valid handshake.
pub(crate) async fn send_as_client(
    address: std::net::SocketAddr,
    parts: impl IntoIterator<Item = Vec<u8>>,
) -> TcpStream {
    send_bytes(address, std::iter::once(HANDSHAKE.to_vec()).chain(parts)).await
}

#[tokio::test]
async fn unfinished_handshakes() {
    check_harmless(&["--handshake-timeout", "300ms"], 200, |address| {
        send_bytes(
            address,
            (0..40).map(|n| format!("GET / HTTP/1.1\r\nX-{n}: ")[usize::from(n > 0) * 16..].into()),
        )
    })
    .await;
}

#[tokio::test]
async fn endless_headers() {
    check_harmless(&[], 100, |address| {
        let lines = std::iter::repeat_n(format!("X: {}\r\n", "x".repeat(8000)).into_bytes(), 100);
        send_bytes(address, std::iter::once(b"GET / HTTP/1.1\r\n".to_vec()).chain(lines))
    })
    .await;
}

#[tokio::test]
async fn silent_connections_and_garbage() {
    check_harmless(&["--handshake-timeout", "300ms"], 200, |address| {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let garbage = std::iter::repeat_with(move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed.to_le_bytes()
        });
        async move {
            let silent = send_bytes(address, []).await;
            let noisy = send_bytes(address, [garbage.take(1000).flatten().collect()]).await;
            (silent, noisy)
        }
    })
    .await;
}

#[tokio::test]
async fn broken_and_oversized_frames() {
    check_harmless(&[], 100, |address| async move {
        let announced = [&[TEXT, 0xff], &(1_u64 << 40).to_be_bytes()[..], &[0; 4]].concat();
        let unmasked = vec![TEXT, 2, b'{', b'}'];
        let mut connections = Vec::new();
        for bytes in [announced, unmasked, masked(0x83, b""), masked(TEXT, b"\xff")] {
            connections.push(
                send_as_client(address, std::iter::once(bytes).chain((0..10).map(|_| vec![0; 1000]))).await,
            );
        }
        connections
    })
    .await;
}

#[tokio::test]
async fn unfinished_messages() {
    // Each connection sends almost a whole message, which the server must buffer.
    check_harmless(&[], 300, |address| {
        let part = masked(0x01, &[b'x'; 30_000]);
        let rest = masked(0x00, &[b'x'; 30_000]);
        send_as_client(address, [part, rest])
    })
    .await;
}

#[tokio::test]
async fn endless_broken_and_deep_json() {
    check_harmless(&[], 20, |address| {
        let deep = masked(TEXT, &[b'['; 10_000]);
        let broken = masked(TEXT, br#"{"type":"echo","data":"#);
        send_as_client(address, (0..200).flat_map(move |_| [deep.clone(), broken.clone()]))
    })
    .await;
}

#[tokio::test]
async fn floods_of_pings_and_binary_frames_from_peers_that_do_not_read() {
    check_harmless(&[], 20, |address| {
        let pings = masked(PING, &[0; 125]).repeat(1000);
        let binary = masked(BINARY, &[0; 60_000]);
        send_as_client(address, (0..30).flat_map(move |_| [pings.clone(), binary.clone()]))
    })
    .await;
}

#[tokio::test]
async fn echoes_for_peers_that_do_not_read() {
    check_harmless(&["--max-queue-bytes", "100000"], 20, |address| {
        let echo = masked(TEXT, format!(r#"{{"type":"echo","data":"{}"}}"#, "y".repeat(60_000)).as_bytes());
        send_as_client(address, std::iter::repeat_n(echo, 200))
    })
    .await;
}

#[tokio::test]
async fn masses_of_subscriptions() {
    check_harmless(&["--max-subscriptions", "1000"], 20, |address| {
        let subscribe = |n: u32| {
            let topic = format!("{}.{n}.*", "level.".repeat(30));
            masked(TEXT, format!(r#"{{"type":"subscribe","data":{{"topic":"{topic}"}}}}"#).as_bytes())
        };
        send_as_client(address, (0..500).map(move |n| subscribe(n * 20)))
    })
    .await;
}

#[tokio::test]
async fn peers_that_neither_read_nor_answer_pings_are_closed() {
    let server = Server::start(&["--ping-interval", "100ms", "--pong-timeout", "200ms"]);
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(send_as_client(server.clients, []).await);
    }
    wait_for("the end of their sessions", async {
        while http(server.api(), "GET /v1/clients", &[], "").await.json()["clients"] != json!([]) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    // The bytes sent before are still readable, followed by the end of the stream.
    for mut stream in silent {
        let mut all = Vec::new();
        tokio::time::timeout(WAIT_TIMEOUT, stream.read_to_end(&mut all)).await.expect("it ends").ok();
        assert!(String::from_utf8_lossy(&all).contains("no sign of life in time"));
    }
    let mut wire = Wire::connect(&server, None).await;
    wire.send(TEXT, br#"{"type":"ping"}"#).await;
    assert_eq!(wire.receive_text().await.0, r#"{"type":"pong"}"#);
}
