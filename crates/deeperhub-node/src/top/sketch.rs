//! Space-Saving sketch.

use std::collections::HashMap;
use std::sync::Arc;

/// Number of names in a sketch, which bounds its memory. Each name with more than a 128th of the
/// total weight is certainly among them.
pub(super) const SKETCH_CAPACITY: usize = 128;

#[derive(Debug, Clone)]
pub(super) struct SketchEntry {
    pub(super) name: Arc<str>,
    /// Weight by which the entry is ranked. It is at least the true weight, and at most `error`
    /// above it.
    pub(super) weight: u64,
    /// Weight with which the entry was inserted. It is not part of the counts below.
    pub(super) error: u64,
    pub(super) messages: u64,
    pub(super) deliveries: u64,
    pub(super) bytes: u64,
}

/// Space-Saving sketch: the heaviest names of a stream, with their approximate weights. The weight
/// of a name is the sum of its messages and deliveries.
#[derive(Debug, Default)]
pub(super) struct Sketch {
    pub(super) entries: Vec<SketchEntry>,
    pub(super) positions: HashMap<Arc<str>, usize, ahash::RandomState>,
    /// Lower bound of the entries' weights. All entries before `scan_from` are heavier.
    min_weight: u64,
    scan_from: usize,
}

impl Sketch {
    pub(super) fn add(&mut self, name: &str, deliveries: u64, bytes: usize) {
        let weight = 1 + deliveries;
        let position = match self.positions.get(name) {
            Some(&position) => position,
            None => self.insert(name),
        };
        if let Some(entry) = self.entries.get_mut(position) {
            entry.weight += weight;
            entry.messages += 1;
            entry.deliveries += deliveries;
            entry.bytes += bytes as u64;
        }
    }

    /// Inserts a name and returns its position. Replaces a lightest entry if the sketch is full.
    fn insert(&mut self, name: &str) -> usize {
        let name: Arc<str> = name.into();
        let mut entry = SketchEntry {
            name: Arc::clone(&name),
            weight: 0,
            error: 0,
            messages: 0,
            deliveries: 0,
            bytes: 0,
        };
        let position = if self.entries.len() < SKETCH_CAPACITY {
            self.entries.push(entry);
            self.entries.len() - 1
        } else {
            let position = self.lightest();
            // The sketch may have removed this name before. Its earlier weight is unknown, but was
            // at most the weight of the entry that it replaces.
            (entry.weight, entry.error) = (self.min_weight, self.min_weight);
            if let Some(lightest) = self.entries.get_mut(position) {
                self.positions.remove(&lightest.name);
                *lightest = entry;
            }
            position
        };
        self.positions.insert(name, position);
        position
    }

    /// Returns the position of a lightest entry and sets `min_weight` to its weight. Weights only
    /// grow, so the next scan for the same weight can start after this entry.
    fn lightest(&mut self) -> usize {
        let unscanned = self.entries.iter().enumerate().skip(self.scan_from);
        if let Some((position, _)) = unscanned.into_iter().find(|(_, entry)| entry.weight == self.min_weight)
        {
            self.scan_from = position + 1;
            return position;
        }
        let weights = self.entries.iter().map(|entry| entry.weight).enumerate();
        let (position, min_weight) = weights.min_by_key(|&(_, weight)| weight).unwrap_or_default();
        (self.min_weight, self.scan_from) = (min_weight, position + 1);
        position
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.positions.clear();
        (self.min_weight, self.scan_from) = (0, 0);
    }
}
