//! Bodies of responses; their doc comments are part of the OpenAPI document.

mod history;

use deeperhub_node::{
    Action, ClientInfo, ClusterAnswer, ClusterFault, ClusterStats, Delivered, NodeInfo, Operation, Page,
    Phase, Stats, Target, Top, TopEntry, TopicHistory, TopicInfo, Totals,
};
use serde::Serialize;
use utoipa::ToSchema;

use self::history::EpochText;
pub(crate) use self::history::{HistoryPage, HistoryState};
use crate::idempotency::PublishOutcome;

/// Outcome of a publish.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct Published {
    /// Matching subscriptions on this node. A client with two of them counts twice and gets the
    /// message once.
    subscribers: u64,
    /// `unavailable` if the other nodes of the cluster could not be reached, `too_large` if the
    /// message is over the broker's size limit; otherwise absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, example = "unavailable")]
    cluster: Option<&'static str>,
    /// Epoch of the topic's stream. Epoch, offset and time are absent if the topic has no history.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, example = "k3J9aQx2")]
    epoch: Option<EpochText>,
    /// Offset of the message in the stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = u64, required = false)]
    offset: Option<u64>,
    /// Time of the publish in milliseconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = u64, required = false)]
    time: Option<u64>,
}

/// Outcome of a call that may concern several connections.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct Sent {
    /// Number of this node's connections on which the call took effect.
    clients: u64,
    /// `unavailable` if the other nodes of the cluster could not be reached, `too_large` if the
    /// message is over the broker's size limit; otherwise absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, example = "unavailable")]
    cluster: Option<&'static str>,
}

/// Outcome of an operation on clients. Its body depends on whom the operation concerns.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(untagged)]
pub(crate) enum Executed {
    Done(Done),
    Unsubscribed(Unsubscribed),
    Sent(Sent),
}

/// Empty body of a call that took effect.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct Done {}

/// Outcome of ending a client's subscription.
#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
pub(crate) struct Unsubscribed {
    /// `false` if the client had no subscription to exactly this topic or pattern.
    pub(crate) unsubscribed: bool,
}

/// A client's connection.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Client {
    /// ID of the client.
    #[schema(example = "node-1.0-1f-5c2a")]
    client_id: String,
    /// User of the client's token or certificate; null without one.
    #[schema(required = true)]
    user: Option<String>,
    /// Topics and patterns that the client is subscribed to.
    subscriptions: Vec<String>,
}

/// A page of the list of clients.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Clients {
    pub(crate) clients: Vec<Client>,
    /// Cursor of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub(crate) next_cursor: Option<String>,
    /// Nodes of the cluster that did not answer in time and are missing here. Absent with scope
    /// `node`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<String>, required = false)]
    pub(crate) unanswered: Option<Vec<String>>,
}

/// A topic or pattern.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Topic {
    #[schema(example = "sports.football")]
    topic: String,
    /// Number of subscribers on this node, or on all nodes with scope `cluster`.
    subscribers: u64,
    /// Kept messages of the topic. Absent in lists, for patterns, and if the topic has no history
    /// or was never used.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = HistoryState, required = false)]
    history: Option<HistoryState>,
    /// Nodes of the cluster that did not answer in time and are missing here. Absent with scope
    /// `node`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<String>, required = false)]
    unanswered: Option<Vec<String>>,
}

/// A page of the list of topics.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Topics {
    pub(crate) topics: Vec<Topic>,
    /// Cursor of the next page; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false)]
    pub(crate) next_cursor: Option<String>,
    /// Nodes of the cluster that did not answer in time and are missing here. Absent with scope
    /// `node`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<String>, required = false)]
    pub(crate) unanswered: Option<Vec<String>>,
}

/// Statistics of a node. Totals count from its start.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct NodeStats {
    /// Name of the node, with which its client IDs start.
    node_id: String,
    version: &'static str,
    /// `starting`, `serving`, `draining` or `stopped`.
    #[schema(example = "serving")]
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
    #[schema(required = true)]
    publish_latency: Option<LatencyStats>,
    history: HistoryStats,
    /// Number of events that slow observers missed.
    events_lost_total: u64,
    /// Number of workers that died and were replaced.
    worker_restarts_total: u64,
    canary: CanaryStats,
    /// Null if the operating system does not report it.
    #[schema(required = true)]
    process: Option<ProcessStats>,
}

/// Counts of client connections.
#[derive(Debug, Clone, Serialize, ToSchema)]
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
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct MessageStats {
    received_total: u64,
    /// Replies and deliveries.
    sent_total: u64,
    /// Error replies; they also count as sent.
    errors_total: u64,
}

/// Bytes received from and sent to clients.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ByteStats {
    received_total: u64,
    sent_total: u64,
    /// Bytes that wait to be sent.
    queued: u64,
}

/// Messages kept for topics with history.
#[derive(Debug, Clone, Serialize, ToSchema)]
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
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct LatencyStats {
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
}

/// State of the probes that prove delivery.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct CanaryStats {
    /// Round-trip time of the last probe through router and worker, of the slowest worker. Null
    /// before the first.
    #[schema(required = true)]
    round_trip_us: Option<u64>,
    /// Round-trip time of the last probe through the cluster's broker, router and worker. Null
    /// before the first, and without a cluster.
    #[schema(required = true)]
    cluster_round_trip_us: Option<u64>,
    /// Number of workers whose probe is overdue.
    failing_workers: usize,
}

/// Resource usage of the process.
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
#[derive(Debug, Clone, Serialize, ToSchema)]
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
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct BusyClient {
    client_id: String,
    /// Messages sent to the hub.
    messages: u64,
    bytes: u64,
    /// Maximum number of messages that the count may lack.
    error: u64,
}

impl From<Delivered> for Published {
    fn from(delivered: Delivered) -> Self {
        let position = delivered.position;
        Self {
            subscribers: delivered.count,
            cluster: cluster_fault(delivered),
            epoch: position.map(|position| EpochText(position.epoch)),
            offset: position.map(|position| position.offset),
            time: position.map(|position| position.time),
        }
    }
}

impl Published {
    /// Returns the same outcome after a second attempt to reach the other nodes.
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

impl Executed {
    pub(crate) fn new(operation: &Operation<'_>, delivered: Delivered) -> Self {
        match (&operation.target, &operation.action) {
            (Target::Client(_), Action::Send(_) | Action::Disconnect) => Self::Done(Done {}),
            (Target::Client(_), Action::Unsubscribe(_)) => {
                Self::Unsubscribed(Unsubscribed { unsubscribed: delivered.count > 0 })
            }
            (Target::User(_) | Target::All, _) => Self::Sent(delivered.into()),
        }
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
        Self { topic: topic.topic, subscribers: topic.subscribers, history: None, unanswered: None }
    }
}

impl Topic {
    /// Adds the state of the topic's history.
    pub(crate) fn with_history(self, history: Option<TopicHistory>) -> Self {
        Self { history: history.map(HistoryState::from), ..self }
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
#[derive(Debug, Clone, Serialize, ToSchema)]
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
    /// Nodes that did not answer in time and are missing here.
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
            history: totals.into(),
            unanswered: cluster.unanswered,
        }
    }
}

/// The nodes of a cluster.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Nodes {
    /// All nodes including this one, in the order of their names.
    nodes: Vec<Node>,
}

/// A node of a cluster.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Node {
    /// Name of the node, with which its client IDs start.
    node_id: String,
    version: String,
    /// Open connections; of another node, at its last heartbeat.
    connections: u64,
    /// `true` for the node that answers this call.
    #[serde(rename = "self")]
    is_self: bool,
    /// Time since this node started, or since it first saw the other node.
    known_ms: u64,
    /// Time since the last heartbeat. Nodes send one each second, and are removed after 5 seconds
    /// without one.
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

fn saturating_u64(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
