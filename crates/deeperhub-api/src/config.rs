use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use deeperhub_protocol::message;
#[cfg(feature = "tls")]
use deeperhub_security::tls::SharedTls;
use deeperhub_security::{OriginPolicy, Secret};

use crate::metrics::ApiMetrics;

/// What the server API allows.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ApiConfig {
    /// The key that every call but health checks must bring as `Authorization: Bearer KEY`. `None`: none is needed,
    /// the default; fit only for a listener on loopback. The `Host` of a call must then be one that no stranger can make
    /// to mean this machine, see [`OriginPolicy::is_rebinding_safe`].
    pub api_key: Option<Arc<Secret>>,
    /// TLS for callers. `None`, the default: plain HTTP. [`serve`](crate::serve) performs the
    /// handshakes; each has [`timeout`](Self::timeout). A new certificate in the [`SharedTls`] is
    /// used from the next connection on; the field itself is read once, at the start.
    #[cfg(feature = "tls")]
    pub tls: Option<Arc<SharedTls>>,
    /// Web pages that may call, besides those of the API's own host.
    pub allowed_origins: OriginPolicy,
    /// Maximum number of connections, and of concurrent requests. Over it, the connection that has
    /// been idle the longest is evicted, or the new one is served a single request. Health checks
    /// and metrics are always answered. Read once, at the start. Default 512.
    pub max_connections: usize,
    /// Maximum time that a connection stays open without a request. Longer than clients keep idle
    /// connections. Read once, at the start. Default 2 minutes.
    pub idle_timeout: Duration,
    /// Maximum time for each step of a request: for its head from the first byte, for its body, and
    /// for the caller to read more of an answer or of events. A body or an answer gets another
    /// second for each 4 KiB. Default 30 s.
    pub timeout: Duration,
    /// Maximum number of event streams, at most half of [`max_connections`](Self::max_connections).
    /// Others get 503. Default 64.
    pub max_event_streams: usize,
    /// Maximum total bytes of request bodies and of answers over 8 KiB. A request that needs more
    /// gets 503. Default 64 MiB.
    pub max_held_bytes: usize,
    /// Metrics of the API. Read once, at the start.
    pub metrics: ApiMetrics,
    /// Bytes of a request's body, and of a message in a batch. Default 65536.
    pub max_body_bytes: usize,
    /// Levels of arrays and objects in what is sent to clients, those of the message around a payload among them: at
    /// most 127, the default.
    pub max_json_depth: usize,
    /// CallService of a batch. Default 256.
    pub max_batch_calls: usize,
    /// Bytes of a batch. Default 1 MiB.
    pub max_batch_bytes: usize,
    /// How publishes with an idempotency key are remembered.
    pub idempotency: IdempotencyConfig,
    /// Where the page to try the hub connects to. `None`: port 8080 of the page's own host. Read once, at the start.
    pub websocket_url: Option<String>,
}

impl ApiConfig {
    /// Returns `true` if callers use TLS.
    #[must_use]
    pub const fn uses_tls(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.tls.is_some();
        #[cfg(not(feature = "tls"))]
        false
    }
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            api_key: None,
            #[cfg(feature = "tls")]
            tls: None,
            allowed_origins: OriginPolicy::default(),
            max_connections: 512,
            idle_timeout: Duration::from_secs(120),
            timeout: Duration::from_secs(30),
            max_event_streams: 64,
            max_held_bytes: 64 << 20,
            metrics: ApiMetrics::default(),
            max_body_bytes: 65_536,
            max_json_depth: message::MAX_NESTING,
            max_batch_calls: 256,
            max_batch_bytes: 1 << 20,
            idempotency: IdempotencyConfig::default(),
            websocket_url: None,
        }
    }
}

/// How publishes with an idempotency key are remembered. When a limit is reached, the oldest is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct IdempotencyConfig {
    /// How long. Zero: not at all. Default 5 minutes.
    pub ttl: Duration,
    /// The most keys. Default 10,000.
    pub max_keys: usize,
    /// The most bytes that keys and what is remembered with them take, about. Default 4 MiB.
    pub max_bytes: usize,
}

impl Default for IdempotencyConfig {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(300), max_keys: 10_000, max_bytes: 4 << 20 }
    }
}

/// A configuration that can be replaced while the API serves. Clones are the same one.
#[derive(Debug, Clone)]
pub struct SharedApiConfig(Arc<ArcSwap<ApiConfig>>);

impl SharedApiConfig {
    /// Takes another configuration from the next call on.
    pub fn replace(&self, config: ApiConfig) {
        self.0.store(Arc::new(config));
    }

    /// The configuration now.
    #[must_use]
    pub fn current(&self) -> Arc<ApiConfig> {
        self.0.load_full()
    }
}

impl From<ApiConfig> for SharedApiConfig {
    fn from(config: ApiConfig) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(config)))
    }
}
