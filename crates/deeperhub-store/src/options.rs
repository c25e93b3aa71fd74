//! Settings of a store.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::Progress;

/// The time at which appended messages are written to the disk for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncPolicy {
    /// At most this long after the append, and at most a day. A crash loses what was appended
    /// since.
    Interval(Duration),
    /// As soon as possible. Messages that arrive during a sync share the next one.
    Always,
}

/// Settings of a [`Store`](crate::Store).
///
/// ```
/// use deeperhub_store::{Options, SyncPolicy};
///
/// let mut options = Options::default();
/// options.sync = SyncPolicy::Always;
/// options.max_disk_bytes = Some(10 << 30);
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct Options {
    /// The time at which messages are synced. 100 ms after the append by default.
    pub sync: SyncPolicy,
    /// Bytes that the folder may have. Over it, the oldest segment is dropped, but never the
    /// newest. `None`, the default, is no limit.
    pub max_disk_bytes: Option<u64>,
    /// Bytes of appended messages that are not synced yet, 41 more for each message. Appends over
    /// it get [`AppendError::QueueFull`](crate::AppendError::QueueFull). 32 MiB by default.
    pub queue_bytes: usize,
    /// Time that one segment covers. Segments are dropped whole. One hour by default.
    pub bucket: Duration,
    /// Bytes after which a new segment starts. 256 MiB by default; an eighth of `max_disk_bytes` if
    /// that is less.
    pub segment_bytes: u64,
    /// Function that the store's thread calls after each sync and each change of its availability.
    /// It must not block.
    pub on_progress: Option<ProgressFn>,
}

/// A function that is told the progress of a store.
pub type ProgressFn = Arc<dyn Fn(&Progress) + Send + Sync>;

impl Options {
    /// Returns the bytes after which a segment ends.
    pub(crate) fn segment_limit(&self) -> u64 {
        let share = self.max_disk_bytes.map_or(u64::MAX, |bytes| bytes / 8);
        // Positions in a segment have 32 bits.
        self.segment_bytes.min(share).clamp(64 << 10, 1 << 30)
    }

    /// Returns the bytes that the queue may hold.
    pub(crate) fn queue_limit(&self) -> usize {
        self.queue_bytes.min(1 << 30)
    }

    /// Returns the time that a segment covers, in milliseconds.
    pub(crate) fn bucket_ms(&self) -> u64 {
        u64::try_from(self.bucket.as_millis()).unwrap_or(u64::MAX).max(1)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sync: SyncPolicy::Interval(Duration::from_millis(100)),
            max_disk_bytes: None,
            queue_bytes: 32 << 20,
            bucket: Duration::from_secs(3600),
            segment_bytes: 256 << 20,
            on_progress: None,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Options")
            .field("sync", &self.sync)
            .field("max_disk_bytes", &self.max_disk_bytes)
            .field("queue_bytes", &self.queue_bytes)
            .field("bucket", &self.bucket)
            .field("segment_bytes", &self.segment_bytes)
            .finish_non_exhaustive()
    }
}
