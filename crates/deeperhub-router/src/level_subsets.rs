//! Hash sums and texts of subsets of a topic's levels. A topic is divided into chunks of eight
//! levels. The results for the subsets of a chunk are shared by all deep shapes of patterns that
//! name the same levels in this chunk.

use crate::shape_index::MAX_LEVELS;
use deeperhub_types::Topic;

/// Number of levels in a chunk.
const CHUNK_LEVELS: usize = 8;
/// Number of subsets of a chunk's levels.
const SUBSETS: usize = 1 << CHUNK_LEVELS;
const CHUNKS: usize = MAX_LEVELS / CHUNK_LEVELS;

/// Bytes that are copied at a time when texts are joined.
const COPY_BYTES: usize = 32;

/// A topic in chunks of eight levels, with the hash sum and the text of each subset of named
/// levels. A shape thus costs at most 16 steps, not one for each level.
pub(crate) struct LevelSubsets<'t> {
    topic: &'t [u8],
    /// Start of each level, and the position where one more level would start.
    starts: [u16; MAX_LEVELS + 1],
    sums: [[u64; SUBSETS]; CHUNKS],
    /// Position in `texts` and length of each subset's text. Filled on demand, since only a pattern
    /// that almost certainly matches needs it.
    text_ranges: Vec<(u32, u32)>,
    texts: Vec<u8>,
    /// Chunk in which the levels of the current group of shapes end, unless they end between two
    /// chunks. The texts of this chunk are valid only for this group.
    group_end: Option<usize>,
}

impl<'t> LevelSubsets<'t> {
    /// Sums the hashes of the topic's first `levels` levels for every subset.
    #[inline]
    pub(crate) fn new(topic: &'t str, hashes: &[u64; MAX_LEVELS], levels: usize) -> Self {
        let topic = topic.as_bytes();
        let mut starts = [0; MAX_LEVELS + 1];
        let ends = topic.iter().enumerate().filter(|(_, byte)| **byte == b'.').map(|(position, _)| position);
        for (start, end) in starts.iter_mut().skip(1).zip(ends.chain([topic.len()])) {
            *start = end as u16 + 1;
        }
        let mut sums = [[0_u64; SUBSETS]; CHUNKS];
        for (sums, hashes) in
            sums.iter_mut().zip(hashes.chunks(CHUNK_LEVELS)).take(levels.div_ceil(CHUNK_LEVELS))
        {
            for subset in 1..SUBSETS {
                // The subset without its lowest level has a smaller index, so its sum is known.
                let sum_without = sums[subset & (subset - 1)];
                let lowest_hash = hashes.get(subset.trailing_zeros() as usize).copied().unwrap_or_default();
                sums[subset] = sum_without.wrapping_add(lowest_hash);
            }
        }
        Self { topic, starts, sums, text_ranges: Vec::new(), texts: Vec::new(), group_end: None }
    }

    /// Returns the number of additions that [`new`](Self::new) makes.
    pub(crate) fn additions(levels: usize) -> usize {
        levels.div_ceil(CHUNK_LEVELS) * SUBSETS
    }

    /// Returns the sum of the hashes of a shape's named levels, and the number of additions.
    pub(crate) fn sum(&self, named: [u64; 2], levels: usize) -> (u64, usize) {
        let chunks = levels.div_ceil(CHUNK_LEVELS);
        let mut sum = 0_u64;
        for (sums, subset) in self.sums.iter().zip(subsets_of(named)).take(chunks) {
            sum = sum.wrapping_add(sums[usize::from(subset)]);
        }
        (sum, chunks)
    }

    /// Prepares for a group of shapes with `levels` levels. Discards the texts of the chunk in
    /// which the previous group ended, and of the chunk in which this group ends.
    pub(crate) fn begin_group(&mut self, levels: usize) {
        let group_end = (!levels.is_multiple_of(CHUNK_LEVELS)).then_some(levels / CHUNK_LEVELS);
        for chunk in self.group_end.into_iter().chain(group_end) {
            if let Some(text_ranges) = self.text_ranges.get_mut(chunk * SUBSETS..(chunk + 1) * SUBSETS) {
                text_ranges.fill((0, 0));
            }
        }
        self.group_end = group_end;
    }

    /// Returns `true` if `pattern` equals the topic's first `levels` levels with a `*` at each
    /// unnamed level, followed by `>` if `has_tail` is set. The pattern then matches if the topic
    /// has at least one level for the `>`.
    pub(crate) fn equals_pattern(
        &mut self,
        pattern: &str,
        named: [u64; 2],
        levels: usize,
        has_tail: bool,
    ) -> bool {
        const BUFFER_BYTES: usize = (Topic::MAX_BYTES + 1).next_multiple_of(COPY_BYTES) + COPY_BYTES;
        let mut text = [0; BUFFER_BYTES];
        let mut len = 0;
        for (chunk, subset) in subsets_of(named).enumerate().take(levels.div_ceil(CHUNK_LEVELS)) {
            let (position, bytes) = self.text(chunk, subset, levels);
            // Copy whole blocks, since the branches of a copy of variable length would be
            // mispredicted. The next copy overwrites the excess.
            for block in (0..bytes).step_by(COPY_BYTES) {
                let from = self.texts.get(position + block..position + block + COPY_BYTES);
                let to = text.get_mut(len + block..len + block + COPY_BYTES);
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

    /// Returns the position and length of a subset's text, which is built on first use.
    fn text(&mut self, chunk: usize, subset: u8, levels: usize) -> (usize, usize) {
        if self.text_ranges.is_empty() {
            self.text_ranges.resize(CHUNKS * SUBSETS, (0, 0));
        }
        let Some(range) = self.text_ranges.get_mut(chunk * SUBSETS + usize::from(subset)) else {
            return (0, 0);
        };
        if range.1 == 0 {
            let start_of_text = self.texts.len();
            for level in chunk * CHUNK_LEVELS..levels.min((chunk + 1) * CHUNK_LEVELS) {
                let name = match (self.starts.get(level), self.starts.get(level + 1)) {
                    (Some(&start), Some(&next)) if subset >> (level % CHUNK_LEVELS) & 1 == 1 => self
                        .topic
                        .get(usize::from(start)..usize::from(next).saturating_sub(1))
                        .unwrap_or_default(),
                    _ => b"*",
                };
                self.texts.extend_from_slice(name);
                self.texts.push(b'.');
            }
            let bytes = self.texts.len() - start_of_text;
            self.texts.resize(start_of_text + bytes.next_multiple_of(COPY_BYTES), 0);
            *range = (start_of_text as u32, bytes as u32);
        }
        (range.0 as usize, range.1 as usize)
    }
}

/// Returns the named levels of each chunk, as bits.
fn subsets_of(named: [u64; 2]) -> impl Iterator<Item = u8> {
    named.into_iter().flat_map(u64::to_le_bytes)
}
