//! Wake-ups of workers that were asleep when a message was pushed to them.

use std::task::Waker;

/// How a publish wakes the workers that it finds asleep.
#[derive(Debug)]
pub(crate) enum Wakeups<'s> {
    /// The publish wakes them at its end, when this value is dropped.
    Immediate(WakeOnDrop),
    /// The publish only adds them to this set. The publishing thread wakes them later.
    Deferred(&'s mut ShardSet),
}

/// Wakers that are called on drop: after all locks are released, and also after a panic.
#[derive(Debug, Default)]
pub(crate) struct WakeOnDrop {
    first: Option<Waker>,
    others: Vec<Waker>,
}

impl WakeOnDrop {
    pub(crate) fn push(&mut self, waker: Waker) {
        match self.first {
            None => self.first = Some(waker),
            Some(_) => self.others.push(waker),
        }
    }
}

impl Drop for WakeOnDrop {
    fn drop(&mut self) {
        self.first.take().into_iter().chain(self.others.drain(..)).for_each(Waker::wake);
    }
}

/// A set of shards with one bit for each. It allocates only when it is created.
#[derive(Debug)]
pub(crate) struct ShardSet {
    words: Box<[u64]>,
}

impl ShardSet {
    /// Creates an empty set with room for `shards` shards.
    pub(crate) fn new(shards: usize) -> Self {
        Self { words: vec![0; shards.div_ceil(64)].into() }
    }

    pub(crate) fn insert(&mut self, shard: u16) {
        if let Some(word) = self.words.get_mut(usize::from(shard / 64)) {
            *word |= 1 << (shard % 64);
        }
    }

    /// Removes and returns the lowest shard.
    pub(crate) fn pop(&mut self) -> Option<usize> {
        let (index, word) = self.words.iter_mut().enumerate().find(|(_, word)| **word != 0)?;
        let bit = word.trailing_zeros();
        *word &= *word - 1;
        Some(index * 64 + bit as usize)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_set_returns_each_shard_once() {
        let mut set = ShardSet::new(130);
        assert_eq!(set.pop(), None);
        for shard in [129, 0, 63, 64, 63, 0] {
            set.insert(shard);
        }
        assert!(std::iter::from_fn(|| set.pop()).eq([0, 63, 64, 129]));
    }
}
