//! An authenticator that can be replaced at run time.

use super::Authenticator;
use arc_swap::ArcSwap;
use std::sync::Arc;

/// An authenticator that can be replaced by one with newer keys while threads verify tokens.
/// Readers never wait.
///
/// A replacement does not affect claims that were verified before.
#[derive(Debug)]
pub struct SharedAuthenticator(ArcSwap<Authenticator>);

impl SharedAuthenticator {
    /// Makes an authenticator replaceable.
    #[must_use]
    pub fn new(authenticator: Authenticator) -> Self {
        Self(ArcSwap::from_pointee(authenticator))
    }

    /// Returns the current authenticator.
    #[must_use]
    pub fn current(&self) -> Arc<Authenticator> {
        self.0.load_full()
    }

    /// Replaces the current authenticator.
    pub fn replace(&self, authenticator: Authenticator) {
        self.0.store(Arc::new(authenticator));
    }
}
