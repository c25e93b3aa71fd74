//! Attacks by clients and backends that stay within every limit, with healthy clients beside them.
//! No healthy client is closed. Each of its messages is answered in order with its own bytes, and
//! p99 latency is bounded. Memory stays within 110 % of its budget, and nothing is left afterwards.
//!
//! `cargo test -p deeperhub-ws --test adversary` runs the short form, a few seconds per scenario.
//! The long form attacks each limit in all pairs of settings and then at random:
//!
//! ```sh
//! cargo test --release -p deeperhub-ws --test adversary -- --ignored --nocapture --test-threads 1
//! ```
//!
//! `DEEPERHUB_ADVERSARY_SEED=N` repeats a mixture.
//!
//! The suite is a separate program, so that no other test competes for the CPU while latency is
//! measured.

// Test helpers are outside `#[test]` functions, so clippy does not treat them as test code.
#![allow(clippy::unwrap_used)]

mod attack;
mod backends;
mod healthy;
mod life;
mod limits;
mod mixture;
mod scenario;
#[allow(dead_code, unused_imports, reason = "shared with the other whole-server tests, which use all of it")]
#[path = "../support/mod.rs"]
mod support;

use support::wire;
