//! Streams: the kept messages of topics with history.
//!
//! A topic's stream lies in the table of the topic's stripe of the router, so it is used under the
//! lock that also orders the pushes of its messages. [`Streams`] has what the stripes share: the
//! rules with their budget, the clock, and the recent publishes with `once`.

mod clock;
mod cluster_store;
#[cfg(feature = "disk")]
mod disk;
#[cfg(not(feature = "disk"))]
#[path = "no_disk.rs"]
#[allow(dead_code, reason = "without a store, nothing is written to it")]
mod disk;
mod epoch;
mod kept;
mod links;
mod position_time;
mod publish;
mod read;
mod retired;
mod room;
#[cfg_attr(not(feature = "disk"), allow(dead_code, reason = "without a store, nothing is read from it"))]
mod stored;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use deeperhub_history::{Budget, OnceWindow, RuleId, Seconds};
use deeperhub_listener::MemoryBudget;
use deeperhub_metrics::{RegisterError, Registry, Unit};
use deeperhub_protocol::Topic;
use deeperhub_protocol::frame::KeptFrame;
use deeperhub_protocol::message::Features;
use deeperhub_router::{DeferredPublisher, Router, Shard};

use crate::config::HistoryLimits;
use crate::delivery::Delivery;
use crate::metrics::{EvictionLabel, HistoryMetrics};
use crate::planted::planted;

pub(crate) use clock::Clock;
pub(crate) use cluster_store::{
    AppendOutcome, ClusterPublish, ClusterStore, LiveEffect, PageRequest, ReaderRequest, Readiness,
    Requester, TopCheck, Waiter,
};
pub(crate) use disk::Disk;
#[cfg(feature = "disk")]
pub(crate) use disk::Found;
pub(crate) use kept::{CurrentStream, KeptStream, NoStream, Remains, StreamStripe};
pub(crate) use position_time::whole_seconds;
pub(crate) use publish::{Appended, Once, PublishRefusal, StreamPublish};
pub(crate) use read::HistoryRead;
pub use read::TopicHistory;
use stored::StreamName;
pub(crate) use stored::{
    HistoryNotice, HistoryPage, ReadFailed, ReadPurpose, ReadRequest, ReadResult, StoreNotice, StoreState,
    Ticket,
};

/// Messages and streams that a sweep handles under one lock.
const SWEEP_STEP: usize = 256;

/// A rule that keeps messages, with its budget. A guard, because a reference count that all workers
/// change would be contended.
pub(crate) type StreamRule = (Guard<Arc<Budget>>, RuleId);

/// Router whose topics can have a stream.
pub(crate) type StreamRouter = Router<Delivery, KeptStream>;

/// One worker's part of the router.
pub(crate) type HubShard = Shard<Delivery, KeptStream>;

/// Publisher of a thread that wakes workers once for a burst of messages.
pub(crate) type HubPublisher = DeferredPublisher<Delivery, KeptStream>;

/// State that all streams of a node share.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) clock: Arc<Clock>,
    /// The rules, and what their streams use.
    budget: Arc<ArcSwap<Budget>>,
    /// Answers to the recent publishes with `once`.
    once: Mutex<OnceWindow<publish::OnceAnswer>>,
    /// Stripe that is swept next when the budget is exceeded.
    next_swept: AtomicUsize,
    /// Sweeps in which the limit on bytes stays, although memory is short.
    settling: AtomicUsize,
    /// Bytes of a frame from which clients' compression keeps a second form of it, or `None`
    /// without compression.
    compression_threshold: Option<usize>,
    /// The store that keeps the streams over a restart.
    pub(crate) disk: Option<Arc<Disk>>,
    /// The store that keeps the streams of a cluster. There is never a disk beside it.
    pub(crate) cluster: Option<Arc<ClusterStore>>,
    pub(crate) metrics: HistoryMetrics,
}

impl Streams {
    /// Creates the shared part.
    pub(crate) fn new(
        limits: &HistoryLimits,
        clock: Arc<Clock>,
        compression_threshold: Option<usize>,
        disk: Option<Arc<Disk>>,
        cluster: Option<Arc<ClusterStore>>,
        metrics: HistoryMetrics,
    ) -> Self {
        let seeds = [fastrand::u64(..), fastrand::u64(..)];
        Self {
            clock,
            budget: Arc::new(ArcSwap::from_pointee(budget(limits))),
            once: Mutex::new(OnceWindow::new(seeds, limits.once)),
            next_swept: AtomicUsize::new(0),
            settling: AtomicUsize::new(0),
            compression_threshold,
            disk,
            cluster,
            metrics,
        }
    }

    /// Returns the value of a new stripe.
    pub(crate) fn stripe(&self) -> StreamStripe {
        let is_mirror = self.cluster.is_some();
        StreamStripe::new(self.budget.load_full(), Arc::clone(&self.clock), self.disk.clone(), is_mirror)
    }

    /// Tells a worker something.
    pub(crate) fn notify(&self, worker: u16, notice: StoreNotice) {
        match (&self.disk, &self.cluster) {
            (Some(disk), _) => disk.notify(worker, notice),
            (None, Some(store)) => store.notify(worker, notice),
            (None, None) => {}
        }
    }

    /// Returns the optional features that the rules need.
    pub(crate) fn features(&self) -> Features {
        if self.budget.load().rules().keep_history() { Features::HISTORY } else { Features::NONE }
    }

    /// Returns the rule that keeps messages of a topic, with its budget.
    #[inline]
    pub(crate) fn rule(&self, topic: &Topic<'_>) -> Option<StreamRule> {
        let budget = self.budget.load();
        if budget.rules().is_empty() {
            return None;
        }
        find_rule(&budget, topic).map(|rule| (budget, rule))
    }

    /// Replaces rules and limits. Streams that no rule keeps any more are removed.
    pub(crate) fn set_limits(&self, router: &StreamRouter, limits: &HistoryLimits) {
        self.once.lock().unwrap_or_else(PoisonError::into_inner).set_limits(limits.once);
        if let Some(store) = &self.cluster {
            store.set_limits(limits);
        }
        let new = Arc::new(budget(limits));
        for stripe in router.stripes() {
            let mut remains = Remains::default();
            router.update_stripe(stripe, |stripe| {
                let find = |name: &StreamName| find_rule(&new, &Topic::parse(&*name.topic).ok()?);
                remains.removed = stripe.set_budget(Arc::clone(&new), find, &mut remains.evicted);
            });
            self.finish(router, remains, Seconds::default());
        }
        self.budget.store(new);
        match &self.cluster {
            Some(store) => store.rule_changes.send_replace(()),
            None => self.reopen(router),
        }
    }

    /// Calls `read` with the stream of a topic, without expired messages. Returns `None` if the topic
    /// has no stream.
    pub(crate) fn with_stream<R>(
        &self,
        router: &StreamRouter,
        topic: &Topic<'_>,
        now: Seconds,
        read: impl FnOnce(&CurrentStream<'_>) -> R,
    ) -> Option<R> {
        let mut remains = Remains::default();
        let output = router.update_kept(topic, |_, kept, stripe| {
            stripe.current(kept, now, &mut remains).map(|current| read(&current))
        });
        self.finish(router, remains, now);
        output
    }

    /// Does what an operation under a lock left to do.
    #[inline]
    pub(crate) fn finish(&self, router: &StreamRouter, mut remains: Remains, now: Seconds) {
        self.count_evicted(&remains);
        retired::retire(&mut remains.evicted);
        if remains.is_over_budget || !remains.removed.is_empty() {
            self.finish_rare(router, &remains, now);
        }
    }

    #[cold]
    fn finish_rare(&self, router: &StreamRouter, remains: &Remains, now: Seconds) {
        for name in &remains.removed {
            self.forget(router, name);
        }
        if remains.is_over_budget {
            // Each publish over the budget sweeps another stripe, so all of them take part.
            let next = self.next_swept.fetch_add(1, Ordering::Relaxed) % router.stripes().len().max(1);
            self.sweep(router, next, now);
        }
    }

    #[inline]
    fn count_evicted(&self, remains: &Remains) {
        for (_, reason) in remains.evicted.iter() {
            self.metrics.evicted.inc(EvictionLabel(*reason));
        }
    }

    /// Removes the router's entry of a topic whose stream was removed, and what the store has of it.
    fn forget(&self, router: &StreamRouter, name: &StreamName) {
        if let Ok(topic) = Topic::parse(&*name.topic)
            && !planted!(StreamNotForgotten)
        {
            router.update_kept(&topic, |topic, kept, stripe| kept.forget_removed(topic, stripe));
        }
        if let (Some(disk), Some(stream)) = (&self.disk, name.disk) {
            disk.remove(stream);
        }
    }

    /// Returns the longest time for which a rule keeps messages.
    pub(crate) fn longest_ttl(&self) -> Duration {
        let budget = self.budget.load();
        let ttls = budget.rules().iter().map(|(_, rule)| rule.policy());
        ttls.filter(|policy| policy.keeps_history()).map(|policy| policy.ttl()).max().unwrap_or_default()
    }

    /// Evicts and removes what is due in a stripe. Returns `true` if more may be due.
    pub(crate) fn sweep(&self, router: &StreamRouter, stripe: usize, now: Seconds) -> bool {
        let mut remains = Remains::default();
        let has_more = router.update_stripe(stripe, |stripe| {
            let swept = stripe.table.sweep(now, SWEEP_STEP, &mut remains.evicted);
            remains.removed = swept.removed;
            swept.has_more
        });
        self.count_evicted(&remains);
        for name in &remains.removed {
            self.forget(router, name);
        }
        has_more == Some(true)
    }

    /// Lets history give way before clients do. While memory is short, the limit on bytes falls to
    /// half of what is kept, again and again, and streams without subscribers are removed, unless a
    /// store keeps them.
    ///
    /// Freed memory shows in later measurements only, so some calls after that change nothing.
    pub(crate) fn yield_memory(&self, router: &StreamRouter, memory: &MemoryBudget, limit_bytes: u64) {
        let budget = self.budget.load();
        let current = budget.limit_bytes();
        let threshold = MemoryBudget::REFUSE_PERCENT - YIELD_PERCENT;
        if memory.used().saturating_mul(100) < memory.limit().saturating_mul(threshold) {
            // Afterwards, the limit rises step by step.
            let next = current.saturating_add(limit_bytes / 16).min(limit_bytes);
            if next != current {
                budget.set_limit_bytes(next);
            }
            return;
        }
        if self
            .settling
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_ok()
        {
            return;
        }
        self.settling.store(SETTLING_SWEEPS, Ordering::Relaxed);
        budget.set_limit_bytes((budget.bytes() / 2).min(current));
        if self.disk.is_some() {
            // A stream that leaves the memory would leave the disk, too.
            return;
        }
        self.yield_streams(router);
    }

    /// Returns the number of topics with a history.
    pub(crate) fn streams(&self) -> u64 {
        self.budget.load().streams()
    }

    /// Returns the bytes of all kept messages.
    pub(crate) fn bytes(&self) -> u64 {
        self.budget.load().bytes()
    }

    /// Registers the metrics.
    pub(crate) fn register(
        &self,
        router: &StreamRouter,
        registry: &mut Registry,
    ) -> Result<(), RegisterError> {
        self.metrics.register(registry)?;
        if let Some(disk) = &self.disk {
            disk.register(registry)?;
        }
        if let Some(store) = &self.cluster {
            store.register(registry)?;
        }
        let budget = Arc::clone(&self.budget);
        registry.register_gauge_fn(
            "deeperhub_history_streams",
            "Topics with a history",
            Unit::None,
            move || gauge(budget.load().streams()),
        )?;
        let router = router.clone();
        registry.register_gauge_fn(
            "deeperhub_history_messages",
            "Messages kept in the histories of all topics",
            Unit::None,
            move || gauge(kept_messages(&router)),
        )?;
        let budget = Arc::clone(&self.budget);
        registry.register_gauge_fn(
            "deeperhub_history_bytes",
            "Bytes of the messages kept in the histories of all topics",
            Unit::Bytes,
            move || gauge(budget.load().bytes()),
        )?;
        let budget = Arc::clone(&self.budget);
        registry.register_gauge_fn(
            "deeperhub_history_limit_bytes",
            "Maximum bytes of the histories of all topics, lower while memory is short",
            Unit::Bytes,
            move || gauge(budget.load().limit_bytes()),
        )
    }
}

/// Sweeps after the limit fell in which it stays.
const SETTLING_SWEEPS: usize = 3;

/// Part of the memory budget, in percent, by which history gives way earlier than new connections.
const YIELD_PERCENT: u64 = 5;

/// Returns the number of kept messages of all topics.
pub(crate) fn kept_messages(router: &StreamRouter) -> u64 {
    let messages = |stripe| router.update_stripe(stripe, |stripe| stripe.table.messages());
    router.stripes().filter_map(messages).sum()
}

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn budget(limits: &HistoryLimits) -> Budget {
    Budget::new(limits.rules.clone(), limits.budget.with_message_overhead(KeptFrame::OVERHEAD_BYTES))
}

/// Returns the rule that keeps messages of a topic. Reserved topics have none.
fn find_rule(budget: &Budget, topic: &Topic<'_>) -> Option<RuleId> {
    if topic.as_str().starts_with('$') {
        return None;
    }
    let rules = budget.rules();
    rules.find(topic).filter(|rule| rules.get(*rule).is_some_and(|rule| rule.policy().keeps_history()))
}
