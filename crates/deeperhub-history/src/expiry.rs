//! A queue of streams by time, which is corrected only when its front is looked at.

use crate::seconds::Seconds;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

/// Streams by a time that only increases, such as the time of their oldest message.
///
/// The times in the queue may be too early, so a stream's changes cost nothing. A look at the front
/// moves such a stream to its true place. Each correction follows at least one change, so the cost
/// of all looks together is the logarithm of the length for each change at most.
///
/// The owner pushes a stream only if it is not in the queue. It remembers that in a flag.
#[derive(Debug)]
pub(crate) struct TimeQueue<K> {
    heap: BinaryHeap<Reverse<(Seconds, K)>>,
}

/// Length below which removed streams are not worth a sweep.
const MIN_SWEEP: usize = 64;

impl<K: Copy + Ord> TimeQueue<K> {
    pub(crate) const fn new() -> Self {
        Self { heap: BinaryHeap::new() }
    }

    /// Adds a stream. `live` is the number of streams that can be in the queue. If most entries are
    /// of removed streams, removes all entries for which `is_live` returns `false`.
    pub(crate) fn push(&mut self, time: Seconds, key: K, live: usize, mut is_live: impl FnMut(K) -> bool) {
        if self.heap.len() >= 2 * live + MIN_SWEEP {
            self.heap.retain(|Reverse((_, key))| is_live(*key));
            self.heap.shrink_to(2 * live + MIN_SWEEP);
        }
        self.heap.push(Reverse((time, key)));
    }

    /// Returns `true` if there are no entries, not even of removed streams.
    pub(crate) fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// Returns `true` if the front, corrected or not, is at or before `time`.
    pub(crate) fn may_have(&self, time: Seconds) -> bool {
        self.heap.peek().is_some_and(|Reverse((front, _))| *front <= time)
    }

    /// Returns the stream with the earliest time. `time_of` returns the present time of a stream,
    /// or `None` if it no longer belongs to the queue; then it is removed.
    pub(crate) fn front(&mut self, mut time_of: impl FnMut(K) -> Option<Seconds>) -> Option<(Seconds, K)> {
        loop {
            let mut front = self.heap.peek_mut()?;
            let Reverse((time, key)) = *front;
            match time_of(key) {
                None => {
                    PeekMut::pop(front);
                }
                Some(present) if present > time => *front = Reverse((present, key)),
                Some(_) => return Some((time, key)),
            }
        }
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.heap.capacity() * size_of::<Reverse<(Seconds, K)>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[test]
    fn entries_of_removed_streams_are_swept() {
        let mut queue = TimeQueue::new();
        for number in 0..100_000_u32 {
            // One stream is live at a time.
            queue.push(Seconds::new(number), number, 1, |key| key == number);
            assert!(queue.heap.len() <= 2 + MIN_SWEEP);
        }
        assert!(queue.heap_bytes() <= 4096);
    }

    proptest! {
        #[test]
        fn the_front_is_the_minimum(changes in proptest::collection::vec((0..20_u8, 0..50_u32), 1..200)) {
            let (mut queue, mut times) = (TimeQueue::new(), BTreeMap::<u8, Seconds>::new());
            for (key, time) in changes {
                if time == 0 {
                    times.remove(&key);
                    prop_assert_eq!(queue.front(|key| times.get(&key).copied()).map(|(time, _)| time),
                        times.values().min().copied());
                    continue;
                }
                let time = Seconds::new(time);
                match times.get_mut(&key) {
                    Some(present) => *present = time.max(*present),
                    None => {
                        // An entry of its earlier life may remain, which a flag prevents in the table.
                        times.insert(key, time);
                        queue.heap.retain(|Reverse((_, other))| *other != key);
                        queue.push(time, key, times.len(), |key| times.contains_key(&key));
                    }
                }
                let expected = times.values().min().copied();
                let front = queue.front(|key| times.get(&key).copied());
                prop_assert_eq!(front.map(|(time, _)| time), expected);
                prop_assert_eq!(queue.may_have(Seconds::new(49)), expected.is_some());
            }
        }
    }
}
