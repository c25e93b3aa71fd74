//! Metrics of the cluster.

use std::sync::atomic::Ordering;

use deeperhub_metrics::{Counter, CounterVec, Gauge, RegisterError, Registry, Unit, labels, metrics};

use crate::broker::Broker;

labels! {
    /// Reason why an envelope was dropped.
    pub(crate) enum Dropped("reason") {
        /// The node is not connected to the cluster.
        Unavailable = "unavailable",
        /// The queue for the broker is full.
        Full = "full",
        /// The envelope exceeds the broker's limit.
        TooLarge = "too_large",
        /// The envelope was received, and the backlog was full or did not process it in time.
        SlowNode = "slow_node",
        /// The node stopped before the broker confirmed the envelope.
        Stopped = "stopped",
    }
}

metrics! {
    /// Metrics of the cluster.
    pub(crate) struct Metrics {
        /// 1 while this node is connected to the broker and has joined, else 0.
        pub(crate) up: Gauge = "deeperhub_cluster_up";
        /// Outages of the connection to the broker.
        // Attempts to reconnect are not counted.
        pub(crate) outages: Counter = "deeperhub_cluster_outages_total";
        /// Restarts of the thread of the broker's connection after a panic.
        pub(crate) restarts: Counter = "deeperhub_cluster_driver_restarts_total";
        /// Messages that the broker confirmed, heartbeats included.
        pub(crate) sent: Counter = "deeperhub_cluster_sent_total";
        /// Messages received from other nodes, without duplicates.
        pub(crate) received: Counter = "deeperhub_cluster_received_total";
        /// Messages to or from other nodes that were dropped.
        dropped: CounterVec<Dropped> = "deeperhub_cluster_dropped_total";
        /// Messages from other nodes that arrived again and were ignored.
        pub(crate) duplicates: Counter = "deeperhub_cluster_duplicates_total";
        /// Messages from other nodes that could not be parsed.
        pub(crate) invalid: Counter = "deeperhub_cluster_invalid_total";
    }
}

impl Metrics {
    pub(crate) fn dropped(&self, reason: Dropped, count: u64) {
        self.dropped.add(reason, count);
    }

    #[cfg(all(test, feature = "nats"))]
    pub(crate) fn dropped_for(&self, reason: Dropped) -> u64 {
        self.dropped.value(reason)
    }
}

impl Broker {
    /// Registers the cluster's metrics.
    ///
    /// # Errors
    ///
    /// Returns [`RegisterError`] if a name is already registered.
    pub fn register(&self, registry: &mut Registry) -> Result<(), RegisterError> {
        self.0.metrics.register(registry)?;
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let broker = self.clone();
        registry.register_gauge_fn(
            "deeperhub_cluster_queue_bytes",
            "Bytes queued for the broker",
            Unit::Bytes,
            move || gauge(broker.0.queue.bytes()),
        )?;
        let broker = self.clone();
        registry.register_gauge_fn(
            "deeperhub_cluster_subscriptions",
            "Topics and patterns that this node subscribes to at the broker",
            Unit::None,
            move || gauge(broker.0.interests.len()),
        )?;
        let broker = self.clone();
        registry.register_gauge_fn(
            "deeperhub_cluster_subscription_bytes",
            "Estimated memory of subscriptions at the broker, and of topics and patterns that others cover",
            Unit::Bytes,
            move || gauge(broker.0.interests.bytes()),
        )?;
        let broker = self.clone();
        registry.register_gauge_fn(
            "deeperhub_cluster_backlog_bytes",
            "Bytes received from the broker that wait for this node's workers",
            Unit::Bytes,
            move || gauge(broker.0.backlog_bytes.load(Ordering::Relaxed)),
        )?;
        let broker = self.clone();
        registry.register_gauge_fn(
            "deeperhub_cluster_nodes",
            "Nodes of the cluster with recent heartbeats, this one included",
            Unit::None,
            move || gauge(broker.0.peers.len() + 1),
        )
    }
}
