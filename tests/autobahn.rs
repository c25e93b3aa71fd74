//! The Autobahn|Testsuite against the listener crate's `examples/autobahn.rs`, an echo server.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::{TemporaryDir, python_bin, run_peer};

/// Frames, pings, reserved bits, opcodes, fragments, UTF-8, closing, limits, and fragments as they come.
const GROUPS: [&str; 9] = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*"];

/// Cases that are not judged: they only record what a server does.
const INFORMATIONAL: [&str; 3] = ["7.1.6", "7.13.1", "7.13.2"];

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
struct Echo {
    _example: Example,
    address: String,
}

impl Echo {
    fn start(arguments: &str) -> Self {
        let example = Example::start("autobahn::example_process", &[(ARGUMENTS, arguments)]);
        let address = example.wait_for("listening on ws://").trim().to_owned();
        Self { _example: example, address }
    }
}

/// Runs these cases and returns each one's verdict, that of the close after it included.
fn verdicts(echo: &Echo, cases: &[&str]) -> BTreeMap<String, String> {
    let dir = TemporaryDir::new();
    let reports = dir.path("reports").to_string_lossy().into_owned();
    let mut arguments = vec!["--parallelism", "4", "--outdir", &reports];
    arguments.extend(cases.iter().flat_map(|case| ["--include", case]));
    arguments.push(&echo.address);
    let finished = run_peer(python_bin().join("kosoku"), arguments);
    let index = std::fs::read_to_string(dir.path("reports/index.json"));
    let index = index.unwrap_or_else(|error| panic!("no report: {error}; it said: {finished:?}"));
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

/// Runs these cases, of which there are so many, and fails if one is not judged as it should be.
fn check(echo: &Echo, cases: &[&str], count: usize) {
    let verdicts = verdicts(echo, cases);
    assert_eq!(verdicts.len(), count, "the suite has another number of cases: {verdicts:?}");
    let expected = |case: &str| if INFORMATIONAL.contains(&case) { "INFORMATIONAL" } else { "OK" };
    let others: Vec<_> = verdicts.iter().filter(|(case, verdict)| *verdict != expected(case)).collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn every_case_of_the_basic_protocol_is_ok() {
    check(&Echo::start("--no-compression"), &GROUPS, 301);
}

/// Of each kind of message and of offer two lengths, of which one is in fragments, and longer ones than small windows.
#[test]
fn a_sample_of_the_cases_of_compression_is_ok() {
    let kinds = (1..=5).map(|kind| format!("12.{kind}")).chain((1..=7).map(|kind| format!("13.{kind}")));
    let cases: Vec<_> = kinds.flat_map(|kind| [format!("{kind}.1"), format!("{kind}.11")]).collect();
    let mut cases: Vec<_> = cases.iter().map(String::as_str).collect();
    cases.extend(["12.1.5", "13.3.6", "13.5.6"]);
    check(&Echo::start(""), &cases, 27);
}

/// All of them, 1000 messages each.
#[test]
#[ignore = "takes a quarter of an hour"]
fn every_case_of_compression_is_ok() {
    let echo = Echo::start("");
    for group in (1..=5).map(|kind| format!("12.{kind}.*")).chain((1..=7).map(|kind| format!("13.{kind}.*")))
    {
        check(&echo, &[&group], 18);
    }
}

/// Clients that refer to their earlier messages, and the basic protocol where compression is agreed on.
#[test]
fn clients_may_refer_to_earlier_messages_where_that_is_allowed() {
    let cases = ["12.1.3", "12.2.3", "12.3.11", "13.1.3", "13.4.3", "13.6.3", "1.*", "5.*"];
    check(&Echo::start("--client-context-takeover"), &cases, 6 + 16 + 20);
}
