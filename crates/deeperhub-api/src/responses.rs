//! What calls answer, as the description shows it.

use deeperhub_node::{
    ClientInfo, ClusterAnswer, ClusterFault, ClusterStats, Delivered, NodeInfo, Page, Phase, Stats, Top,
    TopEntry, TopicInfo, Totals,
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::idempotency::PublishOutcome;

/// What a publish reached.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct Published {
    /// Subscriptions of this node that matched; a client that matches by two counts twice, and gets it once.
    subscribers: u64,
    /// `unavailable` when the other nodes of the cluster could not be reached, `too_large` when their broker takes no
    /// messages of this size; otherwise absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, example = "unavailable")]
    cluster: Option<&'static str>,
}

/// What a send reached.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct Sent {
    /// Connections of this node.
    clients: u64,
    /// `unavailable` when the other nodes of the cluster could not be reached, `too_large` when their broker takes no
    /// messages of this size; otherwise absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, example = "unavailable")]
    cluster: Option<&'static str>,
}

/// Done; there is nothing more to say.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct Done {}

/// Whether a client's subscription was ended.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct Unsubscribed {
    /// False: the client had none to this very topic or pattern.
    pub(crate) unsubscribed: bool,
}

/// A connection.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Client {
    /// Its name.
    #[schema(example = "node-1.0-1f-5c2a")]
    client_id: String,
    /// The user of its token; null without one.
    #[schema(required = true)]
    user: Option<String>,
    /// Topics and patterns that it is subscribed to.
    subscriptions: Vec<String>,
}

/// A part of the list of connections.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Clients {
    pub(crate) clients: Vec<Client>,
    /// For the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub(crate) next_cursor: Option<String>,
    /// Of the cluster: nodes that did not answer in time, whose part is missing. Otherwise absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<String>, required = false)]
    pub(crate) unanswered: Option<Vec<String>>,
}

/// A topic or a pattern.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Topic {
    #[schema(example = "sports.football")]
    topic: String,
    /// Its subscribers on this node, or on all nodes where the cluster was asked.
    subscribers: u64,
    /// Of the cluster: nodes that did not answer in time, whose part is missing. Otherwise absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<String>, required = false)]
    unanswered: Option<Vec<String>>,
}

/// A part of the list of topics.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Topics {
    pub(crate) topics: Vec<Topic>,
    /// For the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub(crate) next_cursor: Option<String>,
    /// Of the cluster: nodes that did not answer in time, whose part is missing. Otherwise absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<String>, required = false)]
    pub(crate) unanswered: Option<Vec<String>>,
}

/// The node's numbers. Totals count from its start.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct NodeStats {
    /// The name that its client ids begin with.
    node_id: String,
    version: &'static str,
    /// `starting`, `serving`, `draining` or `stopped`.
    #[schema(example = "serving")]
    phase: &'static str,
    uptime_ms: u64,
    /// Threads that carry connections.
    workers: usize,
    connections: ConnectionStats,
    /// Subscriptions of all connections.
    subscriptions: u64,
    /// Topics and patterns with a subscriber.
    topics: u64,
    messages: MessageStats,
    bytes: ByteStats,
    /// Timeouts from a publish to the write to a subscriber's socket, of the last 5 to 10 seconds where somebody asks each
    /// second; null when nothing was delivered.
    #[schema(required = true)]
    publish_latency: Option<LatencyStats>,
    /// Events that slow observers did not get.
    events_lost_total: u64,
    /// Workers that died and were replaced.
    worker_restarts_total: u64,
    canary: CanaryStats,
    /// Null where the system does not tell.
    #[schema(required = true)]
    process: Option<ProcessStats>,
}

/// Connections of clients.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ConnectionStats {
    /// Open ones: after their handshake, until their close begins.
    active: u64,
    /// The most that there may be.
    max: u64,
    accepted_total: u64,
    /// Handshakes that were refused, ran out of time or were given up.
    refused_total: u64,
    closed_total: u64,
    /// Closed because their queue passed the limit.
    slow_total: u64,
}

/// Messages of clients.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct MessageStats {
    received_total: u64,
    /// Replies and deliveries.
    sent_total: u64,
    /// Error answers, among those sent.
    errors_total: u64,
}

/// Bytes of clients' connections.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ByteStats {
    received_total: u64,
    sent_total: u64,
    /// Waiting to be sent.
    queued: u64,
}

/// Percentiles of times.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct LatencyStats {
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
}

/// The proof that deliveries come through.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct CanaryStats {
    /// How long the last probe took through router and worker, of the slowest worker; null before the first.
    #[schema(required = true)]
    round_trip_us: Option<u64>,
    /// How long the last probe through the cluster's broker, router and worker took; null before the first, and without a
    /// cluster.
    #[schema(required = true)]
    cluster_round_trip_us: Option<u64>,
    /// Workers whose probe is overdue.
    failing_workers: usize,
}

/// What the operating system knows of the process.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ProcessStats {
    cpu_seconds_total: f64,
    resident_bytes: u64,
    open_files: u64,
    threads: u64,
}

/// The busiest topics and clients of the last 5 to 10 seconds on this node.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Busiest {
    /// The time that the counts are of. 0 at first: counting begins with the first question, and ends half a minute
    /// after the last.
    window_ms: u64,
    /// The busiest first, by messages and deliveries together.
    topics: Vec<BusyTopic>,
    /// The busiest first, by messages.
    clients: Vec<BusyClient>,
}

/// A topic and what came to it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct BusyTopic {
    topic: String,
    /// Published to it.
    messages: u64,
    /// Subscriptions that they matched.
    deliveries: u64,
    /// Of the messages, each counted once.
    bytes: u64,
    /// By how much its rank (messages and deliveries together) may be too high.
    error: u64,
}

/// A client and what came from it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct BusyClient {
    client_id: String,
    /// Sent to the hub.
    messages: u64,
    bytes: u64,
    /// By how much its rank may be too high.
    error: u64,
}

impl From<Delivered> for Published {
    fn from(delivered: Delivered) -> Self {
        Self { subscribers: delivered.count, cluster: cluster_fault(delivered) }
    }
}

impl Published {
    /// Returns the same answer after a second attempt to reach the other nodes.
    pub(crate) fn with_other_nodes(self, fault: Option<ClusterFault>) -> Self {
        Self { cluster: fault.map(ClusterFault::as_str), ..self }
    }
}

impl PublishOutcome for Published {
    fn is_incomplete(&self) -> bool {
        // A retry does not help if the message is too large for the broker.
        self.cluster == Some(ClusterFault::Unavailable.as_str())
    }
}

impl From<Delivered> for Sent {
    fn from(delivered: Delivered) -> Self {
        Self { clients: delivered.count, cluster: cluster_fault(delivered) }
    }
}

fn cluster_fault(delivered: Delivered) -> Option<&'static str> {
    delivered.cluster.map(ClusterFault::as_str)
}

impl From<ClientInfo> for Client {
    fn from(client: ClientInfo) -> Self {
        Self {
            client_id: client.client_id.as_str().to_owned(),
            user: client.user,
            subscriptions: client.subscriptions,
        }
    }
}

impl From<TopicInfo> for Topic {
    fn from(topic: TopicInfo) -> Self {
        Self { topic: topic.topic, subscribers: topic.subscribers, unanswered: None }
    }
}

impl From<ClusterAnswer<TopicInfo>> for Topic {
    fn from(cluster: ClusterAnswer<TopicInfo>) -> Self {
        Self { unanswered: Some(cluster.unanswered), ..cluster.answer.into() }
    }
}

impl From<Page<ClientInfo>> for Clients {
    fn from(page: Page<ClientInfo>) -> Self {
        let clients = page.items.into_iter().map(Client::from).collect();
        Self { clients, next_cursor: page.next_cursor, unanswered: None }
    }
}

impl From<ClusterAnswer<Page<ClientInfo>>> for Clients {
    fn from(cluster: ClusterAnswer<Page<ClientInfo>>) -> Self {
        Self { unanswered: Some(cluster.unanswered), ..cluster.answer.into() }
    }
}

impl From<Page<TopicInfo>> for Topics {
    fn from(page: Page<TopicInfo>) -> Self {
        let topics = page.items.into_iter().map(Topic::from).collect();
        Self { topics, next_cursor: page.next_cursor, unanswered: None }
    }
}

impl From<ClusterAnswer<Page<TopicInfo>>> for Topics {
    fn from(cluster: ClusterAnswer<Page<TopicInfo>>) -> Self {
        Self { unanswered: Some(cluster.unanswered), ..cluster.answer.into() }
    }
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

/// The numbers of all nodes together. Totals count from each node's start.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ClusterNumbers {
    /// Nodes that answered.
    nodes: u64,
    connections: ConnectionStats,
    /// Subscriptions of all connections.
    subscriptions: u64,
    /// Topics and patterns with a subscriber, of each node: one that has some on two nodes counts twice.
    topics: u64,
    messages: MessageStats,
    bytes: ByteStats,
    /// Nodes that did not answer in time, whose part is missing.
    unanswered: Vec<String>,
}

impl From<ClusterAnswer<ClusterStats>> for ClusterNumbers {
    fn from(cluster: ClusterAnswer<ClusterStats>) -> Self {
        let ClusterStats { nodes, totals, .. } = &cluster.answer;
        Self {
            nodes: *nodes,
            connections: totals.into(),
            subscriptions: totals.subscriptions,
            topics: totals.topics,
            messages: totals.into(),
            bytes: totals.into(),
            unanswered: cluster.unanswered,
        }
    }
}

/// The nodes of a cluster.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Nodes {
    /// In the order of their names; this one is among them.
    nodes: Vec<Node>,
}

/// A node of a cluster.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Node {
    /// The name that its client ids begin with.
    node_id: String,
    version: String,
    /// Its open connections, of another node at its last heartbeat.
    connections: u64,
    /// Whether it is the node that answers.
    #[serde(rename = "self")]
    is_self: bool,
    /// Since when it runs (this node) or has been known here (another).
    known_ms: u64,
    /// Since its last heartbeat; they come each second, and after 5 seconds without one it is gone.
    silent_ms: u64,
}

impl From<Vec<NodeInfo>> for Nodes {
    fn from(nodes: Vec<NodeInfo>) -> Self {
        let node = |node: NodeInfo| Node {
            node_id: node.node_id,
            version: node.version,
            connections: node.connections,
            is_self: node.is_self,
            known_ms: saturating_u64(node.known.as_millis()),
            silent_ms: saturating_u64(node.silent.as_millis()),
        };
        Self { nodes: nodes.into_iter().map(node).collect() }
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

fn saturating_u64(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
