//! The handle with which backends and embedding programs use a running node.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deeperhub_cluster::{ClusterState, EnqueueError, Message, RequestError};
use deeperhub_events::{EventFilter, EventStream};
use deeperhub_listener::{ConnectionKey, Listener, ReconnectTo};
use deeperhub_metrics::{Format, MetricSnapshot};
use deeperhub_protocol::message::{ClusterFault, ServerMessage, TraceContext, check_server_object};
use deeperhub_protocol::{ClientId, RawJson, Subscription, Topic};
use serde::Serialize;
use tokio::sync::watch;

use crate::cluster_query;
use crate::config::Limits;
use crate::connection_id::{ConnectionId, is_node_id};
use crate::health::Health;
use crate::hub::Hub;
use crate::phase::Phase;
use crate::stats::Stats;
use crate::top::Top;
use crate::trace::{MessageSpan, Tracer};
use crate::types::{
    ClientInfo, ClientNotFound, CursorError, Delivered, ListError, MAX_CLIENTS_PAGE_BYTES, NodeIdTaken, Page,
    PayloadError, PublishError, SendError, TopicInfo, WorkerTimeout,
};
use crate::worker_request::WorkerRequest;

/// Access to a running node for backends and embedding programs. A handle is cheap to clone and can
/// be used on any thread.
///
/// An asynchronous call waits at most [`Config::answer_timeout`](crate::Config::answer_timeout) for
/// a worker of this node, and at most two seconds for another node. Before a worker executes a
/// call, it delivers everything that was published earlier.
///
/// A message can have any type that implements [`Serialize`]. Methods whose names end in `_raw`
/// take parsed JSON text instead and send it unchanged.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use deeperhub_node::{Config, Node};
/// use serde_json::json;
///
/// let node = Node::start("127.0.0.1:8080".parse()?, Config::default())?;
/// let hub = node.handle();
/// hub.publish("ticks", &json!({ "tick": 1 }))?;
/// hub.send_to_user("ada", &json!({ "type": "reminder", "data": "stand up" })).await?;
/// hub.broadcast(&json!({ "type": "maintenance", "data": { "minutes": 5 } })).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct NodeHandle {
    pub(crate) hub: Arc<Hub>,
    pub(crate) listener: Arc<Listener>,
}

impl NodeHandle {
    pub(crate) fn new(hub: Arc<Hub>, listener: Arc<Listener>) -> Self {
        Self { hub, listener }
    }

    /// Publishes a message to the subscribers of a topic on all nodes. Never waits.
    ///
    /// # Errors
    ///
    /// Returns [`PublishError`] if the topic is invalid, or if the message has no valid JSON form.
    pub fn publish<M>(&self, topic: &str, message: &M) -> Result<Delivered, PublishError>
    where
        M: Serialize + ?Sized,
    {
        let topic =
            Topic::parse(topic).map_err(|source| PublishError::Topic { topic: topic.to_owned(), source })?;
        let text = to_json(message)?;
        let message = RawJson::parse(&text).map_err(PayloadError::from)?;
        Ok(self.publish_raw(&topic, message, &TraceContext::default()))
    }

    /// Publishes JSON text to the subscribers of a topic on all nodes. Never waits.
    ///
    /// If `trace` names a trace, the publish belongs to it.
    pub fn publish_raw(
        &self,
        topic: &Topic<'_>,
        message: RawJson<'_>,
        trace: &TraceContext<'_>,
    ) -> Delivered {
        let tracer = &self.hub.config.tracer;
        let span = MessageSpan::begin_for_server(tracer, trace);
        let active_span = span.as_ref().map(|span| &span.span);
        let published = self.hub.publish(topic, message, None, Instant::now(), active_span);
        self.hub.top.publish(topic.as_str(), published.subscribers, message.as_str().len());
        if let Some(mut span) = span {
            span.subscribers = Some(published.subscribers);
            tracer.record(|| span.end_publish(topic.as_str(), message.as_str().len()));
        }
        Delivered { count: published.subscribers, cluster: published.cluster }
    }

    /// Publishes to the other nodes only. Completes a publish that returned a fault in
    /// [`Delivered::cluster`]. Returns the fault if this attempt fails too. Never waits.
    pub fn publish_to_other_nodes(
        &self,
        topic: &Topic<'_>,
        message: RawJson<'_>,
        trace: &TraceContext<'_>,
    ) -> Option<ClusterFault> {
        let tracer = &self.hub.config.tracer;
        let span = MessageSpan::begin_for_server(tracer, trace);
        let traceparent = span.as_ref().map(|span| span.span.context().to_string());
        let context = TraceContext {
            traceparent: traceparent.as_deref().map(Cow::Borrowed),
            tracestate: span.as_ref().and_then(|span| span.span.tracestate()).map(Cow::Borrowed),
        };
        let fault = self.hub.publish_to_other_nodes(topic, message, None, context);
        if let Some(span) = span {
            tracer.record(|| span.end_publish(topic.as_str(), message.as_str().len()));
        }
        fault
    }

    /// Sends a message to one client, on any node. The message must be a JSON object whose `type`
    /// is a string.
    ///
    /// # Errors
    ///
    /// Returns [`SendError`]. A client whose connection is closing, or whose node does not answer,
    /// counts as not found.
    pub async fn send_to_client<M>(&self, client: &ClientId, message: &M) -> Result<(), SendError>
    where
        M: Serialize + ?Sized,
    {
        let text = to_json(message)?;
        let message = check_server_object(&text).map_err(PayloadError::from)?;
        self.send_to_client_raw(client, message).await
    }

    /// Sends a JSON object that [`check_server_object`] accepted to one client, on any node.
    ///
    /// # Errors
    ///
    /// Returns [`SendError`]. A client whose connection is closing, or whose node does not answer,
    /// counts as not found.
    pub async fn send_to_client_raw(&self, client: &ClientId, message: RawJson<'_>) -> Result<(), SendError> {
        if let Some(node) = self.remote_node(client) {
            let make_message = |request| Message::Send { request, client: client.clone(), payload: message };
            return self.request_for_client(node, make_message).await;
        }
        let to = self.local_connection(client)?;
        let frame = ServerMessage::Raw(message).to_frame();
        let found =
            self.hub.request(to.worker.into(), |reply| WorkerRequest::Send { to, frame, reply }).await?;
        if found { Ok(()) } else { Err(ClientNotFound.into()) }
    }

    /// Sends a message to every connection of a user on all nodes. The message must be a JSON
    /// object whose `type` is a string. The returned count covers this node only.
    ///
    /// # Errors
    ///
    /// Returns [`SendError::Payload`], or [`SendError::WorkerTimeout`] as
    /// [`send_to_user_raw`](Self::send_to_user_raw) does.
    pub async fn send_to_user<M>(&self, user: &str, message: &M) -> Result<Delivered, SendError>
    where
        M: Serialize + ?Sized,
    {
        let text = to_json(message)?;
        let message = check_server_object(&text).map_err(PayloadError::from)?;
        Ok(self.send_to_user_raw(user, message).await?)
    }

    /// Sends a JSON object that [`check_server_object`] accepted to every connection of a user on
    /// all nodes. The returned count covers this node only.
    ///
    /// # Errors
    ///
    /// Returns [`WorkerTimeout`] if a worker did not answer in time. Its connections may get the
    /// message later. All other connections got it.
    pub async fn send_to_user_raw(
        &self,
        user: &str,
        message: RawJson<'_>,
    ) -> Result<Delivered, WorkerTimeout> {
        let frame = ServerMessage::Raw(message).to_frame();
        let send = |reply| WorkerRequest::SendToUser { user: user.to_owned(), frame: frame.fork(), reply };
        let count = self.hub.sum_over_workers(send).await;
        self.with_other_nodes(count, Message::SendToUser { user, payload: message })
    }

    /// Sends a message to every connected client on all nodes. The message must be a JSON object
    /// whose `type` is a string. If tokens are required, clients without a token are left out. The
    /// returned count covers this node only.
    ///
    /// # Errors
    ///
    /// Returns [`SendError::Payload`], or [`SendError::WorkerTimeout`] as
    /// [`broadcast_raw`](Self::broadcast_raw) does.
    pub async fn broadcast<M>(&self, message: &M) -> Result<Delivered, SendError>
    where
        M: Serialize + ?Sized,
    {
        let text = to_json(message)?;
        let message = check_server_object(&text).map_err(PayloadError::from)?;
        Ok(self.broadcast_raw(message).await?)
    }

    /// Sends a JSON object that [`check_server_object`] accepted to every connected client on all
    /// nodes. If tokens are required, clients without a token are left out. The returned count
    /// covers this node only.
    ///
    /// # Errors
    ///
    /// Returns [`WorkerTimeout`] if a worker did not answer in time. Its clients may get the
    /// message later. All other clients got it.
    pub async fn broadcast_raw(&self, message: RawJson<'_>) -> Result<Delivered, WorkerTimeout> {
        let frame = ServerMessage::Raw(message).to_frame();
        let count =
            self.hub.sum_over_workers(|reply| WorkerRequest::Broadcast { frame: frame.fork(), reply }).await;
        self.with_other_nodes(count, Message::Broadcast { payload: message })
    }

    /// Ends a client's subscription to a topic or a pattern, on any node. The client gets an
    /// `unsubscribed` message without an `id`.
    ///
    /// Returns `false` if the client was not subscribed to exactly this topic or pattern. In this
    /// case the client gets no message.
    ///
    /// # Errors
    ///
    /// Returns [`SendError`]. A client whose connection is closing, or whose node does not answer,
    /// counts as not found.
    pub async fn unsubscribe_client(
        &self,
        client: &ClientId,
        topic: &Subscription<'_>,
    ) -> Result<bool, SendError> {
        if let Some(node) = self.remote_node(client) {
            let topic = topic.borrow();
            let make_message = |request| Message::Unsubscribe { request, client: client.clone(), topic };
            return self
                .request_from_node(node, make_message)
                .await
                .map(|answer| answer == cluster_query::REPLY_FOUND);
        }
        let client = self.local_connection(client)?;
        let topic = topic.borrow().into_owned();
        let unsubscribe = |reply| WorkerRequest::Unsubscribe { client, topic, reply };
        self.hub.request(client.worker.into(), unsubscribe).await?.ok_or(ClientNotFound.into())
    }

    /// Ends the subscriptions of a user's connections to a topic or a pattern, on all nodes. The
    /// returned count covers this node only.
    ///
    /// # Errors
    ///
    /// Returns [`WorkerTimeout`] if a worker did not answer in time. Subscriptions on this worker
    /// may end later. All other subscriptions have ended.
    pub async fn unsubscribe_user(
        &self,
        user: &str,
        topic: &Subscription<'_>,
    ) -> Result<Delivered, WorkerTimeout> {
        let unsubscribe = |reply| WorkerRequest::UnsubscribeUser {
            user: user.to_owned(),
            topic: topic.borrow().into_owned(),
            reply,
        };
        let count = self.hub.sum_over_workers(unsubscribe).await;
        self.with_other_nodes(count, Message::UnsubscribeUser { user, topic: topic.borrow() })
    }

    /// Returns the node's current statistics.
    pub fn stats(&self) -> Stats {
        Stats::of(&self.hub)
    }

    /// Returns the busiest topics and clients, at most `limit` of each.
    ///
    /// Tracking starts with the first call and stops 30 seconds after the last one. A worker that
    /// does not answer within a second is left out.
    pub async fn top(&self, limit: usize) -> Top {
        let now = Instant::now();
        self.hub.top.keep_tracking(now);
        let mut report = self.hub.top.report(now);
        let worker_reports =
            self.hub.request_all(Duration::from_secs(1), |reply| WorkerRequest::Top { reply }).await;
        worker_reports.into_iter().flatten().for_each(|worker_report| report.add(worker_report));
        report.into_top(limit)
    }

    /// Closes a connection with 4003, on any node.
    ///
    /// # Errors
    ///
    /// Returns [`SendError`]. A client whose connection is closing, or whose node does not answer,
    /// counts as not found.
    pub async fn disconnect(&self, client: &ClientId) -> Result<(), SendError> {
        if let Some(node) = self.remote_node(client) {
            let make_message = |request| Message::Disconnect { request, client: client.clone() };
            return self.request_for_client(node, make_message).await;
        }
        let client = self.local_connection(client)?;
        let found = self
            .hub
            .request(client.worker.into(), |reply| WorkerRequest::Disconnect { client, reply })
            .await?;
        if found { Ok(()) } else { Err(ClientNotFound.into()) }
    }

    /// Closes every connection of a user with 4003, on all nodes. The returned count covers this
    /// node only.
    ///
    /// The user can reconnect with a token that is still valid.
    ///
    /// # Errors
    ///
    /// Returns [`WorkerTimeout`] if a worker did not answer in time. Its connections may close
    /// later. All other connections are closed.
    pub async fn disconnect_user(&self, user: &str) -> Result<Delivered, WorkerTimeout> {
        let disconnect = |reply| WorkerRequest::DisconnectUser { user: user.to_owned(), reply };
        let count = self.hub.sum_over_workers(disconnect).await;
        self.with_other_nodes(count, Message::DisconnectUser { user })
    }

    /// Returns one connection, on any node.
    ///
    /// # Errors
    ///
    /// Returns [`SendError`]. A client whose connection is closing, or whose node does not answer,
    /// counts as not found.
    pub async fn client(&self, client: &ClientId) -> Result<ClientInfo, SendError> {
        if let Some(node) = self.remote_node(client) {
            return self.remote_client(node, client).await.ok_or(ClientNotFound.into());
        }
        let client = self.local_connection(client)?;
        let info =
            self.hub.request(client.worker.into(), |reply| WorkerRequest::Client { client, reply }).await?;
        info.ok_or(ClientNotFound.into())
    }

    /// Lists connections of this node, one page at a time. A page ends at `limit` connections, or
    /// after 512 KiB of names. A client that stays connected until the last page is on exactly one
    /// page.
    ///
    /// # Errors
    ///
    /// Returns [`ListError`] for a malformed cursor, or if a worker did not answer in time.
    pub async fn clients(&self, cursor: Option<&str>, limit: usize) -> Result<Page<ClientInfo>, ListError> {
        self.hub.clients(cursor, limit).await
    }

    /// Lists topics and patterns with subscribers on this node, one page at a time.
    ///
    /// # Errors
    ///
    /// Returns [`CursorError`] for a malformed cursor.
    pub fn topics(&self, cursor: Option<&str>, limit: usize) -> Result<Page<TopicInfo>, CursorError> {
        let page = self.hub.router.list(cursor, limit).map_err(|_| CursorError)?;
        let info = |(topic, subscribers)| TopicInfo { topic, subscribers };
        Ok(Page { items: page.topics.into_iter().map(info).collect(), next_cursor: page.next_cursor })
    }

    /// Returns the number of subscribers that a topic or pattern has on this node. The number is 0
    /// if there is no such topic.
    pub fn topic(&self, topic: &Subscription<'_>) -> TopicInfo {
        let subscribers = self.hub.router.subscriber_count(topic);
        TopicInfo { topic: topic.as_str().to_owned(), subscribers }
    }

    /// Subscribes to events from now on. Returns `None` if there are too many observers
    /// ([`Config::events`](crate::Config::events)).
    pub fn events(&self, filter: EventFilter) -> Option<EventStream> {
        self.hub.bus.subscribe(filter)
    }

    /// Returns the node's phase.
    pub fn phase(&self) -> Phase {
        *self.hub.phase.borrow()
    }

    /// Returns the current limits.
    pub fn limits(&self) -> Arc<Limits> {
        self.hub.limits.load_full()
    }

    /// Replaces the limits. Workers apply them in their next round, within a second, to open
    /// connections too.
    pub fn set_limits(&self, limits: Limits) {
        self.listener.set_limits(limits.listener.clone());
        self.hub.limits.store(Arc::new(limits));
    }

    /// Returns whether the node should get traffic, and the reasons if not.
    ///
    /// A node is ready if it serves and every worker delivers. In a cluster the broker must deliver
    /// too, unless [`ClusterConfig::ready_alone`](crate::ClusterConfig::ready_alone) is set.
    pub fn health(&self) -> Health {
        self.hub.health()
    }

    /// Returns a receiver of changes to [`phase`](Self::phase).
    pub fn watch_phase(&self) -> watch::Receiver<Phase> {
        self.hub.phase.subscribe()
    }

    /// Waits until another node of the cluster uses this node's name. This node must then stop.
    /// Waits forever without a cluster.
    pub async fn failed(&self) -> NodeIdTaken {
        if let Some(broker) = &self.hub.broker {
            let mut states = broker.watch();
            // An error means that the state does not change any more.
            if states.wait_for(|state| *state == ClusterState::NameTaken).await.is_ok() {
                return NodeIdTaken(self.hub.node_id.clone());
            }
        }
        std::future::pending().await
    }

    /// Returns all metrics as text in one of the formats that Prometheus reads.
    pub fn metrics_text(&self, format: Format) -> String {
        self.hub.registry.encode_as(format)
    }

    /// Returns all metrics as values.
    pub fn metrics_snapshot(&self) -> Vec<MetricSnapshot<'_>> {
        self.hub.registry.snapshot()
    }

    /// Returns the tracer of this node.
    pub fn tracer(&self) -> &Tracer {
        &self.hub.config.tracer
    }

    /// Returns the node's name, with which its client IDs start.
    pub fn node_id(&self) -> &str {
        &self.hub.node_id
    }

    /// Drains the node: refuses new connections, and closes the existing ones with 1001, spread
    /// over `time`. Returns when all are closed, or when the time is over.
    ///
    /// If there are other nodes, each client is told to reconnect at once. Otherwise clients are
    /// told to reconnect after the drain and
    /// [`restart_time`](deeperhub_listener::Config::restart_time).
    pub async fn drain(&self, time: Duration) {
        if let Some(deadline) = Instant::now().checked_add(time) {
            let _ = self.hub.drain_deadline.set(deadline);
        }
        self.hub.phase.send_if_modified(|phase| {
            let starts_drain = *phase < Phase::Draining;
            if starts_drain {
                *phase = Phase::Draining;
            }
            starts_drain
        });
        let has_others = self.hub.broker.as_ref().is_some_and(|broker| !broker.peers().is_empty());
        let reconnect_to = if has_others { ReconnectTo::OtherNodes } else { ReconnectTo::ThisNode };
        self.listener.drain(time, reconnect_to).await;
    }

    fn local_connection(&self, client: &ClientId) -> Result<ConnectionId, ClientNotFound> {
        self.hub.connection_id(client).ok_or(ClientNotFound)
    }

    /// Returns the node that a client ID names, unless it is this node or there is no cluster.
    fn remote_node<'c>(&self, client: &'c ClientId) -> Option<&'c str> {
        let (node, _) = client.as_str().rsplit_once('.')?;
        (self.hub.broker.is_some() && node != self.hub.node_id && is_node_id(node)).then_some(node)
    }

    /// Sends a request about a client to another node.
    async fn request_for_client<'m>(
        &self,
        node: &str,
        make_message: impl FnOnce(u64) -> Message<'m>,
    ) -> Result<(), SendError> {
        self.request_from_node(node, make_message).await.map(drop)
    }

    /// Sends a request about a client to another node. Returns the answer if the client was found.
    async fn request_from_node<'m>(
        &self,
        node: &str,
        make_message: impl FnOnce(u64) -> Message<'m>,
    ) -> Result<String, SendError> {
        let Some(broker) = &self.hub.broker else { return Err(ClientNotFound.into()) };
        match broker.request(node, cluster_query::QUERY_TIMEOUT, make_message).await {
            Ok(answer) if answer != cluster_query::REPLY_NOT_FOUND => Ok(answer),
            Err(RequestError::NotSent(EnqueueError::TooLarge)) => Err(SendError::TooLarge),
            Err(RequestError::NotSent(_)) => Err(SendError::ClusterUnavailable),
            _ => Err(ClientNotFound.into()),
        }
    }

    /// Sends a message to the other nodes too, even if a worker of this node did not answer.
    /// Returns `count` with the fault of this send.
    fn with_other_nodes(
        &self,
        count: Result<u64, WorkerTimeout>,
        message: Message<'_>,
    ) -> Result<Delivered, WorkerTimeout> {
        let cluster = self.hub.send_to_other_nodes(message);
        Ok(Delivered { count: count?, cluster })
    }
}

impl Hub {
    /// Parses a client ID of this node. Returns `None` for clients of other nodes, and if there is
    /// no worker with this number.
    pub(crate) fn connection_id(&self, client: &ClientId) -> Option<ConnectionId> {
        ConnectionId::from_client_id(client, &self.node_id)
            .filter(|connection| usize::from(connection.worker) < self.request_senders.len())
    }

    /// Implements [`NodeHandle::clients`].
    pub(crate) async fn clients(
        &self,
        cursor: Option<&str>,
        limit: usize,
    ) -> Result<Page<ClientInfo>, ListError> {
        let (mut worker, mut from) = cursor.map_or(Ok((0, 0)), parse_cursor)?;
        let (mut items, mut bytes) = (Vec::new(), 0);
        while worker < self.request_senders.len() {
            if bytes >= MAX_CLIENTS_PAGE_BYTES {
                return Ok(Page { items, next_cursor: Some(format!("{worker:x}-{from:x}")) });
            }
            let remaining = limit.saturating_sub(items.len());
            let request = |reply| WorkerRequest::Clients { from, limit: remaining, reply };
            let (clients, next) = self.request(worker, request).await?;
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

fn to_json<M: Serialize + ?Sized>(message: &M) -> Result<String, PayloadError> {
    serde_json::to_string(message).map_err(|error| PayloadError::Serialize(error.to_string()))
}

#[cfg(test)]
mod tests;
