//! A worker's own part: its inbox, and who of its clients is subscribed to what.

use crate::arena::Arena;
use crate::fanout::Fanouts;
use crate::inline_list::{InlineList, shrink};
use crate::patterns::{PatternKey, Patterns};
use crate::router::{InboxPosition, InterestChange, Published, ShardId, Shared};
use crate::stripe::{Stripe, arc_bytes};
use crate::sync::{Arc, write};
use crate::wakeups::{ShardSet, Wakeups};
use crate::wildcard::is_match;
use deeperhub_types::{Subscription, Topic};
use std::fmt;
use std::task::{Context, Poll};

/// A subscriber of a shard: the worker's number of a client. Small ones are best, since they index a table.
pub type SubscriberKey = u32;

/// The key of the worker itself, for topics of the server's own ([`Topic::of_server`]): no client has it.
pub const WORKER_SUBSCRIBER: SubscriberKey = SubscriberKey::MAX;

/// What a subscribe did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subscribed {
    /// The client is subscribed from now on.
    New,
    /// It was already.
    Already,
}

/// Memory of a subscription besides its topic: two positions that refer to each other, in lists that
/// double.
const SUBSCRIPTION_BYTES: usize = 2 * (size_of::<Subscriber>() + size_of::<ListPosition>());

/// Memory of a list, in a table that doubles.
const LIST_BYTES: usize = 2 * size_of::<Option<SubscriberList>>();

/// Answer of a delivery: how the worker goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryFlow {
    /// With the next delivery.
    Continue,
    /// Not now. What is left is delivered by later calls of [`Shard::poll_deliver`].
    Pause,
}

/// The worker's own part: its inbox and its subscribers. Nothing of it is shared but the hand-over.
///
/// Whom it has left asleep ([`publish`](Self::publish)) is woken when it is dropped.
pub struct Shard<M> {
    shared: Arc<Shared<M>>,
    id: ShardId,
    /// Which of the workers that this shard has had it is.
    generation: u64,
    tables: SubscriptionTables,
    fanouts: Fanouts<M>,
    /// Shards that slept when something was published to them from here.
    deferred_wakeups: ShardSet,
}

/// The positions of one client.
type PositionList = InlineList<ListPosition>;

/// Who is subscribed to what, both ways.
#[derive(Debug)]
pub(crate) struct SubscriptionTables {
    lists: Arena<SubscriberList>,
    /// By key.
    clients: Vec<PositionList>,
    /// Of [`WORKER_SUBSCRIBER`].
    worker_positions: PositionList,
    /// Client subscriptions visited by [`since`](Self::since).
    #[cfg(test)]
    positions_visited: std::cell::Cell<usize>,
}

/// The subscribers of one topic or pattern.
#[derive(Debug)]
struct SubscriberList {
    name: std::sync::Arc<str>,
    subscribers: InlineList<Subscriber>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Subscriber {
    /// Number of the last envelope that is not for it.
    pub(crate) since: u64,
    pub(crate) key: SubscriberKey,
    /// Which of the client's subscriptions it is.
    subscription_index: u32,
}

/// Where a client stands in a list.
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

    /// Whether a client was on one of these lists (in ascending order) before a message of this number.
    pub(crate) fn was_on_any(&self, key: SubscriberKey, lists: &[u32], number: u64) -> bool {
        !lists.is_empty() && self.since(key, lists).is_some_and(|since| since < number)
    }

    /// Since when a client has been on any of these lists (in ascending order).
    pub(crate) fn since(&self, key: SubscriberKey, lists: &[u32]) -> Option<u64> {
        #[cfg(test)]
        self.positions_visited.set(self.positions_visited.get() + self.positions(key).len());
        let on_them =
            self.positions(key).iter().filter(|position| lists.binary_search(&position.list).is_ok());
        on_them.filter_map(|position| Some(self.subscriber(*position)?.since)).min()
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

    fn find(&self, key: SubscriberKey, name: &str) -> Option<usize> {
        self.names(key).position(|own| own == name)
    }

    fn add(&mut self, key: SubscriberKey, list: u32, since: u64) {
        let client = key as usize;
        if key != WORKER_SUBSCRIBER && self.clients.len() <= client {
            self.clients.resize_with(client + 1, InlineList::new);
        }
        let positions = positions_mut(&mut self.clients, &mut self.worker_positions, key);
        let (Some(positions), Some(list_of)) = (positions, self.lists.get_mut(list)) else {
            return;
        };
        let subscriber = Subscriber { since, key, subscription_index: positions.len() as u32 };
        positions.push(ListPosition { list, index: list_of.subscribers.len() as u32 });
        list_of.subscribers.push(subscriber);
    }

    /// Takes a client off one of its lists. `positions` are those, in ascending order, before which other subscribers
    /// of the list must not get from behind them, nor the reverse: those of fan-outs under way.
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
        let mut hole = position.index;
        // The gap moves up to each position, then to the end.
        for from in fanout_positions
            .iter()
            .filter(|fanout_position| **fanout_position > position.index)
            .map(|fanout_position| fanout_position - 1)
            .chain([last])
        {
            if from > hole {
                self.move_subscriber(position.list, from, hole);
                hole = from;
            }
        }
        self.lists.get_mut(position.list)?.subscribers.swap_remove(last as usize);
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

    fn move_subscriber(&mut self, list: u32, from: u32, to: u32) {
        let Some(subscribers) = self.lists.get_mut(list).map(|list| list.subscribers.as_mut_slice()) else {
            return;
        };
        let Some(&moved) = subscribers.get(from as usize) else { return };
        if let Some(position) = subscribers.get_mut(to as usize) {
            *position = moved;
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

impl<M> fmt::Debug for Shard<M> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Shard")
            .field("id", &self.id)
            .field("lists", &self.tables.lists.len())
            .finish_non_exhaustive()
    }
}

impl<M: Send + 'static> Shard<M> {
    pub(crate) fn new(shared: Arc<Shared<M>>, id: ShardId, generation: u64) -> Self {
        let tables = SubscriptionTables {
            lists: Arena::new(),
            clients: Vec::new(),
            worker_positions: InlineList::new(),
            #[cfg(test)]
            positions_visited: std::cell::Cell::new(0),
        };
        let deferred_wakeups = ShardSet::new(shared.inboxes.len());
        Self { shared, id, generation, tables, fanouts: Fanouts::new(), deferred_wakeups }
    }

    /// Publishes as [`Router::publish`](crate::Router::publish) does, but leaves other workers asleep until
    /// [`flush_wakeups`](Self::flush_wakeups), so that they find all messages of a burst at once. What somebody else
    /// publishes meanwhile wakes them as ever.
    ///
    /// This worker is not woken either: it is to call [`poll_deliver`](Self::poll_deliver) before it waits.
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

    /// Subscribes a client. Everything published from now on is delivered to it, nothing from before.
    pub fn subscribe(&mut self, key: SubscriberKey, subscription: &Subscription<'_>) -> Subscribed {
        let name = subscription.as_str();
        if self.tables.find(key, name).is_some() {
            return Subscribed::Already;
        }
        let (shared, shard) = (&*self.shared, self.id.0);
        let inbox = &shared.inboxes[usize::from(shard)];
        let lists = &mut self.tables.lists;
        let mut add = |entry: &mut crate::stripe::RouteEntry| {
            let name = std::sync::Arc::clone(&entry.name);
            if entry.shards.is_empty() {
                shared.notify_interest_change(&name, InterestChange::Gained);
            }
            let list =
                entry.add(shard, || lists.insert(SubscriberList { name, subscribers: InlineList::new() }));
            // Publishes that are for this list push under the lock that is held here.
            (list, inbox.last_sequence())
        };
        let (list, since) = match subscription {
            Subscription::Topic(_) => {
                let hash = shared.hash(name);
                let mut stripe = shared.stripe(hash);
                if inbox.generation() != self.generation {
                    return Subscribed::New;
                }
                add(stripe.get_or_insert(hash, name, &shared.hasher))
            }
            Subscription::Pattern(_) => {
                let pattern = PatternKey::new(name, &shared.hasher);
                let mut patterns = write(&shared.patterns);
                if inbox.generation() != self.generation {
                    return Subscribed::New;
                }
                let added = add(patterns.get_or_insert(&pattern));
                shared.count_patterns(&patterns);
                added
            }
        };
        self.tables.add(key, list, since);
        Subscribed::New
    }

    /// Ends a subscription, and answers whether there was one. What is published or still waits for delivery does not
    /// reach the client through it any more.
    pub fn unsubscribe(&mut self, key: SubscriberKey, subscription: &Subscription<'_>) -> bool {
        match self.tables.find(key, subscription.as_str()) {
            Some(subscription_index) => self.unsubscribe_at(key, subscription_index),
            None => false,
        }
    }

    /// Ends all subscriptions of a client, and answers how many there were.
    pub fn remove_subscriber(&mut self, key: SubscriberKey) -> usize {
        let mut ended = 0;
        while let Some(last) = self.tables.positions(key).len().checked_sub(1)
            && self.unsubscribe_at(key, last)
        {
            ended += 1;
        }
        ended
    }

    /// Ends the `subscription_index` subscription of a client.
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
            if inbox.generation() == self.generation && stripe.subtract(hash, &name, shard, &shared.hasher) {
                shared.notify_interest_change(&name, InterestChange::Lost);
            }
        }
        true
    }

    /// Whether a client has this very subscription.
    #[must_use]
    pub fn is_subscribed(&self, key: SubscriberKey, subscription: &Subscription<'_>) -> bool {
        self.tables.find(key, subscription.as_str()).is_some()
    }

    /// Number of a client's subscriptions.
    #[must_use]
    pub fn subscription_count(&self, key: SubscriberKey) -> usize {
        self.tables.subscription_count(key)
    }

    /// Returns the bytes that a client's subscriptions hold, here and in the table that all threads
    /// share. The memory of a topic or pattern itself, and `per_topic` held for it elsewhere, is
    /// divided among its subscribers on this worker.
    #[must_use]
    pub fn held_bytes(&self, key: SubscriberKey, per_topic: usize) -> usize {
        self.tables
            .positions(key)
            .iter()
            .filter_map(|position| {
                let list = self.tables.lists.get(position.list)?;
                let entry = if is_pattern(&list.name) { Patterns::ENTRY_BYTES } else { Stripe::ENTRY_BYTES };
                let own = entry + LIST_BYTES + arc_bytes(&list.name) + per_topic;
                Some(SUBSCRIPTION_BYTES + own / list.subscribers.len().max(1))
            })
            .sum()
    }

    /// A client's subscriptions by name, in no particular order.
    pub fn subscriptions(&self, key: SubscriberKey) -> impl Iterator<Item = &str> + '_ {
        self.tables.names(key)
    }

    #[cfg(test)]
    pub(crate) fn heap_bytes(&self) -> usize {
        self.tables.heap_bytes()
    }

    /// Returns the number of client subscriptions that deliveries have visited.
    #[cfg(test)]
    pub(crate) fn positions_visited(&self) -> usize {
        self.tables.positions_visited.get()
    }

    /// How many of a client's subscriptions a topic matches.
    #[must_use]
    pub fn count_matches(&self, key: SubscriberKey, topic: &Topic<'_>) -> u64 {
        self.tables.names(key).filter(|name| is_match(name, topic.as_str())).count() as u64
    }

    /// Whether everything up to a [mark](crate::Router::mark) of this shard has been delivered.
    #[must_use]
    pub fn has_delivered(&self, position: InboxPosition) -> bool {
        let inbox = &self.shared.inboxes[usize::from(self.id.0)];
        self.fanouts.has_finished(position.0) && inbox.first_sequence().is_none_or(|first| first > position.0)
    }

    /// Delivers as [`poll_deliver`](Self::poll_deliver) does, but only up to a mark. False: `deliver` has answered
    /// [`DeliveryFlow::Pause`] before that.
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

    /// Delivers what is in the inbox: calls `deliver(key, &message)` for each subscriber, each client at most once for
    /// a message, in the order that the crate promises, until all is done or `deliver` answers [`DeliveryFlow::Pause`].
    ///
    /// After a pause, further messages for the same client may come before it takes effect; no other client's.
    ///
    /// `Ready`: there is, or may be, more to do; call again soon. `Pending`: there is nothing left, and the waker of
    /// `cx` is called when something comes.
    ///
    /// Begins with [`flush_wakeups`](Self::flush_wakeups).
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
            let asleep_if_none = fanouts.is_empty().then_some(cx.waker());
            if !inbox.take(self.generation, &mut fanouts.queue, asleep_if_none) {
                return Poll::Pending;
            }
        }
        // Not until the inbox is empty: what is pushed meanwhile waits until the worker has written.
        let _ = fanouts.deliver(&self.tables, &mut deliver);
        let asleep_if_none = fanouts.is_empty().then_some(cx.waker());
        if inbox.finish(self.generation, &mut fanouts.finished, asleep_if_none, shared.soft_limits()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl<M> Shard<M> {
    /// Wakes the workers that [`publish`](Self::publish) has left asleep and nobody has woken since, each once.
    pub fn flush_wakeups(&mut self) {
        while let Some(shard) = self.deferred_wakeups.pop() {
            if let Some(inbox) = self.shared.inboxes.get(shard) {
                inbox.wake();
            }
        }
    }
}

impl<M> Drop for Shard<M> {
    fn drop(&mut self) {
        self.flush_wakeups();
    }
}

/// A topic has neither of these; in a pattern each stands for a whole level.
fn is_pattern(name: &str) -> bool {
    name.split('.').any(|level| level == "*" || level == ">")
}
