//! One worker's part of the router: its inbox and its subscribers.

mod deliver;
mod subscribe;
mod tables;

pub use deliver::DeliveryFlow;
pub use subscribe::Subscribed;
pub(crate) use tables::SubscriptionTables;

use crate::fanout::Fanouts;
use crate::kept::{Keep, Outgoing, TopicView};
use crate::patterns::Patterns;
use crate::router::{Published, ShardId, Shared};
use crate::stripe::{Stripe, arc_bytes};
use crate::sync::Arc;
use crate::wakeups::{ShardSet, Wakeups};
use crate::wildcard::is_match;
use deeperhub_types::{Subscription, Topic};
use std::fmt;
use tables::{LIST_BYTES, SUBSCRIPTION_BYTES};

/// Number of a subscriber within its shard. The caller chooses it. Keys are indices of a table, so
/// small numbers save memory.
pub type SubscriberKey = u32;

/// Key of the worker itself, for reserved topics ([`Topic::reserved`]). It is not a valid key of a
/// client.
pub const WORKER_SUBSCRIBER: SubscriberKey = SubscriberKey::MAX;

/// One worker's part of the router: its inbox and its subscribers. Only the inbox is shared with
/// other threads.
///
/// Dropping a shard flushes its deferred wake-ups; see [`publish`](Self::publish).
pub struct Shard<M, T: Keep = ()> {
    shared: Arc<Shared<M, T>>,
    id: ShardId,
    /// Distinguishes this worker from earlier workers of the same shard.
    generation: u64,
    tables: SubscriptionTables,
    fanouts: Fanouts<M>,
    /// Shards that were asleep when this worker published to them.
    deferred_wakeups: ShardSet,
}

impl<M, T: Keep> fmt::Debug for Shard<M, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Shard")
            .field("id", &self.id)
            .field("lists", &self.tables.lists.len())
            .finish_non_exhaustive()
    }
}

impl<M: Send + 'static, T: Keep> Shard<M, T> {
    pub(crate) fn new(shared: Arc<Shared<M, T>>, id: ShardId, generation: u64) -> Self {
        let deferred_wakeups = ShardSet::new(shared.inboxes.len());
        Self {
            shared,
            id,
            generation,
            tables: SubscriptionTables::new(),
            fanouts: Fanouts::new(),
            deferred_wakeups,
        }
    }

    /// Publishes like [`Router::publish`](crate::Router::publish), but defers the wake-ups of other
    /// workers until [`flush_wakeups`](Self::flush_wakeups).
    ///
    /// A woken worker then finds all messages of a burst. A publish of another thread still wakes
    /// the workers at once. This worker is not woken either: it must call
    /// [`poll_deliver`](Self::poll_deliver) before it waits.
    pub fn publish(
        &mut self,
        topic: &Topic<'_>,
        source: Option<u64>,
        bytes: usize,
        make: impl FnMut() -> M,
    ) -> Published {
        self.shared.inboxes[usize::from(self.id.0)].disarm(self.generation);
        self.shared.publish(topic, source, bytes, make, Wakeups::Deferred(&mut self.deferred_wakeups))
    }

    /// Publishes like [`Router::publish_kept`](crate::Router::publish_kept), but defers wake-ups
    /// like [`publish`](Self::publish).
    pub fn publish_kept<F: FnMut() -> M, R>(
        &mut self,
        topic: &Topic<'_>,
        source: Option<u64>,
        prepare: impl FnOnce(TopicView<'_>, &mut T, &mut T::Stripe) -> (Option<Outgoing<F>>, R),
    ) -> (Published, R) {
        self.shared.inboxes[usize::from(self.id.0)].disarm(self.generation);
        self.shared.publish_kept(topic, source, prepare, Wakeups::Deferred(&mut self.deferred_wakeups))
    }

    /// Returns `true` if a client has exactly this subscription.
    #[must_use]
    pub fn is_subscribed(&self, key: SubscriberKey, subscription: &Subscription<'_>) -> bool {
        self.tables.find(key, subscription.as_str()).is_some()
    }

    /// Returns the number of a client's subscriptions.
    #[must_use]
    pub fn subscription_count(&self, key: SubscriberKey) -> usize {
        self.tables.subscription_count(key)
    }

    /// Returns the bytes that a client's subscriptions hold, here and in the shared table.
    ///
    /// The memory of a topic or pattern itself, and `per_topic` bytes held for it elsewhere, are
    /// divided among its subscribers on this worker.
    #[must_use]
    pub fn held_bytes(&self, key: SubscriberKey, per_topic: usize) -> usize {
        self.tables
            .positions(key)
            .iter()
            .filter_map(|position| {
                let list = self.tables.lists.get(position.list)?;
                let is_pattern = is_pattern(&list.name);
                let entry = if is_pattern { Patterns::ENTRY_BYTES } else { Stripe::<T>::ENTRY_BYTES };
                let shared_bytes = entry + LIST_BYTES + arc_bytes(&list.name) + per_topic;
                Some(SUBSCRIPTION_BYTES + shared_bytes / list.subscribers.len().max(1))
            })
            .sum()
    }

    /// Returns the names of a client's subscriptions, in unspecified order.
    pub fn subscriptions(&self, key: SubscriberKey) -> impl Iterator<Item = &str> + '_ {
        self.tables.names(key)
    }

    /// Returns how many of a client's subscriptions match a topic.
    #[must_use]
    pub fn count_matches(&self, key: SubscriberKey, topic: &Topic<'_>) -> u64 {
        self.tables.names(key).filter(|name| is_match(name, topic.as_str())).count() as u64
    }

    #[cfg(test)]
    pub(crate) fn heap_bytes(&self) -> usize {
        self.tables.heap_bytes()
    }

    /// Returns the number of list positions that deliveries have visited.
    #[cfg(test)]
    pub(crate) fn positions_visited(&self) -> usize {
        self.tables.positions_visited.get()
    }
}

impl<M, T: Keep> Shard<M, T> {
    /// Returns the number of the shard.
    #[must_use]
    pub fn id(&self) -> ShardId {
        self.id
    }

    /// Wakes each worker whose wake-up [`publish`](Self::publish) deferred, if the worker still
    /// sleeps.
    pub fn flush_wakeups(&mut self) {
        self.shared.wake(&mut self.deferred_wakeups);
    }
}

impl<M, T: Keep> Drop for Shard<M, T> {
    fn drop(&mut self) {
        self.flush_wakeups();
    }
}

/// Returns `true` if a name is a pattern: one of its levels is `*` or `>`. Topics have no such
/// level.
fn is_pattern(name: &str) -> bool {
    // Few topics have these characters at all.
    name.bytes().any(|byte| matches!(byte, b'*' | b'>'))
        && name.split('.').any(|level| level == "*" || level == ">")
}
