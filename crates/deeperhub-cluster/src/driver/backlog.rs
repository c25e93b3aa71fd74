//! The backlog: received envelopes that the node has not processed yet.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::broker::Shared;
use crate::metrics::Dropped;

/// Maximum capacity, in envelopes, of an empty buffer; a larger one is freed.
pub(super) const MAX_KEPT_CAPACITY: usize = 4096;

/// Cost of an envelope in the backlog besides its bytes.
const ENVELOPE_OVERHEAD_BYTES: usize = 64;

/// Guard that counts an envelope from the backlog as dropped, unless the guard is forgotten after
/// the envelope was processed.
pub(super) struct CountDroppedOnDrop<'s>(pub(super) &'s Shared);

impl Drop for CountDroppedOnDrop<'_> {
    fn drop(&mut self) {
        self.0.metrics.dropped(Dropped::SlowNode, 1);
    }
}

/// The envelopes of a backlog.
#[derive(Default)]
pub(super) struct BacklogInner {
    pub(super) envelopes: VecDeque<Bytes>,
    /// Cost of the envelopes.
    bytes: usize,
}

/// Queue of received envelopes, bounded in bytes. It outlives connections to the broker.
pub(super) struct Backlog {
    pub(super) inner: RefCell<BacklogInner>,
    pushed: Notify,
    max_bytes: usize,
}

impl Backlog {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { inner: RefCell::default(), pushed: Notify::new(), max_bytes }
    }

    /// Appends an envelope. If there is no room, drops the envelope and returns `false`. An empty
    /// backlog has room for any envelope.
    pub(super) fn push(&self, shared: &Shared, envelope: Bytes) -> bool {
        let mut inner = self.inner.borrow_mut();
        let bytes = inner.bytes.saturating_add(envelope.len() + ENVELOPE_OVERHEAD_BYTES);
        if inner.bytes > 0 && bytes > self.max_bytes {
            return false;
        }
        inner.bytes = bytes;
        inner.envelopes.push_back(envelope);
        shared.backlog_bytes.store(bytes, Ordering::Relaxed);
        self.pushed.notify_one();
        true
    }

    /// Waits for the oldest envelope and removes it.
    pub(super) async fn next(&self, shared: &Shared) -> Bytes {
        loop {
            let next = {
                let mut inner = self.inner.borrow_mut();
                let next = inner.envelopes.pop_front();
                inner.bytes -= next.as_ref().map_or(0, |envelope| envelope.len() + ENVELOPE_OVERHEAD_BYTES);
                if inner.envelopes.is_empty() && inner.envelopes.capacity() > MAX_KEPT_CAPACITY {
                    inner.envelopes = VecDeque::new();
                }
                shared.backlog_bytes.store(inner.bytes, Ordering::Relaxed);
                next
            };
            match next {
                Some(envelope) => return envelope,
                None => self.pushed.notified().await,
            }
        }
    }
}
