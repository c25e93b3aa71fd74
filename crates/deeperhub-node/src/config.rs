use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::canary::CanaryConfig;
use crate::cluster::ClusterConfig;
use deeperhub_metrics::{RegisterError, Registry, Unit};
use deeperhub_protocol::message;
use deeperhub_security::{OriginPolicy, RateLimit};

use crate::AuthConfig;
use crate::trace::Tracer;

/// Pings and pongs a second of one connection: what a client needs to watch the round trip, many times over.
const DEFAULT_CONTROL_RATE: NonZeroU32 = NonZeroU32::new(50).expect("it is not 0");

/// Default rate of tokens per connection and second. Verifying one takes the worker up to two
/// milliseconds (8 keys of P-384), some hundred times as long as another message.
const DEFAULT_TOKEN_RATE: NonZeroU32 = NonZeroU32::new(5).expect("it is not 0");

/// Default rate of bursts for new connections of one address. A thousand clients behind one address
/// that reconnect within a few seconds and send ten messages each take half of what is there.
const DEFAULT_BURST_RATE: NonZeroU32 = NonZeroU32::new(20).expect("it is not 0");

/// Returns a limit for `authenticate` messages: `per_second`, with a burst of ten times that.
#[must_use]
pub fn token_rate_limit(per_second: NonZeroU32) -> RateLimit {
    RateLimit::new(per_second, per_second.saturating_mul(NonZeroU32::MIN.saturating_add(9)))
}

/// Returns a limit for bursts of new connections per address: `per_second`, five times as many at
/// once.
#[must_use]
pub fn burst_rate_per_ip(per_second: NonZeroU32) -> RateLimit {
    RateLimit::new(per_second, per_second.saturating_mul(NonZeroU32::MIN.saturating_add(4)))
}

/// A limit of pings and pongs: as many a second, twice as many at once.
#[must_use]
pub fn control_rate_limit(per_second: NonZeroU32) -> RateLimit {
    RateLimit::new(per_second, per_second.saturating_mul(NonZeroU32::MIN.saturating_add(1)))
}

/// What a node allows, with the defaults of the table in `docs/limits.md`.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// Sockets, threads, sizes and times, and the paths that clients connect to.
    pub listener: deeperhub_listener::Config,
    /// Which web pages may connect. Default: those of the host that the request was made to.
    pub origins: OriginPolicy,
    /// Tokens. Default: none are needed, and none are taken for good.
    pub auth: AuthConfig,
    /// Messages of one connection; `None`: no limit. Default 100 per second, burst 200.
    pub rate_limit: Option<RateLimit>,
    /// Bytes of one connection's messages; a message larger than the burst counts as the burst. `None`: no limit but
    /// that of messages and their size, the default.
    pub byte_rate_limit: Option<RateLimit>,
    /// Pings and pongs of one connection; `None`: no limit. One that is over it gets no pong. Default 50 per second,
    /// burst 100.
    pub control_rate_limit: Option<RateLimit>,
    /// Rate of `authenticate` messages per connection. `None`: no limit. Default 5 per second,
    /// burst 50.
    pub token_rate_limit: Option<RateLimit>,
    /// Rate of whole bursts for new connections of one address (IPv6: of one /64), for everything
    /// that has a rate. Beyond it, a new connection sends at its rates alone. `None`: each new
    /// connection has its own bursts. Default 20 per second, 100 at once. Does not change while the
    /// node runs.
    pub burst_rate_per_ip: Option<RateLimit>,
    /// Levels of arrays and objects in a message, its own object among them: 2 to 127, the default.
    pub max_json_depth: usize,
    /// Subscriptions of one connection. Default 128.
    pub max_subscriptions: usize,
    /// This node's name: 1 to 32 bytes of `A-Z a-z 0-9 _ -`; client ids start with it. `None`: random, the default.
    pub node_id: Option<String>,
    /// Observers of events and their queues.
    pub events: deeperhub_events::Config,
    /// Proof that deliveries come through, which readiness depends on.
    pub canary: CanaryConfig,
    /// The cluster that the node is part of. Default: none.
    pub cluster: Option<ClusterConfig>,
    /// How long a call of a handle waits for the worker that carries it out. Default 5 s.
    pub answer_timeout: Duration,
    /// Hand-over between workers.
    pub router: deeperhub_router::Config,
    /// Numbers of the embedding program that go with the node's metrics. Default: none.
    pub gauges: Vec<OwnGauge>,
    /// Metrics of components beside the node, such as a server API, shown with its own. Default:
    /// none.
    pub numbers: Vec<OwnNumber>,
    /// Which traces are recorded, and where their spans go. Default: none are recorded, and sampled ones that clients
    /// bring are carried on.
    pub tracer: Tracer,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listener: deeperhub_listener::Config::default(),
            origins: OriginPolicy::default(),
            auth: AuthConfig::default(),
            rate_limit: Some(RateLimit::default()),
            byte_rate_limit: None,
            control_rate_limit: Some(control_rate_limit(DEFAULT_CONTROL_RATE)),
            token_rate_limit: Some(token_rate_limit(DEFAULT_TOKEN_RATE)),
            burst_rate_per_ip: Some(burst_rate_per_ip(DEFAULT_BURST_RATE)),
            max_json_depth: message::MAX_NESTING,
            max_subscriptions: 128,
            node_id: None,
            events: deeperhub_events::Config::default(),
            canary: CanaryConfig::default(),
            cluster: None,
            answer_timeout: Duration::from_secs(5),
            router: deeperhub_router::Config::default(),
            gauges: Vec::new(),
            numbers: Vec::new(),
            tracer: Tracer::default(),
        }
    }
}

/// A number of the embedding program, such as what its allocator holds, to be shown with the node's metrics.
#[derive(Debug, Clone, Copy)]
pub struct OwnGauge {
    /// Its name, such as `deeperhub_memory_allocated_bytes`; the node does not start when it is taken or malformed.
    pub name: &'static str,
    /// What it tells, in a sentence without its full stop.
    pub help: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// Reads it; called whenever metrics are asked for.
    pub read: fn() -> i64,
}

/// Kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NumberKind {
    /// Value that only grows.
    Counter,
    /// Current value, which may fall.
    Gauge,
}

/// Metric of a component beside the node, shown with the node's metrics.
#[derive(Clone)]
pub struct OwnNumber {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) unit: Unit,
    pub(crate) kind: NumberKind,
    pub(crate) read: Arc<dyn Fn() -> u64 + Send + Sync>,
}

impl OwnNumber {
    /// Creates a metric; `read` is called whenever metrics are read. The name of a counter ends in
    /// `_total`. The node does not start if a name is taken or malformed.
    pub fn new(
        name: &'static str,
        help: &'static str,
        unit: Unit,
        kind: NumberKind,
        read: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Self {
        Self { name, help, unit, kind, read: Arc::new(read) }
    }

    /// Returns the metric's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns the current value.
    #[must_use]
    pub fn read(&self) -> u64 {
        (self.read)()
    }

    pub(crate) fn register(&self, registry: &mut Registry) -> Result<(), RegisterError> {
        let read = Arc::clone(&self.read);
        match self.kind {
            NumberKind::Counter => {
                registry.register_counter_fn(self.name, self.help, self.unit, move || read())
            }
            NumberKind::Gauge => {
                let read = move || i64::try_from(read()).unwrap_or(i64::MAX);
                registry.register_gauge_fn(self.name, self.help, self.unit, read)
            }
        }
    }
}

impl fmt::Debug for OwnNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnNumber")
            .field("name", &self.name)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}
