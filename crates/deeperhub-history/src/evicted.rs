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

/// Buffer for the messages that leave a history.
///
/// Freeing a message can take longer than evicting it. Callers that hold a lock therefore collect
/// the messages here and call [`Evicted::clear`] after they released the lock. The buffer can be
/// used again. It grows by what one call evicts, so clear it after each call.
#[derive(Debug)]
pub struct Evicted<M> {
    messages: Vec<M>,
    counts: [u64; EvictionReason::ALL.len()],
}

/// Capacity that a buffer keeps when it is cleared, in messages.
const KEPT_CAPACITY: usize = 1024;

impl<M> Evicted<M> {
    /// Creates an empty buffer.
    #[must_use]
    pub const fn new() -> Self {
        Self { messages: Vec::new(), counts: [0; EvictionReason::ALL.len()] }
    }

    /// Returns the messages in the order of their eviction.
    #[must_use]
    pub fn messages(&self) -> &[M] {
        &self.messages
    }

    /// Returns the number of evictions for a reason since the last [`Evicted::clear`].
    #[must_use]
    pub const fn count(&self, reason: EvictionReason) -> u64 {
        self.counts[reason as usize]
    }

    /// Returns `true` if there are no messages.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Drops the messages and resets the counts.
    pub fn clear(&mut self) {
        self.messages.clear();
        self.messages.shrink_to(KEPT_CAPACITY);
        self.counts = [0; EvictionReason::ALL.len()];
    }

    pub(crate) fn push(&mut self, message: M, reason: EvictionReason) {
        self.messages.push(message);
        self.counts[reason as usize] += 1;
    }
}

impl<M> Default for Evicted<M> {
    fn default() -> Self {
        Self::new()
    }
}
