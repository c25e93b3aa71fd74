//! A TLS setup that can be replaced at run time.

use super::TlsSetup;
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use std::sync::Arc;

/// A TLS setup that can be replaced by a newer one while threads accept connections. Readers never
/// wait.
///
/// A replacement does not affect open connections.
#[derive(Debug)]
pub struct SharedTls(ArcSwap<TlsSetup>);

impl SharedTls {
    /// Makes a setup replaceable.
    #[must_use]
    pub fn new(setup: TlsSetup) -> Self {
        Self(ArcSwap::from_pointee(setup))
    }

    /// Returns the rustls configuration for a new connection.
    #[must_use]
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.load().config)
    }

    /// Returns the expiry of the current certificate, in seconds since 1970.
    #[must_use]
    pub fn expires_at(&self) -> u64 {
        self.0.load().expires_at
    }

    /// Replaces the current setup, for new connections.
    pub fn replace(&self, setup: TlsSetup) {
        self.0.store(Arc::new(setup));
    }
}
