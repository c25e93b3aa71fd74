//! Settings reloaded on SIGHUP, and the file that `config default` prints.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::json;
use tokio::net::TcpSocket;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};

use crate::support::wire::{TEXT, Wire};
use crate::support::{
    Authority, Client, Identity, Issuer, Response, Server, TemporaryDir, http, jwks_file, run, wait_for,
};

#[tokio::test]
async fn limits_origins_key_and_log_level_change_while_connections_stay() {
    let dir = TemporaryDir::new();
    let path = dir.write("hub.toml", "api_key = 'old-key'\nrate_limit = 0\nmax_connections = 5");
    let server = Server::start(&["--config", path.to_str().unwrap(), "--workers", "2"]);
    let mut client = Client::connect(&server).await;
    assert_eq!(
        client.request(&json!({"type": "subscribe", "data": {"topic": "a"}})).await["type"],
        "subscribed"
    );

    dir.write(
        "hub.toml",
        "api_key = 'new-key'\nmax_connections = 2\nmax_subscriptions = 1\nmax_message_bytes = 100\n\
         rate_limit = 1\nrate_burst = 3\nallowed_origin = ['https://app.example']\nlog_level = 'debug'\n\
         ping_interval = '7s'",
    );
    server.signal("HUP");
    server.wait_for_stderr("Reloaded");
    let log = server.stderr();
    assert!(log.contains("Setting changed") && log.contains("max_subscriptions"), "{log}");
    assert!(log.contains("restart required") && log.contains("ping_interval"), "{log}");
    assert!(!log.contains("old-key") && !log.contains("new-key"), "{log}");

    let old = http(server.api(), "GET /v1/stats", &["Authorization: Bearer old-key"], "").await;
    let new = http(server.api(), "GET /v1/stats", &["Authorization: Bearer new-key"], "").await;
    assert_eq!((old.status, new.status), (401, 200));
    assert_eq!(new.json()["connections"]["max"], 2);
    assert_eq!(new.json()["connections"]["active"], 1, "the connection stayed");

    // A page that was not allowed before may connect now and gets the new limits.
    let mut request = server.url("/").into_client_request().unwrap();
    request.headers_mut().insert("origin", "https://app.example".parse().unwrap());
    let other = Client::connect_with(request).await.unwrap();
    let limits = &other.welcome["data"]["limits"];
    assert_eq!((&limits["max_message_bytes"], &limits["max_subscriptions"]), (&json!(100), &json!(1)));
    assert_eq!(limits["ping_interval_ms"], 25_000, "it needs a new start");
    server.wait_for_stderr("Client connected");
    assert!(Client::connect_with(server.url("/")).await.is_err(), "two are connected");

    // The existing connection gets the new limits too.
    let reply = client.request(&json!({"type": "subscribe", "data": {"topic": "b"}})).await;
    assert_eq!(reply["data"]["code"], "too_many_subscriptions", "{reply}");
    wait_for("the reloaded rate", async {
        while client.request(&json!({"type": "echo", "data": 1})).await["data"]["code"] != "rate_limited" {}
    })
    .await;
    client.send(&json!({"type": "echo", "data": "x".repeat(100)})).await;
    assert_eq!(client.closed().await.0, 1009);
}

#[test]
fn an_invalid_file_changes_nothing_and_is_reported() {
    let dir = TemporaryDir::new();
    let path = dir.write("hub.toml", "max_subscriptions = 3");
    let server = Server::start(&["--config", path.to_str().unwrap()]);
    dir.write("hub.toml", "max_subscriptions = 2\nrate_limit = 'many'\ncolour = 1");
    server.signal("HUP");
    server.wait_for_stderr("Reload failed");
    for problem in ["'many' for rate_limit", "unknown key 'colour'"] {
        assert!(server.stderr().contains(problem), "{}", server.stderr());
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let welcome = runtime.block_on(Client::connect(&server)).welcome;
    assert_eq!(welcome["data"]["limits"]["max_subscriptions"], 3);
}

#[test]
fn flags_take_precedence_over_a_reloaded_file() {
    let dir = TemporaryDir::new();
    let path = dir.write("hub.toml", "");
    let server = Server::start(&["--config", path.to_str().unwrap(), "--max-subscriptions", "3"]);
    dir.write("hub.toml", "max_subscriptions = 2\nmax_message_bytes = 200");
    server.signal("HUP");
    server.wait_for_stderr("Reloaded");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let welcome = runtime.block_on(Client::connect(&server)).welcome;
    let limits = &welcome["data"]["limits"];
    assert_eq!((&limits["max_subscriptions"], &limits["max_message_bytes"]), (&json!(3), &json!(200)));
}

#[test]
fn the_printed_default_file_is_valid() {
    let printed = run(&["config", "default"], &[]);
    assert_eq!((printed.code, printed.stderr.as_str()), (Some(0), ""));
    for line in ["#port = 8080", "#max_queue_bytes = 1048576", "#ping_interval = \"25s\""] {
        assert!(printed.stdout.lines().any(|printed| printed == line), "{line} is not in {}", printed.stdout);
    }
    let dir = TemporaryDir::new();
    let path = dir.write("hub.toml", &printed.stdout);
    let checked = run(&["config", "check", "--config", path.to_str().unwrap()], &[]);
    assert_eq!((checked.code, checked.stderr.as_str()), (Some(0), ""), "{checked:?}");
    // Removing a `#` is enough to change a setting.
    let path = dir.write("hub.toml", &printed.stdout.replace("\n#port = 8080\n", "\nport = 9090\n"));
    let shown = run(&["config", "show", "--config", path.to_str().unwrap()], &[]);
    assert!(shown.stdout.lines().any(|line| line.starts_with("port = 9090")), "{}", shown.stdout);
}

/// Effect of SIGHUP on a changed setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Effect {
    Applied,
    NeedsRestart,
}

/// A setting whose value changes. `before` is empty if the setting has its default.
struct Change {
    key: &'static str,
    effect: Effect,
    before: String,
    after: String,
}

/// Files that settings name.
struct SettingFiles {
    files: TemporaryDir,
    authority: Authority,
    identity: Identity,
    issuer: Issuer,
}

impl SettingFiles {
    fn new() -> Self {
        let authority = Authority::new();
        let identity = authority.server("localhost");
        let files = TemporaryDir::new();
        files.write("hub.nk", &nkeys::KeyPair::new_user().seed().expect("a new key has a seed"));
        Self {
            files,
            authority,
            identity,
            issuer: Issuer::new("a secret of the tests, of more than 32 bytes"),
        }
    }

    /// Writes a settings file with these values of all changes. Leaves out empty ones.
    fn write(&self, changes: &[Change], value: impl Fn(&Change) -> &str) -> PathBuf {
        let lines = changes.iter().filter(|change| !value(change).is_empty());
        let lines: Vec<_> = lines.map(|change| format!("{} = {}", change.key, value(change))).collect();
        self.files.write("hub.toml", &lines.join("\n"))
    }

    /// Returns another value for each setting, in the order of the options.
    fn changes(&self) -> Vec<Change> {
        use Effect::{Applied, NeedsRestart};
        let path = |path: &Path| format!("'{}'", path.display());
        let (cert, key) = (path(&self.identity.cert), path(&self.identity.key));
        let ca = path(&self.authority.cert);
        let secret = path(Path::new(&self.issuer.file()));
        let (jwks, seed) = (path(&jwks_file()), path(&self.files.path("hub.nk")));
        let changes = [
            ("workers", NeedsRestart, "1", "2"),
            ("io_uring", NeedsRestart, "", "'off'"),
            ("node_id", NeedsRestart, "'before'", "'after'"),
            ("drain_timeout", NeedsRestart, "", "'9s'"),
            ("restart_time", NeedsRestart, "", "'9s'"),
            ("host", NeedsRestart, "'127.0.0.1'", "'::1'"),
            ("port", NeedsRestart, "0", "9"),
            ("path", NeedsRestart, "", "['/after']"),
            ("probe_path", NeedsRestart, "", "'/probe'"),
            ("trusted_proxy", NeedsRestart, "", "['127.0.0.0/8']"),
            ("forwarded_header", NeedsRestart, "", "'forwarded'"),
            ("proxy_protocol", NeedsRestart, "", "'off'"),
            ("tls_cert", NeedsRestart, "", &cert),
            ("tls_key", NeedsRestart, "", &key),
            ("tls_client_ca", NeedsRestart, "", &ca),
            ("tls_client_auth", NeedsRestart, "", "'optional'"),
            ("api_listen", NeedsRestart, "'127.0.0.1:0'", "'127.0.0.1:9'"),
            ("api_key", Applied, "'key-before'", "'key-after'"),
            ("api_tls_cert", NeedsRestart, "", &cert),
            ("api_tls_key", NeedsRestart, "", &key),
            ("dashboard", NeedsRestart, "", "'off'"),
            ("max_api_connections", NeedsRestart, "", "9"),
            ("api_idle_timeout", NeedsRestart, "", "'9s'"),
            ("api_timeout", NeedsRestart, "", "'9s'"),
            ("max_api_bytes", NeedsRestart, "", "9"),
            ("max_event_streams", NeedsRestart, "", "1"),
            ("max_event_bytes", NeedsRestart, "", "9"),
            ("canary_interval", NeedsRestart, "", "'9s'"),
            ("canary_timeout", NeedsRestart, "", "'9s'"),
            ("max_batch_calls", Applied, "", "2"),
            ("max_batch_bytes", Applied, "", "300"),
            ("idempotency_ttl", Applied, "'0s'", "'10m'"),
            ("max_idempotency_keys", Applied, "", "1"),
            ("max_idempotency_bytes", Applied, "1", "100000"),
            ("auth_secret_file", NeedsRestart, "", &secret),
            ("auth_jwks_file", NeedsRestart, "", &jwks),
            ("auth_required", NeedsRestart, "", "true"),
            ("auth_grace", NeedsRestart, "", "'9s'"),
            ("auth_audience", NeedsRestart, "", "['a']"),
            ("auth_issuer", NeedsRestart, "", "['a']"),
            ("auth_leeway", NeedsRestart, "", "'9s'"),
            ("max_token_bytes", NeedsRestart, "", "99"),
            ("max_connections", Applied, "", "4"),
            ("max_connections_per_ip", Applied, "", "3"),
            ("connection_rate_per_ip", NeedsRestart, "", "999"),
            ("max_message_bytes", Applied, "", "1000"),
            ("max_fragments", Applied, "", "3"),
            ("max_json_depth", Applied, "", "6"),
            ("max_subscriptions", Applied, "", "2"),
            ("max_queue_bytes", Applied, "", "5000"),
            ("round_bytes", Applied, "", "5000"),
            ("round_time", Applied, "", "'9ms'"),
            ("limits", NeedsRestart, "", "'observe'"),
            ("max_memory", NeedsRestart, "", "0"),
            ("reconnect_rate", NeedsRestart, "", "9"),
            ("rate_limit", Applied, "0", "1"),
            ("rate_burst", Applied, "", "60"),
            ("byte_rate_limit", Applied, "", "1"),
            ("byte_rate_burst", Applied, "", "4000"),
            ("control_rate_limit", Applied, "", "1"),
            ("token_rate_limit", Applied, "", "1"),
            // Off, so that each connection has its own bursts.
            ("burst_rate_per_ip", NeedsRestart, "0", "9"),
            ("max_handshake_bytes", Applied, "", "600"),
            ("max_handshake_headers", Applied, "", "10"),
            ("handshake_timeout", NeedsRestart, "", "'9s'"),
            ("ping_interval", NeedsRestart, "", "'9s'"),
            ("pong_timeout", NeedsRestart, "", "'9s'"),
            // A cluster has no history.
            ("topic", Applied, "['a: history=0']", "['b.>: history=0', 'a: history=0']"),
            ("history_bytes", Applied, "'1GiB'", "'64KiB'"),
            ("max_streams", Applied, "", "9"),
            ("history_forget", Applied, "", "'9s'"),
            ("history_store", NeedsRestart, "", "'disk'"),
            ("history_dir", NeedsRestart, "", "'/tmp/history'"),
            ("history_sync", NeedsRestart, "", "'9s'"),
            ("history_disk_bytes", NeedsRestart, "", "'9MiB'"),
            ("no_compression", NeedsRestart, "", "true"),
            ("compression_threshold", NeedsRestart, "", "9"),
            ("compression_level", NeedsRestart, "", "9"),
            ("client_context_takeover", NeedsRestart, "", "true"),
            ("allowed_origin", Applied, "", "['https://app.example']"),
            // Only the password changes. Nothing listens on port 1.
            (
                "cluster",
                NeedsRestart,
                "'nats://hub:word-before@127.0.0.1:1'",
                "'nats://hub:word-after@127.0.0.1:1'",
            ),
            ("cluster_prefix", NeedsRestart, "", "'after'"),
            ("cluster_queue_bytes", NeedsRestart, "", "99999"),
            ("cluster_unavailable", NeedsRestart, "", "'ready'"),
            ("cluster_credentials", NeedsRestart, "", &seed),
            ("cluster_ca", NeedsRestart, "", &ca),
            ("history_replicas", NeedsRestart, "", "3"),
            ("history_storage", NeedsRestart, "", "'memory'"),
            ("log_level", Applied, "", "'debug'"),
            ("log_format", NeedsRestart, "", "'json'"),
            ("log_queue_bytes", NeedsRestart, "", "99999"),
            ("otlp_endpoint", NeedsRestart, "", "'http://127.0.0.1:1'"),
            ("trace_sample_ratio", NeedsRestart, "", "0.9"),
            ("trace_client_rate", NeedsRestart, "", "9"),
        ];
        changes
            .map(|(key, effect, before, after)| {
                let (before, after) = (before.to_owned(), after.to_owned());
                Change { key, effect, before, after }
            })
            .into()
    }
}

/// Returns the keys of all settings as the program lists them, and whether each says that it is
/// reloaded.
fn settings_of_the_program() -> Vec<(String, bool)> {
    let file = run(&["config", "default"], &[]).stdout;
    let mut settings = Vec::new();
    let mut is_reloaded = false;
    for line in file.lines() {
        is_reloaded |= line == "# Reloaded on SIGHUP.";
        let assignment =
            line.strip_prefix('#').filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()));
        if let Some((key, _)) = assignment.and_then(|line| line.split_once(" = ")) {
            settings.push((key.to_owned(), std::mem::take(&mut is_reloaded)));
        }
    }
    settings
}

/// A server after a reload.
struct Reloaded {
    server: Server,
}

impl Reloaded {
    async fn api(&self, request: &str, headers: &[&str], body: &str) -> Response {
        let headers = [&["Authorization: Bearer key-after"], headers].concat();
        http(self.server.api(), request, &headers, body).await
    }

    /// Returns the number of messages that a limit has refused.
    async fn limited(&self, limit: &str) -> u64 {
        let text = self.api("GET /metrics", &[], "").await.body;
        let name = format!("deeperhub_messages_limited_total{{limit=\"{limit}\"}} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in {text}"))
    }

    /// Opens a connection from a loopback address, and returns the status of a refusal.
    async fn connect_from(&self, address: [u8; 4]) -> Result<impl Sized, u16> {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((address, 0).into()).expect("loopback has any address");
        let stream = socket.connect(self.server.clients).await.expect("the server accepts connections");
        match wait_for("a response", client_async(self.server.url("/"), stream)).await {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }

    async fn check_api(&self) {
        let old = http(self.server.api(), "GET /v1/stats", &["Authorization: Bearer key-before"], "").await;
        assert_eq!(old.status, 401);
        let calls = self.api("POST /v1/batch", &[], r#"{"calls":[{},{},{}]}"#).await;
        assert!(calls.status == 400 && calls.body.contains("expected 1 to 2"), "{calls:?}");
        let bytes = self.api("POST /v1/batch", &[], &" ".repeat(301)).await;
        assert_eq!(bytes.status, 413, "{bytes:?}");
        let body = self.api("POST /v1/topics/t/messages", &[], &format!("[{}]", " ".repeat(999))).await;
        assert_eq!(body.status, 413, "max_message_bytes holds for bodies: {body:?}");
        let deep = self.api("POST /v1/topics/t/messages", &[], "[[[[[[]]]]]]").await;
        assert_eq!(deep.status, 400, "max_json_depth holds for bodies: {deep:?}");

        let publish = async |key: &str| {
            let key = format!("Idempotency-Key: {key}");
            let response = self.api("POST /v1/topics/t/messages", &[&key], "1").await;
            assert_eq!(response.status, 200, "{response:?}");
            response.header("idempotency-replayed").is_some()
        };
        assert!(!publish("one").await);
        assert!(publish("one").await, "keys are remembered for some time, within some bytes");
        assert!(!publish("two").await);
        assert!(!publish("one").await, "only one key is remembered");
    }

    /// Connects until the result is the expected one: connections that close still count for a
    /// while.
    async fn connect_until(&self, address: [u8; 4], expected: Result<(), u16>) -> impl Sized {
        wait_for("the expected result of a connection", async {
            loop {
                let result = self.connect_from(address).await;
                let status = result.as_ref().map(drop).map_err(|status| *status);
                assert!(status.is_err() || expected.is_ok(), "a connection over the limit");
                if status == expected {
                    return result;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    }

    async fn check_connections(&self) {
        let [first, second, third] = [[127, 0, 0, 1], [127, 0, 0, 2], [127, 0, 0, 3]];
        let mut connections = Vec::new();
        for _ in 0..3 {
            connections.push(self.connect_until(first, Ok(())).await);
        }
        // The first is max_connections_per_ip, the last max_connections.
        self.connect_until(first, Err(429)).await;
        connections.push(self.connect_until(second, Ok(())).await);
        self.connect_until(third, Err(503)).await;
        drop(connections);
        self.connect_until(first, Ok(())).await;
    }

    async fn check_handshakes(&self) {
        let with = |header: &str| {
            let mut request = self.server.url("/").into_client_request().expect("a request");
            let headers =
                header.split(' ').map(|name| format!("x-{name}").parse::<HeaderName>().expect("a name"));
            request.headers_mut().extend(headers.map(|name| (name, HeaderValue::from_static("v"))));
            request
        };
        assert!(Client::connect_with(with("a b")).await.is_ok());
        assert!(Client::connect_with(with("a b c d e f g h")).await.is_err(), "max_handshake_headers");
        assert!(Client::connect_with(with(&"a".repeat(600))).await.is_err(), "max_handshake_bytes");
        let from = |origin: &'static str| {
            let mut request = self.server.url("/").into_client_request().expect("a request");
            request.headers_mut().insert("origin", HeaderValue::from_static(origin));
            request
        };
        assert!(Client::connect_with(from("https://app.example")).await.is_ok(), "allowed_origin");
        assert!(Client::connect_with(from("https://other.example")).await.is_err());
        // A line of the level `debug`.
        self.server.wait_for_stderr("Client connected");
    }

    async fn check_messages(&self, open: &mut Client) {
        // A connection that was open before the reload gets the new limits, too.
        for (topic, reply) in [("a", "subscribed"), ("b", "subscribed"), ("c", "error")] {
            let subscribe = json!({"type": "subscribe", "data": {"topic": topic}});
            assert_eq!(open.request(&subscribe).await["type"], reply, "max_subscriptions");
        }
        let deep = open.request(&json!({"type": "echo", "data": [[[[[[]]]]]]})).await;
        assert_eq!(deep["data"]["code"], "invalid_message", "max_json_depth: {deep}");
        open.send(&json!({"type": "echo", "data": "x".repeat(1000)})).await;
        assert_eq!(open.closed().await.0, 1009, "max_message_bytes");

        let mut fragments = Wire::connect(&self.server, None).await;
        for first in [0x01, 0x00, 0x00, 0x00] {
            fragments.send(first, b"x").await;
        }
        assert_eq!(fragments.closed().await.0, 1009, "max_fragments");

        let client = Client::connect(&self.server).await;
        let limits = &client.welcome["data"]["limits"];
        assert_eq!((&limits["max_message_bytes"], &limits["max_subscriptions"]), (&json!(1000), &json!(2)));
        assert_eq!(limits["ping_interval_ms"], 25_000, "it needs a restart");
        assert!(client.id().starts_with("before"), "node_id needs a restart: {}", client.id());
    }

    async fn check_rates(&self) {
        let echo = |bytes: usize| json!({"type": "echo", "data": "x".repeat(bytes)});
        // The limits before would let all of this pass.
        for (limit, message, max_count) in [
            ("messages", echo(1), 150),
            ("bytes", echo(900), 10),
            ("tokens", json!({"type": "authenticate", "data": {"token": "a.b.c"}}), 40),
        ] {
            let before = self.limited(limit).await;
            let mut client = Client::connect(&self.server).await;
            for _ in 0..max_count {
                if client.request(&message).await["data"]["code"] == "rate_limited" {
                    break;
                }
            }
            assert!(self.limited(limit).await > before, "{limit}");
        }
        let mut pinging = Wire::connect(&self.server, None).await;
        for _ in 0..20 {
            pinging.send(0x89, b"ping").await;
        }
        pinging.send(TEXT, echo(1).to_string().as_bytes()).await;
        let mut pongs = 0;
        while pinging.receive().await.expect("an echo comes").first == 0x8a {
            pongs += 1;
        }
        assert!(pongs < 20, "control_rate_limit");
    }
}

#[tokio::test]
async fn each_setting_is_applied_on_sighup_or_reported_to_need_a_restart() {
    let files = SettingFiles::new();
    let changes = files.changes();
    let listed: Vec<_> =
        changes.iter().map(|change| (change.key.to_owned(), change.effect == Effect::Applied)).collect();
    assert_eq!(settings_of_the_program(), listed, "each setting has a value here, with what happens to it");

    let path = files.write(&changes, |change| &change.before);
    let server = Server::start_with_file(&path);
    let mut open = Client::connect(&server).await;
    files.write(&changes, |change| &change.after);
    server.signal("HUP");
    server.wait_for_stderr("Reloaded");

    let log = server.stderr();
    for Change { key, effect, .. } in &changes {
        let setting = format!("setting=\"{key}\"");
        let lines: Vec<_> = log.lines().filter(|line| line.contains(&setting)).collect();
        let needs_restart = lines.iter().any(|line| line.contains("Setting changed; restart required"));
        assert_eq!(lines.len(), 1, "{key} is reported once: {log}");
        assert!(lines[0].contains("Setting changed"), "{lines:?}");
        assert_eq!(needs_restart, *effect == Effect::NeedsRestart, "{lines:?}");
    }
    for secret in ["key-before", "key-after", "word-before", "word-after"] {
        assert!(!log.contains(secret), "{secret} is in {log}");
    }

    let reloaded = Reloaded { server };
    reloaded.check_messages(&mut open).await;
    reloaded.check_api().await;
    reloaded.check_handshakes().await;
    reloaded.check_rates().await;
    reloaded.check_connections().await;

    // Settings that are not applied now are reported again; the others are in effect.
    reloaded.server.signal("HUP");
    let restarts = changes.iter().filter(|change| change.effect == Effect::NeedsRestart).count();
    wait_for("the second reload", async {
        while reloaded.server.stderr().matches("what=\"settings\"").count() < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let log = reloaded.server.stderr();
    assert_eq!(log.matches("Setting changed; restart required").count(), 2 * restarts);
    assert_eq!(log.matches("Setting changed").count(), changes.len() + restarts);
}
