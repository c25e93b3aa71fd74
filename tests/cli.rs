//! The command line: output, rejected input, exit codes, signals.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{Client, ROOT, Server, TemporaryDir, free_port, http, run, wait_for};

/// Compares a text with a snapshot; with `UPDATE_SNAPSHOTS` set, writes the snapshot instead.
pub(crate) fn check_snapshot(name: &str, text: &str) {
    let path = Path::new(ROOT).join("tests/snapshots").join(name);
    if std::env::var_os("UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, text).expect("a snapshot can be written");
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        text, expected,
        "{name} differs from the snapshot; if that is intended, run with UPDATE_SNAPSHOTS=1"
    );
}

/// Runs a command that must be rejected and checks that the message contains each text.
pub(crate) fn check_refused(arguments: &[&str], variables: &[(&str, &str)], named: &[&str]) {
    let finished = run(arguments, variables);
    assert_eq!(finished.code, Some(2), "{arguments:?} {variables:?}: {finished:?}");
    assert_eq!(finished.stdout, "", "an error goes to standard error");
    for text in named {
        assert!(finished.stderr.contains(text), "{text:?} is not in: {}", finished.stderr);
    }
}

/// Returns the source files below a directory that declare flags, with their texts.
fn sources_with_flags(directory: &Path) -> Vec<(PathBuf, String)> {
    let entries = std::fs::read_dir(directory).expect("a directory can be read");
    let mut sources = Vec::new();
    for path in entries.map(|entry| entry.expect("a directory can be read").path()) {
        if path.is_dir() {
            sources.extend(sources_with_flags(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source can be read");
            let is_clap = ["#[arg(", "with_defaults", "derive(Subcommand)", ".help("];
            sources.extend(is_clap.iter().any(|clap| text.contains(clap)).then_some((path, text)));
        }
    }
    sources
}

/// Defaults that are words, because no code has a value for them.
const DEFAULTS_IN_WORDS: [&str; 1] = ["the system's"];

#[test]
fn defaults_in_help_texts_come_from_the_code() {
    let directories =
        ["bins/deeperhub-ws/src", "crates/deeperhub-bench/src", "crates/deeperhub-top/src", "benches"];
    let mut sources = Vec::new();
    for directory in directories {
        let found = sources_with_flags(&Path::new(ROOT).join(directory));
        assert!(!found.is_empty(), "{directory} has no flags");
        sources.extend(found);
    }
    for (path, text) in sources {
        let path = path.display();
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for written in code.split("[default").skip(1) {
            let default = written.split_once(':').map_or(written, |(_, default)| default).trim_start();
            let is_in_words = DEFAULTS_IN_WORDS.iter().any(|words| default.starts_with(words));
            let shown: String = default.chars().take(20).collect();
            assert!(default.starts_with(['{', '…']) || is_in_words, "{path} types the default {shown:?}");
        }
        // A sentence such as "the default is 5".
        let comments = code.lines().map(|line| line.trim().strip_prefix("/// ").unwrap_or("\n"));
        let prose = comments.collect::<Vec<_>>().join(" ");
        for sentence in prose.split(['\n', ';']).flat_map(|paragraph| paragraph.split(". ")) {
            let is_about_default = sentence.to_lowercase().contains("default");
            let has_number = sentence.split(' ').any(|word| word.starts_with(|c: char| c.is_ascii_digit()));
            assert!(!is_about_default || !has_number, "{path} types a default: {sentence}");
        }
    }
}

#[test]
fn help_matches_the_snapshot() {
    let finished = run(&["--help"], &[]);
    assert_eq!(finished.code, Some(0));
    check_snapshot("help.txt", &finished.stdout);
}

#[test]
fn version_matches_the_package() {
    let finished = run(&["--version"], &[]);
    assert_eq!(finished.code, Some(0));
    assert_eq!(finished.stdout, format!("deeperhub-ws {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn bad_flags_exit_with_2_and_name_flag_value_and_remedy() {
    check_refused(&["--port", "70000"], &[], &["--port", "70000", "from 0 to 65535"]);
    check_refused(&["--ping-interval", "25"], &[], &["--ping-interval", "'25'", "10s"]);
    check_refused(&["--log-level", "loud"], &[], &["--log-level", "loud", "trace"]);
    check_refused(&["--rate-limit", "-1"], &[], &["--rate-limit", "-1", "from 0 to"]);
    check_refused(&["--prot", "1"], &[], &["--prot", "--port"]);
    check_refused(&["paint"], &[], &["paint"]);
}

#[test]
fn bad_variables_exit_with_2_and_name_variable_value_and_remedy() {
    for action in [&["config", "check"][..], &["config", "show"], &["serve"], &[]] {
        let variables = [("DEEPERHUB_MAX_CONNECTIONS", "many"), ("DEEPERHUB_PONG_TIMEOUT", "1 day")];
        check_refused(
            action,
            &variables,
            &[
                "'many' for DEEPERHUB_MAX_CONNECTIONS: expected a whole number from 1",
                "'1 day' for DEEPERHUB_PONG_TIMEOUT: expected a duration such as 500ms",
            ],
        );
    }
}

#[test]
fn bad_files_exit_with_2_and_name_file_line_key_and_remedy() {
    let dir = TemporaryDir::new();
    for (text, named) in [
        ("port = 1\nmax_conections = 5", ":2: unknown key 'max_conections'; did you mean 'max_connections'?"),
        ("\nhandshake_timeout = 'soon'", "'soon' for handshake_timeout in "),
        ("port = ", ":1: not TOML: "),
        ("[server]\nrate_limit = 1", ":1: unknown key 'server'; there are no sections"),
    ] {
        let path = dir.write("hub.toml", text);
        let path = path.to_str().expect("a temporary path is text");
        check_refused(&["config", "check", "--config", path], &[], &[path, named]);
        check_refused(&["config", "check"], &[("DEEPERHUB_CONFIG", path)], &[path, named]);
    }
    check_refused(
        &["--config", "/nowhere/hub.toml"],
        &[],
        &["/nowhere/hub.toml", "--config", "No such file"],
    );
}

#[test]
fn api_off_loopback_without_a_key_is_refused() {
    check_refused(&["--api-listen", "0.0.0.0:0"], &[], &["0.0.0.0:0", "--api-listen", "--api-key"]);
}

#[test]
fn a_valid_configuration_passes_the_check_with_warnings() {
    let finished = run(&["config", "check"], &[]);
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""));
    let variables = [("DEEPERHUB_HOST", "0.0.0.0"), ("DEEPERHUB_MAX_CONECTIONS", "5")];
    let finished = run(&["config", "check"], &variables);
    assert_eq!(finished.code, Some(0));
    assert!(
        finished.stderr.contains("warning: DEEPERHUB_HOST is 0.0.0.0, which is not loopback"),
        "{finished:?}"
    );
    assert!(finished.stderr.contains("did you mean DEEPERHUB_MAX_CONNECTIONS?"), "{finished:?}");
}

#[test]
fn the_configuration_is_shown_with_origins_and_without_secrets() {
    let dir = TemporaryDir::new();
    let path = dir.write("hub.toml", "port = 1\nhost = '::1'\nallowed_origin = ['https://a.example']\n");
    let path = path.to_str().expect("a temporary path is text");
    let variables =
        [("DEEPERHUB_PORT", "2"), ("DEEPERHUB_API_KEY", "hunter2"), ("DEEPERHUB_RATE_LIMIT", "0")];
    let finished = run(&["config", "show", "--config", path, "--port", "3"], &variables);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    let shown = |key: &str| {
        let line = finished.stdout.lines().find(|line| line.starts_with(&format!("{key} = ")));
        let (value, origin) = line.and_then(|line| line.split_once("  # ")).unwrap_or_default();
        (value.trim_end().to_owned(), origin.to_owned())
    };
    let pair = |value: &str, origin: &str| (value.to_owned(), origin.to_owned());
    assert_eq!(shown("port"), pair("port = 3", "--port"));
    assert_eq!(shown("rate_limit"), pair("rate_limit = 0", "DEEPERHUB_RATE_LIMIT"));
    assert_eq!(shown("host"), pair("host = \"::1\"", &format!("{path}:2")));
    assert_eq!(shown("allowed_origin").1, format!("{path}:3"));
    assert_eq!(shown("max_connections"), pair("max_connections = 1000", "default"));
    assert_eq!(shown("api_key"), pair("api_key = \"********\"", "DEEPERHUB_API_KEY"));
    assert!(!finished.stdout.contains("hunter2") && !finished.stderr.contains("hunter2"));
}

#[test]
fn the_shown_configuration_is_an_equivalent_file() {
    let dir = TemporaryDir::new();
    let flags =
        ["--rate-limit", "0", "--drain-timeout", "1500ms", "--path", "/a", "--path", "/b", "--node-id", "n1"];
    let first = run(&[&["config", "show"], &flags[..]].concat(), &[]).stdout;
    let path = dir.write("hub.toml", &first);
    let second =
        run(&["config", "show", "--config", path.to_str().expect("a temporary path is text")], &[]).stdout;
    let values = |shown: &str| {
        let settings = shown.lines().filter(|line| !line.starts_with('#'));
        settings.filter_map(|line| Some(line.split_once("  # ")?.0.trim().to_owned())).collect::<Vec<_>>()
    };
    assert!(values(&first).len() > 15, "{first}");
    assert_eq!(values(&first), values(&second));
}

#[test]
fn completions_are_written_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let finished = run(&["completions", shell], &[]);
        assert_eq!(finished.code, Some(0), "{finished:?}");
        for word in ["deeperhub-ws", "max-queue-bytes", "completions"] {
            assert!(finished.stdout.contains(word), "{word} is not in the script for {shell}");
        }
    }
}

#[test]
fn bash_completes_flags_and_arguments_of_subcommands() {
    let script = run(&["completions", "bash"], &[]).stdout;
    let complete = |words: &[&str]| {
        let last = words.len() - 1;
        let script = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD={last}; \
             _deeperhub__ws deeperhub-ws '{current}' '{previous}'; echo \"${{COMPREPLY[*]}}\"",
            words = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" "),
            current = words[last],
            previous = words[last - 1],
        );
        // The script exceeds the maximum length of an argument.
        let mut bash = Command::new("bash")
            .args(["--norc", "-s"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("bash runs");
        let mut stdin = bash.stdin.take().expect("it is piped");
        stdin.write_all(script.as_bytes()).expect("bash reads");
        drop(stdin);
        let output = bash.wait_with_output().expect("bash ends");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(complete(&["deeperhub-ws", "--max-q"]), "--max-queue-bytes");
    assert_eq!(complete(&["deeperhub-ws", "config", "ch"]), "check");
    assert_eq!(complete(&["deeperhub-ws", "config", "show", "--ping"]), "--ping-interval");
    assert_eq!(complete(&["deeperhub-ws", "completions", "f"]), "fish");
}

#[test]
fn a_closed_output_pipe_is_not_an_error() {
    let command =
        format!("{} --help | head -n 1; exit ${{PIPESTATUS[0]}}", env!("CARGO_BIN_EXE_deeperhub-ws"));
    let output = Command::new("bash").args(["-c", &command]).output().expect("bash runs");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn health_without_a_server_exits_with_1() {
    let address = format!("127.0.0.1:{}", free_port());
    let finished = run(&["health", "--api-listen", &address], &[]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert!(finished.stderr.contains(&address), "{finished:?}");
    assert_eq!(run(&["health"], &[("DEEPERHUB_API_LISTEN", "off")]).code, Some(1));
    assert_eq!(run(&["health", "--api-listen", "nowhere"], &[]).code, Some(2));
}

#[test]
fn a_server_prints_its_addresses_when_it_is_ready() {
    let server = Server::start(&[]);
    assert!(server.start_line.starts_with(concat!(
        "deeperhub-ws ",
        env!("CARGO_PKG_VERSION"),
        " listening on ws://"
    )));
    for part in ["TLS off", "up to 1000 connections", "messages up to 64 KiB", "100/s"] {
        assert!(server.start_line.contains(part), "{part} is not in: {}", server.start_line);
    }
    let ready = run(&["health", "--api-listen", &server.api().to_string()], &[]);
    assert_eq!((ready.code, ready.stdout.as_str()), (Some(0), "ready\n"), "{ready:?}");
}

#[test]
fn both_loopback_addresses_are_listened_on_with_one_port() {
    let server = Server::start(&[]);
    let addresses: Vec<std::net::SocketAddr> = server
        .start_line
        .split("ws://")
        .skip(1)
        .map(|rest| rest.split([' ', ')']).next().unwrap_or_default().parse().expect("it is an address"))
        .collect();
    // A machine may have only IPv4 or only IPv6.
    let has = |ip: &str| std::net::TcpListener::bind((ip, 0)).is_ok();
    let expected: Vec<_> = ["127.0.0.1", "::1"].into_iter().filter(|ip| has(ip)).collect();
    let ips: Vec<_> = addresses.iter().map(|address| address.ip().to_string()).collect();
    assert_eq!(ips, expected, "{}", server.start_line);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be created");
    for address in &addresses {
        assert_eq!(address.port(), server.clients.port(), "{}", server.start_line);
        runtime.block_on(async {
            let connected = Client::connect_with(format!("ws://{address}/")).await;
            assert_eq!(connected.expect("it is accepted").welcome["type"], "welcome");
        });
    }
    let name = format!("ws://localhost:{}/", server.clients.port());
    assert!(runtime.block_on(Client::connect_with(name)).is_ok());
    // With an IP address, the server listens on that address only.
    let server = Server::start(&["--host", "127.0.0.1"]);
    assert_eq!(server.start_line.matches("ws://").count(), 1, "{}", server.start_line);
}

#[test]
fn a_check_finds_the_errors_of_a_start() {
    let dir = TemporaryDir::new();
    let none = dir.write("none.pem", "no certificate\n");
    let none = none.to_str().expect("a temporary path is text");
    check_refused(
        &["config", "check", "--host", "no-such-host.invalid"],
        &[],
        &["cannot resolve no-such-host.invalid:8080"],
    );
    check_refused(
        &["config", "check", "--api-listen", "no-such-host.invalid:1", "--api-key", "k"],
        &[],
        &["cannot resolve no-such-host.invalid:1"],
    );
    check_refused(&["config", "check", "--host", "::", "--port", "8081"], &[], &["127.0.0.1:8081", "--port"]);
    check_refused(&["config", "check", "--port", "8081"], &[], &["127.0.0.1:8081", "--port"]);
    check_refused(&["config", "check", "--workers", "0"], &[], &["--workers", "0"]);
    let with_bom = dir.write("hub.toml", "\u{feff}port = 1\n");
    let checked = run(&["config", "check", "--config", with_bom.to_str().expect("it is text")], &[]);
    assert_eq!((checked.code, checked.stderr.as_str()), (Some(0), ""), "{checked:?}");
    // Telemetry that the server would start without is a warning.
    let variables = [
        ("DEEPERHUB_OTLP_ENDPOINT", "https://localhost:4318"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", none),
        ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
    ];
    let checked = run(&["config", "check"], &variables);
    assert_eq!(checked.code, Some(0), "{checked:?}");
    for text in
        ["warning: spans cannot be exported: ", "warning: metrics cannot", none, "OTEL_BSP_SCHEDULE_DELAY"]
    {
        assert!(checked.stderr.contains(text), "{text:?} is not in: {}", checked.stderr);
    }
}

#[test]
fn health_uses_loopback_if_the_api_listens_on_every_interface() {
    let server = Server::start(&["--api-listen", "0.0.0.0:0", "--api-key", "hunter2"]);
    let finished = run(&["health"], &[("DEEPERHUB_API_LISTEN", &format!("0.0.0.0:{}", server.api().port()))]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
}

#[test]
fn variables_and_file_reach_the_server() {
    let dir = TemporaryDir::new();
    let path = dir.write("hub.toml", "max_message_bytes = 2048\nping_interval = '7s'");
    let path = path.to_str().expect("a temporary path is text");
    let server = Server::start_with(&["--config", path], &[("DEEPERHUB_MAX_SUBSCRIPTIONS", "3")]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be created");
    let welcome = runtime.block_on(Client::connect(&server)).welcome;
    let limits = &welcome["data"]["limits"];
    assert_eq!(limits["max_message_bytes"], 2048, "{welcome}");
    assert_eq!(limits["max_subscriptions"], 3, "{welcome}");
    assert_eq!(limits["ping_interval_ms"], 7000, "{welcome}");
}

#[test]
fn a_port_in_use_exits_with_1_and_names_the_flag_for_another() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let address = taken.local_addr().expect("it has an address");
    let port = address.port().to_string();
    let finished = run(&["--port", &port, "--api-listen", "off"], &[]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    assert_eq!(finished.stdout, "");
    for text in [address.to_string().as_str(), "in use", "--port"] {
        assert!(finished.stderr.contains(text), "{text:?} is not in: {}", finished.stderr);
    }
    let finished = run(&["--port", "0", "--api-listen", &address.to_string()], &[]);
    assert_eq!(finished.code, Some(1), "{finished:?}");
    for text in [address.to_string().as_str(), "in use", "--api-listen"] {
        assert!(finished.stderr.contains(text), "{text:?} is not in: {}", finished.stderr);
    }
}

#[test]
fn configuration_warnings_are_logged_at_startup() {
    let server = Server::start_with(&["--host", "0.0.0.0"], &[("DEEPERHUB_MAX_CONECTIONS", "5")]);
    server.wait_for_stderr("--host is 0.0.0.0, which is not loopback");
    server.wait_for_stderr("did you mean DEEPERHUB_MAX_CONNECTIONS?");
}

#[test]
fn sigterm_and_sigint_close_clients_with_1001_and_exit_with_0() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be created");
    for signal in ["TERM", "INT"] {
        let mut server = Server::start(&["--drain-timeout", "200ms"]);
        runtime.block_on(async {
            let mut client = Client::connect(&server).await;
            server.signal(signal);
            let (code, _, goodbye) = client.closed().await;
            assert_eq!(code, 1001);
            assert!(goodbye.is_some_and(|goodbye| goodbye["data"]["reconnect"] == true));
        });
        assert_eq!(server.wait().code(), Some(0), "SIG{signal}: {}", server.stderr());
    }
}

#[test]
fn a_second_signal_does_not_wait_for_the_drain() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be created");
    let mut server = Server::start(&["--drain-timeout", "1h"]);
    let clients: Vec<_> =
        runtime.block_on(async { [Client::connect(&server).await, Client::connect(&server).await].into() });
    server.signal("TERM");
    runtime.block_on(wait_for("the drain", async {
        while http(server.api(), "GET /health/ready", &[], "").await.status != 503 {}
    }));
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0), "{}", server.stderr());
    server.wait_for_stderr("Second signal; exiting");
    drop(clients);
}

#[test]
fn sighup_does_not_end_the_server() {
    let server = Server::start(&[]);
    server.signal("HUP");
    server.wait_for_stderr("Reloaded");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be created");
    runtime.block_on(Client::connect(&server));
}

#[test]
fn logs_can_be_json_and_include_connections_at_debug() {
    let server = Server::start(&["--log-format", "json", "--log-level", "debug"]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be created");
    let id = runtime.block_on(async {
        let mut client = Client::connect(&server).await;
        let id = client.id().to_owned();
        client.socket.close(None).await.expect("it can be closed");
        id
    });
    server.wait_for_stderr("\"Client disconnected\"");
    let connected = server.stderr().lines().any(|line| {
        let line: serde_json::Value = serde_json::from_str(line).expect("each line is JSON");
        line["message"] == "Client connected" && line["client_id"] == id.as_str()
    });
    assert!(connected, "{}", server.stderr());
}

#[test]
fn connections_are_not_logged_by_default() {
    let mut server = Server::start(&["--drain-timeout", "0"]);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be created");
    let id = runtime.block_on(async { Client::connect(&server).await.id().to_owned() });
    server.signal("TERM");
    server.wait();
    assert!(!server.stderr().contains(&id), "{}", server.stderr());
}

#[test]
fn a_closed_log_pipe_does_not_end_the_server() {
    let mut server = Server::start(&["--drain-timeout", "0", "--log-level", "debug"]);
    server.close_stderr();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime can be created");
    runtime.block_on(async {
        let mut client = Client::connect(&server).await;
        server.signal("HUP");
        let echo = serde_json::json!({"type": "echo", "data": 1});
        assert_eq!(client.request(&echo).await, echo);
    });
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_settings_file_may_begin_with_a_byte_order_mark() {
    let directory = TemporaryDir::new();
    let file = directory.write("hub.toml", "\u{feff}max_connections = 7\n");
    let finished = run(&["config", "show", "--config", file.to_str().unwrap()], &[]);
    assert_eq!(finished.code, Some(0), "{finished:?}");
    assert!(finished.stdout.contains("max_connections = 7"), "{finished:?}");
}
