//! Whole-server tests: the real binary on its own ports, with clients of another implementation.

// Test helpers are outside `#[test]` functions, so clippy does not treat them as test code.
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
mod capabilities;
mod churn;
mod cli;
mod client_compression;
mod client_typescript;
mod closing;
mod cluster;
mod collectors;
mod compression;
mod conformance;
mod dashboard;
mod dashboard_page;
mod deploy;
mod disk_faults;
mod disk_history;
mod disk_journals;
mod disk_reads;
mod examples;
mod file_layering;
mod handshake;
mod interop;
mod late_readers;
mod layering;
mod limits;
mod memory;
mod messages;
mod metrics;
mod operations;
mod patterns;
mod proxies;
mod recovery;
mod reload;
mod schema;
mod secrets;
mod support;
mod tail;
mod telemetry;
mod tls;
mod top;
mod topic_history;
mod topic_rules;
