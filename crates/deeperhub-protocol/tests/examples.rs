//! Runs each example in a process of its own and checks what it prints.

#[path = "../../../tests/support/example.rs"]
mod example;

#[path = "../examples/one_connection.rs"]
mod one_connection;

use example::{Example, run_main};

/// Runs an example to its end. Fails if it fails, or if it does not print all `expected` texts.
fn check(process_test: &str, expected: &[&str]) {
    let (status, lines) = Example::start(process_test, &[]).wait();
    assert!(status.success(), "{status}: {lines:#?}");
    for text in expected {
        assert!(lines.iter().any(|line| line.contains(text)), "no {text:?} in {lines:#?}");
    }
}

#[test]
#[ignore = "the process of the example; another test starts it"]
fn one_connection_process() {
    run_main(one_connection::main);
}

#[test]
fn one_connection_replies_to_two_messages() {
    check("one_connection_process", &[r#"-> {"type":"echo","id":1,"data":{"any":"JSON"}}"#, "unknown_type"]);
}
