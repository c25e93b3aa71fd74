//! The node's side of the broker: hand over, ask, look.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deeperhub_metrics::{RegisterError, Registry, Unit};
use tokio::sync::{Notify, oneshot, watch};
use tracing::warn;

use crate::config::{Config, Engine};
use crate::cover::Wildcards;
use crate::envelope::{Envelope, MAX_ENVELOPE_OVERHEAD_BYTES, Message, Origin, topic_offset};
use crate::interest::Interests;
use crate::metrics::{Dropped, Metrics};
use crate::peers::{Peer, Peers};
use crate::queue::{Destination, Full, Lane, Queue};

/// Requests that may wait for answers of other nodes at one time.
const MAX_REQUESTS: usize = 4096;

/// Whether the cluster can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClusterState {
    /// The broker is looked for, for the first time or again.
    Disconnected {
        /// Why it is not reached; empty before the first attempt.
        error: String,
    },
    /// Messages go to the other nodes and come from them.
    Up,
    /// Another node has this one's name. It will not come up again.
    NameTaken,
    /// The node has left.
    Stopped,
}

/// Whether a node has a subscriber of a topic or pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterestChange {
    /// The first one came.
    Gained,
    /// The last one left.
    Lost,
}

/// Why a message was not taken for the other nodes. It was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The broker cannot be reached.
    #[error("the cluster cannot be reached")]
    Unavailable,
    /// [`Config::queue_bytes`] wait for it already.
    #[error("too much waits for the cluster's broker")]
    Full,
    /// The broker does not take messages of this size.
    #[error("the message is larger than the cluster's broker takes")]
    TooLarge,
}

/// Why a request to another node has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// It was not sent.
    #[error(transparent)]
    NotSent(#[from] PublishError),
    /// There is no such node.
    #[error("no node of this name is known")]
    UnknownNode,
    /// The node did not answer in time.
    #[error("the node did not answer in time")]
    TimedOut,
}

/// A handle to the broker that all of a node's threads share. Cheap to clone; nothing but [`request`](Self::request)
/// waits.
///
/// Messages are handed over to a bounded queue, which the [`Driver`](crate::Driver) drains in batches.
#[derive(Clone)]
pub struct Broker(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) node: String,
    pub(crate) incarnation: u64,
    pub(crate) version: &'static str,
    pub(crate) queue: Queue,
    pub(crate) interests: Interests,
    pub(crate) peers: Peers,
    pub(crate) metrics: Metrics,
    pub(crate) state: watch::Sender<ClusterState>,
    /// Whether the state is `Up`, for those who publish.
    pub(crate) is_up: AtomicBool,
    /// The largest envelope that the broker takes.
    pub(crate) max_envelope: AtomicUsize,
    /// Cost in bytes of the envelopes that came from the broker and wait for this node.
    pub(crate) backlog_bytes: AtomicUsize,
    pub(crate) stop: StopSignal,
    requests: Mutex<HashMap<u64, oneshot::Sender<String>>>,
    next_request: AtomicU64,
}

/// When the driver is to end.
#[derive(Debug, Default)]
pub(crate) struct StopSignal {
    pub(crate) request: Mutex<Option<StopRequest>>,
    pub(crate) changed: Notify,
}

/// Time when the stop was first requested, and its deadline.
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
            config,
            node,
            incarnation,
            version,
            interests: Interests::new(wildcards, engine.subscription_bytes()),
            peers: Peers::default(),
            metrics: Metrics::new(),
            state: watch::Sender::new(ClusterState::Disconnected { error: String::new() }),
            is_up: AtomicBool::new(false),
            max_envelope: AtomicUsize::new(usize::MAX),
            backlog_bytes: AtomicUsize::new(0),
            stop: StopSignal::default(),
            requests: Mutex::default(),
            next_request: AtomicU64::new(incarnation),
        }))
    }

    /// Returns the approximate memory per subscribed topic or pattern, in bytes. Most of it is the
    /// client library's queue of a subscription, if it has one.
    #[must_use]
    pub fn bytes_per_topic(&self) -> usize {
        match self.0.config.url.engine() {
            Engine::Nats => 4400,
            Engine::Redis => 256,
        }
    }

    /// Hands a publish over for all nodes that have a subscriber of its topic, a send to a user or a broadcast for all
    /// nodes. Never waits.
    ///
    /// # Errors
    ///
    /// [`PublishError`]: no other node gets it. Without an error those get it whose connection to the broker holds.
    pub fn publish(&self, message: Message<'_>) -> Result<(), PublishError> {
        let to = match &message {
            Message::Publish { topic, .. } => {
                Destination::Topic { start: topic_offset(self.0.node.len()), len: topic.as_str().len() }
            }
            _ => Destination::All,
        };
        self.enqueue(to, message)
    }

    /// Sends the node a probe of its own, by the way of all messages: behind those that wait, to the broker, and back to
    /// [`MessageHandler`](crate::Inbound). From a broker that brings a connection nothing of its own (NATS) it is back with the
    /// confirmation that the broker has dealt with it, which comes by the same connection. Never waits.
    ///
    /// # Errors
    ///
    /// [`PublishError`], which is not counted. Without an error it may be lost with the connection.
    pub fn probe(&self, number: u64) -> Result<(), PublishError> {
        if !self.is_up() {
            return Err(PublishError::Unavailable);
        }
        let envelope = self.0.envelope(Message::Probe { number });
        let to = Destination::Node(self.0.node.as_str().into());
        self.0.queue.push(Lane::Data, to, envelope).map_err(|Full| PublishError::Full)
    }

    fn enqueue(&self, to: Destination, message: Message<'_>) -> Result<(), PublishError> {
        let shared = &*self.0;
        if !shared.is_up.load(Ordering::Acquire) {
            shared.metrics.dropped(Dropped::Unavailable, 1);
            return Err(PublishError::Unavailable);
        }
        let envelope = shared.envelope(message);
        if envelope.len() > shared.max_envelope.load(Ordering::Relaxed) {
            shared.metrics.dropped(Dropped::TooLarge, 1);
            return Err(PublishError::TooLarge);
        }
        shared.queue.push(Lane::Data, to, envelope).map_err(|Full| {
            shared.metrics.dropped(Dropped::Full, 1);
            PublishError::Full
        })
    }

    /// Tells that the node's first subscriber of a topic or pattern has come, or its last one left.
    ///
    /// The broker is told soon after, of the last one only if no other came within two seconds.
    pub fn change_interest(&self, name: &Arc<str>, change: InterestChange) {
        match change {
            InterestChange::Gained => self.0.interests.add(name),
            InterestChange::Lost => self.0.interests.remove(name, Instant::now()),
        }
    }

    /// Asks one node and waits for its answer, at most `deadline`. `ask` makes the message from the number of the
    /// request. Needs a runtime of tokio with time.
    ///
    /// # Errors
    ///
    /// [`RequestError`]. A node that did not answer may have done what it was asked.
    pub async fn request<'a>(
        &self,
        node: &str,
        deadline: Duration,
        ask: impl FnOnce(u64) -> Message<'a>,
    ) -> Result<String, RequestError> {
        let shared = &*self.0;
        if !shared.is_up.load(Ordering::Acquire) {
            return Err(PublishError::Unavailable.into());
        }
        if !shared.peers.contains(node) {
            return Err(RequestError::UnknownNode);
        }
        let request = shared.next_request.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        {
            let mut requests = shared.requests.lock().unwrap_or_else(PoisonError::into_inner);
            if requests.len() >= MAX_REQUESTS {
                return Err(PublishError::Full.into());
            }
            requests.insert(request, sender);
        }
        // Also when the caller no longer waits.
        let _guard = RequestGuard { shared, request };
        self.enqueue(Destination::Node(node.into()), ask(request))?;
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            _ => Err(RequestError::TimedOut),
        }
    }

    /// Answers a request of another node. An answer that exceeds the broker's limit (see
    /// [`max_answer_bytes`](Self::max_answer_bytes)) or finds the queue full is dropped, counted
    /// and logged.
    pub fn answer(&self, node: &str, request: u64, text: &str) {
        let envelope = self.0.envelope(Message::Answer { request, text });
        let limit = self.0.max_envelope.load(Ordering::Relaxed);
        if envelope.len() > limit {
            self.0.metrics.dropped(Dropped::TooLarge, 1);
            warn!(node, bytes = envelope.len(), limit, "Answer dropped: exceeds the broker's max_payload");
            return;
        }
        if self.0.queue.push(Lane::Control, Destination::Node(node.into()), envelope).is_err() {
            // The requester times out.
            self.0.metrics.dropped(Dropped::Full, 1);
            warn!(node, "Answer dropped: too many wait for the broker");
        }
    }

    /// Whether the cluster is reached.
    #[must_use]
    pub fn state(&self) -> ClusterState {
        self.0.state.borrow().clone()
    }

    /// Whether the cluster is reached, in one look.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.0.is_up.load(Ordering::Acquire)
    }

    /// Tells of changes of [`Self::state`].
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<ClusterState> {
        self.0.state.subscribe()
    }

    /// The other nodes that were heard of lately, in the order of their names.
    #[must_use]
    pub fn peers(&self) -> Vec<Peer> {
        self.0.peers.list(Instant::now())
    }

    /// Names on the broker that this node is subscribed to.
    #[must_use]
    pub fn subscription_count(&self) -> usize {
        self.0.interests.len()
    }

    /// Adds the cluster's metrics to a registry.
    ///
    /// # Errors
    ///
    /// A name is taken.
    pub fn register(&self, registry: &mut Registry) -> Result<(), RegisterError> {
        self.0.metrics.register(registry)?;
        let gauge = |value: usize| i64::try_from(value).unwrap_or(i64::MAX);
        let broker = self.clone();
        registry.register_gauge_fn(
            "deeperhub_cluster_queue_bytes",
            "Bytes that wait for the broker",
            Unit::Bytes,
            move || gauge(broker.0.queue.bytes()),
        )?;
        let broker = self.clone();
        registry.register_gauge_fn(
            "deeperhub_cluster_subscriptions",
            "Topics and patterns that the broker carries to this node",
            Unit::None,
            move || gauge(broker.0.interests.len()),
        )?;
        let broker = self.clone();
        registry.register_gauge_fn(
            "deeperhub_cluster_subscription_bytes",
            "Estimated memory of subscriptions to the broker, and of topics and patterns that others cover",
            Unit::Bytes,
            move || gauge(broker.0.interests.bytes()),
        )?;
        let broker = self.clone();
        registry.register_gauge_fn(
            "deeperhub_cluster_backlog_bytes",
            "Bytes that came from the broker and wait for this node's workers",
            Unit::Bytes,
            move || gauge(broker.0.backlog_bytes.load(Ordering::Relaxed)),
        )?;
        let broker = self.clone();
        registry.register_gauge_fn(
            "deeperhub_cluster_nodes",
            "Nodes of the cluster that were heard of lately, this one among them",
            Unit::None,
            move || gauge(broker.0.peers.len() + 1),
        )
    }

    /// Returns the length in bytes of the longest [`answer`](Self::answer) that surely fits the
    /// broker's limit.
    #[must_use]
    pub fn max_answer_bytes(&self) -> usize {
        self.0.max_envelope.load(Ordering::Relaxed).saturating_sub(MAX_ENVELOPE_OVERHEAD_BYTES)
    }

    /// Asks the driver to flush the queue and to end by `deadline`. Messages that the broker has
    /// not taken by then are dropped, counted and logged.
    pub fn stop(&self, deadline: Instant) {
        {
            let mut request = self.0.stop.request.lock().unwrap_or_else(PoisonError::into_inner);
            let since = request.map_or_else(Instant::now, |stop| stop.since);
            *request = Some(StopRequest { since, deadline });
        }
        self.0.stop.changed.notify_one();
    }
}

/// Takes a request off the list when nobody waits for its answer any more.
struct RequestGuard<'a> {
    shared: &'a Shared,
    request: u64,
}

impl Drop for RequestGuard<'_> {
    fn drop(&mut self) {
        self.shared.requests.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.request);
    }
}

impl Shared {
    /// An envelope of this node, without its sequence.
    pub(crate) fn envelope(&self, message: Message<'_>) -> Vec<u8> {
        let origin = Origin { node: &self.node, incarnation: self.incarnation };
        Envelope { origin, sequence: 0, message }.write()
    }

    /// Queues a message of the cluster's own.
    pub(crate) fn send_control(&self, to: Destination, message: Message<'_>) {
        // Full only when the broker does not take anything, which is told otherwise.
        let _ = self.queue.push(Lane::Control, to, self.envelope(message));
    }

    /// Hands an answer to who waits for it.
    pub(crate) fn complete_request(&self, request: u64, text: &str) {
        let waiting = self.requests.lock().unwrap_or_else(PoisonError::into_inner).remove(&request);
        if let Some(waiting) = waiting {
            let _ = waiting.send(text.to_owned());
        }
    }

    pub(crate) fn set_state(&self, state: ClusterState) {
        let is_up = state == ClusterState::Up;
        self.is_up.store(is_up, Ordering::Release);
        self.metrics.up.set(is_up.into());
        self.state.send_replace(state);
        // What waited for it can go now.
        self.queue.changed.notify_one();
    }

    pub(crate) fn stop_request(&self) -> Option<StopRequest> {
        *self.stop.request.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
