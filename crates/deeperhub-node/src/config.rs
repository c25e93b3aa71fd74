//! Configuration of a node.

mod canary;
mod cluster;
mod custom_metric;
mod history;

use std::num::NonZeroU32;
use std::time::Duration;

use deeperhub_protocol::message;
use deeperhub_security::{OriginPolicy, RateLimit};

use crate::auth::AuthConfig;
use crate::trace::Tracer;

pub use canary::CanaryConfig;
pub use cluster::ClusterConfig;
pub use custom_metric::{CustomGauge, CustomMetric, MetricKind};
#[cfg(feature = "disk")]
pub use history::DiskConfig;
pub use history::{HistoryLimits, HistoryStore};

/// Default rate of pings and pongs per connection and second. Limits the CPU time of a worker that
/// one client can use. A client that measures round-trip times needs far fewer.
const DEFAULT_CONTROL_RATE: NonZeroU32 = NonZeroU32::new(50).expect("the rate is not 0");

/// Default rate of tokens per connection and second. Limits the CPU time of a worker that one
/// client can use: verifying a token takes up to two milliseconds (8 keys of P-384), some hundred
/// times as long as another message.
const DEFAULT_TOKEN_RATE: NonZeroU32 = NonZeroU32::new(5).expect("the rate is not 0");

/// Default rate of bursts for new connections of one address. Limits what a client gains from
/// reconnecting for a new burst. If a thousand clients behind one address reconnect within a few
/// seconds and send ten messages each, they use half of the pool.
const DEFAULT_BURST_RATE: NonZeroU32 = NonZeroU32::new(20).expect("the rate is not 0");

/// Returns a limit for `authenticate` messages, whose burst is ten times the rate per second.
#[must_use]
pub fn token_rate_limit(per_second: NonZeroU32) -> RateLimit {
    RateLimit::new(per_second, per_second.saturating_mul(NonZeroU32::MIN.saturating_add(9)))
}

/// Returns a limit for bursts of new connections per address. Up to five times `per_second` bursts
/// are available at once.
#[must_use]
pub fn burst_rate_per_ip(per_second: NonZeroU32) -> RateLimit {
    RateLimit::new(per_second, per_second.saturating_mul(NonZeroU32::MIN.saturating_add(4)))
}

/// Returns a limit for pings and pongs, whose burst is twice the rate per second.
#[must_use]
pub fn control_rate_limit(per_second: NonZeroU32) -> RateLimit {
    RateLimit::new(per_second, per_second.saturating_mul(NonZeroU32::MIN.saturating_add(1)))
}

/// Limits of a node that can change while it runs
/// ([`NodeHandle::set_limits`](crate::NodeHandle::set_limits)): all settings that can, and no
/// others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Limits {
    /// Limits on connections, handshakes, messages, queues and rounds.
    pub listener: deeperhub_listener::Limits,
    /// Origins and limits of sessions.
    pub session: SessionLimits,
    /// Rules and limits of topics with history.
    pub history: HistoryLimits,
}

/// Origins and limits of sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionLimits {
    /// Origins whose web pages may connect. Default: the origin of the host that the request names.
    pub origins: OriginPolicy,
    /// Rate of messages per connection. `None` means no limit. Default 100 per second, burst 200.
    pub rate_limit: Option<RateLimit>,
    /// Rate of message bytes per connection. A message larger than the burst counts as the burst.
    /// With `None`, the default, only the number of messages and their size are limited.
    pub byte_rate_limit: Option<RateLimit>,
    /// Rate of pings and pongs per connection. A ping over the limit gets no pong. `None`
    /// means no limit. Default 50 per second, burst 100.
    pub control_rate_limit: Option<RateLimit>,
    /// Rate of `authenticate` messages per connection. `None` means no limit. Default 5 per
    /// second, burst 50.
    pub token_rate_limit: Option<RateLimit>,
    /// Levels of arrays and objects in a message, including the message itself: 2 to 127. Default
    /// 127.
    pub max_json_depth: usize,
    /// Subscriptions per connection. Default 128.
    pub max_subscriptions: usize,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self {
            origins: OriginPolicy::default(),
            rate_limit: Some(RateLimit::default()),
            byte_rate_limit: None,
            control_rate_limit: Some(control_rate_limit(DEFAULT_CONTROL_RATE)),
            token_rate_limit: Some(token_rate_limit(DEFAULT_TOKEN_RATE)),
            max_json_depth: message::MAX_NESTING,
            max_subscriptions: 128,
        }
    }
}

/// Configuration of a [`Node`](crate::Node).
///
/// All fields are public, and each has a setter for chains, also those of
/// [`session`](Self::session):
///
/// ```
/// use deeperhub_node::{Config, listener};
///
/// let config = Config::default()
///     .with_node_id("hub-1")
///     .with_max_subscriptions(32)
///     .with_listener(|listener| listener.limits.max_connections = 50_000);
/// assert_eq!(config.listener.limits.max_connections, 50_000);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// Sockets, worker threads, paths, sizes and times.
    pub listener: deeperhub_listener::Config,
    /// Origins and limits of sessions. Like the limits of [`listener`](Self::listener), and unlike
    /// all other settings, they can change while the node runs (see [`Limits`]).
    pub session: SessionLimits,
    /// Rules and limits of topics with history. They can change while the node runs, too. Default:
    /// no topic keeps messages.
    pub history: HistoryLimits,
    /// Place where the history is kept beside the memory. Default: nowhere. Fixed at the start.
    pub history_store: HistoryStore,
    /// Authentication by token. Default: no token is required, and none is valid.
    pub auth: AuthConfig,
    /// Rate at which new connections of one address (for IPv6: of one /64) get bursts, for all rate
    /// limits together. Over this limit, a new connection has its rates but no burst. With `None`,
    /// each new connection has its own bursts. Default 20 bursts per second, 100 at once. Fixed at
    /// the start.
    pub burst_rate_per_ip: Option<RateLimit>,
    /// Name of this node, with which its client IDs start: 1 to 32 bytes of `A-Z a-z 0-9 _ -`.
    /// With `None`, the default, the node gets a random name.
    pub node_id: Option<String>,
    /// Limits on observers of events and on their queues.
    pub events: deeperhub_events::Config,
    /// Probes that prove delivery. Readiness depends on them.
    pub canary: CanaryConfig,
    /// Cluster that the node joins. Default: none.
    pub cluster: Option<ClusterConfig>,
    /// Time that a call of a handle waits for its worker. Default 5 s.
    pub answer_timeout: Duration,
    /// Limits on the queues from publishers to workers.
    pub router: deeperhub_router::Config,
    /// Gauges of the embedding program that the node exports. Default: none.
    pub custom_gauges: Vec<CustomGauge>,
    /// Metrics of components beside the node, such as a server API, that the node exports. Default:
    /// none.
    pub custom_metrics: Vec<CustomMetric>,
    /// Tracer that decides which traces are recorded and where their spans go. The default records
    /// no trace, and propagates sampled traces of clients.
    pub tracer: Tracer,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listener: deeperhub_listener::Config::default(),
            session: SessionLimits::default(),
            history: HistoryLimits::default(),
            history_store: HistoryStore::default(),
            auth: AuthConfig::default(),
            burst_rate_per_ip: Some(burst_rate_per_ip(DEFAULT_BURST_RATE)),
            node_id: None,
            events: deeperhub_events::Config::default(),
            canary: CanaryConfig::default(),
            cluster: None,
            answer_timeout: Duration::from_secs(5),
            router: deeperhub_router::Config::default(),
            custom_gauges: Vec::new(),
            custom_metrics: Vec::new(),
            tracer: Tracer::default(),
        }
    }
}

impl Config {
    /// Returns the limits that can change while the node runs.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            listener: self.listener.limits.clone(),
            session: self.session.clone(),
            history: self.history.clone(),
        }
    }

    /// Changes [`listener`](Self::listener) in place.
    #[must_use]
    pub fn with_listener(mut self, change: impl FnOnce(&mut deeperhub_listener::Config)) -> Self {
        change(&mut self.listener);
        self
    }

    /// Sets [`session`](Self::session).
    #[must_use]
    pub fn with_session(mut self, session: SessionLimits) -> Self {
        self.session = session;
        self
    }

    /// Sets [`origins`](SessionLimits::origins).
    #[must_use]
    pub fn with_origins(mut self, origins: OriginPolicy) -> Self {
        self.session.origins = origins;
        self
    }

    /// Sets [`history`](Self::history).
    #[must_use]
    pub fn with_history(mut self, history: HistoryLimits) -> Self {
        self.history = history;
        self
    }

    /// Sets the [`rules`](HistoryLimits::rules) of topics with history.
    #[must_use]
    pub fn with_history_rules(mut self, rules: deeperhub_history::Rules) -> Self {
        self.history.rules = rules;
        self
    }

    /// Sets [`history_store`](Self::history_store).
    #[must_use]
    pub fn with_history_store(mut self, store: HistoryStore) -> Self {
        self.history_store = store;
        self
    }

    /// Sets [`auth`](Self::auth).
    #[must_use]
    pub fn with_auth(mut self, auth: AuthConfig) -> Self {
        self.auth = auth;
        self
    }

    /// Sets [`rate_limit`](SessionLimits::rate_limit).
    #[must_use]
    pub fn with_rate_limit(mut self, rate_limit: Option<RateLimit>) -> Self {
        self.session.rate_limit = rate_limit;
        self
    }

    /// Sets [`byte_rate_limit`](SessionLimits::byte_rate_limit).
    #[must_use]
    pub fn with_byte_rate_limit(mut self, byte_rate_limit: Option<RateLimit>) -> Self {
        self.session.byte_rate_limit = byte_rate_limit;
        self
    }

    /// Sets [`control_rate_limit`](SessionLimits::control_rate_limit).
    #[must_use]
    pub fn with_control_rate_limit(mut self, control_rate_limit: Option<RateLimit>) -> Self {
        self.session.control_rate_limit = control_rate_limit;
        self
    }

    /// Sets [`token_rate_limit`](SessionLimits::token_rate_limit).
    #[must_use]
    pub fn with_token_rate_limit(mut self, token_rate_limit: Option<RateLimit>) -> Self {
        self.session.token_rate_limit = token_rate_limit;
        self
    }

    /// Sets [`burst_rate_per_ip`](Self::burst_rate_per_ip).
    #[must_use]
    pub fn with_burst_rate_per_ip(mut self, burst_rate_per_ip: Option<RateLimit>) -> Self {
        self.burst_rate_per_ip = burst_rate_per_ip;
        self
    }

    /// Sets [`max_json_depth`](SessionLimits::max_json_depth).
    #[must_use]
    pub fn with_max_json_depth(mut self, max_json_depth: usize) -> Self {
        self.session.max_json_depth = max_json_depth;
        self
    }

    /// Sets [`max_subscriptions`](SessionLimits::max_subscriptions).
    #[must_use]
    pub fn with_max_subscriptions(mut self, max_subscriptions: usize) -> Self {
        self.session.max_subscriptions = max_subscriptions;
        self
    }

    /// Sets [`node_id`](Self::node_id).
    #[must_use]
    pub fn with_node_id(mut self, node_id: impl Into<String>) -> Self {
        self.node_id = Some(node_id.into());
        self
    }

    /// Sets [`events`](Self::events).
    #[must_use]
    pub fn with_events(mut self, events: deeperhub_events::Config) -> Self {
        self.events = events;
        self
    }

    /// Sets [`canary`](Self::canary).
    #[must_use]
    pub fn with_canary(mut self, canary: CanaryConfig) -> Self {
        self.canary = canary;
        self
    }

    /// Sets [`cluster`](Self::cluster).
    #[must_use]
    pub fn with_cluster(mut self, cluster: ClusterConfig) -> Self {
        self.cluster = Some(cluster);
        self
    }

    /// Sets [`answer_timeout`](Self::answer_timeout).
    #[must_use]
    pub fn with_answer_timeout(mut self, answer_timeout: Duration) -> Self {
        self.answer_timeout = answer_timeout;
        self
    }

    /// Sets [`router`](Self::router).
    #[must_use]
    pub fn with_router(mut self, router: deeperhub_router::Config) -> Self {
        self.router = router;
        self
    }

    /// Sets [`tracer`](Self::tracer).
    #[must_use]
    pub fn with_tracer(mut self, tracer: Tracer) -> Self {
        self.tracer = tracer;
        self
    }

    /// Adds a gauge to [`custom_gauges`](Self::custom_gauges).
    #[must_use]
    pub fn with_custom_gauge(mut self, gauge: CustomGauge) -> Self {
        self.custom_gauges.push(gauge);
        self
    }

    /// Adds a metric to [`custom_metrics`](Self::custom_metrics).
    #[must_use]
    pub fn with_custom_metric(mut self, metric: CustomMetric) -> Self {
        self.custom_metrics.push(metric);
        self
    }
}
