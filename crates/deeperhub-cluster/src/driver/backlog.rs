//! Received envelopes that wait for the node.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tokio::sync::Notify;

use crate::broker::Shared;
use crate::metrics::Dropped;

/// Largest capacity, in envelopes, that an empty buffer keeps.
pub(super) const MAX_KEPT_CAPACITY: usize = 4096;

/// Cost of an envelope in the backlog besides its bytes.
const ENVELOPE_OVERHEAD_BYTES: usize = 64;

/// Guard that counts an envelope from the backlog as dropped unless it is processed.
pub(super) struct CountDroppedOnDrop<'s>(pub(super) &'s Shared);

impl Drop for CountDroppedOnDrop<'_> {
    fn drop(&mut self) {
        self.0.metrics.dropped(Dropped::SlowNode, 1);
    }
}

/// Received envelopes that wait for the node, bounded by bytes. Outlives connections.
pub(super) struct Backlog {
    pub(super) inner: RefCell<(VecDeque<Bytes>, usize)>,
    pushed: Notify,
    max_bytes: usize,
}

impl Backlog {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { inner: RefCell::default(), pushed: Notify::new(), max_bytes }
    }

    /// False: there is no room, it is dropped.
    pub(super) fn push(&self, shared: &Shared, envelope: Bytes) -> bool {
        let mut inner = self.inner.borrow_mut();
        let bytes = inner.1.saturating_add(envelope.len() + ENVELOPE_OVERHEAD_BYTES);
        if inner.1 > 0 && bytes > self.max_bytes {
            return false;
        }
        inner.1 = bytes;
        inner.0.push_back(envelope);
        shared.backlog_bytes.store(bytes, Ordering::Relaxed);
        self.pushed.notify_one();
        true
    }

    pub(super) async fn next(&self, shared: &Shared) -> Bytes {
        loop {
            let next = {
                let mut inner = self.inner.borrow_mut();
                let next = inner.0.pop_front();
                inner.1 -= next.as_ref().map_or(0, |envelope| envelope.len() + ENVELOPE_OVERHEAD_BYTES);
                if inner.0.is_empty() && inner.0.capacity() > MAX_KEPT_CAPACITY {
                    inner.0 = VecDeque::new();
                }
                shared.backlog_bytes.store(inner.1, Ordering::Relaxed);
                next
            };
            match next {
                Some(envelope) => return envelope,
                None => self.pushed.notified().await,
            }
        }
    }
}
