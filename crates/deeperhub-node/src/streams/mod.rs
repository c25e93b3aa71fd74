//! Streams: the kept messages of topics with history.
//!
//! A topic's stream lies in the table of the topic's stripe of the router, so it is used under the
//! lock that also orders the pushes of its messages. [`Streams`] has what the stripes share: the
//! rules with their budget, the clock, and the recent publishes with `once`.

mod clock;
mod kept;
mod publish;
mod read;
mod sweeper;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;
use deeperhub_history::{Budget, EvictionReason, OnceWindow, RuleId, Seconds};
use deeperhub_listener::MemoryBudget;
use deeperhub_metrics::{RegisterError, Registry, Unit};
use deeperhub_protocol::Topic;
use deeperhub_protocol::frame::KeptFrame;
use deeperhub_protocol::message::Features;
use deeperhub_router::Router;

use crate::config::HistoryLimits;
use crate::hub::Delivery;
use crate::metrics::{EvictionLabel, HistoryMetrics};
use crate::replay::planted;

pub(crate) use clock::Clock;
pub(crate) use kept::{KeptStream, NoStream, Remains, StreamStripe};
pub(crate) use publish::{Once, PublishRefusal, Sequenced, StreamPublish};
pub use read::TopicHistory;
pub(crate) use sweeper::StreamSweeper;

/// Messages and streams that a sweep handles under one lock.
const SWEEP_STEP: usize = 256;

/// A rule that keeps messages, with its budget.
pub(crate) type StreamRule = (Arc<Budget>, RuleId);

/// Router whose topics can have a stream.
pub(crate) type StreamRouter = Router<Delivery, KeptStream>;

/// What all streams of a node share.
#[derive(Debug)]
pub(crate) struct Streams {
    pub(crate) clock: Arc<Clock>,
    /// The rules, and what their streams use.
    budget: Arc<ArcSwap<Budget>>,
    /// Answers to the recent publishes with `once`.
    once: Mutex<OnceWindow<publish::OnceAnswer>>,
    /// Stripe that is swept next when the budget is exceeded.
    next_swept: AtomicUsize,
    /// Bytes of a frame from which clients' compression keeps a second form of it, or `None`
    /// without compression.
    compression_threshold: Option<usize>,
    pub(crate) metrics: HistoryMetrics,
}

impl Streams {
    /// Creates the shared part.
    pub(crate) fn new(
        limits: &HistoryLimits,
        clock: Arc<Clock>,
        compression_threshold: Option<usize>,
        metrics: HistoryMetrics,
    ) -> Self {
        let seeds = [fastrand::u64(..), fastrand::u64(..)];
        Self {
            clock,
            budget: Arc::new(ArcSwap::from_pointee(budget(limits))),
            once: Mutex::new(OnceWindow::new(seeds, limits.once)),
            next_swept: AtomicUsize::new(0),
            compression_threshold,
            metrics,
        }
    }

    /// Returns the value of a new stripe.
    pub(crate) fn stripe(&self) -> StreamStripe {
        StreamStripe::new(self.budget.load_full(), Arc::clone(&self.clock))
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
        find_rule(&budget, topic).map(|rule| (Arc::clone(&budget), rule))
    }

    /// Replaces rules and limits. Streams that no rule keeps any more are removed.
    pub(crate) fn set_limits(&self, router: &StreamRouter, limits: &HistoryLimits) {
        let new = Arc::new(budget(limits));
        for stripe in router.stripes() {
            let mut remains = Remains::default();
            router.update_stripe(stripe, |stripe| {
                let find = |name: &Arc<str>| find_rule(&new, &Topic::parse(&**name).ok()?);
                remains.removed = stripe.table.set_budget(Arc::clone(&new), find, &mut remains.evicted);
            });
            self.finish(router, remains, Seconds::default());
        }
        self.budget.store(new);
    }

    /// Does what an operation under a lock left to do.
    #[inline]
    pub(crate) fn finish(&self, router: &StreamRouter, remains: Remains, now: Seconds) {
        if !remains.evicted.is_empty() {
            self.count_evicted(&remains);
        }
        if remains.is_over_budget || !remains.removed.is_empty() {
            self.finish_rare(router, remains, now);
        }
    }

    #[cold]
    fn finish_rare(&self, router: &StreamRouter, remains: Remains, now: Seconds) {
        for name in &remains.removed {
            forget(router, name);
        }
        if remains.is_over_budget {
            // Each publish over the budget sweeps another stripe, so all of them take part.
            let next = self.next_swept.fetch_add(1, Ordering::Relaxed) % router.stripes().len().max(1);
            self.sweep(router, next, now);
        }
    }

    fn count_evicted(&self, remains: &Remains) {
        for reason in EvictionReason::ALL {
            let count = remains.evicted.count(reason);
            if count > 0 {
                self.metrics.evicted.add(EvictionLabel(reason), count);
            }
        }
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
            forget(router, name);
        }
        has_more == Some(true)
    }

    /// Removes the stream of a rule that is idle longest in some stripe. Returns `false` if all
    /// streams of the rule have subscribers.
    pub(crate) fn make_room(&self, router: &StreamRouter, rule: RuleId) -> bool {
        let stripes = router.stripes();
        let first = fastrand::usize(..stripes.len().max(1));
        for stripe in stripes.clone().cycle().skip(first).take(stripes.len()) {
            let mut remains = Remains::default();
            let removed =
                router.update_stripe(stripe, |stripe| stripe.table.remove_idlest(rule, &mut remains.evicted));
            if let Some(Some(name)) = removed {
                self.count_evicted(&remains);
                forget(router, &name);
                return true;
            }
        }
        false
    }

    /// Lets history give way before clients do: above the usage at which connections are refused,
    /// the limit on bytes is halved for as long as memory is short.
    pub(crate) fn yield_memory(&self, memory: &MemoryBudget, limit_bytes: u64) {
        let budget = self.budget.load();
        let is_short = memory.used().saturating_mul(100)
            >= memory.limit().saturating_mul(MemoryBudget::REFUSE_PERCENT - YIELD_PERCENT);
        let target = if is_short { budget.bytes().min(limit_bytes) / 2 } else { limit_bytes };
        let current = budget.limit_bytes();
        // While memory is short, the limit only falls. Afterwards it rises again step by step.
        let next = if is_short { target.min(current) } else { (current + limit_bytes / 16).min(target) };
        if next != current {
            budget.set_limit_bytes(next);
        }
    }

    /// Registers the metrics.
    pub(crate) fn register(
        &self,
        router: &StreamRouter,
        registry: &mut Registry,
    ) -> Result<(), RegisterError> {
        self.metrics.register(registry)?;
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
            move || {
                let messages = |stripe| router.update_stripe(stripe, |stripe| stripe.table.messages());
                gauge(router.stripes().filter_map(messages).sum())
            },
        )?;
        let budget = Arc::clone(&self.budget);
        registry.register_gauge_fn(
            "deeperhub_history_bytes",
            "Bytes of the messages kept in the histories of all topics",
            Unit::Bytes,
            move || gauge(budget.load().bytes()),
        )
    }
}

/// Part of the memory budget, in percent, by which history gives way earlier than new connections.
const YIELD_PERCENT: u64 = 5;

fn gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Removes the router's entry of a topic whose stream was removed.
fn forget(router: &StreamRouter, name: &Arc<str>) {
    if let Ok(topic) = Topic::parse(&**name)
        && !planted!(StreamNotForgotten)
    {
        router.update_kept(&topic, |_, kept, stripe| kept.forget_removed(stripe));
    }
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
