//! A node from its start to its end.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use deeperhub_cluster::Start;
use deeperhub_events::EventBus;
use deeperhub_listener::{ListenOn, Listener};
use deeperhub_metrics::{CellError, Cells, RegisterError, Registry, Unit};
use deeperhub_protocol::ClientId;
use deeperhub_router::Router;
use tokio::sync::{mpsc, watch};

use crate::application::Application;
use crate::canary::{Canary, CanaryThread};
use crate::cluster::{ClusterThread, follow_interest};
use crate::config::Config;
use crate::handle::{NodeHandle, NodeIdTaken};
use crate::hub::{Hub, REQUESTS};
use crate::id::{is_node_id, random_node_id};
use crate::metrics::Metrics;
use crate::phase::Phase;
use crate::recent::Recent;
use crate::top::Wanted;
use crate::trace::TraceMetrics;

/// Divisor of the memory budget for the messages queued for workers, all of them together.
const INBOX_PART: u64 = 16;

/// A running node. When it is dropped, everything ends at once: call [`drain`](Self::drain) before.
#[derive(Debug)]
pub struct Node {
    handle: NodeHandle,
    canary: Option<CanaryThread>,
    cluster: Option<ClusterThread>,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The listener did not start.
    #[error(transparent)]
    Listener(#[from] deeperhub_listener::StartError),
    /// Tokens are required, and there is nothing to verify them with.
    #[error("tokens are required, and there is no authenticator")]
    NoAuthenticator,
    /// The name of the node is not 1 to 32 bytes of `A-Z a-z 0-9 _ -`.
    #[error("node id {0:?} is not 1 to 32 bytes of A-Z a-z 0-9 _ -")]
    NodeId(String),
    /// More workers than the hub can name (65,535).
    #[error("{0} workers are too many")]
    Workers(usize),
    /// The system gave no random bytes for the node's name.
    #[error("the system gives no random bytes")]
    Random(#[source] getrandom::Error),
    /// The thread that proves deliveries could not be started.
    #[error("the canary's thread cannot be started")]
    Canary(#[source] std::io::Error),
    /// Another node of the cluster has this one's name.
    #[error(transparent)]
    NodeIdTaken(#[from] NodeIdTaken),
    /// The thread that keeps the connection to the cluster could not be started.
    #[error("the cluster's thread cannot be started")]
    Cluster(#[source] std::io::Error),
    /// The metrics could not be set up.
    #[error("metrics cannot be set up")]
    Metrics(#[from] MetricsError),
}

/// Why metrics could not be set up; a fault of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// A name is taken or malformed.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// A worker's cell is taken.
    #[error(transparent)]
    Cell(#[from] CellError),
}

impl Node {
    /// Listens on `address` (port 0: any free one) and serves.
    ///
    /// Needs no runtime: connections run on threads of the node's own. The futures of [`NodeHandle`] run on the
    /// caller's. In a cluster it waits for its broker, at most three seconds, and serves without it if need be.
    ///
    /// # Errors
    ///
    /// [`StartError`]; then nothing runs.
    pub fn start(address: SocketAddr, config: Config) -> Result<Self, StartError> {
        Self::start_on(address.into(), config)
    }

    /// Starts like [`start`](Self::start), but may listen on several addresses.
    ///
    /// # Errors
    ///
    /// [`StartError`]; then nothing runs.
    pub fn start_on(on: ListenOn, mut config: Config) -> Result<Self, StartError> {
        if config.auth.required && config.auth.authenticator.is_none() {
            return Err(StartError::NoAuthenticator);
        }
        let node_id = match config.node_id.take() {
            Some(node_id) if is_node_id(&node_id) => node_id,
            Some(node_id) => return Err(StartError::NodeId(node_id)),
            None => random_node_id().map_err(StartError::Random)?,
        };
        config.listener.workers = config.listener.workers.max(1);
        let workers = config.listener.workers;
        let shards = u16::try_from(workers).map_err(|_| StartError::Workers(workers))?;

        let cells = Cells::new(workers);
        let metrics = Metrics::new(&cells, config.listener.max_message_bytes);
        let listener_metrics = deeperhub_listener::Metrics::new(&cells);
        let router = Router::new(shards, router_within(&config, shards));
        let bus = EventBus::new(config.events.clone());
        let canary = Arc::new(Canary::new(config.canary.clone(), workers, config.cluster.is_some()));
        let mut registry = registry(&metrics, &listener_metrics, &router, &bus, config.tracer.metrics())
            .map_err(MetricsError::Register)?;
        canary.register(&mut registry).map_err(MetricsError::Register)?;
        for gauge in &config.gauges {
            registry
                .register_gauge_fn(gauge.name, gauge.help, gauge.unit, gauge.read)
                .map_err(MetricsError::Register)?;
        }
        for number in &config.numbers {
            number.register(&mut registry).map_err(MetricsError::Register)?;
        }
        let (broker, driver) = match config.cluster.as_ref() {
            None => (None, None),
            Some(cluster) => {
                let version = env!("CARGO_PKG_VERSION");
                let mut settings = cluster.broker.clone();
                settings.max_payload_bytes = config.listener.max_message_bytes;
                let (broker, driver) =
                    deeperhub_cluster::connect(settings, &node_id, version).map_err(StartError::Random)?;
                broker.register(&mut registry).map_err(MetricsError::Register)?;
                follow_interest(&router, &broker);
                (Some(broker), Some(driver))
            }
        };

        let (requests, inboxes) = (0..workers)
            .map(|_| {
                let (sender, receiver) = mpsc::channel(REQUESTS);
                (sender, Mutex::new(Some(receiver)))
            })
            .unzip();
        #[cfg(feature = "tls")]
        let registry = register_certificate(registry, &config.listener).map_err(MetricsError::Register)?;
        let started = Instant::now();
        let listener_config = config.listener.clone();
        let hub = Arc::new(Hub {
            live: Arc::new(ArcSwap::from_pointee(config.clone())),
            bursts: config.burst_rate_per_ip.map(deeperhub_security::BurstPool::new),
            config,
            router,
            bus,
            metrics,
            listener_metrics: listener_metrics.clone(),
            top: Wanted::new(started),
            latency: Recent::default(),
            registry,
            phase: watch::Sender::new(Phase::Starting),
            canary,
            broker: broker.clone(),
            started,
            requests,
            inboxes,
            drained_by: OnceLock::new(),
            node_id,
        });
        let Some(unnamed) = ClientId::parse(&hub.node_id) else {
            return Err(StartError::NodeId(hub.node_id.clone()));
        };
        // Before clients can come: a node whose name is taken must not have let any in.
        let cluster = match broker.zip(driver) {
            None => None,
            Some((broker, driver)) => {
                let (thread, start) =
                    ClusterThread::start(&hub, broker, driver).map_err(StartError::Cluster)?;
                if start == Some(Start::Taken) {
                    return Err(NodeIdTaken(hub.node_id.clone()).into());
                }
                Some(thread)
            }
        };
        let application = Application { hub: Arc::clone(&hub), unnamed };
        let listener = Listener::builder(application)
            .config(listener_config)
            .metrics(&cells, listener_metrics)
            .bind(on)?;
        let canary = CanaryThread::start(&hub).map_err(StartError::Canary)?;
        if canary.is_some() {
            // Ready means proved: by now each worker has delivered something, or it is known which has not.
            hub.canary.wait_for_first();
        }
        hub.phase.send_replace(Phase::Serving);
        Ok(Self { handle: NodeHandle::new(hub, Arc::new(listener)), canary, cluster })
    }

    /// For backends and embedding programs.
    pub fn handle(&self) -> NodeHandle {
        self.handle.clone()
    }

    /// Returns the first of [`local_addrs`](Self::local_addrs).
    pub fn local_addr(&self) -> SocketAddr {
        self.handle.listener.local_addr()
    }

    /// Returns all addresses that clients can connect to, at least one.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        self.handle.listener.local_addrs()
    }

    /// See [`NodeHandle::drain`].
    pub async fn drain(&self, time: Duration) {
        self.handle.drain(time).await;
    }

    /// Ends the node's threads and the event bus; connections that are still there are dropped without a word.
    pub async fn stop(mut self) {
        drop(self.canary.take());
        self.handle.hub.phase.send_replace(Phase::Stopped);
        if let Some(cluster) = self.cluster.take() {
            // What the last clients published is on its way.
            let drained_by = self.handle.hub.drained_by.get().copied();
            cluster.stop(drained_by).await;
        }
        self.handle.hub.bus.close();
        self.handle.listener.stop().await;
    }
}

/// When the certificate ends that new connections get.
#[cfg(feature = "tls")]
fn register_certificate(
    mut registry: Registry,
    listener: &deeperhub_listener::Config,
) -> Result<Registry, RegisterError> {
    if let Some(tls) = listener.tls.clone() {
        registry.register_gauge_fn(
            "deeperhub_tls_certificate_not_after_seconds",
            "When the certificate ends, in Unix time",
            Unit::Seconds,
            move || i64::try_from(tls.ends()).unwrap_or(i64::MAX),
        )?;
    }
    Ok(registry)
}

fn registry(
    metrics: &Metrics,
    listener: &deeperhub_listener::Metrics,
    router: &Router<crate::hub::Delivery>,
    bus: &EventBus,
    traces: &TraceMetrics,
) -> Result<Registry, RegisterError> {
    let mut registry = Registry::new();
    metrics.register(&mut registry)?;
    listener.register(&mut registry)?;
    let topics = router.clone();
    registry.register_gauge_fn(
        "deeperhub_topics",
        "Topics and patterns with a subscriber",
        Unit::None,
        move || i64::try_from(topics.topics()).unwrap_or(i64::MAX),
    )?;
    let waiting = bus.clone();
    registry.register_gauge_fn(
        "deeperhub_events_queued_bytes",
        "Bytes of events that wait for observers",
        Unit::Bytes,
        move || i64::try_from(waiting.queued_bytes()).unwrap_or(i64::MAX),
    )?;
    let bus = bus.clone();
    registry.register_counter_fn(
        "deeperhub_events_lost_total",
        "Events that slow observers did not get",
        Unit::None,
        move || bus.lost(),
    )?;
    traces.register(&mut registry)?;
    registry.register_process();
    Ok(registry)
}
/// Returns the router's settings. A small memory budget lowers the inbox limit at which publishers
/// pause.
fn router_within(config: &Config, shards: u16) -> deeperhub_router::Config {
    let mut router = config.router;
    if let Some(memory) = &config.listener.memory {
        let part = memory.limit() / INBOX_PART / u64::from(shards.max(1));
        let part = usize::try_from(part).unwrap_or(usize::MAX).max(config.listener.max_message_bytes);
        router.inbox_soft_limit_bytes = router.inbox_soft_limit_bytes.min(part);
    }
    router
}

#[cfg(test)]
mod tests;
