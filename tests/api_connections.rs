//! Server API connections: every wait ends, health checks always answer, and responses arrive.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    Client, Peer, Server, WAIT_TIMEOUT, http, install, metric, python_bin, run_peer, script, wait_for,
};

/// Bytes of a body that does not fit into a socket buffer.
const LARGE_BODY_BYTES: usize = 10 << 20;

async fn connect(server: &Server) -> TcpStream {
    wait_for("a connection", TcpStream::connect(server.api())).await.unwrap()
}

/// Connects with a small receive buffer, so that the server soon blocks when no one reads.
async fn connect_with_small_buffer(server: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    wait_for("a connection", socket.connect(server)).await.unwrap()
}

async fn send(stream: &mut TcpStream, text: &str) {
    wait_for("the server to read", stream.write_all(text.as_bytes())).await.unwrap();
}

/// Reads to the end of the stream, which must not be a reset.
async fn read_rest(mut stream: TcpStream) -> String {
    let mut response = Vec::new();
    wait_for("the end", stream.read_to_end(&mut response)).await.expect("the connection ends well");
    String::from_utf8_lossy(&response).into_owned()
}

/// Waits until only the connection that reads the metric is left.
async fn wait_until_closed(server: &Server) {
    wait_for("the ends of connections", async {
        while metric(server, "deeperhub_api_connections").await > 1 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

async fn is_live(server: &Server) -> bool {
    http(server.api(), "GET /health/live", &[], "").await.status == 200
}

#[tokio::test]
async fn slow_senders_and_readers_are_closed_while_health_answers() {
    let server = Server::start(&[
        "--max-api-connections",
        "12",
        "--api-timeout",
        "1s",
        "--api-idle-timeout",
        "1s",
        "--max-batch-bytes",
        "1000000",
    ]);
    let mut stuck = Vec::new();
    for start in [
        "",
        "GET /v1/st",
        "GET /v1/stats HTTP/1.1\r\nHost: localhost\r\n",
        "POST /v1/topics/a/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n\"",
        "POST /v1/topics/a/messages HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n\"",
        "POST /v1/batch HTTP/1.1\r\nHost: localhost\r\nContent-Length: 900000\r\n\r\n{",
        "GET /v1/stats HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
    ] {
        let mut stream = connect(&server).await;
        send(&mut stream, start).await;
        stuck.push(stream);
    }
    // Unread responses.
    let request = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(400);
    for _ in 0..5 {
        let mut stream = connect_with_small_buffer(server.api()).await;
        let _ = tokio::time::timeout(WAIT_TIMEOUT / 10, stream.write_all(request.as_bytes())).await;
        stuck.push(stream);
    }
    for _ in 0..20 {
        assert!(is_live(&server).await);
    }
    wait_until_closed(&server).await;
    assert!(metric(&server, "deeperhub_api_timeouts_total").await >= 5);
    assert_eq!(metric(&server, "deeperhub_api_held_bytes").await, 0);
    drop(stuck);
}

#[tokio::test]
async fn a_slowly_dripping_body_is_timed_out() {
    let server = Server::start(&["--api-timeout", "500ms"]);
    let mut stream = connect(&server).await;
    send(
        &mut stream,
        "POST /v1/topics/a/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60000\r\n\r\n\"",
    )
    .await;
    let (mut reader, mut writer) = stream.into_split();
    let drip = async {
        // Each byte arrives well within the timeout of one step.
        while writer.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut response = [0; 1024];
    let length = tokio::select! {
        () = drip => unreachable!(),
        length = wait_for("a response", reader.read(&mut response)) => length.unwrap(),
    };
    let response = String::from_utf8_lossy(&response[..length]);
    assert!(response.starts_with("HTTP/1.1 408 ") && response.contains("request_timeout"), "{response}");
}

#[tokio::test]
async fn an_unread_event_stream_ends_and_its_memory_is_bounded() {
    let server = Server::start(&["--api-timeout", "1s", "--max-event-bytes", "100000", "--rate-limit", "0"]);
    let mut stuck = connect_with_small_buffer(server.api()).await;
    send(&mut stuck, "GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    // The response head shows that the event stream is open.
    wait_for("the head", stuck.readable()).await.unwrap();
    let mut client = Client::connect(&server).await;
    let pad = "x".repeat(60_000);
    wait_for("the end of the stream", async {
        while metric(&server, "deeperhub_api_event_streams").await > 0 {
            for _ in 0..20 {
                client.socket.send(Message::Binary(pad.clone().into())).await.unwrap();
            }
            assert!(metric(&server, "deeperhub_events_queued_bytes").await <= 100_000);
        }
    })
    .await;
    assert!(metric(&server, "deeperhub_events_lost_total").await > 0);
    assert_eq!(metric(&server, "deeperhub_events_queued_bytes").await, 0);
}

#[tokio::test]
async fn event_streams_leave_room_for_other_calls_and_end_with_their_reader() {
    let server = Server::start(&["--max-api-connections", "8", "--max-event-streams", "100"]);
    let mut streams = Vec::new();
    for _ in 0..4 {
        let mut stream = connect(&server).await;
        send(&mut stream, "GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        wait_for("the head", stream.readable()).await.unwrap();
        streams.push(stream);
    }
    let refused = http(server.api(), "GET /v1/events", &[], "").await;
    assert_eq!((refused.status, &refused.json()["error"]["code"]), (503, &json!("too_many_observers")));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(http(server.api(), "GET /v1/stats", &[], "").await.status, 200);
    // A stream also ends when its reader only half-closes.
    streams[0].shutdown().await.unwrap();
    drop(streams.split_off(1));
    wait_for("the ends of streams", async {
        while metric(&server, "deeperhub_api_event_streams").await > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn idle_connections_do_not_block_new_ones() {
    let server = Server::start(&["--max-api-connections", "32"]);
    let mut idle = Vec::new();
    for _ in 0..32 {
        let mut stream = connect(&server).await;
        send(&mut stream, "GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
        wait_for("a response", stream.readable()).await.unwrap();
        idle.push(stream);
    }
    for request in ["GET /health/live", "GET /health/ready", "GET /v1/stats", "POST /v1/topics/a/messages"] {
        let body = if request.starts_with("POST") { "1" } else { "" };
        assert_eq!(http(server.api(), request, &[], body).await.status, 200, "{request}");
    }
}

#[tokio::test]
async fn an_evicted_idle_connection_gets_a_reason() {
    let server = Server::start(&["--max-api-connections", "1"]);
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(connect(&server).await);
    }
    // The first takes the regular connection; the second is evicted when the reserve is full.
    let response = read_rest(silent.remove(1)).await;
    assert!(response.starts_with("HTTP/1.1 503 ") && response.contains("too_many_connections"), "{response}");
    assert!(is_live(&server).await);
    assert!(metric(&server, "deeperhub_api_connections_refused_total").await >= 1);
    server.wait_for_stderr("Server API connection limit reached");
}

#[tokio::test]
async fn a_burst_of_publishes_over_the_connection_limit_is_processed() {
    let server = Server::start(&["--max-api-connections", "16"]);
    let mut callers = Vec::new();
    for number in 0..200 {
        let mut stream = connect(&server).await;
        callers.push(tokio::spawn(async move {
            // HTTP keep-alive: each connection stays open and idle afterwards.
            let body = number.to_string();
            let head = format!(
                "POST /v1/topics/a/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            send(&mut stream, &head).await;
            let mut response = [0; 12];
            wait_for("a response", stream.read_exact(&mut response)).await.unwrap();
            (String::from_utf8_lossy(&response).into_owned(), stream)
        }));
    }
    let mut open = Vec::new();
    for caller in callers {
        let (response, stream) = caller.await.unwrap();
        assert_eq!(response, "HTTP/1.1 200");
        open.push(stream);
    }
    assert!(is_live(&server).await);
}

/// Returns request lines whose body is refused, each with the expected status.
fn refused() -> [(&'static str, u16); 5] {
    [
        ("POST /v1/topics/a/messages", 413),
        ("POST /v1/batch", 413),
        ("POST /nothing", 404),
        ("POST /v1/stats", 405),
        ("DELETE /v1/clients/nobody", 404),
    ]
}

/// Like many clients, this one reads only after it has sent the whole body.
#[tokio::test]
async fn a_refusal_arrives_while_the_body_is_still_being_sent() {
    let server = Server::start(&[]);
    let locked = Server::start(&["--api-key", "the-key-of-the-api"]);
    let body = vec![b' '; LARGE_BODY_BYTES];
    let unauthorized = [("POST /v1/topics/a/messages", 401)];
    for (server, cases) in [(&server, &refused()[..]), (&locked, &unauthorized[..])] {
        for (request, status) in cases {
            for framing in ["Content-Length: 10485760", "Transfer-Encoding: chunked"] {
                let mut stream = connect(server).await;
                send(&mut stream, &format!("{request} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\r\n"))
                    .await;
                let sent = if framing.starts_with('C') {
                    wait_for("the server to read", stream.write_all(&body)).await
                } else {
                    let chunk = [b"100000\r\n", &body[..1 << 20], b"\r\n"].concat();
                    let mut sent = Ok(());
                    for _ in 0..10 {
                        sent = sent.and(wait_for("the server to read", stream.write_all(&chunk)).await);
                    }
                    sent
                };
                sent.unwrap_or_else(|error| panic!("{request}, {framing}: {error}"));
                let response = read_rest(stream).await;
                let expected = format!("HTTP/1.1 {status} ");
                assert!(response.starts_with(&expected), "{request}, {framing}: {response}");
                assert!(response.contains("\r\nconnection: close\r\n"), "{request}, {framing}: {response}");
            }
        }
    }
}

#[tokio::test]
async fn a_client_with_expect_continue_is_refused_before_it_sends() {
    let server = Server::start(&[]);
    for (request, status) in refused() {
        let mut stream = connect(&server).await;
        let head = "Host: localhost\r\nContent-Length: 10485760\r\nExpect: 100-continue\r\n\r\n";
        send(&mut stream, &format!("{request} HTTP/1.1\r\n{head}")).await;
        let mut response = [0; 12];
        wait_for("a response", stream.read_exact(&mut response)).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&response), format!("HTTP/1.1 {status}"), "{request}");
    }
    // An accepted request gets `100 Continue`.
    let mut stream = connect(&server).await;
    let head = "Host: localhost\r\nContent-Length: 1\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n";
    send(&mut stream, &format!("POST /v1/topics/a/messages HTTP/1.1\r\n{head}")).await;
    let mut response = [0; 25];
    wait_for("a response", stream.read_exact(&mut response)).await.unwrap();
    assert_eq!(&response, b"HTTP/1.1 100 Continue\r\n\r\n");
    send(&mut stream, "1").await;
    assert!(read_rest(stream).await.starts_with("HTTP/1.1 200 OK"));
}

#[test]
fn python_and_node_get_the_response_to_a_refused_body() {
    install(&[Peer::Node]);
    let server = Server::start(&[]);
    let locked = Server::start(&["--api-key", "the-key-of-the-api"]);
    let urls = [server.api(), locked.api()].map(|address| format!("http://{address}"));
    for (program, name) in
        [("node".into(), "refused_bodies.mjs"), (python_bin().join("python"), "refused_bodies.py")]
    {
        let arguments = [script(name), urls[0].clone().into(), urls[1].clone().into()];
        let finished = run_peer(program, arguments);
        assert_eq!(finished.code, Some(0), "{name}: {}\n{}", finished.stdout, finished.stderr);
    }
}

/// Checks the status and the code of requests that cannot be parsed.
#[tokio::test]
async fn unparsable_requests_are_refused_with_a_reason() {
    let server = Server::start(&[]);
    let long = format!("GET /v1/stats HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "x".repeat(40_000));
    let many = format!("GET /v1/stats HTTP/1.1\r\nHost: localhost\r\n{}\r\n", "X: y\r\n".repeat(200));
    let publish = |headers: &str, body: &str| {
        format!(
            "POST /v1/topics/a/messages HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n\r\n{body}"
        )
    };
    let length = "Content-Length: 1";
    for (request, status, code) in [
        ("nonsense\r\n\r\n".to_owned(), 400, "invalid_message"),
        ("GET /v1/stats HTTP/1.1\r\nno colon\r\n\r\n".to_owned(), 400, "invalid_message"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 505, "invalid_message"),
        (long, 431, "message_too_big"),
        (many, 431, "message_too_big"),
        (publish("Content-Length: 1\r\nContent-Length: 2", "1"), 400, "invalid_message"),
        (publish("Transfer-Encoding: gzip", "1"), 501, "unsupported_encoding"),
        (publish("Transfer-Encoding: nonsense", "1"), 501, "unsupported_encoding"),
        (publish("transfer-encoding:  Gzip , chunked", "1\r\n1\r\n0\r\n\r\n"), 501, "unsupported_encoding"),
        (publish(&format!("{length}\r\nContent-Encoding: gzip"), "1"), 415, "unsupported_encoding"),
        (
            publish(&format!("{length}\r\ncontent-encoding: identity , GZIP"), "1"),
            415,
            "unsupported_encoding",
        ),
        (
            publish(&format!("{length}\r\nContent-Encoding: identity\r\nContent-Encoding: br"), "1"),
            415,
            "unsupported_encoding",
        ),
        (publish("Content-Length: 4", "\u{feff}1"), 400, "invalid_json"),
    ] {
        let mut stream = connect(&server).await;
        send(&mut stream, &request).await;
        stream.shutdown().await.unwrap();
        let response = read_rest(stream).await;
        let (head, body) = response.split_once("\r\n\r\n").unwrap_or_default();
        let body: Value = serde_json::from_str(body).unwrap_or_default();
        let start: String = request.chars().take(160).collect();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{start}: {response}");
        assert_eq!(body["error"]["code"], code, "{start}: {response}");
        assert!(body["error"]["message"].is_string(), "{response}");
    }
    // The same holds for clients' messages.
    let mut client = Client::connect(&server).await;
    client.send_text("\u{feff}{\"type\":\"ping\"}").await;
    assert_eq!(client.receive().await["data"]["code"], "invalid_json");
    for headers in ["Content-Encoding: identity", "Content-Encoding: IDENTITY", "Content-Encoding:"] {
        let response = http(server.api(), "POST /v1/topics/a/messages", &[headers], "1").await;
        assert_eq!(response.status, 200, "{headers}");
    }
}

#[tokio::test]
async fn paths_with_broken_percent_encoding_are_refused() {
    let server = Server::start(&[]);
    for (request, body, code) in [
        ("POST /v1/topics/50%/messages", "1", "invalid_topic"),
        ("GET /v1/topics/%zz", "", "invalid_topic"),
        ("GET /v1/topics/%4", "", "invalid_topic"),
        ("POST /v1/users/50%/messages", "{\"type\":\"x\"}", "invalid_message"),
        ("DELETE /v1/users/u/subscriptions/%g1", "", "invalid_message"),
        ("GET /v1/clients/%2", "", "invalid_message"),
        ("GET /v1/clients?cursor=50%", "", "invalid_message"),
    ] {
        let response = http(server.api(), request, &[], body).await;
        assert_eq!(
            (response.status, response.json()["error"]["code"].as_str()),
            (400, Some(code)),
            "{request}"
        );
    }
}

#[tokio::test]
async fn pages_of_other_sites_are_recognized_by_fetch_metadata() {
    let server = Server::start(&["--allowed-origin", "https://app.example.com"]);
    let status =
        async |request: &str, headers: &[&str]| http(server.api(), request, headers, "").await.status;
    for site in ["cross-site", "same-site"] {
        let site = format!("Sec-Fetch-Site: {site}");
        for request in
            ["GET /v1/events", "GET /v1/clients", "GET /metrics", "GET /health/live", "HEAD /v1/stats"]
        {
            let image = [site.as_str(), "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"];
            assert_eq!(status(request, &image).await, 403, "{request}");
        }
        // An `Origin` header takes precedence.
        let allowed = [site.as_str(), "Sec-Fetch-Mode: cors", "Origin: https://app.example.com"];
        assert_eq!(status("GET /v1/clients", &allowed).await, 200);
        let other = [site.as_str(), "Sec-Fetch-Mode: cors", "Origin: https://evil.example.org"];
        assert_eq!(status("GET /v1/clients", &other).await, 403);
        // A link may open the page, but not call the API.
        let link = [site.as_str(), "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"];
        assert_eq!(status("GET /", &link).await, 200);
        assert_eq!(status("GET /v1/clients", &link).await, 403);
    }
    for site in ["same-origin", "none"] {
        assert_eq!(status("GET /v1/clients", &[&format!("Sec-Fetch-Site: {site}")]).await, 200, "{site}");
    }
}

#[tokio::test]
async fn all_of_several_keys_must_be_valid() {
    let server = Server::start(&["--api-key", "the-key-of-the-api"]);
    let (right, wrong) = ("Authorization: Bearer the-key-of-the-api", "Authorization: Bearer another");
    let lower = "authorization: bearer the-key-of-the-api";
    for (headers, status) in [
        (&[right][..], 200),
        (&[lower], 200),
        (&[right, right], 200),
        (&[right, wrong], 401),
        (&[wrong, right], 401),
        (&[], 401),
    ] {
        assert_eq!(http(server.api(), "GET /v1/stats", headers, "").await.status, status, "{headers:?}");
    }
}

#[tokio::test]
async fn the_total_memory_of_bodies_is_limited() {
    let server = Server::start(&["--max-api-bytes", "100000", "--max-batch-bytes", "1000000"]);
    let mut first = connect(&server).await;
    let head = "POST /v1/topics/a/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 60002\r\n\r\n";
    send(&mut first, &format!("{head}\"{}", "x".repeat(59_000))).await;
    wait_for("the first body", async {
        while metric(&server, "deeperhub_api_held_bytes").await < 59_000 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let body = format!("\"{}\"", "x".repeat(60_000));
    let response = http(server.api(), "POST /v1/topics/a/messages", &[], &body).await;
    assert_eq!((response.status, &response.json()["error"]["code"]), (503, &json!("overloaded")));
    assert_eq!(response.header("retry-after"), Some("1"));
    assert!(is_live(&server).await);
    send(&mut first, &format!("{}\"", "x".repeat(1000))).await;
    wait_for("a response", first.readable()).await.unwrap();
    assert_eq!(http(server.api(), "POST /v1/topics/a/messages", &[], &body).await.status, 200);
    assert_eq!(metric(&server, "deeperhub_api_overloads_total").await, 1);
}
