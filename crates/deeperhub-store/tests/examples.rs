//! Runs the example in a process of its own and checks what it prints.

#[path = "../../../tests/support/example.rs"]
mod example;

#[path = "../examples/keep_messages.rs"]
mod keep_messages;

use example::{check, run_main};

#[test]
#[ignore = "the process of the example; another test starts it"]
fn keep_messages_process() {
    run_main(keep_messages::main);
}

#[test]
fn keep_messages_prints_what_was_kept() {
    check("keep_messages_process", &["chat.tea is at 3: [\"yes\", \"milk?\"]"]);
}
