//! Messages that are wanted when a store is opened, and that the budget leaves on the disk.

/// Maximum number of parts of a stream.
const MAX_PARTS: usize = 32;

/// Messages that stay on the disk when a store is opened: those from an offset up to the next part
/// or to the messages that were read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OlderPart {
    /// Offset of the first message.
    pub offset: u64,
    /// Time of the first message, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Bytes of all messages of the part.
    pub bytes: u64,
}

/// The parts of one stream, in bounded memory. Messages are added newest first.
#[derive(Debug, Default)]
pub(crate) struct Older {
    /// Newest first.
    parts: Vec<OlderPart>,
    /// Messages of the last part.
    last_len: u64,
    /// Messages that a part takes.
    part_len: u64,
    /// Messages of all parts.
    pub(crate) messages: usize,
}

impl Older {
    /// Adds the message before all others.
    pub(crate) fn add(&mut self, message: OlderPart) {
        self.messages += 1;
        self.part_len = self.part_len.max(1);
        match self.parts.last_mut() {
            Some(last) if self.last_len < self.part_len => {
                *last = OlderPart { bytes: last.bytes + message.bytes, ..message };
                self.last_len += 1;
            }
            _ => {
                if self.parts.len() == MAX_PARTS {
                    let merged = self.parts.chunks(2).filter_map(|pair| {
                        let bytes = pair.iter().map(|part| part.bytes).sum();
                        pair.last().map(|older| OlderPart { bytes, ..*older })
                    });
                    self.parts = merged.collect();
                    self.part_len *= 2;
                }
                self.parts.push(message);
                self.last_len = 1;
            }
        }
    }

    /// Returns the parts, oldest first.
    pub(crate) fn into_parts(mut self) -> Vec<OlderPart> {
        self.parts.reverse();
        self.parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_few_and_cover_all_messages() {
        for count in [0, 1, 32, 33, 1000, 100_000] {
            let mut older = Older::default();
            for offset in (1..=count).rev() {
                older.add(OlderPart { offset, time_ms: offset * 10, bytes: 3 });
            }
            assert_eq!(older.messages as u64, count);
            let parts = older.into_parts();
            assert!(parts.len() <= MAX_PARTS && (parts.is_empty() == (count == 0)), "{count}");
            assert_eq!(parts.first().map_or(1, |part| part.offset), 1);
            assert_eq!(parts.iter().map(|part| part.bytes).sum::<u64>(), 3 * count);
            assert!(parts.is_sorted_by_key(|part| part.offset));
            let ends = parts.iter().skip(1).map(|part| part.offset).chain([count + 1]);
            for (part, end) in parts.iter().zip(ends) {
                assert_eq!((part.time_ms, part.bytes), (part.offset * 10, 3 * (end - part.offset)));
            }
        }
    }
}
