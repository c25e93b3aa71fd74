//! Secrets that must appear nowhere: tokens, keys, passwords and the contents of their files.

use std::time::Duration;

use futures_util::StreamExt;
use jsonwebtoken::Algorithm;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::{
    Authority, Broker, Collector, Engine, Issuer, Server, TemporaryDir, TlsClient, WAIT_TIMEOUT, connect_tls,
    from_now, has_brokers, http, jwks_file, run, signed, text, wait_for, with_token,
};

const SECRET: &str = "a secret of the tests, of more than 32 bytes";
const API_KEY: &str = "the-key-of-the-api";
const NEXT_API_KEY: &str = "the-next-key-of-the-api";
const PASSWORD: &str = "the-password-of-the-broker";
const COLLECTOR_KEY: &str = "the-key-of-the-collector";

fn claims(user: &str, after: Duration) -> Value {
    json!({"sub": user, "exp": from_now(after)})
}

fn authenticate(token: &str) -> Value {
    json!({"type": "authenticate", "id": "login", "data": {"token": token}})
}

/// Fails if `output` contains one of `secrets`, with the text before it.
#[track_caller]
fn check_absent(output: &str, secrets: &[String]) {
    for secret in secrets {
        assert!(secret.len() >= 8, "{secret} may stand anywhere by chance");
        if let Some(at) = output.find(secret.as_str()) {
            let around = &output[output.floor_char_boundary(at.saturating_sub(300))..at];
            panic!("{secret} appears after {around}");
        }
    }
}

/// Returns the parts of a token that must appear nowhere. The first part is the same for all
/// tokens.
fn token_parts(token: &str) -> impl Iterator<Item = String> {
    token.split('.').skip(1).map(str::to_owned)
}

/// A server with every kind of secret that logs and traces everything.
struct SecretsServer {
    authority: Authority,
    issuer: Issuer,
    files: TemporaryDir,
    collector: Collector,
    _broker: Broker,
    broker_url: String,
    tls_key: std::path::PathBuf,
    server: Server,
}

impl SecretsServer {
    async fn start(engine: Engine, format: &str) -> Self {
        let authority = Authority::new();
        let identity = authority.server("server");
        let issuer = Issuer::new(SECRET);
        let collector = Collector::http().await;
        let (broker, broker_url) = match engine {
            Engine::Nats => {
                let broker = Broker::start_with(engine, &["--user", "hub", "--pass", PASSWORD]);
                let url = format!("nats://hub:{PASSWORD}@{}", broker.address);
                (broker, url)
            }
            Engine::Redis => {
                let broker = Broker::start_with(engine, &["--requirepass", PASSWORD]);
                let url = format!("redis://:{PASSWORD}@{}", broker.address);
                (broker, url)
            }
        };
        let files = TemporaryDir::new();
        let settings = files.write("hub.toml", &format!("api_key = '{API_KEY}'\ncluster = '{broker_url}'\n"));
        let jwks = files.write("jwks.json", &std::fs::read_to_string(jwks_file()).expect("a fixture"));
        let headers = format!("authorization=Bearer%20{COLLECTOR_KEY}");
        let (secret, url) = (issuer.file(), collector.url());
        let flags = [
            "--config",
            text(&settings),
            "--auth-secret-file",
            &secret,
            "--auth-jwks-file",
            text(&jwks),
            "--otlp-endpoint",
            &url,
            "--log-level",
            "trace",
            "--log-format",
            format,
            "--workers",
            "1",
        ];
        let variables = [
            ("OTEL_EXPORTER_OTLP_HEADERS", headers.as_str()),
            ("OTEL_BSP_SCHEDULE_DELAY", "20"),
            ("OTEL_METRIC_EXPORT_INTERVAL", "100"),
        ];
        let server = Server::start_with(&[&identity.flags()[..], &flags].concat(), &variables);
        let tls_key = identity.key.clone();
        Self { authority, issuer, files, collector, _broker: broker, broker_url, tls_key, server }
    }

    /// Presents tokens in every way, valid and invalid, and returns all responses.
    async fn present(&self, tokens: &[&String]) -> String {
        let config = self.authority.trusting(None);
        let mut responses = String::new();
        for token in tokens {
            for (target, header) in [
                (format!("/?token={token}"), "X-Nothing: x".to_owned()),
                (format!("/?a=b&token={token}&token=x"), "X-Nothing: x".to_owned()),
                (format!("/nowhere?token={token}"), "X-Nothing: x".to_owned()),
                (format!("/{token}"), "X-Nothing: x".to_owned()),
                ("/".to_owned(), format!("Authorization: Bearer {token}")),
                ("/".to_owned(), format!("Authorization: Basic {token}")),
                ("/".to_owned(), format!("Sec-WebSocket-Protocol: bearer.{token}")),
                ("/".to_owned(), format!("Cookie: token={token}")),
                ("/".to_owned(), format!("Origin: https://{}", token.replace('.', "-"))),
            ] {
                // A valid token would be accepted, so these requests lack a required header.
                for connection in ["keep-alive", "Upgrade"] {
                    let mut stream = connect_tls(&self.server, &config).await.expect("TLS");
                    let request = format!(
                        "GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: {connection}\r\nUpgrade: websocket\r\n\
                         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{header}\r\n\r\n"
                    );
                    stream.write_all(request.as_bytes()).await.expect("the server accepts a request");
                    let mut buffer = vec![0; 64 * 1024];
                    let read = wait_for("a response", stream.read(&mut buffer)).await.unwrap_or(0);
                    responses += &String::from_utf8_lossy(&buffer[..read]);
                }
            }
        }
        let good = tokens[0];
        let in_query = self.server.url(&format!("/?token={good}")).into_client_request().unwrap();
        for request in [with_token(&self.server, good), in_query] {
            let stream = connect_tls(&self.server, &config).await.expect("TLS");
            let mut client = TlsClient::over(stream, request).await.expect("a good token");
            for token in tokens {
                responses += &client.request(&authenticate(token)).await.to_string();
            }
            for text in [
                format!(r#"{{"type":"authenticate","data":{{"token":"{good}"}}"#),
                format!(r#"{{"type":"authenticate","data":{{"token":["{good}"]}}}}"#),
                format!(r#"{{"type":"authenticate","token":"{good}","data":{{"token":"{good}"}}}}"#),
                format!(r#"{{"type":"authenticate","data":"{good}"}}"#),
                format!(
                    r#"{{"type":"authenticate","id":1,"data":{{"token":"{}"}}}}"#,
                    good.replace('.', "\\u002e")
                ),
                format!(r#"{{"type":"subscribe","data":{{"topic":"a topic {good}"}}}}"#),
                format!("authenticate {good}"),
            ] {
                let message = tokio_tungstenite::tungstenite::Message::text(text);
                futures_util::SinkExt::send(&mut client.socket, message).await.unwrap();
                responses += &client.receive().await.to_string();
            }
            client.socket.close(None).await.unwrap();
            wait_for("the end", async { while let Some(Ok(_)) = client.socket.next().await {} }).await;
        }
        responses
    }

    /// Reloads the server's files, which have new contents, and waits for the log line.
    async fn reload(&self, expected: &str) {
        let before = self.server.stderr().matches(expected).count();
        self.server.signal("HUP");
        wait_for(expected, async {
            while self.server.stderr().matches(expected).count() == before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }
}

async fn check_everything(engine: Engine, format: &str) {
    if !has_brokers() {
        return;
    }
    let setup = SecretsServer::start(engine, format).await;
    let (server, issuer) = (&setup.server, &setup.issuer);
    let key = format!("Authorization: Bearer {API_KEY}");
    let mut events = server_sent_events(server, &key).await;

    let hour = Duration::from_secs(3600);
    let good = issuer.token(&claims("ada", hour));
    let bad = Issuer::new("a secret of somebody else, of more than 32 bytes").token(&claims("eve", hour));
    let expired = issuer.token(&json!({"sub": "ada", "exp": 1}));
    let public = signed("jwt-ed25519.key", Algorithm::EdDSA, Some("ed25519"), &claims("ada", hour));
    let mut responses = setup.present(&[&good, &bad, &expired, &public]).await;
    responses += &events.read_until("websocket_disconnected").await;
    responses += &events.read_until("websocket_disconnected").await;

    for request in [
        "GET /v1/clients",
        "GET /metrics",
        "GET /v1/topics",
        "GET /v1/nodes",
        "GET /nothing",
        "POST /v1/batch",
    ] {
        let response = http(server.api(), request, &[&key], "").await;
        responses += &response.head;
        responses += &response.body;
    }
    for (target, header) in [
        ("/v1/clients".to_owned(), format!("Authorization: Bearer x{API_KEY}")),
        ("/v1/clients".to_owned(), format!("Authorization: Basic {API_KEY}")),
        (format!("/v1/clients?key={API_KEY}"), "X-Nothing: x".to_owned()),
        ("/v1/clients".to_owned(), format!("X-Api-Key: {API_KEY}")),
    ] {
        let response = http(server.api(), &format!("GET {target}"), &[&header], "").await;
        assert_eq!(response.status, 401, "{target} {header}: {response:?}");
        responses += &(response.head + &response.body);
    }

    // Invalid files are reported without their contents.
    let tls_key = std::fs::read_to_string(&setup.tls_key).unwrap();
    let broken_key = tls_key.replacen("BEGIN PRIVATE", "BEGIN BROKEN", 1);
    std::fs::write(&setup.tls_key, &broken_key).unwrap();
    setup.files.write("jwks.json", r#"{"keys":[{"kty":"oct","k":"c2hhcmVkLXNlY3JldC1pbi1hLWp3a3M"}]}"#);
    setup
        .files
        .write("hub.toml", &format!("api_key = '{NEXT_API_KEY}'\ncluster = '{}?x=1'\n", setup.broker_url));
    setup.reload("settings").await;
    setup.reload("Reload failed").await;
    setup.files.write("hub.toml", &format!("api_key = ['{API_KEY}', '{NEXT_API_KEY}'\n"));
    setup.reload("Reload failed").await;

    let spans = setup.collector.spans(3, |span| span.name.starts_with("GET ")).await;
    responses += &format!("{spans:?}{:?}", setup.collector.spans_so_far());
    responses += &format!("{:?}", setup.collector.resource());
    let file = setup
        .files
        .write("shown.toml", &format!("api_key = '{API_KEY}'\ncluster = '{}'\n", setup.broker_url));
    let shown = run(&["config", "show", "--config", text(&file), "--auth-secret-file", &issuer.file()], &[]);
    assert!(shown.stdout.contains("auth_secret_file = ") && shown.stdout.contains("********"), "{shown:?}");

    // There was enough output for a secret to appear in.
    let log = server.stderr();
    for expected in
        ["token_expired", "401 Unauthorized", "403 Forbidden", "invalid_topic", "websocket_connected"]
    {
        assert!(responses.contains(expected), "{expected} is not in {responses}");
    }
    for expected in ["Message received", "Client disconnected", "Reload failed"] {
        assert!(log.contains(expected), "{expected} is not in {log}");
    }
    assert_eq!(setup.collector.header("authorization"), Some(format!("Bearer {COLLECTOR_KEY}")));
    let mut secrets: Vec<String> =
        [SECRET, API_KEY, NEXT_API_KEY, PASSWORD, COLLECTOR_KEY, "c2hhcmVkLXNlY3JldC1pbi1hLWp3a3M"]
            .map(str::to_owned)
            .to_vec();
    secrets.extend([&good, &bad, &expired, &public].into_iter().flat_map(|token| token_parts(token)));
    secrets.extend(tls_key.lines().filter(|line| !line.starts_with("-----")).map(str::to_owned));
    let output =
        [responses, log, server.stdout(), server.start_line.clone(), shown.stdout, shown.stderr].concat();
    check_absent(&output, &secrets);
}

#[tokio::test]
async fn secrets_appear_in_no_output_with_nats() {
    check_everything(Engine::Nats, "text").await;
}

#[tokio::test]
async fn secrets_appear_in_no_output_with_redis() {
    check_everything(Engine::Redis, "json").await;
}

#[test]
fn failed_starts_show_no_secret() {
    let files = TemporaryDir::new();
    let path = |name: &str, text: &str| files.write(name, text).display().to_string();
    let secret = path("secret", SECRET);
    let short = path("short", "too-short-a-secret");
    let shared = path("shared.json", r#"{"keys":[{"kty":"oct","k":"c2hhcmVkLXNlY3JldC1pbi1hLWp3a3M"}]}"#);
    let unclosed = path("unclosed.toml", &format!("api_key = \"{API_KEY}\n"));
    let twice = path("twice.toml", &format!("api_key = \"{API_KEY}\"\napi_key = \"{API_KEY}\"\n"));
    let section = path("section.toml", &format!("[api]\nkey = \"{API_KEY}\"\n"));
    let list = path(
        "list.toml",
        &format!("api_key = [\"{API_KEY}\", \"x\"]\ncluster = [\"nats://a:{PASSWORD}@h\", \"x\"]"),
    );
    let url = |text: &str| text.replace('$', PASSWORD);
    let authority = Authority::new();
    let (cert, key) =
        (text(&authority.cert).to_owned(), authority.server("server").key.display().to_string());
    let mut responses = String::new();
    for (flags, code) in [
        (vec!["--auth-jwks-file", &secret], 2),
        (vec!["--auth-jwks-file", &shared], 2),
        (vec!["--auth-secret-file", &short, "--port", "none"], 2),
        (vec!["--tls-cert", &secret, "--tls-key", &secret], 2),
        (vec!["--tls-cert", &cert, "--tls-key", &secret], 2),
        (vec!["--tls-cert", &cert, "--tls-key", &key], 2),
        (vec!["--tls-cert", &key, "--tls-key", &key], 2),
        (vec!["--config", &unclosed], 2),
        (vec!["--config", &twice], 2),
        (vec!["--config", &section], 2),
        (vec!["--config", &list], 2),
        (vec!["--config", &secret], 2),
        (vec!["--api-key", "the-key-of-the-api and more"], 2),
        (vec!["--api-key", "the-key-of-the-api", "--api-key", "the-key-of-the-api"], 2),
        (vec!["--cluster", &url("nats://a:$@h:99999")], 2),
        (vec!["--cluster", &url("natz://a:$@h")], 2),
        (vec!["--cluster", &url("redis://:$@")], 2),
        (vec!["--cluster", &url("$")], 2),
        (vec!["--cluster", &url("nats://a:$@h"), "--cluster-prefix", "a b"], 2),
    ] {
        let finished = run(&flags, &[]);
        assert_eq!(finished.code, Some(code), "{flags:?}: {finished:?}");
        assert!(!finished.stderr.is_empty(), "{flags:?}");
        responses += &(finished.stdout + &finished.stderr);
    }
    let variables =
        [("DEEPERHUB_API_KEY", "the-key-of-the-api and more"), ("DEEPERHUB_CLUSTER", &url("natz://$@h"))];
    let finished = run(&["config", "check"], &variables);
    assert_eq!(finished.code, Some(2));
    responses += &(finished.stdout + &finished.stderr);
    let secrets = [SECRET, API_KEY, PASSWORD, "too-short-a-secret", "c2hhcmVkLXNlY3JldC1pbi1hLWp3a3M"];
    let mut secrets: Vec<String> = secrets.map(str::to_owned).to_vec();
    let key = std::fs::read_to_string(&key).unwrap();
    secrets.extend(key.lines().filter(|line| !line.starts_with("-----")).map(str::to_owned));
    check_absent(&responses, &secrets);
}

/// A stream of all events of a server.
struct Events(TcpStream);

async fn server_sent_events(server: &Server, key: &str) -> Events {
    let mut stream = TcpStream::connect(server.api()).await.unwrap();
    let request = format!("GET /v1/events HTTP/1.1\r\nHost: {}\r\n{key}\r\n\r\n", server.api());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut events = Events(stream);
    events.read_until("200 OK").await;
    events
}

impl Events {
    async fn read_until(&mut self, text: &str) -> String {
        let mut read = String::new();
        while !read.contains(text) {
            let mut buffer = [0; 4096];
            let count = tokio::time::timeout(WAIT_TIMEOUT, self.0.read(&mut buffer)).await;
            let count = count.unwrap_or_else(|_| panic!("no {text} in {read}")).unwrap();
            assert!(count > 0, "it ended after {read}");
            read += &String::from_utf8_lossy(&buffer[..count]);
        }
        read
    }
}
