//! An authenticator that can be replaced at run time.

use super::Authenticator;
use arc_swap::ArcSwap;
use std::sync::Arc;

/// An authenticator that can be swapped for one with newer keys while threads verify tokens.
///
/// Claims that were verified before stay valid. Readers never wait.
#[derive(Debug)]
pub struct SharedAuthenticator(ArcSwap<Authenticator>);

impl SharedAuthenticator {
    /// Returns a cell that holds `authenticator`.
    #[must_use]
    pub fn new(authenticator: Authenticator) -> Self {
        Self(ArcSwap::from_pointee(authenticator))
    }

    /// Returns the current authenticator.
    #[must_use]
    pub fn current(&self) -> Arc<Authenticator> {
        self.0.load_full()
    }

    /// Verifies tokens with `authenticator` from now on.
    pub fn replace(&self, authenticator: Authenticator) {
        self.0.store(Arc::new(authenticator));
    }
}
