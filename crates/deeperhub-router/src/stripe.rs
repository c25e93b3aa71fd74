//! Stripes of the routing table. A stripe contains some of the exact topics under one lock, with
//! the number of subscribers that each worker has.

use crate::inline_list::InlineList;
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

    /// Adds one subscriber of a worker and returns the number of the worker's list. Calls
    /// `create_list` to create the list if the worker has no subscriber yet.
    pub(crate) fn add(&mut self, shard: u16, create_list: impl FnOnce() -> u32) -> u32 {
        if let Some(share) = self.shards.as_mut_slice().iter_mut().find(|share| share.shard == shard) {
            share.subscribers += 1;
            return share.list;
        }
        let list = create_list();
        self.shards.push(ShardShare { shard, list, subscribers: 1 });
        list
    }

    /// Subtracts one subscriber of a worker.
    pub(crate) fn subtract(&mut self, shard: u16) {
        let shards = self.shards.as_mut_slice();
        let Some(index) = shards.iter().position(|share| share.shard == shard) else { return };
        if let Some(share) = shards.get_mut(index) {
            share.subscribers = share.subscribers.saturating_sub(1);
            if share.subscribers == 0 {
                self.shards.swap_remove(index);
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn heap_bytes(&self) -> usize {
        arc_bytes(&self.name) + self.shards.heap_bytes()
    }

    /// Removes all subscribers of a worker.
    pub(crate) fn remove_shard(&mut self, shard: u16) {
        if let Some(index) = self.shards.as_slice().iter().position(|share| share.shard == shard) {
            self.shards.swap_remove(index);
        }
    }
}

/// Topics under one lock, by name.
#[derive(Debug)]
pub(crate) struct Stripe {
    topics: HashTable<RouteEntry>,
    /// Number of reserved topics, which are left out of lists and counts.
    reserved: usize,
}

impl Stripe {
    /// Memory of a topic without its name, in a table whose capacity doubles as it grows.
    pub(crate) const ENTRY_BYTES: usize = 2 * (size_of::<RouteEntry>() + 1);

    pub(crate) const fn new() -> Self {
        Self { topics: HashTable::new(), reserved: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.topics.len() - self.reserved
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &RouteEntry> {
        self.topics.iter().filter(|entry| !is_reserved(&entry.name))
    }

    pub(crate) fn find(&self, hash: u64, name: &str) -> Option<&RouteEntry> {
        self.topics.find(hash, |entry| *entry.name == *name)
    }

    pub(crate) fn get_or_insert(&mut self, hash: u64, name: &str, hasher: &RandomState) -> &mut RouteEntry {
        let equal = |entry: &RouteEntry| *entry.name == *name;
        match self.topics.entry(hash, equal, |entry| hasher.hash_one(&*entry.name)) {
            hash_table::Entry::Occupied(occupied) => occupied.into_mut(),
            hash_table::Entry::Vacant(vacant) => {
                self.reserved += usize::from(is_reserved(name));
                vacant.insert(RouteEntry::new(name)).into_mut()
            }
        }
    }

    /// Subtracts one subscriber of a worker from a topic. If it was the topic's last subscriber,
    /// removes the topic and returns `true`.
    pub(crate) fn subtract(&mut self, hash: u64, name: &str, shard: u16, hasher: &RandomState) -> bool {
        let Ok(mut occupied) = self.topics.find_entry(hash, |entry| *entry.name == *name) else {
            return false;
        };
        occupied.get_mut().subtract(shard);
        let is_empty = occupied.get().shards.is_empty();
        if is_empty {
            occupied.remove();
            self.reserved -= usize::from(is_reserved(name));
            self.shrink(hasher);
        }
        is_empty
    }

    /// Removes all subscribers of a worker. Calls `on_removed` with each topic that is removed
    /// because it has no other subscribers.
    pub(crate) fn remove_shard(
        &mut self,
        shard: u16,
        hasher: &RandomState,
        mut on_removed: impl FnMut(&Arc<str>),
    ) {
        self.topics.retain(|entry| {
            entry.remove_shard(shard);
            let is_empty = entry.shards.is_empty();
            if is_empty {
                self.reserved -= usize::from(is_reserved(&entry.name));
                on_removed(&entry.name);
            }
            !is_empty
        });
        self.shrink(hasher);
    }

    #[cfg(test)]
    pub(crate) fn heap_bytes(&self) -> usize {
        self.topics.allocation_size() + self.topics.iter().map(RouteEntry::heap_bytes).sum::<usize>()
    }

    fn shrink(&mut self, hasher: &RandomState) {
        if self.topics.capacity() > 64 && self.topics.len() < self.topics.capacity() / 8 {
            let capacity = self.topics.len() * 2;
            self.topics.shrink_to(capacity, |entry| hasher.hash_one(&*entry.name));
        }
    }
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
        let mut stripe = Stripe::new();
        let names: Vec<_> = (0..10_000).map(|number| format!("topic.{number}")).collect();
        for name in &names {
            let entry = stripe.get_or_insert(hasher.hash_one(name.as_str()), name, &hasher);
            entry.add(3, || 7);
            entry.add(4, || 8);
            entry.add(3, || unreachable!("the worker has a list"));
            assert_eq!((entry.subscribers(), entry.list(3), entry.list(5)), (3, Some(7), None));
        }
        stripe.remove_shard(4, &hasher, |name| unreachable!("{name} has a subscriber"));
        assert_eq!(stripe.len(), 10_000);
        for name in &names {
            let hash = hasher.hash_one(name.as_str());
            stripe.subtract(hash, name, 3, &hasher);
            assert_eq!(stripe.find(hash, name).unwrap().subscribers(), 1);
            stripe.subtract(hash, name, 3, &hasher);
            assert!(stripe.find(hash, name).is_none());
        }
        assert_eq!(stripe.len(), 0);
        assert!(stripe.topics.capacity() <= 64);
    }
}
