//! Matches of a publish, grouped by worker.

/// Most matches that need no heap memory.
const FEW: usize = 16;

/// Matching lists, each with the worker's number above the list's own. Sorting groups them by
/// worker.
#[derive(Debug)]
pub(crate) struct MatchedLists {
    few: [u64; FEW],
    len: usize,
    /// All matches, if there are more than [`FEW`].
    many: Vec<u64>,
}

impl MatchedLists {
    pub(crate) const fn new() -> Self {
        Self { few: [0; FEW], len: 0, many: Vec::new() }
    }

    pub(crate) fn push(&mut self, shard: u16, list: u32) {
        let matched = u64::from(shard) << 32 | u64::from(list);
        match self.few.get_mut(self.len) {
            Some(place) => *place = matched,
            None => {
                if self.many.is_empty() {
                    self.many.reserve(4 * FEW);
                    self.many.extend(self.few);
                }
                self.many.push(matched);
            }
        }
        self.len += 1;
    }

    /// Calls `visit` with each worker and its lists (at least one), in ascending order.
    pub(crate) fn for_each_shard(&mut self, mut visit: impl FnMut(u16, &[u64])) {
        let all = if self.many.is_empty() {
            self.few.get_mut(..self.len).unwrap_or_default()
        } else {
            &mut self.many
        };
        all.sort_unstable();
        for of_shard in all.chunk_by(|a, b| a >> 32 == b >> 32) {
            if let Some(first) = of_shard.first() {
                visit((first >> 32) as u16, of_shard);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn lists_come_by_worker_and_in_order() {
        for count in [0, 1, FEW as u32, FEW as u32 + 1, 100] {
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
