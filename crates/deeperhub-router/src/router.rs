//! The routing table that all threads share, and publishing through it.

use crate::inbox::{Congestion, Inbox, ListIds, OrderingKeys, SoftLimits};
use crate::matched_lists::MatchedLists;
use crate::patterns::{PatternKey, Patterns};
use crate::shard::Shard;
use crate::stripe::{RouteEntry, Stripe, is_reserved};
use crate::sync::{Arc, AtomicUsize, Mutex, MutexGuard, Ordering, RwLock, lock, read, write};
use crate::wakeups::{WakeOnDrop, Wakeups};
use ahash::RandomState;
use deeperhub_types::{Subscription, Topic};
use std::fmt;

/// Number of stripes: parts of the table of exact topics, each under its own lock. With many
/// stripes, threads that publish to different topics seldom wait for each other.
#[cfg(not(loom))]
pub(crate) const STRIPES: usize = 64;
#[cfg(loom)]
pub(crate) const STRIPES: usize = 1;

/// Number of a worker ("shard"): 0 to `shards - 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u16);

/// A position in a shard's inbox, after all messages published before it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InboxPosition(pub(crate) u64);

/// Result of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Number of matching subscriptions to topics and patterns, on all shards. A client with two
    /// matching subscriptions counts twice.
    pub subscribers: u64,
    /// `true` if an inbox that got the message is over its soft limit. The publisher should then
    /// pause until [`Router::is_congested`] returns `false`.
    pub congested: bool,
    /// Cost of matching patterns: the number of lookups in their table, plus the number of
    /// additions of level hashes. Callers can charge it to the publisher. 0 if there are no
    /// patterns.
    pub steps: usize,
}

/// Options of a router.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Config {
    /// Number of unfinished envelopes of one shard above which publishes report congestion. An
    /// envelope is unfinished until the worker has delivered it to all its subscribers. Congestion
    /// ends at half of the limit. Default 4096.
    pub inbox_soft_limit: usize,
    /// Bytes of unfinished envelopes of one shard above which publishes report congestion. An
    /// envelope counts the bytes that were passed to [`Router::publish`], and those of its list
    /// numbers. Congestion ends at half of the limit. Default 64 MiB.
    pub inbox_soft_limit_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { inbox_soft_limit: 4096, inbox_soft_limit_bytes: 64 << 20 }
    }
}

/// The routing table. Clones are handles to the same table.
pub struct Router<M> {
    shared: Arc<Shared<M>>,
}

impl<M> Clone for Router<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<M> fmt::Debug for Router<M> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Router").field("shards", &self.shared.inboxes.len()).finish_non_exhaustive()
    }
}

/// A value that shares its cache lines with no other value. Processors fetch cache lines in pairs,
/// so the value gets two.
#[repr(align(128))]
struct CachePadded<T>(T);

/// State that all threads share. Lock order: patterns, one stripe, one inbox; never two stripes.
pub(crate) struct Shared<M> {
    pub(crate) config: Config,
    pub(crate) hasher: RandomState,
    pub(crate) inboxes: Box<[Inbox<M>]>,
    pub(crate) congestion: Congestion,
    stripes: Box<[CachePadded<Mutex<Stripe>>]>,
    pub(crate) patterns: RwLock<Patterns>,
    /// Number of patterns, so that publishes skip the lock of the patterns if there are none.
    pattern_count: AtomicUsize,
    observer: std::sync::OnceLock<InterestObserver>,
}

/// Callback that is called for each change of interest.
type InterestObserver = Box<dyn Fn(&std::sync::Arc<str>, InterestChange) + Send + Sync>;

/// Change of interest: a topic or pattern gained its first subscriber or lost its last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterestChange {
    /// The topic or pattern has its first subscriber.
    Gained,
    /// The topic or pattern has no subscriber any more.
    Lost,
}

impl<M> Shared<M> {
    pub(crate) fn hash(&self, name: &str) -> u64 {
        self.hasher.hash_one(name)
    }

    pub(crate) fn soft_limits(&self) -> SoftLimits<'_> {
        SoftLimits { config: &self.config, congestion: &self.congestion }
    }

    pub(crate) fn stripe(&self, hash: u64) -> MutexGuard<'_, Stripe> {
        // The hash table of the stripe uses the lowest and the highest bits.
        let index = (hash >> 32) as usize % STRIPES;
        lock(&self.stripes[index].0)
    }

    pub(crate) fn stripe_at(&self, index: usize) -> Option<MutexGuard<'_, Stripe>> {
        Some(lock(&self.stripes.get(index)?.0))
    }

    /// Calls the observer. Callers hold the lock of the name's entry, so that changes are reported
    /// in order.
    pub(crate) fn notify_interest_change(&self, name: &std::sync::Arc<str>, change: InterestChange) {
        if let Some(observer) = self.observer.get() {
            observer(name, change);
        }
    }

    /// Publishes a message; see [`Router::publish`].
    pub(crate) fn publish(
        &self,
        topic: &Topic<'_>,
        source: Option<u64>,
        bytes: usize,
        mut make: impl FnMut() -> M,
        mut wakeups: Wakeups<'_>,
    ) -> Published {
        let name = topic.as_str();
        let hash = self.hash(name);
        let mut congested = false;
        let mut push = |shard: u16, lists| {
            if let Some(inbox) = self.inboxes.get(usize::from(shard)) {
                let keys = OrderingKeys { topic: hash, source };
                congested |= inbox.push(keys, lists, bytes, make(), self.soft_limits(), &mut wakeups);
            }
        };
        let (subscribers, steps) = match self.push_to_topic(hash, name, &mut push) {
            Some(subscribers) => (subscribers, 0),
            None => self.push_to_topic_and_patterns(hash, name, &mut push),
        };
        drop(wakeups);
        Published { subscribers, congested, steps }
    }

    /// Pushes to the subscribers of the topic itself and returns their number. If there are
    /// patterns that the topic could match, pushes nothing and returns `None`.
    fn push_to_topic(&self, hash: u64, name: &str, push: &mut impl FnMut(u16, ListIds)) -> Option<u64> {
        let may_match_patterns = || self.pattern_count.load(Ordering::Acquire) != 0 && !is_reserved(name);
        if may_match_patterns() {
            return None;
        }
        // All pushes of a topic happen under its stripe's lock, so every inbox has them in the same
        // order.
        let stripe = self.stripe(hash);
        // Check again: the first pattern may have been added before the stripe was locked. Its
        // subscriber may already have a message of this topic from another thread, so it must get
        // this one too.
        if may_match_patterns() {
            return None;
        }
        let mut subscribers = 0;
        for share in stripe.find(hash, name).into_iter().flat_map(|entry| entry.shards.as_slice()) {
            subscribers += u64::from(share.subscribers);
            push(share.shard, ListIds::One(share.list));
        }
        Some(subscribers)
    }

    /// Pushes to the subscribers of the topic and of patterns that match it. Returns the number of
    /// subscriptions, and the steps of matching.
    fn push_to_topic_and_patterns(
        &self,
        hash: u64,
        name: &str,
        push: &mut impl FnMut(u16, ListIds),
    ) -> (u64, usize) {
        let mut subscribers = 0;
        let mut matched = MatchedLists::new();
        let mut add = |entry: &RouteEntry| {
            for share in entry.shards.as_slice() {
                subscribers += u64::from(share.subscribers);
                matched.push(share.shard, share.list);
            }
        };
        // Hold this lock until all messages are pushed, because subscribing to a pattern relies on
        // it. Match before locking the stripe, so that matching delays no other publish.
        let patterns = read(&self.patterns);
        let cost = patterns.matching(name, &mut add);
        let stripe = self.stripe(hash);
        stripe.find(hash, name).into_iter().for_each(&mut add);
        matched.for_each_shard(|shard, lists| {
            let lists = match lists {
                [list] => ListIds::One(*list as u32),
                lists => ListIds::Many(lists.iter().map(|list| *list as u32).collect()),
            };
            push(shard, lists);
        });
        drop(stripe);
        drop(patterns);
        (subscribers, cost.lookups + cost.additions)
    }

    /// Updates the number of patterns. Callers hold the lock of the patterns, and call this method
    /// after each change.
    pub(crate) fn count_patterns(&self, patterns: &Patterns) {
        self.pattern_count.store(patterns.len(), Ordering::Release);
    }
}

impl<M: Send + 'static> Router<M> {
    /// Creates an empty table for `shards` workers.
    #[must_use]
    pub fn new(shards: u16, config: Config) -> Self {
        Self::with_hasher(shards, config, RandomState::new())
    }

    pub(crate) fn with_hasher(shards: u16, config: Config, hasher: RandomState) -> Self {
        let patterns = Patterns::new(&hasher);
        Self {
            shared: Arc::new(Shared {
                config,
                hasher,
                inboxes: (0..shards).map(Inbox::new).collect(),
                congestion: Congestion::new(),
                stripes: (0..STRIPES).map(|_| CachePadded(Mutex::new(Stripe::new()))).collect(),
                patterns: RwLock::new(patterns),
                pattern_count: AtomicUsize::new(0),
                observer: std::sync::OnceLock::new(),
            }),
        }
    }

    /// Calls `observer` when the first subscriber of a topic or pattern joins on any shard, and
    /// when the last one leaves.
    ///
    /// The calls for one name happen in the order of its changes. They happen under a lock, so
    /// `observer` must be quick, and must neither call the router nor panic. Publishes never call
    /// it.
    ///
    /// Only the first registered observer is used. Register it before there are subscribers.
    pub fn observe_interest(
        &self,
        observer: impl Fn(&std::sync::Arc<str>, InterestChange) + Send + Sync + 'static,
    ) {
        let _ = self.shared.observer.set(Box::new(observer));
    }

    /// Returns the shard of one worker, which is the only consumer of the shard's inbox.
    ///
    /// Another call with the same number replaces the worker, for example after it died. It removes
    /// the subscriptions of the replaced worker and empties the inbox. A remaining [`Shard`] of the
    /// replaced worker no longer has an effect.
    ///
    /// # Panics
    /// Panics if there is no such shard.
    #[must_use]
    pub fn attach(&self, shard: ShardId) -> Shard<M> {
        let shared = &self.shared;
        let inbox = &shared.inboxes[usize::from(shard.0)];
        // From here on, calls of a replaced worker change nothing. A subscribe or unsubscribe in
        // progress holds one of the locks below, so it ends before that lock is taken here.
        let generation = inbox.attach();
        for stripe in 0..STRIPES {
            if let Some(mut stripe) = shared.stripe_at(stripe) {
                stripe.remove_shard(shard.0, &shared.hasher, |name| {
                    shared.notify_interest_change(name, InterestChange::Lost)
                });
            }
        }
        {
            let mut patterns = write(&shared.patterns);
            patterns.remove_shard(shard.0, |name| shared.notify_interest_change(name, InterestChange::Lost));
            shared.count_patterns(&patterns);
        }
        inbox.clear(&shared.congestion);
        Shard::new(Arc::clone(shared), shard, generation)
    }

    /// Pushes one message to each shard that has a matching subscription.
    ///
    /// `make` is called once for each of these shards, under a lock, so it must be quick.
    ///
    /// `source` is a number of the publisher. Messages of one source are delivered in the order in
    /// which they were published, even across topics. Messages without a source are ordered only
    /// with others of their topic. `bytes` counts against [`Config::inbox_soft_limit_bytes`].
    pub fn publish(
        &self,
        topic: &Topic<'_>,
        source: Option<u64>,
        bytes: usize,
        make: impl FnMut() -> M,
    ) -> Published {
        self.shared.publish(topic, source, bytes, make, Wakeups::Immediate(WakeOnDrop::default()))
    }

    /// Returns the current end of a shard's inbox. With [`Shard::deliver_until`], a worker can
    /// deliver all messages published before this call.
    ///
    /// # Panics
    /// Panics if there is no such shard.
    #[must_use]
    pub fn inbox_position(&self, shard: ShardId) -> InboxPosition {
        InboxPosition(self.shared.inboxes[usize::from(shard.0)].last_sequence())
    }

    /// Returns `true` if any inbox is over its soft limit.
    #[must_use]
    pub fn is_congested(&self) -> bool {
        self.shared.congestion.is_congested()
    }

    /// Registers `waker` to be called once when congestion ends. Returns `false` if there is no
    /// congestion.
    #[must_use]
    pub fn wake_when_uncongested(&self, waker: &std::task::Waker) -> bool {
        self.shared.congestion.wake_at_end(waker)
    }

    /// Returns the number of subscribers of exactly this topic or pattern.
    #[must_use]
    pub fn subscriber_count(&self, subscription: &Subscription<'_>) -> u64 {
        let shared = &*self.shared;
        let name = subscription.as_str();
        match subscription {
            Subscription::Topic(_) => {
                let hash = shared.hash(name);
                shared.stripe(hash).find(hash, name).map_or(0, |entry| entry.subscribers())
            }
            Subscription::Pattern(_) => {
                let key = PatternKey::new(name, &shared.hasher);
                read(&shared.patterns).find(&key).map_or(0, |entry| entry.subscribers())
            }
        }
    }

    /// Returns the number of different topics and patterns that have subscribers, without reserved
    /// topics.
    #[must_use]
    pub fn topic_count(&self) -> u64 {
        let topics: usize =
            (0..STRIPES).filter_map(|index| self.shared.stripe_at(index)).map(|stripe| stripe.len()).sum();
        (topics + read(&self.shared.patterns).len()) as u64
    }

    /// Returns the heap bytes of the tables, from their capacities.
    #[cfg(test)]
    pub(crate) fn heap_bytes(&self) -> usize {
        let stripes = (0..STRIPES).filter_map(|index| self.shared.stripe_at(index));
        stripes.map(|stripe| stripe.heap_bytes()).sum::<usize>() + read(&self.shared.patterns).heap_bytes()
    }

    pub(crate) fn shared(&self) -> &Shared<M> {
        &self.shared
    }
}
