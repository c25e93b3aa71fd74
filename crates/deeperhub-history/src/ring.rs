//! The kept messages of one stream, oldest first.

use crate::Seconds;
use std::collections::VecDeque;

/// Kept messages of one stream. Memory grows and shrinks with their number.
#[derive(Debug)]
pub(crate) struct Ring<M> {
    slots: VecDeque<Slot<M>>,
    /// Sum of the slots' bytes. `history_bytes` of a rule keeps it below 2 to the power of 32.
    bytes: u32,
}

/// One kept message.
#[derive(Debug)]
pub(crate) struct Slot<M> {
    pub(crate) message: M,
    pub(crate) at: Seconds,
    pub(crate) bytes: u32,
}

impl<M> Slot<M> {
    /// Bytes that a message takes in a ring, with the usual unused capacity.
    const RING_BYTES: u64 = 2 * size_of::<Self>() as u64;

    /// Returns the bytes that a message of `bytes` is charged in a budget with `overhead` for each
    /// message.
    pub(crate) const fn charge_of(bytes: u32, overhead: u32) -> u64 {
        bytes as u64 + overhead as u64 + Self::RING_BYTES
    }

    /// Returns the bytes that the message is charged, like [`Self::charge_of`].
    pub(crate) const fn charge(&self, overhead: u32) -> u64 {
        Self::charge_of(self.bytes, overhead)
    }
}

/// Capacity of a ring's first allocation, and the least that a ring shrinks to while it has
/// messages.
const MIN_CAPACITY: usize = 4;

impl<M> Ring<M> {
    pub(crate) const fn new() -> Self {
        Self { slots: VecDeque::new(), bytes: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) const fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Returns the bytes that all messages are charged, like [`Slot::charge_of`].
    pub(crate) fn charge(&self, overhead: u32) -> u64 {
        u64::from(self.bytes) + Slot::<M>::charge_of(0, overhead) * self.len() as u64
    }

    pub(crate) fn oldest(&self) -> Option<&Slot<M>> {
        self.slots.front()
    }

    /// Returns the message at `index`, counted from the oldest.
    pub(crate) fn get(&self, index: usize) -> Option<&M> {
        self.slots.get(index).map(|slot| &slot.message)
    }

    /// Makes room for one more message in a ring that gets at most `max` messages. A ring that is as
    /// long as it may be has no unused capacity, so a message takes the slot of the one that was
    /// evicted for it: fewer cache lines than two slots.
    pub(crate) fn reserve(&mut self, max: usize) {
        let len = self.slots.len();
        if len == self.slots.capacity() {
            let capacity = (2 * len).max(MIN_CAPACITY).min(max).max(len + 1);
            self.slots.reserve_exact(capacity - len);
        }
    }

    /// Adds the newest message. Times never decrease, so a clock that steps back cannot make a
    /// message expire before an older one.
    #[inline]
    pub(crate) fn push(&mut self, message: M, bytes: u32, now: Seconds) {
        let at = self.slots.back().map_or(now, |newest| newest.at.max(now));
        self.slots.push_back(Slot { message, at, bytes });
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Removes the oldest message, and keeps the memory of its slot.
    #[inline]
    pub(crate) fn take_oldest(&mut self) -> Option<Slot<M>> {
        let slot = self.slots.pop_front()?;
        self.bytes = self.bytes.saturating_sub(slot.bytes);
        Some(slot)
    }

    /// Removes the oldest message.
    pub(crate) fn pop(&mut self) -> Option<Slot<M>> {
        let slot = self.take_oldest()?;
        let (len, capacity) = (self.slots.len(), self.slots.capacity());
        if len == 0 {
            self.slots = VecDeque::new();
        } else if capacity > MIN_CAPACITY && len <= capacity / 4 {
            self.slots.shrink_to((2 * len).max(MIN_CAPACITY));
        }
        Some(slot)
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot<M>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_and_shrinks_with_the_messages() {
        let slot = size_of::<Slot<u64>>();
        let mut ring = Ring::<u64>::new();
        assert_eq!(ring.heap_bytes(), 0);
        for number in 1..=1000_u64 {
            ring.reserve(usize::MAX);
            ring.push(number, 10, Seconds::new(number as u32));
            assert!(ring.heap_bytes() <= slot * MIN_CAPACITY.max(2 * ring.len()), "{number}");
        }
        assert_eq!(
            (ring.len(), ring.bytes(), ring.get(0), ring.get(999)),
            (1000, 10_000, Some(&1), Some(&1000))
        );
        for left in (0..1000).rev() {
            assert_eq!(ring.pop().map(|slot| slot.message), Some(1000 - left as u64));
            assert!(ring.heap_bytes() <= slot * MIN_CAPACITY.max(4 * ring.len()), "{left}");
        }
        assert_eq!((ring.heap_bytes(), ring.bytes(), ring.charge(7)), (0, 0, 0));
        assert!(ring.pop().is_none());
        for number in 1..=1000_u64 {
            if number > 100 {
                ring.pop();
            }
            ring.reserve(100);
            ring.push(number, 10, Seconds::new(0));
        }
        assert_eq!(ring.heap_bytes(), 100 * slot);
    }

    #[test]
    fn a_ring_of_steady_length_does_not_allocate() {
        let mut ring = Ring::<u64>::new();
        (0..100).for_each(|number| ring.push(number, 1, Seconds::new(0)));
        let capacity = ring.slots.capacity();
        for number in 0..10_000 {
            ring.pop();
            ring.push(number, 1, Seconds::new(0));
            assert_eq!(ring.slots.capacity(), capacity);
        }
    }

    #[test]
    fn a_clock_that_steps_back_does_not_reorder_ages() {
        let mut ring = Ring::<u64>::new();
        ring.push(1, 1, Seconds::new(10));
        ring.push(2, 1, Seconds::new(5));
        ring.pop();
        assert_eq!(ring.oldest().map(|slot| slot.at), Some(Seconds::new(10)));
    }
}
