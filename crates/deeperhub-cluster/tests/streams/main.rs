//! Streams on real servers: scenarios that run on each store, and what only one store has.

#![cfg(any(feature = "nats", feature = "redis"))]
// Helpers of tests are not in a test themselves.
#![allow(clippy::unwrap_used)]
#![cfg_attr(
    not(all(feature = "nats", feature = "redis")),
    allow(dead_code, reason = "the tests of one store do not use all helpers")
)]

#[cfg(feature = "nats")]
mod jetstream;
mod node;
mod proxy;
#[cfg(feature = "redis")]
mod redis;
mod scenarios;
mod store;

#[path = "../../../../tests/support/broker_process.rs"]
mod broker_process;
#[path = "../../../../tests/support/capability.rs"]
mod capability;
#[path = "../../../../tests/support/ports.rs"]
mod ports;
#[allow(dead_code, reason = "the whole-server tests use more of it")]
#[path = "../../../../tests/support/temporary.rs"]
mod temporary;

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
