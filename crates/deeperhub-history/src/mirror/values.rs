//! Values that a mirror gets and returns.

use crate::seconds::Seconds;
use deeperhub_types::GapReason;

/// A position in a stream of a store. Positions are ordered: a newer epoch has the larger number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePosition {
    /// Number of the epoch, below 2⁴⁷, such as a time in milliseconds. 0 stands for no epoch.
    /// Clients see it as [`Epoch::from_bits`](crate::Epoch::from_bits).
    pub epoch: u64,
    /// The offset.
    pub offset: u64,
}

impl StorePosition {
    /// Largest offset that a mirror accepts: clients read offsets as numbers of JSON.
    pub const MAX_OFFSET: u64 = 1 << 53;
}

/// A message as a store gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredMessage<M> {
    /// The message's offset.
    pub offset: u64,
    /// Offset of the topic's message before it; 0 if there is none. The first message of a read can
    /// have 0 if the store does not say more; [`StreamRead::floor`] then tells what is missing.
    pub prev: u64,
    /// The message.
    pub message: M,
    /// Its bytes.
    pub bytes: usize,
    /// Time of its publish.
    pub at: Seconds,
    /// `true` if the store has the same message at an earlier offset, because a publisher has sent
    /// it again. Nobody gets this one.
    pub is_duplicate: bool,
}

/// A read that a mirror asks for. The caller answers it with
/// [`Mirror::on_read`](crate::Mirror::on_read) or
/// [`Mirror::on_read_failed`](crate::Mirror::on_read_failed).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "the mirror waits for the answer"]
pub struct ReadRequest {
    /// Number of the read, which its answer gives back.
    pub number: u32,
    /// Position after which messages are wanted, oldest first. `None` asks for the last messages,
    /// as many as the topic's rule keeps. If the store has another epoch, all that it keeps is
    /// wanted.
    pub after: Option<StorePosition>,
}

/// Answer of a store to a [`ReadRequest`]. All of it is from one look at one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamRead<M> {
    /// Number of the stream's epoch. A store starts an epoch if it has none; 0 says that it did
    /// not.
    pub epoch: u64,
    /// Offset of the newest message.
    pub top: u64,
    /// Offset up to which the store has no messages because of its bounds, or the answer leaves
    /// them out. What a mirror lacks up to it is told as trimmed, and what it lacks after it as
    /// lost.
    pub floor: u64,
    /// For a store whose offsets have holes: the offset up to which the topic has no other messages
    /// than these. What lies between the last message and it is not missing. 0 for a store in which
    /// each offset up to `top` was of a message.
    pub whole_to: u64,
    /// Messages after the wanted position, in ascending order without a hole of the reader's own.
    /// If the last one and `whole_to` are below `top`, the mirror reads on. An answer without a
    /// message after the wanted position says that the store has none up to `top`.
    pub messages: Vec<StoredMessage<M>>,
}

/// A change of a stream, which the caller applies and tells the subscribers.
///
/// Callers apply the steps of one call in order, before the next call
/// ([`StreamTable::apply`](crate::StreamTable::apply)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MirrorStep<M> {
    /// The topic has a new stream. Subscribers are told a gap of the reason
    /// [`Epoch`](GapReason::Epoch) up to `after`.
    NewEpoch {
        /// Number of the epoch.
        epoch: u64,
        /// Offset that the next message follows.
        after: u64,
    },
    /// Messages that nobody gets. Subscribers are told this gap.
    Missing {
        /// First offset.
        from: u64,
        /// Last offset.
        to: u64,
        /// [`Trimmed`](GapReason::Trimmed) if the store has evicted the messages by its bounds;
        /// otherwise [`Lost`](GapReason::Lost).
        reason: GapReason,
    },
    /// An offset that belongs to no message. Subscribers are told nothing; `prev` of the next
    /// message bridges it.
    Duplicate {
        /// The offset.
        offset: u64,
    },
    /// The next message.
    Message {
        /// The message. Its own `prev` is that of the store.
        message: StoredMessage<M>,
        /// Offset at which subscribers stand before it.
        prev: u64,
    },
}

/// Result of [`Mirror::on_live`](crate::Mirror::on_live).
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum LiveResult<M> {
    /// The message is of no use: it is of an old epoch, or nobody follows the topic.
    Ignored,
    /// The stream is past the message's offset already. If the stream has another message there,
    /// the store has lost its newest messages and has given their offsets again.
    Duplicate(StoredMessage<M>),
    /// The caller applies the step.
    Apply(MirrorStep<M>),
    /// The message waits for a read: this one, or one that is under way or not possible now.
    Waits(Option<ReadRequest>),
}

/// Result of [`Mirror::on_read`](crate::Mirror::on_read).
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub struct ReadResult<M> {
    /// Steps that the caller applies in order.
    pub steps: Vec<MirrorStep<M>>,
    /// The next read, if one is needed.
    pub next: Option<ReadRequest>,
    /// `true` if the store has less than the mirror knew before the read. The caller lets the store
    /// compare itself with [`Mirror::known`](crate::Mirror::known), which starts a new epoch, and
    /// then does the next read. If the store has the same top then, the mirror applies what it has.
    pub is_behind: bool,
}

/// Result of [`Mirror::on_top`](crate::Mirror::on_top).
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum CheckResult {
    /// The mirror has what the store has, or nobody follows the topic.
    InSync,
    /// They differ, which a message under way can explain. The next check decides.
    Differs,
    /// A read decides: this one, or one that is under way or not possible now.
    Read(Option<ReadRequest>),
    /// The store has lost messages that the mirror knows. The caller lets the store compare itself
    /// with [`Mirror::known`](crate::Mirror::known), which starts a new epoch.
    Behind,
}

/// Result of [`Mirror::on_subscribe`](crate::Mirror::on_subscribe).
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum SubscribeCheck {
    /// The stream can answer now.
    Ready,
    /// Nobody follows the topic. The caller follows it, and calls
    /// [`Mirror::on_followed`](crate::Mirror::on_followed) when the broker has confirmed that.
    Follow,
    /// The subscriber waits until [`Mirror::is_settled`](crate::Mirror::is_settled), and is then
    /// decided on again. The caller does the read if there is one.
    Wait(Option<ReadRequest>),
}
