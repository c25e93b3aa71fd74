//! Runs the example `broadcast` in a process of its own and checks what it prints.

#![cfg(all(feature = "ring", target_os = "linux"))]

#[path = "../examples/broadcast.rs"]
mod broadcast;

#[path = "../../../tests/support/capability.rs"]
mod capability;

#[path = "../../../tests/support/example.rs"]
mod example;

use capability::Capability;
use example::{Example, run_main};

#[test]
#[ignore = "the process of the example; another test starts it"]
fn broadcast_process() {
    run_main(broadcast::main);
}

#[test]
fn broadcast_measures_each_batch_size() {
    if Capability::IoUring.check(deeperhub_uring::Batcher::new()).is_none() {
        return;
    }
    let (status, lines) = Example::start("broadcast_process", &[("ROUNDS", "2")]).wait();
    assert!(status.success(), "{status}: {lines:#?}");
    for text in ["a send for each: ", "batches of   1: ", "batches of 256: "] {
        assert!(lines.iter().any(|line| line.contains(text)), "no {text:?} in {lines:#?}");
    }
}
