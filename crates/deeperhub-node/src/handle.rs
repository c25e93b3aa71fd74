use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deeperhub_cluster::{Message, Refused, RequestError, State};
use deeperhub_events::{EventFilter, EventStream};
use deeperhub_listener::{ConnectionKey, Listener, ReturnTo};
use deeperhub_metrics::{Format, MetricSnapshot};
use deeperhub_protocol::message::{ClusterFault, ServerMessage, TraceContext};
use deeperhub_protocol::{ClientId, RawJson, Subscription, Topic};
use tokio::sync::watch;

use crate::ask::Unanswered;
use crate::config::Config;
use crate::gather;
use crate::health::Health;
use crate::hub::{Hub, Request};
use crate::id::{Place, is_node_id};
use crate::phase::Phase;
use crate::stats::Stats;
use crate::top::Top;
use crate::trace::{MessageSpan, Tracer};

/// A running node, for backends and embedding programs. Cheap to clone, `Send + Sync`.
///
/// A call waits while the worker that carries it out is behind, at most [`Config::answer_timeout`]; none overtakes what
/// was published before it.
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
    /// Fault that kept it from other nodes. `None`: they got it, or there are none.
    pub cluster: Option<ClusterFault>,
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

/// Bytes of names after which a page of connections ends, whatever its limit. Subscriptions may
/// take 32 KiB per connection.
pub(crate) const CLIENTS_BYTES: usize = 512 * 1024;

impl ClientInfo {
    /// Returns its approximate size in memory and in an answer.
    pub(crate) fn bytes(&self) -> usize {
        let user = self.user.as_ref().map_or(0, String::len);
        let names: usize = self.subscriptions.iter().map(|name| name.len() + size_of::<String>()).sum();
        size_of::<Self>() + self.client_id.as_str().len() + user + names
    }
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

/// Another node of the cluster has this one's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("another node of the cluster is named {0:?}: give each node a name of its own")]
pub struct NodeIdTaken(pub String);

/// Why one client was not reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// No connection of this id is open on any node, or its node did not answer in time.
    #[error(transparent)]
    NotFound(#[from] ClientNotFound),
    /// The client's worker did not answer in time.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
    /// The client is another node's, and the cluster cannot be reached or takes no more.
    #[error("the client is connected to another node, and the cluster cannot be reached")]
    ClusterUnavailable,
    /// The client is connected to another node, and the broker does not take messages of this size.
    #[error(
        "the client is connected to another node, and the message is larger than the cluster's broker takes"
    )]
    TooLarge,
}

/// The cursor does not come from an earlier page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cursor is not one that a page gave")]
pub struct CursorError;

/// Why there is no page of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    /// The cursor does not come from an earlier page.
    #[error(transparent)]
    Cursor(#[from] CursorError),
    /// A worker did not answer in time.
    #[error(transparent)]
    Unanswered(#[from] Unanswered),
}

impl NodeHandle {
    pub(crate) fn new(hub: Arc<Hub>, listener: Arc<Listener>) -> Self {
        Self { hub, listener }
    }

    /// Publishes to a topic, on all nodes, in a trace where `trace` names one. Never waits.
    pub fn publish(&self, topic: &Topic<'_>, message: RawJson<'_>, trace: &TraceContext<'_>) -> Delivered {
        let tracer = &self.hub.config.tracer;
        let span = MessageSpan::begin_for_server(tracer, trace);
        let active = span.as_ref().map(|span| &span.span);
        let published = self.hub.publish(topic, message, None, Instant::now(), active);
        self.hub.top.publish(topic.as_str(), published.subscribers, message.as_str().len());
        if let Some(mut span) = span {
            span.subscribers = Some(published.subscribers);
            tracer.record(|| span.end_of_publish(topic.as_str(), message.as_str().len()));
        }
        Delivered { count: published.subscribers, cluster: published.cluster }
    }

    /// Publishes to the other nodes only, to complete a publish that returned a fault in
    /// [`Delivered::cluster`]. Returns the fault if they do not get it this time either. Never
    /// waits.
    pub fn publish_to_others(
        &self,
        topic: &Topic<'_>,
        message: RawJson<'_>,
        trace: &TraceContext<'_>,
    ) -> Option<ClusterFault> {
        let tracer = &self.hub.config.tracer;
        let span = MessageSpan::begin(tracer, trace, None);
        let traceparent = span.as_ref().map(|span| span.span.context().to_string());
        let context = TraceContext {
            traceparent: traceparent.as_deref().map(Cow::Borrowed),
            tracestate: span.as_ref().and_then(|span| span.span.tracestate()).map(Cow::Borrowed),
        };
        let fault = self.hub.publish_to_others(topic, message, None, context);
        if let Some(span) = span {
            tracer.record(|| span.end_of_publish(topic.as_str(), message.as_str().len()));
        }
        fault
    }

    /// Sends an object (see `message::check_server_object`) to one client, on whatever node it is.
    ///
    /// # Errors
    ///
    /// [`SendError`]; a client that is being closed is not found.
    pub async fn send_to_client(&self, client: &ClientId, message: RawJson<'_>) -> Result<(), SendError> {
        if let Some(node) = self.other_node(client) {
            let ask = |request| Message::Send { request, client: client.clone(), payload: message };
            return self.ask_for_client(node, ask).await;
        }
        let to = self.place(client)?;
        let frame = ServerMessage::Raw(message).to_frame();
        let found = self.hub.ask(to.worker.into(), |reply| Request::Send { to, frame, reply }).await?;
        if found { Ok(()) } else { Err(ClientNotFound.into()) }
    }

    /// Sends to every connection of a user, on all nodes; the count is this node's.
    ///
    /// # Errors
    ///
    /// [`Unanswered`]: the connections of a worker may get it later, all others got it.
    pub async fn send_to_user(&self, user: &str, message: RawJson<'_>) -> Result<Delivered, Unanswered> {
        let frame = ServerMessage::Raw(message).to_frame();
        let send = |reply| Request::SendToUser { user: user.to_owned(), frame: frame.fork(), reply };
        let count = self.hub.count(send).await;
        self.and_others(count, Message::SendToUser { user, payload: message })
    }

    /// Sends to every client that is connected now, on all nodes; where tokens are required, to those with one. The count
    /// is this node's.
    ///
    /// # Errors
    ///
    /// [`Unanswered`]: the clients of a worker may get it later, all others got it.
    pub async fn broadcast(&self, message: RawJson<'_>) -> Result<Delivered, Unanswered> {
        let frame = ServerMessage::Raw(message).to_frame();
        let count = self.hub.count(|reply| Request::Broadcast { frame: frame.fork(), reply }).await;
        self.and_others(count, Message::Broadcast { payload: message })
    }

    /// Ends a client's subscription to a topic or a pattern, on whatever node it is, which it is told by an `unsubscribed` without an `id`.
    /// False: it had none to this very topic or pattern, and is told nothing.
    ///
    /// # Errors
    ///
    /// [`SendError`]; a client that is being closed is not found.
    pub async fn unsubscribe_client(
        &self,
        client: &ClientId,
        topic: &Subscription<'_>,
    ) -> Result<bool, SendError> {
        if let Some(node) = self.other_node(client) {
            let topic = topic.borrow();
            let ask = |request| Message::Unsubscribe { request, client: client.clone(), topic };
            return self.ask_about_client(node, ask).await.map(|answer| answer == gather::FOUND);
        }
        let client = self.place(client)?;
        let topic = topic.borrow().into_owned();
        let unsubscribe = |reply| Request::Unsubscribe { client, topic, reply };
        self.hub.ask(client.worker.into(), unsubscribe).await?.ok_or(ClientNotFound.into())
    }

    /// Ends the subscriptions of a user's connections to a topic or a pattern, on all nodes; the count is
    /// this node's.
    ///
    /// # Errors
    ///
    /// [`Unanswered`]: those of a worker may end later, all others have ended.
    pub async fn unsubscribe_user(
        &self,
        user: &str,
        topic: &Subscription<'_>,
    ) -> Result<Delivered, Unanswered> {
        let owned = || (user.to_owned(), topic.borrow().into_owned());
        let unsubscribe = |reply| {
            let (user, topic) = owned();
            Request::UnsubscribeUser { user, topic, reply }
        };
        let count = self.hub.count(unsubscribe).await;
        self.and_others(count, Message::UnsubscribeUser { user, topic: topic.borrow() })
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
        let parts = self.hub.ask_workers(Duration::from_secs(1), |reply| Request::Top { reply }).await;
        parts.into_iter().flatten().for_each(|part| report.add(part));
        report.top(limit)
    }

    /// Closes a connection with 4003, on whatever node it is.
    ///
    /// # Errors
    ///
    /// [`SendError`]; a client that is being closed already is not found.
    pub async fn disconnect(&self, client: &ClientId) -> Result<(), SendError> {
        if let Some(node) = self.other_node(client) {
            let ask = |request| Message::Disconnect { request, client: client.clone() };
            return self.ask_for_client(node, ask).await;
        }
        let client = self.place(client)?;
        let found = self.hub.ask(client.worker.into(), |reply| Request::Disconnect { client, reply }).await?;
        if found { Ok(()) } else { Err(ClientNotFound.into()) }
    }

    /// Closes every connection of a user with 4003, on all nodes; the count is this node's.
    ///
    /// It keeps nobody out: a client with a token that is still good may come back.
    ///
    /// # Errors
    ///
    /// [`Unanswered`]: those of a worker may be closed later, all others are.
    pub async fn disconnect_user(&self, user: &str) -> Result<Delivered, Unanswered> {
        let disconnect = |reply| Request::DisconnectUser { user: user.to_owned(), reply };
        let count = self.hub.count(disconnect).await;
        self.and_others(count, Message::DisconnectUser { user })
    }

    /// One connection, on whatever node it is.
    ///
    /// # Errors
    ///
    /// [`SendError`]; a client that is being closed, or whose node does not answer, is not found.
    pub async fn client(&self, client: &ClientId) -> Result<ClientInfo, SendError> {
        if let Some(node) = self.other_node(client) {
            return self.client_of_other(node, client).await.ok_or(ClientNotFound.into());
        }
        let client = self.place(client)?;
        let info = self.hub.ask(client.worker.into(), |reply| Request::Client { client, reply }).await?;
        info.ok_or(ClientNotFound.into())
    }

    /// Lists connections of this node, a page at a time. A page also ends after 512 KiB of names. A
    /// client that stays connected through a whole listing appears exactly once.
    ///
    /// # Errors
    ///
    /// [`ListError`].
    pub async fn clients(&self, cursor: Option<&str>, limit: usize) -> Result<Page<ClientInfo>, ListError> {
        self.hub.clients(cursor, limit).await
    }

    /// What is subscribed to on this node, a page at a time.
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

    /// Takes other limits from `config`, of connections, subscriptions, rates, bytes of a handshake, of a message and of
    /// a queue, fragments and levels, and other origins. The rest stays as it was at the start. Workers follow with their next round, within a second.
    pub fn reconfigure(&self, config: &Config) {
        let current = self.hub.live.load();
        let mut next = Config::clone(&current);
        next.origins = config.origins.clone();
        next.rate_limit = config.rate_limit;
        next.byte_rate_limit = config.byte_rate_limit;
        next.control_rate_limit = config.control_rate_limit;
        next.token_rate_limit = config.token_rate_limit;
        next.max_json_depth = config.max_json_depth;
        next.max_subscriptions = config.max_subscriptions;
        next.listener.max_connections = config.listener.max_connections;
        next.listener.max_connections_per_ip = config.listener.max_connections_per_ip;
        next.listener.max_head_bytes = config.listener.max_head_bytes;
        next.listener.max_head_lines = config.listener.max_head_lines;
        next.listener.max_message_bytes = config.listener.max_message_bytes;
        next.listener.max_fragments = config.listener.max_fragments;
        next.listener.max_queue_bytes = config.listener.max_queue_bytes;
        next.listener.round_bytes = config.listener.round_bytes;
        next.listener.round_time = config.listener.round_time;
        self.listener.reconfigure(&next.listener);
        self.hub.live.store(Arc::new(next));
    }

    /// Whether the node should get traffic: it serves, every worker delivers, and so does the cluster's broker, where the
    /// node is not to serve without it.
    pub fn health(&self) -> Health {
        self.hub.health()
    }

    /// Tells of changes of [`Self::phase`].
    pub fn watch_phase(&self) -> watch::Receiver<Phase> {
        self.hub.phase.subscribe()
    }

    /// Waits until the node cannot go on, and says why: another node of the cluster has its name.
    pub async fn failed(&self) -> NodeIdTaken {
        if let Some(broker) = &self.hub.broker {
            let mut states = broker.watch();
            // An error: nothing changes any more.
            if states.wait_for(|state| *state == State::Taken).await.is_ok() {
                return NodeIdTaken(self.hub.node_id.clone());
            }
        }
        std::future::pending().await
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

    /// Starts the drain: refuses new connections, and closes the others with 1001, spread over
    /// `time`. Returns when all are gone or the time is over. If there are other nodes, clients are
    /// told to come back at once, one after the other. Otherwise they are told to come back after
    /// the drain and [`restart_time`](deeperhub_listener::Config::restart_time).
    pub async fn drain(&self, time: Duration) {
        if let Some(end) = Instant::now().checked_add(time) {
            let _ = self.hub.drained_by.set(end);
        }
        self.hub.phase.send_if_modified(|phase| {
            let drains = *phase < Phase::Draining;
            if drains {
                *phase = Phase::Draining;
            }
            drains
        });
        let has_others = self.hub.broker.as_ref().is_some_and(|broker| !broker.peers().is_empty());
        let return_to = if has_others { ReturnTo::OtherNodes } else { ReturnTo::ThisNode };
        self.listener.drain(time, return_to).await;
    }

    fn place(&self, client: &ClientId) -> Result<Place, ClientNotFound> {
        Place::of(client, &self.hub.node_id).ok_or(ClientNotFound)
    }

    /// The node that a client's id names, if it may be another of the cluster.
    fn other_node<'c>(&self, client: &'c ClientId) -> Option<&'c str> {
        let (node, _) = client.as_str().rsplit_once('.')?;
        (self.hub.broker.is_some() && node != self.hub.node_id && is_node_id(node)).then_some(node)
    }

    /// Asks another node to do something with a client.
    async fn ask_for_client<'m>(
        &self,
        node: &str,
        ask: impl FnOnce(u64) -> Message<'m>,
    ) -> Result<(), SendError> {
        self.ask_about_client(node, ask).await.map(drop)
    }

    /// As above, with the answer, where the client was found.
    async fn ask_about_client<'m>(
        &self,
        node: &str,
        ask: impl FnOnce(u64) -> Message<'m>,
    ) -> Result<String, SendError> {
        let Some(broker) = &self.hub.broker else { return Err(ClientNotFound.into()) };
        match broker.request(node, gather::DEADLINE, ask).await {
            Ok(answer) if answer != gather::NOT_FOUND => Ok(answer),
            Err(RequestError::Refused(Refused::TooLarge)) => Err(SendError::TooLarge),
            Err(RequestError::Refused(_)) => Err(SendError::ClusterUnavailable),
            _ => Err(ClientNotFound.into()),
        }
    }

    /// The other nodes are told too, also when a worker of this one does not answer.
    fn and_others(
        &self,
        count: Result<u64, Unanswered>,
        message: Message<'_>,
    ) -> Result<Delivered, Unanswered> {
        let cluster = self.hub.send_to_others(message);
        Ok(Delivered { count: count?, cluster })
    }
}

impl Hub {
    /// See [`NodeHandle::clients`].
    pub(crate) async fn clients(
        &self,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page<ClientInfo>, ListError> {
        let (mut worker, mut from) = cursor.map_or(Ok((0, 0)), parse_cursor)?;
        let (mut items, mut bytes) = (Vec::new(), 0);
        while worker < self.requests.len() {
            if bytes >= CLIENTS_BYTES {
                return Ok(Page { items, next_cursor: Some(format!("{worker:x}-{from:x}")) });
            }
            let left = limit.saturating_sub(items.len());
            let asked = self.ask(worker, |reply| Request::Clients { from, limit: left, reply });
            let (clients, next) = asked.await?;
            bytes += clients.iter().map(ClientInfo::bytes).sum::<usize>();
            items.extend(clients);
            if let Some(next) = next {
                return Ok(Page { items, next_cursor: Some(format!("{worker:x}-{next:x}")) });
            }
            (worker, from) = (worker + 1, 0);
        }
        Ok(Page { items, next_cursor: None })
    }
}

fn parse_cursor(cursor: &str) -> Result<(usize, ConnectionKey), CursorError> {
    let (worker, key) = cursor.split_once('-').ok_or(CursorError)?;
    let worker = usize::from_str_radix(worker, 16).map_err(|_| CursorError)?;
    let key = ConnectionKey::from_str_radix(key, 16).map_err(|_| CursorError)?;
    Ok((worker, key))
}
