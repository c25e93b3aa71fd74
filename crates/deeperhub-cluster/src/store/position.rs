//! Positions in a stream of the store, and its limits.

use std::time::Duration;

/// Largest epoch. Larger ones have no wire form (47 bits).
pub(crate) const MAX_EPOCH: u64 = (1 << 47) - 1;

/// Largest offset. Redis' scripts count with doubles, which are exact up to here.
pub(crate) const MAX_OFFSET: u64 = (1 << 53) - 1;

/// A position in a topic's stream, as the store gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorePosition {
    /// Number of the stream: the time in milliseconds at which it began, or more. A later stream of
    /// the topic has a larger number. Below 2⁴⁷.
    pub epoch: u64,
    /// Offset of a message, from 1 on. 0 is the position before the first message.
    pub offset: u64,
}

impl StorePosition {
    /// Returns the position if the store can compare it with its own. A number beyond the limits
    /// would make all later epochs invalid.
    pub(crate) fn if_valid(self) -> Option<Self> {
        (self.epoch < MAX_EPOCH && self.offset < MAX_OFFSET).then_some(self)
    }
}

/// Limits of a topic's stream in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamLimits {
    /// Maximum number of messages, at least 1.
    pub messages: u32,
    /// Maximum age of a message. The store removes the messages of a topic that was quiet for so
    /// long. In other topics, readers leave out messages that are older.
    pub ttl: Duration,
    /// Time for which the store remembers the epoch and the last offset after the last message has
    /// ended its `ttl`.
    pub forget: Duration,
}

impl StreamLimits {
    #[cfg(any(test, feature = "nats", feature = "redis"))]
    pub(crate) fn ttl_ms(&self) -> u64 {
        as_ms(self.ttl)
    }

    /// Returns the time for which the store remembers a position after the last message. It is
    /// longer than that for messages, so that no message outlives its stream's epoch.
    pub(crate) fn position_ms(&self) -> u64 {
        as_ms(self.ttl.saturating_add(self.forget))
    }
}

/// Returns whole milliseconds, from 1 ms to the ten years that every server accepts.
fn as_ms(duration: Duration) -> u64 {
    const MAX: u128 = 10 * 365 * 86_400_000;
    duration.as_millis().clamp(1, MAX) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_outlive_messages() {
        let second = Duration::from_secs(1);
        let limits = StreamLimits { messages: 1, ttl: second, forget: Duration::ZERO };
        assert_eq!((limits.ttl_ms(), limits.position_ms()), (1000, 1000));
        let limits = StreamLimits { forget: second * 2, ..limits };
        assert_eq!((limits.ttl_ms(), limits.position_ms()), (1000, 3000));
        let limits = StreamLimits { ttl: Duration::MAX, forget: Duration::MAX, ..limits };
        assert_eq!(limits.ttl_ms(), 315_360_000_000);
        assert_eq!(StreamLimits { ttl: Duration::ZERO, ..limits }.ttl_ms(), 1);
    }

    #[test]
    fn positions_beyond_the_limits_are_not_compared() {
        let position = StorePosition { epoch: 1, offset: 1 };
        assert_eq!(position.if_valid(), Some(position));
        assert_eq!(StorePosition { epoch: MAX_EPOCH, ..position }.if_valid(), None);
        assert_eq!(StorePosition { offset: MAX_OFFSET, ..position }.if_valid(), None);
    }
}
