//! Recognizes envelopes that arrive again.

use std::collections::HashMap;

/// Number of sequences that the window of an origin covers, up to the highest. Exceeds the distance
/// between two copies of an envelope through different subscriptions. A window takes 8 KiB of
/// memory.
const WINDOW_SEQUENCES: u64 = 1 << 16;

/// Maximum number of origins with a window. Limits memory use. The origin that was silent longest
/// is evicted for a new one.
const MAX_ORIGINS: usize = 1024;

/// Sliding window of sequences for each origin.
///
/// An envelope arrives again if several of the node's subscriptions match it. It also arrives again
/// if its sender lost the connection before the broker's confirmation and then repeated it.
#[derive(Debug, Default)]
pub(crate) struct DedupWindow {
    /// Windows of the nodes with each incarnation. Incarnations hardly ever coincide.
    origins: HashMap<u64, Vec<NodeWindow>, ahash::RandomState>,
    /// Number of windows.
    len: usize,
    /// Number of calls of `is_new`, which orders the windows by last use.
    clock: u64,
}

/// Name of a node, and its window.
type NodeWindow = (Box<[u8]>, SequenceWindow);

#[derive(Debug)]
struct SequenceWindow {
    highest: u64,
    /// One bit per sequence of the window, at the sequence modulo the length.
    bits: Box<[u64]>,
    /// Value of the clock at the last use.
    last_used: u64,
}

impl DedupWindow {
    /// Records an envelope. Returns `true` if the envelope is new. An envelope whose sequence is
    /// below the window does not count as new.
    pub(crate) fn is_new(&mut self, node: &[u8], incarnation: u64, sequence: u64) -> bool {
        self.clock += 1;
        let nodes = self.origins.get_mut(&incarnation);
        let window = nodes.and_then(|nodes| nodes.iter_mut().find(|(name, _)| **name == *node));
        if let Some((_, window)) = window {
            window.last_used = self.clock;
            return window.is_new(sequence);
        }
        if self.len >= MAX_ORIGINS {
            self.evict_oldest();
        }
        let mut window = SequenceWindow {
            highest: sequence,
            bits: vec![0; (WINDOW_SEQUENCES / 64) as usize].into(),
            last_used: self.clock,
        };
        window.set(sequence);
        self.origins.entry(incarnation).or_default().push((node.into(), window));
        self.len += 1;
        true
    }

    fn evict_oldest(&mut self) {
        let all = self.origins.iter().flat_map(|(incarnation, nodes)| {
            nodes.iter().map(|(_, window)| (window.last_used, *incarnation))
        });
        let Some((last_used, incarnation)) = all.min() else { return };
        if let Some(nodes) = self.origins.get_mut(&incarnation) {
            nodes.retain(|(_, window)| window.last_used != last_used);
            if nodes.is_empty() {
                self.origins.remove(&incarnation);
            }
        }
        self.len -= 1;
    }
}

impl SequenceWindow {
    fn is_new(&mut self, sequence: u64) -> bool {
        if sequence > self.highest {
            let steps = sequence - self.highest;
            if steps >= WINDOW_SEQUENCES {
                self.bits.fill(0);
            } else {
                for skipped in self.highest + 1..=sequence {
                    self.clear(skipped);
                }
            }
            self.highest = sequence;
            self.set(sequence);
            return true;
        }
        if self.highest - sequence >= WINDOW_SEQUENCES || self.is_set(sequence) {
            return false;
        }
        self.set(sequence);
        true
    }

    fn bit_position(sequence: u64) -> (usize, u64) {
        let bit = sequence % WINDOW_SEQUENCES;
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    fn is_set(&self, sequence: u64) -> bool {
        let (word, bit) = Self::bit_position(sequence);
        self.bits.get(word).is_some_and(|word| word & bit != 0)
    }

    fn set(&mut self, sequence: u64) {
        let (word, bit) = Self::bit_position(sequence);
        if let Some(word) = self.bits.get_mut(word) {
            *word |= bit;
        }
    }

    fn clear(&mut self, sequence: u64) {
        let (word, bit) = Self::bit_position(sequence);
        if let Some(word) = self.bits.get_mut(word) {
            *word &= !bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn each_is_new_once() {
        let mut dedup = DedupWindow::default();
        for sequence in [5, 1, 7, 3, 2 * WINDOW_SEQUENCES, 2 * WINDOW_SEQUENCES - 1] {
            assert!(dedup.is_new(b"a", 1, sequence), "{sequence}");
            assert!(!dedup.is_new(b"a", 1, sequence), "{sequence}");
        }
        // The sequence is older than the window.
        assert!(!dedup.is_new(b"a", 1, 100));
        assert!(dedup.is_new(b"b", 1, 5));
        // Another incarnation has a window of its own.
        assert!(dedup.is_new(b"a", 2, 5));
        assert!(!dedup.is_new(b"a", 1, 2 * WINDOW_SEQUENCES));
    }

    #[test]
    fn the_origin_silent_longest_is_evicted() {
        let mut dedup = DedupWindow::default();
        for incarnation in 0..MAX_ORIGINS as u64 + 1 {
            assert!(dedup.is_new(b"a", incarnation, 1));
            assert!(!dedup.is_new(b"a", incarnation, 1));
        }
        assert_eq!(dedup.len, MAX_ORIGINS);
        assert!(dedup.is_new(b"a", 0, 1));
        assert!(!dedup.is_new(b"a", MAX_ORIGINS as u64, 1));
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set(sequences in proptest::collection::vec(1_u64..WINDOW_SEQUENCES, 1..500)) {
            let (mut dedup, mut set) = (DedupWindow::default(), HashSet::new());
            for sequence in sequences {
                prop_assert_eq!(dedup.is_new(b"a", 1, sequence), set.insert(sequence));
            }
        }
    }
}
