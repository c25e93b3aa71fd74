//! Which worker has how many subscribers of a pattern, and which patterns a topic matches.

use crate::arena::Arena;
use crate::stripe::Entry;
use ahash::RandomState;
use std::collections::HashMap;

/// No number, and the symbol of a name that no pattern has.
const NONE: u32 = u32::MAX;

/// Levels of the longest topic: one byte each, and a dot between.
const MAX_LEVELS: usize = 128;

/// The root's number in the trie.
const ROOT: u32 = 0;

/// All patterns, as a trie by level.
///
/// Its cost is bounded by what is in it. A match walks down a tree, so it comes to each node at
/// most once, however many wildcards there are: not more nodes than the trie has at the topic's
/// depths, and not more than 2 to the power of a depth at it. A pattern has at most 128 nodes, and
/// usually shares most of them.
#[derive(Debug)]
pub(crate) struct Patterns {
    nodes: Arena<Node>,
    /// From a node by a level's name, as its symbol, to the node below.
    edges: HashMap<(u32, u32), u32, RandomState>,
    /// Numbers for the names of levels, so that a match hashes each level of a topic once.
    symbols: HashMap<Box<str>, Symbol, RandomState>,
    next_symbol: u32,
    len: usize,
}

#[derive(Debug)]
struct Symbol {
    number: u32,
    edges: u32,
}

#[derive(Debug)]
struct Node {
    /// The pattern that ends here.
    exact: Option<Box<Entry>>,
    /// The pattern that ends here with a further level `>`.
    tail: Option<Box<Entry>>,
    /// The node below for a level `*`.
    star: u32,
    /// Nodes below for named levels.
    named: u32,
}

impl Node {
    const fn new() -> Self {
        Self { exact: None, tail: None, star: NONE, named: 0 }
    }

    fn is_unused(&self) -> bool {
        self.exact.is_none() && self.tail.is_none() && self.star == NONE && self.named == 0
    }
}

impl Patterns {
    pub(crate) fn new(hasher: &RandomState) -> Self {
        let mut nodes = Arena::new();
        nodes.insert(Node::new());
        Self {
            nodes,
            edges: HashMap::with_hasher(hasher.clone()),
            symbols: HashMap::with_hasher(hasher.clone()),
            next_symbol: 0,
            len: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.nodes.iter().flat_map(|node| [&node.exact, &node.tail]).flatten().map(Box::as_ref)
    }

    /// Calls `visit` with each pattern that matches a topic of this name.
    pub(crate) fn matching<'p>(&'p self, topic: &str, visit: &mut impl FnMut(&'p Entry)) {
        let mut symbols = [NONE; MAX_LEVELS];
        let mut depth = 0;
        for (symbol, level) in symbols.iter_mut().zip(topic.split('.')) {
            *symbol = self.symbols.get(level).map_or(NONE, |symbol| symbol.number);
            depth += 1;
        }
        self.walk(ROOT, symbols.get(..depth).unwrap_or_default(), visit);
    }

    /// Answers how many nodes it came to.
    fn walk<'p>(&'p self, node: u32, levels: &[u32], visit: &mut impl FnMut(&'p Entry)) -> usize {
        let number = node;
        let Some(node) = self.nodes.get(number) else { return 0 };
        let Some((&level, rest)) = levels.split_first() else {
            node.exact.as_deref().into_iter().for_each(visit);
            return 1;
        };
        node.tail.as_deref().into_iter().for_each(&mut *visit);
        let mut nodes = 1;
        if node.star != NONE {
            nodes += self.walk(node.star, rest, visit);
        }
        if node.named > 0
            && level != NONE
            && let Some(&child) = self.edges.get(&(number, level))
        {
            nodes += self.walk(child, rest, visit);
        }
        nodes
    }

    pub(crate) fn find(&self, pattern: &str) -> Option<&Entry> {
        let (levels, has_tail) = split(pattern);
        let mut node = ROOT;
        for level in levels {
            node = self.child(node, level)?;
        }
        let node = self.nodes.get(node)?;
        if has_tail { node.tail.as_deref() } else { node.exact.as_deref() }
    }

    fn child(&self, node: u32, level: &str) -> Option<u32> {
        if level == "*" {
            return self.nodes.get(node).map(|node| node.star).filter(|&star| star != NONE);
        }
        let symbol = self.symbols.get(level)?.number;
        self.edges.get(&(node, symbol)).copied()
    }

    pub(crate) fn find_or_insert(&mut self, pattern: &str) -> &mut Entry {
        let (levels, has_tail) = split(pattern);
        let mut node = ROOT;
        for level in levels {
            node = match self.child(node, level) {
                Some(child) => child,
                None => self.insert_child(node, level),
            };
        }
        let node = self.nodes.get_mut(node).expect("edges lead to nodes");
        let place = if has_tail { &mut node.tail } else { &mut node.exact };
        place.get_or_insert_with(|| {
            self.len += 1;
            Box::new(Entry::new(pattern))
        })
    }

    fn insert_child(&mut self, node: u32, level: &str) -> u32 {
        let child = self.nodes.insert(Node::new());
        let parent = self.nodes.get_mut(node).expect("edges lead to nodes");
        if level == "*" {
            parent.star = child;
        } else {
            parent.named += 1;
            let symbol = match self.symbols.get_mut(level) {
                Some(symbol) => {
                    symbol.edges += 1;
                    symbol.number
                }
                None => {
                    let number = self.unused_symbol();
                    self.symbols.insert(level.into(), Symbol { number, edges: 1 });
                    number
                }
            };
            self.edges.insert((node, symbol), child);
        }
        child
    }

    /// Symbols are counted up and not used again, until there are none left.
    fn unused_symbol(&mut self) -> u32 {
        if self.next_symbol == NONE {
            self.renumber();
        }
        let symbol = self.next_symbol;
        self.next_symbol += 1;
        symbol
    }

    /// Gives the symbols in use the lowest numbers.
    fn renumber(&mut self) {
        let mut renamed = HashMap::with_hasher(RandomState::with_seed(0));
        self.next_symbol = 0;
        for symbol in self.symbols.values_mut() {
            renamed.insert(symbol.number, self.next_symbol);
            symbol.number = self.next_symbol;
            self.next_symbol += 1;
        }
        let edges = std::mem::replace(&mut self.edges, HashMap::with_hasher(self.symbols.hasher().clone()));
        for ((node, symbol), child) in edges {
            if let Some(&symbol) = renamed.get(&symbol) {
                self.edges.insert((node, symbol), child);
            }
        }
    }

    /// Counts one subscriber less; the last one's pattern is forgotten, which is answered.
    pub(crate) fn subtract(&mut self, pattern: &str, shard: u16) -> bool {
        self.change(pattern, |entry| entry.subtract(shard))
    }

    /// Forgets a worker; `lost` is called with each pattern that is forgotten with it.
    pub(crate) fn forget(&mut self, shard: u16, mut lost: impl FnMut(&std::sync::Arc<str>)) {
        let names: Vec<_> = self
            .iter()
            .filter(|entry| entry.list(shard).is_some())
            .map(|entry| std::sync::Arc::clone(&entry.name))
            .collect();
        for name in names {
            if self.change(&name, |entry| entry.forget(shard)) {
                lost(&name);
            }
        }
    }

    /// Changes an entry, and removes it with the nodes that only it needed if it is empty then, which is answered.
    fn change(&mut self, pattern: &str, change: impl FnOnce(&mut Entry)) -> bool {
        let (levels, has_tail) = split(pattern);
        let mut path = Vec::new();
        let mut node = ROOT;
        for level in levels {
            let Some(child) = self.child(node, level) else { return false };
            path.push((node, level));
            node = child;
        }
        let Some(last) = self.nodes.get_mut(node) else { return false };
        let place = if has_tail { &mut last.tail } else { &mut last.exact };
        let Some(entry) = place else { return false };
        change(entry);
        if !entry.slots.is_empty() {
            return false;
        }
        *place = None;
        self.len -= 1;
        while let Some((parent, level)) = path.pop() {
            if !self.nodes.get(node).is_some_and(Node::is_unused) {
                break;
            }
            self.nodes.remove(node);
            self.remove_edge(parent, level);
            node = parent;
        }
        shrink(&mut self.edges);
        shrink(&mut self.symbols);
        true
    }

    fn remove_edge(&mut self, parent: u32, level: &str) {
        let Some(node) = self.nodes.get_mut(parent) else { return };
        if level == "*" {
            node.star = NONE;
            return;
        }
        node.named -= 1;
        if let Some(symbol) = self.symbols.get_mut(level) {
            self.edges.remove(&(parent, symbol.number));
            symbol.edges -= 1;
            if symbol.edges == 0 {
                self.symbols.remove(level);
            }
        }
    }
}

/// The levels of a pattern that have nodes, and whether a `>` follows.
fn split(pattern: &str) -> (impl Iterator<Item = &str>, bool) {
    let has_tail = pattern.ends_with('>');
    let levels = if has_tail { pattern.strip_suffix(".>").unwrap_or_default() } else { pattern };
    (levels.split('.').filter(|level| !level.is_empty()), has_tail)
}

fn shrink<K: Eq + std::hash::Hash, V>(map: &mut HashMap<K, V, RandomState>) {
    if map.capacity() > 64 && map.len() < map.capacity() / 8 {
        map.shrink_to(map.len() * 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deeperhub_protocol::{Topic, TopicPattern};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn index(names: impl IntoIterator<Item = impl AsRef<str>>) -> Patterns {
        let mut patterns = Patterns::new(&RandomState::with_seeds(1, 2, 3, 4));
        for name in names {
            patterns.find_or_insert(name.as_ref()).add(0, || 0);
        }
        patterns
    }

    fn matching<'p>(patterns: &'p Patterns, topic: &str) -> Vec<&'p str> {
        let mut names = Vec::new();
        patterns.matching(topic, &mut |entry| names.push(&*entry.name));
        names.sort_unstable();
        names
    }

    /// Nodes that the match of a topic came to.
    fn visited(patterns: &Patterns, topic: &str) -> usize {
        let symbols: Vec<_> = topic
            .split('.')
            .map(|level| patterns.symbols.get(level).map_or(NONE, |symbol| symbol.number))
            .collect();
        patterns.walk(ROOT, &symbols, &mut |_| {})
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
    fn what_leaves_takes_its_nodes_with_it() {
        let names = ["a.*", "a.b.c.d.>", ">", "*.b", "*.*.*", "a.b.*"];
        let mut patterns = index(names);
        patterns.find_or_insert("a.*").add(1, || 0);
        for name in names {
            patterns.subtract(name, 0);
            patterns.subtract(name, 0);
        }
        assert_eq!((patterns.len(), patterns.iter().count()), (1, 1));
        assert_eq!(patterns.find("a.*").map(Entry::subscribers), Some(1));
        patterns.forget(1, |_| ());
        assert_eq!((patterns.len(), patterns.nodes.len()), (0, 1));
        assert!(patterns.edges.is_empty() && patterns.symbols.is_empty());
    }

    #[test]
    fn a_crowd_that_leaves_gives_its_memory_back() {
        let names: Vec<_> = (0..2_000).map(|number| format!("room.{number}.*.{number}.>")).collect();
        let mut patterns = index(&names);
        assert!(patterns.nodes.len() > 6_000);
        patterns.forget(0, |_| ());
        assert!(patterns.edges.capacity() <= 64 && patterns.symbols.capacity() <= 64);
    }

    #[test]
    fn symbols_that_run_out_are_numbered_anew() {
        let mut patterns = index(["a.b.*", "b.a.>"]);
        patterns.next_symbol = NONE;
        patterns.find_or_insert("c.*").add(0, || 0);
        assert_eq!(patterns.next_symbol, 3);
        assert_eq!(matching(&patterns, "a.b.c"), ["a.b.*"]);
        assert_eq!(matching(&patterns, "b.a.c"), ["b.a.>"]);
        assert_eq!(matching(&patterns, "c.a"), ["c.*"]);
    }

    #[test]
    fn wildcards_at_every_level_cost_no_more_than_the_nodes_there_are() {
        // Every choice of `a` and `*` over 10 levels, which all branches of the walk lead into.
        let deep = (0..1_u32 << 10).map(|choice| {
            let levels: Vec<_> =
                (0..10).map(|level| if choice >> level & 1 == 0 { "a" } else { "*" }).collect();
            format!("{}.*.x", levels.join("."))
        });
        let patterns = index(deep);
        assert_eq!(matching(&patterns, &["a"; 12].join(".")).len(), 0);
        assert!(visited(&patterns, &["a"; 12].join(".")) <= patterns.nodes.len());
        assert_eq!(matching(&patterns, &format!("{}.x", ["a"; 11].join("."))).len(), 1 << 10);

        // Few long patterns: 2^127 branches to try for a search that goes back, few nodes for ours.
        let stars = ["*"; 127].join(".");
        let patterns = index([format!("{stars}.x"), format!("{stars}.>"), ["a.*"; 64].join(".")]);
        let topic = ["a"; 128].join(".");
        assert_eq!(topic.len(), Topic::MAX_BYTES);
        assert_eq!(matching(&patterns, &topic).len(), 2);
        assert!(visited(&patterns, &topic) <= 3 * 128);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        #[test]
        fn the_trie_agrees_with_each_pattern(
            mut names in proptest::collection::btree_set("(([ab*]\\.){0,3}[*>])|(\\*(\\.[ab*]){1,3})", 0..20),
            removed in proptest::collection::vec(any::<proptest::sample::Index>(), 0..10),
            topics in proptest::collection::vec("([abc]\\.){0,4}[abc]", 10),
        ) {
            let mut patterns = index(&names);
            for name in removed {
                if !names.is_empty() {
                    let name = name.get(&names.iter().collect::<Vec<_>>()).to_string();
                    patterns.subtract(&name, 0);
                    names.remove(&name);
                }
            }
            prop_assert_eq!(patterns.len(), names.len());
            prop_assert_eq!(patterns.iter().map(|entry| entry.name.to_string()).collect::<BTreeSet<_>>(), names.clone());
            for topic in topics {
                let parsed = Topic::parse(topic.as_str()).unwrap();
                let expected: Vec<_> = names
                    .iter()
                    .filter(|name| TopicPattern::parse(name.as_str()).unwrap().matches(&parsed))
                    .collect();
                prop_assert_eq!(matching(&patterns, &topic), expected);
                prop_assert!(visited(&patterns, &topic) <= patterns.nodes.len());
            }
        }
    }
}
