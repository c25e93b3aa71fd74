//! The subscribers in each list of a worker, and the lists of each subscriber.

use super::{SubscriberKey, WORKER_SUBSCRIBER};
use crate::arena::Arena;
use crate::inline_list::{InlineList, shrink};
use crate::kept::DeliveryState;
use ahash::RandomState;
use std::collections::HashMap;

/// Memory of a subscription without its topic: two entries that refer to each other, in lists whose
/// capacity doubles.
pub(super) const SUBSCRIPTION_BYTES: usize = 2 * (size_of::<Subscriber>() + size_of::<ListPosition>());

/// Memory of a subscriber list without its name, in a table whose capacity doubles.
pub(super) const LIST_BYTES: usize = 2 * size_of::<Option<SubscriberList>>();

/// [`Subscriber::since`] of a suspended subscription: no envelope has a later sequence.
pub(super) const SUSPENDED: u64 = u64::MAX;

/// The positions of one client, one for each of its subscriptions.
type PositionList = InlineList<ListPosition>;

/// The subscribers in each list, and the positions of each subscriber in these lists.
#[derive(Debug)]
pub(crate) struct SubscriptionTables {
    pub(super) lists: Arena<SubscriberList>,
    /// Indexed by subscriber key.
    clients: Vec<PositionList>,
    /// Positions of [`WORKER_SUBSCRIBER`].
    worker_positions: PositionList,
    /// Number of suspended subscribers of each list that has some.
    suspended: HashMap<u32, u32, RandomState>,
    /// Number of positions that [`since`](Self::since) has visited.
    #[cfg(test)]
    pub(super) positions_visited: std::cell::Cell<usize>,
}

/// The subscribers of one topic or pattern.
#[derive(Debug)]
pub(super) struct SubscriberList {
    pub(super) name: std::sync::Arc<str>,
    pub(super) subscribers: InlineList<Subscriber>,
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
    pub(super) index: u32,
}

impl SubscriptionTables {
    pub(super) fn new() -> Self {
        Self {
            lists: Arena::new(),
            clients: Vec::new(),
            worker_positions: InlineList::new(),
            // Fixed seeds are safe: clients cannot choose the numbers of lists.
            suspended: HashMap::with_hasher(RandomState::with_seeds(1, 2, 3, 4)),
            #[cfg(test)]
            positions_visited: std::cell::Cell::new(0),
        }
    }

    pub(crate) fn subscribers(&self, list: u32) -> &[Subscriber] {
        self.lists.get(list).map_or(&[], |list| list.subscribers.as_slice())
    }

    pub(super) fn subscriber(&self, position: ListPosition) -> Option<&Subscriber> {
        self.subscribers(position.list).get(position.index as usize)
    }

    /// Returns `true` if a client subscribed to one of these lists (in ascending order) before the
    /// envelope with this sequence was pushed.
    pub(crate) fn was_on_any(&self, key: SubscriberKey, lists: &[u32], sequence: u64) -> bool {
        !lists.is_empty() && self.since(key, lists).is_some_and(|since| since < sequence)
    }

    /// Returns `true` if a client subscribed before the envelope with this sequence was pushed, at a
    /// list and an index for which `is_visited` returns `true`.
    pub(crate) fn was_on_before(
        &self,
        key: SubscriberKey,
        sequence: u64,
        is_visited: impl Fn(u32, u32) -> bool,
    ) -> bool {
        let mut visited =
            self.positions(key).iter().filter(|position| is_visited(position.list, position.index));
        visited
            .any(|position| self.subscriber(*position).is_some_and(|subscriber| subscriber.since < sequence))
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

    pub(super) fn positions(&self, key: SubscriberKey) -> &[ListPosition] {
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

    pub(super) fn names(&self, key: SubscriberKey) -> impl Iterator<Item = &str> {
        self.positions(key).iter().filter_map(|position| Some(&*self.lists.get(position.list)?.name))
    }

    /// Returns the index of a client's subscription with this name.
    pub(super) fn find(&self, key: SubscriberKey, name: &str) -> Option<usize> {
        self.names(key).position(|subscribed| subscribed == name)
    }

    /// Returns the position of a client's subscription with this name.
    pub(super) fn find_position(&self, key: SubscriberKey, name: &str) -> Option<ListPosition> {
        self.positions(key).get(self.find(key, name)?).copied()
    }

    /// Sets [`Subscriber::since`] and returns the value from before.
    pub(super) fn set_since(&mut self, position: ListPosition, since: u64) -> Option<u64> {
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
    pub(super) fn list_state(&self, list: u32) -> DeliveryState {
        match self.suspended.get(&list) {
            Some(count) if *count as usize == self.subscribers(list).len() => DeliveryState::Suspended,
            _ => DeliveryState::Live,
        }
    }

    pub(super) fn add(&mut self, key: SubscriberKey, list: u32, since: u64) {
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
    pub(super) fn remove_subscription(
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
    pub(super) fn heap_bytes(&self) -> usize {
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
