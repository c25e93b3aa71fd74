//! Runs the example in a process of its own and checks what it prints.

#[path = "../../../tests/support/example.rs"]
mod example;

#[path = "../examples/catch_up.rs"]
mod catch_up;

use example::{check, run_main};

#[test]
#[ignore = "the process of the example; another test starts it"]
fn catch_up_process() {
    run_main(catch_up::main);
}

#[test]
fn catch_up_tells_messages_and_gaps() {
    let expected = [
        "lossless: Gap(Gap { epoch: Epoch(00000007), from: Some(1), to: 2, reason: Trimmed })",
        "lossless: Message { offset: 3, prev: None, message: \"milk?\" }",
        "lossless: Message { offset: 5, prev: None, message: \"here you are\" }",
        "latest: Gap(Gap { epoch: Epoch(00000007), from: Some(1), to: 4, reason: Conflated })",
        "latest: Message { offset: 5, prev: None, message: \"here you are\" }",
    ];
    check("catch_up_process", &expected);
}
