//! Publishing with deferred wake-ups from threads that are not workers.

use crate::kept::{Keep, Outgoing, TopicView};
use crate::router::{Published, Router, Shared};
use crate::sync::Arc;
use crate::wakeups::{ShardSet, Wakeups};
use deeperhub_types::Topic;
use std::fmt;

/// Publishes to a [`Router`], and wakes each worker once for a burst of messages.
///
/// Use it on a thread that gets many messages at once, for example from other nodes. Call
/// [`flush_wakeups`](Self::flush_wakeups) after the burst, before the thread waits for anything: a
/// worker that sleeps delivers nothing before. A long burst should be flushed in between, so that
/// its first messages do not wait for the last ones. Workers themselves use
/// [`Shard::publish`](crate::Shard::publish).
///
/// Dropping a publisher flushes its deferred wake-ups.
pub struct DeferredPublisher<M, T: Keep = ()> {
    shared: Arc<Shared<M, T>>,
    /// Shards that were asleep when messages were pushed to them.
    deferred_wakeups: ShardSet,
}

impl<M: Send + 'static, T: Keep> Router<M, T> {
    /// Returns a publisher that defers the wake-ups of workers.
    #[must_use]
    pub fn deferred_publisher(&self) -> DeferredPublisher<M, T> {
        let shared = self.shared();
        DeferredPublisher {
            shared: Arc::clone(shared),
            deferred_wakeups: ShardSet::new(shared.inboxes.len()),
        }
    }
}

impl<M, T: Keep> DeferredPublisher<M, T> {
    /// Publishes like [`Router::publish`], but defers wake-ups until
    /// [`flush_wakeups`](Self::flush_wakeups).
    ///
    /// A publish of another thread still wakes the workers at once.
    pub fn publish(
        &mut self,
        topic: &Topic<'_>,
        source: Option<u64>,
        bytes: usize,
        make: impl FnMut() -> M,
    ) -> Published {
        self.shared.publish(topic, source, bytes, make, Wakeups::Deferred(&mut self.deferred_wakeups))
    }

    /// Publishes like [`Router::publish_kept`], but defers wake-ups like
    /// [`publish`](Self::publish).
    pub fn publish_kept<F: FnMut() -> M, R>(
        &mut self,
        topic: &Topic<'_>,
        source: Option<u64>,
        prepare: impl FnOnce(TopicView<'_>, &mut T, &mut T::Stripe) -> (Option<Outgoing<F>>, R),
    ) -> (Published, R) {
        self.shared.publish_kept(topic, source, prepare, Wakeups::Deferred(&mut self.deferred_wakeups))
    }

    /// Wakes each worker whose wake-up was deferred, if the worker still sleeps.
    pub fn flush_wakeups(&mut self) {
        self.shared.wake(&mut self.deferred_wakeups);
    }
}

impl<M, T: Keep> Drop for DeferredPublisher<M, T> {
    fn drop(&mut self) {
        self.flush_wakeups();
    }
}

impl<M, T: Keep> fmt::Debug for DeferredPublisher<M, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DeferredPublisher")
            .field("deferred_wakeups", &self.deferred_wakeups)
            .finish_non_exhaustive()
    }
}
