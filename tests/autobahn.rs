//! The Autobahn|Testsuite against the listener crate's `examples/autobahn.rs`: RFC 6455 on the wire.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::{TemporaryDir, python_bin, run_peer};

/// Frames, pings, reserved bits, opcodes, fragments, UTF-8, closing, limits, and fragmented
/// arrival.
const CASE_GROUPS: [&str; 9] = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"];

/// Informational cases: they only record the server's behavior.
const INFORMATIONAL_CASES: [&str; 3] = ["7.1.6", "7.13.1", "7.13.2"];

#[allow(dead_code, reason = "`main` takes its arguments from the command line")]
#[path = "../crates/deeperhub-listener/examples/autobahn.rs"]
mod echo_server;

#[path = "support/example.rs"]
mod example;

use example::{Example, run_main};

/// Environment variable with the arguments of the example.
const ARGUMENTS: &str = "AUTOBAHN_ARGUMENTS";

#[test]
#[ignore = "the process of the example; other tests start it"]
fn example_process() {
    let arguments = std::env::var(ARGUMENTS).unwrap_or_default();
    run_main(|| echo_server::serve(arguments.split_whitespace().map(str::to_owned)));
}

/// A running echo server, on a free port.
struct EchoServer {
    _example: Example,
    address: String,
}

impl EchoServer {
    fn start(arguments: &str) -> Self {
        let example = Example::start("autobahn::example_process", &[(ARGUMENTS, arguments)]);
        let address = example.wait_for("listening on ws://").trim().to_owned();
        Self { _example: example, address }
    }
}

/// Runs the cases and returns each one's verdict, including that of its closing handshake.
fn verdicts(echo: &EchoServer, cases: &[&str]) -> BTreeMap<String, String> {
    let dir = TemporaryDir::new();
    let reports = dir.path("reports").to_string_lossy().into_owned();
    let mut arguments = vec!["--parallelism", "4", "--outdir", &reports];
    arguments.extend(cases.iter().flat_map(|case| ["--include", case]));
    arguments.push(&echo.address);
    let finished = run_peer(python_bin().join("kosoku"), arguments);
    let index = std::fs::read_to_string(dir.path("reports/index.json"));
    let index = index.unwrap_or_else(|error| panic!("no report: {error}; output: {finished:?}"));
    let index: Value = serde_json::from_str(&index).expect("the report is JSON");
    let agents = index.as_object().expect("the report names servers");
    let mut verdicts = BTreeMap::new();
    for (case, result) in agents.values().filter_map(Value::as_object).flatten() {
        let text = |key: &str| result[key].as_str().unwrap_or("no verdict").to_owned();
        let (behavior, close) = (text("behavior"), text("behaviorClose"));
        verdicts.insert(case.clone(), if behavior == "OK" { close } else { behavior });
    }
    verdicts
}

/// Runs the cases, checks their number, and fails if a verdict is not as expected.
fn check(echo: &EchoServer, cases: &[&str], count: usize) {
    let verdicts = verdicts(echo, cases);
    assert_eq!(verdicts.len(), count, "unexpected number of cases: {verdicts:?}");
    let expected = |case: &str| if INFORMATIONAL_CASES.contains(&case) { "INFORMATIONAL" } else { "OK" };
    let others: Vec<_> = verdicts.iter().filter(|(case, verdict)| *verdict != expected(case)).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn every_basic_protocol_case_passes() {
    check(&EchoServer::start("--no-compression"), &CASE_GROUPS, 301);
}

/// Two lengths of each kind of message and offer, one of them fragmented, and messages longer than
/// small windows.
#[test]
fn a_sample_of_compression_cases_passes() {
    let kinds = (1..=5).map(|kind| format!("12.{kind}")).chain((1..=7).map(|kind| format!("13.{kind}")));
    let cases: Vec<_> = kinds.flat_map(|kind| [format!("{kind}.1"), format!("{kind}.11")]).collect();
    let mut cases: Vec<_> = cases.iter().map(String::as_str).collect();
    cases.extend(["12.1.5", "13.3.6", "13.5.6"]);
    check(&EchoServer::start(""), &cases, 27);
}

/// All compression cases, with 1000 messages each.
#[test]
#[ignore = "takes a quarter of an hour"]
fn every_compression_case_passes() {
    let echo = EchoServer::start("");
    for group in (1..=5).map(|kind| format!("12.{kind}.*")).chain((1..=7).map(|kind| format!("13.{kind}.*")))
    {
        check(&echo, &[&group], 18);
    }
}

/// Clients with context takeover, and the basic protocol with compression negotiated.
#[test]
fn cases_with_client_context_takeover_pass() {
    let cases = ["12.1.3", "12.2.3", "12.3.11", "13.1.3", "13.4.3", "13.6.3", "1.*", "5.*"];
    check(&EchoServer::start("--client-context-takeover"), &cases, 6 + 16 + 20);
}
