//! The interface to the node: what the driver calls.

use std::pin::Pin;

#[cfg(doc)]
use crate::broker::Broker;
use crate::envelope::Envelope;
use crate::store::{AppendError, AppendNumber, Appended};

/// Future that prepares and sends an answer. It runs concurrently with later messages.
pub type PendingAnswer = Pin<Box<dyn Future<Output = ()>>>;

/// Handles messages of other nodes.
pub trait MessageHandler: Send + 'static {
    /// Handles one message. The driver calls this once for each message, in order. Of the node's
    /// own messages, it passes only probes and those that the store appended.
    ///
    /// Messages of the store ([`Message::Stored`](crate::Message::Stored),
    /// [`Message::StreamReset`](crate::Message::StreamReset)) may come more than once, because
    /// several of the node's subscriptions match them. Their positions tell.
    ///
    /// While this future waits, for example until the node's threads accept the message, later
    /// messages wait in the backlog. A returned [`PendingAnswer`] runs concurrently with later
    /// messages.
    fn handle(&self, envelope: Envelope<'_>) -> impl Future<Output = Option<PendingAnswer>>;

    /// Completes what [`handle`](Self::handle) deferred, for example wake-ups of other threads.
    ///
    /// The driver calls this method after each burst of messages, and before it waits for anything,
    /// also within `handle`. A burst has at most 64 messages, and ends early with a message at which
    /// it has 64 KiB, so no message waits for an endless stream of later ones.
    fn flush(&self) {}

    /// Handles the outcome of an append ([`Broker::append`]), on the driver's thread. Must not
    /// block. The message itself may reach [`handle`](Self::handle) before its outcome, after it,
    /// or never.
    fn on_appended(&self, number: AppendNumber, outcome: Result<Appended, AppendError>) {
        let _ = (number, outcome);
    }

    /// Handles the loss of a connection with which the node had joined. Later messages are of the next
    /// connection, or of the backlog.
    fn on_disconnected(&self) {}

    /// Returns the number of the node's open connections.
    fn connections(&self) -> u64;
}
