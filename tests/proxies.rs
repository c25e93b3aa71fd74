//! Clients behind proxies, and limits per address.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, Request};

use crate::support::{Authority, Client, Server, TlsClient, http, metric, over_tls, wait_for};

const UPGRADE: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";

/// Reads the `peer` of each connection from the event stream.
pub(crate) struct PeerAddresses(BufReader<TcpStream>);

impl PeerAddresses {
    pub(crate) async fn watch(server: &Server) -> Self {
        let mut stream = TcpStream::connect(server.api()).await.unwrap();
        let request = "GET /v1/events?types=websocket_connected HTTP/1.1\r\nHost: localhost\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut events = BufReader::new(stream);
        let mut line = String::new();
        // The head of the response.
        while line != "\r\n" {
            line.clear();
            wait_for("the head", events.read_line(&mut line)).await.unwrap();
        }
        Self(events)
    }

    pub(crate) async fn next(&mut self) -> String {
        loop {
            let mut line = String::new();
            wait_for("an event", self.0.read_line(&mut line)).await.unwrap();
            if let Some(data) = line.strip_prefix("data: ") {
                let event: Value = serde_json::from_str(data).unwrap();
                return event["peer"].as_str().unwrap_or_else(|| panic!("{event}")).to_owned();
            }
        }
    }
}

fn request(server: &Server, headers: &[(&'static str, &str)]) -> Request<()> {
    let mut request = server.url("/").into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().append(HeaderName::from_static(name), value.parse().unwrap());
    }
    request
}

/// Returns a header of the PROXY protocol, version 2.
fn proxy_header(source: SocketAddr) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    let addresses = match source {
        SocketAddr::V4(source) => {
            header.push(0x11);
            [&source.ip().octets()[..], &[192, 0, 2, 99]].concat()
        }
        SocketAddr::V6(source) => {
            header.push(0x21);
            [&source.ip().octets()[..], &[0; 16]].concat()
        }
    };
    header.extend([0, addresses.len() as u8 + 4]);
    header.extend(addresses);
    header.extend(source.port().to_be_bytes());
    header.extend([0x1f, 0x90]);
    header
}

#[tokio::test]
async fn the_client_of_a_trusted_proxy_is_the_one_that_it_names() {
    let server = Server::start(&["--trusted-proxy", "127.0.0.0/8"]);
    let mut peers = PeerAddresses::watch(&server).await;
    for (headers, peer) in [
        (&[("x-forwarded-for", "6.6.6.6, 192.0.2.1")][..], "192.0.2.1:0"),
        (&[("forwarded", "for=\"[2001:db8::1]:4711\";proto=https")], "[2001:db8::1]:0"),
        (&[("x-forwarded-for", "192.0.2.1"), ("x-forwarded-for", "192.0.2.2, 127.0.0.9")], "192.0.2.2:0"),
    ] {
        let _client = Client::connect_with(request(&server, headers)).await.unwrap();
        assert_eq!(peers.next().await, peer, "{headers:?}");
    }
    // Without a header, the client is the proxy itself.
    let _client = Client::connect(&server).await;
    assert!(peers.next().await.starts_with("127.0.0.1:"));
}

#[tokio::test]
async fn contradictory_forwarding_headers_are_refused() {
    let server = Server::start(&["--trusted-proxy", "127.0.0.1"]);
    let response = http(
        server.clients,
        "GET /",
        &[&(UPGRADE.trim_end().to_owned() + "\r\nForwarded: for=6.6.6.6\r\nX-Forwarded-For: 192.0.2.1")],
        "",
    )
    .await;
    assert_eq!(
        (response.status, &response.json()["error"]["code"]),
        (400, &json!("bad_handshake")),
        "{response:?}"
    );
    server.wait_for_stderr("--forwarded-header");
}

#[tokio::test]
async fn forwarding_headers_of_untrusted_peers_are_ignored() {
    // The trusted proxy is not the one that connects.
    let server = Server::start(&["--trusted-proxy", "10.0.0.0/8", "--max-connections-per-ip", "1"]);
    let mut peers = PeerAddresses::watch(&server).await;
    let headers = [("x-forwarded-for", "192.0.2.1"), ("forwarded", "for=192.0.2.2")];
    let _client = Client::connect_with(request(&server, &headers)).await.unwrap();
    assert!(peers.next().await.starts_with("127.0.0.1:"));
    let refused = http(server.clients, "GET /", &["X-Forwarded-For: 192.0.2.3"], "").await;
    assert_eq!(refused.status, 429, "{refused:?}");
    // A PROXY protocol header is not a request.
    let mut socket = connect_from("127.0.0.2", &server).await;
    socket.write_all(&proxy_header("192.0.2.1:4711".parse().unwrap())).await.unwrap();
    socket.write_all(format!("GET / HTTP/1.1\r\nHost: x\r\n{UPGRADE}\r\n").as_bytes()).await.unwrap();
    let mut response = String::new();
    let _ = wait_for("the end", socket.read_to_string(&mut response)).await;
    assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
}

#[tokio::test]
async fn address_limits_apply_to_a_proxys_clients_and_not_to_the_proxy() {
    let server = Server::start(&["--trusted-proxy", "127.0.0.1", "--max-connections-per-ip", "1"]);
    let connect = async |address: &str| {
        Client::connect_with(request(&server, &[("x-forwarded-for", address)])).await.map_err(drop)
    };
    let one = connect("192.0.2.1").await.unwrap();
    let _other = connect("192.0.2.2").await.unwrap();
    let _v6 = connect("2001:db8:1:2::1").await.unwrap();
    assert!(connect("192.0.2.1").await.is_err());
    assert!(connect("2001:db8:1:2::ffff").await.is_err(), "an IPv6 network of 64 bits is one client");
    let (_a, _b) = (Client::connect(&server).await, Client::connect(&server).await);
    // A released connection slot is available to the same client.
    drop(one);
    wait_for("a released connection slot", async { while connect("192.0.2.1").await.is_err() {} }).await;
}

#[tokio::test]
async fn a_proxy_protocol_header_names_the_client() {
    let server = Server::start(&["--trusted-proxy", "127.0.0.1", "--max-connections-per-ip", "1"]);
    let mut peers = PeerAddresses::watch(&server).await;
    for source in ["192.0.2.1:4711", "[2001:db8::1]:4711"] {
        let mut socket = TcpStream::connect(server.clients).await.unwrap();
        socket.set_nodelay(true).unwrap();
        // In parts, as it may arrive.
        for part in proxy_header(source.parse().unwrap()).chunks(5) {
            socket.write_all(part).await.unwrap();
            tokio::task::yield_now().await;
        }
        let connect = tokio_tungstenite::client_async(server.url("/"), socket);
        let (_client, _) = wait_for("the handshake", connect).await.unwrap();
        assert_eq!(peers.next().await, source);
    }
    // After the PROXY header, forwarding headers of the request come from the client: they are not
    // trusted, and the limit applies.
    let mut socket = TcpStream::connect(server.clients).await.unwrap();
    let mut all = proxy_header("192.0.2.9:4711".parse().unwrap());
    let head = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 6.6.6.6\r\n{UPGRADE}\r\n");
    all.extend(head.as_bytes());
    socket.write_all(&all).await.unwrap();
    assert_eq!(peers.next().await, "192.0.2.9:4711");
    let mut again = TcpStream::connect(server.clients).await.unwrap();
    again.write_all(&all).await.unwrap();
    let mut response = String::new();
    let _ = wait_for("the end", again.read_to_string(&mut response)).await;
    assert!(response.starts_with("HTTP/1.1 429 ") && response.contains("Retry-After"), "{response}");
}

#[tokio::test]
async fn a_proxy_protocol_header_precedes_tls() {
    let authority = Authority::new();
    let flags = ["--trusted-proxy", "127.0.0.1"];
    let server = Server::start(&[&authority.server("server").flags()[..], &flags].concat());
    let mut peers = PeerAddresses::watch(&server).await;
    let config = authority.trusting(None);
    let mut socket = TcpStream::connect(server.clients).await.unwrap();
    socket.write_all(&proxy_header("192.0.2.1:4711".parse().unwrap())).await.unwrap();
    let stream = over_tls(socket, &config).await.unwrap();
    let mut client = TlsClient::over(stream, server.url("/")).await.unwrap();
    assert_eq!(peers.next().await, "192.0.2.1:4711");
    assert_eq!(client.request(&json!({"type": "echo", "data": 1})).await["data"], 1);

    // A proxy's health check sends no header, or one without addresses.
    let _direct = TlsClient::connect(&server, &config).await;
    assert!(peers.next().await.starts_with("127.0.0.1:"));
    let mut socket = TcpStream::connect(server.clients).await.unwrap();
    socket.write_all(b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0").await.unwrap();
    let stream = over_tls(socket, &config).await.unwrap();
    let _local = TlsClient::over(stream, server.url("/")).await.unwrap();
    assert!(peers.next().await.starts_with("127.0.0.1:"));

    // TLS in the same segment as the header.
    let mut hello = proxy_header("192.0.2.2:1".parse().unwrap());
    let mut tls = rustls::ClientConnection::new(config.clone(), "localhost".try_into().unwrap()).unwrap();
    tls.write_tls(&mut hello).unwrap();
    let mut socket = TcpStream::connect(server.clients).await.unwrap();
    socket.write_all(&hello).await.unwrap();
    let mut response = [0; 3];
    wait_for("the server's hello", socket.read_exact(&mut response)).await.unwrap();
    assert_eq!(response[..2], [22, 3]);
}

#[tokio::test]
async fn a_missing_or_invalid_proxy_protocol_header_ends_the_connection() {
    let required = Server::start(&["--trusted-proxy", "127.0.0.1", "--proxy-protocol", "required"]);
    let broken = Server::start(&["--trusted-proxy", "127.0.0.1"]);
    for (server, start) in [
        (&required, &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..]),
        (&broken, b"\r\n\r\n\0\r\nQUIT\n\x91\x11\0\x0c"),
        (&broken, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"),
        (&broken, b"PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        (&broken, b"PROXY TCP4 192.0.2.1\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    ] {
        let mut socket = TcpStream::connect(server.clients).await.unwrap();
        socket.write_all(start).await.unwrap();
        let mut response = Vec::new();
        let _ = wait_for("the end", socket.read_to_end(&mut response)).await;
        assert_eq!(response, b"", "{}", String::from_utf8_lossy(&response));
    }
    // The log and the metrics show the reason and the count.
    check_logged_failure(&required, 1, "it does not start with the signature of the PROXY protocol").await;
    check_logged_failure(&broken, 4, "it does not have two addresses and two ports").await;
    let off = Server::start(&["--trusted-proxy", "127.0.0.1", "--proxy-protocol", "off"]);
    let mut socket = TcpStream::connect(off.clients).await.unwrap();
    socket.write_all(&proxy_header("192.0.2.1:4711".parse().unwrap())).await.unwrap();
    let mut response = String::new();
    let _ = wait_for("the end", socket.read_to_string(&mut response)).await;
    assert!(response.starts_with("HTTP/1.1 400 "), "{response}");
}

async fn check_logged_failure(server: &Server, failed: u64, why: &str) {
    assert_eq!(metric(server, "deeperhub_handshakes_total{outcome=\"proxy_failed\"}").await, failed);
    server.wait_for_stderr("Invalid PROXY protocol header");
    server.wait_for_stderr(why);
}

#[tokio::test]
async fn a_proxy_protocol_header_of_version_1_names_the_client() {
    for mode in ["detect", "required"] {
        let server = Server::start(&["--trusted-proxy", "127.0.0.1", "--proxy-protocol", mode]);
        let mut peers = PeerAddresses::watch(&server).await;
        for (header, source) in [
            ("PROXY TCP4 192.0.2.1 192.0.2.2 4711 443\r\n", "192.0.2.1:4711"),
            ("PROXY TCP6 2001:db8::1 2001:db8::2 4711 443\r\n", "[2001:db8::1]:4711"),
            ("PROXY UNKNOWN\r\n", "127.0.0.1:"),
        ] {
            let mut socket = TcpStream::connect(server.clients).await.unwrap();
            socket.set_nodelay(true).unwrap();
            for part in header.as_bytes().chunks(7) {
                socket.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            let connect = tokio_tungstenite::client_async(server.url("/"), socket);
            let (_client, _) = wait_for("the handshake", connect).await.unwrap();
            let peer = peers.next().await;
            assert!(peer.starts_with(source), "{peer} instead of {source}");
        }
    }
}

#[tokio::test]
async fn only_the_configured_forwarding_header_is_used() {
    for (header, peer) in [("x-forwarded-for", "192.0.2.1:0"), ("forwarded", "192.0.2.2:0")] {
        let server = Server::start(&["--trusted-proxy", "127.0.0.1", "--forwarded-header", header]);
        let mut peers = PeerAddresses::watch(&server).await;
        let headers = [("x-forwarded-for", "192.0.2.1"), ("forwarded", "for=192.0.2.2")];
        let _client = Client::connect_with(request(&server, &headers)).await.unwrap();
        assert_eq!(peers.next().await, peer);
    }
}

#[tokio::test]
async fn an_endless_proxy_protocol_header_times_out_with_the_handshake() {
    let server = Server::start(&["--trusted-proxy", "127.0.0.1", "--handshake-timeout", "300ms"]);
    let mut socket = TcpStream::connect(server.clients).await.unwrap();
    socket.write_all(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x01\0").await.unwrap();
    let mut response = Vec::new();
    let _ = wait_for("the end", socket.read_to_end(&mut response)).await;
    assert_eq!(response, b"");
}

async fn connect_from(address: &str, server: &Server) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(address.parse().unwrap(), 0)).unwrap();
    wait_for("a connection", socket.connect(server.clients)).await.unwrap()
}

#[tokio::test]
async fn an_address_over_its_connection_rate_is_refused_with_retry_after() {
    let server = Server::start(&["--connection-rate-per-ip", "2"]);
    let mut refused = None;
    // A burst of two: sent as fast as possible, the third within the same second exceeds the rate.
    for _ in 0..50 {
        let response = http(server.clients, "GET /", &[], "").await;
        if response.status == 429 {
            refused = Some(response);
            break;
        }
        assert_eq!(response.status, 426, "{response:?}");
    }
    let refused = refused.expect("fifty consecutive violations close the connection");
    let metrics = http(server.api(), "GET /metrics", &[], "").await.body;
    let counted = "deeperhub_connections_limited_total{limit=\"connection_rate_per_ip\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
    assert_eq!(refused.json()["error"]["code"], "rate_limited");
    assert_eq!(refused.header("retry-after"), Some("1"), "{refused:?}");
    // Other addresses are unaffected.
    let socket = connect_from("127.0.0.2", &server).await;
    wait_for("the handshake", tokio_tungstenite::client_async(server.url("/"), socket)).await.unwrap();
    // The address may connect again later.
    wait_for("a new connection from the address", async {
        while http(server.clients, "GET /", &[], "").await.status == 429 {}
    })
    .await;
}

#[tokio::test]
async fn the_default_connection_rate_allows_bursts_of_a_thousand_and_more_on_loopback() {
    let server = Server::start(&["--trusted-proxy", "127.0.0.1", "--max-connections", "4000"]);
    let head = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n";
    let status = async || {
        let mut socket = TcpStream::connect(server.clients).await.unwrap();
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut start = [0; 12];
        socket.read_exact(&mut start).await.unwrap();
        String::from_utf8_lossy(&start[9..]).into_owned()
    };
    // Several at a time, to exceed the rate on a busy machine too.
    let mut admitted = 0;
    wait_for("a refusal", async {
        loop {
            let answers = futures_util::future::join_all((0..50).map(|_| status())).await;
            let refused = answers.iter().filter(|status| *status == "429").count();
            admitted += answers.iter().filter(|status| *status == "101").count();
            assert_eq!(answers.iter().filter(|status| *status != "429" && *status != "101").count(), 0);
            if refused > 0 {
                break;
            }
        }
    })
    .await;
    assert!(admitted >= 1000, "{admitted}");

    let server = Server::start(&[]);
    for _ in 0..1300 {
        assert_eq!(http(server.clients, "GET /", &[], "").await.status, 426);
    }
}

#[tokio::test]
async fn the_connection_rate_applies_to_clients_behind_a_proxy() {
    let server = Server::start(&["--connection-rate-per-ip", "1", "--trusted-proxy", "127.0.0.1"]);
    let connect = async |address: &str| {
        Client::connect_with(request(&server, &[("x-forwarded-for", address)])).await.map_err(drop)
    };
    let mut refused = 0;
    for n in 0..20 {
        refused += usize::from(connect("192.0.2.1").await.is_err());
        assert!(connect(&format!("198.51.100.{n}")).await.is_ok());
    }
    assert!(refused > 0);
}
