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
    check(
        "catch_up_process",
        &[
            "lossless: up to 2 trimmed",
            "lossless: 3 milk?",
            "lossless: 5 here you are",
            "latest: up to 4 conflated",
            "latest: 5 here you are",
        ],
    );
}
