//! What becomes of workers that pushes find asleep.

use std::task::Waker;

/// How the workers are woken that a publish finds asleep.
#[derive(Debug)]
pub(crate) enum Wakeups<'s> {
    /// When this is dropped.
    Immediate(WakeOnDrop),
    /// Not by the publish: they are noted.
    Deferred(&'s mut ShardSet),
}

/// WakeOnDrop that are called when this is dropped: once all locks are released, and also after a panic.
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

/// A set of shards, one bit for each that there is, so that nothing is allocated later.
#[derive(Debug)]
pub(crate) struct ShardSet {
    words: Box<[u64]>,
}

impl ShardSet {
    /// Empty, with room for the shards of a router.
    pub(crate) fn new(shards: usize) -> Self {
        Self { words: vec![0; shards.div_ceil(64)].into() }
    }

    pub(crate) fn insert(&mut self, shard: u16) {
        if let Some(word) = self.words.get_mut(usize::from(shard / 64)) {
            *word |= 1 << (shard % 64);
        }
    }

    /// Takes one out.
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
    fn a_set_gives_each_shard_once() {
        let mut set = ShardSet::new(130);
        assert_eq!(set.pop(), None);
        for shard in [129, 0, 63, 64, 63, 0] {
            set.insert(shard);
        }
        assert!(std::iter::from_fn(|| set.pop()).eq([0, 63, 64, 129]));
    }
}
