//! Sums and texts of a topic's levels, eight at a time, shared by many deep shapes.

use crate::shapes::MAX_LEVELS;
use deeperhub_types::Topic;

/// Levels of a part, and the number of ways to choose named levels among them.
const PART: usize = 8;
const CHOICES: usize = 1 << PART;
const PARTS: usize = MAX_LEVELS / PART;

/// Bytes per copy.
const BLOCK: usize = 32;

/// A topic in parts of eight levels, with the sum and text of each choice of named levels. A shape
/// thus costs 16 steps at most, not one per level.
pub(crate) struct Choices<'t> {
    topic: &'t [u8],
    /// Start of each level, and the start that one more level would have.
    starts: [u16; MAX_LEVELS + 1],
    sums: [[u64; CHOICES]; PARTS],
    /// Position in `texts` and length of each choice's text. Filled on demand, since only a pattern
    /// that most probably matches needs it.
    places: Vec<(u32, u32)>,
    texts: Vec<u8>,
    /// Part in which the current group ends; its texts are valid for that group only.
    partial: Option<usize>,
}

impl<'t> Choices<'t> {
    /// Sums the hashes of the topic's first `levels` levels for every choice.
    #[inline]
    pub(crate) fn new(topic: &'t str, hashes: &[u64; MAX_LEVELS], levels: usize) -> Self {
        let topic = topic.as_bytes();
        let mut starts = [0; MAX_LEVELS + 1];
        let ends = topic.iter().enumerate().filter(|(_, byte)| **byte == b'.').map(|(at, _)| at);
        for (start, end) in starts.iter_mut().skip(1).zip(ends.chain([topic.len()])) {
            *start = end as u16 + 1;
        }
        let mut sums = [[0_u64; CHOICES]; PARTS];
        for (sums, hashes) in sums.iter_mut().zip(hashes.chunks(PART)).take(levels.div_ceil(PART)) {
            for choice in 1..CHOICES {
                // The choice without its lowest level has a smaller index, so its sum is known.
                let without = sums[choice & (choice - 1)];
                let lowest = hashes.get(choice.trailing_zeros() as usize).copied().unwrap_or_default();
                sums[choice] = without.wrapping_add(lowest);
            }
        }
        Self { topic, starts, sums, places: Vec::new(), texts: Vec::new(), partial: None }
    }

    /// Returns the number of additions that [`new`](Self::new) makes.
    pub(crate) fn additions(levels: usize) -> usize {
        levels.div_ceil(PART) * CHOICES
    }

    /// Returns the sum of the hashes of a shape's named levels, and the number of additions.
    pub(crate) fn sum(&self, named: [u64; 2], levels: usize) -> (u64, usize) {
        let parts = levels.div_ceil(PART);
        let mut sum = 0_u64;
        for (sums, choice) in self.sums.iter().zip(choices(named)).take(parts) {
            sum = sum.wrapping_add(sums[usize::from(choice)]);
        }
        (sum, parts)
    }

    /// Prepares for shapes of `levels` levels: forgets the texts of parts in which a group ends.
    pub(crate) fn begin_group(&mut self, levels: usize) {
        let partial = (!levels.is_multiple_of(PART)).then_some(levels / PART);
        for part in self.partial.into_iter().chain(partial) {
            if let Some(places) = self.places.get_mut(part * CHOICES..(part + 1) * CHOICES) {
                places.fill((0, 0));
            }
        }
        self.partial = partial;
    }

    /// Returns `true` if `pattern` equals the topic with a `*` at each unnamed level. It then
    /// matches if there are enough levels for its `>`.
    pub(crate) fn is_text(&mut self, pattern: &str, named: [u64; 2], levels: usize, has_tail: bool) -> bool {
        const ROOM: usize = (Topic::MAX_BYTES + 1).next_multiple_of(BLOCK) + BLOCK;
        let mut text = [0; ROOM];
        let mut len = 0;
        for (part, choice) in choices(named).enumerate().take(levels.div_ceil(PART)) {
            let (at, bytes) = self.text(part, choice, levels);
            // Copies whole blocks, since a copy of variable length would be mispredicted. The next
            // copy overwrites the excess.
            for block in (0..bytes).step_by(BLOCK) {
                let from = self.texts.get(at + block..at + block + BLOCK);
                let to = text.get_mut(len + block..len + block + BLOCK);
                let (Some(from), Some(to)) = (from, to) else { return false };
                to.copy_from_slice(from);
            }
            len += bytes;
        }
        // Each level ends with a dot.
        match pattern.as_bytes().split_last() {
            Some((b'>', head)) => has_tail && text.get(..len) == Some(head),
            _ => !has_tail && len > 0 && text.get(..len - 1) == Some(pattern.as_bytes()),
        }
    }

    /// Returns the position and length of a choice's text, built on first use.
    fn text(&mut self, part: usize, choice: u8, levels: usize) -> (usize, usize) {
        if self.places.is_empty() {
            self.places.resize(PARTS * CHOICES, (0, 0));
        }
        let Some(place) = self.places.get_mut(part * CHOICES + usize::from(choice)) else { return (0, 0) };
        if place.1 == 0 {
            let begin = self.texts.len();
            for level in part * PART..levels.min((part + 1) * PART) {
                let name = match (self.starts.get(level), self.starts.get(level + 1)) {
                    (Some(&start), Some(&next)) if choice >> (level % PART) & 1 == 1 => self
                        .topic
                        .get(usize::from(start)..usize::from(next).saturating_sub(1))
                        .unwrap_or_default(),
                    _ => b"*",
                };
                self.texts.extend_from_slice(name);
                self.texts.push(b'.');
            }
            let bytes = self.texts.len() - begin;
            self.texts.resize(begin + bytes.next_multiple_of(BLOCK), 0);
            *place = (begin as u32, bytes as u32);
        }
        (place.0 as usize, place.1 as usize)
    }
}

/// Returns the named levels of each part, as bits.
fn choices(named: [u64; 2]) -> impl Iterator<Item = u8> {
    named.into_iter().flat_map(u64::to_le_bytes)
}
