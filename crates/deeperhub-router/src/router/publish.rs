//! Publishing: the pushes of a message to the inbox of each shard with a match.

use super::Shared;
use crate::inbox::{ListIds, OrderingKeys};
use crate::kept::{DeliveryState, Keep, Outgoing, Reach, TopicView};
use crate::matched_lists::MatchedLists;
use crate::stripe::{RouteEntry, Stripe, is_reserved};
use crate::sync::{MutexGuard, Ordering, read};
use crate::wakeups::Wakeups;
use deeperhub_types::Topic;

/// Result of a publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Number of matching subscriptions to topics and patterns, on all shards. A client with two
    /// matching subscriptions counts twice. Patterns count only if they are in the message's
    /// [`Reach`].
    pub subscribers: u64,
    /// `true` if an inbox that got the message is over its soft limit. The publisher should then
    /// pause until [`Router::is_congested`](crate::Router::is_congested) returns `false`.
    pub congested: bool,
    /// Cost of matching patterns: the number of lookups in their table, plus the number of
    /// additions of level hashes. Callers can charge it to the publisher. 0 if there are no
    /// patterns.
    pub steps: usize,
}

/// State that a publish finds under the lock of the topic's stripe.
struct Prepared<'s, F, R> {
    /// The topic's entry, if it has one.
    route: Option<&'s RouteEntry>,
    /// The message, unless nothing is pushed.
    outgoing: Option<Outgoing<F>>,
    /// Result for the caller.
    output: R,
}

impl<M, T: Keep> Shared<M, T> {
    /// Publishes a message; see [`Router::publish`](super::Router::publish).
    pub(crate) fn publish(
        &self,
        topic: &Topic<'_>,
        source: Option<u64>,
        bytes: usize,
        make: impl FnMut() -> M,
        wakeups: Wakeups<'_>,
    ) -> Published {
        let name = topic.as_str();
        let outgoing = Some(Outgoing { bytes, make, reach: Reach::Matching });
        self.publish_prepared(
            name,
            source,
            |stripe, hash| Prepared { route: stripe.find(hash, name), outgoing, output: () },
            wakeups,
        )
        .0
    }

    /// Publishes a message that is made from the topic's kept value; see
    /// [`Router::publish_kept`](super::Router::publish_kept).
    pub(crate) fn publish_kept<F: FnMut() -> M, R>(
        &self,
        topic: &Topic<'_>,
        source: Option<u64>,
        prepare: impl FnOnce(TopicView<'_>, &mut T, &mut T::Stripe) -> (Option<Outgoing<F>>, R),
        wakeups: Wakeups<'_>,
    ) -> (Published, R) {
        let name = topic.as_str();
        self.publish_prepared(
            name,
            source,
            |stripe, hash| {
                let (route, (outgoing, output)) = stripe.update_kept(hash, name, &self.hasher, prepare);
                Prepared { route, outgoing, output }
            },
            wakeups,
        )
    }

    /// Calls `update` with a kept value, and counts the topic's subscriptions; see
    /// [`Router::update_and_count`](super::Router::update_and_count).
    pub(crate) fn update_and_count<R>(
        &self,
        name: &str,
        update: impl FnOnce(TopicView<'_>, &mut T, &mut T::Stripe) -> R,
    ) -> (u64, R) {
        let hash = self.hash(name);
        if let Some(mut stripe) = self.lock_unless_patterns_match(hash, name) {
            let (route, output) = stripe.update_kept(hash, name, &self.hasher, update);
            return (route.map_or(0, RouteEntry::subscribers), output);
        }
        let mut matched = MatchedLists::new();
        let patterns = read(&self.patterns);
        patterns.matching(name, &mut |route| matched.add(route));
        let mut stripe = self.stripe(hash);
        let (route, output) = stripe.update_kept(hash, name, &self.hasher, update);
        route.into_iter().for_each(|route| matched.add(route));
        (matched.subscribers(), output)
    }

    /// Pushes a message to each shard with a matching subscription.
    ///
    /// `prepare` is called under the lock of the topic's stripe, before the pushes.
    fn publish_prepared<F: FnMut() -> M, R>(
        &self,
        name: &str,
        source: Option<u64>,
        prepare: impl for<'s> FnOnce(&'s mut Stripe<T>, u64) -> Prepared<'s, F, R>,
        mut wakeups: Wakeups<'_>,
    ) -> (Published, R) {
        let hash = self.hash(name);
        // Values that `make` owns are freed after the locks are released.
        let (mut outgoing, output);
        let (mut subscribers, mut congested, mut steps) = (0, false, 0);
        let mut push = |outgoing: &mut Outgoing<F>, shard: u16, lists: ListIds| {
            if let Some(inbox) = self.inboxes.get(usize::from(shard)) {
                let keys = OrderingKeys { topic: hash, source };
                let (bytes, message) = (outgoing.bytes, (outgoing.make)());
                congested |= inbox.push(keys, lists, bytes, message, self.soft_limits(), &mut wakeups);
            }
        };
        if let Some(mut stripe) = self.lock_unless_patterns_match(hash, name) {
            let route;
            Prepared { route, outgoing, output } = prepare(&mut stripe, hash);
            if let Some(outgoing) = &mut outgoing {
                for share in route.into_iter().flat_map(|route| route.shards.as_slice()) {
                    subscribers += u64::from(share.subscribers);
                    if share.state == DeliveryState::Live {
                        push(outgoing, share.shard, ListIds::One(share.list));
                    }
                }
            }
        } else {
            let mut matched = MatchedLists::new();
            // Hold this lock until all messages are pushed, because subscribing to a pattern relies
            // on it. Match before locking the stripe, so that matching delays no other publish.
            let patterns = read(&self.patterns);
            let cost = patterns.matching(name, &mut |route| matched.add(route));
            steps = cost.lookups + cost.additions;
            let mut stripe = self.stripe(hash);
            let route;
            Prepared { route, outgoing, output } = prepare(&mut stripe, hash);
            if let Some(outgoing) = &mut outgoing {
                if outgoing.reach == Reach::Topic {
                    matched.clear();
                }
                route.into_iter().for_each(|route| matched.add(route));
                subscribers = matched.subscribers();
                matched.for_each_shard(|shard, lists| {
                    push(outgoing, shard, list_ids(lists));
                });
            }
            drop(stripe);
            drop(patterns);
        }
        drop(wakeups);
        (Published { subscribers, congested, steps }, output)
    }

    /// Pushes several messages; see [`Router::publish_each_kept`](super::Router::publish_each_kept).
    pub(crate) fn publish_each_kept<F: FnMut() -> M, R>(
        &self,
        topic: &Topic<'_>,
        source: Option<u64>,
        prepare: impl FnOnce(TopicView<'_>, &mut T, &mut T::Stripe) -> (Vec<Outgoing<F>>, R),
        mut wakeups: Wakeups<'_>,
    ) -> R {
        let name = topic.as_str();
        let hash = self.hash(name);
        // Values that the messages own are freed after the locks are released.
        let (mut messages, output);
        let mut push = |outgoing: &mut Outgoing<F>, shard: u16, lists: ListIds| {
            if let Some(inbox) = self.inboxes.get(usize::from(shard)) {
                let keys = OrderingKeys { topic: hash, source };
                let (bytes, message) = (outgoing.bytes, (outgoing.make)());
                inbox.push(keys, lists, bytes, message, self.soft_limits(), &mut wakeups);
            }
        };
        let mut push_all = |outgoing: &mut Outgoing<F>, matched: &mut MatchedLists| {
            matched.for_each_shard(|shard, lists| push(outgoing, shard, list_ids(lists)));
        };
        let mut of_topic = MatchedLists::new();
        if let Some(mut stripe) = self.lock_unless_patterns_match(hash, name) {
            let route;
            (route, (messages, output)) = stripe.update_kept(hash, name, &self.hasher, prepare);
            route.into_iter().for_each(|route| of_topic.add(route));
            messages.iter_mut().for_each(|outgoing| push_all(outgoing, &mut of_topic));
        } else {
            let mut matched = MatchedLists::new();
            // As in `publish_prepared`, this lock is held until all messages are pushed.
            let patterns = read(&self.patterns);
            patterns.matching(name, &mut |route| matched.add(route));
            let mut stripe = self.stripe(hash);
            let route;
            (route, (messages, output)) = stripe.update_kept(hash, name, &self.hasher, prepare);
            if let Some(route) = route {
                of_topic.add(route);
                matched.add(route);
            }
            for outgoing in &mut messages {
                match outgoing.reach {
                    Reach::Topic => push_all(outgoing, &mut of_topic),
                    Reach::Matching => push_all(outgoing, &mut matched),
                }
            }
            drop(stripe);
            drop(patterns);
        }
        drop(wakeups);
        output
    }

    /// Locks the stripe of a topic. If there are patterns that the topic could match, locks nothing
    /// and returns `None`.
    #[inline]
    fn lock_unless_patterns_match(&self, hash: u64, name: &str) -> Option<MutexGuard<'_, Stripe<T>>> {
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
        (!may_match_patterns()).then_some(stripe)
    }
}

/// Returns the lists of one worker. The lower half of each word is the number of a list.
fn list_ids(words: &[u64]) -> ListIds {
    match words {
        [list] => ListIds::One(*list as u32),
        lists => ListIds::Many(lists.iter().map(|list| *list as u32).collect()),
    }
}
