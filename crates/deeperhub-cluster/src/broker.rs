//! The handle to the cluster that the node's threads share: publishes, announces interest, reports
//! state.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::{Notify, watch};

use crate::announcement;
use crate::batch::Destination;
use crate::config::{Config, Engine};
use crate::cover::Wildcards;
use crate::envelope::{Envelope, MAX_ENVELOPE_OVERHEAD_BYTES, Message, Origin, PlainPublish, topic_offset};
use crate::interest::Interests;
use crate::metrics::{Dropped, Metrics};
use crate::node_requests::NodeRequests;
use crate::peers::{Peer, Peers};
use crate::queue::{Full, Lane, Queue, WakeUp};
use crate::store::{RequestQueue, StreamRules};

/// State of the node's membership in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClusterState {
    /// The driver tries to connect or to join, for the first time or again.
    Disconnected {
        /// Error of the last attempt; empty before the first one has failed.
        error: String,
    },
    /// The node has joined: it exchanges messages with the other nodes.
    Up,
    /// Another node has this node's name. The driver has ended.
    NameTaken,
    /// The node has left the cluster.
    Stopped,
}

/// Change of a node's interest in a topic or pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterestChange {
    /// The node got its first subscriber.
    Gained,
    /// The node's last subscriber left.
    Lost,
}

/// Reason why a message was not queued for the other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnqueueError {
    /// The node is not connected to the cluster.
    #[error("the cluster is unreachable")]
    Unavailable,
    /// The queue is full ([`Config::queue_bytes`]), or too many requests wait for answers.
    #[error("the queue for the cluster's broker is full")]
    Full,
    /// The message exceeds the broker's limit.
    #[error("the message is larger than the cluster's broker allows")]
    TooLarge,
}

/// Handle to the cluster, which all of a node's threads share. Cheap to clone.
///
/// Methods push messages to a bounded queue, which the [`Driver`](crate::Driver) drains in batches.
/// They do not wait, except [`request`](Self::request).
#[derive(Clone)]
pub struct Broker(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) node: String,
    pub(crate) incarnation: u64,
    pub(crate) version: &'static str,
    /// Digest of the node's rules for history; 0 without any.
    pub(crate) history_rules: AtomicU32,
    pub(crate) queue: Queue,
    pub(crate) requests_to_store: RequestQueue,
    pub(crate) stream_rules: StreamRules,
    /// Knowledge about the streams of JetStream. It outlives connections.
    #[cfg(feature = "nats")]
    pub(crate) jetstream: crate::nats::Known,
    pub(crate) interests: Interests,
    pub(crate) peers: Peers,
    pub(crate) metrics: Metrics,
    pub(crate) state: watch::Sender<ClusterState>,
    /// `true` if the state is `Up`; cheaper to read than `state`.
    pub(crate) is_up: AtomicBool,
    /// Maximum size of an envelope at the broker, in bytes.
    pub(crate) max_envelope: AtomicUsize,
    /// Cost in bytes of received envelopes that wait for this node.
    pub(crate) backlog_bytes: AtomicUsize,
    pub(crate) stop: StopSignal,
    pub(crate) requests: NodeRequests,
}

/// Request to stop, from any thread to the driver.
#[derive(Debug, Default)]
pub(crate) struct StopSignal {
    pub(crate) request: Mutex<Option<StopRequest>>,
    pub(crate) changed: Notify,
}

/// Time of the first request to stop, and the deadline of the last one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StopRequest {
    pub(crate) since: Instant,
    pub(crate) deadline: Instant,
}

impl fmt::Debug for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Broker").field("url", &self.0.config.url).finish_non_exhaustive()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Broker {
    pub(crate) fn new(config: Config, node: String, incarnation: u64, version: &'static str) -> Self {
        let engine = config.url.engine();
        let wildcards = match engine {
            Engine::Nats => Wildcards::Levels,
            Engine::Redis => Wildcards::Globs,
        };
        Self(Arc::new(Shared {
            queue: Queue::new(config.queue_bytes),
            requests_to_store: RequestQueue::default(),
            stream_rules: StreamRules::default(),
            #[cfg(feature = "nats")]
            jetstream: crate::nats::Known::default(),
            config,
            node,
            incarnation,
            version,
            history_rules: AtomicU32::new(0),
            interests: Interests::new(wildcards, engine.subscription_bytes()),
            peers: Peers::default(),
            metrics: Metrics::default(),
            state: watch::Sender::new(ClusterState::Disconnected { error: String::new() }),
            is_up: AtomicBool::new(false),
            max_envelope: AtomicUsize::new(usize::MAX),
            backlog_bytes: AtomicUsize::new(0),
            stop: StopSignal::default(),
            requests: NodeRequests::new(incarnation),
        }))
    }

    /// Returns the approximate memory of the broker's client per subscribed topic or pattern, in
    /// bytes.
    #[must_use]
    pub fn bytes_per_topic(&self) -> usize {
        self.0.config.url.engine().subscription_bytes()
    }

    /// Queues a message without waiting. A publish goes to the nodes that have a subscriber of its
    /// topic, any other message to all nodes.
    ///
    /// # Errors
    ///
    /// Returns [`EnqueueError`] if no other node will get the message. The loss is counted. Without
    /// an error, the message is queued, and is sent again until the broker has confirmed it.
    pub fn publish(&self, message: Message<'_>) -> Result<(), EnqueueError> {
        self.publish_with(WakeUp::Immediate, message)
    }

    /// Queues a message like [`publish`](Self::publish), and wakes the driver as told.
    ///
    /// # Errors
    ///
    /// Returns [`EnqueueError`] like [`publish`](Self::publish).
    pub fn publish_with(&self, wake_up: WakeUp, message: Message<'_>) -> Result<(), EnqueueError> {
        let to = match &message {
            Message::Publish { topic, .. } => {
                Destination::Topic { start: topic_offset(self.0.node.len()), len: topic.as_str().len() }
            }
            _ => Destination::All,
        };
        self.enqueue_with(wake_up, to, message)
    }

    /// Queues a publish without a trace like [`publish_with`](Self::publish_with). Costs less, most
    /// if the thread's last publish had the same topic and publisher.
    ///
    /// # Errors
    ///
    /// Returns [`EnqueueError`] like [`publish`](Self::publish).
    pub fn publish_plain(&self, wake_up: WakeUp, publish: &PlainPublish<'_>) -> Result<(), EnqueueError> {
        self.check_up()?;
        let (start, len) = (topic_offset(self.0.node.len()), publish.topic.as_str().len());
        let to = Destination::Topic { start, len };
        publish.with_bytes(self.0.origin(), |envelope| self.enqueue_bytes(wake_up, to, envelope))
    }

    /// Wakes the driver if messages are queued that it was not told of. Cheap if there are none.
    pub fn flush(&self) {
        self.0.queue.flush();
    }

    /// Queues a probe to the node itself without waiting. The probe passes through the queue and
    /// the broker like any message, and then reaches the [`MessageHandler`](crate::MessageHandler).
    /// NATS does not send a node its own messages, so with NATS the handler gets the probe when the
    /// broker has confirmed the probe's batch.
    ///
    /// # Errors
    ///
    /// Returns [`EnqueueError`] if the probe was not queued. The loss is not counted. A queued
    /// probe can still be lost with the connection.
    pub fn probe(&self, number: u64) -> Result<(), EnqueueError> {
        if !self.is_up() {
            return Err(EnqueueError::Unavailable);
        }
        let to = Destination::Node(self.0.node.as_str().into());
        let mut envelope = self.0.envelope(Message::Probe { number });
        self.0.queue.push(Lane::Data, to, &mut envelope).map_err(|Full| EnqueueError::Full)
    }

    pub(crate) fn enqueue(&self, to: Destination, message: Message<'_>) -> Result<(), EnqueueError> {
        self.enqueue_with(WakeUp::Immediate, to, message)
    }

    fn enqueue_with(
        &self,
        wake_up: WakeUp,
        to: Destination,
        message: Message<'_>,
    ) -> Result<(), EnqueueError> {
        self.check_up()?;
        let envelope = Envelope { origin: self.0.origin(), sequence: 0, message };
        envelope.with_bytes(|envelope| self.enqueue_bytes(wake_up, to, envelope))
    }

    /// Counts a message as dropped if the broker is unreachable.
    #[inline]
    fn check_up(&self) -> Result<(), EnqueueError> {
        if self.0.is_up.load(Ordering::Acquire) {
            return Ok(());
        }
        self.0.metrics.dropped(Dropped::Unavailable, 1);
        Err(EnqueueError::Unavailable)
    }

    /// Queues an encoded message.
    fn enqueue_bytes(
        &self,
        wake_up: WakeUp,
        to: Destination,
        envelope: &mut [u8],
    ) -> Result<(), EnqueueError> {
        let shared = &*self.0;
        if envelope.len() > shared.max_envelope.load(Ordering::Relaxed) {
            shared.metrics.dropped(Dropped::TooLarge, 1);
            return Err(EnqueueError::TooLarge);
        }
        shared.queue.push_with(wake_up, Lane::Data, to, envelope).map_err(|Full| {
            shared.metrics.dropped(Dropped::Full, 1);
            EnqueueError::Full
        })
    }

    /// Announces that the node got its first subscriber of a topic or pattern, or lost its last
    /// one.
    ///
    /// The driver subscribes at the broker soon after. It unsubscribes if the node has no
    /// subscriber for two seconds.
    pub fn change_interest(&self, name: &Arc<str>, change: InterestChange) {
        match change {
            InterestChange::Gained => self.0.interests.add(name),
            InterestChange::Lost => self.0.interests.remove(name, Instant::now()),
        }
    }

    /// Returns the state of the node's membership.
    #[must_use]
    pub fn state(&self) -> ClusterState {
        self.0.state.borrow().clone()
    }

    /// Returns `true` if the state is [`ClusterState::Up`], with one atomic load.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.0.is_up.load(Ordering::Acquire)
    }

    /// Returns a receiver that sees changes of [`state`](Self::state).
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<ClusterState> {
        self.0.state.subscribe()
    }

    /// Returns the other nodes with recent heartbeats, ordered by name.
    #[must_use]
    pub fn peers(&self) -> Vec<Peer> {
        self.0.peers.list(Instant::now())
    }

    /// Sets the digest of the rules for history on this node, which heartbeats tell the other nodes; 0
    /// without such rules. Nodes with other digests, and of versions that tell none, are logged.
    pub fn set_history_rules(&self, digest: u32) {
        self.0.history_rules.store(digest, Ordering::Relaxed);
    }

    /// Returns the version of this node as heartbeats tell it: that of the program, with the digest of
    /// the rules for history.
    #[must_use]
    pub fn announced_version(&self) -> String {
        announcement::write(self.0.version, self.0.history_rules.load(Ordering::Relaxed))
    }

    /// Returns the number of topics and patterns that this node subscribes to at the broker.
    #[must_use]
    pub fn subscription_count(&self) -> usize {
        self.0.interests.len()
    }

    /// Returns the length in bytes up to which a published value always fits within the broker's
    /// limit.
    #[must_use]
    pub fn max_payload_bytes(&self) -> usize {
        self.0.max_envelope.load(Ordering::Relaxed).saturating_sub(MAX_ENVELOPE_OVERHEAD_BYTES)
    }

    /// Asks the driver to flush the queue and to end by `deadline`. Messages that the broker has
    /// not confirmed by then are dropped, counted and logged.
    pub fn stop(&self, deadline: Instant) {
        {
            let mut request = self.0.stop.request.lock().unwrap_or_else(PoisonError::into_inner);
            let since = request.map_or_else(Instant::now, |stop| stop.since);
            *request = Some(StopRequest { since, deadline });
        }
        self.0.stop.changed.notify_one();
    }
}

impl Shared {
    /// Returns the origin of this node's envelopes.
    fn origin(&self) -> Origin<'_> {
        Origin { node: &self.node, incarnation: self.incarnation }
    }

    /// Encodes an envelope of this node. The queue fills in its sequence.
    pub(crate) fn envelope(&self, message: Message<'_>) -> Vec<u8> {
        Envelope { origin: self.origin(), sequence: 0, message }.write()
    }

    /// Queues a message between drivers.
    pub(crate) fn send_control(&self, to: Destination, message: Message<'_>) {
        // The control lane is full only if the broker takes no messages, which ends the connection.
        let _ = self.queue.push(Lane::Control, to, &mut self.envelope(message));
    }

    /// Sets the state and its metric, and wakes everything that waits for a change.
    pub(crate) fn set_state(&self, state: ClusterState) {
        let is_up = state == ClusterState::Up;
        self.is_up.store(is_up, Ordering::Release);
        self.metrics.up.set(is_up.into());
        self.state.send_replace(state);
        // The driver sends queued messages when the state is `Up`.
        self.queue.changed.notify_one();
    }

    pub(crate) fn stop_request(&self) -> Option<StopRequest> {
        *self.stop.request.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
