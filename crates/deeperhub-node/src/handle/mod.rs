//! The handle with which backends and embedding programs use a running node.

mod cluster;
mod history;
mod lists;
mod operations;
mod subscriber;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use deeperhub_cluster::{ClusterState, WakeUp};
use deeperhub_events::{EventFilter, EventStream};
use deeperhub_listener::{Listener, ReconnectTo};
use deeperhub_metrics::{Format, MetricSnapshot};
use deeperhub_protocol::message::{ClusterFault, TraceContext};
use deeperhub_protocol::{ClientId, RawJson, Topic};
use serde::Serialize;
use tokio::sync::watch;

use crate::cluster::rules_digest;
use crate::config::Limits;
use crate::connection_id::{ConnectionId, is_node_id};
use crate::health::Health;
use crate::hub::{Hub, PublishOutcome};
use crate::phase::Phase;
use crate::stats::Stats;
use crate::top::Top;
use crate::trace::{MessageSpan, Tracer};
use crate::types::{ClientNotFound, Delivered, NodeIdTaken, PayloadError, PublishError};
use crate::worker::request::WorkerRequest;

/// Access to a running node for backends and embedding programs. A handle is cheap to clone and can
/// be used on any thread.
///
/// An asynchronous call waits at most [`Config::answer_timeout`](crate::Config::answer_timeout) for a worker of this node, and at
/// most two seconds for another node. Before a worker executes a call, it delivers everything that
/// was published earlier.
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

    /// Publishes a message to the subscribers of a topic on all nodes. Never waits: if the topic's
    /// rule has `ack=disk`, or the cluster keeps its history, [`stored`](Self::stored) waits until
    /// the message is stored.
    ///
    /// # Errors
    ///
    /// Returns [`PublishError`] if the topic is invalid, if the message has no valid JSON form, or
    /// if the topic should have a history and cannot. Nothing was published.
    pub fn publish<M>(&self, topic: &str, message: &M) -> Result<Delivered, PublishError>
    where
        M: Serialize + ?Sized,
    {
        let topic =
            Topic::parse(topic).map_err(|source| PublishError::Topic { topic: topic.to_owned(), source })?;
        let text = to_json(message)?;
        let message = RawJson::parse(&text).map_err(PayloadError::from)?;
        self.publish_raw(&topic, message, &TraceContext::default())
    }

    /// Publishes JSON text to the subscribers of a topic on all nodes. Never waits.
    ///
    /// If `trace` names a trace, the publish belongs to it.
    ///
    /// # Errors
    ///
    /// Returns [`PublishError::TooManyTopics`] if the topic should have a history and cannot, and
    /// [`PublishError::Unavailable`] if its store takes nothing now.
    pub fn publish_raw(
        &self,
        topic: &Topic<'_>,
        message: RawJson<'_>,
        trace: &TraceContext<'_>,
    ) -> Result<Delivered, PublishError> {
        let tracer = &self.hub.config.tracer;
        let span = MessageSpan::begin_for_server(tracer, trace);
        let active_span = span.as_ref().map(|span| &span.span);
        let published = self.hub.publish(topic, message, None, Instant::now(), active_span)?;
        self.hub.top.publish(topic.as_str(), published.subscribers, message.as_str().len());
        if let Some(mut span) = span {
            span.subscribers = Some(published.subscribers);
            span.offset = published.position.map(|position| position.offset);
            tracer.record(|| span.end_publish(topic.as_str(), message.as_str().len()));
        }
        let PublishOutcome { subscribers: count, cluster, position, ticket, append, .. } = published;
        Ok(Delivered { count, cluster, position, ticket, append })
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
        let fault = self.hub.publish_to_other_nodes(topic, message, None, context, WakeUp::Immediate);
        if let Some(span) = span {
            tracer.record(|| span.end_publish(topic.as_str(), message.as_str().len()));
        }
        fault
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
    /// connections too. Topics that no rule keeps any more lose their history.
    pub fn set_limits(&self, limits: Limits) {
        self.listener.set_limits(limits.listener.clone());
        if self.hub.limits.load().history != limits.history {
            self.hub.streams.set_limits(&self.hub.router, &limits.history);
        }
        if let Some(broker) = &self.hub.broker {
            broker.set_history_rules(rules_digest(&limits.history.rules));
        }
        self.hub.limits.store(Arc::new(limits));
    }

    /// Returns whether the node should get traffic, and the reasons if not.
    ///
    /// A node is ready if it serves and every worker delivers. In a cluster the broker must deliver
    /// too, unless [`ClusterConfig::ready_alone`](crate::ClusterConfig::ready_alone) is set. A store
    /// on disk must take messages.
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
}

fn to_json<M: Serialize + ?Sized>(message: &M) -> Result<String, PayloadError> {
    serde_json::to_string(message).map_err(|error| PayloadError::Serialize(error.to_string()))
}

pub use history::{History, KeptMessage};
pub use subscriber::{StreamEvent, SubscribeError, SubscribeFrom, Subscriber};

#[cfg(test)]
mod tests;
