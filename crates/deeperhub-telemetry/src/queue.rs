//! A bounded queue whose consumer takes batches.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A bounded queue. Its consumer is woken only for a whole batch, because a wake-up for each span
/// would cost more than all other work for the span.
#[derive(Debug)]
pub(crate) struct BatchQueue<T> {
    items: Mutex<VecDeque<T>>,
    capacity: usize,
    batch_size: usize,
}

/// Outcome of a push.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// The item was queued.
    Queued,
    /// The item was queued and completes a batch. The caller must wake the consumer.
    CompletesBatch,
    /// The queue was full; the item was dropped.
    Full,
}

impl<T> BatchQueue<T> {
    pub(crate) const fn new(capacity: usize, batch_size: usize) -> Self {
        Self { items: Mutex::new(VecDeque::new()), capacity, batch_size }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends an item without waiting for room.
    pub(crate) fn push(&self, item: T) -> Pushed {
        let mut items = self.lock();
        if items.len() >= self.capacity {
            return Pushed::Full;
        }
        items.push_back(item);
        if items.len() == self.batch_size { Pushed::CompletesBatch } else { Pushed::Queued }
    }

    /// Removes and returns the oldest items, at most a batch.
    pub(crate) fn take_batch(&self) -> Vec<T> {
        let mut items = self.lock();
        let count = items.len().min(self.batch_size);
        items.drain(..count).collect()
    }

    /// Returns `true` if a whole batch is queued.
    pub(crate) fn has_batch(&self) -> bool {
        self.lock().len() >= self.batch_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_over_the_capacity_are_dropped() {
        let queue = BatchQueue::new(2, 2);
        assert_eq!(
            [1, 2, 3].map(|item| queue.push(item)),
            [Pushed::Queued, Pushed::CompletesBatch, Pushed::Full]
        );
        assert_eq!(queue.take_batch(), [1, 2]);
        assert_eq!(queue.push(4), Pushed::Queued);
    }

    #[test]
    fn one_push_of_a_batch_completes_it() {
        let queue = BatchQueue::new(10, 3);
        let completed = (1..=4).filter(|&item| queue.push(item) == Pushed::CompletesBatch);
        assert_eq!(completed.collect::<Vec<_>>(), [3]);
        assert!(queue.has_batch());
        assert_eq!(
            (queue.take_batch(), queue.take_batch(), queue.take_batch()),
            (vec![1, 2, 3], vec![4], vec![])
        );
    }
}
