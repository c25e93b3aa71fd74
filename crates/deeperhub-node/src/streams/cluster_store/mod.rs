//! Streams that the cluster's broker keeps.
//!
//! The *store*, the broker, gives each message of a topic with history its position, and sends the
//! message to the nodes that follow the topic. Each node has a *mirror* of such a stream in the table
//! of the topic's stripe. From there, its subscribers get live messages, replays and recoveries.
//!
//! Only the store gives offsets. The mirror changes under the lock of the topic's stripe, one message
//! with its push at a time, so any thread may apply what the store has sent.

mod appends;
mod mirror;
mod probe;
mod probe_topic;
mod publish;
mod requests;
mod spans;
mod stripe;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deeperhub_cluster::{AppendError, AppendNumber, Broker, StorePosition, StreamLimits, StreamRule};
use deeperhub_history::{Policy, ReadRequest};
use deeperhub_metrics::{RegisterError, Registry};
use tokio::sync::{mpsc, oneshot, watch};

use super::links::Links;
use super::stored::StoreNotice;
use crate::HistoryLimits;
use crate::metrics::{AppendLabel, MirrorMetrics, StoreMetrics};
use crate::planted::planted;
use crate::trace::Tracer;
use appends::Appends;
pub(crate) use appends::{AppendOutcome, Requester};
pub(crate) use mirror::{LiveEffect, Readiness, TopCheck, TopicMirror};
use probe_topic::ProbeTopic;
pub(crate) use publish::ClusterPublish;
pub(crate) use requests::{PageDone, PageRequest, ReaderRequest, Waiter};
use spans::StoreSpans;

/// The cluster's store, with what connects it to the node.
#[derive(Debug)]
pub(crate) struct ClusterStore {
    pub(crate) broker: Broker,
    links: Links,
    appends: Appends,
    spans: StoreSpans,
    /// [`BudgetLimits::forget`](deeperhub_history::BudgetLimits::forget) in milliseconds.
    forget_ms: AtomicU64,
    requests: mpsc::UnboundedSender<ReaderRequest>,
    /// Receiving end of the requests, until the reader takes it.
    receiver: Mutex<Option<mpsc::UnboundedReceiver<ReaderRequest>>>,
    /// Topics that subscribers in this process follow.
    pub(crate) watched: Mutex<HashSet<Arc<str>>>,
    /// `false` while mirrors may lack messages, because the broker was away.
    pub(crate) is_checked: AtomicBool,
    /// Changes with each change of rules.
    pub(crate) rule_changes: watch::Sender<()>,
    /// The topic with which this node probes the store.
    pub(crate) probe: ProbeTopic,
    pub(crate) metrics: StoreMetrics,
    pub(crate) mirror_metrics: MirrorMetrics,
}

impl ClusterStore {
    pub(crate) fn new(
        broker: Broker,
        node_id: &str,
        workers: usize,
        history: &HistoryLimits,
        (metrics, mirror_metrics): (StoreMetrics, MirrorMetrics),
    ) -> Self {
        let (requests, receiver) = mpsc::unbounded_channel();
        let store = Self {
            broker,
            links: Links::new(workers),
            appends: Appends::default(),
            spans: StoreSpans::default(),
            forget_ms: AtomicU64::new(0),
            requests,
            receiver: Mutex::new(Some(receiver)),
            watched: Mutex::default(),
            is_checked: AtomicBool::new(true),
            rule_changes: watch::Sender::new(()),
            probe: ProbeTopic::new(node_id),
            metrics,
            mirror_metrics,
        };
        store.set_limits(history);
        store
    }

    /// Sets the rules, and the time for which the store remembers a position without messages.
    pub(super) fn set_limits(&self, limits: &HistoryLimits) {
        let forget = u64::try_from(limits.budget.forget.as_millis()).unwrap_or(u64::MAX);
        self.forget_ms.store(forget, Ordering::Relaxed);
        self.broker.set_stream_rules(limits.rules.iter().map(|(_, rule)| {
            let policy = rule.policy();
            let limits = policy.keeps_history().then(|| self.limits_of(policy));
            StreamRule { pattern: rule.pattern().clone(), limits }
        }));
    }

    /// Returns the limits of a rule's streams in the store.
    pub(crate) fn limits_of(&self, policy: &Policy) -> StreamLimits {
        let forget = Duration::from_millis(self.forget_ms.load(Ordering::Relaxed));
        StreamLimits { messages: policy.history(), ttl: policy.ttl(), forget }
    }

    /// Returns `true` if the store can be reached, as far as the node knows.
    pub(crate) fn is_up(&self) -> bool {
        self.broker.is_up()
    }

    /// Returns `true` if a subscriber in this process follows a topic.
    pub(crate) fn is_watched(&self, name: &Arc<str>) -> bool {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    /// Returns `false` while mirrors may lack messages, because the broker was away.
    pub(crate) fn is_checked(&self) -> bool {
        self.is_checked.load(Ordering::Acquire)
    }

    /// Queues a read that a mirror asks for.
    pub(crate) fn queue_read(&self, topic: Arc<str>, read: ReadRequest) {
        // The reader ends with the node.
        let _ = self.requests.send(ReaderRequest::Read { topic, read });
    }

    /// Lets the store start a new stream of a topic, because it has given an offset again that this
    /// node knows.
    pub(crate) fn report_rewritten(&self, topic: Arc<str>, known: StorePosition) {
        let _ = self.requests.send(ReaderRequest::Rewritten { topic, known });
    }

    /// Queues the read of a topic for which clients of a worker wait. The worker is told when the
    /// stream is whole, or when the store could not be read. `read` is what the mirror asks for.
    pub(crate) fn read_for_worker(&self, topic: Arc<str>, read: Option<ReadRequest>, worker: u16) {
        let _ = self.requests.send(ReaderRequest::Wait { topic, read, waiter: Waiter::Worker(worker) });
    }

    /// Waits until the stream of a topic is whole, or the store could not be read. `read` is what the
    /// mirror asks for.
    pub(crate) async fn read_for_handle(&self, topic: Arc<str>, read: Option<ReadRequest>) {
        let (sender, receiver) = oneshot::channel();
        let _ = self.requests.send(ReaderRequest::Wait { topic, read, waiter: Waiter::Handle(sender) });
        let _ = receiver.await;
    }

    /// Queues the read of a page of a topic whose mirror cannot answer.
    pub(crate) fn read_page(&self, page: PageRequest, done: PageDone) {
        let _ = self.requests.send(ReaderRequest::Page { page, done });
    }

    pub(crate) fn take_receiver(&self) -> Option<mpsc::UnboundedReceiver<ReaderRequest>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Creates the queue of notices for a worker that starts.
    pub(crate) fn attach(&self, worker: u16) -> mpsc::UnboundedReceiver<StoreNotice> {
        self.links.attach(worker)
    }

    /// Tells a worker something.
    pub(crate) fn notify(&self, worker: u16, notice: StoreNotice) {
        self.links.send(worker, notice);
    }

    /// Hands the outcome of an append to its requester.
    pub(crate) fn on_appended(&self, number: AppendNumber, outcome: AppendOutcome, tracer: &Tracer) {
        self.spans.end(number, &outcome, tracer);
        let requester = Requester::of(number);
        if requester == Requester::Probe {
            return self.probe.on_appended(number, outcome);
        }
        self.mirror_metrics.waiting_appends.dec();
        self.metrics.appends.inc(match &outcome {
            Ok(_) => AppendLabel::Ok,
            Err(AppendError::Refused(reason)) => {
                tracing::warn!(reason, "Store refused a message");
                AppendLabel::Refused
            }
            Err(_) => AppendLabel::Unavailable,
        });
        match requester {
            Requester::Worker(_) if planted!(AppendUnanswered) => {}
            Requester::Worker(worker) => {
                self.links.send(worker, StoreNotice::Appended { number, outcome });
            }
            Requester::Handle => self.appends.finish(number, outcome),
            Requester::Nobody | Requester::Probe => {}
        }
    }

    /// Waits for the outcome of an append of a handle. Returns `None` if there is none in time.
    pub(crate) async fn wait(&self, number: AppendNumber, timeout: Duration) -> Option<AppendOutcome> {
        let since = Instant::now();
        let outcome = self.appends.wait(number, timeout).await;
        if let Some(Ok(_)) = outcome {
            self.record_appended(since.elapsed());
        }
        outcome
    }

    /// Returns `true` if the store has refused an append of a handle.
    pub(crate) fn was_refused(&self, number: AppendNumber) -> bool {
        self.appends.was_refused(number)
    }

    /// Records the time from a publish to its answer.
    pub(crate) fn record_appended(&self, time: Duration) {
        self.metrics.append_time.observe_duration(time);
    }

    /// Registers the metrics.
    pub(crate) fn register(&self, registry: &mut Registry) -> Result<(), RegisterError> {
        self.metrics.register(registry)?;
        self.mirror_metrics.register(registry)
    }
}
