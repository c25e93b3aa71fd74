//! The settings of a hub.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;

use super::{IntoToken, Storage, Token};
use crate::core::Settings;

/// The settings of a [`Hub`](crate::Hub). The defaults fit most applications.
#[derive(Clone, Default)]
#[must_use]
pub struct Options {
    pub(super) token: Option<Token>,
    pub(super) storage: Option<Arc<dyn Storage>>,
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) headers: Vec<(String, String)>,
    pub(super) deadline: Option<Duration>,
    pub(super) settings: Settings,
}

impl Options {
    /// Sets the token: a text, or an async function that returns one. The function is called before
    /// each connection, and again before a token expires.
    pub fn token(mut self, token: impl IntoToken) -> Self {
        self.token = Some(token.into_token());
        self
    }

    /// Saves the positions of subscriptions in `storage`. A hub with the same address continues
    /// there.
    pub fn storage(mut self, storage: Arc<dyn Storage>) -> Self {
        self.storage = Some(storage);
        self
    }

    /// Sets the configuration of TLS, for example with roots of your own. By default, the roots of
    /// the system are trusted.
    pub fn tls(mut self, config: Arc<ClientConfig>) -> Self {
        self.tls = Some(config);
        self
    }

    /// Adds a header to the handshake.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Limits the time of [`Hub::connect`](crate::Hub::connect), which by default tries until the
    /// server is there.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets the shortest delay before a second attempt to connect (0.5 s).
    pub fn min_delay(mut self, delay: Duration) -> Self {
        self.settings.min_delay = delay;
        self
    }

    /// Sets the longest delay before an attempt to connect (20 s).
    pub fn max_delay(mut self, delay: Duration) -> Self {
        self.settings.max_delay = delay;
        self
    }

    /// Sets the time after which an attempt to connect has failed (10 s).
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.settings.connect_timeout = timeout;
        self
    }

    /// Sets the time after which a connection that does not answer a `ping` is dropped (10 s).
    pub fn pong_timeout(mut self, timeout: Duration) -> Self {
        self.settings.pong_timeout = timeout;
        self
    }

    /// Sets the time after which an echo or a read of history fails (30 s).
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.settings.request_timeout = timeout;
        self
    }

    /// Sets the time after which a publish fails that was sent and not answered (2 min).
    pub fn publish_timeout(mut self, timeout: Duration) -> Self {
        self.settings.publish_timeout = timeout;
        self
    }

    /// Sets the bytes of text that wait in a subscription until the application takes them (1 MiB).
    pub fn max_queue_bytes(mut self, bytes: usize) -> Self {
        self.settings.max_queue_bytes = bytes;
        self
    }

    /// Sets the bytes of text that wait to be sent (1 MiB).
    pub fn max_pending_bytes(mut self, bytes: usize) -> Self {
        self.settings.max_pending_bytes = bytes;
        self
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers may hold secrets, and TLS configurations are long.
        formatter
            .debug_struct("Options")
            .field("token", &self.token)
            .field("storage", &self.storage.is_some())
            .field("deadline", &self.deadline)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}
