//! Runs each example in a process of its own and checks what it prints.

#[path = "../../../tests/support/example.rs"]
mod example;

#[path = "../examples/one_connection.rs"]
mod one_connection;

use example::{check, run_main};

#[test]
#[ignore = "the process of the example; another test starts it"]
fn one_connection_process() {
    run_main(one_connection::main);
}

#[test]
fn one_connection_replies_to_two_messages() {
    check("one_connection_process", &[r#"-> {"type":"echo","id":1,"data":{"any":"JSON"}}"#, "unknown_type"]);
}
