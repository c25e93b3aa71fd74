//! A worker's own part: its inbox, and who of its clients is subscribed to what.

use crate::arena::Arena;
use crate::fanout::Fanouts;
use crate::few::{Few, shrink};
use crate::patterns::{PatternKey, Patterns};
use crate::router::{Interest, Mark, Published, ShardId, Shared};
use crate::sleepers::{ShardSet, Sleepers};
use crate::stripe::{Stripe, arc_bytes};
use crate::sync::{Arc, write};
use crate::wildcard::is_match;
use deeperhub_types::{Subscription, Topic};
use std::fmt;
use std::task::{Context, Poll};

/// A subscriber of a shard: the worker's number of a client. Small ones are best, since they index a table.
pub type Key = u32;

/// The key of the worker itself, for topics of the server's own ([`Topic::reserved`]): no client has it.
pub const LOOPBACK: Key = Key::MAX;

/// What a subscribe did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subscribed {
    /// The client is subscribed from now on.
    New,
    /// It was already.
    Already,
}

/// Memory of a subscription besides its topic: two places that refer to each other, in lists that
/// double.
const SUBSCRIPTION_BYTES: usize = 2 * (size_of::<Subscriber>() + size_of::<Place>());

/// Memory of a list, in a table that doubles.
const LIST_BYTES: usize = 2 * size_of::<Option<List>>();

/// Answer of a delivery: how the worker goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
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
    attachment: u64,
    tables: Tables,
    fanouts: Fanouts<M>,
    /// Shards that slept when something was published to them from here.
    left_asleep: ShardSet,
}

/// Who is subscribed to what, both ways.
#[derive(Debug)]
pub(crate) struct Tables {
    lists: Arena<List>,
    /// By key.
    clients: Vec<Few<Place>>,
    /// Of [`LOOPBACK`].
    loopback: Few<Place>,
    /// Client subscriptions visited by [`since`](Self::since).
    #[cfg(test)]
    looked_at: std::cell::Cell<usize>,
}

/// The subscribers of one topic or pattern.
#[derive(Debug)]
struct List {
    name: std::sync::Arc<str>,
    subscribers: Few<Subscriber>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Subscriber {
    /// Number of the last envelope that is not for it.
    pub(crate) since: u64,
    pub(crate) client: Key,
    /// Which of the client's subscriptions it is.
    nth: u32,
}

/// Where a client stands in a list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) list: u32,
    index: u32,
}

impl Tables {
    pub(crate) fn subscribers(&self, list: u32) -> &[Subscriber] {
        self.lists.get(list).map_or(&[], |list| list.subscribers.as_slice())
    }

    fn subscriber(&self, place: Place) -> Option<&Subscriber> {
        self.subscribers(place.list).get(place.index as usize)
    }

    /// Whether a client was on one of these lists (in ascending order) before a message of this number.
    pub(crate) fn stands_in(&self, key: Key, lists: &[u32], number: u64) -> bool {
        !lists.is_empty() && self.since(key, lists).is_some_and(|since| since < number)
    }

    /// Since when a client has been on any of these lists (in ascending order).
    pub(crate) fn since(&self, key: Key, lists: &[u32]) -> Option<u64> {
        #[cfg(test)]
        self.looked_at.set(self.looked_at.get() + self.places(key).len());
        let on_them = self.places(key).iter().filter(|place| lists.binary_search(&place.list).is_ok());
        on_them.filter_map(|place| Some(self.subscriber(*place)?.since)).min()
    }

    fn places(&self, key: Key) -> &[Place] {
        let places = if key == LOOPBACK { Some(&self.loopback) } else { self.clients.get(key as usize) };
        places.map_or(&[], Few::as_slice)
    }

    pub(crate) fn subscription_count(&self, key: Key) -> usize {
        self.places(key).len()
    }

    fn names(&self, key: Key) -> impl Iterator<Item = &str> {
        self.places(key).iter().filter_map(|place| Some(&*self.lists.get(place.list)?.name))
    }

    fn find(&self, key: Key, name: &str) -> Option<usize> {
        self.names(key).position(|own| own == name)
    }

    fn add(&mut self, key: Key, list: u32, since: u64) {
        let client = key as usize;
        if key != LOOPBACK && self.clients.len() <= client {
            self.clients.resize_with(client + 1, Few::new);
        }
        let places = places_mut(&mut self.clients, &mut self.loopback, key);
        let (Some(places), Some(list_of)) = (places, self.lists.get_mut(list)) else {
            return;
        };
        let subscriber = Subscriber { since, client: key, nth: places.len() as u32 };
        places.push(Place { list, index: list_of.subscribers.len() as u32 });
        list_of.subscribers.push(subscriber);
    }

    /// Takes a client off one of its lists. `positions` are those, in ascending order, before which other subscribers
    /// of the list must not get from behind them, nor the reverse: those of fan-outs under way.
    fn take_off(&mut self, key: Key, nth: usize, positions: &[u32]) -> Option<(Place, Subscriber)> {
        let places = places_mut(&mut self.clients, &mut self.loopback, key)?;
        let place = places.swap_remove(nth)?;
        if let Some(&moved) = places.as_slice().get(nth)
            && let Some(list) = self.lists.get_mut(moved.list)
            && let Some(subscriber) = list.subscribers.as_mut_slice().get_mut(moved.index as usize)
        {
            subscriber.nth = nth as u32;
        }
        let subscriber = *self.subscriber(place)?;
        let last = (self.subscribers(place.list).len() - 1) as u32;
        let mut hole = place.index;
        // The gap moves up to each position, then to the end.
        for from in positions
            .iter()
            .filter(|position| **position > place.index)
            .map(|position| position - 1)
            .chain([last])
        {
            if from > hole {
                self.move_subscriber(place.list, from, hole);
                hole = from;
            }
        }
        self.lists.get_mut(place.list)?.subscribers.swap_remove(last as usize);
        while self.clients.last().is_some_and(Few::is_empty) {
            self.clients.pop();
        }
        shrink(&mut self.clients);
        Some((place, subscriber))
    }

    #[cfg(test)]
    fn heap_bytes(&self) -> usize {
        self.lists.heap_bytes()
            + self.lists.part(0, usize::MAX).0.map(|list| list.subscribers.heap_bytes()).sum::<usize>()
            + self.clients.capacity() * size_of::<Few<Place>>()
            + self.clients.iter().map(Few::heap_bytes).sum::<usize>()
    }

    fn move_subscriber(&mut self, list: u32, from: u32, to: u32) {
        let Some(subscribers) = self.lists.get_mut(list).map(|list| list.subscribers.as_mut_slice()) else {
            return;
        };
        let Some(&moved) = subscribers.get(from as usize) else { return };
        if let Some(place) = subscribers.get_mut(to as usize) {
            *place = moved;
        }
        if let Some(places) = places_mut(&mut self.clients, &mut self.loopback, moved.client)
            && let Some(place) = places.as_mut_slice().get_mut(moved.nth as usize)
        {
            place.index = to;
        }
    }
}

fn places_mut<'t>(
    clients: &'t mut [Few<Place>],
    loopback: &'t mut Few<Place>,
    key: Key,
) -> Option<&'t mut Few<Place>> {
    if key == LOOPBACK { Some(loopback) } else { clients.get_mut(key as usize) }
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
    pub(crate) fn new(shared: Arc<Shared<M>>, id: ShardId, attachment: u64) -> Self {
        let tables = Tables {
            lists: Arena::new(),
            clients: Vec::new(),
            loopback: Few::new(),
            #[cfg(test)]
            looked_at: std::cell::Cell::new(0),
        };
        let left_asleep = ShardSet::new(shared.inboxes.len());
        Self { shared, id, attachment, tables, fanouts: Fanouts::new(), left_asleep }
    }

    /// Publishes as [`Router::publish`](crate::Router::publish) does, but leaves other workers asleep until
    /// [`wake_others`](Self::wake_others), so that they find all messages of a burst at once. What somebody else
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
        self.shared.inboxes[usize::from(self.id.0)].disarm(self.attachment);
        self.shared.publish(topic, source, bytes, make, Sleepers::Note(&mut self.left_asleep))
    }

    /// Subscribes a client. Everything published from now on is delivered to it, nothing from before.
    pub fn subscribe(&mut self, key: Key, subscription: &Subscription<'_>) -> Subscribed {
        let name = subscription.as_str();
        if self.tables.find(key, name).is_some() {
            return Subscribed::Already;
        }
        let (shared, shard) = (&*self.shared, self.id.0);
        let inbox = &shared.inboxes[usize::from(shard)];
        let lists = &mut self.tables.lists;
        let mut add = |entry: &mut crate::stripe::Entry| {
            let name = std::sync::Arc::clone(&entry.name);
            if entry.slots.is_empty() {
                shared.tell_interest(&name, Interest::Gained);
            }
            let list = entry.add(shard, || lists.insert(List { name, subscribers: Few::new() }));
            // Publishes that are for this list push under the lock that is held here.
            (list, inbox.pushed())
        };
        let (list, since) = match subscription {
            Subscription::Topic(_) => {
                let hash = shared.hash(name);
                let mut stripe = shared.stripe(hash);
                if inbox.attachment() != self.attachment {
                    return Subscribed::New;
                }
                add(stripe.find_or_insert(hash, name, &shared.hasher))
            }
            Subscription::Pattern(_) => {
                let pattern = PatternKey::new(name, &shared.hasher);
                let mut patterns = write(&shared.patterns);
                if inbox.attachment() != self.attachment {
                    return Subscribed::New;
                }
                let added = add(patterns.find_or_insert(&pattern));
                shared.count_patterns(&patterns);
                added
            }
        };
        self.tables.add(key, list, since);
        Subscribed::New
    }

    /// Ends a subscription, and answers whether there was one. What is published or still waits for delivery does not
    /// reach the client through it any more.
    pub fn unsubscribe(&mut self, key: Key, subscription: &Subscription<'_>) -> bool {
        match self.tables.find(key, subscription.as_str()) {
            Some(nth) => self.end(key, nth),
            None => false,
        }
    }

    /// Ends all subscriptions of a client, and answers how many there were.
    pub fn remove(&mut self, key: Key) -> usize {
        let mut ended = 0;
        while let Some(last) = self.tables.places(key).len().checked_sub(1)
            && self.end(key, last)
        {
            ended += 1;
        }
        ended
    }

    /// Ends the `nth` subscription of a client.
    fn end(&mut self, key: Key, nth: usize) -> bool {
        let Some(&Place { list, .. }) = self.tables.places(key).get(nth) else { return false };
        let mut positions: Vec<u32> =
            self.fanouts.running.iter().filter_map(|running| running.position(list)).collect();
        positions.sort_unstable();
        let Some((place, subscriber)) = self.tables.take_off(key, nth, &positions) else { return false };
        for running in &mut self.fanouts.running {
            running.subscriber_left(list, place.index, key, subscriber.since);
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
            if inbox.attachment() == self.attachment {
                if patterns.subtract(&pattern, shard) {
                    shared.tell_interest(&name, Interest::Lost);
                }
                shared.count_patterns(&patterns);
            }
        } else {
            let hash = shared.hash(&name);
            let mut stripe = shared.stripe(hash);
            if inbox.attachment() == self.attachment && stripe.subtract(hash, &name, shard, &shared.hasher) {
                shared.tell_interest(&name, Interest::Lost);
            }
        }
        true
    }

    /// Whether a client has this very subscription.
    #[must_use]
    pub fn is_subscribed(&self, key: Key, subscription: &Subscription<'_>) -> bool {
        self.tables.find(key, subscription.as_str()).is_some()
    }

    /// Number of a client's subscriptions.
    #[must_use]
    pub fn subscription_count(&self, key: Key) -> usize {
        self.tables.subscription_count(key)
    }

    /// Returns the bytes that a client's subscriptions hold, here and in the table that all threads
    /// share. The memory of a topic or pattern itself, and `per_topic` held for it elsewhere, is
    /// divided among its subscribers on this worker.
    #[must_use]
    pub fn held_bytes(&self, key: Key, per_topic: usize) -> usize {
        self.tables
            .places(key)
            .iter()
            .filter_map(|place| {
                let list = self.tables.lists.get(place.list)?;
                let entry = if is_pattern(&list.name) { Patterns::ENTRY_BYTES } else { Stripe::ENTRY_BYTES };
                let own = entry + LIST_BYTES + arc_bytes(&list.name) + per_topic;
                Some(SUBSCRIPTION_BYTES + own / list.subscribers.len().max(1))
            })
            .sum()
    }

    /// A client's subscriptions by name, in no particular order.
    pub fn subscriptions(&self, key: Key) -> impl Iterator<Item = &str> + '_ {
        self.tables.names(key)
    }

    #[cfg(test)]
    pub(crate) fn heap_bytes(&self) -> usize {
        self.tables.heap_bytes()
    }

    /// Returns the number of client subscriptions that deliveries have visited.
    #[cfg(test)]
    pub(crate) fn places_looked_at(&self) -> usize {
        self.tables.looked_at.get()
    }

    /// How many of a client's subscriptions a topic matches.
    #[must_use]
    pub fn matches(&self, key: Key, topic: &Topic<'_>) -> u64 {
        self.tables.names(key).filter(|name| is_match(name, topic.as_str())).count() as u64
    }

    /// Whether everything up to a [mark](crate::Router::mark) of this shard has been delivered.
    #[must_use]
    pub fn has_delivered(&self, mark: Mark) -> bool {
        let inbox = &self.shared.inboxes[usize::from(self.id.0)];
        self.fanouts.has_finished(mark.0) && inbox.first().is_none_or(|first| first > mark.0)
    }

    /// Delivers as [`poll_deliver`](Self::poll_deliver) does, but only up to a mark. False: `deliver` has answered
    /// [`Flow::Pause`] before that.
    pub fn deliver_until(&mut self, mark: Mark, mut deliver: impl FnMut(Key, &M) -> Flow) -> bool {
        while !self.has_delivered(mark) {
            let shared = &*self.shared;
            let inbox = &shared.inboxes[usize::from(self.id.0)];
            let fanouts = &mut self.fanouts;
            if fanouts.queue.is_empty() && !inbox.take_until(self.attachment, &mut fanouts.queue, mark.0) {
                return true;
            }
            let flow = fanouts.deliver(&self.tables, &mut deliver);
            let limits = (&shared.config, &shared.congestion);
            inbox.finish(self.attachment, &mut fanouts.finished, None, limits);
            if flow == Flow::Pause {
                return self.has_delivered(mark);
            }
        }
        true
    }

    /// Delivers what is in the inbox: calls `deliver(key, &message)` for each subscriber, each client at most once for
    /// a message, in the order that the crate promises, until all is done or `deliver` answers [`Flow::Pause`].
    ///
    /// After a pause, further messages for the same client may come before it takes effect; no other client's.
    ///
    /// `Ready`: there is, or may be, more to do; call again soon. `Pending`: there is nothing left, and the waker of
    /// `cx` is called when something comes.
    ///
    /// Begins with [`wake_others`](Self::wake_others).
    pub fn poll_deliver(
        &mut self,
        cx: &mut Context<'_>,
        mut deliver: impl FnMut(Key, &M) -> Flow,
    ) -> Poll<()> {
        self.wake_others();
        let shared = &*self.shared;
        let inbox = &shared.inboxes[usize::from(self.id.0)];
        let fanouts = &mut self.fanouts;
        inbox.disarm(self.attachment);
        if fanouts.queue.is_empty() {
            let asleep_if_none = fanouts.is_empty().then_some(cx.waker());
            if !inbox.take(self.attachment, &mut fanouts.queue, asleep_if_none) {
                return Poll::Pending;
            }
        }
        // Not until the inbox is empty: what is pushed meanwhile waits until the worker has written.
        let _ = fanouts.deliver(&self.tables, &mut deliver);
        let asleep_if_none = fanouts.is_empty().then_some(cx.waker());
        let limits = (&shared.config, &shared.congestion);
        if inbox.finish(self.attachment, &mut fanouts.finished, asleep_if_none, limits) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}

impl<M> Shard<M> {
    /// Wakes the workers that [`publish`](Self::publish) has left asleep and nobody has woken since, each once.
    pub fn wake_others(&mut self) {
        while let Some(shard) = self.left_asleep.pop() {
            if let Some(inbox) = self.shared.inboxes.get(shard) {
                inbox.wake();
            }
        }
    }
}

impl<M> Drop for Shard<M> {
    fn drop(&mut self) {
        self.wake_others();
    }
}

/// A topic has neither of these; in a pattern each stands for a whole level.
fn is_pattern(name: &str) -> bool {
    name.split('.').any(|level| level == "*" || level == ">")
}
