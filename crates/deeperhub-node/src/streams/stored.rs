//! Values that go to and from the store, with and without the feature `disk`.

use std::sync::Arc;

use deeperhub_cluster::AppendNumber;
use deeperhub_listener::ConnectionKey;
use deeperhub_protocol::frame::KeptFrame;
use deeperhub_protocol::message::{EncodedDelivery, HistoryOrder};
use deeperhub_protocol::{Epoch, Position, RawJson};
use deeperhub_router::InboxPosition;

use super::cluster_store::{AppendOutcome, TopicMirror};
use crate::connection_id::ConnectionId;

/// Number of a stream in the store.
#[cfg(feature = "disk")]
pub(crate) type DiskStream = deeperhub_store::StreamId;

/// Place of a message among all messages that were queued for the disk.
#[cfg(feature = "disk")]
pub(crate) type Ticket = deeperhub_store::Ticket;

/// Number of a stream in the store, of which there is none.
#[cfg(not(feature = "disk"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskStream {}

/// Place of a message in the store, of which there is none.
#[cfg(not(feature = "disk"))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ticket {}

/// Name of a stream in the table of its stripe.
#[derive(Debug)]
pub(crate) struct StreamName {
    pub(crate) topic: Arc<str>,
    /// The stream on the disk. `None` without a store, or until the store takes it.
    pub(crate) disk: Option<DiskStream>,
    /// The mirror of the stream, if the cluster keeps it.
    pub(crate) mirror: Option<Box<TopicMirror>>,
}

/// Error of a store that takes nothing now, because its queue is full, the disk is full, or it is
/// closed. Nothing was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StoreRefused;

/// Error of a read: the messages cannot be read, or too many reads wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReadFailed;

/// State of a message on its way to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StoreState {
    /// It is on the disk for good.
    Durable,
    Pending,
    /// The disk does not take it. It may get there later.
    Failed,
}

/// Messages that are to be read.
#[derive(Debug, Clone)]
pub(crate) struct ReadRequest {
    pub(crate) stream: DiskStream,
    pub(crate) topic: Arc<str>,
    /// Epoch that the messages get.
    pub(crate) epoch: Epoch,
    pub(crate) from: u64,
    pub(crate) order: HistoryOrder,
    pub(crate) limit: usize,
    /// Maximum bytes of all frames. The first message is read whatever its length.
    pub(crate) max_bytes: usize,
}

/// Purpose of a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadPurpose {
    /// Someone asked for the messages, and can ask again. Such a read waits for a limited time.
    Answer,
    /// A subscriber is behind, and loses the messages if the read fails. Such a read waits as long
    /// as the disk answers others.
    Replay,
}

/// Messages with their offsets, in the order of the request.
pub(crate) type ReadResult = Result<Vec<(u64, KeptFrame)>, ReadFailed>;

/// Messages of a topic's history.
#[derive(Debug, Clone)]
pub(crate) struct HistoryPage {
    /// Position of the newest message; `None` if the topic has no history.
    pub(crate) position: Option<Position>,
    pub(crate) frames: Vec<KeptFrame>,
    /// Offset with which to continue; `None` if there are no more messages.
    pub(crate) next: Option<u64>,
}

impl HistoryPage {
    /// Returns the messages as a reply has them: the `data` of each delivery.
    pub(crate) fn messages(&self) -> Vec<RawJson<'_>> {
        let frames = self.frames.iter();
        frames.filter_map(|frame| Some(EncodedDelivery::parse(frame.as_bytes())?.data())).collect()
    }
}

/// Message of the store to a worker.
#[derive(Debug)]
pub(crate) enum StoreNotice {
    /// Messages became durable, or the store became unavailable.
    Progress,
    /// Messages of a subscriber that is behind.
    Replay { key: ConnectionKey, read: u64, result: ReadResult },
    /// Messages for a client that asked for them.
    History(Box<HistoryNotice>),
    /// The cluster's store was read for a topic, or could not be read.
    TopicRead { topic: Arc<str> },
    /// The cluster's store has appended a message, or refused it.
    Appended { number: AppendNumber, outcome: AppendOutcome },
}

/// Answer to a client that asked for stored messages.
#[derive(Debug)]
pub(crate) struct HistoryNotice {
    pub(crate) connection: ConnectionId,
    /// ID of the client's message.
    pub(crate) id: Option<Box<str>>,
    pub(crate) topic: Arc<str>,
    pub(crate) page: Result<HistoryPage, ReadFailed>,
    /// End of the worker's inbox when the page was read.
    pub(crate) after: InboxPosition,
}

/// A page of a history that starts with messages which only the store has.
#[derive(Debug)]
pub(crate) struct StoredPage {
    pub(crate) request: ReadRequest,
    pub(crate) position: Position,
    /// Oldest offset within the bounds of the rule.
    pub(crate) oldest: u64,
    /// Oldest offset in memory.
    pub(crate) oldest_in_memory: u64,
}

impl StoredPage {
    /// Returns the page with the messages that were read.
    pub(crate) fn finish(self, frames: Vec<(u64, KeptFrame)>) -> HistoryPage {
        let Self { request, position, oldest, oldest_in_memory } = self;
        let last = frames.iter().map(|(offset, _)| *offset).take_while(|offset| *offset >= oldest).last();
        let next = match (request.order, last) {
            (HistoryOrder::Ascending, Some(last)) => Some(last + 1).filter(|next| *next <= position.offset),
            (HistoryOrder::Descending, Some(last)) => (last > oldest).then(|| last - 1),
            // The store has dropped the messages meanwhile.
            (HistoryOrder::Ascending, None) => Some(oldest_in_memory).filter(|next| *next <= position.offset),
            (HistoryOrder::Descending, None) => None,
        };
        let frames = frames.into_iter().take_while(|(offset, _)| *offset >= oldest);
        HistoryPage { position: Some(position), frames: frames.map(|(_, frame)| frame).collect(), next }
    }
}
