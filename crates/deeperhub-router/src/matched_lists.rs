//! Subscriber lists that a publish matched, grouped by worker.

use crate::kept::DeliveryState;
use crate::stripe::RouteEntry;

/// Maximum matches that need no heap memory.
const MAX_INLINE_MATCHES: usize = 16;

/// Matching lists, one word each. The upper half of a word is the worker's number, and the lower
/// half is the list's number. Sorting the words thus groups the lists by worker.
#[derive(Debug)]
pub(crate) struct MatchedLists {
    inline: [u64; MAX_INLINE_MATCHES],
    len: usize,
    /// All matches, if there are more than [`MAX_INLINE_MATCHES`].
    spilled: Vec<u64>,
    /// Number of subscribers that match, suspended ones included.
    subscribers: u64,
}

impl MatchedLists {
    pub(crate) const fn new() -> Self {
        Self { inline: [0; MAX_INLINE_MATCHES], len: 0, spilled: Vec::new(), subscribers: 0 }
    }

    /// Adds the lists of a topic or pattern that matches. Leaves out the lists of workers whose
    /// subscribers are all suspended.
    #[inline]
    pub(crate) fn add(&mut self, route: &RouteEntry) {
        for share in route.shards.as_slice() {
            self.subscribers += u64::from(share.subscribers);
            if share.state == DeliveryState::Live {
                self.push(share.shard, share.list);
            }
        }
    }

    /// Removes all matches.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
        self.spilled.clear();
        self.subscribers = 0;
    }

    pub(crate) fn subscribers(&self) -> u64 {
        self.subscribers
    }

    fn push(&mut self, shard: u16, list: u32) {
        let matched = u64::from(shard) << 32 | u64::from(list);
        match self.inline.get_mut(self.len) {
            Some(slot) => *slot = matched,
            None => {
                if self.spilled.is_empty() {
                    self.spilled.reserve(4 * MAX_INLINE_MATCHES);
                    self.spilled.extend(self.inline);
                }
                self.spilled.push(matched);
            }
        }
        self.len += 1;
    }

    /// Calls `visit` with each worker that has a match, and with the words of its lists. Workers
    /// and lists are in ascending order.
    pub(crate) fn for_each_shard(&mut self, mut visit: impl FnMut(u16, &[u64])) {
        let all = if self.spilled.is_empty() {
            self.inline.get_mut(..self.len).unwrap_or_default()
        } else {
            &mut self.spilled
        };
        all.sort_unstable();
        for shard_lists in all.chunk_by(|a, b| a >> 32 == b >> 32) {
            if let Some(first) = shard_lists.first() {
                visit((first >> 32) as u16, shard_lists);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn lists_are_grouped_by_worker_in_ascending_order() {
        for count in [0, 1, MAX_INLINE_MATCHES as u32, MAX_INLINE_MATCHES as u32 + 1, 100] {
            let mut matched = MatchedLists::new();
            for number in (0..count).rev() {
                matched.push((number % 3) as u16, number);
            }
            let mut seen = Vec::new();
            matched.for_each_shard(|shard, lists| {
                seen.extend(lists.iter().map(|list| (shard, *list as u32)));
            });
            let mut expected: Vec<_> = (0..count).map(|number| ((number % 3) as u16, number)).collect();
            expected.sort_unstable();
            assert_eq!(seen, expected);
        }
    }
}
