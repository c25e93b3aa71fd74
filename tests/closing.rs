//! Faults that close a connection, their close codes, and the client's notice beforehand.

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::support::wire::{Wire, masked};
use crate::support::{Client, Server, http, wait_for};

const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
/// First byte of a text frame that continues in another frame.
const TEXT_BEGINS: u8 = 0x01;
const BINARY_BEGINS: u8 = 0x02;
const GOES_ON: u8 = 0x00;
const ENDS: u8 = 0x80;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;

/// Sends bytes and checks the code of the close frame.
async fn check_closed(server: &Server, what: &str, bytes: &[u8], code: u16) {
    let mut wire = Wire::connect(server, None).await;
    wire.write(bytes).await;
    let (got, reason) = wire.closed().await;
    assert_eq!(got, code, "{what}: {reason}");
}

/// Returns the data of a `goodbye`, which must have all that a client needs to reconnect.
fn goodbye_data(goodbye: Option<Value>, code: u16, reconnect: bool) -> Value {
    let data = goodbye.expect("a goodbye comes ahead of the close frame")["data"].clone();
    assert_eq!((&data["code"], &data["reconnect"]), (&json!(code), &json!(reconnect)), "{data}");
    assert!(data["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{data}");
    assert!(data["retry_after_ms"].is_u64(), "{data}");
    data
}

#[tokio::test]
async fn a_message_over_the_limit_in_any_form_is_closed_with_1009() {
    let server = Server::start(&["--max-message-bytes", "1000"]);
    let part = [b'x'; 600];
    let fragments = |first| [masked(first, &part), masked(GOES_ON, &part)].concat();
    let crumbs: Vec<u8> = std::iter::once(masked(TEXT_BEGINS, b"x"))
        .chain((0..1000).map(|_| masked(GOES_ON, b"x")))
        .flatten()
        .collect();
    // A header that announces a length is enough; the server allocates nothing for it.
    let announced = [&[TEXT, 0xff], &(1_u64 << 62).to_be_bytes()[..], &[0; 4]].concat();
    for (what, bytes) in [
        ("text", masked(TEXT, &[b'x'; 1001])),
        ("binary", masked(BINARY, &[0; 1001])),
        ("text in fragments", fragments(TEXT_BEGINS)),
        ("binary in fragments", fragments(BINARY_BEGINS)),
        ("text in crumbs", crumbs),
        ("a message that is only announced", announced),
    ] {
        check_closed(&server, what, &bytes, 1009).await;
    }

    let mut wire = Wire::connect(&server, None).await;
    let echo = format!(r#"{{"type":"echo","data":"{}"}}"#, "y".repeat(1000 - 25));
    assert_eq!(echo.len(), 1000);
    wire.send(TEXT, echo.as_bytes()).await;
    assert_eq!(wire.receive_text().await.0, echo);
}

#[tokio::test]
async fn a_message_in_too_many_fragments_is_closed_with_1009() {
    let server = Server::start(&[]);
    let empty: Vec<u8> = std::iter::repeat_n(masked(GOES_ON, b""), 70_000).flatten().collect();
    check_closed(&server, "empty fragments", &[masked(TEXT_BEGINS, b""), empty].concat(), 1009).await;
}

#[tokio::test]
async fn broken_frames_are_closed_with_1002() {
    let server = Server::start(&[]);
    for (what, bytes) in [
        ("no mask", vec![TEXT, 2, b'{', b'}']),
        ("a reserved bit", masked(TEXT | 0x20, b"{}")),
        ("an unknown opcode", masked(0x83, b"")),
        ("an unknown control opcode", masked(0x8b, b"")),
        ("a long ping", masked(PING, &[0; 126])),
        ("a ping in fragments", masked(0x09, b"")),
        ("going on with nothing", masked(ENDS, b"{}")),
        ("a message within a message", [masked(TEXT_BEGINS, b"{"), masked(TEXT, b"}")].concat()),
        ("a length over 63 bits", [&[TEXT, 0xff], &u64::MAX.to_be_bytes()[..], &[0; 4]].concat()),
        ("half a close code", masked(CLOSE, &[3])),
        ("a close code that is not sent", masked(CLOSE, &1005_u16.to_be_bytes())),
        ("a close code that is not assigned", masked(CLOSE, &1016_u16.to_be_bytes())),
    ] {
        check_closed(&server, what, &bytes, 1002).await;
    }
}

#[tokio::test]
async fn invalid_utf_8_is_closed_with_1007() {
    let server = Server::start(&[]);
    for (what, bytes) in [
        ("a byte", masked(TEXT, b"\xff")),
        ("a character that ends early", masked(TEXT, b"\"\xc3")),
        ("over fragments", [masked(TEXT_BEGINS, b"\xc3"), masked(GOES_ON, b"x")].concat()),
        ("a surrogate", masked(TEXT, b"\xed\xa0\x80")),
        ("in a close frame", masked(CLOSE, b"\x03\xe8\xff")),
    ] {
        check_closed(&server, what, &bytes, 1007).await;
    }
}

#[tokio::test]
async fn a_clients_close_code_is_echoed_after_all_replies() {
    const PINGS: usize = 50;
    let server = Server::start(&[]);
    for code in [1000_u16, 1001, 1011, 3000, 4999] {
        let mut wire = Wire::connect(&server, None).await;
        let mut bytes = masked(TEXT, br#"{"type":"ping"}"#).repeat(PINGS);
        bytes.extend(masked(CLOSE, &[&code.to_be_bytes()[..], b"bye"].concat()));
        wire.write(&bytes).await;
        for _ in 0..PINGS {
            assert_eq!(wire.receive_text().await.0, r#"{"type":"pong"}"#);
        }
        assert_eq!(wire.closed().await.0, code);
        assert_eq!(wire.receive().await, None);
    }
}

#[tokio::test]
async fn control_frames_may_stand_between_fragments() {
    let server = Server::start(&[]);
    let mut wire = Wire::connect(&server, None).await;
    wire.send(TEXT_BEGINS, br#"{"type":"echo","id":1,"#).await;
    wire.send(PING, b"still there?").await;
    wire.send(GOES_ON, b"").await;
    wire.send(ENDS, br#""data":"x"}"#).await;
    let pong = wire.receive().await.unwrap();
    assert_eq!((pong.first, pong.payload.as_slice()), (0x8a, b"still there?".as_slice()));
    assert_eq!(wire.receive_text().await.0, r#"{"type":"echo","id":1,"data":"x"}"#);
}

#[tokio::test]
async fn a_peer_that_never_pongs_is_closed_with_4200() {
    let server = Server::start(&["--ping-interval", "100ms", "--pong-timeout", "200ms"]);
    let mut silent = Wire::connect(&server, None).await;
    let mut goodbye = None;
    while let Some(frame) = silent.receive().await {
        if frame.first == TEXT {
            goodbye = serde_json::from_slice(&frame.payload).ok();
        } else if frame.first == CLOSE {
            assert_eq!(frame.payload[..2], 4200_u16.to_be_bytes());
            break;
        }
    }
    assert_eq!(goodbye_data(goodbye, 4200, true)["retry_after_ms"], 0);
}

#[tokio::test]
async fn a_peer_that_pongs_is_pinged_at_the_interval() {
    let server = Server::start(&["--ping-interval", "100ms", "--pong-timeout", "1h"]);
    let mut client = Client::connect(&server).await;
    for _ in 0..5 {
        // The client library answers by itself.
        match wait_for("a ping", client.socket.next()).await {
            Some(Ok(Message::Ping(_))) => {}
            other => panic!("a ping was expected, not {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_is_closed_with_1013_and_the_others_are_not() {
    let server = Server::start(&["--max-queue-bytes", "100000", "--rate-limit", "0"]);
    let subscribe = json!({"type": "subscribe", "data": {"topic": "t"}});
    let mut slow = Client::connect(&server).await;
    slow.request(&subscribe).await;
    let mut quick = Client::connect(&server).await;
    quick.request(&subscribe).await;
    let message = "y".repeat(30_000);
    let mut published = 0;
    wait_for("the end of the slow client", async {
        loop {
            let response =
                http(server.api(), "POST /v1/topics/t/messages", &[], &format!("\"{message}\"")).await;
            published += 1;
            assert_eq!(quick.receive().await["data"]["message"].as_str(), Some(message.as_str()));
            if response.json()["subscribers"] == 1 {
                break;
            }
        }
    })
    .await;
    let (code, reason, goodbye) = slow.closed().await;
    assert_eq!(code, 1013, "{reason}");
    goodbye_data(goodbye, 1013, true);
    let metrics = http(server.api(), "GET /metrics", &[], "").await.body;
    assert!(metrics.contains("\ndeeperhub_slow_consumers_total 1\n"), "{metrics}");
    assert!(published > 3);
}

#[tokio::test]
async fn a_shutdown_gives_each_client_its_own_reconnect_delay() {
    const CLIENTS: usize = 20;
    let mut server = Server::start(&["--drain-timeout", "4s", "--restart-time", "7s", "--workers", "2"]);
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(Client::connect(&server).await);
    }
    server.signal("TERM");
    wait_for("the drain", async {
        while http(server.api(), "GET /health/ready", &[], "").await.status != 503 {}
    })
    .await;
    assert_eq!(http(server.api(), "GET /health/live", &[], "").await.status, 200);
    let refused = http(server.clients, "GET /ws", &[], "").await;
    assert_eq!(
        (refused.status, refused.json()["error"]["code"].as_str()),
        (503, Some("draining")),
        "{refused:?}"
    );
    // The server has no peers: clients must not return before its successor listens.
    assert!(
        refused.header("retry-after").is_some_and(|seconds| seconds.parse::<u64>().is_ok_and(|s| s >= 7)),
        "{refused:?}"
    );

    let mut times = Vec::new();
    for client in &mut clients {
        let (code, _, goodbye) = client.closed().await;
        assert_eq!(code, 1001);
        times.push(goodbye_data(goodbye, 1001, true)["retry_after_ms"].as_u64().unwrap());
    }
    times.sort_unstable();
    times.dedup();
    assert_eq!(times.len(), CLIENTS, "{times:?}");
    assert!(times[0] >= 7000, "{times:?}");
    drop(clients);
    assert_eq!(server.wait().code(), Some(0), "{}", server.stderr());
}

#[tokio::test]
async fn a_few_clients_are_closed_over_the_whole_drain_timeout() {
    let mut server = Server::start(&["--drain-timeout", "1h", "--workers", "2", "--rate-limit", "0"]);
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(Client::connect(&server).await);
    }
    server.signal("TERM");
    // The server chooses which one closes first.
    let first = wait_for("the first close", async {
        loop {
            for (index, client) in clients.iter_mut().enumerate() {
                let response = client.request(&json!({"type": "ping"})).await;
                if response["type"] == "goodbye" {
                    return index;
                }
            }
        }
    })
    .await;
    clients.remove(first);
    // The next one closes in twenty minutes.
    for client in &mut clients {
        assert_eq!(client.request(&json!({"type": "ping"})).await, json!({"type": "pong"}));
    }
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", server.stderr());
}

#[tokio::test]
async fn a_closing_client_is_not_listed_or_counted() {
    let server = Server::start(&[]);
    // This client does not answer the close frame, so its connection stays for a while.
    let mut wire = Wire::connect(&server, None).await;
    wire.send(TEXT, br#"{"type":"subscribe","data":{"topic":"t"}}"#).await;
    wire.receive_text().await;
    let list = http(server.api(), "GET /v1/clients", &[], "").await.json();
    let id = list["clients"][0]["client_id"].as_str().unwrap().to_owned();
    assert_eq!(http(server.api(), &format!("DELETE /v1/clients/{id}"), &[], "").await.status, 200);
    assert_eq!(wire.closed().await.0, 4003);
    assert_eq!(http(server.api(), "GET /v1/clients", &[], "").await.json(), json!({"clients": []}));
    assert_eq!(http(server.api(), "GET /v1/topics", &[], "").await.json(), json!({"topics": []}));
    let publish = http(server.api(), "POST /v1/topics/t/messages", &[], "1").await;
    assert_eq!(publish.json(), json!({"subscribers": 0}));
    let broadcast = http(server.api(), "POST /v1/broadcast", &[], r#"{"type":"x"}"#).await;
    assert_eq!(broadcast.json(), json!({"clients": 0}));
    let metrics = http(server.api(), "GET /metrics", &[], "").await.body;
    assert!(metrics.contains("\ndeeperhub_connections_active 0\n"), "{metrics}");
}
