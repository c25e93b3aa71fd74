//! A subscriber's place in a stream, and how it moves while it is behind.

use crate::gap::Gap;
use crate::policy::Delivery;
use crate::stream::{Stream, StreamItem};
use deeperhub_types::{Epoch, GapReason, Position};

/// The place of one subscriber in a stream. A subscriber that is behind gets the steps of its
/// cursor; one at the newest message gets live deliveries.
///
/// The steps tell the whole way: each offset is the offset of a message, or lies in a gap, or lies
/// between `prev` and the offset of a message, and in only one of these.
///
/// ```
/// use deeperhub_history::{Cursor, Delivery, Epoch, Evicted, Retention, Seconds, Step, Stream};
///
/// let bounds = Retention { messages: 2, bytes: 1000, ttl_seconds: 60 };
/// let mut stream = Stream::new(Epoch::from_bits(7));
/// for text in ["a", "b", "c"] {
///     stream.append(&bounds, Seconds::new(0), &mut Evicted::new(), |_, _| (text, 1));
/// }
/// let mut cursor = Cursor::new(stream.epoch(), 0);
/// let mut texts = Vec::new();
/// while let Some(step) = cursor.advance(&stream, Delivery::Lossless) {
///     match step {
///         Step::Gap(gap) => assert_eq!((gap.from, gap.to), (Some(1), 1)),
///         Step::Message { message, .. } => texts.push(*message),
///         Step::Close => unreachable!("only the delivery `close` ends a subscription"),
///         Step::Stored { .. } => unreachable!("there is no store"),
///     }
/// }
/// assert_eq!(texts, ["b", "c"]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    epoch: Epoch,
    /// Offset up to which the subscriber was told everything.
    told: u64,
    /// Offset of the next message. The subscriber gets nothing between `told` and `next`; `prev` of
    /// its next message says so.
    next: u64,
}

/// Next step of a subscriber that is behind.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a, M> {
    /// A message.
    Message {
        /// The message's offset.
        offset: u64,
        /// Offset of the subscriber's message or position before this one; `None` if that is
        /// `offset - 1`. The offsets between them are not delivered to this subscriber.
        prev: Option<u64>,
        /// The message.
        message: &'a M,
    },
    /// Offsets that the subscriber will not get.
    Gap(Gap),
    /// The next messages are not in memory, but a store has them. The caller reads them, and moves
    /// the cursor with [`Cursor::pass_stored`]. Only [`Cursor::advance_within`] returns this.
    Stored {
        /// Offset of the next message.
        from: u64,
        /// Offset of the last message that is not in memory.
        to: u64,
    },
    /// The subscriber has missed a message and must be disconnected ([`Delivery::Close`]). The cursor
    /// stays where it is, so further calls return the same.
    Close,
}

impl Cursor {
    /// Creates a cursor for a subscriber that stands at `offset`, the offset of its last message or
    /// position.
    #[must_use]
    pub const fn new(epoch: Epoch, offset: u64) -> Self {
        Self { epoch, told: offset, next: offset.saturating_add(1) }
    }

    /// Returns the epoch.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Returns the offset at which the subscriber stands: of its last message, gap or position.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.told
    }

    /// Returns the position at which the subscriber stands. `time_ms` is the time of this look in
    /// milliseconds since the Unix epoch.
    #[must_use]
    pub const fn position(&self, time_ms: u64) -> Position {
        Position { epoch: self.epoch, offset: self.told, time: time_ms }
    }

    /// Returns `true` if the stream has a step for the subscriber.
    #[must_use]
    pub fn is_behind<M>(&self, stream: &Stream<M>) -> bool {
        self.epoch != stream.epoch() || self.next <= stream.newest()
    }

    /// Returns the number of messages that the subscriber gets before it is at the newest message,
    /// if nothing is published or evicted meanwhile. `oldest` is the offset of the oldest message in
    /// memory ([`Stream::oldest`]) or in a store ([`Stream::oldest_stored`]).
    #[must_use]
    pub fn messages_left<M>(&self, stream: &Stream<M>, oldest: u64, delivery: Delivery) -> u64 {
        let first = if self.epoch == stream.epoch() { self.next.max(oldest) } else { oldest };
        stream.count_from(first).min(delivery.max_messages())
    }

    /// Moves by one step. Returns `None` if the subscriber is at the newest message.
    ///
    /// With [`Delivery::Sample`], each call yields the newest message; the caller calls once per
    /// interval. The stream should have no expired messages ([`Stream::expire`]).
    pub fn advance<'a, M>(&mut self, stream: &'a Stream<M>, delivery: Delivery) -> Option<Step<'a, M>> {
        self.advance_where(stream, delivery, |_| true)
    }

    /// Moves by one step, like [`Self::advance`], and passes over the messages for which
    /// `is_wanted` returns `false`, such as a publisher's own. `prev` of the next message bridges
    /// them. If the last messages are not wanted, nothing tells the subscriber about them.
    pub fn advance_where<'a, M>(
        &mut self,
        stream: &'a Stream<M>,
        delivery: Delivery,
        is_wanted: impl FnMut(&M) -> bool,
    ) -> Option<Step<'a, M>> {
        self.advance_within(stream, stream.oldest(), delivery, is_wanted)
    }

    /// Moves by one step, like [`Self::advance_where`], with messages that only a store has: those
    /// from the offset `oldest` on ([`Stream::oldest_stored`]).
    pub fn advance_within<'a, M>(
        &mut self,
        stream: &'a Stream<M>,
        oldest: u64,
        delivery: Delivery,
        mut is_wanted: impl FnMut(&M) -> bool,
    ) -> Option<Step<'a, M>> {
        if !self.is_behind(stream) {
            return None;
        }
        if let Some(step) = self.jump(stream, oldest, delivery, &mut is_wanted) {
            return Some(step);
        }
        if stream.is_sparse() {
            return self.advance_sparse(stream, delivery, is_wanted);
        }
        let in_memory = stream.dense_oldest();
        if self.next < in_memory {
            return Some(Step::Stored { from: self.next, to: in_memory - 1 });
        }
        while let Some(message) = stream.message_at(self.next - in_memory) {
            let offset = self.next;
            self.next += 1;
            if is_wanted(message) {
                let prev = Some(self.told).filter(|prev| prev + 1 != offset);
                self.told = offset;
                return Some(Step::Message { offset, prev, message });
            }
        }
        None
    }

    /// Moves to the next message of a sparse stream, or over what is missing before it.
    #[inline(never)]
    fn advance_sparse<'a, M>(
        &mut self,
        stream: &'a Stream<M>,
        delivery: Delivery,
        mut is_wanted: impl FnMut(&M) -> bool,
    ) -> Option<Step<'a, M>> {
        while let Some(item) = stream.item_at(self.next) {
            let (offset, message) = match item {
                StreamItem::Message(offset, message) => (offset, message),
                StreamItem::Missing(_) if delivery == Delivery::Close => return Some(Step::Close),
                StreamItem::Missing(missing) => return Some(self.skip(missing.to, missing.reason)),
            };
            self.next = offset + 1;
            if is_wanted(message) {
                let prev = Some(self.told).filter(|prev| prev + 1 != offset);
                self.told = offset;
                return Some(Step::Message { offset, prev, message });
            }
        }
        // The last offsets can belong to no message.
        self.next = self.next.max(stream.newest() + 1);
        None
    }

    /// Moves behind `to` and returns the gap of which the subscriber is told.
    const fn skip<'a, M>(&mut self, to: u64, reason: GapReason) -> Step<'a, M> {
        let gap = Gap { epoch: self.epoch, from: Some(self.told + 1), to, reason };
        (self.told, self.next) = (to, to + 1);
        Step::Gap(gap)
    }

    /// Moves past a message that was read from a store. Returns `None` if the subscriber is past it
    /// already, or if the message is not wanted; otherwise `prev` of the message, as in
    /// [`Step::Message`].
    pub fn pass_stored(&mut self, offset: u64, is_wanted: bool) -> Option<Option<u64>> {
        if offset < self.next {
            return None;
        }
        self.next = offset + 1;
        is_wanted.then(|| {
            let prev = Some(self.told).filter(|prev| prev + 1 != offset);
            self.told = offset;
            prev
        })
    }

    /// Moves to `offset` if the store does not have the messages before it. Returns the gap of
    /// which the subscriber must be told.
    pub fn skip_lost(&mut self, offset: u64) -> Option<Gap> {
        if offset <= self.next {
            return None;
        }
        let (from, to) = (Some(self.told + 1), offset - 1);
        (self.told, self.next) = (to, offset);
        Some(Gap { epoch: self.epoch, from, to, reason: GapReason::Lost })
    }

    /// Moves `next` to the first message that the delivery allows. Returns a step if the subscriber
    /// must be told about it.
    fn jump<'a, M>(
        &mut self,
        stream: &'a Stream<M>,
        oldest: u64,
        delivery: Delivery,
        is_wanted: &mut impl FnMut(&M) -> bool,
    ) -> Option<Step<'a, M>> {
        let end = stream.newest() + 1;
        let is_same_epoch = self.epoch == stream.epoch();
        let from = if is_same_epoch { self.next } else { oldest };
        let (target, reason) = match delivery {
            Delivery::Lossless | Delivery::Close => (oldest, GapReason::Trimmed),
            Delivery::DropOldest { .. } => match delivery.max_messages() {
                keep if keep > stream.count_from(oldest) => (oldest, GapReason::Trimmed),
                keep => (stream.position_before_last(keep) + 1, GapReason::Dropped),
            },
            Delivery::Latest | Delivery::Sample { .. } => {
                let mut newest_first = stream.messages(from..).rev();
                match newest_first.find(|(_, message)| is_wanted(message)) {
                    Some((offset, _)) => (stream.position_before(offset) + 1, GapReason::Conflated),
                    // The newest message that only the store has.
                    None if oldest.max(from) < stream.oldest() => (stream.oldest() - 1, GapReason::Conflated),
                    // First tell what is not kept, then pass over what is not wanted.
                    None if from < oldest => (oldest, GapReason::Trimmed),
                    None => (end, GapReason::Trimmed),
                }
            }
        };
        if !is_same_epoch {
            (self.epoch, self.told, self.next) = (stream.epoch(), target - 1, target);
            let gap = Gap { epoch: self.epoch, from: None, to: self.told, reason: GapReason::Epoch };
            return Some(Step::Gap(gap));
        }
        if target <= self.next {
            return None;
        }
        // If no message is skipped, the subscriber is told what is missing with its own reason.
        if stream.is_missing_from(from)
            && from >= oldest
            && !matches!(delivery, Delivery::Sample { .. })
            && (target == end || stream.messages(from..target).next().is_none())
        {
            return None;
        }
        match delivery {
            Delivery::Close => return Some(Step::Close),
            // `prev` of the next message tells what a sample skips. It also bridges messages that
            // are kept, but not meant for the subscriber.
            Delivery::Sample { .. } if reason == GapReason::Conflated || from >= oldest => {
                self.next = target;
                return None;
            }
            Delivery::Latest if target == end && from >= oldest => {
                self.next = target;
                return None;
            }
            // If nothing that is kept is left for a sample, no message would tell what is not kept.
            Delivery::Lossless | Delivery::DropOldest { .. } | Delivery::Latest | Delivery::Sample { .. } => {
            }
        }
        Some(self.skip(target - 1, reason))
    }
}

#[cfg(test)]
mod tests;
