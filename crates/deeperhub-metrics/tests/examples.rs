//! Runs each example in a process of its own and checks what it prints.

#[path = "../../../tests/support/example.rs"]
mod example;

#[path = "../examples/text.rs"]
mod text;

use example::{check, run_main};

#[test]
#[ignore = "the process of the example; another test starts it"]
fn text_process() {
    run_main(text::main);
}

#[test]
fn text_adds_up_the_counts_of_its_workers() {
    check(
        "text_process",
        &["hub_connections_active 1000", "hub_messages_received_total{type=\"binary\"} 2000"],
    );
}
