//! What a node counts about its cluster.

use deeperhub_metrics::{RegisterError, Registry, SharedCounter, SharedCounterVec, SharedGauge, Unit};

/// Reasons why something was dropped.
const REASONS: &[&str] = &["unavailable", "full", "too_large", "slow_node", "slow_link", "stopped"];

/// Index into the reasons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// The broker cannot be reached.
    Unavailable,
    /// `queue_bytes` wait for it already.
    Full,
    /// The broker does not take messages of this size.
    TooLarge,
    /// It came from the broker, and this node is too far behind.
    SlowNode,
    /// It came from the broker, and the client library's queue was full.
    #[cfg_attr(not(feature = "nats"), expect(dead_code, reason = "only that library tells"))]
    SlowLink,
    /// The node stopped before the broker took it.
    Stopped,
}

/// Instruments of the cluster.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    /// Envelopes that the broker confirmed, heartbeats among them.
    pub(crate) sent: SharedCounter,
    /// Envelopes of other nodes, duplicates not counted.
    pub(crate) received: SharedCounter,
    /// Envelopes that came a second time.
    pub(crate) duplicates: SharedCounter,
    /// Envelopes that could not be read.
    pub(crate) invalid: SharedCounter,
    /// Envelopes that did not reach the other nodes, or came and did not reach this one's clients.
    dropped: SharedCounterVec,
    /// Times that the broker was lost.
    pub(crate) outages: SharedCounter,
    /// Restarts of the driver after a panic.
    pub(crate) restarts: SharedCounter,
    /// 1 while the broker is reached and this node has joined.
    pub(crate) up: SharedGauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            sent: SharedCounter::new(),
            received: SharedCounter::new(),
            duplicates: SharedCounter::new(),
            invalid: SharedCounter::new(),
            dropped: SharedCounterVec::new("reason", REASONS),
            outages: SharedCounter::new(),
            restarts: SharedCounter::new(),
            up: SharedGauge::new(),
        }
    }

    pub(crate) fn dropped(&self, reason: Dropped, count: u64) {
        self.dropped.add(reason as usize, count);
    }

    #[cfg(all(test, feature = "nats"))]
    pub(crate) fn dropped_for(&self, reason: Dropped) -> u64 {
        self.dropped.value(reason as usize)
    }

    pub(crate) fn register(&self, registry: &mut Registry) -> Result<(), RegisterError> {
        let none = Unit::None;
        registry.register("deeperhub_cluster_up", "Whether the broker is reached", none, &self.up)?;
        registry.register(
            "deeperhub_cluster_outages_total",
            "Times that the broker was lost",
            none,
            &self.outages,
        )?;
        registry.register(
            "deeperhub_cluster_driver_restarts_total",
            "Times that the thread of the broker's connection panicked and began again",
            none,
            &self.restarts,
        )?;
        registry.register(
            "deeperhub_cluster_sent_total",
            "Messages to other nodes that the broker took",
            none,
            &self.sent,
        )?;
        registry.register(
            "deeperhub_cluster_received_total",
            "Messages of other nodes",
            none,
            &self.received,
        )?;
        registry.register(
            "deeperhub_cluster_dropped_total",
            "Messages to or of other nodes that were dropped",
            none,
            &self.dropped,
        )?;
        registry.register(
            "deeperhub_cluster_duplicates_total",
            "Messages of other nodes that came again",
            none,
            &self.duplicates,
        )?;
        registry.register(
            "deeperhub_cluster_invalid_total",
            "Messages of other nodes that could not be read",
            none,
            &self.invalid,
        )
    }
}
