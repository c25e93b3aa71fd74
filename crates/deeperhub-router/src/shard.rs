//! One worker's part of the router: its inbox and its subscribers.

use crate::arena::Arena;
use crate::fanout::Fanouts;
use crate::inline_list::{InlineList, shrink};
use crate::kept::{DeliveryState, Keep, Outgoing, TopicView};
use crate::patterns::{PatternKey, Patterns};
use crate::router::{InboxPosition, InterestChange, Published, ShardId, Shared};
use crate::stripe::{RouteEntry, Stripe, arc_bytes};
use crate::sync::{Arc, write};
use crate::wakeups::{ShardSet, Wakeups};
use crate::wildcard::is_match;
use ahash::RandomState;
use deeperhub_types::{Subscription, Topic};
use std::collections::HashMap;
use std::fmt;
use std::task::{Context, Poll};

/// Number of a subscriber within its shard. The caller chooses it. Keys are indices of a table, so
/// small numbers save memory.
pub type SubscriberKey = u32;

/// Key of the worker itself, for reserved topics ([`Topic::reserved`]). It is not a valid key of a
/// client.
pub const WORKER_SUBSCRIBER: SubscriberKey = SubscriberKey::MAX;

/// Result of a subscribe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subscribed {
    /// The call added the subscription.
    New,
    /// The client already had this subscription.
    Already,
}

/// Memory of a subscription without its topic: two entries that refer to each other, in lists whose
/// capacity doubles.
const SUBSCRIPTION_BYTES: usize = 2 * (size_of::<Subscriber>() + size_of::<ListPosition>());

/// Memory of a subscriber list without its name, in a table whose capacity doubles.
const LIST_BYTES: usize = 2 * size_of::<Option<SubscriberList>>();

/// Decision after a delivery: whether the next delivery follows at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryFlow {
    /// Continue with the next delivery.
    Continue,
    /// Stop delivering. Later calls of [`Shard::poll_deliver`] deliver the rest.
    Pause,
}

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

/// The positions of one client, one for each of its subscriptions.
type PositionList = InlineList<ListPosition>;

/// The subscribers in each list, and the positions of each subscriber in these lists.
#[derive(Debug)]
pub(crate) struct SubscriptionTables {
    lists: Arena<SubscriberList>,
    /// Indexed by subscriber key.
    clients: Vec<PositionList>,
    /// Positions of [`WORKER_SUBSCRIBER`].
    worker_positions: PositionList,
    /// Number of suspended subscribers of each list that has some.
    suspended: HashMap<u32, u32, RandomState>,
    /// Number of positions that [`since`](Self::since) has visited.
    #[cfg(test)]
    positions_visited: std::cell::Cell<usize>,
}

/// [`Subscriber::since`] of a suspended subscription: no envelope has a later sequence.
const SUSPENDED: u64 = u64::MAX;

/// The subscribers of one topic or pattern.
#[derive(Debug)]
struct SubscriberList {
    name: std::sync::Arc<str>,
    subscribers: InlineList<Subscriber>,
}

/// A subscriber in a list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subscriber {
    /// Sequence of the last envelope that was pushed before the subscription started or was
    /// resumed. Only later envelopes are delivered. [`SUSPENDED`] while it is suspended.
    pub(crate) since: u64,
    pub(crate) key: SubscriberKey,
    /// Index of this subscription in the client's positions.
    subscription_index: u32,
}

/// Position of a client in a subscriber list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ListPosition {
    pub(crate) list: u32,
    index: u32,
}

impl SubscriptionTables {
    pub(crate) fn subscribers(&self, list: u32) -> &[Subscriber] {
        self.lists.get(list).map_or(&[], |list| list.subscribers.as_slice())
    }

    fn subscriber(&self, position: ListPosition) -> Option<&Subscriber> {
        self.subscribers(position.list).get(position.index as usize)
    }

    /// Returns `true` if a client subscribed to one of these lists (in ascending order) before the
    /// envelope with this sequence was pushed.
    pub(crate) fn was_on_any(&self, key: SubscriberKey, lists: &[u32], sequence: u64) -> bool {
        !lists.is_empty() && self.since(key, lists).is_some_and(|since| since < sequence)
    }

    /// Returns the lowest [`Subscriber::since`] of a client in these lists (in ascending order).
    /// Returns `None` if the client is in none of them.
    pub(crate) fn since(&self, key: SubscriberKey, lists: &[u32]) -> Option<u64> {
        #[cfg(test)]
        self.positions_visited.set(self.positions_visited.get() + self.positions(key).len());
        let in_lists =
            self.positions(key).iter().filter(|position| lists.binary_search(&position.list).is_ok());
        in_lists.filter_map(|position| Some(self.subscriber(*position)?.since)).min()
    }

    fn positions(&self, key: SubscriberKey) -> &[ListPosition] {
        let positions = if key == WORKER_SUBSCRIBER {
            Some(&self.worker_positions)
        } else {
            self.clients.get(key as usize)
        };
        positions.map_or(&[], InlineList::as_slice)
    }

    pub(crate) fn subscription_count(&self, key: SubscriberKey) -> usize {
        self.positions(key).len()
    }

    fn names(&self, key: SubscriberKey) -> impl Iterator<Item = &str> {
        self.positions(key).iter().filter_map(|position| Some(&*self.lists.get(position.list)?.name))
    }

    /// Returns the index of a client's subscription with this name.
    fn find(&self, key: SubscriberKey, name: &str) -> Option<usize> {
        self.names(key).position(|subscribed| subscribed == name)
    }

    /// Returns the position of a client's subscription with this name.
    fn find_position(&self, key: SubscriberKey, name: &str) -> Option<ListPosition> {
        self.positions(key).get(self.find(key, name)?).copied()
    }

    /// Sets [`Subscriber::since`] and returns the value from before.
    fn set_since(&mut self, position: ListPosition, since: u64) -> Option<u64> {
        let subscribers = self.lists.get_mut(position.list)?.subscribers.as_mut_slice();
        let subscriber = subscribers.get_mut(position.index as usize)?;
        let before = std::mem::replace(&mut subscriber.since, since);
        if before == SUSPENDED {
            self.subtract_suspended(position.list);
        }
        if since == SUSPENDED {
            self.add_suspended(position.list);
        }
        Some(before)
    }

    #[cold]
    fn add_suspended(&mut self, list: u32) {
        *self.suspended.entry(list).or_default() += 1;
    }

    #[cold]
    fn subtract_suspended(&mut self, list: u32) {
        if let Some(count) = self.suspended.get_mut(&list) {
            *count -= 1;
            if *count == 0 {
                self.suspended.remove(&list);
            }
        }
    }

    /// Returns [`DeliveryState::Suspended`] if all subscribers of a list are suspended.
    fn list_state(&self, list: u32) -> DeliveryState {
        match self.suspended.get(&list) {
            Some(count) if *count as usize == self.subscribers(list).len() => DeliveryState::Suspended,
            _ => DeliveryState::Live,
        }
    }

    fn add(&mut self, key: SubscriberKey, list: u32, since: u64) {
        let client = key as usize;
        if key != WORKER_SUBSCRIBER && self.clients.len() <= client {
            self.clients.resize_with(client + 1, InlineList::new);
        }
        let positions = positions_mut(&mut self.clients, &mut self.worker_positions, key);
        let (Some(positions), Some(subscriber_list)) = (positions, self.lists.get_mut(list)) else {
            return;
        };
        let subscriber = Subscriber { since, key, subscription_index: positions.len() as u32 };
        positions.push(ListPosition { list, index: subscriber_list.subscribers.len() as u32 });
        subscriber_list.subscribers.push(subscriber);
        if since == SUSPENDED {
            self.add_suspended(list);
        }
    }

    /// Removes a client from one of its lists.
    ///
    /// `fanout_positions` are the positions of running fan-outs in this list, in ascending order.
    /// No other subscriber may move across one of them: it would get a message twice, or not at
    /// all.
    fn remove_subscription(
        &mut self,
        key: SubscriberKey,
        subscription_index: usize,
        fanout_positions: &[u32],
    ) -> Option<(ListPosition, Subscriber)> {
        let positions = positions_mut(&mut self.clients, &mut self.worker_positions, key)?;
        let position = positions.swap_remove(subscription_index)?;
        if let Some(&moved) = positions.as_slice().get(subscription_index)
            && let Some(list) = self.lists.get_mut(moved.list)
            && let Some(subscriber) = list.subscribers.as_mut_slice().get_mut(moved.index as usize)
        {
            subscriber.subscription_index = subscription_index as u32;
        }
        let subscriber = *self.subscriber(position)?;
        let last = (self.subscribers(position.list).len() - 1) as u32;
        let mut gap = position.index;
        // Move the gap up: to just before each fan-out position in turn, then to the end of the
        // list.
        for from in fanout_positions
            .iter()
            .filter(|fanout_position| **fanout_position > position.index)
            .map(|fanout_position| fanout_position - 1)
            .chain([last])
        {
            if from > gap {
                self.move_subscriber(position.list, from, gap);
                gap = from;
            }
        }
        self.lists.get_mut(position.list)?.subscribers.swap_remove(last as usize);
        if subscriber.since == SUSPENDED {
            self.subtract_suspended(position.list);
        }
        while self.clients.last().is_some_and(InlineList::is_empty) {
            self.clients.pop();
        }
        shrink(&mut self.clients);
        Some((position, subscriber))
    }

    #[cfg(test)]
    fn heap_bytes(&self) -> usize {
        self.lists.heap_bytes()
            + self.lists.range(0, usize::MAX).0.map(|list| list.subscribers.heap_bytes()).sum::<usize>()
            + self.clients.capacity() * size_of::<PositionList>()
            + self.clients.iter().map(InlineList::heap_bytes).sum::<usize>()
    }

    /// Copies the subscriber at `from` to `to` in a list, and updates its position.
    fn move_subscriber(&mut self, list: u32, from: u32, to: u32) {
        let Some(subscribers) = self.lists.get_mut(list).map(|list| list.subscribers.as_mut_slice()) else {
            return;
        };
        let Some(&moved) = subscribers.get(from as usize) else { return };
        if let Some(slot) = subscribers.get_mut(to as usize) {
            *slot = moved;
        }
        if let Some(positions) = positions_mut(&mut self.clients, &mut self.worker_positions, moved.key)
            && let Some(position) = positions.as_mut_slice().get_mut(moved.subscription_index as usize)
        {
            position.index = to;
        }
    }
}

fn positions_mut<'t>(
    clients: &'t mut [PositionList],
    worker_positions: &'t mut PositionList,
    key: SubscriberKey,
) -> Option<&'t mut PositionList> {
    if key == WORKER_SUBSCRIBER { Some(worker_positions) } else { clients.get_mut(key as usize) }
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
        let tables = SubscriptionTables {
            lists: Arena::new(),
            clients: Vec::new(),
            worker_positions: InlineList::new(),
            // Fixed seeds are safe: clients cannot choose the numbers of lists.
            suspended: HashMap::with_hasher(RandomState::with_seeds(1, 2, 3, 4)),
            #[cfg(test)]
            positions_visited: std::cell::Cell::new(0),
        };
        let deferred_wakeups = ShardSet::new(shared.inboxes.len());
        Self { shared, id, generation, tables, fanouts: Fanouts::new(), deferred_wakeups }
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

    /// Subscribes a client to a topic or pattern. The client gets everything that is published from
    /// now on, and nothing that was published before.
    ///
    /// If the worker of this shard was replaced ([`Router::attach`](crate::Router::attach)), the
    /// call adds nothing, even if it returns [`Subscribed::New`].
    pub fn subscribe(&mut self, key: SubscriberKey, subscription: &Subscription<'_>) -> Subscribed {
        let name = subscription.as_str();
        if self.tables.find(key, name).is_some() {
            return Subscribed::Already;
        }
        match subscription {
            Subscription::Topic(_) => self.subscribe_to_topic(key, name, |_, _, _| (DeliveryState::Live, ())),
            Subscription::Pattern(_) => self.subscribe_to_pattern(key, name),
        }
        Subscribed::New
    }

    /// Subscribes a client to a topic, and calls `judge` with the topic, its kept value and the
    /// value of its stripe. Both happen in one critical section of the topic: messages whose publish
    /// `judge` sees are not delivered, and later ones are.
    ///
    /// The result of `judge` says whether deliveries start at once or after
    /// [`resume_at`](Self::resume_at). If the client already had the subscription, or the worker of
    /// this shard was replaced, `judge` is called, but its [`DeliveryState`] has no effect.
    ///
    /// `judge` runs under a lock, so it must be quick and must not call the router. What it takes
    /// out of the kept value can be returned, and is then dropped outside of the lock.
    pub fn subscribe_at<R>(
        &mut self,
        key: SubscriberKey,
        topic: &Topic<'_>,
        judge: impl FnOnce(TopicView<'_>, &mut T, &mut T::Stripe) -> (DeliveryState, R),
    ) -> (Subscribed, R) {
        let name = topic.as_str();
        if self.tables.find(key, name).is_some() {
            return (Subscribed::Already, self.shared.update_kept(name, judge).1);
        }
        (Subscribed::New, self.subscribe_to_topic(key, name, judge))
    }

    /// Suspends a client's subscription to a topic: nothing more is delivered through it, not even
    /// messages that were published before. It still counts as a subscription.
    ///
    /// While all subscriptions of this worker to the topic are suspended, publishes to it push
    /// nothing to the worker and do not wake it. Returns `false` if the client has no such
    /// subscription.
    pub fn suspend(&mut self, key: SubscriberKey, topic: &Topic<'_>) -> bool {
        let name = topic.as_str();
        let Some(position) = self.tables.find_position(key, name) else { return false };
        let Some(since) = self.tables.set_since(position, SUSPENDED) else { return false };
        for running in &mut self.fanouts.running {
            running.subscriber_suspended(position.list, position.index, key, since);
        }
        let state = self.tables.list_state(position.list);
        if since != SUSPENDED && state == DeliveryState::Suspended {
            let (shared, shard) = (&*self.shared, self.id.0);
            let hash = shared.hash(name);
            let mut stripe = shared.stripe(hash);
            if shared.inboxes[usize::from(shard)].generation() == self.generation {
                stripe.set_state(hash, name, shard, state);
            }
        }
        true
    }

    /// Calls `catch_up` with a topic, its kept value and the value of its stripe, and resumes a
    /// client's suspended subscription to it if the result is [`DeliveryState::Live`]. Both happen
    /// in one critical section of the topic, as in [`subscribe_at`](Self::subscribe_at).
    ///
    /// Returns `None`, without a call, if the client has no suspended subscription to the topic, or
    /// the worker of this shard was replaced.
    pub fn resume_at<R>(
        &mut self,
        key: SubscriberKey,
        topic: &Topic<'_>,
        catch_up: impl FnOnce(TopicView<'_>, &mut T, &mut T::Stripe) -> (DeliveryState, R),
    ) -> Option<R> {
        let name = topic.as_str();
        let position = self.tables.find_position(key, name)?;
        if self.tables.subscriber(position)?.since != SUSPENDED {
            return None;
        }
        let (shared, shard) = (&*self.shared, self.id.0);
        let inbox = &shared.inboxes[usize::from(shard)];
        let hash = shared.hash(name);
        let mut stripe = shared.stripe(hash);
        if inbox.generation() != self.generation {
            return None;
        }
        let (_, (state, output)) = stripe.update_kept(hash, name, &shared.hasher, catch_up);
        if state == DeliveryState::Live {
            // A publish to this list needs the lock that is held here, so no push happens now.
            if self.tables.list_state(position.list) == DeliveryState::Suspended {
                stripe.set_state(hash, name, shard, state);
            }
            self.tables.set_since(position, inbox.last_sequence());
        }
        Some(output)
    }

    /// Subscribes a client to a topic that it is not subscribed to.
    fn subscribe_to_topic<R>(
        &mut self,
        key: SubscriberKey,
        name: &str,
        judge: impl FnOnce(TopicView<'_>, &mut T, &mut T::Stripe) -> (DeliveryState, R),
    ) -> R {
        let (shared, shard) = (&*self.shared, self.id.0);
        let inbox = &shared.inboxes[usize::from(shard)];
        let hash = shared.hash(name);
        let lists = &mut self.tables.lists;
        let mut stripe = shared.stripe(hash);
        if inbox.generation() != self.generation {
            return stripe.update_kept(hash, name, &shared.hasher, judge).1.1;
        }
        let add =
            |entry: &mut RouteEntry, (state, _): &_| add_subscriber(shared, shard, lists, entry, *state);
        let (list, (state, output)) = stripe.subscribe(hash, name, &shared.hasher, add, judge);
        // A publish to this list needs the lock that is held here, so no push happens now.
        let since = match state {
            DeliveryState::Live => inbox.last_sequence(),
            DeliveryState::Suspended => SUSPENDED,
        };
        drop(stripe);
        self.tables.add(key, list, since);
        output
    }

    /// Subscribes a client to a pattern that it is not subscribed to.
    fn subscribe_to_pattern(&mut self, key: SubscriberKey, name: &str) {
        let (shared, shard) = (&*self.shared, self.id.0);
        let inbox = &shared.inboxes[usize::from(shard)];
        let pattern = PatternKey::new(name, &shared.hasher);
        let mut patterns = write(&shared.patterns);
        if inbox.generation() != self.generation {
            return;
        }
        let entry = patterns.get_or_insert(&pattern);
        let list = add_subscriber(shared, shard, &mut self.tables.lists, entry, DeliveryState::Live);
        // A publish to this list needs the lock that is held here, so no push happens now.
        let since = inbox.last_sequence();
        shared.count_patterns(&patterns);
        drop(patterns);
        self.tables.add(key, list, since);
    }

    /// Ends a subscription and returns `true` if it existed. Undelivered messages no longer reach
    /// the client through this subscription.
    pub fn unsubscribe(&mut self, key: SubscriberKey, subscription: &Subscription<'_>) -> bool {
        match self.tables.find(key, subscription.as_str()) {
            Some(subscription_index) => self.unsubscribe_at(key, subscription_index),
            None => false,
        }
    }

    /// Ends all subscriptions of a client and returns their number.
    pub fn remove_subscriber(&mut self, key: SubscriberKey) -> usize {
        let mut removed = 0;
        while let Some(last) = self.tables.positions(key).len().checked_sub(1)
            && self.unsubscribe_at(key, last)
        {
            removed += 1;
        }
        removed
    }

    /// Ends the subscription with this index. Returns `false` if the client has no such
    /// subscription.
    fn unsubscribe_at(&mut self, key: SubscriberKey, subscription_index: usize) -> bool {
        let Some(&ListPosition { list, .. }) = self.tables.positions(key).get(subscription_index) else {
            return false;
        };
        let mut fanout_positions: Vec<u32> =
            self.fanouts.running.iter().filter_map(|running| running.position(list)).collect();
        fanout_positions.sort_unstable();
        let Some((position, subscriber)) =
            self.tables.remove_subscription(key, subscription_index, &fanout_positions)
        else {
            return false;
        };
        for running in &mut self.fanouts.running {
            running.subscriber_left(list, position.index, key, subscriber.since);
        }

        let (shared, shard) = (&*self.shared, self.id.0);
        let is_empty = self.tables.subscribers(list).is_empty();
        let Some(name) = self.tables.lists.get(list).map(|list| std::sync::Arc::clone(&list.name)) else {
            return false;
        };
        let state = self.tables.list_state(list);
        if is_empty {
            self.tables.lists.remove(list);
        }
        let inbox = &shared.inboxes[usize::from(shard)];
        if is_pattern(&name) {
            let pattern = PatternKey::new(&name, &shared.hasher);
            let mut patterns = write(&shared.patterns);
            if inbox.generation() == self.generation {
                if patterns.subtract(&pattern, shard) {
                    shared.notify_interest_change(&name, InterestChange::Lost);
                }
                shared.count_patterns(&patterns);
            }
        } else {
            let hash = shared.hash(&name);
            let mut stripe = shared.stripe(hash);
            if inbox.generation() == self.generation
                && stripe.subtract(hash, &name, shard, state, &shared.hasher)
            {
                shared.notify_interest_change(&name, InterestChange::Lost);
            }
        }
        true
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

    #[cfg(test)]
    pub(crate) fn heap_bytes(&self) -> usize {
        self.tables.heap_bytes()
    }

    /// Returns the number of list positions that deliveries have visited.
    #[cfg(test)]
    pub(crate) fn positions_visited(&self) -> usize {
        self.tables.positions_visited.get()
    }

    /// Returns how many of a client's subscriptions match a topic.
    #[must_use]
    pub fn count_matches(&self, key: SubscriberKey, topic: &Topic<'_>) -> u64 {
        self.tables.names(key).filter(|name| is_match(name, topic.as_str())).count() as u64
    }

    /// Returns `true` if all messages before an [inbox position](crate::Router::inbox_position) of
    /// this shard have been delivered.
    #[must_use]
    pub fn has_delivered(&self, position: InboxPosition) -> bool {
        let inbox = &self.shared.inboxes[usize::from(self.id.0)];
        self.fanouts.has_finished(position.0) && inbox.first_sequence().is_none_or(|first| first > position.0)
    }

    /// Works like [`poll_deliver`](Self::poll_deliver), but takes only messages before a position
    /// from the inbox. Returns `false` if `deliver` returned [`DeliveryFlow::Pause`] before all of
    /// them were delivered.
    pub fn deliver_until(
        &mut self,
        position: InboxPosition,
        mut deliver: impl FnMut(SubscriberKey, &M) -> DeliveryFlow,
    ) -> bool {
        while !self.has_delivered(position) {
            let shared = &*self.shared;
            let inbox = &shared.inboxes[usize::from(self.id.0)];
            let fanouts = &mut self.fanouts;
            if fanouts.queue.is_empty() && !inbox.take_until(self.generation, &mut fanouts.queue, position.0)
            {
                return true;
            }
            let flow = fanouts.deliver(&self.tables, &mut deliver);
            inbox.finish(self.generation, &mut fanouts.finished, None, shared.soft_limits());
            if flow == DeliveryFlow::Pause {
                return self.has_delivered(position);
            }
        }
        true
    }

    /// Delivers the messages in the inbox: calls `deliver(key, &message)` for each subscriber of
    /// each message, until all are delivered or `deliver` returns [`DeliveryFlow::Pause`].
    ///
    /// The deliveries have the order that the crate guarantees. Each client gets a message at most
    /// once. After a pause, the same client may get a few more messages before the call returns,
    /// but no other client does.
    ///
    /// Returns `Ready` if more messages may remain; the caller should call again soon. Returns
    /// `Pending` if none remain. The waker of `cx` is then called when a message arrives.
    ///
    /// The call begins with [`flush_wakeups`](Self::flush_wakeups).
    pub fn poll_deliver(
        &mut self,
        cx: &mut Context<'_>,
        mut deliver: impl FnMut(SubscriberKey, &M) -> DeliveryFlow,
    ) -> Poll<()> {
        self.flush_wakeups();
        let shared = &*self.shared;
        let inbox = &shared.inboxes[usize::from(self.id.0)];
        let fanouts = &mut self.fanouts;
        inbox.disarm(self.generation);
        if fanouts.queue.is_empty() {
            let waker_if_idle = fanouts.is_empty().then_some(cx.waker());
            if !inbox.take(self.generation, &mut fanouts.queue, waker_if_idle) {
                return Poll::Pending;
            }
        }
        // Deliver only what was taken above: messages pushed meanwhile wait until the worker has
        // written these.
        let _ = fanouts.deliver(&self.tables, &mut deliver);
        let waker_if_idle = fanouts.is_empty().then_some(cx.waker());
        if inbox.finish(self.generation, &mut fanouts.finished, waker_if_idle, shared.soft_limits()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl<M, T: Keep> Shard<M, T> {
    /// Wakes each worker whose wake-up [`publish`](Self::publish) deferred, if the worker still
    /// sleeps.
    pub fn flush_wakeups(&mut self) {
        while let Some(shard) = self.deferred_wakeups.pop() {
            if let Some(inbox) = self.shared.inboxes.get(shard) {
                inbox.wake();
            }
        }
    }
}

impl<M, T: Keep> Drop for Shard<M, T> {
    fn drop(&mut self) {
        self.flush_wakeups();
    }
}

/// Adds one subscriber of a worker to an entry, and reports the entry's first subscriber. Returns
/// the number of the worker's list.
#[inline]
fn add_subscriber<M, T: Keep>(
    shared: &Shared<M, T>,
    shard: u16,
    lists: &mut Arena<SubscriberList>,
    entry: &mut RouteEntry,
    state: DeliveryState,
) -> u32 {
    let name = std::sync::Arc::clone(&entry.name);
    if entry.shards.is_empty() {
        shared.notify_interest_change(&name, InterestChange::Gained);
    }
    entry.add(shard, state, || lists.insert(SubscriberList { name, subscribers: InlineList::new() }))
}

/// Returns `true` if a name is a pattern: one of its levels is `*` or `>`. Topics have no such
/// level.
fn is_pattern(name: &str) -> bool {
    // Few topics have these characters at all.
    name.bytes().any(|byte| matches!(byte, b'*' | b'>'))
        && name.split('.').any(|level| level == "*" || level == ">")
}
