//! The receiving side of replays.

use std::sync::Arc;

use deeperhub_listener::ConnectionKey;
use deeperhub_protocol::frame::Frame;
use deeperhub_protocol::{ClientId, CloseReason};

/// Connections that replayed messages are sent to: those of a worker, or a model of them.
pub(crate) trait Outlet {
    /// Returns the client of an open connection.
    fn client_id(&mut self, key: ConnectionKey) -> Option<ClientId>;

    /// Returns the bytes in the queue of an open connection.
    fn queued_bytes(&self, key: ConnectionKey) -> Option<usize>;

    /// Returns the maximum bytes in a connection's queue.
    fn max_queue_bytes(&self) -> usize;

    /// Returns `false` if no more should be sent in this round.
    fn has_budget(&self) -> bool;

    /// Asks for a call of [`Replays::on_drained`](super::Replays::on_drained).
    fn notify_when_drained(&mut self, key: ConnectionKey);

    /// Returns `true` if frames must be sent one by one.
    fn sends_single_frames(&self, key: ConnectionKey) -> bool;

    /// Sends a frame with a message or a gap of a topic. Returns `false` if the connection is closed.
    fn send(&mut self, key: ConnectionKey, topic: &Arc<str>, frame: &Frame) -> bool;

    /// Sends frames that stand one after the other. Returns `false` if the connection is closed.
    fn send_encoded(&mut self, key: ConnectionKey, frames: &[u8], count: usize) -> bool;

    /// Closes a connection after what is queued for it.
    fn close(&mut self, key: ConnectionKey, reason: CloseReason);
}
