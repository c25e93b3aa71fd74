//! The backlog: received envelopes that the node has not processed yet.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use tokio::sync::Notify;

use crate::broker::Shared;
use crate::envelope::Received;
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
    pub(super) envelopes: VecDeque<Received>,
    /// Cost of the envelopes.
    bytes: usize,
}

/// Number of envelopes up to which a backlog is short, so that more are read.
const SHORT_LEN: usize = 64;

/// Queue of received envelopes, bounded in bytes. It outlives connections to the broker.
pub(super) struct Backlog {
    pub(super) inner: RefCell<BacklogInner>,
    /// Notified of a push to the empty backlog.
    pushed: Notify,
    /// Notified when the backlog has become short.
    shortened: Notify,
    max_bytes: usize,
}

impl Backlog {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { inner: RefCell::default(), pushed: Notify::new(), shortened: Notify::new(), max_bytes }
    }

    /// Appends an envelope. If there is no room, drops the envelope and returns `false`. An empty
    /// backlog has room for any envelope.
    pub(super) fn push(&self, shared: &Shared, envelope: Received) -> bool {
        let mut inner = self.inner.borrow_mut();
        let bytes = inner.bytes.saturating_add(envelope.len() + ENVELOPE_OVERHEAD_BYTES);
        if inner.bytes > 0 && bytes > self.max_bytes {
            return false;
        }
        // Envelopes share the buffer of the read that they came with. If there may be no room for
        // the others, the rest of the buffer is not kept for one of them.
        let envelope = if bytes > self.max_bytes / 2 { envelope.to_unshared() } else { envelope };
        let was_empty = inner.envelopes.is_empty();
        inner.bytes = bytes;
        inner.envelopes.push_back(envelope);
        shared.backlog_bytes.store(bytes, Ordering::Relaxed);
        if was_empty {
            self.pushed.notify_one();
        }
        true
    }

    /// Waits until the backlog has an envelope.
    pub(super) async fn wait_for_push(&self) {
        while self.inner.borrow().envelopes.is_empty() {
            self.pushed.notified().await;
        }
    }

    /// Removes and returns the oldest envelope.
    pub(super) fn pop(&self, shared: &Shared) -> Option<Received> {
        let mut inner = self.inner.borrow_mut();
        let envelope = inner.envelopes.pop_front()?;
        inner.bytes -= envelope.len() + ENVELOPE_OVERHEAD_BYTES;
        shared.backlog_bytes.store(inner.bytes, Ordering::Relaxed);
        if inner.envelopes.len() == SHORT_LEN {
            self.shortened.notify_one();
        }
        if inner.envelopes.is_empty() && inner.envelopes.capacity() > MAX_KEPT_CAPACITY {
            inner.envelopes = VecDeque::new();
        }
        Some(envelope)
    }

    pub(super) fn is_short(&self) -> bool {
        self.inner.borrow().envelopes.len() <= SHORT_LEN
    }

    /// Waits until the backlog is short.
    pub(super) async fn wait_until_short(&self) {
        while !self.is_short() {
            self.shortened.notified().await;
        }
    }
}
