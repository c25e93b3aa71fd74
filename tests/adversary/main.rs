//! Attacks by clients and backends that stay within every limit, with healthy clients beside them: none of the healthy
//! is closed, each of their messages is answered in order and with its own bytes, 99 of 100 of them in bounded time,
//! memory stays within its budget and a tenth, and nothing is left afterwards.
//!
//! `cargo test -p deeperhub-ws --test adversary` is the short form, some seconds for each scene. The long form attacks
//! each limit in all pairs of settings and then at random:
//! `cargo test --release -p deeperhub-ws --test adversary -- --ignored --nocapture --test-threads 1`.
//! `DEEPERHUB_ADVERSARY_SEED=N` repeats a mixture.
//!
//! A program of its own, so that no other test takes the processor while the healthy wait.

// Helpers of tests are outside of `#[test]` functions, so clippy does not see that they are tests.
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
