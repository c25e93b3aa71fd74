//! Messages that left a history.

use std::fmt;

/// Reason why a message left a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum EvictionReason {
    /// The stream had more messages than its rule's `history`.
    Messages,
    /// The stream had more bytes than its rule's `history_bytes`.
    Bytes,
    /// The message was older than its rule's `ttl`.
    Age,
    /// All streams together had more bytes than the budget.
    Budget,
    /// The stream was emptied or removed.
    Removed,
}

impl EvictionReason {
    /// All reasons, for example for the labels of a metric.
    pub const ALL: [Self; 5] = [Self::Messages, Self::Bytes, Self::Age, Self::Budget, Self::Removed];

    /// Returns the reason's name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Bytes => "bytes",
            Self::Age => "ttl",
            Self::Budget => "budget",
            Self::Removed => "removed",
        }
    }
}

impl fmt::Display for EvictionReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Messages that leave a history.
///
/// Freeing a message can take longer than evicting it. Callers that hold a lock therefore collect
/// the messages here, and drop them or call [`Evicted::clear`] after they released the lock.
///
/// Most calls evict one message: an append to a full history. It needs no allocation.
#[derive(Debug)]
pub struct Evicted<M> {
    first: Option<(M, EvictionReason)>,
    others: Vec<(M, EvictionReason)>,
    bytes: usize,
}

/// Capacity that is kept when the messages are cleared, in messages.
const KEPT_CAPACITY: usize = 1024;

impl<M> Evicted<M> {
    /// Creates an empty collection.
    #[inline]
    #[must_use]
    pub const fn new() -> Self {
        Self { first: None, others: Vec::new(), bytes: 0 }
    }

    /// Returns the messages in the order of their eviction.
    pub fn messages(&self) -> impl Iterator<Item = &M> {
        self.iter().map(|(message, _)| message)
    }

    /// Returns the number of messages that were evicted for a reason.
    #[must_use]
    pub fn count(&self, reason: EvictionReason) -> u64 {
        self.iter().filter(|(_, other)| *other == reason).count() as u64
    }

    /// Returns the messages with their reasons, in the order of their eviction.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = &(M, EvictionReason)> {
        self.first.iter().chain(&self.others)
    }

    /// Returns `true` if there are no messages.
    #[inline]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// Returns the bytes of all messages, as they were when they were appended.
    #[inline]
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Removes the messages, in the order of their eviction.
    #[inline]
    pub fn drain(&mut self) -> impl Iterator<Item = (M, EvictionReason)> {
        self.bytes = 0;
        self.first.take().into_iter().chain(self.others.drain(..))
    }

    /// Drops the messages.
    pub fn clear(&mut self) {
        self.first = None;
        self.others.clear();
        self.bytes = 0;
        self.others.shrink_to(KEPT_CAPACITY);
    }

    #[inline]
    pub(crate) fn push(&mut self, message: M, bytes: usize, reason: EvictionReason) {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.first.is_none() {
            self.first = Some((message, reason));
        } else {
            self.others.push((message, reason));
        }
    }
}

impl<M> Default for Evicted<M> {
    #[inline]
    fn default() -> Self {
        Self::new()
    }
}
