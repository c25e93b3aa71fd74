//! State that all workers and handles of a node share.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use deeperhub_cluster::Broker;
use deeperhub_events::EventBus;
use deeperhub_listener::Multicast;
use deeperhub_metrics::Registry;
use deeperhub_protocol::message::{ClusterFault, Features, ServerMessage, TraceContext, WelcomeLimits};
use deeperhub_protocol::{ClientId, RawJson, Topic};
use deeperhub_router::{Published, Router, Shard};
use deeperhub_security::BurstPool;
use tokio::sync::{mpsc, watch};

use crate::canary::Canary;
use crate::config::Config;
use crate::connection_id::ConnectionId;
use crate::health::{Health, UnreadyReason};
use crate::metrics::Metrics;
use crate::phase::Phase;
use crate::recent_quantiles::RecentQuantiles;
use crate::top::TopTracker;
use crate::trace::ActiveSpan;
use crate::trace::fan_out::PublishStamp;
use crate::worker_request::QueuedRequest;

/// Published message for the subscribers of one worker.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) frame: Multicast,
    /// Publisher, if it is excluded from its own message.
    pub(crate) excluded: Option<ConnectionId>,
    /// Topic name, if sent messages were observed at the time of the publish.
    pub(crate) topic: Option<Arc<str>>,
    pub(crate) stamp: PublishStamp,
}

/// Client that publishes a message.
#[derive(Debug)]
pub(crate) struct Publisher<'a> {
    pub(crate) id: &'a ClientId,
    pub(crate) connection_id: ConnectionId,
    /// `true` if the client is excluded from its own message.
    pub(crate) is_excluded: bool,
    /// Shard of the client's worker. It defers wake-ups of other workers until the client's worker
    /// flushes them.
    pub(crate) shard: &'a mut Shard<Delivery>,
}

/// Message that is published to a topic.
#[derive(Debug)]
struct Publication<'a> {
    topic: &'a Topic<'a>,
    message: RawJson<'a>,
    from: Option<&'a ClientId>,
    /// Trace context that is sent to subscribers.
    trace: &'a TraceContext<'a>,
    published_at: Instant,
    /// Span of the publish, if it is sampled.
    span: Option<&'a ActiveSpan>,
}

/// Result of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PublishOutcome {
    /// Subscriptions that matched on this node.
    pub(crate) subscribers: u64,
    /// `true` if a worker is congested, so that the publisher should pause.
    pub(crate) is_congested: bool,
    /// Number of pattern-matching steps.
    pub(crate) matching_steps: usize,
    /// Fault that kept the message from other nodes. `None` if it was queued for them, or if there
    /// is no cluster.
    pub(crate) cluster: Option<ClusterFault>,
}

/// State that all workers and handles of a node share.
#[derive(Debug)]
pub(crate) struct Hub {
    /// Configuration from the start, for settings that never change.
    pub(crate) config: Config,
    /// Configuration with the current limits and origins.
    pub(crate) live_config: Arc<ArcSwap<Config>>,
    pub(crate) node_id: String,
    pub(crate) router: Router<Delivery>,
    pub(crate) bus: EventBus,
    pub(crate) metrics: Metrics,
    pub(crate) listener_metrics: deeperhub_listener::Metrics,
    pub(crate) top: TopTracker,
    /// Recent latencies of deliveries.
    pub(crate) publish_latency: RecentQuantiles,
    pub(crate) registry: Registry,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) canary: Arc<Canary>,
    /// Connection to the other nodes, if there is a cluster.
    pub(crate) broker: Option<Broker>,
    pub(crate) started: Instant,
    pub(crate) request_senders: Vec<mpsc::Sender<QueuedRequest>>,
    /// Pool of bursts for new connections, by address. With `None`, each connection has its own
    /// bursts.
    pub(crate) burst_pool: Option<BurstPool>,
    /// Deadline of the drain, once it has started.
    pub(crate) drain_deadline: OnceLock<Instant>,
    /// Receiving ends of the workers' request queues. Each worker takes its receiver. A worker that
    /// dies returns the receiver for its replacement.
    pub(crate) request_receivers: Vec<Mutex<Option<mpsc::Receiver<QueuedRequest>>>>,
}

impl Hub {
    /// Returns whether the node should get traffic, and the reasons if not.
    pub(crate) fn health(&self) -> Health {
        let mut health = Health::new(*self.phase.borrow(), &self.canary);
        let needs_cluster = self.config.cluster.as_ref().is_some_and(|cluster| !cluster.ready_alone);
        if needs_cluster {
            let fault = self.broker_fault().map(UnreadyReason::for_cluster);
            health.reasons.extend(fault.or_else(|| self.canary.cluster_unready_reason()));
        }
        health
    }

    /// Returns the limits that the `welcome` message announces.
    pub(crate) fn welcome_limits(config: &Config) -> WelcomeLimits {
        let listener = &config.listener;
        WelcomeLimits {
            max_message_bytes: listener.max_message_bytes as u64,
            max_delivery_bytes: ServerMessage::max_delivery_bytes(
                listener.max_message_bytes as u64,
                Features::NONE,
            ),
            max_subscriptions: config.max_subscriptions as u64,
            ping_interval_ms: u64::try_from(listener.ping_interval.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Publishes on this node and, in a cluster, to the other nodes. `published_at` is the start of
    /// the publish. `span` is the span of the publish, if its trace is sampled.
    pub(crate) fn publish(
        &self,
        topic: &Topic<'_>,
        message: RawJson<'_>,
        publisher: Option<Publisher<'_>>,
        published_at: Instant,
        span: Option<&ActiveSpan>,
    ) -> PublishOutcome {
        let traceparent = span.map(|span| span.context().to_string());
        let trace = TraceContext {
            traceparent: traceparent.as_deref().map(Cow::Borrowed),
            tracestate: span.and_then(ActiveSpan::tracestate).map(Cow::Borrowed),
        };
        let from = publisher.as_ref().map(|publisher| publisher.id);
        let excluded = publisher
            .as_ref()
            .filter(|publisher| publisher.is_excluded)
            .map(|publisher| publisher.connection_id);
        let source = publisher.as_ref().map(|publisher| publisher.connection_id.publisher_source());
        let shard = publisher.map(|publisher| publisher.shard);
        let publication = Publication { topic, message, from, trace: &trace, published_at, span };
        let published = self.deliver(&publication, excluded, source, shard);
        let cluster = match self.broker {
            Some(_) => self.publish_to_other_nodes(topic, message, from, trace.borrow()),
            None => None,
        };
        PublishOutcome {
            subscribers: published.subscribers,
            is_congested: published.congested,
            matching_steps: published.steps,
            cluster,
        }
    }

    /// Delivers a publish of another node. `trace` is the trace context that it carries.
    pub(crate) fn deliver_remote(
        &self,
        topic: &Topic<'_>,
        message: RawJson<'_>,
        from: Option<&ClientId>,
        source: Option<u64>,
        trace: &TraceContext<'_>,
    ) {
        let publication =
            Publication { topic, message, from, trace, published_at: Instant::now(), span: None };
        let published = self.deliver(&publication, None, source, None);
        self.top.publish(topic.as_str(), published.subscribers, message.as_str().len());
    }

    /// Encodes a message once and pushes it to every worker with a subscriber.
    ///
    /// The connection `excluded` does not get the message. `source` is the publisher's source
    /// number. `shard` is the shard of the calling worker, or `None` on other threads.
    fn deliver(
        &self,
        publication: &Publication<'_>,
        excluded: Option<ConnectionId>,
        source: Option<u64>,
        shard: Option<&mut Shard<Delivery>>,
    ) -> Published {
        let Publication { topic, message, from, trace, published_at, span } = *publication;
        let frame = ServerMessage::Message {
            topic: topic.as_str(),
            message,
            from,
            position: None,
            prev: None,
            traceparent: trace.traceparent.as_deref(),
            tracestate: trace.tracestate.as_deref(),
        }
        .to_frame();
        let is_observed = self.bus.is_observed(deeperhub_events::EventKind::MessageSent);
        let name = is_observed.then(|| Arc::from(topic.as_str()));
        let is_only_worker = self.request_senders.len() == 1;
        // Without a sink, spans would be recorded nowhere.
        let span = span.filter(|_| self.config.tracer.is_recording());
        let make = || Delivery {
            // A fork gives each worker its own reference count, so that workers do not contend for
            // one cache line.
            frame: Multicast::new(if is_only_worker { frame.clone() } else { frame.fork() }),
            excluded,
            topic: name.clone(),
            stamp: PublishStamp::new(published_at, span),
        };
        match shard {
            Some(shard) => shard.publish(topic, source, frame.len(), make),
            None => self.router.publish(topic, source, frame.len(), make),
        }
    }

    /// Takes the receiving end of a worker's request queue.
    pub(crate) fn take_request_receiver(&self, worker: usize) -> Option<mpsc::Receiver<QueuedRequest>> {
        self.request_receivers.get(worker)?.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Stores the receiving end of a dead worker's request queue for its replacement.
    pub(crate) fn return_request_receiver(&self, worker: usize, receiver: mpsc::Receiver<QueuedRequest>) {
        if let Some(slot) = self.request_receivers.get(worker) {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(receiver);
        }
    }
}
