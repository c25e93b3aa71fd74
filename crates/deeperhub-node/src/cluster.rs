//! The node as one of many: what goes to the others, and what comes from them.

use std::future::poll_fn;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use deeperhub_cluster::{
    Broker, ClusterState, Driver, DriverHandle, Envelope, InterestChange, JoinOutcome, Message,
    MessageHandler, PendingAnswer, PublishError,
};
use deeperhub_protocol::frame::Frame;
use deeperhub_protocol::message::{ClusterFault, ServerMessage, TraceContext};
use deeperhub_protocol::{ClientId, RawJson, Topic};
use deeperhub_router::Router;
use tokio::sync::oneshot;

use crate::gather::{self, Question};
use crate::hub::{Delivery, Hub, Request};
use crate::id::Place;

/// How long the start waits for the broker; then the node serves its own clients until it is reached.
const START: Duration = Duration::from_secs(3);

/// Minimum time that a stop waits to flush messages to the broker. It waits longer if the drain has
/// time left.
const FLUSH: Duration = Duration::from_secs(2);

/// Extra time that a stop waits for a driver that is stuck.
const STUCK: Duration = Duration::from_secs(2);

/// How long messages of other nodes wait for a worker that is behind. After it they are handed over nonetheless: what
/// piles up elsewhere meanwhile is bounded, and a client that is too slow is closed.
const RELIEF: Duration = Duration::from_secs(1);

/// Part of a cluster.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClusterConfig {
    /// The broker, and how to reach it.
    pub broker: deeperhub_cluster::Config,
    /// Whether the node counts as ready while the broker cannot be reached. Default: no.
    pub ready_alone: bool,
}

impl ClusterConfig {
    /// With the defaults.
    #[must_use]
    pub const fn new(broker: deeperhub_cluster::Config) -> Self {
        Self { broker, ready_alone: false }
    }
}

/// The thread that keeps the connection to the broker; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct ClusterThread {
    broker: Broker,
    running: Option<DriverHandle>,
}

impl ClusterThread {
    /// Starts it and waits for the first attempt, at most a while.
    pub(crate) fn start(
        hub: &Arc<Hub>,
        broker: Broker,
        driver: Driver,
    ) -> io::Result<(Self, Option<JoinOutcome>)> {
        let receiver = Receiver { hub: Arc::clone(hub), hasher: RandomState::new() };
        let running = driver.spawn(receiver)?;
        let start = running.wait_for_join(START);
        Ok((Self { broker, running: Some(running) }, start))
    }

    /// Flushes queued messages, says goodbye to the other nodes, and ends. Waits up to `deadline`,
    /// or [`FLUSH`] if that is later.
    pub(crate) async fn stop(mut self, deadline: Option<Instant>) {
        let least = Instant::now() + FLUSH;
        let deadline = deadline.map_or(least, |deadline| deadline.max(least));
        self.broker.stop(deadline);
        if let Some(running) = self.running.take() {
            // The driver keeps to the deadline unless it is stuck in the system.
            let end = deadline.checked_add(STUCK).unwrap_or(deadline);
            let _ = tokio::time::timeout_at(end.into(), running.wait_for_end()).await;
        }
    }
}

impl Drop for ClusterThread {
    fn drop(&mut self) {
        if self.running.is_some() {
            self.broker.stop(Instant::now());
        }
    }
}

/// Tells the broker which topics have a subscriber here.
pub(crate) fn follow_interest(router: &Router<Delivery>, broker: &Broker) {
    let broker = broker.clone();
    router.observe_interest(move |name, interest| {
        // Those are the server's own.
        if !name.starts_with('$') {
            let interest = match interest {
                deeperhub_router::InterestChange::Gained => InterestChange::Gained,
                deeperhub_router::InterestChange::Lost => InterestChange::Lost,
            };
            broker.change_interest(name, interest);
        }
    });
}

impl Hub {
    /// Hands a publish of this node to the broker for the other nodes. Returns the fault if they do
    /// not get it.
    pub(crate) fn publish_to_others(
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
        self.send_to_others(message)
    }

    /// Hands a message to the broker for other nodes. Returns the fault if they do not get it.
    pub(crate) fn send_to_others(&self, message: Message<'_>) -> Option<ClusterFault> {
        match self.broker.as_ref()?.publish(message) {
            Ok(()) => None,
            Err(PublishError::TooLarge) => Some(ClusterFault::TooLarge),
            Err(_) => Some(ClusterFault::Unavailable),
        }
    }

    /// Since when and why the cluster cannot be reached; `None`: it can, or there is none.
    pub(crate) fn cluster_fault(&self) -> Option<String> {
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

/// What comes from other nodes.
#[derive(Debug)]
struct Receiver {
    hub: Arc<Hub>,
    hasher: RandomState,
}

impl Receiver {
    fn publish(
        &self,
        topic: &Topic<'_>,
        payload: RawJson<'_>,
        from: Option<&ClientId>,
        trace: &TraceContext<'_>,
    ) {
        // A number that no client of this node has, so that a remote publisher keeps its order over topics as far as
        // the broker kept it.
        let source = from.map(|from| self.hasher.hash_one(from) | 1 << 63);
        self.hub.deliver_of_others(topic, payload, from, source, trace);
    }

    /// Waits until the workers have caught up.
    async fn relief(&self) {
        let router = &self.hub.router;
        if router.is_congested() {
            let relieved = poll_fn(|cx| {
                if router.wake_when_uncongested(cx.waker()) { Poll::Pending } else { Poll::Ready(()) }
            });
            let _ = tokio::time::timeout(RELIEF, relieved).await;
        }
    }

    /// Hands a request to a worker, and gives what waits for its reply. One that is stuck holds up the others only
    /// shortly.
    async fn post<T>(
        &self,
        worker: usize,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Option<oneshot::Receiver<T>> {
        tokio::time::timeout(RELIEF, self.hub.post(worker, request)).await.ok()?.ok()
    }

    /// Hands a request to every worker, and does not wait for replies.
    async fn tell_all<T: 'static>(&self, request: impl Fn(oneshot::Sender<T>) -> Request) {
        for worker in 0..self.hub.requests.len() {
            drop(self.post(worker, &request).await);
        }
    }

    /// Carries out a request to one client, and answers whether it was there.
    async fn to_client(
        &self,
        asker: &str,
        request: u64,
        client: &ClientId,
        make: impl FnOnce(Place, oneshot::Sender<bool>) -> Request,
    ) -> Option<PendingAnswer> {
        let broker = self.hub.broker.clone()?;
        let place = Place::of(client, &self.hub.node_id);
        let answer = match place {
            Some(place) => self.post(place.worker.into(), |reply| make(place, reply)).await,
            None => None,
        };
        let asker = asker.to_owned();
        Some(Box::pin(async move {
            let found = match answer {
                Some(answer) => answer.await.unwrap_or(false),
                None => false,
            };
            broker.answer(&asker, request, if found { gather::FOUND } else { gather::NOT_FOUND });
        }))
    }
}

fn raw(payload: RawJson<'_>) -> Frame {
    ServerMessage::Raw(payload).to_frame()
}

impl MessageHandler for Receiver {
    async fn handle(&self, envelope: Envelope<'_>) -> Option<PendingAnswer> {
        let asker = envelope.origin.node;
        match envelope.message {
            Message::Publish { topic, from, trace, payload } => {
                self.relief().await;
                self.publish(&topic, payload, from.as_ref(), &trace);
                None
            }
            Message::Send { request, client, payload } => {
                let frame = raw(payload);
                self.to_client(asker, request, &client, |to, reply| Request::Send { to, frame, reply }).await
            }
            Message::Disconnect { request, client } => {
                let make = |client, reply| Request::Disconnect { client, reply };
                self.to_client(asker, request, &client, make).await
            }
            Message::SendToUser { user, payload } => {
                let frame = raw(payload);
                self.tell_all(|reply| Request::SendToUser {
                    user: user.to_owned(),
                    frame: frame.fork(),
                    reply,
                })
                .await;
                None
            }
            Message::Unsubscribe { request, client, topic } => {
                let topic = topic.into_owned();
                let broker = self.hub.broker.clone()?;
                let place = Place::of(&client, &self.hub.node_id);
                let ended = match place {
                    Some(client) => {
                        let make = |reply| Request::Unsubscribe { client, topic, reply };
                        self.post(client.worker.into(), make).await
                    }
                    None => None,
                };
                let asker = asker.to_owned();
                Some(Box::pin(async move {
                    let ended = match ended {
                        Some(ended) => ended.await.ok().flatten(),
                        None => None,
                    };
                    let answer = match ended {
                        Some(true) => gather::FOUND,
                        Some(false) => gather::NONE,
                        None => gather::NOT_FOUND,
                    };
                    broker.answer(&asker, request, answer);
                }))
            }
            Message::UnsubscribeUser { user, topic } => {
                let topic = topic.into_owned();
                self.tell_all(|reply| Request::UnsubscribeUser {
                    user: user.to_owned(),
                    topic: topic.clone(),
                    reply,
                })
                .await;
                None
            }
            Message::DisconnectUser { user } => {
                self.tell_all(|reply| Request::DisconnectUser { user: user.to_owned(), reply }).await;
                None
            }
            Message::Broadcast { payload } => {
                let frame = raw(payload);
                self.tell_all(|reply| Request::Broadcast { frame: frame.fork(), reply }).await;
                None
            }
            Message::Query { request, text } => {
                let broker = self.hub.broker.clone()?;
                // A question of a later version is not answered; who asked is told that this node did not.
                let question = Question::parse(text)?;
                let (hub, asker) = (Arc::clone(&self.hub), asker.to_owned());
                Some(Box::pin(async move {
                    if let Some(answer) = gather::answer(&hub, question).await {
                        broker.answer(&asker, request, &answer);
                    }
                }))
            }
            Message::Probe { number } => {
                self.hub.canary.came_through_broker(number, &self.hub);
                None
            }
            // Kinds that a later version brings, and what the driver keeps to itself.
            _ => None,
        }
    }

    fn connections(&self) -> u64 {
        self.hub.metrics.connections()
    }
}
