//! Statistics of a node.

use std::ops::AddAssign;
use std::time::{Duration, Instant};

use deeperhub_listener::metrics::HandshakeOutcome;
use serde::{Deserialize, Serialize};

use crate::hub::Hub;
use crate::metrics::{AppendLabel, ReadLabel};
use crate::phase::Phase;
use crate::recent_quantiles::Quantiles;
use crate::streams::kept_messages;

/// Statistics that can be summed over nodes: connections, subscriptions, messages and bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Totals {
    /// Open connections, from the end of the handshake to the start of the close.
    pub connections: u64,
    /// Limit on connections.
    pub max_connections: u64,
    /// Handshakes that succeeded.
    pub accepted_total: u64,
    /// Handshakes that were refused, timed out or lost.
    pub refused_total: u64,
    /// Closed connections.
    pub closed_total: u64,
    /// Connections that were closed because their send queue exceeded its limit. They also count in
    /// `closed_total`.
    pub slow_consumers_total: u64,
    /// Subscriptions of all connections.
    pub subscriptions: u64,
    /// Topics and patterns with a subscriber.
    pub topics: u64,
    /// Messages received from clients.
    pub received_total: u64,
    /// Replies and deliveries.
    pub sent_total: u64,
    /// Error replies. They also count in `sent_total`.
    pub errors_total: u64,
    /// Bytes read from sockets.
    pub received_bytes_total: u64,
    /// Bytes written to sockets.
    pub sent_bytes_total: u64,
    /// Bytes in send queues, as last reported by each worker.
    pub queued_bytes: u64,
    /// Topics with a history.
    pub history_streams: u64,
    /// Messages kept in the histories of all topics.
    pub history_messages: u64,
    /// Bytes of these messages.
    pub history_bytes: u64,
    /// Subscriptions that are behind the newest message of their topic.
    pub subscriptions_behind: u64,
}

impl AddAssign<&Self> for Totals {
    fn add_assign(&mut self, other: &Self) {
        self.connections += other.connections;
        self.max_connections += other.max_connections;
        self.accepted_total += other.accepted_total;
        self.refused_total += other.refused_total;
        self.closed_total += other.closed_total;
        self.slow_consumers_total += other.slow_consumers_total;
        self.subscriptions += other.subscriptions;
        self.topics += other.topics;
        self.received_total += other.received_total;
        self.sent_total += other.sent_total;
        self.errors_total += other.errors_total;
        self.received_bytes_total += other.received_bytes_total;
        self.sent_bytes_total += other.sent_bytes_total;
        self.queued_bytes += other.queued_bytes;
        self.history_streams += other.history_streams;
        self.history_messages += other.history_messages;
        self.history_bytes += other.history_bytes;
        self.subscriptions_behind += other.subscriptions_behind;
    }
}

/// Statistics of a node. Totals count from its start.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Phase of the node.
    pub phase: Phase,
    /// Time since the start.
    pub uptime: Duration,
    /// Number of worker threads.
    pub workers: usize,
    /// Statistics that can be summed over nodes.
    pub totals: Totals,
    /// Latency from a publish to the write to a subscriber's socket. It covers the last 5 to 10
    /// seconds if it is read each second. `None` if nothing was delivered in this time.
    pub publish_latency: Option<Quantiles>,
    /// Events that slow observers lost.
    pub events_lost_total: u64,
    /// Workers that died and were replaced.
    pub worker_restarts_total: u64,
    /// Longest of the workers' last probe round-trip times. `None` before the first probe returned.
    pub canary_round_trip: Option<Duration>,
    /// Last probe round-trip time through the cluster's broker. `None` before the first probe
    /// returned, and without a cluster.
    pub canary_cluster_round_trip: Option<Duration>,
    /// Workers whose probe did not return in time.
    pub canary_failing_workers: usize,
    /// The cluster's store of history. `None` if there is none.
    pub store: Option<StoreStats>,
    /// Memory of the process. `None` without a [memory budget](deeperhub_listener::MemoryBudget).
    pub memory: Option<MemoryUsage>,
}

/// State of the cluster's store of history, as this node sees it. Totals count from the node's start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreStats {
    /// `true` if the node is connected to the store's broker and has joined.
    pub is_reachable: bool,
    /// Last round-trip time of a probe that the store appended, sent and gave back. `None` before
    /// the first probe returned.
    pub round_trip: Option<Duration>,
    /// Publishes that wait until the store has appended them.
    pub waiting_appends: u64,
    /// Messages that the store has appended.
    pub appends_total: u64,
    /// Reads that the store has answered.
    pub reads_total: u64,
    /// Reads that the store could not answer.
    pub failed_reads_total: u64,
}

impl StoreStats {
    /// Returns the state of the store if a rule keeps messages in it.
    fn of(hub: &Hub) -> Option<Self> {
        let store = hub.streams.cluster.as_ref()?;
        if !hub.limits.load().history.rules.keep_history() {
            return None;
        }
        Some(Self {
            is_reachable: store.is_up(),
            round_trip: hub.canary.last_store_round_trip(),
            waiting_appends: not_negative(store.mirror_metrics.waiting_appends.value()),
            appends_total: store.metrics.appends.value(AppendLabel::Ok),
            reads_total: store.metrics.reads.value(ReadLabel::Ok),
            failed_reads_total: store.metrics.reads.value(ReadLabel::Failed),
        })
    }
}

fn not_negative(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// Memory of the process against its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryUsage {
    /// Bytes in use at the last measurement.
    pub used: u64,
    /// Limit in bytes.
    pub limit: u64,
}

impl Stats {
    pub(crate) fn of(hub: &Hub) -> Self {
        let (metrics, listener) = (&hub.metrics, &hub.listener_metrics);
        let accepted_total = listener.handshakes.value(HandshakeOutcome::Accepted);
        let all_handshakes = listener.handshakes.total();
        let totals = Totals {
            connections: not_negative(metrics.active.value()),
            max_connections: hub.limits.load().listener.max_connections as u64,
            accepted_total,
            refused_total: all_handshakes.saturating_sub(accepted_total),
            closed_total: metrics.closed.total(),
            slow_consumers_total: listener.slow_consumers.value(),
            subscriptions: not_negative(metrics.subscriptions.value()),
            topics: hub.router.topic_count(),
            received_total: metrics.received.total(),
            sent_total: metrics.sent.total(),
            errors_total: metrics.errors.total(),
            received_bytes_total: listener.received_bytes.value(),
            sent_bytes_total: listener.sent_bytes.value(),
            queued_bytes: not_negative(listener.queue_bytes.value()),
            history_streams: hub.streams.streams(),
            history_messages: kept_messages(&hub.router),
            history_bytes: hub.streams.bytes(),
            subscriptions_behind: not_negative(metrics.behind.value()),
        };
        Self {
            phase: *hub.phase.borrow(),
            uptime: hub.started.elapsed(),
            workers: hub.request_senders.len(),
            totals,
            publish_latency: hub.publish_latency.quantiles(metrics.latency.snapshot(), Instant::now()),
            events_lost_total: hub.bus.lost(),
            worker_restarts_total: listener.worker_restarts.value(),
            canary_round_trip: hub.canary.last_round_trip(),
            canary_cluster_round_trip: hub.canary.last_cluster_round_trip(),
            canary_failing_workers: hub.canary.failing_workers(),
            store: StoreStats::of(hub),
            memory: hub
                .config
                .listener
                .memory
                .as_ref()
                .map(|budget| MemoryUsage { used: budget.used(), limit: budget.limit() }),
        }
    }
}

/// Statistics of one node of a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeTotals {
    /// Node name.
    pub node_id: String,
    /// Statistics that can be summed over nodes.
    pub totals: Totals,
}

/// Statistics of several nodes together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct ClusterStats {
    /// Nodes that answered.
    pub nodes: u64,
    /// Sums over these nodes. A topic with subscribers on two nodes counts twice.
    #[serde(flatten)]
    pub totals: Totals,
}

impl From<Stats> for ClusterStats {
    fn from(stats: Stats) -> Self {
        Self { nodes: 1, totals: stats.totals }
    }
}

impl ClusterStats {
    pub(crate) fn add(&mut self, other: &Self) {
        self.nodes += other.nodes;
        self.totals += &other.totals;
    }
}
