//! Shared helpers: a server on its own ports, a WebSocket client, an HTTP client, brokers, and
//! temporary files.

mod balancer;
mod broker;
mod broker_process;
mod capability;
mod client;
mod collector;
mod http;
mod lossy_proxy;
mod network;
mod peers;
mod ports;
mod prometheus;
mod proxy;
mod server;
mod temporary;
mod tls;
mod tokens;
pub(crate) mod wire;

use std::time::Duration;

pub(crate) use balancer::Balancer;
pub(crate) use broker::{Broker, Engine, has_brokers};
pub(crate) use capability::{Capability, REQUIRED, SKIPPED, old_binary};
pub(crate) use client::Client;
pub(crate) use collector::Collector;
pub(crate) use http::{Response, http, metric};
pub(crate) use lossy_proxy::LossyProxy;
pub(crate) use network::Network;
pub(crate) use peers::{
    Peer, has_browser, install, install_named, python_bin, run_peer, script, try_install,
};
pub(crate) use ports::free_port;
pub(crate) use prometheus::Prometheus;
pub(crate) use proxy::Proxy;
pub(crate) use server::{Finished, Server, Starting, run};
pub(crate) use temporary::TemporaryDir;
pub(crate) use tls::{Authority, Identity, TlsClient, TlsFront, connect_tls, over_tls, text};
pub(crate) use tokens::{Issuer, from_now, jwks_file, signed, with_token};

/// The workspace's root directory.
pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// Longest wait for a single event; far more than a busy machine needs.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(30);

/// Waits for a future and returns its output.
///
/// # Panics
///
/// If it takes longer than [`WAIT_TIMEOUT`]; `what` names the event.
pub(crate) async fn wait_for<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(WAIT_TIMEOUT, future)
        .await
        .unwrap_or_else(|_| panic!("timed out waiting for {what}"))
}
