//! Kept messages that are no longer in memory, because only the budget evicted them.

use crate::policy::Retention;
use crate::seconds::Seconds;

/// Maximum number of marks of a stream.
const MAX_MARKS: usize = 16;

/// Messages of a stream that only a store has. They come before those in memory, without a hole.
///
/// Some places among them have marks, so their memory does not depend on their number. The oldest
/// message within the bounds of a rule is therefore known up to the distance of two marks.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    /// Oldest first. The first one is at the oldest message.
    marks: Vec<Mark>,
    /// Minimum distance of two marks in offsets; 0 while there are none.
    distance: u64,
    /// Bytes of all messages that were ever added.
    bytes: u64,
    /// Time of the newest message.
    newest_at: Seconds,
}

#[derive(Debug)]
struct Mark {
    offset: u64,
    /// Bytes of all messages that were added before this one.
    bytes_before: u64,
    at: Seconds,
}

/// Messages that a store has, from an offset up to the next part or to the messages in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredPart {
    /// Offset of the first message.
    pub offset: u64,
    /// Bytes of all messages of the part.
    pub bytes: u64,
    /// Time of the first message.
    pub at: Seconds,
}

impl Stored {
    /// Adds messages behind the newest ones.
    pub(crate) fn push(&mut self, part: StoredPart) {
        let StoredPart { offset, bytes, at } = part;
        let at = self.newest_at.max(at);
        if self.marks.last().is_none_or(|last| offset >= last.offset + self.distance) {
            if self.marks.len() == MAX_MARKS {
                let mut index = 0;
                self.marks.retain(|_| (index += 1, index % 2 == 1).1);
                self.distance *= 2;
            }
            self.distance = self.distance.max(1);
            self.marks.push(Mark { offset, bytes_before: self.bytes, at });
        }
        self.bytes += bytes;
        self.newest_at = at;
    }

    /// Forgets the marks that exceed `bounds`, for a stream with `bytes_after` in memory.
    pub(crate) fn trim(&mut self, bounds: &Retention, bytes_after: u32, now: Seconds) {
        let is_kept = |mark: &Mark| self.is_within(mark, bounds, bytes_after, now);
        let first = self.marks.iter().position(is_kept).unwrap_or(self.marks.len());
        self.marks.drain(..first);
        if self.marks.is_empty() {
            *self = Self::default();
        }
    }

    /// Returns the offset of the oldest message within `bounds` whose time is at least `since`.
    pub(crate) fn oldest(
        &self,
        bounds: &Retention,
        (newest, bytes_after): (u64, u32),
        (now, since): (Seconds, Seconds),
    ) -> Option<u64> {
        let is_kept = |mark: &&Mark| mark.at >= since && self.is_within(mark, bounds, bytes_after, now);
        let oldest = self.marks.iter().find(is_kept)?.offset;
        Some(oldest.max((newest + 1).saturating_sub(bounds.messages.into())))
    }

    fn is_within(&self, mark: &Mark, bounds: &Retention, bytes_after: u32, now: Seconds) -> bool {
        self.bytes - mark.bytes_before + u64::from(bytes_after) <= bounds.bytes.into()
            && now.since(mark.at) <= bounds.ttl_seconds
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.marks.is_empty()
    }

    /// Returns the time of the newest message.
    pub(crate) fn newest_at(&self) -> Option<Seconds> {
        (!self.is_empty()).then_some(self.newest_at)
    }

    pub(crate) fn heap_bytes(&self) -> usize {
        self.marks.capacity() * size_of::<Mark>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(messages: u32, bytes: u32, ttl_seconds: u32) -> Retention {
        Retention { messages, bytes, ttl_seconds }
    }

    fn at(seconds: u32) -> Seconds {
        Seconds::new(seconds)
    }

    /// Returns the messages 1 to `count`, of ten bytes and one second each.
    fn stored(count: u32) -> Stored {
        let mut stored = Stored::default();
        for number in 1..=count {
            stored.push(StoredPart { offset: number.into(), bytes: 10, at: at(number) });
        }
        stored
    }

    #[test]
    fn the_oldest_message_is_within_all_bounds() {
        let stored = stored(10);
        let oldest = |bounds, now, since| stored.oldest(&bounds, (12, 20), (at(now), at(since)));
        assert_eq!(oldest(bounds(100, 1000, 100), 12, 0), Some(1));
        assert_eq!(oldest(bounds(8, 1000, 100), 12, 0), Some(5));
        assert_eq!(oldest(bounds(100, 90, 100), 12, 0), Some(4));
        assert_eq!(oldest(bounds(100, 1000, 5), 12, 0), Some(7));
        assert_eq!(oldest(bounds(100, 1000, 100), 12, 9), Some(9));
        assert_eq!(oldest(bounds(100, 29, 100), 12, 0), None);
        assert_eq!(oldest(bounds(100, 1000, 1), 12, 0), None);
    }

    #[test]
    fn marks_are_few_and_never_too_old() {
        for count in [16, 17, 1000, 100_000_u32] {
            let stored = stored(count);
            assert!(stored.marks.len() <= MAX_MARKS && stored.marks.len() >= MAX_MARKS / 2);
            for ttl in [0, 1, count / 3, count / 2, count] {
                let oldest =
                    stored.oldest(&bounds(u32::MAX, u32::MAX, ttl), (count.into(), 0), (at(count), at(0)));
                let exact = u64::from(count - ttl.min(count - 1));
                assert!(oldest.is_none_or(|oldest| oldest >= exact), "{count} {ttl}");
                if let Some(oldest) = oldest {
                    assert!(oldest - exact <= stored.distance, "{count} {ttl}: {oldest} for {exact}");
                }
            }
        }
    }

    #[test]
    fn marks_out_of_bounds_are_forgotten() {
        let mut stored = stored(10);
        stored.trim(&bounds(100, 1000, 3), 0, at(12));
        assert_eq!(stored.marks.first().map(|mark| mark.offset), Some(9));
        stored.trim(&bounds(100, 1000, 3), 0, at(20));
        assert!(stored.is_empty() && stored.newest_at().is_none());
    }
}
