//! Publishing on this node and to the other nodes.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Instant;

use deeperhub_cluster::{AppendNumber, EnqueueError, Message, PlainPublish, WakeUp};
use deeperhub_listener::Multicast;
use deeperhub_protocol::message::{
    ClusterFault, DeliveryEncoder, ServerMessage, StreamMessage, TraceContext,
};
use deeperhub_protocol::{ClientId, Position, RawJson, Topic};
use deeperhub_router::Published;

use super::Hub;
use crate::connection_id::ConnectionId;
use crate::delivery::Delivery;
use crate::streams::{
    Appended, ClusterPublish, HubPublisher, HubShard, Once, PublishRefusal, Requester, StreamPublish, Ticket,
};
use crate::trace::ActiveSpan;
use crate::trace::fan_out::PublishStamp;

thread_local! {
    /// `true` if the thread's last message had a subscriber on this node. The next one probably has
    /// one, too. In a cluster, the subscribers of many messages are all on other nodes.
    static HAS_SUBSCRIBERS: Cell<bool> = const { Cell::new(true) };

    /// Encoder of the thread's deliveries. Successive messages often have the same topic and
    /// publisher.
    static ENCODER: RefCell<DeliveryEncoder> = RefCell::default();
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
    pub(crate) shard: &'a mut HubShard,
    /// Identity of a publish that the client may repeat.
    pub(crate) once: Option<Once<'a>>,
    /// `true` if the client is to be told the outcome.
    pub(crate) wants_reply: bool,
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
    once: Option<Once<'a>>,
    /// Connection of the publisher, if it is excluded from its own message.
    excluded: Option<ConnectionId>,
    /// Source number of the publisher.
    source: Option<u64>,
    /// Where the outcome of an append to the cluster's store goes.
    requester: Requester,
}

/// Where a published message went.
#[derive(Debug, Clone, Copy)]
enum Kept {
    /// To the subscribers. The topic has no history.
    Nowhere,
    /// To the subscribers, and into this node's stream of the topic.
    Here(Appended),
    /// To the cluster's store, and to nobody yet.
    InCluster(AppendNumber),
}

/// Route of a message to the workers. It decides when they are woken.
#[derive(Debug)]
enum Route<'a> {
    /// The router, which wakes workers at once.
    Immediate,
    /// Shard of the calling worker, which wakes the others later.
    Worker(&'a mut HubShard),
    /// Publisher of another thread, which wakes workers after a burst.
    Burst(&'a mut HubPublisher),
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
    /// Position of the message, if the topic has history.
    pub(crate) position: Option<Position>,
    /// Place of the message on its way to the disk, if its publisher is answered when it is there.
    pub(crate) ticket: Option<Ticket>,
    /// Number of the append to the cluster's store, if the message is on its way there. It was
    /// delivered to nobody yet.
    pub(crate) append: Option<AppendNumber>,
}

impl Hub {
    /// Publishes on this node and, in a cluster, to the other nodes. `published_at` is the start of
    /// the publish. `span` is the span of the publish, if its trace is sampled.
    ///
    /// # Errors
    ///
    /// Returns [`PublishRefusal`] if the topic should have a stream and cannot, or if the store takes
    /// nothing. Nothing is then published.
    pub(crate) fn publish(
        &self,
        topic: &Topic<'_>,
        message: RawJson<'_>,
        publisher: Option<Publisher<'_>>,
        published_at: Instant,
        span: Option<&ActiveSpan>,
    ) -> Result<PublishOutcome, PublishRefusal> {
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
        let once = publisher.as_ref().and_then(|publisher| publisher.once);
        let requester = match &publisher {
            Some(publisher) if publisher.wants_reply => Requester::Worker(publisher.connection_id.worker),
            Some(_) => Requester::Nobody,
            None => Requester::Handle,
        };
        let shard = publisher.map(|publisher| publisher.shard);
        // Workers flush after each round, see `flush_broker`.
        let wake_up = if shard.is_some() { WakeUp::Deferred } else { WakeUp::Immediate };
        let trace = &trace;
        let publication = Publication {
            topic,
            message,
            from,
            trace,
            published_at,
            span,
            once,
            excluded,
            source,
            requester,
        };
        let (published, kept) = self.deliver(&publication, shard)?;
        let mut outcome = PublishOutcome {
            subscribers: published.subscribers,
            is_congested: published.congested,
            matching_steps: published.steps,
            cluster: None,
            position: None,
            ticket: None,
            append: None,
        };
        match kept {
            // The cluster's store tells the other nodes.
            Kept::InCluster(number) => {
                outcome.append = Some(number).filter(|_| requester != Requester::Nobody);
                return Ok(outcome);
            }
            Kept::Here(Appended { position, ticket }) => {
                (outcome.position, outcome.ticket) = (Some(position), ticket);
            }
            Kept::Nowhere => {}
        }
        if self.broker.is_some() {
            outcome.cluster = self.publish_to_other_nodes(topic, message, from, trace.borrow(), wake_up);
        }
        Ok(outcome)
    }

    /// Delivers a publish of another node, which arrived at `published_at`. `trace` is the trace
    /// context that it carries, and `from` the publisher with its source number. `publisher` wakes
    /// the workers when it is flushed.
    pub(crate) fn deliver_remote(
        &self,
        publisher: &mut HubPublisher,
        topic: &Topic<'_>,
        message: RawJson<'_>,
        from: Option<(&ClientId, u64)>,
        trace: &TraceContext<'_>,
        published_at: Instant,
    ) {
        let (from, source) = from.unzip();
        let publication = Publication {
            topic,
            message,
            from,
            trace,
            published_at,
            span: None,
            once: None,
            excluded: None,
            source,
            requester: Requester::Nobody,
        };
        let published = self.deliver_live(&publication, Route::Burst(publisher));
        self.top.publish(topic.as_str(), published.subscribers, message.as_str().len());
    }

    /// Delivers a message to the subscribers on this node. If the topic has history, appends the
    /// message to its stream first. In a cluster, the store appends it, and sends it to this node.
    #[inline]
    fn deliver(
        &self,
        publication: &Publication<'_>,
        mut shard: Option<&mut HubShard>,
    ) -> Result<(Published, Kept), PublishRefusal> {
        if let Some((budget, rule)) = self.streams.rule(publication.topic) {
            let Publication {
                topic, message, from, trace, published_at, span, once, excluded, source, ..
            } = *publication;
            if let Some(store) = &self.streams.cluster {
                let publish = ClusterPublish {
                    topic,
                    message,
                    from,
                    excludes_publisher: excluded.is_some(),
                    trace,
                    once,
                    requester: publication.requester,
                    span: span
                        .filter(|_| self.config.tracer.is_recording())
                        .map(|span| (span, &self.config.tracer)),
                };
                let queued = store.publish(&self.router, &publish, (&budget, rule))?;
                let congested = self.router.is_congested();
                let published = Published { subscribers: queued.subscribers, congested, steps: 0 };
                return Ok((published, Kept::InCluster(queued.number)));
            }
            let (now, time) = self.streams.clock.seconds_and_unix_ms(published_at);
            let message = StreamMessage {
                topic: topic.as_str(),
                message,
                from,
                time,
                traceparent: trace.traceparent.as_deref(),
                tracestate: trace.tracestate.as_deref(),
            };
            let publish = StreamPublish {
                topic,
                message: &message,
                once,
                excluded,
                source,
                is_observed: self.bus.is_observed(deeperhub_events::EventKind::MessageSent),
                span: span.filter(|_| self.config.tracer.is_recording()),
                published_at,
                now,
            };
            let rule = (&*budget, rule);
            let published = self.streams.publish(&self.router, shard.as_deref_mut(), &publish, rule)?;
            if let Some((published, appended)) = published {
                self.watchers.wake(topic.as_str());
                return Ok((published, Kept::Here(appended)));
            }
        }
        let route = shard.map_or(Route::Immediate, Route::Worker);
        Ok((self.deliver_live(publication, route), Kept::Nowhere))
    }

    /// Encodes a message once and pushes it to every worker with a subscriber.
    ///
    /// A publisher that is excluded does not get the message.
    fn deliver_live(&self, publication: &Publication<'_>, route: Route<'_>) -> Published {
        let Publication { topic, message, from, trace, published_at, span, excluded, source, .. } =
            *publication;
        let name = topic.as_str();
        let traced = trace.traceparent.as_deref().map(|traceparent| ServerMessage::Message {
            topic: name,
            message,
            from,
            position: None,
            prev: None,
            traceparent: Some(traceparent),
            tracestate: trace.tracestate.as_deref(),
        });
        let encode = || match &traced {
            None => ENCODER.with_borrow_mut(|encoder| encoder.encode(name, message, from)),
            Some(traced) => traced.to_frame(),
        };
        // Encoded before locks are taken, unless probably nobody on this node gets the message.
        let mut frame = HAS_SUBSCRIBERS.get().then(encode);
        let bytes = match (&frame, &traced) {
            (Some(frame), _) => frame.len(),
            (None, None) => ENCODER.with_borrow_mut(|encoder| encoder.frame_len(name, message, from)),
            (None, Some(traced)) => traced.frame_len(),
        };
        let is_observed = self.bus.is_observed(deeperhub_events::EventKind::MessageSent);
        let name = is_observed.then(|| Arc::from(topic.as_str()));
        let is_only_worker = self.request_senders.len() == 1;
        // Without a sink, spans would be recorded nowhere.
        let span = span.filter(|_| self.config.tracer.is_recording());
        let make = || {
            // A fork gives each worker its own reference count, so that workers do not contend for
            // one cache line.
            let frame = if is_only_worker {
                frame.take().unwrap_or_else(encode)
            } else {
                frame.get_or_insert_with(encode).fork()
            };
            Delivery {
                frame: Multicast::new(frame),
                excluded,
                topic: name.clone(),
                stamp: PublishStamp::new(published_at, span),
                sequenced: None,
            }
        };
        let published = match route {
            Route::Immediate => self.router.publish(topic, source, bytes, make),
            Route::Worker(shard) => shard.publish(topic, source, bytes, make),
            Route::Burst(publisher) => publisher.publish(topic, source, bytes, make),
        };
        HAS_SUBSCRIBERS.set(published.subscribers > 0);
        published
    }

    /// Queues a publish of this node for the other nodes. Returns the fault if it cannot be queued.
    pub(crate) fn publish_to_other_nodes(
        &self,
        topic: &Topic<'_>,
        payload: RawJson<'_>,
        from: Option<&ClientId>,
        trace: TraceContext<'_>,
        wake_up: WakeUp,
    ) -> Option<ClusterFault> {
        if topic.as_str().starts_with('$') {
            return None;
        }
        if trace.traceparent.is_none() && trace.tracestate.is_none() {
            let publish = PlainPublish { topic, from, payload };
            return cluster_fault(self.broker.as_ref()?.publish_plain(wake_up, &publish));
        }
        let message = Message::Publish { topic: topic.borrow(), from: from.cloned(), trace, payload };
        self.send_to_other_nodes(message, wake_up)
    }

    /// Queues a message for other nodes. Returns the fault if it cannot be queued.
    pub(crate) fn send_to_other_nodes(&self, message: Message<'_>, wake_up: WakeUp) -> Option<ClusterFault> {
        cluster_fault(self.broker.as_ref()?.publish_with(wake_up, message))
    }

    /// Wakes the broker's driver for the messages of a worker's round.
    #[inline]
    pub(crate) fn flush_broker(&self) {
        if let Some(broker) = &self.broker {
            broker.flush();
        }
    }
}

/// Returns the fault that kept a message from the queue for other nodes.
const fn cluster_fault(queued: Result<(), EnqueueError>) -> Option<ClusterFault> {
    match queued {
        Ok(()) => None,
        Err(EnqueueError::TooLarge) => Some(ClusterFault::TooLarge),
        Err(_) => Some(ClusterFault::Unavailable),
    }
}
