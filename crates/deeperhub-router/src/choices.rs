//! What many deep shapes have in common with a topic: sums and texts of eight levels at a time.

use crate::shapes::MAX_LEVELS;
use deeperhub_protocol::Topic;

/// Levels of a part, and choices of which of them have names.
const PART: usize = 8;
const CHOICES: usize = 1 << PART;
const PARTS: usize = MAX_LEVELS / PART;

/// Bytes that are copied at once.
const BLOCK: usize = 32;

/// A topic cut into parts of eight levels, with what each choice of named levels makes of a part.
/// So a shape costs 16 steps at most, not one for each level.
pub(crate) struct Choices<'t> {
    topic: &'t [u8],
    /// Where each level begins, and where one behind the last would.
    starts: [u16; MAX_LEVELS + 1],
    sums: [[u64; CHOICES]; PARTS],
    /// Where the text of a choice stands in `texts`, and its length. Made when it is needed, since
    /// only a pattern that most probably matches needs it.
    places: Vec<(u32, u32)>,
    texts: Vec<u8>,
    /// The part whose texts are those of a group that ends within it.
    partial: Option<usize>,
}

impl<'t> Choices<'t> {
    /// Takes the hashes of the topic's first levels.
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
                // The choice without its lowest level stands further down.
                let without = sums[choice & (choice - 1)];
                let lowest = hashes.get(choice.trailing_zeros() as usize).copied().unwrap_or_default();
                sums[choice] = without.wrapping_add(lowest);
            }
        }
        Self { topic, starts, sums, places: Vec::new(), texts: Vec::new(), partial: None }
    }

    /// Additions that making it took.
    pub(crate) fn additions(levels: usize) -> usize {
        levels.div_ceil(PART) * CHOICES
    }

    /// Sums the hashes of the named levels of a shape with so many levels; also answers how many
    /// additions that took.
    pub(crate) fn sum(&self, named: [u64; 2], levels: usize) -> (u64, usize) {
        let parts = levels.div_ceil(PART);
        let mut sum = 0_u64;
        for (sums, choice) in self.sums.iter().zip(choices(named)).take(parts) {
            sum = sum.wrapping_add(sums[usize::from(choice)]);
        }
        (sum, parts)
    }

    /// The next shapes all have so many levels.
    pub(crate) fn begin_group(&mut self, levels: usize) {
        let partial = (!levels.is_multiple_of(PART)).then_some(levels / PART);
        for part in self.partial.into_iter().chain(partial) {
            if let Some(places) = self.places.get_mut(part * CHOICES..(part + 1) * CHOICES) {
                places.fill((0, 0));
            }
        }
        self.partial = partial;
    }

    /// Returns `true` if `pattern` is what a shape makes of the topic, a `*` for each level without a
    /// name: then it matches, if there are enough levels for its `>`.
    pub(crate) fn is_text(&mut self, pattern: &str, named: [u64; 2], levels: usize, has_tail: bool) -> bool {
        const ROOM: usize = (Topic::MAX_BYTES + 1).next_multiple_of(BLOCK) + BLOCK;
        let mut text = [0; ROOM];
        let mut len = 0;
        for (part, choice) in choices(named).enumerate().take(levels.div_ceil(PART)) {
            let (at, bytes) = self.text(part, choice, levels);
            // Whole blocks, so that what is copied does not depend on the length: it would be
            // mispredicted. The next one writes over what was too much.
            for block in (0..bytes).step_by(BLOCK) {
                let from = self.texts.get(at + block..at + block + BLOCK);
                let to = text.get_mut(len + block..len + block + BLOCK);
                let (Some(from), Some(to)) = (from, to) else { return false };
                to.copy_from_slice(from);
            }
            len += bytes;
        }
        // Each level has brought its dot.
        match pattern.as_bytes().split_last() {
            Some((b'>', head)) => has_tail && text.get(..len) == Some(head),
            _ => !has_tail && len > 0 && text.get(..len - 1) == Some(pattern.as_bytes()),
        }
    }

    /// Place and length of the text of one choice.
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

/// Which of its levels each part has names at.
fn choices(named: [u64; 2]) -> impl Iterator<Item = u8> {
    named.into_iter().flat_map(u64::to_le_bytes)
}
