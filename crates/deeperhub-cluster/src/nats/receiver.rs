//! Messages of the subscriptions, in the order of their senders and streams.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{SelectAll, TakeUntil};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::unconstrained;

use super::jetstream::Republished;
use crate::broker::Shared;
use crate::envelope::sort_key;
use crate::link::LinkError;

/// Start or end of a subscription, sent to the receiver.
pub(super) enum Change {
    Subscribed(Arc<str>, async_nats::Subscriber),
    Unsubscribed(Arc<str>),
}

pub(super) type Stream = TakeUntil<async_nats::Subscriber, oneshot::Receiver<()>>;

/// Receiving side, which restores the order of messages across subscriptions.
///
/// The library has a queue for each subscription and so loses the server's order. The receiver
/// empties all queues at one moment. So each message that the server sent before a message of this
/// batch is in this batch or in an earlier one. Sorted by sequence, the messages of each node are
/// in the server's order.
pub(crate) struct Receiver {
    /// Pending changes, no more than the node has subscriptions.
    pub(super) changes: mpsc::UnboundedReceiver<Change>,
    pub(super) running: SelectAll<Stream>,
    /// Handles of the subscriptions, by name. Dropping a handle ends the subscription.
    pub(super) stops: HashMap<Arc<str>, oneshot::Sender<()>>,
    /// Handles of subscriptions that end after the next emptying of the queues.
    pub(super) ending: Vec<oneshot::Sender<()>>,
    pub(super) shared: Arc<Shared>,
    /// Reason why the connection was lost. `None` while it is open.
    pub(super) lost: watch::Receiver<Option<String>>,
    /// Handles of the subscriptions to the names of this node and of all nodes, which never end.
    pub(super) _permanent: Vec<oneshot::Sender<()>>,
}

impl Receiver {
    pub(crate) async fn next(&mut self, batch: &mut Vec<Bytes>) -> Result<(), LinkError> {
        let mut lost = self.lost.clone();
        let is_open = tokio::select! {
            // Messages that arrived before the loss are taken first.
            biased;
            // All queues must be emptied at one moment. Under tokio's cooperative budget, some
            // queues would seem empty.
            is_open = unconstrained(poll_fn(|cx| self.poll_all(cx, batch))) => is_open,
            _ = lost.wait_for(Option::is_some) => false,
        };
        if is_open {
            return Ok(());
        }
        let lost = self.lost.borrow();
        Err(LinkError::new(lost.as_deref().unwrap_or("the connection was lost")))
    }

    /// Empties all queues into a batch. The task that fills the queues runs on this thread, so they
    /// do not change meanwhile. Returns `false` if all subscriptions have ended, because the
    /// connection was lost.
    fn poll_all(&mut self, cx: &mut Context<'_>, batch: &mut Vec<Bytes>) -> Poll<bool> {
        while let Poll::Ready(Some(change)) = self.changes.poll_recv(cx) {
            match change {
                Change::Subscribed(name, subscriber) => {
                    let (stop, stopped) = oneshot::channel();
                    self.running.push(subscriber.take_until(stopped));
                    self.ending.extend(self.stops.insert(name, stop));
                }
                Change::Unsubscribed(name) => self.ending.extend(self.stops.remove(&name)),
            }
        }
        let (known, prefix) = (&self.shared.jetstream, &*self.shared.config.prefix);
        let mut stored = Vec::new();
        loop {
            match self.running.poll_next_unpin(cx) {
                Poll::Ready(Some(message)) if message.headers.is_some() => {
                    stored.extend(Republished::parse(known, prefix, &message));
                }
                Poll::Ready(Some(message)) => batch.push(message.payload),
                Poll::Ready(None) => return Poll::Ready(false),
                Poll::Pending => break,
            }
        }
        self.ending.clear();
        if batch.is_empty() && stored.is_empty() {
            return Poll::Pending;
        }
        sort_by_origin(batch);
        batch.extend(in_order(stored));
        Poll::Ready(true)
    }
}

/// Sorts the envelopes of each origin into the order in which the origin sent them.
fn sort_by_origin(batch: &mut [Bytes]) {
    batch.sort_by_key(|envelope| sort_key(envelope));
}

/// Returns the messages of streams in the order of their streams. Those that came with several
/// subscriptions are there once.
fn in_order(mut stored: Vec<Republished>) -> impl Iterator<Item = Bytes> {
    stored.sort_by_key(|message| message.key);
    stored.dedup_by(|one, other| one.key == other.key && one.envelope == other.envelope);
    stored.into_iter().map(|message| message.envelope)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{Envelope, Message, Origin, set_sequence};

    #[test]
    fn messages_of_several_queues_are_sorted_by_origin_and_sequence() {
        let envelope = |incarnation, sequence| {
            let origin = Origin { node: "n", incarnation };
            let mut bytes = Envelope { origin, sequence: 0, message: Message::Bye }.write();
            set_sequence(&mut bytes, sequence);
            Bytes::from(bytes)
        };
        let mut batch: Vec<_> = [(2, 4), (1, 3), (2, 5), (1, 1), (2, 4), (1, 1 << 40), (1, 2)]
            .map(|(incarnation, sequence)| envelope(incarnation, sequence))
            .into();
        batch.push(Bytes::from_static(b"short"));
        sort_by_origin(&mut batch);
        let sequences = |incarnation| {
            let all = batch.iter().filter_map(|bytes| Envelope::parse(bytes).ok());
            all.filter(|envelope| envelope.origin.incarnation == incarnation)
                .map(|envelope| envelope.sequence)
                .collect::<Vec<_>>()
        };
        assert_eq!(sequences(1), [1, 2, 3, 1 << 40]);
        assert_eq!(sequences(2), [4, 4, 5]);
        assert_eq!(batch.len(), 8);
    }

    #[test]
    fn messages_of_streams_keep_the_order_of_the_stream() {
        let message = |epoch, sequence: u64| Republished {
            key: (epoch, sequence),
            envelope: Bytes::copy_from_slice(&sequence.to_be_bytes()),
        };
        let stored = [(1, 3), (1, 5), (1, 2), (1, 3), (2, 1), (1, 4)]
            .map(|(epoch, sequence)| message(epoch, sequence));
        let expected = [2, 3, 4, 5, 1].map(|sequence: u64| Bytes::copy_from_slice(&sequence.to_be_bytes()));
        assert_eq!(in_order(stored.into()).collect::<Vec<_>>(), expected);
    }
}
