use std::sync::Arc;
use std::time::{Duration, Instant};

use deeperhub_events::{EventFilter, EventStream};
use deeperhub_listener::{Key, Listener};
use deeperhub_metrics::{Format, MetricSnapshot};
use deeperhub_protocol::message::{ServerMessage, TraceContext};
use deeperhub_protocol::{ClientId, RawJson, Subscription, Topic};
use tokio::sync::{oneshot, watch};

use crate::config::Config;
use crate::health::Health;
use crate::hub::{Hub, Request};
use crate::id::Place;
use crate::phase::Phase;
use crate::stats::Stats;
use crate::top::Top;
use crate::trace::{MessageSpan, Tracer};

/// A running node, for backends and embedding programs. Cheap to clone, `Send + Sync`.
///
/// A request waits while the worker that carries it out is behind; none is lost.
#[derive(Debug, Clone)]
pub struct NodeHandle {
    pub(crate) hub: Arc<Hub>,
    pub(crate) listener: Arc<Listener>,
}

/// What a publish or a send reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivered {
    /// Subscriptions matched on this node (publish), or connections reached (sends).
    pub count: u64,
    /// The cluster could not be reached: other nodes did not get it.
    pub cluster_unavailable: bool,
}

/// One connection as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientInfo {
    /// Its name.
    pub client_id: ClientId,
    /// The user of its token; `None` without one.
    pub user: Option<String>,
    /// Topics and patterns it is subscribed to.
    pub subscriptions: Vec<String>,
}

/// One topic or pattern that is subscribed to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicInfo {
    /// The topic, or the pattern as such.
    pub topic: String,
    /// Its subscribers on this node.
    pub subscribers: u64,
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// At most as many as asked for.
    pub items: Vec<T>,
    /// Where to go on; `None` at the end. URL-safe.
    pub next_cursor: Option<String>,
}

/// No connection of this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no client of this id is connected")]
pub struct ClientNotFound;

/// The cursor does not come from an earlier page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cursor is not one that a page gave")]
pub struct CursorError;

impl NodeHandle {
    pub(crate) fn new(hub: Arc<Hub>, listener: Arc<Listener>) -> Self {
        Self { hub, listener }
    }

    /// Publishes to a topic, in a trace where `trace` names one. Never waits.
    pub fn publish(&self, topic: &Topic<'_>, message: RawJson<'_>, trace: &TraceContext<'_>) -> Delivered {
        let tracer = &self.hub.config.tracer;
        let span = MessageSpan::begin(tracer, trace, None);
        let active = span.as_ref().map(|span| &span.span);
        let published = self.hub.publish(topic, message, None, Instant::now(), active);
        self.hub.top.publish(topic.as_str(), published.subscribers, message.as_str().len());
        if let Some(mut span) = span {
            span.subscribers = Some(published.subscribers);
            tracer.record(|| span.end_of_publish(topic.as_str(), message.as_str().len()));
        }
        Delivered { count: published.subscribers, cluster_unavailable: false }
    }

    /// Sends an object (see `message::check_server_object`) to one client.
    ///
    /// # Errors
    ///
    /// [`ClientNotFound`], also when the client is being closed.
    pub async fn send_to_client(
        &self,
        client: &ClientId,
        message: RawJson<'_>,
    ) -> Result<(), ClientNotFound> {
        let to = self.place(client)?;
        let frame = ServerMessage::Raw(message).to_frame();
        match self.ask(to.worker.into(), |reply| Request::Send { to, frame, reply }).await {
            Some(true) => Ok(()),
            _ => Err(ClientNotFound),
        }
    }

    /// Sends to every connection of a user.
    pub async fn send_to_user(&self, user: &str, message: RawJson<'_>) -> Delivered {
        let frame = ServerMessage::Raw(message).to_frame();
        let mut count = 0;
        for worker in 0..self.hub.requests.len() {
            let (user, frame) = (user.to_owned(), frame.fork());
            count += self
                .ask(worker, |reply| Request::SendToUser { user, frame, reply })
                .await
                .unwrap_or_default();
        }
        Delivered { count, cluster_unavailable: false }
    }

    /// Sends to every client that is connected now; where tokens are required, to those with one.
    pub async fn broadcast(&self, message: RawJson<'_>) -> Delivered {
        let frame = ServerMessage::Raw(message).to_frame();
        // All workers begin before the first is waited for.
        let mut replies = Vec::with_capacity(self.hub.requests.len());
        for requests in &self.hub.requests {
            let (reply, answer) = oneshot::channel();
            if requests.send(Request::Broadcast { frame: frame.fork(), reply }).await.is_ok() {
                replies.push(answer);
            }
        }
        let mut count = 0;
        for answer in replies {
            count += answer.await.unwrap_or_default();
        }
        Delivered { count, cluster_unavailable: false }
    }

    /// Ends a client's subscription to a topic or a pattern, which it is told by an `unsubscribed` without an `id`.
    /// False: it had none to this very topic or pattern, and is told nothing.
    ///
    /// # Errors
    ///
    /// [`ClientNotFound`], also when the client is being closed.
    pub async fn unsubscribe_client(
        &self,
        client: &ClientId,
        topic: &Subscription<'_>,
    ) -> Result<bool, ClientNotFound> {
        let client = self.place(client)?;
        let topic = topic.borrow().into_owned();
        let ended =
            self.ask(client.worker.into(), |reply| Request::Unsubscribe { client, topic, reply }).await;
        ended.flatten().ok_or(ClientNotFound)
    }

    /// Ends the subscriptions of a user's connections to a topic or a pattern, and answers of how many.
    pub async fn unsubscribe_user(&self, user: &str, topic: &Subscription<'_>) -> u64 {
        let mut count = 0;
        for worker in 0..self.hub.requests.len() {
            let (user, topic) = (user.to_owned(), topic.borrow().into_owned());
            let ended = self.ask(worker, |reply| Request::UnsubscribeUser { user, topic, reply }).await;
            count += ended.unwrap_or_default();
        }
        count
    }

    /// The node's numbers now.
    pub fn stats(&self) -> Stats {
        Stats::of(&self.hub)
    }

    /// The busiest topics and clients, at most `limit` of each. Counting begins with the first question and ends half a
    /// minute after the last one. A worker that does not answer within a second is left out.
    pub async fn top(&self, limit: usize) -> Top {
        let now = Instant::now();
        self.hub.top.want(now);
        let mut report = self.hub.top.report(now);
        for worker in 0..self.hub.requests.len() {
            let asked = self.ask(worker, |reply| Request::Top { reply });
            if let Ok(Some(part)) = tokio::time::timeout(Duration::from_secs(1), asked).await {
                report.add(part);
            }
        }
        report.top(limit)
    }

    /// Closes a connection with 4003.
    ///
    /// # Errors
    ///
    /// [`ClientNotFound`], also when the client is being closed already.
    pub async fn disconnect(&self, client: &ClientId) -> Result<(), ClientNotFound> {
        let client = self.place(client)?;
        match self.ask(client.worker.into(), |reply| Request::Disconnect { client, reply }).await {
            Some(true) => Ok(()),
            _ => Err(ClientNotFound),
        }
    }

    /// Closes every connection of a user with 4003.
    ///
    /// It keeps nobody out: a client with a token that is still good may come back.
    pub async fn disconnect_user(&self, user: &str) -> Delivered {
        let mut count = 0;
        for worker in 0..self.hub.requests.len() {
            let user = user.to_owned();
            count +=
                self.ask(worker, |reply| Request::DisconnectUser { user, reply }).await.unwrap_or_default();
        }
        Delivered { count, cluster_unavailable: false }
    }

    /// One connection.
    ///
    /// # Errors
    ///
    /// [`ClientNotFound`], also when the client is being closed.
    pub async fn client(&self, client: &ClientId) -> Result<ClientInfo, ClientNotFound> {
        let client = self.place(client)?;
        let info = self.ask(client.worker.into(), |reply| Request::Client { client, reply }).await;
        info.flatten().ok_or(ClientNotFound)
    }

    /// Connections, a page at a time. A client that stays connected through a whole listing appears exactly once.
    ///
    /// # Errors
    ///
    /// [`CursorError`].
    pub async fn clients(&self, cursor: Option<&str>, limit: usize) -> Result<Page<ClientInfo>, CursorError> {
        let (mut worker, mut from) = cursor.map_or(Ok((0, 0)), parse_cursor)?;
        let mut items = Vec::new();
        while worker < self.hub.requests.len() {
            let left = limit.saturating_sub(items.len());
            let page = self.ask(worker, |reply| Request::Clients { from, limit: left, reply }).await;
            let next = page.and_then(|(clients, next)| {
                items.extend(clients);
                next
            });
            if let Some(next) = next {
                return Ok(Page { items, next_cursor: Some(format!("{worker:x}-{next:x}")) });
            }
            (worker, from) = (worker + 1, 0);
        }
        Ok(Page { items, next_cursor: None })
    }

    /// What is subscribed to, a page at a time.
    ///
    /// # Errors
    ///
    /// [`CursorError`].
    pub fn topics(&self, cursor: Option<&str>, limit: usize) -> Result<Page<TopicInfo>, CursorError> {
        let page = self.hub.router.list(cursor, limit).map_err(|_| CursorError)?;
        let info = |(topic, subscribers)| TopicInfo { topic, subscribers };
        Ok(Page { items: page.topics.into_iter().map(info).collect(), next_cursor: page.next_cursor })
    }

    /// One topic or pattern; one that nobody subscribes to has 0 subscribers.
    pub fn topic(&self, topic: &Subscription<'_>) -> TopicInfo {
        let subscribers = self.hub.router.subscribers(topic);
        TopicInfo { topic: topic.as_str().to_owned(), subscribers }
    }

    /// What happens from now on. `None`: too many observers.
    pub fn events(&self, filter: EventFilter) -> Option<EventStream> {
        self.hub.bus.subscribe(filter)
    }

    /// Where the node is in its life.
    pub fn phase(&self) -> Phase {
        *self.hub.phase.borrow()
    }

    /// Takes other limits from `config`, of connections, subscriptions, rates, bytes of a message and of a queue, and
    /// other origins. The rest stays as it was at the start. Workers follow with their next round, within a second.
    pub fn reconfigure(&self, config: &Config) {
        let current = self.hub.live.current();
        let mut next = (*current).clone();
        next.origins = config.origins.clone();
        next.rate_limit = config.rate_limit;
        next.byte_rate_limit = config.byte_rate_limit;
        next.max_subscriptions = config.max_subscriptions;
        next.listener.max_connections = config.listener.max_connections;
        next.listener.max_connections_per_ip = config.listener.max_connections_per_ip;
        next.listener.max_message_bytes = config.listener.max_message_bytes;
        next.listener.max_queue_bytes = config.listener.max_queue_bytes;
        self.listener.reconfigure(&next.listener);
        self.hub.live.replace(next);
    }

    /// Whether the node should get traffic: it serves, and every worker delivers.
    pub fn health(&self) -> Health {
        Health::new(self.phase(), &self.hub.canary)
    }

    /// Tells of changes of [`Self::phase`].
    pub fn watch_phase(&self) -> watch::Receiver<Phase> {
        self.hub.phase.subscribe()
    }

    /// All metrics as text for Prometheus.
    pub fn metrics_text(&self, format: Format) -> String {
        self.hub.registry.encode_as(format)
    }

    /// All metrics as numbers.
    pub fn metrics_snapshot(&self) -> Vec<MetricSnapshot<'_>> {
        self.hub.registry.snapshot()
    }

    /// What records this node's traces.
    pub fn tracer(&self) -> &Tracer {
        &self.hub.config.tracer
    }

    /// The name that this node's client ids begin with.
    pub fn node_id(&self) -> &str {
        &self.hub.node_id
    }

    /// Starts the drain: no new connections, the others are closed with 1001 spread over `time`; returns when all are
    /// gone or the time is over.
    pub async fn drain(&self, time: Duration) {
        self.hub.phase.send_if_modified(|phase| {
            let drains = *phase < Phase::Draining;
            if drains {
                *phase = Phase::Draining;
            }
            drains
        });
        self.listener.drain(time).await;
    }

    fn place(&self, client: &ClientId) -> Result<Place, ClientNotFound> {
        Place::of(client, &self.hub.node_id).ok_or(ClientNotFound)
    }

    /// Asks a worker. `None`: it does not exist, or has ended.
    async fn ask<T>(&self, worker: usize, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.hub.requests.get(worker)?.send(request(reply)).await.ok()?;
        answer.await.ok()
    }
}

fn parse_cursor(cursor: &str) -> Result<(usize, Key), CursorError> {
    let (worker, key) = cursor.split_once('-').ok_or(CursorError)?;
    let worker = usize::from_str_radix(worker, 16).map_err(|_| CursorError)?;
    let key = Key::from_str_radix(key, 16).map_err(|_| CursorError)?;
    Ok((worker, key))
}
