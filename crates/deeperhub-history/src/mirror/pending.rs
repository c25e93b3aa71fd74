//! Messages that wait for a read.

use super::values::StoredMessage;
use crate::planted::planted;
use std::collections::VecDeque;

/// Messages of one epoch that came live while those before them were not there yet.
#[derive(Debug)]
pub(super) struct Pending<M> {
    /// In ascending order of offsets, each once.
    messages: VecDeque<StoredMessage<M>>,
    bytes: usize,
}

impl<M> Pending<M> {
    pub(super) const fn new() -> Self {
        Self { messages: VecDeque::new(), bytes: 0 }
    }

    /// Returns the bytes of a message, with its place in memory.
    const fn bytes_of(message: &StoredMessage<M>) -> usize {
        message.bytes.saturating_add(2 * size_of::<StoredMessage<M>>())
    }

    /// Adds a message. Drops the newest ones beyond `max_bytes`, since a read brings them again.
    pub(super) fn push(&mut self, mut message: StoredMessage<M>, max_bytes: usize) {
        message.prev = message.prev.min(message.offset.saturating_sub(1));
        if Self::bytes_of(&message) > max_bytes && !planted!(PendingUnbounded) {
            return;
        }
        let index = self.messages.partition_point(|other| other.offset < message.offset);
        if self.messages.get(index).is_some_and(|other| other.offset == message.offset) {
            return;
        }
        self.bytes += Self::bytes_of(&message);
        self.messages.insert(index, message);
        while self.bytes > max_bytes
            && !planted!(PendingUnbounded)
            && let Some(newest) = self.messages.pop_back()
        {
            self.bytes -= Self::bytes_of(&newest);
        }
    }

    pub(super) fn front(&self) -> Option<&StoredMessage<M>> {
        self.messages.front()
    }

    pub(super) fn pop(&mut self) -> Option<StoredMessage<M>> {
        let message = self.messages.pop_front()?;
        self.bytes -= Self::bytes_of(&message);
        Some(message)
    }

    /// Drops the messages up to an offset.
    pub(super) fn drop_to(&mut self, offset: u64) {
        while self.front().is_some_and(|front| front.offset <= offset) {
            self.pop();
        }
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}
