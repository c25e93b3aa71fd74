//! The authenticator that tokens are verified with now.

use super::Authenticator;
use std::sync::{Arc, PoisonError, RwLock};

/// An authenticator that can be swapped for one with newer keys while tokens are verified.
///
/// What was verified before stays as it was. Read once for each token, under a lock that is held for the copy of a
/// pointer.
#[derive(Debug)]
pub struct SharedAuthenticator(RwLock<Arc<Authenticator>>);

impl SharedAuthenticator {
    /// Starts with `authenticator`.
    #[must_use]
    pub fn new(authenticator: Authenticator) -> Self {
        Self(RwLock::new(Arc::new(authenticator)))
    }

    /// The one that a token is verified with now.
    #[must_use]
    pub fn current(&self) -> Arc<Authenticator> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on tokens are verified with `authenticator`.
    pub fn replace(&self, authenticator: Authenticator) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(authenticator);
    }
}
