//! What all workers and handles of a node share.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use deeperhub_cluster::Broker;
use deeperhub_events::EventBus;
use deeperhub_listener::{ConnectionKey, Multicast};
use deeperhub_metrics::Registry;
use deeperhub_protocol::frame::Frame;
use deeperhub_protocol::message::{ClusterFault, ServerMessage, TraceContext, WelcomeLimits};
use deeperhub_protocol::{ClientId, RawJson, Subscription, Topic};
use deeperhub_router::{Published, Router, Shard};
use deeperhub_security::BurstPool;
use tokio::sync::{mpsc, oneshot, watch};

use crate::ask::Posted;
use crate::canary::Canary;
use crate::config::Config;
use crate::handle::ClientInfo;
use crate::health::{Health, Unready};
use crate::id::Place;
use crate::metrics::Metrics;
use crate::phase::Phase;
use crate::recent::Recent;
use crate::top::{Report, Wanted};
use crate::trace::ActiveSpan;
use crate::trace::fan_out::Stamp;

/// Requests of handles that may wait for one worker; whoever makes more waits.
pub(crate) const REQUESTS: usize = 1024;

/// One publish on its way to a worker's subscribers.
#[derive(Debug)]
pub(crate) struct Delivery {
    pub(crate) frame: Multicast,
    /// The publisher, where it does not want its own message.
    pub(crate) exclude: Option<Place>,
    /// Only while someone observes sent messages.
    pub(crate) topic: Option<std::sync::Arc<str>>,
    pub(crate) stamp: Stamp,
}

/// The client that publishes something.
#[derive(Debug)]
pub(crate) struct Publisher<'a> {
    pub(crate) id: &'a ClientId,
    pub(crate) place: Place,
    /// It does not want its own message.
    pub(crate) is_excluded: bool,
    /// Its worker's part, which leaves the other workers asleep until it has read what came.
    pub(crate) shard: &'a mut Shard<Delivery>,
}

/// What a publish reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reached {
    /// Subscriptions of this node.
    pub(crate) subscribers: u64,
    /// A worker is behind: the publisher should pause.
    pub(crate) congested: bool,
    /// Number of pattern-matching steps.
    pub(crate) steps: usize,
    /// Fault that keeps it from other nodes. `None`: they get it, or there are none.
    pub(crate) cluster: Option<ClusterFault>,
}

/// What a handle asks of a worker.
#[derive(Debug)]
pub(crate) enum Request {
    Send {
        to: Place,
        frame: Frame,
        reply: oneshot::Sender<bool>,
    },
    SendToUser {
        user: String,
        frame: Frame,
        reply: oneshot::Sender<u64>,
    },
    Broadcast {
        frame: Frame,
        reply: oneshot::Sender<u64>,
    },
    Unsubscribe {
        client: Place,
        topic: Subscription<'static>,
        reply: oneshot::Sender<Option<bool>>,
    },
    UnsubscribeUser {
        user: String,
        topic: Subscription<'static>,
        reply: oneshot::Sender<u64>,
    },
    Top {
        reply: oneshot::Sender<Report>,
    },
    Disconnect {
        client: Place,
        reply: oneshot::Sender<bool>,
    },
    DisconnectUser {
        user: String,
        reply: oneshot::Sender<u64>,
    },
    Client {
        client: Place,
        reply: oneshot::Sender<Option<ClientInfo>>,
    },
    Clients {
        from: ConnectionKey,
        limit: usize,
        reply: oneshot::Sender<(Vec<ClientInfo>, Option<ConnectionKey>)>,
    },
    /// What a test does to a worker.
    #[cfg(test)]
    Run(fn()),
}

#[derive(Debug)]
pub(crate) struct Hub {
    /// As at the start: for what does not change.
    pub(crate) config: Config,
    /// What may change: limits and origins.
    pub(crate) live: Arc<ArcSwap<Config>>,
    pub(crate) node_id: String,
    pub(crate) router: Router<Delivery>,
    pub(crate) bus: EventBus,
    pub(crate) metrics: Metrics,
    pub(crate) listener_metrics: deeperhub_listener::Metrics,
    pub(crate) top: Wanted,
    /// Latencies of deliveries, as they were told lately.
    pub(crate) latency: Recent,
    pub(crate) registry: Registry,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) canary: Arc<Canary>,
    /// The way to the other nodes, where there is a cluster.
    pub(crate) broker: Option<Broker>,
    pub(crate) started: Instant,
    pub(crate) requests: Vec<mpsc::Sender<Posted>>,
    /// Pool of bursts for new connections, by address. `None`: each connection has its own.
    pub(crate) bursts: Option<BurstPool>,
    /// Deadline of the drain, if there is one.
    pub(crate) drained_by: OnceLock<Instant>,
    /// The workers' ends; a worker takes its own and gives it back when it is replaced.
    pub(crate) inboxes: Vec<Mutex<Option<mpsc::Receiver<Posted>>>>,
}

impl Hub {
    /// Returns whether the node should get traffic, and the reasons if not.
    pub(crate) fn health(&self) -> Health {
        let mut health = Health::new(*self.phase.borrow(), &self.canary);
        let counts = self.config.cluster.as_ref().is_some_and(|cluster| !cluster.ready_alone);
        if counts {
            let fault = self.cluster_fault().map(Unready::of_cluster);
            health.reasons.extend(fault.or_else(|| self.canary.cluster_reason()));
        }
        health
    }

    pub(crate) fn welcome_limits(config: &Config) -> WelcomeLimits {
        let listener = &config.listener;
        WelcomeLimits {
            max_message_bytes: listener.max_message_bytes as u64,
            max_delivery_bytes: ServerMessage::max_delivery_bytes(listener.max_message_bytes as u64),
            max_subscriptions: config.max_subscriptions as u64,
            ping_interval_ms: u64::try_from(listener.ping_interval.as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Delivers on this node, and hands over for the others where there is a cluster. `published` is when it began; a
    /// `span` is there where it is sampled, and then goes along to the subscribers.
    pub(crate) fn publish(
        &self,
        topic: &Topic<'_>,
        message: RawJson<'_>,
        publisher: Option<Publisher<'_>>,
        published: Instant,
        span: Option<&ActiveSpan>,
    ) -> Reached {
        let traceparent = span.map(|span| span.context().to_string());
        let trace = TraceContext {
            traceparent: traceparent.as_deref().map(Cow::Borrowed),
            tracestate: span.and_then(ActiveSpan::tracestate).map(Cow::Borrowed),
        };
        let from = publisher.as_ref().map(|client| client.id);
        let exclude = publisher.as_ref().filter(|client| client.is_excluded).map(|client| client.place);
        let source = publisher.as_ref().map(|client| client.place.source());
        let shard = publisher.map(|client| client.shard);
        let here = self.deliver(topic, (message, from, &trace), (exclude, source), (published, span), shard);
        let cluster = match self.broker {
            Some(_) => self.publish_to_others(topic, message, from, trace.borrow()),
            None => None,
        };
        Reached { subscribers: here.subscribers, congested: here.congested, steps: here.steps, cluster }
    }

    /// Delivers what was published on another node, in the trace that it brings.
    pub(crate) fn deliver_of_others(
        &self,
        topic: &Topic<'_>,
        message: RawJson<'_>,
        from: Option<&ClientId>,
        source: Option<u64>,
        trace: &TraceContext<'_>,
    ) {
        let here = self.deliver(topic, (message, from, trace), (None, source), (Instant::now(), None), None);
        self.top.publish(topic.as_str(), here.subscribers, message.as_str().len());
    }

    /// Encodes a delivery once and hands it to every worker with a subscriber, from the worker of `shard` or from elsewhere.
    fn deliver(
        &self,
        topic: &Topic<'_>,
        (message, from, trace): (RawJson<'_>, Option<&ClientId>, &TraceContext<'_>),
        (exclude, source): (Option<Place>, Option<u64>),
        (published, span): (Instant, Option<&ActiveSpan>),
        shard: Option<&mut Shard<Delivery>>,
    ) -> Published {
        let frame = ServerMessage::Message {
            topic: topic.as_str(),
            message,
            from,
            traceparent: trace.traceparent.as_deref(),
            tracestate: trace.tracestate.as_deref(),
        }
        .to_frame();
        let observed = self.bus.is_observed(deeperhub_events::EventKind::MessageSent);
        let name = observed.then(|| std::sync::Arc::from(topic.as_str()));
        let alone = self.requests.len() == 1;
        // Without a sink there is nobody to follow it for.
        let span = span.filter(|_| self.config.tracer.records());
        let make = || Delivery {
            // Each worker counts references on a cache line of its own.
            frame: Multicast::new(if alone { frame.clone() } else { frame.fork() }),
            exclude,
            topic: name.clone(),
            stamp: Stamp::new(published, span),
        };
        match shard {
            Some(shard) => shard.publish(topic, source, frame.len(), make),
            None => self.router.publish(topic, source, frame.len(), make),
        }
    }

    pub(crate) fn take_inbox(&self, worker: usize) -> Option<mpsc::Receiver<Posted>> {
        self.inboxes.get(worker)?.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn give_back_inbox(&self, worker: usize, inbox: mpsc::Receiver<Posted>) {
        if let Some(place) = self.inboxes.get(worker) {
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(inbox);
        }
    }
}
