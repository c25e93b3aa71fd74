//! Tests of the program from outside: the real binary on ports of its own, with clients of another implementation.

// Helpers of tests are outside of `#[test]` functions, so clippy does not see that they are tests.
#![allow(clippy::unwrap_used)]

mod abuse;
mod api;
mod api_connections;
mod api_tls;
mod auth;
mod autobahn;
mod backend;
mod bench;
mod blocked;
mod book;
mod churn;
mod cli;
mod closing;
mod cluster;
mod collectors;
mod compression;
mod conformance;
mod dashboard;
mod deploy;
mod examples;
mod handshake;
mod interop;
mod late_readers;
mod layering;
mod limits;
mod memory;
mod messages;
mod patterns;
mod proxies;
mod reload;
mod schema;
mod secrets;
mod support;
mod telemetry;
mod tls;
mod top;
