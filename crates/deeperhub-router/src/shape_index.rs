//! Shapes of patterns. A shape says which levels of a pattern have a name and which are wildcards.
//! A publish makes one hash lookup for each shape that its topic could match.

use crate::level_subsets::LevelSubsets;
use crate::patterns::PatternLookup;
use crate::stripe::RouteEntry;
use crate::wildcard::is_match;
use ahash::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table;
use std::hash::{BuildHasher, Hasher};

/// Maximum levels of a topic of maximum length: each level has at least one byte, and a dot
/// separates two levels.
pub(crate) const MAX_LEVELS: usize = 128;

/// Maximum levels for which level hashes are kept in a small array. Nearly all topics have no more.
const SHALLOW_LEVELS: usize = 8;

/// Maximum additions of level hashes that a match makes one by one. Above it, building
/// [`LevelSubsets`] is cheaper.
const MAX_DIRECT_ADDITIONS: usize = if cfg!(test) { 128 } else { 1024 };

/// Shape of a pattern: the number of its levels, and which of them have a name.
///
/// At most one pattern of a shape matches a given topic: the one with the topic's names at the
/// named levels. A publish therefore makes one hash lookup for each shape, however many patterns
/// there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PatternShape {
    /// Bit set of the levels that are not `*`. The lowest bit is the first level.
    pub(crate) named: u128,
    /// Number of levels, without the `>`.
    pub(crate) levels: u8,
    /// `true` if the pattern ends with a `>`.
    pub(crate) has_tail: bool,
}

/// Shapes of all patterns.
#[derive(Debug)]
pub(crate) struct ShapeIndex {
    /// Shapes without a `>`, indexed by the number of levels.
    exact: Vec<ShapeGroup>,
    /// Shapes with a `>`, indexed by the number of levels before it.
    tailed: Vec<ShapeGroup>,
    /// Bit set of the groups of `tailed` that are not empty.
    tails: u128,
}

/// Shapes with the same number of levels.
#[derive(Debug)]
struct ShapeGroup {
    /// [`length_seed`] of these shapes.
    seed: u64,
    levels: u8,
    has_tail: bool,
    shapes: HashTable<CountedShape>,
}

/// A shape, and the number of patterns that have it.
#[derive(Debug)]
struct CountedShape {
    /// [`PatternShape::named`] as two words, which need no alignment of 16 bytes.
    named: [u64; 2],
    patterns: u32,
}

/// Cost of a match, in steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MatchCost {
    /// Additions of level hashes.
    pub(crate) additions: usize,
    /// Lookups in the table of patterns: one for each shape.
    pub(crate) lookups: usize,
}

/// Returns the first summand of the hashes of patterns with this length. Because of it, patterns
/// with the same names but different lengths do not collide.
pub(crate) fn length_seed(hasher: &RandomState, levels: u8, has_tail: bool) -> u64 {
    hasher.hash_one((levels, has_tail))
}

/// Returns the hash of a name at a level. The hash of a pattern is the sum of these hashes and the
/// seed, so that partial sums can be shared by many patterns.
pub(crate) fn hash_level(hasher: &RandomState, level: usize, name: &[u8]) -> u64 {
    let mut hasher = hasher.build_hasher();
    hasher.write(name);
    hasher.write_u8(level as u8);
    hasher.finish()
}

impl ShapeIndex {
    /// Memory of a shape in a table without spare capacity.
    pub(crate) const SHAPE_BYTES: usize = size_of::<CountedShape>() + 1;

    pub(crate) const fn new() -> Self {
        Self { exact: Vec::new(), tailed: Vec::new(), tails: 0 }
    }

    /// Adds one pattern of a shape.
    pub(crate) fn add(&mut self, shape: PatternShape, hasher: &RandomState) {
        let groups = if shape.has_tail { &mut self.tailed } else { &mut self.exact };
        let levels = usize::from(shape.levels);
        while groups.len() <= levels {
            let group_levels = groups.len() as u8;
            groups.push(ShapeGroup {
                seed: length_seed(hasher, group_levels, shape.has_tail),
                levels: group_levels,
                has_tail: shape.has_tail,
                shapes: HashTable::new(),
            });
        }
        let Some(group) = groups.get_mut(levels) else { return };
        let named = to_words(shape.named);
        let hash = |counted: &CountedShape| hasher.hash_one(counted.named);
        match group.shapes.entry(hasher.hash_one(named), |counted| counted.named == named, hash) {
            hash_table::Entry::Occupied(mut occupied) => occupied.get_mut().patterns += 1,
            hash_table::Entry::Vacant(vacant) => {
                vacant.insert(CountedShape { named, patterns: 1 });
            }
        }
        if shape.has_tail {
            self.tails |= 1 << levels;
        }
    }

    /// Subtracts one pattern of a shape.
    pub(crate) fn subtract(&mut self, shape: PatternShape, hasher: &RandomState) {
        let groups = if shape.has_tail { &mut self.tailed } else { &mut self.exact };
        let levels = usize::from(shape.levels);
        let Some(group) = groups.get_mut(levels) else { return };
        let named = to_words(shape.named);
        let entry = group.shapes.find_entry(hasher.hash_one(named), |counted| counted.named == named);
        let Ok(mut occupied) = entry else { return };
        occupied.get_mut().patterns -= 1;
        if occupied.get().patterns > 0 {
            return;
        }
        occupied.remove();
        if group.shapes.is_empty() {
            group.shapes = HashTable::new();
            if shape.has_tail {
                self.tails &= !(1 << levels);
            }
        } else if group.shapes.capacity() > 64 && group.shapes.len() < group.shapes.capacity() / 8 {
            let capacity = group.shapes.len() * 2;
            group.shapes.shrink_to(capacity, |counted| hasher.hash_one(counted.named));
        }
        while groups.last().is_some_and(|group| group.shapes.is_empty()) {
            groups.pop();
        }
        if groups.is_empty() {
            *groups = Vec::new();
        }
    }

    /// Calls `visit` with each pattern that matches a topic.
    pub(crate) fn find_matches<'p>(
        &self,
        topic: &str,
        hasher: &RandomState,
        patterns: PatternLookup<'p>,
        visit: &mut impl FnMut(&'p RouteEntry),
    ) -> MatchCost {
        let depth = topic.bytes().filter(|byte| *byte == b'.').count() + 1;
        let exact = self.exact.get(depth).filter(|group| !group.shapes.is_empty());
        // A `>` matches at least one level.
        let tails = if depth < MAX_LEVELS { self.tails & ((1 << depth) - 1) } else { self.tails };
        let levels = match exact {
            Some(_) => depth,
            // The longest shape determines how many level hashes are needed.
            None => (u128::BITS - tails.leading_zeros()).saturating_sub(1) as usize,
        };
        if exact.is_none() && tails == 0 {
            return MatchCost::default();
        }
        let tailed = set_bits(tails).filter_map(|levels| self.tailed.get(levels));
        let groups = exact.into_iter().chain(tailed);
        if levels <= SHALLOW_LEVELS {
            let hashes = level_hashes::<SHALLOW_LEVELS>(topic, levels, hasher);
            return look_up_shapes(groups, &hashes, topic, patterns, visit);
        }
        let hashes = level_hashes::<MAX_LEVELS>(topic, levels, hasher);
        let shapes: usize = groups.clone().map(|group| group.shapes.len()).sum();
        if shapes.saturating_mul(levels) <= MAX_DIRECT_ADDITIONS {
            return look_up_shapes(groups, &hashes, topic, patterns, visit);
        }
        look_up_deep_shapes(groups, (&hashes, levels), topic, patterns, visit)
    }

    #[cfg(test)]
    pub(crate) fn heap_bytes(&self) -> usize {
        let groups = (self.exact.capacity() + self.tailed.capacity()) * size_of::<ShapeGroup>();
        let shapes = self.exact.iter().chain(&self.tailed).map(|group| group.shapes.allocation_size());
        groups + shapes.sum::<usize>()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.exact.iter().chain(&self.tailed).map(|group| group.shapes.len()).sum()
    }
}

fn to_words(named: u128) -> [u64; 2] {
    [named as u64, (named >> 64) as u64]
}

/// Returns the positions of the set bits.
fn set_bits(mut word: u128) -> impl Iterator<Item = usize> + Clone {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(bit)
    })
}

/// Returns the hashes of a topic's first levels.
fn level_hashes<const LEN: usize>(topic: &str, levels: usize, hasher: &RandomState) -> [u64; LEN] {
    let mut hashes = [0; LEN];
    let names = topic.as_bytes().split(|byte| *byte == b'.');
    for (level, (hash, name)) in hashes.iter_mut().zip(names).take(levels).enumerate() {
        *hash = hash_level(hasher, level, name);
    }
    hashes
}

/// Returns the sum of the hashes of the named levels, and the number of additions.
fn sum_named(hashes: &[u64], named: [u64; 2]) -> (u64, usize) {
    let (mut sum, mut additions) = (0_u64, 0);
    for (mut word, hashes) in named.into_iter().zip(hashes.chunks(64)) {
        while word != 0 {
            sum = sum.wrapping_add(hashes.get(word.trailing_zeros() as usize).copied().unwrap_or_default());
            word &= word - 1;
            additions += 1;
        }
    }
    (sum, additions)
}

/// Looks up the pattern of each shape in these groups.
fn look_up_shapes<'g, 'p>(
    groups: impl Iterator<Item = &'g ShapeGroup>,
    hashes: &[u64],
    topic: &str,
    patterns: PatternLookup<'p>,
    visit: &mut impl FnMut(&'p RouteEntry),
) -> MatchCost {
    let mut cost = MatchCost::default();
    for group in groups {
        for shape in &group.shapes {
            let (sum, additions) = sum_named(hashes, shape.named);
            cost.additions += additions;
            cost.lookups += 1;
            let entry = patterns.find(group.seed.wrapping_add(sum), |name| is_match(name, topic));
            entry.into_iter().for_each(&mut *visit);
        }
    }
    cost
}

/// Works like [`look_up_shapes`], but the shapes share partial sums of level hashes
/// ([`LevelSubsets`]).
#[inline(never)]
fn look_up_deep_shapes<'g, 'p>(
    groups: impl Iterator<Item = &'g ShapeGroup>,
    (hashes, levels): (&[u64; MAX_LEVELS], usize),
    topic: &str,
    patterns: PatternLookup<'p>,
    visit: &mut impl FnMut(&'p RouteEntry),
) -> MatchCost {
    let mut subsets = LevelSubsets::new(topic, hashes, levels);
    let mut cost = MatchCost { additions: LevelSubsets::additions(levels), lookups: 0 };
    for group in groups {
        let group_levels = usize::from(group.levels);
        subsets.begin_group(group_levels);
        for shape in &group.shapes {
            let (sum, additions) = subsets.sum(shape.named, group_levels);
            cost.additions += additions;
            cost.lookups += 1;
            let entry = patterns.find(group.seed.wrapping_add(sum), |name| {
                subsets.equals_pattern(name, shape.named, group_levels, group.has_tail)
            });
            entry.into_iter().for_each(&mut *visit);
        }
    }
    cost
}
