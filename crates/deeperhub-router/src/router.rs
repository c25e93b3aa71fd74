//! The routing table that all threads share, and publishing through it.

mod publish;

pub use publish::Published;

use crate::inbox::{Congestion, Inbox, SoftLimits};
use crate::kept::Keep;
use crate::patterns::{PatternKey, Patterns};
use crate::shard::Shard;
use crate::stripe::Stripe;
use crate::sync::{Arc, AtomicUsize, Mutex, MutexGuard, Ordering, RwLock, lock, read, write};
use crate::wakeups::{ShardSet, WakeOnDrop, Wakeups};
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
    /// Seeds of the table's hashes, for simulations that must be repeatable. Clients that know the
    /// seeds can choose names that collide. Default `None`: random seeds.
    pub hash_seeds: Option<[u64; 4]>,
}

impl Default for Config {
    fn default() -> Self {
        Self { inbox_soft_limit: 4096, inbox_soft_limit_bytes: 64 << 20, hash_seeds: None }
    }
}

/// The routing table. Clones are handles to the same table.
///
/// `M` is a message. `T` is a value that the router keeps for each topic; see [`Keep`].
pub struct Router<M, T: Keep = ()> {
    shared: Arc<Shared<M, T>>,
}

impl<M, T: Keep> Clone for Router<M, T> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<M, T: Keep> fmt::Debug for Router<M, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Router").field("shards", &self.shared.inboxes.len()).finish_non_exhaustive()
    }
}

/// A value that shares its cache lines with no other value. Processors fetch cache lines in pairs,
/// so the value gets two.
#[repr(align(128))]
struct CachePadded<V>(V);

/// State that all threads share. Lock order: patterns, one stripe, one inbox; never two stripes.
pub(crate) struct Shared<M, T: Keep> {
    pub(crate) config: Config,
    pub(crate) hasher: RandomState,
    pub(crate) inboxes: Box<[Inbox<M>]>,
    pub(crate) congestion: Congestion,
    stripes: Box<[CachePadded<Mutex<Stripe<T>>>]>,
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

impl<M, T: Keep> Shared<M, T> {
    pub(crate) fn hash(&self, name: &str) -> u64 {
        self.hasher.hash_one(name)
    }

    pub(crate) fn soft_limits(&self) -> SoftLimits<'_> {
        SoftLimits { config: &self.config, congestion: &self.congestion }
    }

    pub(crate) fn stripe(&self, hash: u64) -> MutexGuard<'_, Stripe<T>> {
        lock(&self.stripes[self.stripe_index(hash)].0)
    }

    fn stripe_index(&self, hash: u64) -> usize {
        // The hash table of the stripe uses the lowest and the highest bits.
        (hash >> 32) as usize % STRIPES
    }

    pub(crate) fn stripe_at(&self, index: usize) -> Option<MutexGuard<'_, Stripe<T>>> {
        Some(lock(&self.stripes.get(index)?.0))
    }

    /// Wakes the workers of a set that still sleep, and empties the set.
    pub(crate) fn wake(&self, shards: &mut ShardSet) {
        while let Some(shard) = shards.pop() {
            if let Some(inbox) = self.inboxes.get(shard) {
                inbox.wake();
            }
        }
    }

    /// Calls the observer. Callers hold the lock of the name's entry, so that changes are reported
    /// in order.
    pub(crate) fn notify_interest_change(&self, name: &std::sync::Arc<str>, change: InterestChange) {
        if let Some(observer) = self.observer.get() {
            observer(name, change);
        }
    }

    /// Updates the number of patterns. Callers hold the lock of the patterns, and call this method
    /// after each change.
    pub(crate) fn count_patterns(&self, patterns: &Patterns) {
        self.pattern_count.store(patterns.len(), Ordering::Release);
    }
}

impl<M: Send + 'static> Router<M> {
    /// Creates an empty table for `shards` workers, which keeps no values for topics.
    /// [`keeping`](Self::keeping) creates one that does.
    #[must_use]
    pub fn new(shards: u16, config: Config) -> Self {
        Self::keeping(shards, config)
    }
}

impl<M: Send + 'static, T: Keep> Router<M, T> {
    /// Creates an empty table for `shards` workers, which keeps a value for each topic; see
    /// [`Keep`].
    #[must_use]
    pub fn keeping(shards: u16, config: Config) -> Self
    where
        T::Stripe: Default,
    {
        Self::keeping_with(shards, config, |_stripe| T::Stripe::default())
    }

    /// Creates a table like [`keeping`](Self::keeping). Calls `stripe_value` with the number of
    /// each stripe ([`stripes`](Self::stripes)) for the value that its topics share.
    #[must_use]
    pub fn keeping_with(shards: u16, config: Config, stripe_value: impl FnMut(usize) -> T::Stripe) -> Self {
        let hasher = match config.hash_seeds {
            Some([first, second, third, fourth]) => RandomState::with_seeds(first, second, third, fourth),
            None => RandomState::new(),
        };
        Self::with_hasher(shards, config, hasher, stripe_value)
    }

    pub(crate) fn with_hasher(
        shards: u16,
        config: Config,
        hasher: RandomState,
        mut stripe_value: impl FnMut(usize) -> T::Stripe,
    ) -> Self {
        let stripe = |index| CachePadded(Mutex::new(Stripe::new(stripe_value(index))));
        let patterns = Patterns::new(&hasher);
        Self {
            shared: Arc::new(Shared {
                config,
                hasher,
                inboxes: (0..shards).map(Inbox::new).collect(),
                congestion: Congestion::new(),
                stripes: (0..STRIPES).map(stripe).collect(),
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
    /// the subscriptions of the replaced worker and empties the inbox. Values that are kept for
    /// topics stay, and learn if their topics lost the last subscriber ([`Keep::on_followed`]). A
    /// remaining [`Shard`] of the replaced worker no longer has an effect.
    ///
    /// # Panics
    /// Panics if there is no such shard.
    #[must_use]
    pub fn attach(&self, shard: ShardId) -> Shard<M, T> {
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

    /// Returns the number of shards.
    #[inline]
    #[must_use]
    pub fn shards(&self) -> usize {
        self.shared.inboxes.len()
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
            (0..STRIPES).filter_map(|index| self.shared.stripe_at(index)).map(|stripe| stripe.listed()).sum();
        (topics + read(&self.shared.patterns).len()) as u64
    }

    /// Returns the heap bytes of the tables, from their capacities.
    #[cfg(test)]
    pub(crate) fn heap_bytes(&self) -> usize {
        let stripes = (0..STRIPES).filter_map(|index| self.shared.stripe_at(index));
        stripes.map(|stripe| stripe.heap_bytes()).sum::<usize>() + read(&self.shared.patterns).heap_bytes()
    }

    /// Returns the number of topics with an entry, which all have subscribers or a kept value.
    #[cfg(test)]
    pub(crate) fn entry_count(&self) -> usize {
        let stripes = (0..STRIPES).filter_map(|index| self.shared.stripe_at(index));
        stripes.map(|stripe| stripe.entry_count()).sum()
    }

    /// Returns `true` if the stripe of a topic is locked.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn is_locked(&self, topic: &str) -> bool {
        let index = self.shared.stripe_index(self.shared.hash(topic));
        self.shared.stripes[index].0.try_lock().is_err()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared<M, T>> {
        &self.shared
    }
}
