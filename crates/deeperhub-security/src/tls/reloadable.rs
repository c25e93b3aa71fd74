//! The configuration that new connections get.

use rustls::ServerConfig;
use std::sync::{Arc, PoisonError, RwLock};

/// A configuration that can be swapped for a newer one while connections are made with it.
///
/// Those made before keep the one that they were made with. Read once for each connection, under a lock that is held
/// for the copy of a pointer.
#[derive(Debug)]
pub struct Reloadable(RwLock<Arc<ServerConfig>>);

impl Reloadable {
    /// Starts with `config`.
    #[must_use]
    pub const fn new(config: Arc<ServerConfig>) -> Self {
        Self(RwLock::new(config))
    }

    /// The configuration for a connection that is made now.
    #[must_use]
    pub fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on connections are made with `config`.
    pub fn replace(&self, config: Arc<ServerConfig>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = config;
    }
}
