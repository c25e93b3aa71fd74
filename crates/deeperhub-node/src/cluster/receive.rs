//! Handling of messages from other nodes.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use ahash::RandomState;
use deeperhub_cluster::{
    AppendError, AppendNumber, Appended, ClientRequest, Envelope, Message, MessageHandler, PendingAnswer,
};
use deeperhub_protocol::message::TraceContext;
use deeperhub_protocol::{ClientId, RawJson, Topic};
use tokio::sync::oneshot;

use super::answer::answer_query;
use super::query::{self, ClusterQuery};
use super::recent_positions::RecentPositions;
use crate::hub::Hub;
use crate::operation::{Operation, Target};
use crate::planted::planted;
use crate::streams::HubPublisher;
use crate::types::ClientNotFound;
use crate::worker::request::WorkerRequest;

/// Maximum time that a message from another node waits while a worker is congested. Afterwards the
/// message is delivered anyway, so that one stuck worker does not stop all messages of the cluster.
const CONGESTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Handler of messages from other nodes.
#[derive(Debug)]
pub(crate) struct ClusterReceiver {
    hub: Arc<Hub>,
    hasher: RandomState,
    /// Publisher of the driver's thread.
    publisher: RefCell<HubPublisher>,
    recent_positions: RefCell<RecentPositions>,
    /// Time of the current burst, which is read once.
    burst_time: Cell<Option<Instant>>,
    /// The last publisher, and its source number.
    last_source: RefCell<Option<(ClientId, u64)>>,
}

impl ClusterReceiver {
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        let publisher = RefCell::new(hub.router.deferred_publisher());
        let recent_positions = RefCell::new(RecentPositions::new());
        let (burst_time, last_source) = (Cell::new(None), RefCell::default());
        Self { hub, hasher: RandomState::new(), publisher, recent_positions, burst_time, last_source }
    }

    fn publish(
        &self,
        topic: &Topic<'_>,
        payload: RawJson<'_>,
        from: Option<&ClientId>,
        trace: &TraceContext<'_>,
    ) {
        let from = from.map(|from| (from, self.source_of(from)));
        let now = self.burst_time.get().unwrap_or_else(Instant::now);
        self.burst_time.set(Some(now));
        self.hub.deliver_remote(&mut self.publisher.borrow_mut(), topic, payload, from, trace, now);
    }

    /// Returns the source number of a publisher whose messages the broker sends.
    ///
    /// No client of this node has a source number with the highest bit. The messages of a publisher
    /// thus keep the order in which the broker sent them, also across topics.
    fn source_of(&self, publisher: &ClientId) -> u64 {
        let mut last = self.last_source.borrow_mut();
        match &*last {
            Some((id, source)) if id == publisher => *source,
            _ => last.insert((publisher.clone(), self.hasher.hash_one(publisher) | 1 << 63)).1,
        }
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
            broker.answer(&requester, request, query::reply_to_operation(reached));
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
            // Topics of clients do not start so.
            Message::Stored { position, ref topic, .. } if topic.as_str().starts_with('$') => {
                if let Some(store) = &self.hub.streams.cluster {
                    store.probe.on_received(topic, position);
                }
                None
            }
            Message::Stored { position, ref topic, ref from, .. } => {
                let hash = self.hasher.hash_one(topic.as_str());
                let is_copy = !self.recent_positions.borrow_mut().is_new(hash, position);
                self.wait_until_uncongested().await;
                let source = from.as_ref().map(|from| self.source_of(from));
                let message = (requester, &envelope.message);
                self.hub.apply_stored(&mut self.publisher.borrow_mut(), message, source, is_copy);
                None
            }
            Message::StreamReset { epoch, topic, .. } => {
                self.hub.on_stream_reset(&topic, epoch);
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
                    if let Some(answer) = answer_query(&hub, query).await {
                        broker.answer(&requester, request, &answer);
                    }
                }))
            }
            Message::Probe { number } => {
                self.hub.canary.on_broker_probe(number, &*self.hub);
                None
            }
            // Other kinds are handled by the driver, or belong to a later version.
            _ => None,
        }
    }

    fn on_appended(&self, number: AppendNumber, outcome: Result<Appended, AppendError>) {
        if let Some(store) = &self.hub.streams.cluster {
            store.on_appended(number, outcome, &self.hub.config.tracer);
        }
    }

    fn on_disconnected(&self) {
        if !planted!(OutageLearntLate) {
            self.hub.on_store_away();
        }
    }

    fn flush(&self) {
        self.publisher.borrow_mut().flush_wakeups();
        self.burst_time.set(None);
    }

    fn connections(&self) -> u64 {
        self.hub.metrics.connections()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake, Waker};

    use deeperhub_cluster::Origin;
    use deeperhub_protocol::Subscription;
    use deeperhub_router::{DeliveryFlow, ShardId};

    use super::*;
    use crate::streams::HubShard;
    use crate::{Config, Node};

    #[derive(Default)]
    struct WakeCount(AtomicUsize);

    impl Wake for WakeCount {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Delivers all messages to a worker, and returns their number. The worker then sleeps.
    fn deliver(shard: &mut HubShard, count: &Arc<WakeCount>) -> usize {
        let (waker, mut delivered) = (Waker::from(Arc::clone(count)), 0);
        let mut deliver = |_, _: &crate::delivery::Delivery| {
            delivered += 1;
            DeliveryFlow::Continue
        };
        while shard.poll_deliver(&mut Context::from_waker(&waker), &mut deliver).is_ready() {}
        delivered
    }

    #[test]
    fn a_burst_of_another_node_wakes_each_worker_once() {
        const MESSAGES: usize = 50;
        let mut config = Config::default();
        config.listener.workers = 2;
        config.canary.interval = Duration::ZERO;
        let node = Node::start(([127, 0, 0, 1], 0).into(), config).unwrap();
        let hub = Arc::clone(&node.handle().hub);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(node.stop());
        // This test acts as the workers of the stopped node.
        let mut workers = [0, 1].map(|shard| {
            let mut worker = hub.router.attach(ShardId(shard));
            worker.subscribe(0, &Subscription::parse("a").unwrap());
            let count = Arc::new(WakeCount::default());
            assert_eq!(deliver(&mut worker, &count), 0);
            (worker, count)
        });
        let receiver = ClusterReceiver::new(hub);
        for sequence in 0..MESSAGES as u64 {
            let message = Message::Publish {
                topic: Topic::parse("a").unwrap(),
                from: ClientId::parse("other.0-0-0"),
                trace: TraceContext::default(),
                payload: RawJson::parse("1").unwrap(),
            };
            let origin = Origin { node: "other", incarnation: 1 };
            let answer = runtime.block_on(receiver.handle(Envelope { origin, sequence, message }));
            assert!(answer.is_none());
        }
        let woken = |workers: &[(HubShard, Arc<WakeCount>)]| {
            workers.iter().map(|(_, count)| count.0.load(Ordering::Relaxed)).collect::<Vec<_>>()
        };
        assert_eq!(woken(&workers), [0, 0]);
        receiver.flush();
        receiver.flush();
        assert_eq!(woken(&workers), [1, 1]);
        for (worker, count) in &mut workers {
            assert_eq!(deliver(worker, count), MESSAGES);
        }
    }
}
