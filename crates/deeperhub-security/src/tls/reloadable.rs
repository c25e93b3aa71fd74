//! The configuration that new connections get.

use super::TlsSetup;
use rustls::ServerConfig;
use std::sync::{Arc, PoisonError, RwLock};

/// A configuration that can be swapped for a newer one while connections are made with it.
///
/// Those made before keep the one that they were made with. Read once for each connection, under a lock that is held
/// for the copy of a pointer.
#[derive(Debug)]
pub struct SharedTls(RwLock<Served>);

#[derive(Debug)]
struct Served {
    config: Arc<ServerConfig>,
    expires_at: u64,
}

impl Served {
    fn new(server: TlsSetup) -> Self {
        Self { config: server.config, expires_at: server.expires_at }
    }
}

impl SharedTls {
    /// Starts with `server`.
    #[must_use]
    pub fn new(server: TlsSetup) -> Self {
        Self(RwLock::new(Served::new(server)))
    }

    /// The configuration for a connection that is made now.
    #[must_use]
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner).config)
    }

    /// When the certificate of [`current`](Self::current) ends, in seconds since 1970.
    #[must_use]
    pub fn expires_at(&self) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).expires_at
    }

    /// From now on connections are made with `server`.
    pub fn replace(&self, server: TlsSetup) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Served::new(server);
    }
}
