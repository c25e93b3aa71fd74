//! Coverage and overlap of patterns: finds a pattern that covers a name, patterns that match a
//! common topic (a crowd), and a pattern that covers several others.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use ahash::RandomState;

/// Maximum number of levels of a pattern at the broker. A deeper pattern is replaced with its first
/// levels and `>`.
pub(crate) const MAX_LEVELS: usize = 32;

/// Limit on the steps of one search for a crowd. Each pattern of the set raises the limit by
/// [`SEARCH_STEPS_PER_PATTERN`]. Bounds the CPU time that clients' patterns can cost. A search that
/// reaches the limit counts as successful.
const SEARCH_STEPS: usize = 4096;

/// Additional steps of a search for each pattern of the set.
const SEARCH_STEPS_PER_PATTERN: usize = 8;

/// Interpretation of wildcards by a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wildcards {
    /// NATS subjects: `*` is one level, and a trailing `>` is one level or more.
    Levels,
    /// Redis globs: `*` and `>` are one level or more at any place, as globs do not stop at levels.
    Globs,
}

/// Returns `true` if a name is a pattern. Topics never contain `*` or `>`.
pub(crate) fn is_pattern(name: &str) -> bool {
    name.contains(['*', '>'])
}

/// Returns the levels before the first wildcard, with their dots. All names that a pattern covers
/// begin with them.
pub(crate) fn literal_prefix(pattern: &str) -> &str {
    let end = pattern.find(['*', '>']).unwrap_or(pattern.len());
    pattern.get(..end).unwrap_or_default()
}

/// Returns the narrowest pattern that covers both arguments, each a pattern or a topic.
pub(crate) fn join(one: &str, other: &str) -> String {
    let (ones, others): (Vec<_>, Vec<_>) = (one.split('.').collect(), other.split('.').collect());
    let mut levels = Vec::new();
    for (one, other) in ones.iter().zip(&others) {
        match (*one, *other) {
            (">", _) | (_, ">") => {
                levels.push(">");
                return levels.join(".");
            }
            (one, other) => levels.push(if one == other { one } else { "*" }),
        }
    }
    if ones.len() != others.len() {
        levels.pop();
        levels.push(">");
    }
    levels.join(".")
}

/// Returns the broader pattern that replaces one with more than [`MAX_LEVELS`] levels. Returns
/// `None` if the pattern is short enough.
pub(crate) fn shorten(pattern: &str) -> Option<String> {
    let levels: Vec<_> = pattern.split('.').take(MAX_LEVELS + 1).collect();
    (levels.len() > MAX_LEVELS)
        .then(|| format!("{}.>", levels.get(..MAX_LEVELS - 1).unwrap_or_default().join(".")))
}

/// Set of patterns, as a tree of their levels.
#[derive(Debug)]
pub(crate) struct Patterns {
    wildcards: Wildcards,
    root: Node,
    /// Nodes visited since the last `take_steps`: the cost of all queries together.
    steps: Cell<usize>,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, Self, RandomState>,
    /// Pattern that ends here.
    pattern: Option<Arc<str>>,
    /// Number of patterns that end here or below.
    count: usize,
    /// `true` if the wildcard that leads here also matches further levels.
    repeats: bool,
}

impl Patterns {
    pub(crate) fn new(wildcards: Wildcards) -> Self {
        Self { wildcards, root: Node::default(), steps: Cell::new(0) }
    }

    pub(crate) fn clear(&mut self) {
        self.root = Node::default();
    }

    /// Returns the number of nodes visited since the last call.
    pub(crate) fn take_steps(&self) -> usize {
        self.steps.take()
    }

    fn repeats(&self, level: &str) -> bool {
        level == ">" || (level == "*" && self.wildcards == Wildcards::Globs)
    }

    /// Adds a pattern that is not in the set.
    pub(crate) fn insert(&mut self, pattern: &Arc<str>) {
        let globs = self.wildcards == Wildcards::Globs;
        let mut node = &mut self.root;
        node.count += 1;
        for level in pattern.split('.') {
            node = node.children.entry(level.into()).or_default();
            node.repeats = level == ">" || (level == "*" && globs);
            node.count += 1;
        }
        node.pattern = Some(Arc::clone(pattern));
    }

    /// Removes a pattern from the set, if present.
    pub(crate) fn remove(&mut self, pattern: &str) {
        self.root.remove(pattern.split('.'));
    }

    /// Returns a pattern of the set, other than the name itself, that matches everything the name
    /// matches.
    pub(crate) fn find_cover(&self, name: &str) -> Option<&Arc<str>> {
        let mut nodes = vec![&self.root];
        for level in name.split('.') {
            let mut next = Vec::new();
            for node in &nodes {
                if node.repeats {
                    next.push(*node);
                }
                let is_wildcard = matches!(level, "*" | ">");
                if !is_wildcard {
                    next.extend(node.children.get(level));
                }
                if level != ">" || self.wildcards == Wildcards::Globs {
                    next.extend(node.children.get("*"));
                }
                next.extend(node.children.get(">"));
            }
            self.distinct(&mut next);
            nodes = next;
        }
        nodes.into_iter().filter_map(|node| node.pattern.as_ref()).find(|pattern| ***pattern != *name)
    }

    /// Removes duplicates, because globs can reach a node in several ways. Counts the steps.
    fn distinct(&self, nodes: &mut Vec<&Node>) {
        if self.wildcards == Wildcards::Globs && nodes.len() > 1 {
            nodes.sort_unstable_by_key(|node| std::ptr::from_ref(*node));
            nodes.dedup_by(|one, other| std::ptr::eq(*one, *other));
        }
        self.steps.set(self.steps.get().saturating_add(nodes.len() + 1));
    }

    /// Returns at least `min` patterns of the set that match a common topic together with
    /// `pattern`. Returns an empty list if there are fewer. If the search runs out of steps,
    /// returns all patterns that may be part of the crowd.
    pub(crate) fn crowd(&self, pattern: &str, min: usize) -> Vec<Arc<str>> {
        let search = Search {
            patterns: self,
            own: pattern.split('.').collect(),
            min,
            seen: RefCell::default(),
            steps_left: Cell::new(
                SEARCH_STEPS.saturating_add(self.root.count.saturating_mul(SEARCH_STEPS_PER_PATTERN)),
            ),
        };
        search.at(1, &[&self.root], 0).unwrap_or_default()
    }
}

impl Node {
    /// Removes the pattern with these levels. Returns `true` if the pattern was present.
    fn remove<'l>(&mut self, mut levels: impl Iterator<Item = &'l str>) -> bool {
        let is_removed = match levels.next() {
            None => self.pattern.take().is_some(),
            Some(level) => match self.children.get_mut(level) {
                None => false,
                Some(child) => {
                    let is_removed = child.remove(levels);
                    if child.count == 0 {
                        self.children.remove(level);
                    }
                    is_removed
                }
            },
        };
        self.count -= usize::from(is_removed);
        is_removed
    }

    fn next_for<'n>(&'n self, level: Option<&str>, next: &mut Vec<&'n Self>) {
        if self.repeats {
            next.push(self);
        }
        next.extend(level.and_then(|level| self.children.get(level)));
        next.extend(self.children.get("*"));
        next.extend(self.children.get(">"));
    }

    fn collect(&self, patterns: &mut Vec<Arc<str>>) {
        patterns.extend(self.pattern.iter().cloned());
        self.children.values().for_each(|child| child.collect(patterns));
    }
}

/// Search for a topic that one pattern (the own pattern) and `min` patterns of a set match. The
/// search builds the topic level by level.
struct Search<'s> {
    patterns: &'s Patterns,
    /// Levels of the own pattern.
    own: Vec<&'s str>,
    min: usize,
    /// States visited so far: positions in the own pattern, and addresses of nodes.
    seen: RefCell<HashSet<(u64, Vec<usize>), RandomState>>,
    steps_left: Cell<usize>,
}

impl Search<'_> {
    /// Returns the bit set of positions in the own pattern after one more level of the topic. With
    /// `None`, the level is one that occurs in no pattern.
    fn own_after(&self, positions: u64, level: Option<&str>) -> u64 {
        let mut next = 0;
        for position in 0..=self.own.len() {
            if positions & (1 << position) == 0 {
                continue;
            }
            let previous = position.checked_sub(1).and_then(|previous| self.own.get(previous));
            if previous.is_some_and(|previous| self.patterns.repeats(previous)) {
                next |= 1 << position;
            }
            if let Some(own) = self.own.get(position)
                && (matches!(*own, "*" | ">") || Some(*own) == level)
            {
                next |= 1 << (position + 1);
            }
        }
        next
    }

    /// Continues the search after `depth` levels of a topic. `own` is the bit set of the positions
    /// that these levels reach in the own pattern. `nodes` are the nodes of the set that the levels
    /// reach.
    fn at(&self, own: u64, nodes: &[&Node], depth: usize) -> Option<Vec<Arc<str>>> {
        if own & (1 << self.own.len()) != 0 {
            let matching: Vec<_> = nodes.iter().filter_map(|node| node.pattern.clone()).collect();
            if matching.len() >= self.min {
                return Some(matching);
            }
        }
        // Bounds the recursion. Only some combinations of globs match a longer topic but no shorter
        // one.
        if depth >= MAX_LEVELS * 2 {
            return None;
        }
        let own_levels = self.own.iter().enumerate().filter(|(position, _)| own & (1 << position) != 0);
        let mut levels: Vec<Option<&str>> = nodes
            .iter()
            .flat_map(|node| node.children.keys().map(|level| &**level))
            .chain(own_levels.map(|(_, level)| *level))
            .filter(|level| !matches!(*level, "*" | ">"))
            .map(Some)
            .collect();
        levels.sort_unstable();
        levels.dedup();
        levels.push(None);
        for level in levels {
            let own_next = self.own_after(own, level);
            if own_next == 0 {
                continue;
            }
            let mut next = Vec::new();
            nodes.iter().for_each(|node| node.next_for(level, &mut next));
            self.patterns.distinct(&mut next);
            let Some(left) = self.steps_left.get().checked_sub(next.len() + 1) else {
                let mut all = Vec::new();
                nodes.iter().for_each(|node| node.collect(&mut all));
                all.sort_unstable();
                all.dedup();
                return Some(all);
            };
            self.steps_left.set(left);
            if next.iter().map(|node| node.count).sum::<usize>() < self.min {
                continue;
            }
            let mut addresses: Vec<_> = next.iter().map(|node| std::ptr::from_ref(*node).addr()).collect();
            addresses.sort_unstable();
            if !self.seen.borrow_mut().insert((own_next, addresses)) {
                continue;
            }
            let crowd = self.at(own_next, &next, depth + 1);
            if crowd.is_some() {
                return crowd;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deeperhub_protocol::{Topic, TopicPattern};
    use proptest::prelude::*;

    fn set(wildcards: Wildcards, patterns: &[&str]) -> Patterns {
        let mut set = Patterns::new(wildcards);
        patterns.iter().for_each(|pattern| set.insert(&Arc::from(*pattern)));
        set
    }

    fn cover(wildcards: Wildcards, pattern: &str, name: &str) -> bool {
        set(wildcards, &[pattern]).find_cover(name).is_some()
    }

    #[test]
    fn a_broader_pattern_covers_a_narrower_one() {
        use Wildcards::{Globs, Levels};
        for (pattern, name, levels, globs) in [
            (">", "a", true, true),
            (">", "a.b.>", true, true),
            ("a.*", "a.b", true, true),
            ("a.*", "a.b.c", false, true),
            ("a.*", "a.>", false, true),
            ("a.>", "a.*", true, true),
            ("a.>", "a", false, false),
            ("*.c", "a.b.c", false, true),
            ("*.c", "*.*.c", false, true),
            ("a.b", "a.*", false, false),
            ("a.*.c", "a.b.*", false, false),
            ("*.*", "*.>", false, true),
            ("*.*.*", "a.b.>", false, true),
        ] {
            assert_eq!(cover(Levels, pattern, name), levels, "{pattern} {name}");
            assert_eq!(cover(Globs, pattern, name), globs, "{pattern} {name} as globs");
            assert!(!cover(Levels, pattern, pattern), "{pattern} is no cover of itself");
        }
    }

    #[test]
    fn a_removed_pattern_covers_nothing() {
        let mut set = set(Wildcards::Levels, &["a.>", "*.b"]);
        assert!(set.find_cover("a.b").is_some());
        set.remove("a.>");
        set.remove("a.>");
        assert_eq!(set.find_cover("a.c"), None);
        assert_eq!(set.find_cover("a.b").map(|cover| &**cover), Some("*.b"));
        set.remove("*.b");
        assert_eq!((set.root.count, set.root.children.len()), (0, 0));
    }

    #[test]
    fn joins_cover_both() {
        for (one, other, joined) in [
            ("a.*.c", "a.b.*", "a.*.*"),
            ("a.b", "a.b.c", "a.>"),
            ("a.b.c.d", "a.x.>", "a.*.>"),
            ("a", "b.c", ">"),
            ("a.b", "a.b", "a.b"),
        ] {
            assert_eq!(join(one, other), joined);
            assert_eq!(join(other, one), joined);
        }
    }

    #[test]
    fn deep_patterns_are_shortened_to_covering_ones() {
        let deep = vec!["*"; MAX_LEVELS].join(".");
        assert_eq!(shorten(&deep), None);
        let deeper = format!("{deep}.a");
        let short = shorten(&deeper).unwrap();
        assert_eq!(short.split('.').count(), MAX_LEVELS);
        assert!(cover(Wildcards::Levels, &short, &deeper));
    }

    #[test]
    fn a_crowd_is_found_if_many_patterns_match_one_topic() {
        let crowd = ["a.*.*.d", "a.b.*.*", "*.b.c.*", "*.*.c.d"];
        let patterns = set(Wildcards::Levels, &crowd);
        let mut found: Vec<_> = patterns.crowd("*.b.*.d", 4).iter().map(ToString::to_string).collect();
        found.sort();
        let mut expected = crowd.to_vec();
        expected.sort_unstable();
        assert_eq!(found, expected);
        assert!(patterns.crowd("*.b.*.d", 5).is_empty());
        assert!(patterns.crowd("x.b.*.d", 3).is_empty());
    }

    #[test]
    fn patterns_that_only_share_another_are_no_crowd() {
        let tenants: Vec<_> = (0..20_000).map(|tenant| format!("t{tenant}.>")).collect();
        let names: Vec<_> = tenants.iter().map(String::as_str).collect();
        for wildcards in [Wildcards::Levels, Wildcards::Globs] {
            let patterns = set(wildcards, &names);
            assert!(patterns.crowd("*.alerts", 4).is_empty());
            assert!(patterns.crowd("*.alerts", 1).len() == 1);
        }
    }

    #[test]
    fn globs_of_different_lengths_crowd() {
        let patterns = ["*.c", "*.*.c", "*.*.*.c", "*.*.*.*.c"];
        assert!(set(Wildcards::Levels, &patterns).crowd("*.*.*.*.*.c", 1).is_empty());
        assert_eq!(set(Wildcards::Globs, &patterns).crowd("*.*.*.*.*.c", 4).len(), 4);
    }

    #[test]
    fn a_search_is_bounded() {
        // The levels before the last overlap in every combination. The last levels all differ.
        let patterns: Vec<String> = (0..4096_u32)
            .map(|bits| {
                let levels = (0..12).map(|level| if bits & (1 << level) == 0 { "*" } else { "a" });
                format!("{}.x{bits}", levels.collect::<Vec<_>>().join("."))
            })
            .collect();
        let names: Vec<_> = patterns.iter().map(String::as_str).collect();
        for wildcards in [Wildcards::Levels, Wildcards::Globs] {
            let patterns = set(wildcards, &names);
            patterns.crowd("*.*.*.*.*.*.*.*.*.*.*.*.y", 2);
            let limit = SEARCH_STEPS + SEARCH_STEPS_PER_PATTERN * 4096;
            let steps = patterns.take_steps();
            assert!(steps > 4096 && steps < limit * 2, "{steps}");
        }
    }

    fn level() -> impl Strategy<Value = &'static str> {
        prop_oneof![Just("a"), Just("b"), Just("*")]
    }

    fn name(tail: bool, levels: &[&str]) -> String {
        let mut levels = levels.to_vec();
        if tail && let Some(last) = levels.last_mut() {
            *last = ">";
        }
        levels.join(".")
    }

    fn matches(pattern: &str, topic: &str) -> bool {
        let topic = Topic::parse(topic).unwrap();
        match TopicPattern::parse(pattern) {
            Ok(pattern) => pattern.matches(&topic),
            Err(_) => pattern == topic.as_str(),
        }
    }

    proptest! {
        #[test]
        fn a_cover_matches_all_that_is_covered(
            one in proptest::collection::vec(level(), 1..5), one_tail: bool,
            other in proptest::collection::vec(level(), 1..5), other_tail: bool,
            topic in proptest::collection::vec(prop_oneof![Just("a"), Just("b"), Just("c")], 1..6),
        ) {
            let (one, other, topic) = (name(one_tail, &one), name(other_tail, &other), topic.join("."));
            let joined = join(&one, &other);
            for of in [&one, &other] {
                prop_assert!(joined == *of || cover(Wildcards::Levels, &joined, of), "{} {}", joined, of);
                prop_assert!(joined == *of || cover(Wildcards::Globs, &joined, of), "{} {}", joined, of);
                prop_assert!(!matches(of, &topic) || matches(&joined, &topic));
            }
            if cover(Wildcards::Levels, &one, &other) {
                prop_assert!(!matches(&other, &topic) || matches(&one, &topic), "{} {}", one, other);
                prop_assert!(cover(Wildcards::Globs, &one, &other));
            }
            if one != other && is_pattern(&one) && is_pattern(&other)
                && matches(&one, &topic) && matches(&other, &topic)
            {
                let crowd = set(Wildcards::Levels, &[&one]).crowd(&other, 1);
                prop_assert_eq!(crowd.len(), 1, "{} {} {}", one, other, topic);
            }
        }
    }
}
