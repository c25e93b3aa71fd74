//! Compression of messages (RFC 7692): negotiation, bytes on the wire, and faults that close the
//! connection.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use flate2::{Compress, Compression};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{ChildStdout, Command};

use crate::support::wire::{RSV1, TEXT, Wire, deflated, deflated_by, masked};
use crate::support::{Client, Peer, Server, has_browser, http, install, python_bin, script, wait_for};

const OFFER: &str = "permessage-deflate; client_max_window_bits";
const AGREED: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

/// Returns an `echo` message; the reply is the same.
fn echo(data: &Value) -> String {
    format!(r#"{{"type":"echo","data":{data}}}"#)
}

/// Returns an `echo` whose reply is longer than the compression threshold.
fn long_echo() -> String {
    echo(&json!("again and again; ".repeat(60)))
}

async fn subscribed(server: &Server, offer: Option<&str>, topic: &str) -> Wire {
    let mut wire = Wire::connect(server, offer).await;
    let subscribe = json!({"type": "subscribe", "data": {"topic": topic}}).to_string();
    wire.send(TEXT, subscribe.as_bytes()).await;
    assert!(wire.receive_text().await.0.contains("subscribed"));
    wire
}

/// Publishes through the server API and returns the number of subscribers.
async fn publish(server: &Server, topic: &str, message: &Value) -> u64 {
    let call = format!("POST /v1/topics/{topic}/messages");
    let response = http(server.api(), &call, &[], &message.to_string()).await;
    response.json()["subscribers"].as_u64().unwrap_or_else(|| panic!("{response:?}"))
}

/// Returns the value of a counter.
async fn counter(server: &Server, name: &str) -> u64 {
    let metrics = http(server.api(), "GET /metrics", &[], "").await.body;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {metrics}"))
}

/// Waits for the value of a counter. Workers count after they have sent.
async fn wait_for_counter(server: &Server, name: &str, expected: u64) {
    wait_for(&format!("{name} {expected}"), async {
        while counter(server, name).await != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn the_first_acceptable_offer_is_accepted() {
    let server = Server::start(&[]);
    for (offer, response) in [
        (Some(OFFER), Some(AGREED.to_owned())),
        (Some("permessage-deflate"), Some(AGREED.to_owned())),
        (
            Some("x, permessage-deflate; y, permessage-deflate; server_max_window_bits=11"),
            Some(format!("{AGREED}; server_max_window_bits=11")),
        ),
        (Some("permessage-deflate; server_max_window_bits=7"), None),
        (Some("permessage-deflate; client_max_window_bits; client_max_window_bits"), None),
        (Some("x-webkit-deflate-frame"), None),
        (None, None),
    ] {
        let mut wire = Wire::connect(&server, offer).await;
        assert_eq!(wire.extensions, response, "{offer:?}");
        wire.send(TEXT, long_echo().as_bytes()).await;
        assert_eq!(wire.receive_text().await, (long_echo(), response.is_some()), "{offer:?}");
    }
}

#[tokio::test]
async fn a_malformed_offer_is_refused_with_400() {
    let server = Server::start(&[]);
    let headers = [
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Extensions: permessage-deflate;;",
    ];
    let response = http(server.clients, "GET /", &headers, "").await;
    assert_eq!((response.status, &response.json()["error"]["code"]), (400, &json!("bad_handshake")));
}

#[tokio::test]
async fn no_compression_declines_every_offer_and_rejects_compressed_messages() {
    let server = Server::start(&["--no-compression"]);
    let mut wire = Wire::connect(&server, Some(OFFER)).await;
    assert_eq!(wire.extensions, None);
    wire.send(TEXT, long_echo().as_bytes()).await;
    assert_eq!(wire.receive_text().await, (long_echo(), false));
    wire.send_compressed(&long_echo()).await;
    assert_eq!(wire.closed().await.0, 1002);
}

#[tokio::test]
async fn messages_below_the_threshold_are_sent_uncompressed() {
    for (threshold, flags) in [(256, &[][..]), (1000, &["--compression-threshold", "1000"])] {
        let server = Server::start(flags);
        let mut wire = Wire::connect(&server, Some(OFFER)).await;
        let empty = echo(&json!("")).len();
        for (length, compressed) in [(threshold - 1, false), (threshold, true)] {
            let echo = echo(&json!("a".repeat(length - empty)));
            assert_eq!(echo.len(), length);
            wire.send_compressed(&echo).await;
            assert_eq!(wire.receive_text().await, (echo, compressed), "{length} bytes");
        }
    }
}

#[tokio::test]
async fn control_frames_may_interleave_compressed_fragments() {
    let server = Server::start(&[]);
    let mut wire = Wire::connect(&server, Some(OFFER)).await;
    let payload = deflated(long_echo().as_bytes());
    let (first, rest) = payload.split_at(3);
    let (second, third) = rest.split_at(rest.len() / 2);
    wire.send(0x01 | RSV1, first).await;
    wire.send(0x89, b"between").await;
    wire.send(0x00, b"").await;
    wire.send(0x00, second).await;
    wire.send(0x8a, b"").await;
    wire.send(0x80, third).await;
    let pong = wire.receive().await.unwrap();
    assert_eq!((pong.first, &pong.payload[..]), (0x8a, &b"between"[..]));
    assert_eq!(wire.receive_text().await, (long_echo(), true));
    // A fragmented plain message is still one message.
    let echo = long_echo();
    let (first, second) = echo.as_bytes().split_at(7);
    wire.send(0x01, first).await;
    wire.send(0x80, second).await;
    assert_eq!(wire.receive_text().await, (long_echo(), true));
}

#[tokio::test]
async fn empty_compressed_messages_are_delivered() {
    let server = Server::start(&[]);
    let mut wire = Wire::connect(&server, Some(OFFER)).await;
    // As in the RFC, from a sender that omits even that byte, and as an empty stored block.
    for payload in [&[0x00][..], &[], &[0x02, 0x00]] {
        wire.send(TEXT | RSV1, payload).await;
        let (error, _) = wire.receive_text().await;
        assert!(error.contains("invalid_json"), "{payload:?}: {error}");
    }
    wire.send_compressed(&long_echo()).await;
    assert_eq!(wire.receive_text().await, (long_echo(), true));
}

#[tokio::test]
async fn reserved_bits_in_the_wrong_place_close_with_1002() {
    let server = Server::start(&[]);
    let message = deflated(long_echo().as_bytes());
    let (start, end) = message.split_at(5);
    let continuation = [masked(0x01 | RSV1, start), masked(0x80 | RSV1, end)].concat();
    let continuation_of_plain = [masked(0x01, b"{}"), masked(0x80 | RSV1, &message)].concat();
    for (what, offer, bytes) in [
        ("RSV1 without an agreement", None, masked(TEXT | RSV1, &message)),
        ("RSV1 on a continuation", Some(OFFER), continuation),
        ("RSV1 on a continuation of a plain message", Some(OFFER), continuation_of_plain),
        ("RSV1 on a ping", Some(OFFER), masked(0x89 | RSV1, b"")),
        ("RSV1 on a close frame", Some(OFFER), masked(0x88 | RSV1, b"\x03\xe8")),
        ("RSV2", Some(OFFER), masked(TEXT | 0x20, &message)),
        ("RSV1 and RSV3", Some(OFFER), masked(TEXT | RSV1 | 0x10, &message)),
    ] {
        let mut wire = Wire::connect(&server, offer).await;
        wire.write(&bytes).await;
        assert_eq!(wire.closed().await.0, 1002, "{what}");
    }
}

#[tokio::test]
async fn an_undecodable_message_closes_with_1007() {
    let server = Server::start(&[]);
    let mut cut = deflated(long_echo().as_bytes());
    cut.truncate(cut.len() - 2);
    for (what, payload) in [
        ("a block of no type", vec![0xff, 0xff]),
        ("a message that ends inside of a block", cut),
        ("text that is not UTF-8", deflated(b"{\"type\":\"\xff\xfe\"}")),
    ] {
        let mut wire = Wire::connect(&server, Some(OFFER)).await;
        wire.send(TEXT | RSV1, &payload).await;
        assert_eq!(wire.closed().await.0, 1007, "{what}");
    }
}

#[tokio::test]
async fn a_decompression_bomb_closes_with_1009_without_using_memory() {
    const MIB: usize = 1 << 20;
    let server = Server::start(&["--workers", "1"]);
    let limit = 65_536;
    let mut exact = Wire::connect(&server, Some(OFFER)).await;
    let empty = echo(&json!("")).len();
    let largest = echo(&json!("a".repeat(limit - empty)));
    exact.send_compressed(&largest).await;
    assert_eq!(exact.receive_text().await, (largest, true), "as large as is allowed");
    exact.send(TEXT | RSV1, &deflated(&vec![b' '; limit + 1])).await;
    assert_eq!(exact.closed().await.0, 1009, "one byte more");

    // 64 MiB in 64 KiB: as a whole message, and with the end of the stream in a fragment that never
    // comes.
    let bomb = deflated(&vec![b'0'; 64 * MIB]);
    assert!((60_000..65_537).contains(&bomb.len()), "{}", bomb.len());
    let before = counter(&server, "process_resident_memory_bytes").await;
    for _ in 0..20 {
        let mut wire = Wire::connect(&server, Some(OFFER)).await;
        wire.send(TEXT | RSV1, &bomb).await;
        let (code, reason) = wire.closed().await;
        assert_eq!((code, reason.as_str()), (1009, "message is over 65536 bytes"));
    }
    let after = counter(&server, "process_resident_memory_bytes").await;
    assert!(after < before + 8 * MIB as u64, "resident: {before} bytes, then {after}");
    let mut other = Client::connect(&server).await;
    assert_eq!(other.request(&json!({"type": "ping"})).await["type"], "pong");
}

#[tokio::test]
async fn a_message_is_compressed_once_for_all_subscribers() {
    let server = Server::start(&["--workers", "2"]);
    let mut receivers = Vec::new();
    for offer in [Some(OFFER), None].into_iter().cycle().take(16) {
        receivers.push(subscribed(&server, offer, "t").await);
    }
    // A client that negotiated a window too small for the message gets it uncompressed.
    let small = subscribed(&server, Some("permessage-deflate; server_max_window_bits=9"), "t").await;
    receivers.push(small);
    let compressions = counter(&server, "deeperhub_compressions_total").await;
    let (input, output) =
        ("deeperhub_compression_input_bytes_total", "deeperhub_compression_output_bytes_total");
    let before = (counter(&server, input).await, counter(&server, output).await);

    let message = json!({"rows": "the same for everyone; ".repeat(100)});
    assert_eq!(publish(&server, "t", &message).await, 17);
    let expected = json!({"type": "message", "data": {"topic": "t", "message": message}});
    let mut sizes = (0, 0);
    for (index, wire) in receivers.iter_mut().enumerate() {
        let frame = wire.receive().await.unwrap();
        assert_eq!(serde_json::from_str::<Value>(&frame.text()).unwrap(), expected);
        let compressed = frame.first & RSV1 != 0;
        assert_eq!(compressed, index % 2 == 0 && index < 16);
        if compressed {
            sizes.0 += frame.text().len() as u64 + 4;
            sizes.1 += frame.payload.len() as u64 + 2;
        }
    }
    wait_for_counter(&server, "deeperhub_compressions_total", compressions + 1).await;
    wait_for_counter(&server, input, before.0 + sizes.0).await;
    wait_for_counter(&server, output, before.1 + sizes.1).await;
    assert!(sizes.1 * 5 < sizes.0, "{sizes:?}");
}

#[tokio::test]
async fn nothing_is_compressed_without_negotiation() {
    let server = Server::start(&[]);
    let mut plain = subscribed(&server, None, "t").await;
    let message = json!("the same for everyone; ".repeat(100));
    assert_eq!(publish(&server, "t", &message).await, 1);
    assert!(!plain.receive_text().await.1);
    // Nor for a client that negotiated compression but is not a subscriber.
    let other = Wire::connect(&server, Some(OFFER)).await;
    assert_eq!(publish(&server, "t", &message).await, 1);
    assert!(!plain.receive_text().await.1);
    assert_eq!(counter(&server, "deeperhub_compressions_total").await, 0);
    drop(other);
}

#[tokio::test]
async fn clients_may_keep_their_context_if_a_setting_allows_it() {
    let server = Server::start(&["--client-context-takeover"]);
    let mut wire = Wire::connect(&server, Some(OFFER)).await;
    assert_eq!(wire.extensions.as_deref(), Some("permessage-deflate; server_no_context_takeover"));
    let mut other = Wire::connect(&server, Some(OFFER)).await;
    let (mut compress, mut others) =
        (Compress::new(Compression::best(), false), Compress::new(Compression::best(), false));
    let mut lengths = Vec::new();
    for round in 0..4 {
        for (wire, compress, name) in [(&mut wire, &mut compress, "one"), (&mut other, &mut others, "other")]
        {
            let noise: String =
                (0..200_u32).map(|n| format!("{:x}", n.wrapping_mul(2_654_435_761))).collect();
            let echo = echo(&json!([name, noise]));
            let payload = deflated_by(compress, echo.as_bytes());
            lengths.push((round, payload.len()));
            wire.send(TEXT | RSV1, &payload).await;
            assert_eq!(wire.receive_text().await.0, echo);
        }
    }
    let (first, last) = (lengths[0].1, lengths[7].1);
    assert!(last * 10 < first, "the later messages refer to the first: {lengths:?}");

    // A client that declines context takeover is believed.
    let declined = Wire::connect(&server, Some("permessage-deflate; client_no_context_takeover")).await;
    assert_eq!(declined.extensions.as_deref(), Some(AGREED));
}

#[tokio::test]
async fn a_closing_connection_reads_compressed_messages() {
    let server = Server::start(&[]);
    let mut wire = Wire::connect(&server, Some(OFFER)).await;
    let clients = http(server.api(), "GET /v1/clients", &[], "").await.json();
    let id = clients["clients"][0]["client_id"].as_str().unwrap().to_owned();
    let response = http(server.api(), &format!("DELETE /v1/clients/{id}"), &[], "").await;
    assert!(response.status < 300, "{response:?}");
    // Sent before the client has read the close.
    wire.send_compressed(&long_echo()).await;
    wire.send(0x88, b"\x0f\xa3").await;
    assert_eq!(wire.closed().await.0, 4003);
    assert_eq!(wire.receive().await, None, "the server ends the connection when it has seen the response");
}

/// Longest wait for a peer; a browser starts slowly on a busy machine.
const PEER_TIMEOUT: Duration = Duration::from_secs(120);

/// A subscriber of another implementation: one of the scripts in `tests/peers`.
struct Subscriber {
    name: &'static str,
    lines: Lines<BufReader<ChildStdout>>,
    _child: tokio::process::Child,
}

impl Subscriber {
    async fn start(
        name: &'static str,
        program: &Path,
        file: &str,
        server: &Server,
        count: usize,
        last: Option<&str>,
    ) -> Self {
        let (url, count) = (server.url("/ws"), count.to_string());
        let mut command = Command::new(program);
        command.arg(script(file)).args([&url, "peers.compressed", &count, name]).args(last);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        let lines = BufReader::new(child.stdout.take().expect("standard output is a pipe")).lines();
        Self { name, lines, _child: child }
    }

    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(PEER_TIMEOUT, self.lines.next_line()).await;
        let line = line.unwrap_or_else(|_| panic!("timed out waiting for {}", self.name));
        line.expect("lines are UTF-8").unwrap_or_else(|| panic!("{} has ended", self.name))
    }
}

/// Connects Python's `websockets`, npm's `ws` with and without context takeover, a page in
/// Chromium, and tokio-tungstenite, which does not compress. All subscribe to one topic and four of
/// them publish there; all must get the same bytes.
async fn peers_get_the_same_bytes(flags: &[&str], expected: [&str; 4]) {
    if !has_browser() {
        return;
    }
    install(&[Peer::Python, Peer::Node]);
    let server = Server::start(flags);
    let count = 1 + 4 * 2;
    let python = python_bin().join("python");
    let (node, api) = (Path::new("node"), format!("http://{}/", server.api()));
    let mut peers = [
        Subscriber::start("websockets", &python, "subscriber.py", &server, count, None).await,
        Subscriber::start("ws", node, "subscriber.mjs", &server, count, None).await,
        Subscriber::start("ws-alone", node, "subscriber.mjs", &server, count, Some("no-context-takeover"))
            .await,
        Subscriber::start("chromium", node, "subscriber_page.mjs", &server, count, Some(&api)).await,
    ];
    for (peer, expected) in peers.iter_mut().zip(expected) {
        assert_eq!(peer.line().await, format!("subscribed {expected}"), "{}", peer.name);
    }
    let mut plain = Client::connect(&server).await;
    plain.request(&json!({"type": "subscribe", "data": {"topic": "peers.compressed"}})).await;
    let start = json!({"topic": "peers.compressed", "message": "start; ".repeat(100)});
    plain.send(&json!({"type": "publish", "data": start})).await;

    let mut deliveries = Vec::new();
    while deliveries.len() < count {
        let message =
            tokio::time::timeout(PEER_TIMEOUT, plain.socket.next()).await.expect("a delivery in time");
        let message = message.expect("the connection is open").expect("it works");
        if message.is_text() {
            deliveries.push(message.into_text().expect("text is UTF-8").as_str().to_owned());
        }
    }
    for peer in &mut peers {
        for (number, delivery) in deliveries.iter().enumerate() {
            assert_eq!(&peer.line().await, delivery, "delivery {number} of {}", peer.name);
        }
    }
    // One for each message.
    wait_for_counter(&server, "deeperhub_compressions_total", count as u64).await;
    let (input, output) =
        ("deeperhub_decompression_input_bytes_total", "deeperhub_decompression_output_bytes_total");
    assert!(counter(&server, input).await > 0);
    assert!(
        counter(&server, output).await > 10 * counter(&server, input).await,
        "what peers sent came compressed"
    );
}

#[tokio::test]
async fn peers_with_and_without_compression_get_the_same_bytes() {
    peers_get_the_same_bytes(&["--workers", "2"], [AGREED; 4]).await;
}

#[tokio::test]
async fn peers_with_context_takeover_get_the_same_bytes() {
    let takeover = "permessage-deflate; server_no_context_takeover";
    let flags = ["--workers", "2", "--client-context-takeover"];
    peers_get_the_same_bytes(&flags, [takeover, takeover, AGREED, takeover]).await;
}
