//! Offsets of a stream in which not every offset is the offset of a kept message.

use deeperhub_types::GapReason;
use std::collections::VecDeque;

/// Maximum number of missing ranges of a stream.
pub(super) const MAX_MISSING: usize = 16;

/// Smallest capacity that the offsets shrink to.
const MIN_CAPACITY: usize = 4;

/// Offsets of the kept messages, and what is missing between them.
///
/// An offset that is neither of a message nor in a missing range belongs to no message of the
/// topic.
#[derive(Debug)]
pub(super) struct Sparse {
    /// Offsets of the kept messages, oldest first.
    offsets: VecDeque<u64>,
    /// Offset up to which nothing is kept: of the last evicted message, or the start of the epoch.
    floor: u64,
    /// Missing ranges after `floor`, oldest first. There are few, if any.
    missing: Vec<Missing>,
}

/// Offsets of which a mirror could not get the messages. The range starts after the message or the
/// range before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Missing {
    /// Last offset.
    pub(crate) to: u64,
    /// Reason that subscribers are told.
    pub(crate) reason: GapReason,
}

impl Sparse {
    /// Creates the offsets of a stream that had each message after `floor` up to `newest`.
    pub(super) fn from_dense(floor: u64, newest: u64) -> Self {
        Self { offsets: (floor + 1..=newest).collect(), floor, missing: Vec::new() }
    }

    pub(super) const fn floor(&self) -> u64 {
        self.floor
    }

    pub(super) fn offset(&self, index: usize) -> Option<u64> {
        self.offsets.get(index).copied()
    }

    /// Returns the index of the message with an offset.
    pub(super) fn index_of(&self, offset: u64) -> Option<usize> {
        self.offsets.binary_search(&offset).ok()
    }

    /// Returns the index of the first message whose offset is at least `offset`.
    pub(super) fn index_from(&self, offset: u64) -> usize {
        self.offsets.partition_point(|other| *other < offset)
    }

    /// Returns the offset at which a subscriber stands before it gets the message at `index`.
    pub(super) fn position_before(&self, index: usize) -> u64 {
        let before = index.checked_sub(1).and_then(|before| self.offset(before)).unwrap_or(self.floor);
        let end = self.offset(index).unwrap_or(u64::MAX);
        let missing = self.missing.iter().rev().find(|missing| missing.to < end);
        missing.map_or(before, |missing| missing.to.max(before))
    }

    /// Returns the missing range that a subscriber whose next offset is `next` meets before the
    /// message at `index`.
    pub(super) fn missing_before(&self, next: u64, index: usize) -> Option<Missing> {
        let end = self.offset(index).unwrap_or(u64::MAX);
        let missing = self.missing.iter().find(|missing| missing.to >= next)?;
        (missing.to < end).then_some(*missing)
    }

    /// Returns the last missing offset.
    pub(super) fn last_missing(&self) -> Option<u64> {
        self.missing.last().map(|missing| missing.to)
    }

    pub(super) fn has_too_many_missing(&self) -> bool {
        self.missing.len() > MAX_MISSING
    }

    /// Adds the newest message.
    pub(super) fn push(&mut self, offset: u64) {
        self.offsets.push_back(offset);
    }

    /// Adds a missing range behind all messages.
    pub(super) fn push_missing(&mut self, missing: Missing) {
        let last_message = self.offsets.back().copied().unwrap_or(self.floor);
        match self.missing.last_mut() {
            Some(last) if last.to > last_message && last.reason == missing.reason => last.to = missing.to,
            _ => self.missing.push(missing),
        }
    }

    /// Notes that the oldest message was evicted.
    pub(super) fn pop(&mut self) {
        let Some(offset) = self.offsets.pop_front() else { return };
        self.floor = offset;
        self.missing.retain(|missing| missing.to > offset);
        let (len, capacity) = (self.offsets.len(), self.offsets.capacity());
        if capacity > MIN_CAPACITY && len <= capacity / 4 {
            self.offsets.shrink_to((2 * len).max(MIN_CAPACITY));
        }
    }

    /// Forgets the oldest missing range of a stream without messages.
    pub(super) fn pop_missing(&mut self) {
        if !self.missing.is_empty() {
            self.floor = self.missing.remove(0).to;
        }
    }

    /// Returns `true` if each offset after `floor` up to `newest` is of a kept message.
    pub(super) fn is_dense(&self, newest: u64) -> bool {
        self.missing.is_empty() && newest - self.floor == self.offsets.len() as u64
    }

    pub(super) fn heap_bytes(&self) -> usize {
        size_of::<Self>()
            + self.offsets.capacity() * size_of::<u64>()
            + self.missing.capacity() * size_of::<Missing>()
    }
}
