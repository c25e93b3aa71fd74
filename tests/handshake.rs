//! Requests that become connections, and the responses to all others.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::wire::masked;
use crate::support::{Client, Server, http, metric, wait_for};

/// The lines of a valid handshake, without a `Host`.
const UPGRADE: [&str; 4] = [
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

/// Connects when the server has a free connection slot: a refused connection keeps its own until the
/// server has seen its end.
async fn connect_when_free(server: &Server) -> Client {
    wait_for("a free connection slot", async {
        loop {
            if let Ok(client) = Client::connect_with(server.url("/")).await {
                return client;
            }
        }
    })
    .await
}

/// Sends bytes and returns everything received until the connection ends.
async fn send_and_read_all(server: &Server, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.clients).await.expect("the server accepts connections");
    // A server that has already refused may not read all of it.
    let _ = stream.write_all(bytes).await;
    let mut response = Vec::new();
    let _ = wait_for("the end of the connection", stream.read_to_end(&mut response)).await;
    String::from_utf8_lossy(&response).into_owned()
}

/// Sends a request and returns status line and headers.
async fn response_head(server: &Server, request: &str, lines: &[&str]) -> String {
    let mut stream = TcpStream::connect(server.clients).await.expect("the server accepts connections");
    let request = format!("{request} HTTP/1.1\r\n{}\r\n\r\n", lines.join("\r\n"));
    stream.write_all(request.as_bytes()).await.expect("the server accepts a request");
    let mut head = String::new();
    wait_for("the response", async {
        while !head.ends_with("\r\n\r\n") {
            head.push(stream.read_u8().await.expect("the response has an end").into());
        }
    })
    .await;
    head
}

async fn check_refused(server: &Server, request: &str, headers: &[&str], status: u16, code: &str) -> String {
    let response = http(server.clients, request, headers, "").await;
    let body = response.json();
    let error = &body["error"];
    assert_eq!(
        (response.status, error["code"].as_str()),
        (status, Some(code)),
        "{request} {headers:?}: {response:?}"
    );
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{response:?}");
    assert_eq!(response.header("content-type"), Some("application/json"), "{response:?}");
    response.head
}

#[tokio::test]
async fn only_configured_paths_accept_handshakes() {
    let server = Server::start(&[]);
    for path in ["/", "/ws", "/ws?room=1"] {
        assert!(Client::connect_with(server.url(path)).await.is_ok(), "{path}");
    }
    for path in ["/nothing", "/ws/", "/WS"] {
        check_refused(&server, &format!("GET {path}"), &UPGRADE, 404, "not_found").await;
    }
    let server = Server::start(&["--path", "/hub"]);
    assert!(Client::connect_with(server.url("/hub")).await.is_ok());
    check_refused(&server, "GET /", &UPGRADE, 404, "not_found").await;
}

#[tokio::test]
async fn requests_without_a_websocket_13_upgrade_get_426() {
    let server = Server::start(&[]);
    let head = check_refused(&server, "GET /", &[], 426, "upgrade_required").await;
    assert!(head.contains("\r\nUpgrade: websocket"), "{head}");
    let version_8 =
        UPGRADE.map(|line| if line.ends_with(": 13") { "Sec-WebSocket-Version: 8" } else { line });
    let head = check_refused(&server, "GET /ws", &version_8, 426, "upgrade_required").await;
    assert!(
        head.contains("\r\nUpgrade: websocket") && head.contains("\r\nSec-WebSocket-Version: 13"),
        "{head}"
    );
    let head = check_refused(&server, "POST /", &UPGRADE, 405, "method_not_allowed").await;
    assert!(head.contains("\r\nAllow: GET"), "{head}");
}

/// Returns status and body of a plain request to the client port.
async fn probe(server: &Server, request: &str) -> (u16, String) {
    let response = http(server.clients, request, &[], "").await;
    (response.status, response.body)
}

#[tokio::test]
async fn a_load_balancer_probes_the_client_port() {
    let mut server = Server::start(&[
        "--probe-path",
        "/healthz",
        "--max-connections",
        "1",
        "--drain-timeout",
        "1m",
        "--connection-rate-per-ip",
        "1000",
    ]);
    let ready = (200, "ready\n".to_owned());
    assert_eq!(probe(&server, "GET /healthz").await, ready);
    assert_eq!(probe(&server, "GET /healthz?from=lb").await, ready);
    assert_eq!(probe(&server, "HEAD /healthz").await, (200, String::new()));
    // All other requests are unaffected.
    check_refused(&server, "POST /healthz", &[], 404, "not_found").await;
    check_refused(&server, "GET /healthz", &UPGRADE, 404, "not_found").await;
    check_refused(&server, "GET /health", &[], 404, "not_found").await;
    // A full server is still healthy.
    let client = connect_when_free(&server).await;
    check_refused(&server, "GET /", &UPGRADE, 503, "too_many_connections").await;
    assert_eq!(probe(&server, "GET /healthz").await, ready);
    assert_eq!(metric(&server, "deeperhub_probes_total{answer=\"ready\"}").await, 4);
    assert_eq!(metric(&server, "deeperhub_handshakes_total{outcome=\"accepted\"}").await, 1);

    server.signal("TERM");
    wait_for("the drain", async { while probe(&server, "GET /healthz").await.0 != 503 {} }).await;
    check_refused(&server, "GET /healthz", &[], 503, "draining").await;
    assert_eq!(probe(&server, "HEAD /healthz").await, (503, String::new()));
    drop(client);
    assert_eq!(server.wait().code(), Some(0));
}

#[tokio::test]
async fn the_probe_path_may_be_the_client_path_and_is_off_by_default() {
    let server = Server::start(&["--probe-path", "/"]);
    assert_eq!(probe(&server, "GET /").await.0, 200);
    assert!(Client::connect_with(server.url("/")).await.is_ok());
    check_refused(&server, "GET /ws", &[], 426, "upgrade_required").await;
    let server = Server::start(&[]);
    check_refused(&server, "GET /healthz", &[], 404, "not_found").await;
}

/// RFC 9110 section 9.3.2.
#[tokio::test]
async fn the_response_to_head_has_no_body() {
    let server = Server::start(&["--handshake-timeout", "500ms"]);
    for (request, status) in [
        ("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n", "405 "),
        ("HEAD /nothing HTTP/1.1\r\nHost: a\r\n\r\n", "404 "),
        ("HEAD / HTTP/1.1\r\nHost : a\r\n\r\n", "400 "),
        // The request never ends.
        ("HEAD / HTTP/1.1\r\n", "400 "),
    ] {
        let response = send_and_read_all(&server, request.as_bytes()).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {response}");
        assert!(response.ends_with("\r\n\r\n"), "{request}: {response}");
    }
}

#[tokio::test]
async fn malformed_handshakes_are_refused_with_400() {
    let server = Server::start(&[]);
    let no_key = &UPGRADE[..3];
    let bad_key = [no_key, &["Sec-WebSocket-Key: short"]].concat();
    let two_keys = [&UPGRADE[..], &UPGRADE[3..]].concat();
    let unknown_protocols = [&UPGRADE[..], &["Sec-WebSocket-Protocol: chat, superchat"]].concat();
    for lines in [no_key, &bad_key, &two_keys, &unknown_protocols] {
        check_refused(&server, "GET /", lines, 400, "bad_handshake").await;
    }
    let long_line = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(40_000));
    let many_lines = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(500));
    let no_host = format!("GET / HTTP/1.1\r\n{}\r\n\r\n", UPGRADE.join("\r\n"));
    for bytes in [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(),
        b"nonsense\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        long_line.as_bytes(),
        many_lines.as_bytes(),
        no_host.as_bytes(),
    ] {
        let response = send_and_read_all(&server, bytes).await;
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        assert!(response.starts_with("HTTP/1.1 400 "), "{shown}: {response}");
        let body = response.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        let body: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {response}"));
        assert_eq!(body["error"]["code"], "bad_handshake", "{shown}");
    }
}

#[tokio::test]
async fn the_subprotocol_is_confirmed_only_if_it_was_offered() {
    let server = Server::start(&[]);
    let host = "Host: a";
    let offering = |offer| [&[host, offer], &UPGRADE[..]].concat();
    let head =
        response_head(&server, "GET /", &offering("Sec-WebSocket-Protocol: other, deeperhub.v1.json")).await;
    assert!(head.contains("\r\nSec-WebSocket-Protocol: deeperhub.v1.json\r\n"), "{head}");
    // Two lines are one list, and `Connection` may have more than one element.
    let lines = [
        host,
        "Upgrade: WebSocket",
        "Connection: keep-alive",
        "Connection: upgrade",
        UPGRADE[2],
        UPGRADE[3],
        "Sec-WebSocket-Protocol: other",
        "Sec-WebSocket-Protocol: deeperhub.v1.json",
    ];
    let head = response_head(&server, "GET /", &lines).await;
    assert!(head.contains("\r\nSec-WebSocket-Protocol: deeperhub.v1.json\r\n"), "{head}");
    let head = response_head(&server, "GET /", &[&[host], &UPGRADE[..]].concat()).await;
    assert!(head.starts_with("HTTP/1.1 101 ") && !head.contains("Protocol:"), "{head}");
    // The key and the response of RFC 6455, section 1.3.
    assert!(head.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
}

#[tokio::test]
async fn pages_connect_from_the_same_host_loopback_or_an_allowed_origin() {
    let server = Server::start(&[
        "--allowed-origin",
        "https://*.example.com",
        "--allowed-origin",
        "https://app.test:8443",
    ]);
    for (host, origin, is_allowed) in [
        ("hub.test:8080", "http://hub.test:8080", true),
        ("hub.test", "https://hub.test", true),
        ("hub.test:8080", "http://hub.test:8081", false),
        ("hub.test:8080", "http://localhost:8080", false),
        ("hub.test:8080", "null", false),
        ("localhost:8080", "http://localhost:3000", true),
        ("localhost:8080", "http://127.0.0.1:3000", true),
        ("127.0.0.1:8080", "http://[::1]", true),
        ("localhost:8080", "http://localhost.example.org", false),
        ("hub.test", "https://a.example.com", true),
        ("hub.test", "https://a.b.example.com", true),
        ("hub.test", "https://example.com", false),
        ("hub.test", "http://a.example.com", false),
        ("hub.test", "https://evilexample.com", false),
        ("hub.test", "https://app.test:8443", true),
        ("hub.test", "https://app.test", false),
    ] {
        let (host, origin) = (format!("Host: {host}"), format!("Origin: {origin}"));
        let lines = [&[host.as_str(), &origin], &UPGRADE[..]].concat();
        if is_allowed {
            let head = response_head(&server, "GET /", &lines).await;
            assert!(head.starts_with("HTTP/1.1 101 "), "{host} {origin}: {head}");
        } else {
            let request = format!("GET / HTTP/1.1\r\n{}\r\n\r\n", lines.join("\r\n"));
            let response = send_and_read_all(&server, request.as_bytes()).await;
            assert!(response.starts_with("HTTP/1.1 403 "), "{host} {origin}: {response}");
            assert!(response.contains("\"origin_not_allowed\""), "{response}");
        }
    }
}

#[tokio::test]
async fn a_full_server_refuses_with_retry_after() {
    let server = Server::start(&["--max-connections", "1"]);
    let client = Client::connect(&server).await;
    let head = check_refused(&server, "GET /", &UPGRADE, 503, "too_many_connections").await;
    assert!(head.contains("\r\nRetry-After: "), "{head}");
    drop(client);
    // A released connection slot can be taken again.
    connect_when_free(&server).await;

    let server = Server::start(&["--max-connections-per-ip", "1"]);
    let _client = Client::connect(&server).await;
    let head = check_refused(&server, "GET /", &UPGRADE, 429, "rate_limited").await;
    assert!(head.contains("\r\nRetry-After: "), "{head}");
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_refused() {
    let server = Server::start(&["--handshake-timeout", "200ms"]);
    let response = send_and_read_all(&server, b"GET / HTTP/1.1\r\nHost: a\r\n").await;
    assert!(response.starts_with("HTTP/1.1 400 ") && response.contains("\"bad_handshake\""), "{response}");
    // A client that sends nothing gets no response.
    assert_eq!(send_and_read_all(&server, b"").await, "");
}

#[tokio::test]
async fn messages_may_follow_the_handshake_immediately() {
    let server = Server::start(&[]);
    let mut bytes = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n\r\n", UPGRADE.join("\r\n")).into_bytes();
    bytes.extend(masked(0x81, br#"{"type":"ping","id":"early"}"#));
    bytes.extend(masked(0x88, &1000_u16.to_be_bytes()));
    let all = send_and_read_all(&server, &bytes).await;
    assert!(all.contains(r#"{"type":"pong","id":"early"}"#), "{all}");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_logged_at_debug() {
    let server = Server::start(&["--log-level", "debug"]);
    assert!(Client::connect_with(server.url("/nowhere")).await.is_err());
    server.wait_for_stderr("Handshake refused");
    let log = server.stderr();
    let line = log.lines().find(|line| line.contains("Handshake refused")).unwrap();
    assert!(line.contains("status=404 code=\"not_found\"") && line.contains("peer=127.0.0.1:"), "{line}");
}

/// Some gateways send these headers without a value.
#[tokio::test]
async fn lists_without_elements_count_as_absent() {
    let server = Server::start(&[]);
    let with = async |lines: &[&str]| {
        let all = [&["Host: localhost"][..], &UPGRADE, lines].concat();
        response_head(&server, "GET /", &all).await
    };
    for lines in [
        &["Sec-WebSocket-Extensions:"][..],
        &["Sec-WebSocket-Extensions: , ,"],
        &["Sec-WebSocket-Extensions:", "Sec-WebSocket-Extensions: ,"],
        &["Sec-WebSocket-Protocol:"],
        &["Sec-WebSocket-Protocol: , ,", "Sec-WebSocket-Extensions: foo, , bar"],
        &["Connection:", "Upgrade: , ,", "Sec-WebSocket-Version: ,"],
    ] {
        let head = with(lines).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{lines:?}: {head}");
        // The response has `Sec-WebSocket-Accept` and no other such header.
        assert_eq!(head.matches("\r\nSec-WebSocket-").count(), 1, "{lines:?}: {head}");
    }
    for lines in [
        &["Sec-WebSocket-Extensions:", "Sec-WebSocket-Extensions: , permessage-deflate,"][..],
        &["Sec-WebSocket-Extensions: foo; a=\"b\" , permessage-deflate; server_max_window_bits=\"15\""],
    ] {
        let head = with(lines).await;
        assert!(head.contains("\r\nSec-WebSocket-Extensions: permessage-deflate"), "{lines:?}: {head}");
    }
    let head = with(&["Sec-WebSocket-Protocol: ,", "Sec-WebSocket-Protocol: , deeperhub.v1.json,"]).await;
    assert!(head.contains("\r\nSec-WebSocket-Protocol: deeperhub.v1.json\r\n"), "{head}");
}
