//! Runs each example in a process of its own and checks what it prints.

#[path = "../../../tests/support/example.rs"]
mod example;

#[path = "../examples/rooms.rs"]
mod rooms;

#[path = "../examples/threads.rs"]
mod threads;

use example::{check, run_main};

#[test]
#[ignore = "the process of the example; another test starts it"]
fn rooms_process() {
    run_main(rooms::main);
}

#[test]
fn rooms_delivers_to_every_player() {
    check("rooms_process", &[r#"[(1, "hello"), (2, "hello"), (3, "hello")]"#]);
}

#[test]
#[ignore = "the process of the example; another test starts it"]
fn threads_process() {
    run_main(threads::main);
}

#[test]
fn threads_delivers_every_message_on_every_worker() {
    check("threads_process", &["worker 0 delivered 1000000 messages", "worker 2 delivered 1000000 messages"]);
}
