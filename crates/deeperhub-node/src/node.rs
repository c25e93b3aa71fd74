//! Start and stop of a node.

mod registry;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use deeperhub_cluster::{Broker, Driver, JoinOutcome};
use deeperhub_events::EventBus;
use deeperhub_history::{Acknowledge, Rule};
use deeperhub_listener::{ListenOn, Listener};
use deeperhub_metrics::{CellError, Cells, RegisterError};
use deeperhub_protocol::ClientId;
use deeperhub_router::Router;
use tokio::sync::{mpsc, watch};

use crate::application::Application;
use crate::canary::{Canary, CanaryThread};
use crate::cluster::{ClusterThread, forward_interest};
use crate::config::{Config, HistoryStore};
use crate::connection_id::{is_node_id, random_node_id};
use crate::handle::NodeHandle;
use crate::hub::{Hub, Watchers};
use crate::metrics::{HistoryMetrics, Metrics, MirrorMetrics, StoreMetrics};
use crate::mirrors::StoreReader;
use crate::phase::Phase;
use crate::recent_quantiles::RecentQuantiles;
use crate::stream_sweeper::StreamSweeper;
use crate::streams::{Clock, ClusterStore, Streams};
#[cfg(feature = "disk")]
use crate::streams::{Disk, Found};
use crate::top::TopTracker;
use crate::types::NodeIdTaken;
use crate::worker::request::REQUEST_QUEUE_CAPACITY;
#[cfg(feature = "tls")]
use registry::register_certificate;
use registry::registry;

/// Divisor of the memory budget. The quotient is the budget for messages that are queued for all
/// workers together.
const ROUTER_MEMORY_DIVISOR: u64 = 16;

/// Time that a stop waits for the disk.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Running node. Dropping it closes all connections at once. Call [`drain`](Self::drain) before, so
/// that clients are told to reconnect.
#[derive(Debug)]
pub struct Node {
    handle: NodeHandle,
    canary: Option<CanaryThread>,
    cluster: Option<ClusterThread>,
    store_reader: Option<StoreReader>,
    sweeper: StreamSweeper,
}

/// Error of a node that could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The listener could not be started.
    #[error(transparent)]
    Listener(#[from] deeperhub_listener::StartError),
    /// Tokens are required, but there is no authenticator.
    #[error("tokens are required, but there is no authenticator")]
    NoAuthenticator,
    /// The name of the node is not 1 to 32 bytes of `A-Z a-z 0-9 _ -`.
    #[error("node id {0:?} is not 1 to 32 bytes of A-Z a-z 0-9 _ -")]
    NodeId(String),
    /// There are more workers than the hub supports (65,535).
    #[error("{0} workers are over the limit of 65535")]
    Workers(usize),
    /// The system returned no random bytes for the node's name.
    #[error("the system returned no random bytes")]
    Random(#[source] getrandom::Error),
    /// The canary thread, which sends probes, could not be started.
    #[error("the canary thread cannot be started")]
    Canary(#[source] std::io::Error),
    /// Another node of the cluster uses this node's name.
    #[error(transparent)]
    NodeIdTaken(#[from] NodeIdTaken),
    /// The thread that connects to the cluster could not be started.
    #[error("the cluster thread cannot be started")]
    Cluster(#[source] std::io::Error),
    /// There is a history store on disk, and the node is in a cluster, which keeps the history.
    #[error("a history store on disk cannot be used in a cluster: remove one of them")]
    DiskInCluster,
    /// A rule has `ack=disk`, and there is no store on disk.
    #[error("a rule has ack=disk, and there is no history store on disk: set one or use ack=memory")]
    NoStore,
    /// The store of the history could not be opened.
    #[cfg(feature = "disk")]
    #[error(transparent)]
    Store(#[from] deeperhub_store::OpenError),
    /// The thread that expires kept messages could not be started.
    #[error("the history thread cannot be started")]
    History(#[source] std::io::Error),
    /// The metrics could not be registered.
    #[error("metrics cannot be registered")]
    Metrics(#[from] MetricsError),
}

/// Error of the metrics, caused by a custom metric's name or by a bug.
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
    /// Starts a node that listens on `address`. Port 0 selects a free port.
    ///
    /// The caller needs no async runtime, because connections run on threads of the node. The
    /// futures of [`NodeHandle`] run on the caller's Tokio runtime.
    ///
    /// The call waits until each worker has delivered a probe, for at most the probes'
    /// [timeout](crate::CanaryConfig::timeout). In a cluster it also waits for the broker, for at
    /// most three seconds. After that the node serves without the broker until it is connected.
    ///
    /// # Errors
    ///
    /// Returns [`StartError`] if the node could not be started. No thread of it is left.
    pub fn start(address: SocketAddr, config: Config) -> Result<Self, StartError> {
        Self::start_on(address.into(), config)
    }

    /// Works like [`start`](Self::start), but can listen on several addresses.
    ///
    /// # Errors
    ///
    /// Returns [`StartError`] if the node could not be started. No thread of it is left.
    pub fn start_on(on: ListenOn, mut config: Config) -> Result<Self, StartError> {
        if config.auth.required && config.auth.authenticator.is_none() {
            return Err(StartError::NoAuthenticator);
        }
        let has_store = config.history_store != HistoryStore::Memory;
        if config.cluster.is_some() && has_store {
            return Err(StartError::DiskInCluster);
        }
        let waits_for_disk = |rule: &Rule| rule.policy().acknowledge() == Acknowledge::Disk;
        if !has_store && config.history.rules.iter().any(|(_, rule)| waits_for_disk(rule)) {
            return Err(StartError::NoStore);
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
        let metrics = Metrics::new(&cells, config.listener.limits.max_message_bytes);
        let listener_metrics = deeperhub_listener::Metrics::new(&cells);
        let started = Instant::now();
        let clock = Arc::new(Clock::new(started));
        let compression = &config.listener.compression;
        let threshold = compression.enabled.then_some(compression.threshold_bytes);
        // Before anything else uses the folder, so that a second process ends here.
        #[cfg(feature = "disk")]
        let (disk, found) = open_store(&config, &cells)?.unzip();
        #[cfg(not(feature = "disk"))]
        let disk = None;
        let (broker, driver) = connect_to_cluster(&config, &node_id)?.unzip();
        let cluster_store = broker.clone().map(|broker| {
            let metrics = (StoreMetrics::new(&cells), MirrorMetrics::new(&cells));
            Arc::new(ClusterStore::new(broker, workers, &config.history, metrics))
        });
        let history_metrics = HistoryMetrics::new(&cells);
        let streams =
            Streams::new(&config.history, clock, threshold, disk, cluster_store.clone(), history_metrics);
        let router = Router::keeping_with(shards, router_config(&config, shards), |_| streams.stripe());
        // Before clients can connect.
        #[cfg(feature = "disk")]
        if let Some(found) = found {
            streams.restore(&router, found)?;
        }
        let bus = EventBus::new(config.events.clone());
        let canary = Arc::new(Canary::new(config.canary.clone(), workers, config.cluster.is_some()));
        let mut registry = registry(&metrics, &listener_metrics, &router, &bus, config.tracer.metrics())
            .map_err(MetricsError::Register)?;
        streams.register(&router, &mut registry).map_err(MetricsError::Register)?;
        canary.register(&mut registry).map_err(MetricsError::Register)?;
        for gauge in &config.custom_gauges {
            registry
                .register_gauge_fn(gauge.name, gauge.help, gauge.unit, gauge.read)
                .map_err(MetricsError::Register)?;
        }
        for metric in &config.custom_metrics {
            metric.register(&mut registry).map_err(MetricsError::Register)?;
        }
        if let Some(broker) = &broker {
            broker.register(&mut registry).map_err(MetricsError::Register)?;
            forward_interest(&router, broker, cluster_store.clone());
        }

        let (request_senders, request_receivers) = (0..workers)
            .map(|_| {
                let (sender, receiver) = mpsc::channel(REQUEST_QUEUE_CAPACITY);
                (sender, Mutex::new(Some(receiver)))
            })
            .unzip();
        #[cfg(feature = "tls")]
        let registry = register_certificate(registry, &config.listener).map_err(MetricsError::Register)?;
        let listener_config = config.listener.clone();
        let hub = Arc::new(Hub {
            limits: Arc::new(ArcSwap::from_pointee(config.limits())),
            burst_pool: config.burst_rate_per_ip.map(deeperhub_security::BurstPool::new),
            config,
            router,
            streams,
            watchers: Watchers::default(),
            bus,
            metrics,
            listener_metrics: listener_metrics.clone(),
            top: TopTracker::new(started),
            publish_latency: RecentQuantiles::default(),
            registry,
            phase: watch::Sender::new(Phase::Starting),
            canary,
            broker: broker.clone(),
            started,
            request_senders,
            request_receivers,
            drain_deadline: OnceLock::new(),
            node_id,
        });
        let Some(placeholder_id) = ClientId::parse(&hub.node_id) else {
            return Err(StartError::NodeId(hub.node_id.clone()));
        };
        let store_reader = match &cluster_store {
            Some(store) => Some(StoreReader::start(&hub, store).map_err(StartError::History)?),
            None => None,
        };
        // Join before clients can connect: a node whose name is taken must not accept clients.
        let cluster = match broker.zip(driver) {
            None => None,
            Some((broker, driver)) => {
                let (thread, outcome) =
                    ClusterThread::start(&hub, broker, driver).map_err(StartError::Cluster)?;
                if outcome == Some(JoinOutcome::NameTaken) {
                    return Err(NodeIdTaken(hub.node_id.clone()).into());
                }
                Some(thread)
            }
        };
        let application = Application { hub: Arc::clone(&hub), placeholder_id };
        let listener = Listener::builder(application)
            .config(listener_config)
            .metrics(&cells, listener_metrics)
            .bind(on)?;
        let canary =
            CanaryThread::start(Arc::clone(&hub.canary), Arc::clone(&hub)).map_err(StartError::Canary)?;
        if canary.is_some() {
            // The node then starts ready, unless a worker does not deliver.
            hub.canary.wait_for_first_round();
        }
        let sweeper = StreamSweeper::start(Arc::clone(&hub)).map_err(StartError::History)?;
        hub.phase.send_replace(Phase::Serving);
        Ok(Self { handle: NodeHandle::new(hub, Arc::new(listener)), canary, cluster, store_reader, sweeper })
    }

    /// Returns a handle for backends and embedding programs.
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

    /// Drains the node. See [`NodeHandle::drain`].
    pub async fn drain(&self, time: Duration) {
        self.handle.drain(time).await;
    }

    /// Stops the node's threads and closes the event bus. Remaining connections are dropped without
    /// a close frame. A store on disk is closed cleanly, so that topics keep their epochs.
    pub async fn stop(mut self) {
        drop(self.canary.take());
        drop(self.sweeper);
        self.handle.hub.phase.send_replace(Phase::Stopped);
        if let Some(cluster) = self.cluster.take() {
            // Flushes queued messages to the other nodes.
            let drain_deadline = self.handle.hub.drain_deadline.get().copied();
            cluster.stop(drain_deadline).await;
        }
        drop(self.store_reader.take());
        self.handle.hub.bus.close();
        self.handle.listener.stop().await;
        // Last, when nothing is published any more.
        let hub = self.handle.hub;
        if hub.streams.disk.is_some() {
            let close = move || hub.streams.disk.iter().for_each(|disk| disk.close());
            // A disk that hangs must not keep the process.
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, tokio::task::spawn_blocking(close)).await;
        }
    }
}

/// Creates the connection to the other nodes, if there is a cluster. It connects when the driver is
/// spawned.
fn connect_to_cluster(config: &Config, node_id: &str) -> Result<Option<(Broker, Driver)>, StartError> {
    let Some(cluster) = &config.cluster else { return Ok(None) };
    let mut settings = cluster.broker.clone();
    settings.max_payload_bytes = config.listener.limits.max_message_bytes;
    let version = env!("CARGO_PKG_VERSION");
    deeperhub_cluster::connect(settings, node_id, version).map(Some).map_err(StartError::Random)
}

/// Opens the store of the history, if there is one. Returns it with what it has kept.
#[cfg(feature = "disk")]
fn open_store(config: &Config, cells: &Cells) -> Result<Option<(Arc<Disk>, Found)>, StartError> {
    let HistoryStore::Disk(disk) = &config.history_store else { return Ok(None) };
    let sizes = (config.listener.workers, config.listener.limits.max_message_bytes);
    let (disk, found) = Disk::open(disk, sizes, StoreMetrics::new(cells))?;
    Ok(Some((Arc::new(disk), found)))
}

/// Returns the router's configuration. A small memory budget lowers the bytes in an inbox above
/// which publishers pause.
fn router_config(config: &Config, shards: u16) -> deeperhub_router::Config {
    let mut router = config.router;
    if let Some(memory) = &config.listener.memory {
        let inbox_budget = memory.limit() / ROUTER_MEMORY_DIVISOR / u64::from(shards.max(1));
        let inbox_budget = usize::try_from(inbox_budget).unwrap_or(usize::MAX);
        router.inbox_soft_limit_bytes =
            router.inbox_soft_limit_bytes.min(inbox_budget.max(config.listener.limits.max_message_bytes));
    }
    router
}

#[cfg(test)]
mod tests;
