//! Limits in observe-only mode, their counters, and limits that are enforced.

use serde_json::{Value, json};

use crate::support::wire::{TEXT, Wire, masked};
use crate::support::{Client, Server, TemporaryDir, http, metric, wait_for};

const RATE: [&str; 4] = ["--rate-limit", "1", "--rate-burst", "2"];

/// Sends messages faster than the rate allows and returns the replies.
async fn exceed_rate(server: &Server) -> Vec<String> {
    let mut client = Client::connect(server).await;
    let mut answers = Vec::new();
    for _ in 0..5 {
        let response = client.request(&json!({"type": "ping"})).await;
        answers.push(response["type"].as_str().unwrap_or_default().to_owned());
    }
    answers
}

#[tokio::test]
async fn observed_rates_are_counted_and_refuse_nothing() {
    let server = Server::start(&[&RATE[..], &["--limits", "observe"]].concat());
    assert_eq!(exceed_rate(&server).await, ["pong"; 5]);
    assert!(metric(&server, "deeperhub_messages_limited_total{limit=\"messages\"}").await >= 1);
}

#[tokio::test]
async fn enforced_rates_are_counted() {
    let server = Server::start(&RATE);
    let answers = exceed_rate(&server).await;
    let refused = answers.iter().filter(|response| *response == "error").count() as u64;
    assert!(refused >= 1, "{answers:?}");
    assert_eq!(metric(&server, "deeperhub_messages_limited_total{limit=\"messages\"}").await, refused);
}

#[tokio::test]
async fn observed_address_limits_are_counted_and_refuse_nothing() {
    let server = Server::start(&["--max-connections-per-ip", "1", "--limits", "observe"]);
    let _first = Client::connect(&server).await;
    let _second = Client::connect(&server).await;
    assert_eq!(
        metric(&server, "deeperhub_connections_limited_total{limit=\"max_connections_per_ip\"}").await,
        1
    );
}

#[tokio::test]
async fn memory_limits_are_enforced_in_observe_mode() {
    let server = Server::start(&["--max-subscriptions", "1", "--limits", "observe"]);
    let mut client = Client::connect(&server).await;
    for (topic, expected) in [("a", "subscribed"), ("b", "error")] {
        let response = client.request(&json!({"type": "subscribe", "data": {"topic": topic}})).await;
        assert_eq!(response["type"], expected, "{response}");
    }
    assert_eq!(metric(&server, "deeperhub_messages_limited_total{limit=\"subscriptions\"}").await, 1);
}

fn nested(levels: usize) -> String {
    "[".repeat(levels) + &"]".repeat(levels)
}

#[tokio::test]
async fn too_deep_json_is_an_invalid_message_and_nothing_more() {
    let server = Server::start(&[]);
    let mut client = Client::connect(&server).await;
    for levels in [127, 1000, 30_000] {
        client.send_text(&format!(r#"{{"type":"echo","data":{},"id":"deep"}}"#, nested(levels))).await;
        let error = client.receive().await;
        assert_eq!((&error["data"]["code"], &error["id"]), (&json!("invalid_message"), &json!("deep")));
        assert!(error["data"]["message"].as_str().unwrap().contains("127"), "{error}");
        let response = http(server.api(), "POST /v1/topics/a/messages", &[], &nested(levels)).await;
        assert_eq!((response.status, &response.json()["error"]["code"]), (400, &json!("invalid_message")));
        // Unfinished JSON is not counted as nested too deep.
        client.send_text(&"[".repeat(levels)).await;
        assert_eq!(client.receive().await["data"]["code"], "invalid_json");
    }
    client.send_text(&format!(r#"{{"type":"echo","id":1,"data":{}}}"#, nested(126))).await;
    assert_eq!(client.receive().await["type"], "echo");
    assert_eq!(metric(&server, "deeperhub_messages_limited_total{limit=\"json_depth\"}").await, 3);
}

#[tokio::test]
async fn the_json_depth_limit_is_configurable() {
    let server = Server::start(&["--max-json-depth", "4"]);
    let mut client = Client::connect(&server).await;
    for (levels, expected) in [(3, "echo"), (4, "error")] {
        client.send_text(&format!(r#"{{"type":"echo","data":{}}}"#, nested(levels))).await;
        assert_eq!(client.receive().await["type"], expected, "{levels}");
    }
    for (levels, status) in [(2, 200), (3, 400)] {
        let response = http(server.api(), "POST /v1/topics/a/messages", &[], &nested(levels)).await;
        assert_eq!(response.status, status, "{levels}: {response:?}");
        let body = format!(r#"{{"type":"a","data":{{"b":{}}}}}"#, nested(levels));
        let response = http(server.api(), "POST /v1/broadcast", &[], &body).await;
        assert_eq!(response.status, status, "{levels}: {response:?}");
    }
}

#[tokio::test]
async fn messages_over_a_size_limit_are_counted_by_limit() {
    let server = Server::start(&["--max-message-bytes", "100", "--max-fragments", "3"]);
    let mut at_the_limit = Wire::connect(&server, None).await;
    for (first, part) in [(0x01, r#"{"type":"#), (0x00, r#""pi"#), (0x80, r#"ng"}"#)] {
        at_the_limit.send(first, part.as_bytes()).await;
    }
    assert_eq!(at_the_limit.receive_text().await.0, r#"{"type":"pong"}"#);

    let mut in_pieces = Wire::connect(&server, None).await;
    for first in [0x01, 0x00, 0x00, 0x80] {
        in_pieces.send(first, b"").await;
    }
    assert_eq!(in_pieces.closed().await, (1009, "message has more than 3 fragments".to_owned()));
    let mut long = Wire::connect(&server, None).await;
    long.send(TEXT, &[b' '; 101]).await;
    assert_eq!(long.closed().await, (1009, "message is over 100 bytes".to_owned()));
    for limit in ["bytes", "fragments"] {
        let name = format!("deeperhub_messages_too_big_total{{limit=\"{limit}\"}}");
        assert_eq!(metric(&server, &name).await, 1, "{limit}");
    }
}

/// Sends a request with a header value of `bytes` bytes and returns the response's status.
async fn status_of_head(server: &Server, bytes: usize) -> u16 {
    let line = format!("X: {}", "x".repeat(bytes));
    let short = http(server.clients, "GET /", &["X: "], "").await;
    // A short head is accepted, so the other status depends on the length only.
    assert_eq!(short.status, 426);
    http(server.clients, "GET /", &[&line], "").await.status
}

#[tokio::test]
async fn the_byte_limit_of_a_handshake_is_configurable() {
    for (flags, fits, does_not) in [
        (&[][..], 31_000, 32_800),
        (&["--max-handshake-bytes", "1000"], 500, 1000),
        (&["--max-handshake-bytes", "65535"], 60_000, 65_600),
    ] {
        let server = Server::start(flags);
        assert_eq!(status_of_head(&server, fits).await, 426, "{flags:?}");
        assert_eq!(status_of_head(&server, does_not).await, 400, "{flags:?}");
        assert_eq!(metric(&server, "deeperhub_handshakes_limited_total{limit=\"head_bytes\"}").await, 1);
    }
}

#[tokio::test]
async fn the_header_limit_of_a_handshake_is_configurable() {
    for (flags, limit) in
        [(&[][..], 96), (&["--max-handshake-headers", "10"], 10), (&["--max-handshake-headers=200"], 200)]
    {
        let server = Server::start(flags);
        let status = async |lines: usize| {
            let head = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(lines));
            let mut stream = tokio::net::TcpStream::connect(server.clients).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.unwrap();
            let mut response = String::new();
            let read = tokio::io::AsyncReadExt::read_to_string(&mut stream, &mut response);
            let _ = wait_for("the response", read).await;
            response.split(' ').nth(1).map(str::to_owned)
        };
        assert_eq!(status(limit).await.as_deref(), Some("426"), "{limit}");
        assert_eq!(status(limit + 1).await.as_deref(), Some("400"), "{limit}");
        assert_eq!(metric(&server, "deeperhub_handshakes_limited_total{limit=\"head_lines\"}").await, 1);
    }
}

/// Connects, sends a burst and reconnects repeatedly from one address. Returns the number of echoes
/// and the time taken.
async fn reconnect_in_a_loop(server: &Server) -> (u64, std::time::Duration) {
    let started = std::time::Instant::now();
    let mut echoes = 0;
    for _ in 0..60 {
        let mut client = Client::connect(server).await;
        for n in 0..20 {
            client.send(&json!({"type": "echo", "id": n, "data": n})).await;
        }
        for _ in 0..20 {
            echoes += u64::from(client.receive().await["type"] == "echo");
        }
    }
    (echoes, started.elapsed())
}

#[tokio::test]
async fn reconnecting_does_not_refill_the_burst_of_an_address() {
    let rate = ["--rate-limit", "10", "--rate-burst", "20"];
    let server = Server::start(&[&rate[..], &["--burst-rate-per-ip", "1"]].concat());
    let (echoes, time) = reconnect_in_a_loop(&server).await;
    // Five bursts of 20 at once, 20 more per second, and each connection's own 10 per second.
    let bound = 5 * 20 + ((20 + 10) * time.as_millis() as u64).div_ceil(1000) + 1;
    assert!((100..=bound).contains(&echoes), "{echoes} of {bound} in {time:?}");
    if bound < 1200 {
        assert!(metric(&server, "deeperhub_messages_limited_total{limit=\"first_burst\"}").await > 0);
    }
    // Without the limit, each connection has its own burst.
    let server = Server::start(&[&rate[..], &["--burst-rate-per-ip", "0"]].concat());
    assert_eq!(reconnect_in_a_loop(&server).await.0, 1200);
}

#[tokio::test]
async fn quiet_clients_with_a_shared_address_lose_nothing() {
    let server = Server::start(&["--rate-limit", "10", "--rate-burst", "20"]);
    for _ in 0..100 {
        let mut client = Client::connect(&server).await;
        for n in 0..5 {
            let echo = json!({"type": "echo", "id": n, "data": n});
            assert_eq!(client.request(&echo).await, echo);
        }
    }
    assert_eq!(metric(&server, "deeperhub_messages_limited_total{limit=\"first_burst\"}").await, 0);
}

#[tokio::test]
async fn timed_out_handshakes_are_counted() {
    let server = Server::start(&["--handshake-timeout", "100ms"]);
    let _silent = tokio::net::TcpStream::connect(server.clients).await.unwrap();
    wait_for("the handshake to time out", async {
        while metric(&server, "deeperhub_handshakes_limited_total{limit=\"time\"}").await < 1 {}
    })
    .await;
}

const PING: u8 = 0x89;

#[tokio::test]
async fn every_ping_within_the_limit_is_answered() {
    let server = Server::start(&[]);
    let mut wire = Wire::connect(&server, None).await;
    for n in 0..100_u8 {
        wire.send(PING, &[n]).await;
    }
    for n in 0..100_u8 {
        let pong = wire.receive().await.expect("a pong");
        assert_eq!((pong.first, pong.payload), (0x8a, vec![n]));
    }
    assert_eq!(metric(&server, "deeperhub_messages_limited_total{limit=\"control\"}").await, 0);
}

#[tokio::test]
async fn a_client_that_keeps_exceeding_the_ping_limit_is_closed_with_1008() {
    let server = Server::start(&["--control-rate-limit", "5"]);
    let mut pinging = Wire::connect(&server, None).await;
    pinging.write(&masked(PING, b"x").repeat(1000)).await;
    let mut pongs = 0;
    let (code, reason) = loop {
        let frame = pinging.receive().await.expect("a close frame comes before the end");
        match (frame.first, frame.payload.split_first_chunk()) {
            (0x8a, _) => pongs += 1,
            (0x88, Some((code, reason))) => break (u16::from_be_bytes(*code), reason.to_vec()),
            _ => {}
        }
    };
    assert_eq!((code, &*reason), (1008, &b"kept violating the rate limit"[..]));
    assert!((10..100).contains(&pongs), "{pongs}");
    assert!(metric(&server, "deeperhub_messages_limited_total{limit=\"control\"}").await >= 10);
}

#[tokio::test]
async fn every_ping_is_answered_if_the_limit_is_observed_or_off() {
    for flags in [&["--control-rate-limit", "1", "--limits", "observe"][..], &["--control-rate-limit", "0"]] {
        let server = Server::start(flags);
        let mut wire = Wire::connect(&server, None).await;
        wire.write(&masked(PING, b"x").repeat(500)).await;
        for _ in 0..500 {
            assert_eq!(wire.receive().await.map(|frame| frame.first), Some(0x8a), "{flags:?}");
        }
        let counted = metric(&server, "deeperhub_messages_limited_total{limit=\"control\"}").await;
        assert_eq!(counted > 0, flags.contains(&"observe"), "{counted}");
    }
}

#[tokio::test]
async fn limits_are_reloaded_while_connections_stay() {
    let directory = TemporaryDir::new();
    let file = directory.write("hub.toml", "max_json_depth = 127\n");
    let server = Server::start(&["--config", file.to_str().unwrap()]);
    let mut client = Client::connect(&server).await;
    let mut wire = Wire::connect(&server, None).await;
    directory.write(
        "hub.toml",
        "max_json_depth = 3\nmax_fragments = 1\ncontrol_rate_limit = 1\nmax_handshake_bytes = 512\n\
         token_rate_limit = 1\nmax_handshake_headers = 20\n",
    );
    server.signal("HUP");
    server.wait_for_stderr("Reloaded what=\"settings\"");
    wait_for("a shorter limit of levels", async {
        let deep: Value = json!({"type": "echo", "data": [[[1]]]});
        while client.request(&deep).await["type"] != "error" {}
    })
    .await;
    assert_eq!(status_of_head(&server, 600).await, 400);
    wire.send(0x01, b"{").await;
    wire.send(0x80, b"}").await;
    assert_eq!(wire.closed().await.0, 1009);
}
