//! Bodies of responses with statistics.

use deeperhub_node::{ClusterAnswer, NodeTotals, Phase, Stats, Top, TopEntry, Totals};
use serde::Serialize;

/// Statistics of a node. Totals count from its start.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct NodeStats {
    /// Name of the node, with which its client IDs start.
    node_id: String,
    version: &'static str,
    /// `starting`, `serving`, `draining` or `stopped`.
    #[cfg_attr(test, schema(example = "serving"))]
    phase: &'static str,
    uptime_ms: u64,
    /// Number of worker threads.
    workers: usize,
    connections: ConnectionStats,
    /// Number of subscriptions of all connections.
    subscriptions: u64,
    /// Number of topics and patterns with a subscriber.
    topics: u64,
    messages: MessageStats,
    bytes: ByteStats,
    /// Time from a publish to the write to a subscriber's socket. Covers the last 5 to 10 seconds
    /// if statistics are read every second; null if nothing was delivered.
    #[cfg_attr(test, schema(required = true))]
    publish_latency: Option<LatencyStats>,
    history: HistoryStats,
    /// Number of events that slow observers missed.
    events_lost_total: u64,
    /// Number of workers that died and were replaced.
    worker_restarts_total: u64,
    canary: CanaryStats,
    /// The cluster's store of history; null without a cluster, and if no rule keeps messages.
    #[cfg_attr(test, schema(required = true))]
    store: Option<StoreStats>,
    /// Memory of the process against `--max-memory`; null without a limit.
    #[cfg_attr(test, schema(required = true))]
    memory: Option<MemoryStats>,
    /// Null if the operating system does not report it.
    #[cfg_attr(test, schema(required = true))]
    process: Option<ProcessStats>,
}

/// Counts of client connections.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct ConnectionStats {
    /// Open connections: from the end of the handshake to the start of the close.
    active: u64,
    /// Limit on open connections.
    max: u64,
    accepted_total: u64,
    /// Handshakes that were refused, timed out or were aborted.
    refused_total: u64,
    closed_total: u64,
    /// Slow consumers: connections closed because their queue was over its limit.
    slow_total: u64,
}

/// Counts of messages from and to clients.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct MessageStats {
    received_total: u64,
    /// Replies and deliveries.
    sent_total: u64,
    /// Error replies; they also count as sent.
    errors_total: u64,
}

/// Bytes received from and sent to clients.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct ByteStats {
    received_total: u64,
    sent_total: u64,
    /// Bytes that wait to be sent.
    queued: u64,
}

/// Messages kept for topics with history.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct HistoryStats {
    /// Number of topics with a history.
    streams: u64,
    /// Number of kept messages.
    messages: u64,
    /// Bytes of the kept messages.
    bytes: u64,
    /// Number of subscriptions that are behind the newest message of their topic.
    behind: u64,
}

/// Percentiles of latency.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct LatencyStats {
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
}

/// State of the probes that prove delivery.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct CanaryStats {
    /// Round-trip time of the last probe through router and worker, of the slowest worker. Null
    /// before the first.
    #[cfg_attr(test, schema(required = true))]
    round_trip_us: Option<u64>,
    /// Round-trip time of the last probe through the cluster's broker, router and worker. Null
    /// before the first, and without a cluster.
    #[cfg_attr(test, schema(required = true))]
    cluster_round_trip_us: Option<u64>,
    /// Number of workers whose probe is overdue.
    failing_workers: usize,
}

/// The cluster's store of history, as this node sees it.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct StoreStats {
    /// Whether the node is connected to the store's broker and has joined.
    reachable: bool,
    /// Round-trip time of the last probe that the store appended, sent and gave back. Null before
    /// the first.
    #[cfg_attr(test, schema(required = true))]
    round_trip_us: Option<u64>,
    /// Publishes that wait until the store has appended them.
    waiting_appends: u64,
    /// Messages that the store has appended.
    appends_total: u64,
    /// Reads that the store has answered.
    reads_total: u64,
    /// Reads that the store could not answer.
    failed_reads_total: u64,
}

/// Memory of the process.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct MemoryStats {
    /// Bytes in use. From 80 % of the limit on, new connections are refused; from 90 % on, those
    /// that hold the most are closed.
    used: u64,
    limit: u64,
}

/// Resource usage of the process.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct ProcessStats {
    cpu_seconds_total: f64,
    resident_bytes: u64,
    open_files: u64,
    threads: u64,
}

/// The busiest topics and clients of the last 5 to 10 seconds on this node.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct Busiest {
    /// Time that the counts cover. 0 at first: counting starts with the first call, and stops half
    /// a minute after the last.
    window_ms: u64,
    /// Topics by messages plus deliveries, the busiest first. Topics without messages follow if
    /// subscriptions to them are behind.
    topics: Vec<BusyTopic>,
    /// Clients by messages, the busiest first.
    clients: Vec<BusyClient>,
}

/// A busy topic.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct BusyTopic {
    topic: String,
    /// Messages published to the topic.
    messages: u64,
    /// Subscriptions that the messages matched.
    deliveries: u64,
    /// Bytes of the messages, each counted once.
    bytes: u64,
    /// Subscriptions to exactly this topic that are behind its newest message.
    behind: u64,
    /// Maximum number of messages plus deliveries that the counts may lack.
    error: u64,
}

/// A busy client.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct BusyClient {
    client_id: String,
    /// Messages sent to the hub.
    messages: u64,
    bytes: u64,
    /// Maximum number of messages that the count may lack.
    error: u64,
}

impl From<&Totals> for ConnectionStats {
    fn from(totals: &Totals) -> Self {
        Self {
            active: totals.connections,
            max: totals.max_connections,
            accepted_total: totals.accepted_total,
            refused_total: totals.refused_total,
            closed_total: totals.closed_total,
            slow_total: totals.slow_consumers_total,
        }
    }
}

impl From<&Totals> for MessageStats {
    fn from(totals: &Totals) -> Self {
        Self {
            received_total: totals.received_total,
            sent_total: totals.sent_total,
            errors_total: totals.errors_total,
        }
    }
}

impl From<&Totals> for ByteStats {
    fn from(totals: &Totals) -> Self {
        Self {
            received_total: totals.received_bytes_total,
            sent_total: totals.sent_bytes_total,
            queued: totals.queued_bytes,
        }
    }
}

impl From<&Totals> for HistoryStats {
    fn from(totals: &Totals) -> Self {
        Self {
            streams: totals.history_streams,
            messages: totals.history_messages,
            bytes: totals.history_bytes,
            behind: totals.subscriptions_behind,
        }
    }
}

/// Statistics of all nodes together. Totals count from each node's start.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct ClusterNumbers {
    /// Number of nodes that answered.
    nodes: u64,
    connections: ConnectionStats,
    /// Number of subscriptions of all connections.
    subscriptions: u64,
    /// Sum of the nodes' topics and patterns with a subscriber. One with subscribers on two nodes
    /// counts twice.
    topics: u64,
    messages: MessageStats,
    bytes: ByteStats,
    history: HistoryStats,
    /// Statistics of each node that answered, in the order of their names.
    per_node: Vec<NodeNumbers>,
    /// Nodes that did not answer in time and are missing here.
    unanswered: Vec<String>,
}

/// Statistics of one node of a cluster. Totals count from its start.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct NodeNumbers {
    /// Name of the node.
    node_id: String,
    connections: ConnectionStats,
    /// Number of subscriptions of all connections.
    subscriptions: u64,
    /// Number of topics and patterns with a subscriber.
    topics: u64,
    messages: MessageStats,
    bytes: ByteStats,
    history: HistoryStats,
}

impl From<NodeTotals> for NodeNumbers {
    fn from(node: NodeTotals) -> Self {
        let totals = &node.totals;
        Self {
            connections: totals.into(),
            subscriptions: totals.subscriptions,
            topics: totals.topics,
            messages: totals.into(),
            bytes: totals.into(),
            history: totals.into(),
            node_id: node.node_id,
        }
    }
}

impl From<ClusterAnswer<Vec<NodeTotals>>> for ClusterNumbers {
    fn from(cluster: ClusterAnswer<Vec<NodeTotals>>) -> Self {
        let mut totals = Totals::default();
        cluster.answer.iter().for_each(|node| totals += &node.totals);
        let totals = &totals;
        Self {
            nodes: cluster.answer.len() as u64,
            connections: totals.into(),
            subscriptions: totals.subscriptions,
            topics: totals.topics,
            messages: totals.into(),
            bytes: totals.into(),
            history: totals.into(),
            per_node: cluster.answer.into_iter().map(NodeNumbers::from).collect(),
            unanswered: cluster.unanswered,
        }
    }
}

impl NodeStats {
    pub(crate) fn new(node_id: &str, stats: &Stats) -> Self {
        let totals = &stats.totals;
        Self {
            node_id: node_id.to_owned(),
            version: env!("CARGO_PKG_VERSION"),
            phase: match stats.phase {
                Phase::Starting => "starting",
                Phase::Serving => "serving",
                Phase::Draining => "draining",
                Phase::Stopped => "stopped",
            },
            uptime_ms: saturating_u64(stats.uptime.as_millis()),
            workers: stats.workers,
            connections: totals.into(),
            subscriptions: totals.subscriptions,
            topics: totals.topics,
            messages: totals.into(),
            bytes: totals.into(),
            history: totals.into(),
            publish_latency: stats.publish_latency.map(|times| LatencyStats {
                p50_us: saturating_u64(times.p50.as_micros()),
                p99_us: saturating_u64(times.p99.as_micros()),
                p999_us: saturating_u64(times.p999.as_micros()),
            }),
            events_lost_total: stats.events_lost_total,
            worker_restarts_total: stats.worker_restarts_total,
            canary: CanaryStats {
                round_trip_us: stats.canary_round_trip.map(|time| saturating_u64(time.as_micros())),
                cluster_round_trip_us: stats
                    .canary_cluster_round_trip
                    .map(|time| saturating_u64(time.as_micros())),
                failing_workers: stats.canary_failing_workers,
            },
            store: stats.store.map(|store| StoreStats {
                reachable: store.is_reachable,
                round_trip_us: store.round_trip.map(|time| saturating_u64(time.as_micros())),
                waiting_appends: store.waiting_appends,
                appends_total: store.appends_total,
                reads_total: store.reads_total,
                failed_reads_total: store.failed_reads_total,
            }),
            memory: stats.memory.map(|memory| MemoryStats { used: memory.used, limit: memory.limit }),
            process: deeperhub_metrics::ProcessUsage::read().map(|process| ProcessStats {
                cpu_seconds_total: process.cpu_seconds,
                resident_bytes: process.resident_bytes,
                open_files: process.open_files,
                threads: process.threads,
            }),
        }
    }
}

impl From<Top> for Busiest {
    fn from(top: Top) -> Self {
        let topic = |busy: TopEntry| BusyTopic {
            topic: busy.name,
            messages: busy.messages,
            deliveries: busy.deliveries,
            bytes: busy.bytes,
            behind: busy.behind,
            error: busy.error,
        };
        let client = |busy: TopEntry| BusyClient {
            client_id: busy.name,
            messages: busy.messages,
            bytes: busy.bytes,
            error: busy.error,
        };
        Self {
            window_ms: saturating_u64(top.window.as_millis()),
            topics: top.topics.into_iter().map(topic).collect(),
            clients: top.clients.into_iter().map(client).collect(),
        }
    }
}

pub(super) fn saturating_u64(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
