//! The server API under attack: what proves health goes on, every wait has an end, and answers arrive.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::attack::{Entrance, ends};
use crate::healthy::Healthy;
use crate::support::{Server, http};

/// The places of the API that attackers take.
const PLACES: usize = 8;

/// How long an answer may take that does not depend on the attackers.
const SOON: Duration = Duration::from_secs(10);

fn start(flags: &[&str]) -> Server {
    Server::start(&[&["--max-api-connections", "8"], flags].concat())
}

/// Opens a connection to the API and says something.
async fn say(api: SocketAddr, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(api).await.expect("the API takes connections");
    // What the server does not want any more is lost.
    let _ = stream.write_all(text.as_bytes()).await;
    stream
}

/// The status of a call on a connection of its own; 0 where the connection ended without an answer.
async fn status(api: SocketAddr, path: &str) -> Result<u16, String> {
    let call = async {
        let mut stream =
            say(api, &format!("GET {path} HTTP/1.1\r\nHost: {api}\r\nConnection: close\r\n\r\n")).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
    };
    let answer = tokio::time::timeout(SOON, call).await;
    answer.map_err(|_| format!("GET {path} was not answered in {SOON:?}"))
}

/// What an orchestrator asks is answered, and other calls are answered or refused.
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

async fn take_all_places(server: &Server, text: &str) -> Vec<TcpStream> {
    join_all((0..PLACES + 4).map(|_| say(server.api(), text))).await
}

#[tokio::test]
async fn health_is_told_while_idle_connections_take_all_places() {
    let server = start(&[]);
    let request = format!("GET /health/live HTTP/1.1\r\nHost: {}\r\n\r\n", server.api());
    let mut idle = take_all_places(&server, &request).await;
    let mut answered = 0;
    for stream in &mut idle {
        let mut buffer = [0; 1024];
        let read = tokio::time::timeout(Duration::from_secs(2), stream.read(&mut buffer)).await;
        answered += usize::from(matches!(read, Ok(Ok(1..))));
    }
    assert!(answered >= PLACES, "{answered} of {PLACES} connections were answered");
    check_health(&server, "idle connections").await;
}

#[tokio::test]
async fn health_is_told_while_heads_that_never_end_take_all_places() {
    let server = start(&[]);
    let _held = take_all_places(&server, "GET /v1/stats HTTP/1.1\r\nHost: ").await;
    check_health(&server, "heads that never end").await;
}

#[tokio::test]
async fn health_is_told_while_bodies_that_never_end_take_all_places() {
    let server = start(&[]);
    let _held = take_all_places(&server, &unfinished_body(&server)).await;
    check_health(&server, "bodies that never end").await;
}

fn unfinished_body(server: &Server) -> String {
    format!(
        "POST /v1/topics/a/messages HTTP/1.1\r\nHost: {}\r\nContent-Length: 1000\r\n\r\n\"ten",
        server.api()
    )
}

#[tokio::test]
#[ignore = "long: up to two minutes"]
async fn a_body_that_never_ends_is_given_up() {
    let server = start(&[]);
    let held = take_all_places(&server, &unfinished_body(&server)).await;
    for mut stream in held {
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(120), stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "a body was waited for longer than two minutes");
    }
}

/// Each takes all events and reads none, while clients cause many.
#[tokio::test]
async fn health_is_told_while_event_streams_are_never_read() {
    let server = start(&[]);
    let request = format!("GET /v1/events HTTP/1.1\r\nHost: {}\r\n\r\n", server.api());
    let _held = take_all_places(&server, &request).await;
    let before = server.resident_bytes();
    let entrance = Entrance::plain(server.clients);
    let healthy =
        Healthy::start(std::slice::from_ref(&entrance), 4, 1).unwrap_or_else(|error| panic!("{error}"));
    // Events of binary messages have their payload in them.
    let mut crowd = crate::attack::Crowd::default();
    crowd.gather(crate::attack::Attack::Binary, &[entrance], 2);
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        check_health(&server, "event streams that are never read").await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let tally = crowd.disperse().await.unwrap_or_else(|error| panic!("{error}"));
    let report = healthy.stop().unwrap_or_else(|error| panic!("{error}; {tally}"));
    let grown = server.peak_resident_bytes().saturating_sub(before) >> 20;
    println!("{tally}; {report}{grown} MiB more");
    assert!(grown < 128, "streams that nobody reads took {grown} MiB");
}

/// Sends a whole request, and only then reads the answer.
async fn status_read_late(api: SocketAddr, head: &str, body: usize) -> Result<u16, String> {
    let call = async {
        let mut stream = say(api, &format!("{head}Host: {api}\r\nContent-Length: {body}\r\n\r\n")).await;
        for part in vec![b'1'; body].chunks(16 * 1024) {
            if stream.write_all(part).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let mut answer = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) => break,
                Ok(len) => answer.extend_from_slice(&buffer[..len]),
                Err(error) if answer.is_empty() => return Err(error.to_string()),
                Err(_) => break,
            }
            // A connection that stays open has answered as well.
            if answer.windows(4).any(|window| window == b"\r\n\r\n") {
                break;
            }
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        status.ok_or_else(|| format!("no status in {:?}", ends(&answer)))
    };
    tokio::time::timeout(SOON, call).await.unwrap_or_else(|_| Err(format!("no answer in {SOON:?}")))
}

#[tokio::test]
async fn a_refusal_reaches_a_backend_whose_body_is_still_coming() {
    let server = Server::start(&["--api-key", "the-key"]);
    let authorized = "Authorization: Bearer the-key\r\n";
    for (what, head, body, expected) in [
        ("too long", format!("POST /v1/topics/a/messages HTTP/1.1\r\n{authorized}"), 400_000, 413),
        ("without the key", "POST /v1/topics/a/messages HTTP/1.1\r\n".to_owned(), 60_000, 401),
        ("to no call", format!("POST /v1/nothing HTTP/1.1\r\n{authorized}"), 400_000, 404),
        ("by a wrong method", format!("PUT /v1/clients HTTP/1.1\r\n{authorized}"), 400_000, 405),
    ] {
        let answers = join_all((0..20).map(|_| status_read_late(server.api(), &head, body))).await;
        let lost: Vec<_> = answers.iter().filter(|answer| **answer != Ok(expected)).collect();
        assert!(lost.is_empty(), "{} of 20 answers to a body {what}: {:?}", lost.len(), lost.first());
    }
}

/// Batches of the most calls, one after the other on several connections.
#[tokio::test]
async fn batches_of_the_most_calls_hold_nobody_up() {
    let server = Server::start(&["--workers", "1"]);
    let calls = vec![r#"{"publish":{"topic":"batch.nobody","message":1}}"#; 256].join(",");
    let batch = format!(r#"{{"calls":[{calls}]}}"#);
    let healthy =
        Healthy::start(&[Entrance::plain(server.clients)], 4, 2).unwrap_or_else(|error| panic!("{error}"));
    let mut attack = JoinSet::new();
    let end = Instant::now() + Duration::from_secs(2);
    for _ in 0..8 {
        let (api, batch) = (server.api(), batch.clone());
        attack.spawn(async move {
            let mut batches = 0;
            while Instant::now() < end {
                let answer = http(api, "POST /v1/batch", &[], &batch).await;
                assert_eq!(answer.status, 200, "{}", ends(&answer.body));
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
