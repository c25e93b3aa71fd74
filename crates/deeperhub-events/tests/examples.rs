//! Runs each example in a process of its own and checks what it prints.

#[path = "../../../tests/support/example.rs"]
mod example;

#[path = "../examples/observe.rs"]
mod observe;

#[path = "../examples/watch.rs"]
mod watch;

use example::{check, run_main};

#[test]
#[ignore = "the process of the example; another test starts it"]
fn observe_process() {
    run_main(observe::main);
}

#[test]
fn observe_gets_an_error_event() {
    check("observe_process", &["websocket_error of node-1.7"]);
}

#[test]
#[ignore = "the process of the example; another test starts it"]
fn watch_process() {
    run_main(watch::main);
}

#[test]
fn watch_learns_how_many_events_it_lost() {
    check("watch_process", &["websocket_binary_received: {", "lost in total: 2"]);
}
