//! TLS of the server API: certificates, mistakes, reloads, limits, and the commands that use it.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::{Authority, Client, Identity, Server, http, over_tls, run, text, wait_for};

/// Flags of a server API with this certificate.
fn flags(identity: &Identity) -> [&str; 4] {
    ["--api-tls-cert", text(&identity.cert), "--api-tls-key", text(&identity.key)]
}

async fn connect(api: SocketAddr, config: &Arc<ClientConfig>) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = wait_for("a connection", TcpStream::connect(api)).await?;
    over_tls(socket, config).await
}

/// Sends one request over TLS and returns the whole response.
async fn request(api: SocketAddr, config: &Arc<ClientConfig>, line: &str, body: &str) -> String {
    let mut stream = connect(api, config).await.unwrap_or_else(|error| panic!("no TLS: {error}"));
    let length = body.len();
    let text = format!(
        "{line} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let mut response = Vec::new();
    wait_for("a response", async {
        stream.write_all(text.as_bytes()).await.expect("the server reads");
        stream.read_to_end(&mut response).await.expect("the server ends TLS properly");
    })
    .await;
    String::from_utf8(response).expect("a response is text")
}

#[tokio::test]
async fn backends_publish_over_tls() {
    let authority = Authority::new();
    let server = Server::start(&flags(&authority.server("api")));
    assert!(server.start_line.contains("(API https://"), "{}", server.start_line);
    let trusting = authority.trusting(None);
    let mut client = Client::connect(&server).await;
    client.request(&serde_json::json!({"type": "subscribe", "data": {"topic": "news"}})).await;
    let response = request(server.api(), &trusting, "POST /v1/topics/news/messages", "\"hello\"").await;
    assert!(response.starts_with("HTTP/1.1 200") && response.contains("\"subscribers\":1"), "{response}");
    assert_eq!(client.receive().await["data"]["message"], "hello");

    // A long response takes many TLS records.
    let response = request(server.api(), &trusting, "GET /openapi.json", "").await;
    assert!(response.len() > 20_000 && response.ends_with("}\n"), "{} bytes", response.len());

    let stranger = Authority::new().trusting(None);
    let error = connect(server.api(), &stranger).await.expect_err("the authority is unknown");
    assert!(error.to_string().contains("invalid peer certificate"), "{error}");
}

#[tokio::test]
async fn plain_http_on_the_tls_port_gets_an_explanation() {
    let authority = Authority::new();
    let server = Server::start(&flags(&authority.server("api")));
    let response = http(server.api(), "GET /health/live", &[], "").await;
    assert_eq!(response.status, 400);
    assert!(response.body.contains("https://"), "{}", response.body);
    let metrics = request(server.api(), &authority.trusting(None), "GET /metrics", "").await;
    assert!(metrics.contains("\ndeeperhub_api_tls_handshakes_failed_total 1\n"), "{metrics}");
}

#[tokio::test]
async fn a_renewed_certificate_is_served_after_a_signal() {
    let authority = Authority::new();
    let (first, renewed) = (authority.server("first"), authority.server("renewed"));
    let server = Server::start(&flags(&first));
    let trusting = authority.trusting(None);
    let mut open = connect(server.api(), &trusting).await.expect("TLS");
    renewed.replace(&first);
    server.signal("HUP");
    server.wait_for_stderr("API TLS certificate replaced");
    let shown = connect(server.api(), &trusting).await.expect("TLS");
    let shown = shown.get_ref().1.peer_certificates().expect("a certificate")[0].clone();
    let old = open.get_ref().1.peer_certificates().expect("a certificate")[0].clone();
    assert_ne!(shown, old);
    // The connection from before the renewal stays.
    wait_for("a response", async {
        open.write_all(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("it is open");
        let mut response = [0; 15];
        open.read_exact(&mut response).await.expect("it answers");
        assert_eq!(&response, b"HTTP/1.1 200 OK");
    })
    .await;
}

#[tokio::test]
async fn stalled_handshakes_end_and_exclude_nobody() {
    let authority = Authority::new();
    let identity = authority.server("api");
    let server = Server::start(
        &[&flags(&identity)[..], &["--api-timeout", "1s", "--max-api-connections", "2"]].concat(),
    );
    let mut stalled = Vec::new();
    for _ in 0..4 {
        let mut socket = TcpStream::connect(server.api()).await.expect("it listens");
        // The start of a handshake record.
        socket.write_all(b"\x16\x03\x01\x02\x00").await.expect("it reads");
        stalled.push(socket);
    }
    let response = request(server.api(), &authority.trusting(None), "GET /health/ready", "").await;
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    for mut socket in stalled {
        let mut rest = Vec::new();
        let ended = wait_for("the end of a stalled handshake", socket.read_to_end(&mut rest)).await;
        assert!(ended.is_err() || rest.len() < 100, "{rest:?}");
    }
}

#[test]
fn health_trusts_the_configured_certificate_only() {
    let authority = Authority::new();
    let (identity, other) = (authority.server("api"), authority.server("other"));
    let server = Server::start(&flags(&identity));
    let api = server.api().to_string();
    let health =
        |cert: &Identity| run(&["health", "--api-listen", &api, "--api-tls-cert", text(&cert.cert)], &[]);
    let ready = health(&identity);
    assert_eq!((ready.code, &*ready.stdout), (Some(0), "ready\n"), "{}", ready.stderr);
    let refused = health(&other);
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
}

#[test]
fn certificate_and_key_are_required_together_and_tls_is_advised_off_loopback() {
    let authority = Authority::new();
    let identity = authority.server("api");
    let lonely = run(&["config", "check", "--api-tls-cert", text(&identity.cert)], &[]);
    assert_eq!(lonely.code, Some(2));
    assert!(lonely.stderr.contains("--api-tls-cert needs --api-tls-key"), "{}", lonely.stderr);
    let check = |flags: &[&str]| {
        let open = ["config", "check", "--api-listen", "0.0.0.0:8081", "--api-key", "k"];
        run(&[&open[..], flags].concat(), &[])
    };
    let plain = check(&[]);
    assert_eq!(plain.code, Some(0), "{}", plain.stderr);
    assert!(
        plain.stderr.contains("without TLS") && plain.stderr.contains("--api-tls-cert"),
        "{}",
        plain.stderr
    );
    let secure = check(&flags(&identity));
    assert_eq!((secure.code, &*secure.stderr), (Some(0), ""));
}
