//! Delivers the messages in a worker's inbox to its subscribers.

use super::{Shard, SubscriberKey};
use crate::inbox::Envelope;
use crate::kept::Keep;
use crate::router::InboxPosition;
use deeperhub_types::Topic;
use std::task::{Context, Poll};

/// Decision after a delivery: whether the next delivery follows at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryFlow {
    /// Continue with the next delivery.
    Continue,
    /// Stop delivering. Later calls of [`Shard::poll_deliver`] deliver the rest.
    Pause,
}

impl<M: Send + 'static, T: Keep> Shard<M, T> {
    /// Returns `true` if all messages before an [inbox position](crate::Router::inbox_position) of
    /// this shard have been delivered.
    #[must_use]
    pub fn has_delivered(&self, position: InboxPosition) -> bool {
        let inbox = &self.shared.inboxes[usize::from(self.id.0)];
        self.fanouts.has_finished(position.0) && inbox.first_sequence().is_none_or(|first| first > position.0)
    }

    /// Calls `read` with the messages of a topic that were published and will still be delivered to
    /// a client, in their order, until it returns a value. Tells where the client stands while
    /// messages wait for it.
    ///
    /// The call takes time in proportion to the messages of all topics that wait for the worker.
    /// Messages that are published meanwhile wait, so `read` must be quick, and must not call the
    /// router.
    pub fn find_undelivered<R>(
        &self,
        key: SubscriberKey,
        topic: &Topic<'_>,
        mut read: impl FnMut(&M) -> Option<R>,
    ) -> Option<R> {
        let shared = &*self.shared;
        let hash = shared.hash(topic.as_str());
        // Another topic with the same hash is left to `read`.
        let mut read = |envelope: &Envelope<M>| match envelope.topic == hash {
            true => read(&envelope.message),
            false => None,
        };
        if let Some(found) = self.fanouts.find_undelivered(&self.tables, key, &mut read) {
            return Some(found);
        }
        let inbox = &shared.inboxes[usize::from(self.id.0)];
        inbox.find_map(|envelope| if envelope.is_for(&self.tables, key) { read(envelope) } else { None })
    }

    /// Works like [`poll_deliver`](Self::poll_deliver), but takes only messages before a position
    /// from the inbox. Returns `false` if `deliver` returned [`DeliveryFlow::Pause`] before all of
    /// them were delivered.
    pub fn deliver_until(
        &mut self,
        position: InboxPosition,
        mut deliver: impl FnMut(SubscriberKey, &M) -> DeliveryFlow,
    ) -> bool {
        while !self.has_delivered(position) {
            let shared = &*self.shared;
            let inbox = &shared.inboxes[usize::from(self.id.0)];
            let fanouts = &mut self.fanouts;
            if fanouts.queue.is_empty() && !inbox.take_until(self.generation, &mut fanouts.queue, position.0)
            {
                return true;
            }
            let flow = fanouts.deliver(&self.tables, &mut deliver);
            inbox.finish(self.generation, &mut fanouts.finished, None, shared.soft_limits());
            if flow == DeliveryFlow::Pause {
                return self.has_delivered(position);
            }
        }
        true
    }

    /// Delivers the messages in the inbox: calls `deliver(key, &message)` for each subscriber of
    /// each message, until all are delivered or `deliver` returns [`DeliveryFlow::Pause`].
    ///
    /// The deliveries have the order that the crate guarantees. Each client gets a message at most
    /// once. After a pause, the same client may get a few more messages before the call returns,
    /// but no other client does.
    ///
    /// Returns `Ready` if more messages may remain; the caller should call again soon. Returns
    /// `Pending` if none remain. The waker of `cx` is then called when a message arrives.
    ///
    /// The call begins with [`flush_wakeups`](Self::flush_wakeups).
    pub fn poll_deliver(
        &mut self,
        cx: &mut Context<'_>,
        mut deliver: impl FnMut(SubscriberKey, &M) -> DeliveryFlow,
    ) -> Poll<()> {
        self.flush_wakeups();
        let shared = &*self.shared;
        let inbox = &shared.inboxes[usize::from(self.id.0)];
        let fanouts = &mut self.fanouts;
        inbox.disarm(self.generation);
        if fanouts.queue.is_empty() {
            let waker_if_idle = fanouts.is_empty().then_some(cx.waker());
            if !inbox.take(self.generation, &mut fanouts.queue, waker_if_idle) {
                return Poll::Pending;
            }
        }
        // Deliver only what was taken above: messages pushed meanwhile wait until the worker has
        // written these.
        let _ = fanouts.deliver(&self.tables, &mut deliver);
        let waker_if_idle = fanouts.is_empty().then_some(cx.waker());
        if inbox.finish(self.generation, &mut fanouts.finished, waker_if_idle, shared.soft_limits()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }
}
