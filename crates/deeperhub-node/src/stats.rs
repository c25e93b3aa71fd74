//! A node's numbers at one moment.

use std::ops::AddAssign;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::hub::Hub;
use crate::phase::Phase;
use crate::recent::Quantiles;

/// Connections, subscriptions, messages and bytes: what adds up over nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Totals {
    /// Open connections: after their handshake, until their close begins.
    pub connections: u64,
    /// The most that there may be.
    pub max_connections: u64,
    /// Handshakes that succeeded.
    pub accepted_total: u64,
    /// Handshakes that were refused, ran out of time or were given up.
    pub refused_total: u64,
    /// Connections that ended.
    pub closed_total: u64,
    /// Connections closed because their queue passed the limit, among those that ended.
    pub slow_consumers_total: u64,
    /// Subscriptions of all connections.
    pub subscriptions: u64,
    /// Topics and patterns with a subscriber.
    pub topics: u64,
    /// Messages that clients sent.
    pub received_total: u64,
    /// Replies and deliveries.
    pub sent_total: u64,
    /// Error answers, among those sent.
    pub errors_total: u64,
    /// Bytes read from sockets.
    pub received_bytes_total: u64,
    /// Bytes written to sockets.
    pub sent_bytes_total: u64,
    /// Bytes that wait to be sent, as of each worker's last look.
    pub queued_bytes: u64,
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
    }
}

/// A node's numbers at one moment; totals count from its start.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Where it is in its life.
    pub phase: Phase,
    /// Since its start.
    pub uptime: Duration,
    /// Threads that carry connections.
    pub workers: usize,
    /// Connections, subscriptions, messages and bytes.
    pub totals: Totals,
    /// Times from a publish to the write to a subscriber's socket, of the last 5 to 10 seconds where somebody asks each
    /// second. `None`: nothing was delivered.
    pub publish_latency: Option<Quantiles>,
    /// Events that slow observers did not get.
    pub events_lost_total: u64,
    /// Workers that died and were replaced.
    pub worker_restarts_total: u64,
    /// How long the last probe took, of the slowest worker. `None` before the first.
    pub canary_round_trip: Option<Duration>,
    /// How long the last probe through the cluster's broker took. `None` before the first, and without a cluster.
    pub canary_cluster_round_trip: Option<Duration>,
    /// Workers whose probe is overdue.
    pub canary_failing_workers: usize,
}

impl Stats {
    pub(crate) fn of(hub: &Hub) -> Self {
        let (metrics, listener) = (&hub.metrics, &hub.listener_metrics);
        // Indices of `handshakes`: accepted, refused, timed out, lost.
        let accepted_total = listener.handshakes.value(0);
        let all_handshakes: u64 =
            (0..listener.handshakes.values().len()).map(|index| listener.handshakes.value(index)).sum();
        let positive = |number: i64| u64::try_from(number).unwrap_or_default();
        let totals = Totals {
            connections: positive(metrics.active.value()),
            max_connections: hub.live.load().listener.max_connections as u64,
            accepted_total,
            refused_total: all_handshakes.saturating_sub(accepted_total),
            closed_total: metrics.closed.total(),
            slow_consumers_total: listener.slow_consumers.value(),
            subscriptions: positive(metrics.subscriptions.value()),
            topics: hub.router.topics(),
            received_total: metrics.received.total(),
            sent_total: metrics.sent.total(),
            errors_total: metrics.errors.total(),
            received_bytes_total: listener.received_bytes.value(),
            sent_bytes_total: listener.sent_bytes.value(),
            queued_bytes: positive(listener.queue_bytes.value()),
        };
        Self {
            phase: *hub.phase.borrow(),
            uptime: hub.started.elapsed(),
            workers: hub.requests.len(),
            totals,
            publish_latency: hub.latency.quantiles(metrics.latency.snapshot(), Instant::now()),
            events_lost_total: hub.bus.lost(),
            worker_restarts_total: listener.worker_restarts.value(),
            canary_round_trip: hub.canary.round_trip(),
            canary_cluster_round_trip: hub.canary.cluster_round_trip(),
            canary_failing_workers: hub.canary.failing_workers(),
        }
    }
}
