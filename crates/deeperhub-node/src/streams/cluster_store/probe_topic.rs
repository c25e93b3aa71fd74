//! The topic with which a node probes the cluster's store.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use deeperhub_cluster::{AppendNumber, Broker, InterestChange, StorePosition, StreamLimits, StreamRead};
use deeperhub_protocol::Topic;
use tokio::sync::{oneshot, watch};

use super::appends::AppendOutcome;

/// Time for which the store keeps the position of a node that has gone.
const LIFETIME: Duration = Duration::from_secs(60);

/// State of the probes of the store.
#[derive(Debug)]
pub(crate) struct ProbeTopic {
    pub(super) topic: Topic<'static>,
    is_followed: AtomicBool,
    /// Newest position that the store has sent.
    received: watch::Sender<Option<StorePosition>>,
    /// Waiter for the outcome of an append.
    pub(super) append: Mutex<Option<(AppendNumber, oneshot::Sender<AppendOutcome>)>>,
}

impl ProbeTopic {
    pub(super) fn new(node_id: &str) -> Self {
        Self {
            // No other node uses it, and clients cannot.
            topic: Topic::reserved(format_args!("canary.store.{node_id}")),
            is_followed: AtomicBool::new(false),
            received: watch::Sender::new(None),
            append: Mutex::default(),
        }
    }

    /// Returns the limits of the topic's stream.
    pub(super) fn limits() -> StreamLimits {
        StreamLimits { messages: 1, ttl: LIFETIME, forget: Duration::ZERO }
    }

    /// Tells the broker once that this node follows the topic.
    pub(crate) fn follow(&self, broker: &Broker) {
        if !self.is_followed.swap(true, Ordering::AcqRel) {
            broker.change_interest(&Arc::from(self.topic.as_str()), InterestChange::Gained);
        }
    }

    /// Returns the read of the newest message after a position, or of the position alone.
    pub(crate) fn read(&self, after: Option<StorePosition>) -> StreamRead {
        let limits = Self::limits();
        StreamRead { topic: self.topic.clone(), after, messages: 1, limits, creates: true, follows: true }
    }

    /// Notes a message that the store has sent. Those of other nodes' probes are ignored.
    pub(crate) fn on_received(&self, topic: &Topic<'_>, position: StorePosition) {
        if *topic == self.topic {
            self.received.send_replace(Some(position));
        }
    }

    /// Waits until the store has sent the message at a position, or a later one.
    pub(crate) async fn wait_until_received(&self, position: StorePosition) {
        let mut received = self.received.subscribe();
        // The sender lives as long as this value.
        let _ = received.wait_for(|received| received.is_some_and(|received| received >= position)).await;
    }

    pub(super) fn on_appended(&self, number: AppendNumber, outcome: AppendOutcome) {
        let waiting = {
            let mut append = self.append.lock().unwrap_or_else(PoisonError::into_inner);
            append.take_if(|(waiting, _)| *waiting == number)
        };
        if let Some((_, sender)) = waiting {
            // The probe may have been replaced.
            let _ = sender.send(outcome);
        }
    }
}
