//! Values that callers hand over and get back.

use std::sync::Arc;

use deeperhub_types::Epoch;

/// The number of a stream in its store. It is the same after a restart, and never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub(crate) u64);

/// A message of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<B = Vec<u8>> {
    /// The offset.
    pub offset: u64,
    /// Time of the publish, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// The message, as the caller encodes it.
    pub bytes: B,
}

/// The epoch that a stream had before an unclean stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Predecessor {
    /// The epoch.
    pub epoch: Epoch,
    /// Newest offset of that epoch that the disk has. A client with a higher one has seen messages
    /// that are lost.
    pub newest: u64,
}

/// The place of an append among all appends to a store since it was opened. Tickets rise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub(crate) u64);

/// The state of a store towards appends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Availability {
    /// Appends are taken.
    Available,
    /// The disk does not take what is written, for this reason. The store tries again by itself.
    /// Earlier appends stay queued.
    Unavailable(Arc<str>),
}

/// The progress of appends to the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// All appends up to this one are on the disk for good.
    pub durable: Ticket,
    /// The state towards appends.
    pub availability: Availability,
}

/// The contents of a store, in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Usage {
    /// Streams.
    pub streams: usize,
    /// Segments, the one that is written included.
    pub segments: usize,
    /// Bytes of all segments, without their summaries.
    pub disk_bytes: u64,
    /// Bytes that are queued or not synced, 41 for each message included.
    pub queued_bytes: usize,
    /// Messages that were left out because their stream is unknown or their offset did not rise.
    pub withdrawn: u64,
}
