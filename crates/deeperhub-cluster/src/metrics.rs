//! Metrics of the cluster.

use deeperhub_metrics::{RegisterError, Registry, SharedCounter, SharedCounterVec, SharedGauge, Unit};

/// Values of the label `reason`, in the order of [`Dropped`].
const REASONS: &[&str] = &["unavailable", "full", "too_large", "slow_node", "slow_link", "stopped"];

/// Reason why an envelope was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// The node is not connected to the cluster.
    Unavailable,
    /// The queue for the broker is full.
    Full,
    /// The envelope exceeds the broker's limit.
    TooLarge,
    /// The envelope was received, and the backlog was full or did not process it in time.
    SlowNode,
    /// The envelope was received, and the client library's queue was full.
    #[cfg_attr(not(feature = "nats"), expect(dead_code, reason = "only its library reports this"))]
    SlowLink,
    /// The node stopped before the broker confirmed the envelope.
    Stopped,
}

/// Instruments of the cluster.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    /// Envelopes that the broker confirmed, heartbeats included.
    pub(crate) sent: SharedCounter,
    /// Envelopes of other nodes, without duplicates.
    pub(crate) received: SharedCounter,
    /// Envelopes that arrived again.
    pub(crate) duplicates: SharedCounter,
    /// Envelopes that could not be parsed.
    pub(crate) invalid: SharedCounter,
    /// Envelopes that were lost on the way to other nodes, or on the way to this node's clients.
    dropped: SharedCounterVec,
    /// Lost connections to the broker; attempts to reconnect are not counted.
    pub(crate) outages: SharedCounter,
    /// Restarts of the driver after a panic.
    pub(crate) restarts: SharedCounter,
    /// 1 while this node is connected and has joined.
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
        registry.register(
            "deeperhub_cluster_up",
            "1 while this node is connected to the broker and has joined, else 0",
            none,
            &self.up,
        )?;
        registry.register(
            "deeperhub_cluster_outages_total",
            "Outages of the connection to the broker",
            none,
            &self.outages,
        )?;
        registry.register(
            "deeperhub_cluster_driver_restarts_total",
            "Restarts of the thread of the broker's connection after a panic",
            none,
            &self.restarts,
        )?;
        registry.register(
            "deeperhub_cluster_sent_total",
            "Messages that the broker confirmed, heartbeats included",
            none,
            &self.sent,
        )?;
        registry.register(
            "deeperhub_cluster_received_total",
            "Messages received from other nodes, without duplicates",
            none,
            &self.received,
        )?;
        registry.register(
            "deeperhub_cluster_dropped_total",
            "Messages to or from other nodes that were dropped",
            none,
            &self.dropped,
        )?;
        registry.register(
            "deeperhub_cluster_duplicates_total",
            "Messages from other nodes that arrived again and were ignored",
            none,
            &self.duplicates,
        )?;
        registry.register(
            "deeperhub_cluster_invalid_total",
            "Messages from other nodes that could not be parsed",
            none,
            &self.invalid,
        )
    }
}
