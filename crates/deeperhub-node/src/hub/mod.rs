//! State that all workers and handles of a node share.

mod probe;
mod publish;
#[cfg(test)]
mod simulated;
mod watchers;
mod workers;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use deeperhub_cluster::{Broker, ClusterState};
use deeperhub_events::EventBus;
use deeperhub_metrics::Registry;
use deeperhub_protocol::message::{Features, ServerMessage, WelcomeLimits};
use deeperhub_security::BurstPool;
use tokio::sync::{mpsc, watch};

use crate::canary::Canary;
use crate::config::{Config, Limits};
use crate::health::{Health, UnreadyReason};
use crate::metrics::Metrics;
use crate::phase::Phase;
use crate::recent_quantiles::RecentQuantiles;
use crate::streams::{StreamRouter, Streams};
use crate::top::TopTracker;
use crate::worker::request::QueuedRequest;
pub(crate) use publish::{PublishOutcome, Publisher};
pub(crate) use watchers::Watchers;

/// Maximum length of the error message of one entry in a `subscribed` with `topics`.
const MAX_ENTRY_ERROR_BYTES: u64 = 160;

/// State that all workers and handles of a node share.
#[derive(Debug)]
pub(crate) struct Hub {
    /// Settings that are fixed at the start. The current limits are in `limits`.
    pub(crate) config: Config,
    pub(crate) limits: Arc<ArcSwap<Limits>>,
    pub(crate) node_id: String,
    pub(crate) router: StreamRouter,
    pub(crate) streams: Streams,
    /// Subscribers in this process.
    pub(crate) watchers: Watchers,
    pub(crate) bus: EventBus,
    pub(crate) metrics: Metrics,
    pub(crate) listener_metrics: deeperhub_listener::Metrics,
    pub(crate) top: TopTracker,
    /// Recent latencies of deliveries.
    pub(crate) publish_latency: RecentQuantiles,
    pub(crate) registry: Registry,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) canary: Arc<Canary>,
    /// Connection to the other nodes, if there is a cluster.
    pub(crate) broker: Option<Broker>,
    pub(crate) started: Instant,
    pub(crate) request_senders: Vec<mpsc::Sender<QueuedRequest>>,
    /// Pool of bursts for new connections, by address. With `None`, each connection has its own
    /// bursts.
    pub(crate) burst_pool: Option<BurstPool>,
    /// Deadline of the drain, once it has started.
    pub(crate) drain_deadline: OnceLock<Instant>,
    /// Receiving ends of the workers' request queues. Each worker takes its receiver. A worker that
    /// dies returns the receiver for its replacement.
    pub(crate) request_receivers: Vec<Mutex<Option<mpsc::Receiver<QueuedRequest>>>>,
}

impl Hub {
    /// Returns whether the node should get traffic, and the reasons if not.
    pub(crate) fn health(&self) -> Health {
        let mut health = Health::new(*self.phase.borrow(), self.canary.unready_reasons());
        let needs_cluster = self.config.cluster.as_ref().is_some_and(|cluster| !cluster.ready_alone);
        if needs_cluster {
            let fault = self.broker_fault().map(UnreadyReason::for_cluster);
            let fault = fault.or_else(|| self.canary.cluster_unready_reason());
            health.reasons.extend(fault.or_else(|| self.canary.store_unready_reason()));
        }
        if needs_cluster && self.streams.cluster.as_ref().is_some_and(|store| !store.is_checked()) {
            health.reasons.push(UnreadyReason::for_unchecked_streams());
        }
        if let Some(fault) = self.streams.disk.as_ref().and_then(|disk| disk.fault()) {
            health.reasons.push(UnreadyReason::for_history(&fault));
        }
        health
    }

    /// Returns the limits that the `welcome` message announces.
    pub(crate) fn welcome_limits(&self, limits: &Limits) -> WelcomeLimits {
        let max_message_bytes = limits.listener.max_message_bytes as u64;
        let ping_interval = self.config.listener.ping_interval;
        WelcomeLimits {
            max_message_bytes,
            max_delivery_bytes: self.max_delivery_bytes(limits),
            max_subscriptions: limits.session.max_subscriptions as u64,
            ping_interval_ms: u64::try_from(ping_interval.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Returns the length of the longest message that a client must be able to receive.
    fn max_delivery_bytes(&self, limits: &Limits) -> u64 {
        let max_message_bytes = limits.listener.max_message_bytes as u64;
        let features = self.streams.features();
        let delivery = ServerMessage::max_delivery_bytes(max_message_bytes, features);
        if features == Features::NONE {
            return delivery;
        }
        let max_subscriptions = limits.session.max_subscriptions as u64;
        let list = ServerMessage::max_subscribed_list_bytes(
            max_message_bytes,
            max_subscriptions,
            MAX_ENTRY_ERROR_BYTES,
        );
        delivery.max(list)
    }

    /// Returns the reason why the cluster is unreachable, or `None` if it is reachable or there is
    /// no cluster.
    pub(crate) fn broker_fault(&self) -> Option<String> {
        match self.broker.as_ref()?.state() {
            ClusterState::Up => None,
            ClusterState::Disconnected { error } if error.is_empty() => {
                Some("the node has not joined the cluster yet".to_owned())
            }
            ClusterState::Disconnected { error } => {
                Some(format!("the cluster's broker cannot be reached: {error}"))
            }
            ClusterState::NameTaken => Some("another node of the cluster has this one's name".to_owned()),
            _ => Some("the node has left the cluster".to_owned()),
        }
    }

    /// Takes the receiving end of a worker's request queue.
    pub(crate) fn take_request_receiver(&self, worker: usize) -> Option<mpsc::Receiver<QueuedRequest>> {
        self.request_receivers.get(worker)?.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Stores the receiving end of a dead worker's request queue for its replacement.
    pub(crate) fn return_request_receiver(&self, worker: usize, receiver: mpsc::Receiver<QueuedRequest>) {
        if let Some(slot) = self.request_receivers.get(worker) {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(receiver);
        }
    }
}
