//! Configuration of the API.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use deeperhub_protocol::message;
#[cfg(feature = "tls")]
use deeperhub_security::tls::SharedTls;
use deeperhub_security::{OriginPolicy, Secret};

use crate::metrics::ApiMetrics;

/// Access to the server API, and limits of it, that can change while it serves
/// ([`SharedApiConfig::set_limits`]): all settings that can, and no others.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ApiLimits {
    /// Key that every call except health checks needs as `Authorization: Bearer KEY`. With `None`,
    /// the default, no key is needed, which is safe on loopback only. The `Host` of a call must
    /// then be safe from DNS rebinding, see [`OriginPolicy::is_rebinding_safe`].
    pub api_key: Option<Arc<Secret>>,
    /// Web pages that may call, besides pages of the API's own host.
    pub allowed_origins: OriginPolicy,
    /// Maximum bytes of a request body, and of a message in a batch. Default 65536.
    pub max_body_bytes: usize,
    /// Maximum nesting of arrays and objects in messages to clients, including the message around a
    /// payload. At most 127, the default.
    pub max_json_depth: usize,
    /// Maximum number of calls in a batch. Default 256.
    pub max_batch_calls: usize,
    /// Maximum bytes of a batch. Default 1 MiB.
    pub max_batch_bytes: usize,
    /// Limits on remembered idempotency keys.
    pub idempotency: IdempotencyConfig,
}

impl Default for ApiLimits {
    fn default() -> Self {
        Self {
            api_key: None,
            allowed_origins: OriginPolicy::default(),
            max_body_bytes: 65_536,
            max_json_depth: message::MAX_NESTING,
            max_batch_calls: 256,
            max_batch_bytes: 1 << 20,
            idempotency: IdempotencyConfig::default(),
        }
    }
}

/// Configuration of the server API: access, limits and timeouts.
///
/// All fields are public, and each has a setter for chains, also those of
/// [`limits`](Self::limits):
///
/// ```
/// use deeperhub_api::ApiConfig;
/// use deeperhub_api::security::Secret;
///
/// let config = ApiConfig::default()
///     .with_api_key(Secret::new("a key with much entropy"))
///     .with_max_batch_calls(64);
/// assert_eq!(config.limits.max_batch_calls, 64);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ApiConfig {
    /// Access and limits that can change while the API serves. All other settings are read once, at
    /// the start.
    pub limits: ApiLimits,
    /// TLS for callers. With `None`, the default, callers use plain HTTP. Each handshake of
    /// [`serve`](crate::serve) must end within [`timeout`](Self::timeout). A new certificate in the
    /// [`SharedTls`] is used from the next connection on.
    #[cfg(feature = "tls")]
    pub tls: Option<Arc<SharedTls>>,
    /// Maximum number of connections, and of concurrent requests. Over the limit, the connection
    /// that has been idle the longest is evicted, or the new one is served a single request. Health
    /// checks and metrics are always answered. Default 512.
    pub max_connections: usize,
    /// Maximum time that a connection stays open without a request. The default is longer than
    /// clients keep idle connections. Default 2 minutes.
    pub idle_timeout: Duration,
    /// Maximum time for each step of a request: for its head from the first byte, for its body, and
    /// for the caller to read more of a response or of events. A body or a response gets another
    /// second for each 4 KiB. Default 30 s.
    pub timeout: Duration,
    /// Maximum number of streams of events and of messages together, at most half of
    /// [`max_connections`](Self::max_connections). Further streams get 503. Default 64.
    pub max_event_streams: usize,
    /// Maximum total bytes of request bodies and of responses over 8 KiB. A request that needs more
    /// gets 503. Default 64 MiB.
    pub max_held_bytes: usize,
    /// Metrics of the API.
    pub metrics: ApiMetrics,
    /// Serves the dashboard at `/`. Default `true`.
    pub dashboard: bool,
    /// WebSocket URL that the dashboard's "Try it" connects to. With `None`, it connects to port
    /// 8080 of its own host.
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

    /// Sets [`limits`](Self::limits).
    #[must_use]
    pub fn with_limits(mut self, limits: ApiLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets [`api_key`](ApiLimits::api_key).
    #[must_use]
    pub fn with_api_key(mut self, api_key: impl Into<Arc<Secret>>) -> Self {
        self.limits.api_key = Some(api_key.into());
        self
    }

    /// Sets [`tls`](Self::tls).
    ///
    /// ```no_run
    /// use std::path::Path;
    /// use std::sync::Arc;
    /// use std::time::SystemTime;
    ///
    /// use deeperhub_api::ApiConfig;
    /// use deeperhub_api::security::tls::{Config, SharedTls};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let load = || -> Result<_, Box<dyn std::error::Error>> {
    ///     let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
    ///     Ok(Config::load(Path::new("cert.pem"), Path::new("key.pem"), None)?.build(now)?)
    /// };
    /// let tls = Arc::new(SharedTls::new(load()?));
    /// let config = ApiConfig::default().with_tls(Arc::clone(&tls));
    /// // Later, after a renewal:
    /// tls.replace(load()?);
    /// # Ok(())
    /// # }
    /// ```
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn with_tls(mut self, tls: Arc<SharedTls>) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets [`allowed_origins`](ApiLimits::allowed_origins).
    #[must_use]
    pub fn with_allowed_origins(mut self, allowed_origins: OriginPolicy) -> Self {
        self.limits.allowed_origins = allowed_origins;
        self
    }

    /// Sets [`max_connections`](Self::max_connections).
    #[must_use]
    pub fn with_max_connections(mut self, max_connections: usize) -> Self {
        self.max_connections = max_connections;
        self
    }

    /// Sets [`idle_timeout`](Self::idle_timeout).
    #[must_use]
    pub fn with_idle_timeout(mut self, idle_timeout: Duration) -> Self {
        self.idle_timeout = idle_timeout;
        self
    }

    /// Sets [`timeout`](Self::timeout).
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets [`max_event_streams`](Self::max_event_streams).
    #[must_use]
    pub fn with_max_event_streams(mut self, max_event_streams: usize) -> Self {
        self.max_event_streams = max_event_streams;
        self
    }

    /// Sets [`max_held_bytes`](Self::max_held_bytes).
    #[must_use]
    pub fn with_max_held_bytes(mut self, max_held_bytes: usize) -> Self {
        self.max_held_bytes = max_held_bytes;
        self
    }

    /// Sets [`metrics`](Self::metrics).
    #[must_use]
    pub fn with_metrics(mut self, metrics: ApiMetrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// Sets [`max_body_bytes`](ApiLimits::max_body_bytes).
    #[must_use]
    pub fn with_max_body_bytes(mut self, max_body_bytes: usize) -> Self {
        self.limits.max_body_bytes = max_body_bytes;
        self
    }

    /// Sets [`max_json_depth`](ApiLimits::max_json_depth).
    #[must_use]
    pub fn with_max_json_depth(mut self, max_json_depth: usize) -> Self {
        self.limits.max_json_depth = max_json_depth;
        self
    }

    /// Sets [`max_batch_calls`](ApiLimits::max_batch_calls).
    #[must_use]
    pub fn with_max_batch_calls(mut self, max_batch_calls: usize) -> Self {
        self.limits.max_batch_calls = max_batch_calls;
        self
    }

    /// Sets [`max_batch_bytes`](ApiLimits::max_batch_bytes).
    #[must_use]
    pub fn with_max_batch_bytes(mut self, max_batch_bytes: usize) -> Self {
        self.limits.max_batch_bytes = max_batch_bytes;
        self
    }

    /// Sets [`idempotency`](ApiLimits::idempotency).
    #[must_use]
    pub fn with_idempotency(mut self, idempotency: IdempotencyConfig) -> Self {
        self.limits.idempotency = idempotency;
        self
    }

    /// Sets [`dashboard`](Self::dashboard).
    #[must_use]
    pub fn with_dashboard(mut self, dashboard: bool) -> Self {
        self.dashboard = dashboard;
        self
    }

    /// Sets [`websocket_url`](Self::websocket_url).
    #[must_use]
    pub fn with_websocket_url(mut self, websocket_url: impl Into<String>) -> Self {
        self.websocket_url = Some(websocket_url.into());
        self
    }
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            limits: ApiLimits::default(),
            #[cfg(feature = "tls")]
            tls: None,
            max_connections: 512,
            idle_timeout: Duration::from_secs(120),
            timeout: Duration::from_secs(30),
            max_event_streams: 64,
            max_held_bytes: 64 << 20,
            metrics: ApiMetrics::default(),
            dashboard: true,
            websocket_url: None,
        }
    }
}

/// Limits on remembered idempotency keys. Over a limit, the oldest key is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct IdempotencyConfig {
    /// Time that a key is remembered. With zero, keys have no effect. Default 5 minutes.
    pub ttl: Duration,
    /// Maximum number of keys. Default 10,000.
    pub max_keys: usize,
    /// Approximate maximum bytes of keys and their outcomes. Default 4 MiB.
    pub max_bytes: usize,
}

impl IdempotencyConfig {
    /// Sets [`ttl`](Self::ttl).
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets [`max_keys`](Self::max_keys).
    #[must_use]
    pub fn with_max_keys(mut self, max_keys: usize) -> Self {
        self.max_keys = max_keys;
        self
    }

    /// Sets [`max_bytes`](Self::max_bytes).
    #[must_use]
    pub fn with_max_bytes(mut self, max_bytes: usize) -> Self {
        self.max_bytes = max_bytes;
        self
    }
}

impl Default for IdempotencyConfig {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(300), max_keys: 10_000, max_bytes: 4 << 20 }
    }
}

/// Configuration whose limits can be replaced while the API serves. Clones share the limits.
#[derive(Debug, Clone)]
pub struct SharedApiConfig(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Settings that are fixed at the start. The current limits are in `limits`.
    fixed: ApiConfig,
    limits: ArcSwap<ApiLimits>,
}

impl SharedApiConfig {
    /// Replaces the limits, from the next call on.
    pub fn set_limits(&self, limits: ApiLimits) {
        self.0.limits.store(Arc::new(limits));
    }

    /// Returns the current limits.
    #[must_use]
    pub fn limits(&self) -> Arc<ApiLimits> {
        self.0.limits.load_full()
    }

    /// Returns the settings that are fixed at the start. Its limits are those of the start.
    pub(crate) fn fixed(&self) -> &ApiConfig {
        &self.0.fixed
    }
}

impl From<ApiConfig> for SharedApiConfig {
    fn from(config: ApiConfig) -> Self {
        let limits = ArcSwap::from_pointee(config.limits.clone());
        Self(Arc::new(Shared { fixed: config, limits }))
    }
}
