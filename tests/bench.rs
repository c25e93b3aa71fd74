//! `bench` and the library behind it, against a server of their own. Asserts counts, never times.

use deeperhub_bench::{Args, BenchError};
use serde_json::Value;

use crate::cluster;
use crate::support::{Broker, Engine, Finished, Server, has_brokers, http, run};

#[path = "../crates/deeperhub-bench/examples/fanout.rs"]
#[allow(dead_code, reason = "its `main` is for the command line")]
mod example;

/// Starts a server without limits that a bench would exceed.
fn server() -> Server {
    Server::start(&["--rate-limit", "0", "--max-connections", "100", "--workers", "2"])
}

/// Runs the bench against a server; `flags` begins with the scenario.
fn bench(server: &Server, flags: &str) -> Finished {
    let url = server.url("/");
    let mut arguments = vec!["bench"];
    arguments.extend(flags.split(' '));
    arguments.extend(["--url", &url, "--json"]);
    run(&arguments, &[])
}

/// Returns the report of a run without failed or dropped connections.
fn figures(server: &Server, flags: &str) -> Value {
    let finished = bench(server, flags);
    assert_eq!(finished.code, Some(0), "{flags}: {finished:?}");
    assert_eq!(finished.stderr, "", "no progress bar without a terminal");
    let figures: Value = serde_json::from_str(&finished.stdout).expect("one JSON object");
    assert_eq!(figures["scenario"], flags.split(' ').next().unwrap_or_default());
    assert_eq!(figures["connections"]["failed"], 0, "{figures}");
    assert_eq!(figures["connections"]["dropped"], 0, "{figures}");
    figures
}

/// Checks that a run sends and delivers this many messages without faults.
fn check_messages(flags: &str, sent: u64, delivered: u64) {
    let figures = figures(&server(), &format!("{flags} --fail-on-loss"));
    let messages = &figures["messages"];
    assert_eq!(messages["sent"], sent, "{figures}");
    assert_eq!(messages["delivered"], delivered, "{figures}");
    assert_eq!(messages["latency_microseconds"]["count"], delivered, "{figures}");
    for fault in ["lost", "duplicated", "out_of_order", "misdelivered", "unsent", "stalls"] {
        assert_eq!(messages[fault], 0, "{fault}: {figures}");
    }
    assert_eq!(figures["errors"], serde_json::json!({}));
}

#[test]
fn every_echo_comes_back() {
    check_messages("echo --connections 10 --messages 200", 200, 200);
    check_messages("echo --connections 10 --messages 203 --in-flight 5 --threads 2", 203, 203);
    check_messages("echo --connections 10 --messages 200 --rate 2000", 200, 200);
}

#[test]
fn every_subscriber_gets_every_message() {
    check_messages("fanout --connections 10 --messages 200", 200, 2000);
    check_messages(
        "fanout --connections 10 --messages 200 --publishers 3 --in-flight 4 --threads 2",
        200,
        2000,
    );
    check_messages("fanout --connections 10 --messages 200 --publishers 3 --rate 2000", 200, 2000);
}

#[test]
fn every_topic_reaches_its_subscribers() {
    check_messages("topics --subscribers 10 --topics 5 --messages 200", 200, 400);
    check_messages("topics --subscribers 10 --topics 5 --messages 200 --publishers 7", 200, 400);
}

#[test]
fn compressed_messages_are_read() {
    let figures = figures(&server(), "fanout --connections 10 --messages 50 --size 5000 --compression");
    assert_eq!(figures["messages"]["delivered"], 500, "{figures}");
    assert_eq!(figures["messages"]["lost"], 0, "{figures}");
}

#[test]
fn slow_readers_do_not_hold_up_the_others() {
    let server = Server::start(&["--rate-limit", "0", "--max-queue-bytes", "65536"]);
    let flags = "slow --subscribers 10 --slow-readers 2 --messages 600 --size 20000 --rate 2000";
    let figures = figures(&server, flags);
    assert_eq!(figures["messages"]["delivered"], 6000, "{figures}");
    assert_eq!(figures["messages"]["lost"], 0, "{figures}");
    assert_eq!(figures["slow_readers"]["disconnected"], 2, "{figures}");
}

#[test]
fn idle_connections_are_held() {
    let figures = figures(&server(), "idle --connections 50 --duration 100ms");
    assert_eq!(figures["connections"]["opened"], 50);
    assert_eq!(figures["connections"]["open_microseconds"]["count"], 50);
}

#[test]
fn churn_opens_and_closes() {
    let figures = figures(&server(), "churn --connections 5 --duration 300ms --warmup 0");
    assert!(figures["churn"]["cycles"].as_u64() > Some(0), "{figures}");
}

/// Starts a server without limits that a bench would exceed, whose topics keep messages.
fn server_with_history(rule: &str) -> Server {
    let limits = ["--rate-limit", "0", "--max-connections", "100", "--workers", "2"];
    Server::start(&[&limits[..], &["--topic", rule]].concat())
}

#[test]
fn clients_that_return_have_every_message_once() {
    let server = server_with_history("bench.>: history=1000");
    for (flags, clients, subscriptions) in [
        ("--clients 20 --topics 5 --missed 30", 20, 20),
        ("--clients 9 --topics 7 --topics-per-client 3 --missed 30 --threads 2 --publishers 3", 9, 27),
        ("--clients 10 --topics 5 --missed 0 --publish-rate 0 --subscribers 0", 10, 10),
    ] {
        let flags = format!("recover {flags} --rate 200 --warmup 200ms --fail-on-loss");
        let figures = figures(&server, &flags);
        let (messages, recovery) = (&figures["messages"], &figures["recovery"]);
        for fault in ["lost", "duplicated", "out_of_order", "misdelivered"] {
            assert_eq!(messages[fault], 0, "{fault}: {figures}");
        }
        assert_eq!(recovery["clients"], clients, "{figures}");
        assert_eq!(
            (&recovery["returned"], &recovery["live"]),
            (&clients.into(), &clients.into()),
            "{figures}"
        );
        assert_eq!(recovery["recovered"], subscriptions, "{figures}");
        assert_eq!(recovery["not_recovered"], serde_json::json!({}), "{figures}");
        assert_eq!((&recovery["gaps"], &recovery["skipped"]), (&0.into(), &0.into()), "{figures}");
        let missed = recovery["missed_per_topic"].as_u64().expect("a number") * subscriptions;
        assert!(recovery["replayed"].as_u64() >= Some(missed), "{figures}");
        assert_eq!(recovery["live_microseconds"]["count"], clients, "{figures}");
        assert_eq!(figures["errors"], serde_json::json!({}));
    }
}

#[tokio::test]
async fn clients_return_to_another_node() {
    if !has_brokers() {
        return;
    }
    let broker = Broker::start(Engine::Redis);
    let flags = ["--topic", "bench.>: history=1000", "--max-connections", "100"];
    let [from, to] = cluster::nodes(&broker.url(), &flags).await;
    let url = to.url("");
    let flags = format!(
        "recover --clients 40 --topics 10 --rate 400 --warmup 200ms --fail-on-loss --return-to {}",
        url.trim_start_matches("ws://")
    );
    let figures = tokio::task::spawn_blocking(move || figures(&from, &flags)).await.expect("the bench ends");
    assert_eq!(figures["recovery"]["recovered"], 40, "{figures}");
    assert_eq!(figures["messages"]["lost"], 0, "{figures}");
    // The subscribers that stay are on the other node.
    let metrics = http(to.api(), "GET /metrics", &[], "").await.body;
    assert!(metrics.contains("deeperhub_handshakes_total{outcome=\"accepted\"} 40\n"), "{metrics}");
}

#[test]
fn messages_that_a_topic_no_longer_keeps_are_not_lost() {
    let server = server_with_history("bench.>: history=10");
    let figures = figures(
        &server,
        "recover --clients 10 --topics 5 --missed 50 --rate 200 --warmup 200ms --fail-on-loss",
    );
    assert_eq!(figures["recovery"]["not_recovered"]["trimmed"], 10, "{figures}");
    assert!(figures["recovery"]["skipped"].as_u64() >= Some(10 * 50), "{figures}");
    assert_eq!(figures["messages"]["lost"], 0, "{figures}");
    assert!(figures["warnings"].to_string().contains("raise `history`"), "{figures}");
}

#[test]
fn topics_without_history_exit_with_1_and_a_reason() {
    let finished = bench(&server(), "recover --clients 10 --topics 5 --warmup 200ms");
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(1), ""), "{finished:?}");
    assert!(finished.stderr.contains("--topic 'bench.>: history=1000'"), "{finished:?}");
}

#[test]
fn text_is_printed_without_a_progress_bar_if_there_is_no_terminal() {
    let server = server();
    let finished = run(&["bench", "echo", "--url", &server.url("/"), "--messages", "200"], &[]);
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""));
    assert!(finished.stdout.starts_with("echo ws://127.0.0.1:"), "{finished:?}");
    assert!(finished.stdout.contains("0 lost, 0 duplicated, 0 out of order"), "{finished:?}");
}

#[test]
fn messages_over_the_rate_limit_cause_a_warning() {
    let server = Server::start(&["--rate-limit", "1", "--rate-burst", "20"]);
    let finished = bench(&server, "fanout --connections 2 --messages 22 --rate 1000 --fail-on-loss");
    assert_eq!(finished.code, Some(1), "messages were lost: {finished:?}");
    let figures: Value = serde_json::from_str(&finished.stdout).expect("one JSON object");
    assert!(figures["errors"]["error_rate_limited"].as_u64() > Some(0), "{figures}");
    assert!(figures["warnings"].to_string().contains("--rate-limit 0"), "{figures}");
}

#[test]
fn failed_connections_exit_with_1_and_a_reason() {
    let full = Server::start(&["--max-connections", "5"]);
    for (url, reason) in [("ws://127.0.0.1:1/".to_owned(), "connect_refused"), (full.url("/"), "http_503")] {
        let finished = run(&["bench", "echo", "--connections", "10", "--url", &url], &[]);
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(1), ""), "{finished:?}");
        assert!(finished.stderr.contains(&url) && finished.stderr.contains(reason), "{finished:?}");
    }
}

#[test]
fn server_pid_adds_the_usage_of_a_process() {
    // Any process will do; the report's unit tests check what is computed from its usage.
    let own = std::process::id();
    let figures = figures(&server(), &format!("idle --connections 5 --duration 300ms --server-pid {own}"));
    assert!(figures["server"]["resident_bytes"].as_u64() > Some(0), "{figures}");
    let finished = run(&["bench", "idle", "--server-pid", "4294967295"], &[]);
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""), "{finished:?}");
    assert!(finished.stderr.contains("--server-pid"), "{finished:?}");
}

#[test]
fn invalid_flags_exit_with_2() {
    for (flags, named) in [
        ("topics --topics 5 --subscribers 4", "--topics 5"),
        ("echo --rate 0", "'0'"),
        ("recover --topics 5 --publishers 6", "--publishers 6"),
        ("echo --ca /nowhere/ca.pem --url wss://127.0.0.1:1", "/nowhere/ca.pem"),
        ("idle --rate 5", "--rate"),
    ] {
        let finished = run(&["bench"].into_iter().chain(flags.split(' ')).collect::<Vec<_>>(), &[]);
        assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""), "{flags}: {finished:?}");
        assert!(finished.stderr.contains(named), "{flags}: {finished:?}");
    }
}

#[test]
fn a_program_can_run_a_bench() {
    let server = server();
    let report = example::measure(&server.url("/")).expect("the run succeeds");
    let messages = report.messages.as_ref().expect("a fan-out has messages");
    assert_eq!((messages.sent, messages.delivered, report.has_faults()), (200, 2000, false), "{report}");
    assert!(report.to_json().is_ok_and(|json| json.contains(r#""delivered":2000"#)));

    let invalid = Args::from_flags(["fanout", "--rate", "0"]);
    assert!(matches!(invalid, Err(BenchError::InvalidArgs(_))), "{invalid:?}");
    let args = Args::from_flags(["echo", "--url", "ws://127.0.0.1:1/"]).expect("the flags are valid");
    let refused = deeperhub_bench::run(args);
    assert!(matches!(refused, Err(BenchError::Connect { failed: 1.., .. })), "{refused:?}");
}
