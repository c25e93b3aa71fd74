//! The connections of a worker, as receivers of live deliveries and of replays.

use std::sync::Arc;
use std::time::SystemTime;

use deeperhub_events::{Event, EventDetails, EventKind};
use deeperhub_listener::{ConnectionKey, Connections, Multicast, QueueFull};
use deeperhub_protocol::frame::Frame;
use deeperhub_protocol::{ClientId, CloseReason};

use super::refusals::Receivers;
use crate::hub::Hub;
use crate::metrics::SentType;
use crate::replay::Outlet;
use crate::session::Session;

impl Receivers for Connections<'_, Session> {
    type Session = Session;

    fn is_open(&mut self, key: ConnectionKey) -> bool {
        self.session(key).is_some()
    }

    #[inline]
    fn send_multicast(&mut self, key: ConnectionKey, multicast: &Multicast) -> Option<&mut Session> {
        Connections::send_multicast(self, key, multicast)
    }

    #[inline]
    fn try_send_multicast(
        &mut self,
        key: ConnectionKey,
        multicast: &Multicast,
    ) -> Result<Option<&mut Session>, QueueFull> {
        Connections::try_send_multicast(self, key, multicast)
    }

    fn send(&mut self, key: ConnectionKey, frame: &Frame) -> bool {
        let Some(session) = Connections::send(self, key, frame) else { return false };
        session.sent += 1;
        true
    }
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
