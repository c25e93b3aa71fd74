use clap::CommandFactory;

use super::*;

fn parse(line: &str) -> Result<Args, BenchError> {
    Args::from_flags(line.split(' ').skip(1))
}

/// Checks that flags are rejected with an error that contains each of `expected`.
fn check_rejected(line: &str, expected: &[&str]) {
    let message = parse(line).unwrap_err().to_string();
    for text in expected {
        assert!(message.contains(text), "{text:?} is not in: {message}");
    }
}

#[test]
fn every_flag_has_a_heading() {
    let command = Args::command();
    for scenario in command.get_subcommands() {
        for flag in scenario.get_arguments() {
            assert!(flag.get_help_heading().is_some(), "{} of {}", flag.get_id(), scenario.get_name());
            assert!(flag.get_help().is_some(), "{} of {}", flag.get_id(), scenario.get_name());
        }
    }
}

#[test]
fn every_scenario_runs_without_flags() {
    for scenario in ["echo", "fanout", "topics", "idle", "churn", "slow", "recover"] {
        assert!(parse(&format!("bench {scenario}")).is_ok(), "{scenario}");
    }
}

#[test]
fn errors_name_the_flag_the_value_and_valid_values() {
    check_rejected(
        "bench echo --url http://localhost",
        &["--url", "http://localhost", "ws://127.0.0.1:8080/"],
    );
    check_rejected("bench echo --connections 0", &["--connections", "'0'", "from 1 to"]);
    check_rejected("bench echo --size 10", &["--size", "'10'", "from 40 to"]);
    check_rejected("bench fanout --rate 1.5", &["--rate", "1.5", "whole number"]);
    check_rejected("bench fanout --source localhost", &["--source", "localhost", "IP address"]);
    check_rejected("bench idle --duration 10", &["--duration", "'10'", "10s"]);
    check_rejected("bench idle --duration 0s", &["--duration", "'0s'", "longer than 0"]);
    check_rejected("bench slow --slow-readers 0", &["--slow-readers", "'0'", "from 1 to"]);
    check_rejected("bench recover --missed many", &["--missed", "many", "whole number"]);
}

#[test]
fn contradicting_and_unknown_flags_are_rejected() {
    check_rejected("bench echo --rate 5 --in-flight 5", &["--rate", "--in-flight"]);
    check_rejected("bench echo --messages 5 --duration 5s", &["--messages", "--duration"]);
    check_rejected("bench echo --messages 5 --warmup 5s", &["--messages", "--warmup"]);
    check_rejected("bench echo --ca a.pem --insecure", &["--ca", "--insecure"]);
    check_rejected("bench idle --rate 5", &["--rate"]);
    check_rejected("bench echo --topics 5", &["--topics"]);
    check_rejected("bench paint", &["paint"]);
}

#[test]
fn debug_output_does_not_contain_the_token() {
    let args = parse("bench echo --token abc.def-123").unwrap();
    assert!(!format!("{args:?}").contains("abc"));
}

#[test]
fn output_flags_are_those_of_the_scenario() {
    let args = parse("bench fanout --json --fail-on-loss").unwrap();
    assert!(args.prints_json() && args.fails_on_loss());
    let args = parse("bench idle").unwrap();
    assert!(!args.prints_json() && !args.fails_on_loss());
}
