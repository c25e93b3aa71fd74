//! The receiving side of replays.

use std::sync::Arc;
use std::time::SystemTime;

use deeperhub_events::{Event, EventDetails, EventKind};
use deeperhub_listener::{ConnectionKey, Connections};
use deeperhub_protocol::frame::Frame;
use deeperhub_protocol::{ClientId, CloseReason};

use crate::hub::Hub;
use crate::metrics::SentType;
use crate::session::Session;

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

/// The connections of a worker.
#[derive(Debug)]
pub(crate) struct ConnectionOutlet<'a, 'c> {
    pub(crate) connections: &'a mut Connections<'c, Session>,
    pub(crate) hub: &'a Hub,
}

impl Outlet for ConnectionOutlet<'_, '_> {
    fn client_id(&mut self, key: ConnectionKey) -> Option<ClientId> {
        Some(self.connections.session(key)?.client_id.clone())
    }

    fn queued_bytes(&self, key: ConnectionKey) -> Option<usize> {
        self.connections.queued_bytes(key)
    }

    fn max_queue_bytes(&self) -> usize {
        self.connections.max_queue_bytes()
    }

    fn has_budget(&self) -> bool {
        self.connections.send_budget() > 0
    }

    fn notify_when_drained(&mut self, key: ConnectionKey) {
        self.connections.notify_when_drained(key);
    }

    fn sends_single_frames(&self, key: ConnectionKey) -> bool {
        self.connections.is_compressed(key) || self.hub.bus.is_observed(EventKind::MessageSent)
    }

    fn send(&mut self, key: ConnectionKey, topic: &Arc<str>, frame: &Frame) -> bool {
        let Some(session) = self.connections.send(key, frame) else { return false };
        session.sent += 1;
        if self.hub.bus.is_observed(EventKind::MessageSent) {
            let details = EventDetails::MessageSent {
                message_type: SentType::Message.name(),
                topic: Some(Arc::clone(topic)),
                bytes: frame.len(),
            };
            self.hub.bus.publish(Event::new(SystemTime::now(), session.client_id.clone(), details));
        }
        true
    }

    fn send_encoded(&mut self, key: ConnectionKey, frames: &[u8], count: usize) -> bool {
        let Some(session) = self.connections.send_encoded(key, frames, count) else { return false };
        session.sent += count as u64;
        true
    }

    fn close(&mut self, key: ConnectionKey, reason: CloseReason) {
        self.connections.close(key, reason);
    }
}
