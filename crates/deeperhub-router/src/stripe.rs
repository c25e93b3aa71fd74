//! Stripes of the routing table. A stripe contains some of the exact topics under one lock, with
//! the number of subscribers that each worker has, the value that is kept for each topic, and a
//! value that these topics share.

use crate::inline_list::InlineList;
use crate::kept::{DeliveryState, Keep, TopicView};
use ahash::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table;
use std::sync::Arc;

/// Routing entry of one topic or pattern that has subscribers.
#[derive(Debug)]
pub(crate) struct RouteEntry {
    pub(crate) name: Arc<str>,
    /// One share for each worker with subscribers.
    pub(crate) shards: InlineList<ShardShare>,
}

/// One worker's subscribers of a topic or pattern.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ShardShare {
    pub(crate) shard: u16,
    /// Number of the worker's subscriber list.
    pub(crate) list: u32,
    pub(crate) subscribers: u32,
    /// Suspended if all these subscribers are. Publishes then push nothing to the worker.
    pub(crate) state: DeliveryState,
}

impl RouteEntry {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.into(), shards: InlineList::new() }
    }

    pub(crate) fn subscribers(&self) -> u64 {
        self.shards.as_slice().iter().map(|share| u64::from(share.subscribers)).sum()
    }

    pub(crate) fn list(&self, shard: u16) -> Option<u32> {
        self.shards.as_slice().iter().find(|share| share.shard == shard).map(|share| share.list)
    }

    fn share_mut(&mut self, shard: u16) -> Option<&mut ShardShare> {
        self.shards.as_mut_slice().iter_mut().find(|share| share.shard == shard)
    }

    /// Adds one subscriber of a worker in this state, and returns the number of the worker's list.
    /// Calls `create_list` to create the list if the worker has no subscriber yet.
    pub(crate) fn add(&mut self, shard: u16, state: DeliveryState, create_list: impl FnOnce() -> u32) -> u32 {
        if let Some(share) = self.share_mut(shard) {
            share.subscribers += 1;
            if state == DeliveryState::Live {
                share.state = state;
            }
            return share.list;
        }
        let list = create_list();
        self.shards.push(ShardShare { shard, list, subscribers: 1, state });
        list
    }

    /// Subtracts one subscriber of a worker, whose other subscribers are together in this state.
    /// Returns `true` if no worker has a subscriber any more.
    pub(crate) fn subtract(&mut self, shard: u16, state: DeliveryState) -> bool {
        let shards = self.shards.as_mut_slice();
        let Some(index) = shards.iter().position(|share| share.shard == shard) else { return false };
        if let Some(share) = shards.get_mut(index) {
            share.subscribers = share.subscribers.saturating_sub(1);
            share.state = state;
            if share.subscribers == 0 {
                self.shards.swap_remove(index);
            }
        }
        self.shards.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn heap_bytes(&self) -> usize {
        arc_bytes(&self.name) + self.shards.heap_bytes()
    }

    /// Removes all subscribers of a worker. Returns `true` if there were some, and no other worker
    /// has one.
    pub(crate) fn remove_shard(&mut self, shard: u16) -> bool {
        let index = self.shards.as_slice().iter().position(|share| share.shard == shard);
        index.is_some_and(|index| self.shards.swap_remove(index).is_some()) && self.shards.is_empty()
    }
}

/// A topic's subscribers, and the value that is kept for it.
#[derive(Debug)]
struct TopicEntry<T> {
    route: RouteEntry,
    kept: T,
}

impl<T: Keep> TopicEntry<T> {
    /// Returns `true` if the entry is needed: the topic has subscribers, or something is kept.
    fn is_used(&self) -> bool {
        !self.route.shards.is_empty() || !self.kept.is_spent()
    }
}

/// Topics under one lock, by name.
///
/// A topic without subscribers stays while something is kept for it. Lists and counts leave it out.
pub(crate) struct Stripe<T: Keep> {
    topics: HashTable<TopicEntry<T>>,
    /// Number of topics in lists and counts: those with subscribers, without reserved ones.
    listed: usize,
    /// Value that the topics share.
    pub(crate) value: T::Stripe,
}

impl<T: Keep> Stripe<T> {
    /// Memory of a topic without its name, in a table whose capacity doubles as it grows.
    pub(crate) const ENTRY_BYTES: usize = 2 * (size_of::<TopicEntry<T>>() + 1);

    pub(crate) const fn new(value: T::Stripe) -> Self {
        Self { topics: HashTable::new(), listed: 0, value }
    }

    pub(crate) fn listed(&self) -> usize {
        self.listed
    }

    /// Returns the topics in lists.
    pub(crate) fn iter_listed(&self) -> impl Iterator<Item = &RouteEntry> {
        let routes = self.topics.iter().map(|entry| &entry.route);
        routes.filter(|route| !route.shards.is_empty() && !is_reserved(&route.name))
    }

    pub(crate) fn find(&self, hash: u64, name: &str) -> Option<&RouteEntry> {
        self.topics.find(hash, |entry| *entry.route.name == *name).map(|entry| &entry.route)
    }

    /// Calls `update` with the topic, its kept value and the stripe's value, then `add` with the
    /// result, which adds subscribers. Inserts the topic if needed. Returns the results of both
    /// calls.
    pub(crate) fn subscribe<A, R>(
        &mut self,
        hash: u64,
        name: &str,
        hasher: &RandomState,
        add: impl FnOnce(&mut RouteEntry, &R) -> A,
        update: impl FnOnce(TopicView<'_>, &mut T, &mut T::Stripe) -> R,
    ) -> (A, R) {
        let equal = |entry: &TopicEntry<T>| *entry.route.name == *name;
        // `update` may panic, so the table changes only after it.
        let (entry, output) = match self.topics.entry(hash, equal, hash_with(hasher)) {
            hash_table::Entry::Occupied(occupied) => {
                let entry = occupied.into_mut();
                let output = update(TopicView::new(&entry.route), &mut entry.kept, &mut self.value);
                (entry, output)
            }
            hash_table::Entry::Vacant(vacant) => {
                let mut entry = TopicEntry { route: RouteEntry::new(name), kept: T::default() };
                let output = update(TopicView::new(&entry.route), &mut entry.kept, &mut self.value);
                (vacant.insert(entry).into_mut(), output)
            }
        };
        if entry.route.shards.is_empty() {
            entry.kept.on_followed(true, &mut self.value);
            self.listed += usize::from(!is_reserved(name));
        }
        (add(&mut entry.route, &output), output)
    }

    /// Subtracts one subscriber of a worker from a topic; see [`RouteEntry::subtract`]. Returns
    /// `true` if it was the topic's last subscriber. The kept value then learns it, and the topic
    /// is removed, unless something is still kept for it.
    pub(crate) fn subtract(
        &mut self,
        hash: u64,
        name: &str,
        shard: u16,
        state: DeliveryState,
        hasher: &RandomState,
    ) -> bool {
        let Ok(mut occupied) = self.topics.find_entry(hash, |entry| *entry.route.name == *name) else {
            return false;
        };
        let entry = occupied.get_mut();
        let is_last = entry.route.subtract(shard, state);
        if is_last {
            self.listed -= usize::from(!is_reserved(name));
            entry.kept.on_followed(false, &mut self.value);
            if !entry.is_used() {
                occupied.remove();
                self.shrink(hasher);
            }
        }
        is_last
    }

    /// Sets the state in which all subscribers of a worker are together.
    pub(crate) fn set_state(&mut self, hash: u64, name: &str, shard: u16, state: DeliveryState) {
        let entry = self.topics.find_mut(hash, |entry| *entry.route.name == *name);
        if let Some(share) = entry.and_then(|entry| entry.route.share_mut(shard)) {
            share.state = state;
        }
    }

    /// Removes all subscribers of a worker. Calls `on_last` with each topic that has no other
    /// subscribers. The kept values of these topics learn it, and the topics are removed, unless
    /// something is still kept for them.
    pub(crate) fn remove_shard(
        &mut self,
        shard: u16,
        hasher: &RandomState,
        mut on_last: impl FnMut(&Arc<str>),
    ) {
        self.topics.retain(|entry| {
            if entry.route.remove_shard(shard) {
                self.listed -= usize::from(!is_reserved(&entry.route.name));
                entry.kept.on_followed(false, &mut self.value);
                on_last(&entry.route.name);
            }
            entry.is_used()
        });
        self.shrink(hasher);
    }

    /// Calls `update` with the topic, its kept value and the stripe's value. Inserts the topic if
    /// something is kept afterwards, and removes it if nothing is kept and it has no subscribers.
    /// Returns the topic's entry, if it has one, and the result of the call.
    pub(crate) fn update_kept<R>(
        &mut self,
        hash: u64,
        name: &str,
        hasher: &RandomState,
        update: impl FnOnce(TopicView<'_>, &mut T, &mut T::Stripe) -> R,
    ) -> (Option<&RouteEntry>, R) {
        let equal = |entry: &TopicEntry<T>| *entry.route.name == *name;
        match self.topics.entry(hash, equal, hash_with(hasher)) {
            hash_table::Entry::Occupied(mut occupied) => {
                let entry = occupied.get_mut();
                let output = update(TopicView::new(&entry.route), &mut entry.kept, &mut self.value);
                if entry.is_used() {
                    return (Some(&occupied.into_mut().route), output);
                }
                occupied.remove();
                (None, output)
            }
            hash_table::Entry::Vacant(vacant) => {
                let mut entry = TopicEntry { route: RouteEntry::new(name), kept: T::default() };
                let output = update(TopicView::new(&entry.route), &mut entry.kept, &mut self.value);
                if entry.is_used() {
                    return (Some(&vacant.insert(entry).into_mut().route), output);
                }
                (None, output)
            }
        }
    }

    /// Calls `visit` with each topic for which something is kept, its kept value and the stripe's
    /// value. Removes topics that are not used any more.
    pub(crate) fn visit_kept(
        &mut self,
        hasher: &RandomState,
        mut visit: impl FnMut(TopicView<'_>, &mut T, &mut T::Stripe),
    ) {
        self.visit_topics(hasher, |topic, kept, value| {
            if !kept.is_spent() {
                visit(topic, kept, value);
            }
        });
    }

    /// Calls `visit` with each topic, its kept value and the stripe's value. Removes topics that are
    /// not used any more.
    pub(crate) fn visit_topics(
        &mut self,
        hasher: &RandomState,
        mut visit: impl FnMut(TopicView<'_>, &mut T, &mut T::Stripe),
    ) {
        self.topics.retain(|entry| {
            visit(TopicView::new(&entry.route), &mut entry.kept, &mut self.value);
            entry.is_used()
        });
        self.shrink(hasher);
    }

    /// Returns the number of topics with an entry.
    #[cfg(test)]
    pub(crate) fn entry_count(&self) -> usize {
        self.topics.len()
    }

    #[cfg(test)]
    pub(crate) fn heap_bytes(&self) -> usize {
        let routes = self.topics.iter().map(|entry| &entry.route);
        self.topics.allocation_size() + routes.map(RouteEntry::heap_bytes).sum::<usize>()
    }

    /// Frees memory of a table that is less than an eighth full.
    pub(crate) fn shrink(&mut self, hasher: &RandomState) {
        if self.topics.capacity() > 64 && self.topics.len() < self.topics.capacity() / 8 {
            let capacity = self.topics.len() * 2;
            self.topics.shrink_to(capacity, hash_with(hasher));
        }
    }
}

fn hash_with<T>(hasher: &RandomState) -> impl Fn(&TopicEntry<T>) -> u64 {
    |entry| hasher.hash_one(&*entry.route.name)
}

/// Returns the heap bytes of an `Arc<str>`: two counters and the text, rounded up to words.
pub(crate) fn arc_bytes(text: &str) -> usize {
    (2 * size_of::<usize>() + text.len()).next_multiple_of(size_of::<usize>())
}

/// Returns `true` if a topic starts with `$`. Such topics are reserved for the server.
pub(crate) fn is_reserved(name: &str) -> bool {
    name.starts_with('$')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_without_subscribers_are_removed() {
        let hasher = RandomState::with_seeds(1, 2, 3, 4);
        let mut stripe = Stripe::<()>::new(());
        let names: Vec<_> = (0..10_000).map(|number| format!("topic.{number}")).collect();
        for name in &names {
            let add = |entry: &mut RouteEntry, (): &()| {
                entry.add(3, DeliveryState::Live, || 7);
                entry.add(4, DeliveryState::Live, || 8);
                entry.add(3, DeliveryState::Live, || unreachable!("the worker has a list"));
                assert_eq!((entry.subscribers(), entry.list(3), entry.list(5)), (3, Some(7), None));
            };
            stripe.subscribe(hasher.hash_one(name.as_str()), name, &hasher, add, |_, (), ()| ());
        }
        stripe.remove_shard(4, &hasher, |name| unreachable!("{name} has a subscriber"));
        assert_eq!(stripe.listed(), 10_000);
        for name in &names {
            let hash = hasher.hash_one(name.as_str());
            assert!(!stripe.subtract(hash, name, 3, DeliveryState::Live, &hasher));
            assert_eq!(stripe.find(hash, name).unwrap().subscribers(), 1);
            assert!(stripe.subtract(hash, name, 3, DeliveryState::Live, &hasher));
            assert!(stripe.find(hash, name).is_none());
        }
        assert_eq!(stripe.listed(), 0);
        assert!(stripe.topics.capacity() <= 64);
    }

    #[test]
    fn topics_stay_until_nothing_is_kept() {
        let hasher = RandomState::with_seeds(1, 2, 3, 4);
        let mut stripe = Stripe::<Option<u32>>::new(());
        for number in 0..10_000 {
            let name = format!("topic.{number}");
            let hash = hasher.hash_one(name.as_str());
            let add = |entry: &mut RouteEntry, (): &()| entry.add(3, DeliveryState::Live, || 7);
            stripe.subscribe(hash, &name, &hasher, add, |_, kept, ()| *kept = Some(number));
            assert!(stripe.subtract(hash, &name, 3, DeliveryState::Live, &hasher));
        }
        assert_eq!((stripe.listed(), stripe.iter_listed().count(), stripe.topics.len()), (0, 0, 10_000));
        stripe.remove_shard(3, &hasher, |name| unreachable!("{name} has no subscriber"));
        let mut kept = Vec::new();
        stripe.visit_kept(&hasher, |topic, value, ()| {
            kept.push((topic.subscribers(), *value));
            value.take_if(|number| *number >= 100);
        });
        kept.sort_unstable();
        assert!(kept.into_iter().eq((0..10_000).map(|number| (0, Some(number)))));
        assert_eq!(stripe.topics.len(), 100);
        assert!(stripe.topics.capacity() <= 256);
        for number in 0..200 {
            let name = format!("topic.{number}");
            let hash = hasher.hash_one(name.as_str());
            let (entry, taken) = stripe.update_kept(hash, &name, &hasher, |_, kept, ()| kept.take());
            assert!(entry.is_none());
            assert_eq!(taken, (number < 100).then_some(number));
        }
        assert!(stripe.topics.is_empty());
    }

    #[test]
    fn something_can_be_kept_for_topics_with_subscribers() {
        let hasher = RandomState::with_seeds(1, 2, 3, 4);
        let mut stripe = Stripe::<Option<u32>>::new(());
        let names = ["a", "b"].map(|name| (name, hasher.hash_one(name)));
        for (number, (name, hash)) in (1..).zip(names) {
            let add = |entry: &mut RouteEntry, (): &()| entry.add(3, DeliveryState::Live, || 7);
            stripe.subscribe(hash, name, &hasher, add, |_, kept, ()| {
                *kept = Some(number).filter(|_| name == "a")
            });
        }
        stripe.visit_topics(&hasher, |topic, kept, ()| {
            assert_eq!(topic.subscribers(), 1);
            *kept = kept.map_or(Some(2), |_| None);
        });
        let mut kept = Vec::new();
        stripe.visit_kept(&hasher, |topic, value, ()| kept.push((topic.name().to_string(), *value)));
        assert_eq!(kept, [("b".to_owned(), Some(2))]);
        assert_eq!(stripe.topics.len(), 2);
    }

    #[test]
    fn an_entry_without_a_kept_value_takes_40_bytes() {
        assert_eq!(size_of::<TopicEntry<()>>(), 40);
        assert_eq!(size_of::<RouteEntry>(), 40);
        assert_eq!(size_of::<Stripe<()>>(), size_of::<HashTable<TopicEntry<()>>>() + size_of::<usize>());
        assert_eq!(size_of::<ShardShare>(), 12);
        assert_eq!(size_of::<TopicEntry<Option<Box<u64>>>>(), 48);
    }
}
