//! The server API under attack: health checks answer, waits end, and responses arrive.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::attack::{ConnectOptions, ends};
use crate::healthy::HealthyClients;
use crate::support::{Server, http};

/// Value of `--max-api-connections`; attackers open more connections.
const MAX_CONNECTIONS: usize = 8;

/// Bound on a response while attackers hold their connections.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

fn start(flags: &[&str]) -> Server {
    Server::start(&[&["--max-api-connections", "8"], flags].concat())
}

/// Opens a connection to the API and writes `text`.
async fn connect_and_write(api: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(api).await.expect("the API accepts connections");
    // The server may have closed it already.
    let _ = stream.write_all(text.as_bytes()).await;
    stream
}

/// Returns the status of a GET on a new connection; 0 if the connection ended without a response.
async fn status(api: SocketAddr, path: &str) -> Result<u16, String> {
    let call = async {
        let mut stream = connect_and_write(
            api,
            &format!("GET {path} HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\n\r\n"),
        )
        .await;
        let mut response = Vec::new();
        let _ = stream.read_to_end(&mut response).await;
        let response = String::from_utf8_lossy(&response).into_owned();
        response.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    };
    let response = tokio::time::timeout(ANSWER_TIMEOUT, call).await;
    response.map_err(|_| format!("GET {path} was not answered in {ANSWER_TIMEOUT:?}"))
}

/// Checks that health checks answer 200 and that other calls are answered or refused.
async fn check_health(server: &Server, attack: &str) {
    for _ in 0..3 {
        for path in ["/health/live", "/health/ready"] {
            let status = status(server.api(), path).await.unwrap_or_else(|error| panic!("{attack}: {error}"));
            assert_eq!(status, 200, "{attack}: GET {path}");
        }
    }
    let status = status(server.api(), "/v1/stats").await.unwrap_or_else(|error| panic!("{attack}: {error}"));
    assert!([200, 503, 0].contains(&status), "{attack}: GET /v1/stats answered {status}");
}

async fn open_all(server: &Server, text: &str) -> Vec<TcpStream> {
    join_all((0..MAX_CONNECTIONS + 4).map(|_| connect_and_write(server.api(), text))).await
}

#[tokio::test]
async fn health_checks_answer_beside_idle_connections() {
    let server = start(&[]);
    let request = format!("GET /health/live HTTP/1.1\r\nHost: {}\r\n\r\n", server.api());
    let mut idle = open_all(&server, &request).await;
    let mut answered = 0;
    for stream in &mut idle {
        let mut buffer = [0; 1024];
        let read = tokio::time::timeout(Duration::from_secs(2), stream.read(&mut buffer)).await;
        answered += usize::from(matches!(read, Ok(Ok(1..))));
    }
    assert!(answered >= MAX_CONNECTIONS, "{answered} of {MAX_CONNECTIONS} connections were answered");
    check_health(&server, "idle connections").await;
}

#[tokio::test]
async fn health_checks_answer_beside_unfinished_heads() {
    let server = start(&[]);
    let _held = open_all(&server, "GET /v1/stats HTTP/1.1\r\nHost: ").await;
    check_health(&server, "unfinished heads").await;
}

#[tokio::test]
async fn health_checks_answer_beside_unfinished_bodies() {
    let server = start(&[]);
    let _held = open_all(&server, &unfinished_body(&server)).await;
    check_health(&server, "unfinished bodies").await;
}

fn unfinished_body(server: &Server) -> String {
    format!(
        "POST /v1/topics/a/messages HTTP/1.1\r\nHost: {}\r\nContent-Length: 1000\r\n\r\n\"ten",
        server.api()
    )
}

#[tokio::test]
#[ignore = "long: up to two minutes"]
async fn an_unfinished_body_times_out() {
    let server = start(&[]);
    let held = open_all(&server, &unfinished_body(&server)).await;
    for mut stream in held {
        let mut response = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(120), stream.read_to_end(&mut response)).await;
        assert!(ended.is_ok(), "a body was waited for longer than two minutes");
    }
}

#[tokio::test]
async fn health_checks_answer_beside_unread_event_streams() {
    let server = start(&[]);
    let request = format!("GET /v1/events HTTP/1.1\r\nHost: {}\r\n\r\n", server.api());
    let _held = open_all(&server, &request).await;
    let before = server.resident_bytes();
    let options = ConnectOptions::plain(server.clients);
    let healthy =
        HealthyClients::start(std::slice::from_ref(&options), 4, 1).unwrap_or_else(|error| panic!("{error}"));
    // Events of binary messages contain the payload.
    let mut attackers = crate::attack::Attackers::default();
    attackers.spawn(crate::attack::Attack::Binary, &[options], 2);
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        check_health(&server, "unread event streams").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let counters = attackers.stop().await.unwrap_or_else(|error| panic!("{error}"));
    let report = healthy.stop().unwrap_or_else(|error| panic!("{error}; {counters}"));
    let grown = server.peak_resident_bytes().saturating_sub(before) >> 20;
    println!("{counters}; {report}{grown} MiB more");
    assert!(grown < 128, "unread streams took {grown} MiB");
}

/// Sends a whole request before it reads the response.
async fn status_read_late(api: SocketAddr, head: &str, body: usize) -> Result<u16, String> {
    let call = async {
        let mut stream =
            connect_and_write(api, &format!("{head}Host: {api}\r\nContent-Length: {body}\r\n\r\n")).await;
        for part in vec![b'1'; body].chunks(16 * 1024) {
            if stream.write_all(part).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let mut response = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) => break,
                Ok(len) => response.extend_from_slice(&buffer[..len]),
                Err(error) if response.is_empty() => return Err(error.to_string()),
                Err(_) => break,
            }
            // The server may keep the connection open.
            if response.windows(4).any(|window| window == b"\r\n\r\n") {
                break;
            }
        }
        let response = String::from_utf8_lossy(&response).into_owned();
        let status = response.split(' ').nth(1).and_then(|status| status.parse().ok());
        status.ok_or_else(|| format!("no status in {:?}", ends(&response)))
    };
    tokio::time::timeout(ANSWER_TIMEOUT, call)
        .await
        .unwrap_or_else(|_| Err(format!("no response in {ANSWER_TIMEOUT:?}")))
}

#[tokio::test]
async fn a_refusal_reaches_a_backend_that_still_sends_the_body() {
    let server = Server::start(&["--api-key", "the-key"]);
    let authorized = "Authorization: Bearer the-key\r\n";
    for (what, head, body, expected) in [
        ("too long", format!("POST /v1/topics/a/messages HTTP/1.1\r\n{authorized}"), 400_000, 413),
        ("without the key", "POST /v1/topics/a/messages HTTP/1.1\r\n".to_owned(), 60_000, 401),
        ("to no call", format!("POST /v1/nothing HTTP/1.1\r\n{authorized}"), 400_000, 404),
        ("by a wrong method", format!("PUT /v1/clients HTTP/1.1\r\n{authorized}"), 400_000, 405),
    ] {
        let answers = join_all((0..20).map(|_| status_read_late(server.api(), &head, body))).await;
        let lost: Vec<_> = answers.iter().filter(|response| **response != Ok(expected)).collect();
        assert!(lost.is_empty(), "{} of 20 answers to a body {what}: {:?}", lost.len(), lost.first());
    }
}

/// Sends batches of the maximum size without a pause on several connections.
#[tokio::test]
async fn batches_of_the_maximum_size_do_not_delay_clients() {
    let server = Server::start(&["--workers", "1"]);
    let calls = vec![r#"{"publish":{"topic":"batch.nobody","message":1}}"#; 256].join(",");
    let batch = format!(r#"{{"calls":[{calls}]}}"#);
    let healthy = HealthyClients::start(&[ConnectOptions::plain(server.clients)], 4, 2)
        .unwrap_or_else(|error| panic!("{error}"));
    let mut attack = JoinSet::new();
    let end = Instant::now() + Duration::from_secs(2);
    for _ in 0..8 {
        let (api, batch) = (server.api(), batch.clone());
        attack.spawn(async move {
            let mut batches = 0;
            while Instant::now() < end {
                let response = http(api, "POST /v1/batch", &[], &batch).await;
                assert_eq!(response.status, 200, "{}", ends(&response.body));
                batches += 1;
            }
            batches
        });
    }
    let batches: usize = attack.join_all().await.into_iter().sum();
    let report = healthy.stop().unwrap_or_else(|error| panic!("{error}; after {batches} batches"));
    println!("{batches} batches of 256 calls; {report}");
    assert!(report.p99() < Duration::from_secs(1), "{batches} batches of 256 calls: {report}");
}
