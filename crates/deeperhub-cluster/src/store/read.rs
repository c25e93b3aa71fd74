//! Reads of streams, and the start of new ones.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use deeperhub_protocol::Topic;
use tokio::sync::oneshot;

use super::{Request, StorePosition, StreamLimits};
use crate::broker::Broker;
use crate::envelope::{Envelope, EnvelopeError, Message};

/// Maximum number of streams that one call of [`Broker::read_streams`] reads.
pub const MAX_READS: usize = 64;

/// Maximum number of topics in one call of [`Broker::read_tops`].
pub const MAX_TOPS: usize = 512;

/// A read of a topic's stream.
#[derive(Debug, Clone)]
pub struct StreamRead {
    /// The topic.
    pub topic: Topic<'static>,
    /// Position before the first message to read. If it is `None` or of another epoch, the last
    /// messages are read.
    pub after: Option<StorePosition>,
    /// Maximum number of messages.
    pub messages: u32,
    /// Limits of the topic's stream. Messages older than `ttl` are left out.
    pub limits: StreamLimits,
    /// Starts a stream if the store does not know the topic, so that there is a position. Its epoch
    /// is larger than that of `after`.
    pub creates: bool,
    /// Reads only after the broker has confirmed the subscriptions for the interest that this node
    /// announced before the read ([`Broker::change_interest`]). Messages that come later than the
    /// read then reach the node.
    pub follows: bool,
}

/// Part of a topic's stream that the store keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamRange {
    /// Position of the newest message. `None` if the store does not know the topic.
    pub top: Option<StorePosition>,
    /// Offset of the oldest message that is kept, or the one after the newest if none is. Messages
    /// before those that were read may have reached their `ttl`.
    pub oldest: u64,
    /// Time of the store in milliseconds since the Unix epoch.
    pub time: u64,
    /// The messages that were read, with ascending offsets.
    pub messages: Vec<StoredEnvelope>,
    /// `true` if the read ended early, because the answer would have been too large. A read after a
    /// position then continues after the last message. A read of the last messages lacks the first
    /// ones; but with `whole`, it lacks the last ones and continues after [`Whole::to`].
    pub is_cut: bool,
    /// Number of messages that the store keeps of the topic. After a position, JetStream counts only
    /// those after it.
    pub kept: u64,
    /// Part that the store vouches for. `None` if offsets are dense, so that they tell themselves.
    pub whole: Option<Whole>,
}

/// Part of a stream with sparse offsets of which a read brought all messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Whole {
    /// Offset after which the store has evicted no message of the topic.
    pub after: u64,
    /// Offset up to which the topic has no other messages than those that were read.
    pub to: u64,
}

/// An envelope from the store, with a [`Message::Stored`].
#[derive(Clone, PartialEq, Eq)]
pub struct StoredEnvelope {
    bytes: Bytes,
    offset: u64,
}

impl StoredEnvelope {
    /// Checks an envelope from the store. Returns `None` if it is not a stored message of this
    /// stream.
    #[cfg(any(feature = "nats", feature = "redis", feature = "simulation"))]
    pub(crate) fn parse(bytes: Bytes, topic: &Topic<'_>, epoch: u64) -> Option<(Self, u64)> {
        match Envelope::parse(&bytes).ok()?.message {
            Message::Stored { position, time, topic: own, .. }
                if position.epoch == epoch && own == *topic =>
            {
                Some((Self { bytes, offset: position.offset }, time))
            }
            _ => None,
        }
    }

    /// Sets the offset before the message, if it has none.
    #[cfg(feature = "nats")]
    pub(crate) fn set_previous(&mut self, previous: u64) {
        let Ok(header) = crate::envelope::Header::parse(&self.bytes) else { return };
        let at = crate::envelope::stamp_offset(header.origin.node.len()) + 16;
        let previous = previous.min(self.offset.saturating_sub(1)).to_be_bytes();
        if self.bytes.get(at..at + 8) == Some(&[0; 8]) {
            let mut bytes = self.bytes.to_vec();
            if let Some(field) = bytes.get_mut(at..at + 8) {
                field.copy_from_slice(&previous);
            }
            self.bytes = bytes.into();
        }
    }

    /// Returns the offset of the message.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the length of the envelope in bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns `false`: no envelope is empty.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Parses the envelope.
    ///
    /// # Errors
    ///
    /// Never returns an error, because the envelope was checked.
    pub fn envelope(&self) -> Result<Envelope<'_>, EnvelopeError> {
        Envelope::parse(&self.bytes)
    }
}

impl fmt::Debug for StoredEnvelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredEnvelope").field("offset", &self.offset).finish_non_exhaustive()
    }
}

/// The newest position of a topic at the time of a look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamTop {
    /// Position of the newest message. `None` if the store does not know the topic. JetStream tells
    /// the newest message that is kept, or 0.
    pub position: Option<StorePosition>,
    /// Progress of the stream that the topic shares with others. `None` if it has its own.
    pub progress: Option<StreamProgress>,
    /// Time of the store in milliseconds since the Unix epoch.
    pub time: u64,
}

/// Progress of a stream of JetStream, which has the messages of many topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamProgress {
    /// The newest offset of all topics. A node that knows a later one of the same epoch knows of
    /// messages that the store has lost.
    pub newest: u64,
    /// Offset up to which the topic has no messages after its newest one. 0 if that is not certain.
    pub vouched: u64,
}

/// Start of a new, empty stream of a topic.
#[derive(Debug, Clone)]
pub struct ResetStream {
    /// The topic.
    pub topic: Topic<'static>,
    /// Latest position of the topic that the node knows. The new epoch is larger.
    pub known: Option<StorePosition>,
    /// Limits of the topic's stream.
    pub limits: StreamLimits,
    /// Condition of the start.
    pub when: ResetWhen,
}

/// Condition of a [`ResetStream`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetWhen {
    /// Always: the topic's history is cleared.
    Always,
    /// If the store knows less than the node, because it lost messages.
    StoreIsBehind,
    /// Unless the store has begun a later epoch. It has lost messages, and has given their offsets
    /// to others.
    StoreHasRewritten,
}

/// Reason why a request to the store has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The node is not connected to its broker.
    #[error("the cluster's store is unreachable")]
    Unavailable,
    /// Too many requests wait for the store.
    #[error("too many requests wait for the cluster's store")]
    Busy,
    /// The call names too many topics ([`MAX_READS`], [`MAX_TOPS`]).
    #[error("the request names {0} topics; split it into smaller ones")]
    TooManyTopics(usize),
    /// The store did not answer in time.
    #[error("the cluster's store did not answer in time")]
    TimedOut,
    /// The connection was lost. A new stream may have been started.
    #[error("the connection to the cluster's store was lost: {0}")]
    Lost(String),
    /// The server refused the request. The text is its reason.
    #[error("the cluster's store refused the request: {0}")]
    Refused(String),
}

/// Answer of the store that is still to come. Any runtime, or none, can wait for it.
#[derive(Debug)]
#[must_use = "the answer is lost if nothing waits for it"]
pub struct StoreReply<T>(oneshot::Receiver<Result<T, ReadError>>);

impl<T> StoreReply<T> {
    /// Returns the answer if it has come. Nothing else may wait for it afterwards.
    pub fn try_take(&mut self) -> Option<Result<T, ReadError>> {
        match self.0.try_recv() {
            Ok(result) => Some(result),
            Err(oneshot::error::TryRecvError::Empty) => None,
            Err(oneshot::error::TryRecvError::Closed) => Some(Err(ReadError::Unavailable)),
        }
    }
}

impl<T> Future for StoreReply<T> {
    type Output = Result<T, ReadError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|reply| reply.unwrap_or(Err(ReadError::Unavailable)))
    }
}

impl Broker {
    /// Reads streams of up to [`MAX_READS`] topics. The ranges have the order of the reads. A read
    /// that the server refuses does not concern the others.
    ///
    /// Reads have a connection of their own and delay no other messages. At most 64 are under way,
    /// and further ones wait. An answer holds at most 256 KiB for each topic, or one message that
    /// is larger. Each request is answered within a few seconds.
    ///
    /// # Errors
    ///
    /// Returns [`ReadError`] if the request was not accepted, at once or with the reply.
    pub fn read_streams(
        &self,
        reads: Vec<StreamRead>,
    ) -> Result<StoreReply<Vec<Result<StreamRange, ReadError>>>, ReadError> {
        check_count(reads.len(), MAX_READS)?;
        let follows = reads.iter().any(|read| read.follows);
        self.request_store(reads.len(), follows, |reply| Request::Streams { reads, reply })
    }

    /// Looks up the newest positions of up to [`MAX_TOPS`] topics, in their order. With `remember`,
    /// the store remembers the positions for as long as after a message, so that a topic that is
    /// followed but quiet keeps its epoch.
    ///
    /// # Errors
    ///
    /// Returns [`ReadError`] if the request was not accepted, at once or with the reply.
    pub fn read_tops(
        &self,
        topics: Vec<Topic<'static>>,
        remember: Option<StreamLimits>,
    ) -> Result<StoreReply<Vec<StreamTop>>, ReadError> {
        check_count(topics.len(), MAX_TOPS)?;
        // Looks are an eighth of the work of a read.
        let cost = topics.len().div_ceil(8);
        let remember_ms = remember.map(|limits| limits.position_ms());
        self.request_store(cost, false, |reply| Request::Tops { topics, remember_ms, reply })
    }

    /// Starts a new, empty stream of a topic, and tells all nodes that follow the topic
    /// ([`Message::StreamReset`]). Returns the position of the stream, which is the present one if
    /// the condition does not hold. There is no order between a reset and appends under way.
    ///
    /// # Errors
    ///
    /// Returns [`ReadError`] if the request was not accepted, at once or with the reply. After
    /// [`ReadError::Lost`] and [`ReadError::TimedOut`] the stream may have been started.
    pub fn reset_stream(&self, reset: ResetStream) -> Result<StoreReply<StorePosition>, ReadError> {
        let topic = reset.topic.borrow();
        let mut envelope = self.0.envelope(Message::StreamReset { epoch: 0, time: 0, topic });
        crate::envelope::set_sequence(&mut envelope, self.0.queue.next_sequence());
        let stamp = crate::envelope::stamp_offset(self.0.node.len());
        self.request_store(1, false, |reply| Request::Reset { reset, envelope, stamp, reply })
    }

    fn request_store<T>(
        &self,
        cost: usize,
        follows: bool,
        make: impl FnOnce(oneshot::Sender<Result<T, ReadError>>) -> Request,
    ) -> Result<StoreReply<T>, ReadError> {
        let (sender, receiver) = oneshot::channel();
        let barrier = if follows { self.0.interests.request_confirmation() } else { 0 };
        self.0.requests_to_store.push(make(sender), cost, barrier)?;
        Ok(StoreReply(receiver))
    }
}

fn check_count(count: usize, max: usize) -> Result<(), ReadError> {
    if count > max { Err(ReadError::TooManyTopics(count)) } else { Ok(()) }
}
