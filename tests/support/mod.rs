//! What the tests share: a server on ports of its own, a WebSocket client, an HTTP client, and files that go away.

mod client;
mod http;
mod server;
mod temporary;

use std::time::Duration;

pub use client::Client;
pub use http::{Response, http};
pub use server::{Finished, Server, run};
pub use temporary::TemporaryDir;

/// The workspace's folder.
pub const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// How long a test waits for anything before it fails: far more than it takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for what must come.
///
/// # Panics
///
/// When it does not come in time.
pub async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}
