//! Patterns with their subscribers, and a lookup of the patterns that match a topic.

use crate::arena::Arena;
use crate::kept::DeliveryState;
use crate::shape_index::{MAX_LEVELS, MatchCost, PatternShape, ShapeIndex, hash_level, length_seed};
use crate::stripe::RouteEntry;
use ahash::RandomState;
use hashbrown::HashTable;

/// All patterns, indexed by shape and names.
///
/// Matching a topic takes one lookup for each [`PatternShape`] that the topic could match. The
/// number of lookups is at most that of the patterns, and at most `2^(n + 1)` for a topic of `n`
/// levels. The cost of a lookup does not depend on how many levels of the patterns agree with the
/// topic.
#[derive(Debug)]
pub(crate) struct Patterns {
    patterns: Arena<IndexedPattern>,
    /// Numbers of the patterns, by [`PatternKey::hash`].
    by_hash: HashTable<u32>,
    shapes: ShapeIndex,
    hasher: RandomState,
}

/// A pattern's routing entry with its hash.
#[derive(Debug)]
pub(crate) struct IndexedPattern {
    hash: u64,
    entry: RouteEntry,
}

/// Lookup of patterns by hash.
#[derive(Clone, Copy)]
pub(crate) struct PatternLookup<'p> {
    numbers: &'p HashTable<u32>,
    patterns: &'p Arena<IndexedPattern>,
}

impl<'p> PatternLookup<'p> {
    /// Returns the pattern with this hash for which `is_match` returns `true`.
    #[inline]
    pub(crate) fn find(self, hash: u64, mut is_match: impl FnMut(&str) -> bool) -> Option<&'p RouteEntry> {
        let pattern = |number: u32| self.patterns.get(number).filter(|pattern| pattern.hash == hash);
        let first = pattern(*self.numbers.find(hash, |number| pattern(*number).is_some())?)?;
        if is_match(&first.entry.name) {
            return Some(&first.entry);
        }
        // Rarely, two patterns have the same hash.
        let others = self.numbers.iter_hash(hash).filter_map(|number| pattern(*number));
        others.map(|pattern| &pattern.entry).find(|entry| is_match(&entry.name))
    }
}

/// A pattern's text with its shape and hash. Computed before a lock is taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PatternKey<'p> {
    name: &'p str,
    shape: PatternShape,
    /// Sum of the [`length_seed`] of the pattern's length and the [hashes](hash_level) of its
    /// names.
    hash: u64,
}

impl<'p> PatternKey<'p> {
    /// Parses a valid pattern.
    pub(crate) fn new(name: &'p str, hasher: &RandomState) -> Self {
        let (levels, has_tail) = match name.strip_suffix('>') {
            Some(levels) => (levels.strip_suffix('.').unwrap_or_default(), true),
            None => (name, false),
        };
        let mut shape = PatternShape { named: 0, levels: 0, has_tail };
        let mut sum = 0_u64;
        let levels = levels.split('.').filter(|level| !level.is_empty()).take(MAX_LEVELS);
        for (number, level) in levels.enumerate() {
            shape.levels += 1;
            if level != "*" {
                shape.named |= 1 << number;
                sum = sum.wrapping_add(hash_level(hasher, number, level.as_bytes()));
            }
        }
        Self { name, shape, hash: length_seed(hasher, shape.levels, has_tail).wrapping_add(sum) }
    }
}

impl Patterns {
    /// Memory of a pattern without its name, in tables whose capacity doubles: the pattern, its
    /// number, and a shape that no other pattern has.
    pub(crate) const ENTRY_BYTES: usize =
        2 * (size_of::<Option<IndexedPattern>>() + size_of::<u32>() + 1 + ShapeIndex::SHAPE_BYTES);

    pub(crate) fn new(hasher: &RandomState) -> Self {
        Self {
            patterns: Arena::new(),
            by_hash: HashTable::new(),
            shapes: ShapeIndex::new(),
            hasher: hasher.clone(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.patterns.len()
    }

    /// Returns the patterns whose numbers are among the `max_len` numbers from `start`. Also
    /// returns the next start if there may be more. A pattern keeps its number until it is removed.
    pub(crate) fn range(
        &self,
        start: usize,
        max_len: usize,
    ) -> (impl Iterator<Item = &RouteEntry>, Option<usize>) {
        let (patterns, next) = self.patterns.range(start, max_len);
        (patterns.map(|pattern| &pattern.entry), next)
    }

    /// Calls `visit` with each pattern that matches the topic.
    pub(crate) fn matching<'p>(&'p self, topic: &str, visit: &mut impl FnMut(&'p RouteEntry)) -> MatchCost {
        let patterns = PatternLookup { numbers: &self.by_hash, patterns: &self.patterns };
        self.shapes.find_matches(topic, &self.hasher, patterns, visit)
    }

    pub(crate) fn find(&self, key: &PatternKey<'_>) -> Option<&RouteEntry> {
        self.patterns.get(self.number(key)?).map(|pattern| &pattern.entry)
    }

    fn number(&self, key: &PatternKey<'_>) -> Option<u32> {
        let is_match = |number: &u32| {
            self.patterns
                .get(*number)
                .is_some_and(|pattern| pattern.hash == key.hash && *pattern.entry.name == *key.name)
        };
        self.by_hash.find(key.hash, is_match).copied()
    }

    pub(crate) fn get_or_insert(&mut self, key: &PatternKey<'_>) -> &mut RouteEntry {
        let number = match self.number(key) {
            Some(number) => number,
            None => {
                let number =
                    self.patterns.insert(IndexedPattern { hash: key.hash, entry: RouteEntry::new(key.name) });
                self.by_hash.insert_unique(key.hash, number, hash_of(&self.patterns));
                self.shapes.add(key.shape, &self.hasher);
                number
            }
        };
        &mut self.patterns.get_mut(number).expect("the table's numbers are those of patterns").entry
    }

    /// Subtracts one subscriber of a worker from a pattern. If it was the pattern's last
    /// subscriber, removes the pattern and returns `true`.
    pub(crate) fn subtract(&mut self, key: &PatternKey<'_>, shard: u16) -> bool {
        let Some(number) = self.number(key) else { return false };
        let Some(pattern) = self.patterns.get_mut(number) else { return false };
        let is_last = pattern.entry.subtract(shard, DeliveryState::Live);
        if is_last {
            self.remove(number, key);
        }
        is_last
    }

    /// Removes all subscribers of a worker. Calls `on_removed` with each pattern that is removed
    /// because it has no other subscribers.
    pub(crate) fn remove_shard(&mut self, shard: u16, mut on_removed: impl FnMut(&std::sync::Arc<str>)) {
        let (all, _) = self.range(0, usize::MAX);
        let names: Vec<_> = all
            .filter(|entry| entry.list(shard).is_some())
            .map(|entry| std::sync::Arc::clone(&entry.name))
            .collect();
        for name in names {
            let key = PatternKey::new(&name, &self.hasher);
            let Some(number) = self.number(&key) else { continue };
            let Some(pattern) = self.patterns.get_mut(number) else { continue };
            if pattern.entry.remove_shard(shard) {
                self.remove(number, &key);
                on_removed(&name);
            }
        }
    }

    fn remove(&mut self, number: u32, key: &PatternKey<'_>) {
        if let Ok(occupied) = self.by_hash.find_entry(key.hash, |other| *other == number) {
            occupied.remove();
        }
        if self.by_hash.capacity() > 64 && self.by_hash.len() < self.by_hash.capacity() / 8 {
            let capacity = self.by_hash.len() * 2;
            self.by_hash.shrink_to(capacity, hash_of(&self.patterns));
        }
        self.patterns.remove(number);
        self.shapes.subtract(key.shape, &self.hasher);
    }

    #[cfg(test)]
    pub(crate) fn heap_bytes(&self) -> usize {
        let (all, _) = self.range(0, usize::MAX);
        self.patterns.heap_bytes()
            + self.by_hash.allocation_size()
            + self.shapes.heap_bytes()
            + all.map(RouteEntry::heap_bytes).sum::<usize>()
    }
}

fn hash_of(patterns: &Arena<IndexedPattern>) -> impl Fn(&u32) -> u64 {
    |number| patterns.get(*number).map_or(0, |pattern| pattern.hash)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use deeperhub_types::{Topic, TopicPattern};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn hasher() -> RandomState {
        RandomState::with_seeds(1, 2, 3, 4)
    }

    fn key(name: &str) -> PatternKey<'_> {
        PatternKey::new(name, &hasher())
    }

    fn index(names: impl IntoIterator<Item = impl AsRef<str>>) -> Patterns {
        let mut patterns = Patterns::new(&hasher());
        for name in names {
            patterns.get_or_insert(&key(name.as_ref())).add(0, DeliveryState::Live, || 0);
        }
        patterns
    }

    fn all(patterns: &Patterns) -> BTreeSet<String> {
        patterns.range(0, usize::MAX).0.map(|entry| entry.name.to_string()).collect()
    }

    fn matching<'p>(patterns: &'p Patterns, topic: &str) -> Vec<&'p str> {
        let mut names = Vec::new();
        patterns.matching(topic, &mut |entry| names.push(&*entry.name));
        names.sort_unstable();
        names
    }

    /// Returns the cost of matching a topic.
    fn cost(patterns: &Patterns, topic: &str) -> MatchCost {
        patterns.matching(topic, &mut |_| {})
    }

    #[test]
    fn each_matching_pattern_is_found_once() {
        let names = ["a.*", "a.>", ">", "*.b", "*.>", "*.*", "a.*.c", "a.b.>", "*", "b.*"];
        let patterns = index(names);
        assert_eq!(matching(&patterns, "a.b"), ["*.*", "*.>", "*.b", ">", "a.*", "a.>"]);
        assert_eq!(matching(&patterns, "a"), ["*", ">"]);
        assert_eq!(matching(&patterns, "a.b.c"), ["*.>", ">", "a.*.c", "a.>", "a.b.>"]);
        assert_eq!(matching(&patterns, "x.y"), ["*.*", "*.>", ">"]);
    }

    #[test]
    fn the_longest_patterns_are_found() {
        let topic = ["a"; 128].join(".");
        assert_eq!(topic.len(), Topic::MAX_BYTES);
        let stars = ["*"; 127].join(".");
        let names = [format!("{stars}.*"), format!("{stars}.a"), format!("{stars}.>"), format!("{stars}.x")];
        assert_eq!(matching(&index(names), &topic).len(), 3);
    }

    #[test]
    fn patterns_without_subscribers_are_removed() {
        let names = ["a.*", "a.b.c.d.>", ">", "*.b", "*.*.*", "a.b.*"];
        let mut patterns = index(names);
        patterns.get_or_insert(&key("a.*")).add(1, DeliveryState::Live, || 0);
        for name in names {
            patterns.subtract(&key(name), 0);
            patterns.subtract(&key(name), 0);
        }
        assert_eq!((patterns.len(), all(&patterns).len()), (1, 1));
        assert_eq!(patterns.find(&key("a.*")).map(RouteEntry::subscribers), Some(1));
        patterns.remove_shard(1, |_| ());
        assert_eq!((patterns.len(), patterns.shapes.len(), patterns.by_hash.len()), (0, 0, 0));
        assert_eq!(cost(&patterns, "a.b"), MatchCost::default());
    }

    #[test]
    fn removing_patterns_frees_their_memory() {
        let names: Vec<_> = (0..2_000).map(|number| format!("capacity.{number}.*.{number}.>")).collect();
        let mut patterns = index(&names);
        assert!(patterns.heap_bytes() > 100_000);
        patterns.remove_shard(0, |_| ());
        assert!(patterns.heap_bytes() < 4_000, "{} bytes are left", patterns.heap_bytes());
    }

    /// Returns 128 patterns for each client. Each pattern has 128 levels: `a` or `*`, and `x` at
    /// the end. Only the last level of a topic of `a`s decides whether the patterns match.
    fn deep(clients: u32) -> Vec<String> {
        let name = |choice: u32| {
            let levels = (0..127).map(|level| if level < 16 && choice >> level & 1 == 0 { "a" } else { "*" });
            levels.chain(["x"]).collect::<Vec<_>>().join(".")
        };
        (0..128 * clients).map(name).collect()
    }

    #[test]
    fn a_deep_topic_costs_at_most_one_lookup_per_pattern() {
        for clients in [1, 10, 50] {
            let names = deep(clients);
            let patterns = index(&names);
            assert_eq!(patterns.len(), names.len());
            for (last, matches) in [("a", 0), ("x", names.len())] {
                let topic = [&["a"; 127][..], &[last]].concat().join(".");
                assert_eq!(matching(&patterns, &topic).len(), matches);
                let cost = cost(&patterns, &topic);
                assert_eq!(cost.lookups, names.len());
                // At most 16 additions for each lookup, and those of `LevelSubsets::new`.
                assert!(cost.additions <= 16 * cost.lookups + 4096, "{cost:?}");
            }
            // Topics of other lengths cost nothing.
            assert_eq!(cost(&patterns, &["a"; 127].join(".")), MatchCost::default());
        }
    }

    #[test]
    fn names_at_all_levels_cost_no_more_than_names_at_the_first() {
        // Names and wildcards over the whole length, from the bits of a multiplier.
        let name = |number: u32| {
            let bits = u128::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
            let levels = (0..128).map(|level| if bits >> level & 1 == 0 { "a" } else { "*" });
            levels.collect::<Vec<_>>().join(".")
        };
        let names: BTreeSet<_> = (1..=1_280).map(name).collect();
        let patterns = index(&names);
        let topic = ["a"; 128].join(".");
        assert_eq!(matching(&patterns, &topic).len(), names.len());
        let cost = cost(&patterns, &topic);
        assert_eq!(cost.lookups, names.len());
        assert!(cost.additions <= 16 * cost.lookups + 4096, "{cost:?}");
    }

    #[test]
    fn a_shallow_topic_costs_little_whatever_the_patterns_are() {
        // All patterns of up to five levels over three names, and longer ones.
        let mut names: BTreeSet<_> = deep(10).into_iter().collect();
        for length in 1..=5_u32 {
            for choice in 0..4_u32.pow(length) {
                let levels: Vec<_> = (0..length)
                    .map(|level| ["*", "a", "b", "c"][(choice >> (2 * level) & 3) as usize])
                    .collect();
                let name = levels.join(".");
                names.insert(format!("{name}.>"));
                if levels.contains(&"*") {
                    names.insert(name);
                }
            }
        }
        let patterns = index(&names);
        for depth in 1..=5 {
            let cost = cost(&patterns, &vec!["a"; depth].join("."));
            assert!(cost.lookups <= 1 << (depth + 1), "{cost:?} for {depth} levels");
            assert!(cost.additions <= depth << (depth + 1), "{cost:?} for {depth} levels");
        }
    }

    #[test]
    fn patterns_of_one_shape_cost_one_lookup() {
        let names = (0..10_000)
            .flat_map(|capacity| [format!("capacity.{capacity}.*"), format!("*.{capacity}.state.>")]);
        let patterns = index(names);
        assert_eq!(matching(&patterns, "capacity.77.state"), ["capacity.77.*"]);
        assert_eq!(matching(&patterns, "house.77.state.door"), ["*.77.state.>"]);
        assert_eq!(cost(&patterns, "capacity.77.state").lookups, 1);
        assert_eq!(cost(&patterns, "house.77.state.door").lookups, 1);
    }

    #[test]
    fn a_long_pattern_takes_little_more_than_its_text() {
        let names = deep(1);
        let bytes = index(&names).heap_bytes() / names.len();
        assert!(bytes < 255 + 250, "{bytes} bytes each");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn the_index_agrees_with_each_pattern(
            mut names in proptest::collection::btree_set("(([ab*]\\.){0,3}[*>])|(\\*(\\.[ab*]){1,3})", 0..20),
            removed in proptest::collection::vec(any::<proptest::sample::Index>(), 0..10),
            topics in proptest::collection::vec("([abc]\\.){0,4}[abc]", 10),
        ) {
            check_against_each(&mut names, removed, topics)?;
        }

        #[test]
        fn the_index_agrees_with_each_deep_pattern(
            mut names in proptest::collection::btree_set("((a|bb|\\*|\\*)\\.){8,40}[*>]", 0..60),
            removed in proptest::collection::vec(any::<proptest::sample::Index>(), 0..10),
            derived in proptest::collection::vec((any::<proptest::sample::Index>(), "(a|bb|ccc)", 0..3_usize), 10),
            mut topics in proptest::collection::vec("((a|bb)\\.){8,40}a", 4),
        ) {
            // Topics that one of the patterns matches, some of them with one more level.
            for (index, level, more) in derived {
                if !names.is_empty() {
                    let names: Vec<_> = names.iter().collect();
                    let name = index.get(&names);
                    topics.push(name.replace(['*', '>'], &level) + &".a".repeat(more / 2));
                }
            }
            check_against_each(&mut names, removed, topics)?;
        }
    }

    /// Removes some patterns, then compares the index with the result of matching each pattern
    /// alone.
    fn check_against_each(
        names: &mut BTreeSet<String>,
        removed: Vec<proptest::sample::Index>,
        topics: Vec<String>,
    ) -> Result<(), TestCaseError> {
        let mut patterns = index(&*names);
        for name in removed {
            if !names.is_empty() {
                let name = name.get(&names.iter().collect::<Vec<_>>()).to_string();
                prop_assert!(patterns.subtract(&key(&name), 0));
                names.remove(&name);
            }
        }
        prop_assert_eq!(patterns.len(), names.len());
        prop_assert_eq!(&all(&patterns), &*names);
        for topic in topics {
            let parsed = Topic::parse(topic.as_str()).expect("a topic");
            let expected: Vec<_> = names
                .iter()
                .filter(|name| TopicPattern::parse(name.as_str()).expect("a pattern").matches(&parsed))
                .collect();
            prop_assert_eq!(matching(&patterns, &topic), expected);
            let depth = parsed.levels().count();
            let cost = cost(&patterns, &topic);
            prop_assert!(cost.lookups <= names.len().min(2 << depth.min(60)));
        }
        Ok(())
    }
}
