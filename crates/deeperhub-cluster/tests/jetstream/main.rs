//! Streams on a real NATS server with JetStream.

// Helpers of tests are not in a test themselves.
#![allow(clippy::unwrap_used)]

mod access;
mod appends;
mod checks;
mod losses;
mod once;
mod probes;
mod reads;
mod replicas;
mod resends;
mod server;
mod sweeps;

#[path = "../store/node.rs"]
#[allow(dead_code, reason = "the tests of Redis use more of it")]
mod node;
#[path = "../store/proxy.rs"]
#[allow(dead_code, reason = "the tests of Redis use more of it")]
mod proxy;

#[path = "../../../../tests/support/capability.rs"]
mod capability;

use std::time::{Duration, Instant};

/// Longest wait for a single event; far more than a busy machine needs.
const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Waits until a condition holds.
///
/// # Panics
///
/// If it does not hold within [`WAIT_TIMEOUT`]; `what` names it.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT_TIMEOUT;
    while !holds() {
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits for a future on a runtime of its own.
fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let within = async { tokio::time::timeout(WAIT_TIMEOUT, future).await };
    runtime.block_on(within).expect("an answer in time")
}
