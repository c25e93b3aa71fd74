//! Hubs of tests that act as the broker and as the workers.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use deeperhub_cluster::Broker;
use deeperhub_events::EventBus;
use deeperhub_metrics::{Cells, Registry};
use deeperhub_router::Router;
use tokio::sync::{mpsc, watch};

use super::{Hub, Watchers};
use crate::canary::{Canary, ClusterTargets};
use crate::config::{CanaryConfig, Config};
use crate::metrics::{HistoryMetrics, Metrics, MirrorMetrics, StoreMetrics};
use crate::phase::Phase;
use crate::recent_quantiles::RecentQuantiles;
use crate::streams::{Clock, ClusterStore, Streams};
use crate::top::TopTracker;

impl Hub {
    /// Creates a hub of a cluster without threads and probes. Its clock shows `now` until it is moved.
    pub(crate) fn simulated(
        mut config: Config,
        (node_id, broker): (&str, Broker),
        (started, now, started_unix_ms): (Instant, Instant, u64),
        router_config: deeperhub_router::Config,
    ) -> (Arc<Self>, Arc<ClusterStore>) {
        config.canary = CanaryConfig::disabled();
        let workers = config.listener.workers;
        let cells = Cells::new(workers);
        let clock = Arc::new(Clock::new(started));
        clock.simulate(now);
        clock.simulate_wall_clock(started_unix_ms);
        let metrics = (StoreMetrics::new(&cells), MirrorMetrics::new(&cells));
        let store = Arc::new(ClusterStore::new(broker.clone(), node_id, workers, &config.history, metrics));
        let history_metrics = HistoryMetrics::new(&cells);
        let streams =
            Streams::new(&config.history, clock, None, None, Some(Arc::clone(&store)), history_metrics);
        let shards = u16::try_from(workers).unwrap();
        let router = Router::keeping_with(shards, router_config, |_| streams.stripe());
        let hub = Self {
            limits: Arc::new(ArcSwap::from_pointee(config.limits())),
            burst_pool: None,
            router,
            streams,
            watchers: Watchers::default(),
            bus: EventBus::new(config.events.clone()),
            metrics: Metrics::new(&cells, 1 << 16),
            listener_metrics: deeperhub_listener::Metrics::new(&cells),
            top: TopTracker::new(started),
            publish_latency: RecentQuantiles::default(),
            registry: Registry::new(),
            phase: watch::Sender::new(Phase::Serving),
            canary: Arc::new(Canary::new(config.canary.clone(), workers, ClusterTargets::None)),
            broker: Some(broker),
            started,
            // Nobody answers requests to workers. Their number tells that of the workers.
            request_senders: (0..workers).map(|_| mpsc::channel(1).0).collect(),
            request_receivers: Vec::new(),
            drain_deadline: OnceLock::new(),
            node_id: node_id.to_owned(),
            config,
        };
        (Arc::new(hub), store)
    }
}
