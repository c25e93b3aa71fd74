//! Times of positions in a cluster.
//!
//! A broker that fails over can lose its newest messages, and give their offsets to others. A node
//! that follows the topic notices that. If no node does, offsets tell nothing to a client that comes
//! back. The time of its position does: the broker has given the offset again later.
//!
//! No good position may be refused, although the clocks of brokers and nodes differ. The time of a
//! position is therefore one of these:
//!
//! - that of the message at its offset, which is the same on all nodes;
//! - if the node keeps that message, the present time, but no earlier one than the message's;
//! - otherwise, whole seconds of the present time. Such a time is compared with nothing.

use std::time::Instant;

use deeperhub_history::Stream;
use deeperhub_protocol::Epoch;
use deeperhub_protocol::frame::KeptFrame;
use deeperhub_protocol::message::EncodedDelivery;

use super::Streams;

impl Streams {
    /// Returns the time of a position whose message this node may not have.
    pub(crate) fn look_ms(&self, at: Instant) -> u64 {
        let now_ms = self.clock.unix_ms(at);
        if self.cluster.is_some() { whole_seconds(now_ms) } else { now_ms }
    }

    /// Returns the time of the position at an offset of a stream.
    pub(crate) fn position_ms(&self, stream: &Stream<KeptFrame>, offset: u64, at: Instant) -> u64 {
        let now_ms = self.clock.unix_ms(at);
        if self.cluster.is_some() { look_time(message_time(stream, offset), now_ms) } else { now_ms }
    }

    /// Returns `true` if another message has taken the place of the one that a client knows. `time_ms`
    /// is the time of the client's position.
    pub(crate) fn is_replaced(
        &self,
        stream: &Stream<KeptFrame>,
        (epoch, offset): (Epoch, u64),
        time_ms: u64,
    ) -> bool {
        self.cluster.is_some() && epoch == stream.epoch() && is_earlier(time_ms, message_time(stream, offset))
    }
}

/// Returns a time without its milliseconds.
pub(crate) const fn whole_seconds(time_ms: u64) -> u64 {
    time_ms - time_ms % 1000
}

/// Returns the time of a look at the offset of a message. `message_ms` is `None` if the message is
/// not kept.
fn look_time(message_ms: Option<u64>, now_ms: u64) -> u64 {
    message_ms.map_or(whole_seconds(now_ms), |message_ms| message_ms.max(now_ms))
}

/// Returns `true` if a position is certainly earlier than the message at its offset.
fn is_earlier(position_ms: u64, message_ms: Option<u64>) -> bool {
    position_ms != whole_seconds(position_ms) && message_ms.is_some_and(|message_ms| position_ms < message_ms)
}

/// Returns the time of the message at an offset, if the stream keeps it.
fn message_time(stream: &Stream<KeptFrame>, offset: u64) -> Option<u64> {
    let frame = stream.message(offset)?;
    Some(EncodedDelivery::parse(frame.as_bytes())?.position()?.time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_from_before_the_message_at_its_offset_is_of_another_one() {
        let message = Some(50_123);
        for (position, expected) in
            [(50_122, true), (1, true), (50_123, false), (50_124, false), (50_000, false), (0, false)]
        {
            assert_eq!(is_earlier(position, message), expected, "{position}");
            assert!(!is_earlier(position, None), "the message is not kept");
        }
        // A look that saw the lost message is earlier, too.
        assert!(is_earlier(look_time(Some(50_007), 50_100), message));
    }

    /// Nodes have clocks of their own, and each keeps the message or not. A client gets a position
    /// from one of them, with the message or by a look, and gives it to the others in turn. Each
    /// answers with a position of its own.
    #[test]
    fn a_good_position_is_never_earlier_than_its_message() {
        for seed in 0..20_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let message_ms = random.u64(1_000_000..9_000_000);
            let mut position = random.bool().then_some(message_ms);
            for _ in 0..8 {
                let kept = random.bool().then_some(message_ms);
                // Some clocks differ by milliseconds, others by hours.
                let now_ms = match random.bool() {
                    true => random.u64(message_ms - 2000..message_ms + 2000),
                    false => random.u64(0..10_000_000),
                };
                if let Some(position) = position {
                    assert!(!is_earlier(position, kept), "seed {seed}: {position} at {kept:?}");
                }
                position = Some(look_time(kept, now_ms));
            }
        }
    }
}
