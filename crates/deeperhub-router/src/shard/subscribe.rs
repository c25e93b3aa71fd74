//! Starts, suspends and ends subscriptions of a worker's clients.

use super::tables::{ListPosition, SUSPENDED, SubscriberList};
use super::{Shard, SubscriberKey, is_pattern};
use crate::arena::Arena;
use crate::inline_list::InlineList;
use crate::kept::{DeliveryState, Keep, TopicView};
use crate::patterns::PatternKey;
use crate::router::{InterestChange, Shared};
use crate::stripe::RouteEntry;
use crate::sync::write;
use deeperhub_types::{Subscription, Topic};

/// Result of a subscribe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subscribed {
    /// The call added the subscription.
    New,
    /// The client already had this subscription.
    Already,
}

impl<M: Send + 'static, T: Keep> Shard<M, T> {
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
    /// value of its stripe. Both happen in one critical section of the topic: messages whose
    /// publish `judge` sees are not delivered, and later ones are.
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
