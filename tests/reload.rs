//! Settings reloaded on SIGHUP, and the file that `config default` prints.

use serde_json::json;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::support::{Client, Server, TemporaryDir, http, run, wait_for};

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

#[test]
fn every_changed_setting_is_logged() {
    let changed = [
        "drain_timeout = '3s'",
        "path = ['/elsewhere']",
        "proxy_protocol = 'off'",
        "canary_interval = '1s'",
        "canary_timeout = '1s'",
        "auth_grace = '1s'",
        "auth_leeway = '1s'",
        "connection_rate_per_ip = 4",
        "limits = 'observe'",
        "max_memory = 0",
        "reconnect_rate = 3",
        "handshake_timeout = '1s'",
        "ping_interval = '9s'",
        "pong_timeout = '9s'",
        "no_compression = true",
        "compression_threshold = 300",
        "compression_level = 3",
        "client_context_takeover = true",
        "cluster_prefix = 'p'",
        "cluster_queue_bytes = 70000",
        "log_format = 'json'",
        "trace_sample_ratio = 0.5",
        "otlp_endpoint = 'http://localhost:1'",
    ];
    let dir = TemporaryDir::new();
    let path = dir.write("hub.toml", "");
    let server = Server::start(&["--config", path.to_str().unwrap()]);
    dir.write("hub.toml", &changed.join("\n"));
    server.signal("HUP");
    server.wait_for_stderr("Reloaded");
    let log = server.stderr();
    for line in changed {
        let key = line.split(' ').next().unwrap();
        let logged = log
            .lines()
            .any(|line| line.contains("restart required") && line.contains(&format!("setting=\"{key}\"")));
        assert!(logged, "{key} is not logged: {log}");
    }
}
