//! Membership of a node in a cluster: messages to and from other nodes.

pub use deeperhub_cluster::{BrokerUrl, BrokerUrlError, Config as BrokerConfig, Engine};

use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use deeperhub_cluster::{
    Broker, ClientRequest, ClusterState, Driver, DriverHandle, EnqueueError, Envelope, InterestChange,
    JoinOutcome, Message, MessageHandler, PendingAnswer,
};
use deeperhub_protocol::message::{ClusterFault, TraceContext};
use deeperhub_protocol::{ClientId, RawJson, Topic};
use deeperhub_router::Router;
use tokio::sync::oneshot;

use crate::cluster_query::{self, ClusterQuery};
use crate::hub::{Delivery, Hub};
use crate::operation::{Operation, Target};
use crate::types::ClientNotFound;
use crate::worker_request::WorkerRequest;

/// Time that the start waits for the broker. Afterwards the node serves its own clients while the
/// cluster thread continues to connect.
const BROKER_START_TIMEOUT: Duration = Duration::from_secs(3);

/// Time that a stop allows at least for queued messages to reach the broker. The stop allows more
/// time if the deadline of the drain is later.
const MIN_FLUSH_TIME: Duration = Duration::from_secs(2);

/// Extra time that a stop waits for a driver that does not keep its deadline.
const DRIVER_STOP_GRACE: Duration = Duration::from_secs(2);

/// Maximum time that a message from another node waits while a worker is congested. Afterwards the
/// message is delivered anyway, so that one stuck worker does not stop all messages of the cluster.
const CONGESTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Membership in a cluster.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClusterConfig {
    /// Broker and its connection settings.
    pub broker: deeperhub_cluster::Config,
    /// `true` if the node counts as ready while the broker is unreachable. Default `false`.
    pub ready_alone: bool,
}

impl ClusterConfig {
    /// Creates a configuration with defaults.
    #[must_use]
    pub const fn new(broker: deeperhub_cluster::Config) -> Self {
        Self { broker, ready_alone: false }
    }
}

/// Handle of the thread that connects to the broker. Dropping the handle ends the thread.
#[derive(Debug)]
pub(crate) struct ClusterThread {
    broker: Broker,
    driver: Option<DriverHandle>,
}

impl ClusterThread {
    /// Starts the thread and waits for the first attempt to join the cluster, for at most
    /// [`BROKER_START_TIMEOUT`]. The outcome is `None` if the attempt takes longer.
    pub(crate) fn start(
        hub: &Arc<Hub>,
        broker: Broker,
        driver: Driver,
    ) -> io::Result<(Self, Option<JoinOutcome>)> {
        let receiver = ClusterReceiver { hub: Arc::clone(hub), hasher: RandomState::new() };
        let driver_handle = driver.spawn(receiver)?;
        let outcome = driver_handle.wait_for_join(BROKER_START_TIMEOUT);
        Ok((Self { broker, driver: Some(driver_handle) }, outcome))
    }

    /// Flushes queued messages, tells the other nodes that this node leaves, and ends the thread.
    /// The flush may take until `deadline`, or for [`MIN_FLUSH_TIME`] if that is later.
    pub(crate) async fn stop(mut self, deadline: Option<Instant>) {
        let min_deadline = Instant::now() + MIN_FLUSH_TIME;
        let deadline = deadline.map_or(min_deadline, |deadline| deadline.max(min_deadline));
        self.broker.stop(deadline);
        if let Some(driver) = self.driver.take() {
            // The driver keeps the deadline unless a system call hangs.
            let late_deadline = deadline.checked_add(DRIVER_STOP_GRACE).unwrap_or(deadline);
            let _ = tokio::time::timeout_at(late_deadline.into(), driver.wait_for_end()).await;
        }
    }
}

impl Drop for ClusterThread {
    fn drop(&mut self) {
        if self.driver.is_some() {
            self.broker.stop(Instant::now());
        }
    }
}

/// Registers an observer of the router that tells the broker which topics have a subscriber on this
/// node.
pub(crate) fn forward_interest(router: &Router<Delivery>, broker: &Broker) {
    let broker = broker.clone();
    router.observe_interest(move |name, change| {
        // Topics that start with `$` are reserved and stay on this node.
        if !name.starts_with('$') {
            let change = match change {
                deeperhub_router::InterestChange::Gained => InterestChange::Gained,
                deeperhub_router::InterestChange::Lost => InterestChange::Lost,
            };
            broker.change_interest(name, change);
        }
    });
}

impl Hub {
    /// Queues a publish of this node for the other nodes. Returns the fault if it cannot be queued.
    pub(crate) fn publish_to_other_nodes(
        &self,
        topic: &Topic<'_>,
        payload: RawJson<'_>,
        from: Option<&ClientId>,
        trace: TraceContext<'_>,
    ) -> Option<ClusterFault> {
        if topic.as_str().starts_with('$') {
            return None;
        }
        let message = Message::Publish { topic: topic.borrow(), from: from.cloned(), trace, payload };
        self.send_to_other_nodes(message)
    }

    /// Queues a message for other nodes. Returns the fault if it cannot be queued.
    pub(crate) fn send_to_other_nodes(&self, message: Message<'_>) -> Option<ClusterFault> {
        match self.broker.as_ref()?.publish(message) {
            Ok(()) => None,
            Err(EnqueueError::TooLarge) => Some(ClusterFault::TooLarge),
            Err(_) => Some(ClusterFault::Unavailable),
        }
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
}

/// Handler of messages from other nodes.
#[derive(Debug)]
struct ClusterReceiver {
    hub: Arc<Hub>,
    hasher: RandomState,
}

impl ClusterReceiver {
    fn publish(
        &self,
        topic: &Topic<'_>,
        payload: RawJson<'_>,
        from: Option<&ClientId>,
        trace: &TraceContext<'_>,
    ) {
        // No client of this node has a source number with the highest bit. The messages of a remote
        // publisher thus keep the order in which the broker sent them, also across topics.
        let source = from.map(|from| self.hasher.hash_one(from) | 1 << 63);
        self.hub.deliver_remote(topic, payload, from, source, trace);
    }

    /// Waits until no worker is congested, for at most [`CONGESTION_TIMEOUT`].
    async fn wait_until_uncongested(&self) {
        let router = &self.hub.router;
        if router.is_congested() {
            let uncongested = poll_fn(|cx| {
                if router.wake_when_uncongested(cx.waker()) { Poll::Pending } else { Poll::Ready(()) }
            });
            let _ = tokio::time::timeout(CONGESTION_TIMEOUT, uncongested).await;
        }
    }

    /// Queues a request for a worker and returns the receiver of its reply. A stuck worker delays
    /// other messages only for [`CONGESTION_TIMEOUT`].
    async fn enqueue<T>(
        &self,
        worker: usize,
        request: impl FnOnce(oneshot::Sender<T>) -> WorkerRequest,
    ) -> Option<oneshot::Receiver<T>> {
        tokio::time::timeout(CONGESTION_TIMEOUT, self.hub.enqueue(worker, request)).await.ok()?.ok()
    }

    /// Queues an operation for the workers that must execute it. If it names a client, the
    /// returned future answers the requester.
    async fn execute(
        &self,
        requester: &str,
        operation: Operation<'_, ClientRequest>,
    ) -> Option<PendingAnswer> {
        let Operation { target, action } = operation;
        let request = match &target {
            Target::Client(ClientRequest { request, .. }) => Some(*request),
            Target::User(_) | Target::All => None,
        };
        let find = |named: &ClientRequest| self.hub.connection_id(&named.client).ok_or(ClientNotFound);
        let mut last_reply = None;
        if let Ok(target) = target.try_map_client(find) {
            let target = target.into_owned();
            for (worker, operation) in self.hub.worker_operations(&target, &action) {
                last_reply = self.enqueue(worker, |reply| WorkerRequest::Execute { operation, reply }).await;
            }
        }
        let (request, broker) = (request?, self.hub.broker.clone()?);
        let requester = requester.to_owned();
        Some(Box::pin(async move {
            // A client is on one worker, so the last reply is the only one.
            let reached = match last_reply {
                Some(reply) => reply.await.ok().flatten(),
                None => None,
            };
            broker.answer(&requester, request, cluster_query::reply_to_operation(reached));
        }))
    }
}

impl MessageHandler for ClusterReceiver {
    async fn handle(&self, envelope: Envelope<'_>) -> Option<PendingAnswer> {
        let requester = envelope.origin.node;
        match envelope.message {
            Message::Publish { topic, from, trace, payload } => {
                self.wait_until_uncongested().await;
                self.publish(&topic, payload, from.as_ref(), &trace);
                None
            }
            Message::Operation(operation) => self.execute(requester, operation).await,
            Message::Query { request, text } => {
                let broker = self.hub.broker.clone()?;
                // A query of a later version gets no answer. The requester then lists this node
                // among the unanswered.
                let query = ClusterQuery::parse(text)?;
                let (hub, requester) = (Arc::clone(&self.hub), requester.to_owned());
                Some(Box::pin(async move {
                    if let Some(answer) = cluster_query::answer_query(&hub, query).await {
                        broker.answer(&requester, request, &answer);
                    }
                }))
            }
            Message::Probe { number } => {
                self.hub.canary.on_broker_probe(number, &self.hub);
                None
            }
            // Other kinds are handled by the driver, or belong to a later version.
            _ => None,
        }
    }

    fn connections(&self) -> u64 {
        self.hub.metrics.connections()
    }
}
