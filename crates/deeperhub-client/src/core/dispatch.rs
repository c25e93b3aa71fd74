//! Messages of the server, one after the other.

use super::wire::{Authenticated, Delivery, Envelope, ErrorData, Goodbye, SubscribedList, Welcome};
use super::{Core, Pending, RequestId};

impl Core {
    /// Takes a text message. Messages and keys that are not known are ignored.
    pub(super) fn on_text(&mut self, text: &str) {
        self.connection.life.on_activity(self.now);
        let Ok(message) = serde_json::from_str::<Envelope<'_>>(text) else { return };
        match &*message.kind {
            "welcome" => {
                if let Some(welcome) = message.data::<Welcome<'_>>() {
                    self.on_welcome(&welcome);
                }
            }
            "goodbye" => {
                if let Some(goodbye) = message.data::<Goodbye>() {
                    self.on_goodbye(goodbye);
                }
            }
            _ if self.is_open() => self.on_message(&message, text.len()),
            _ => {}
        }
    }

    fn on_message(&mut self, message: &Envelope<'_>, bytes: usize) {
        let id = message.id();
        match (&*message.kind, id) {
            (kind @ ("message" | "gap" | "position"), _) => {
                if let Some(data) = message.data::<Delivery<'_>>() {
                    self.on_delivery(kind, &data, bytes);
                }
            }
            ("published", Some(id)) => {
                if let Some(data) = message.data::<Delivery<'_>>() {
                    self.on_published(RequestId(id), &data);
                }
            }
            ("subscribed", Some(id)) => self.on_subscribed_message(id, message),
            ("unsubscribed", _) if !message.has_id() => {
                if let Some(data) = message.data::<Delivery<'_>>() {
                    self.on_unsubscribed(&data.topic);
                }
            }
            ("history", Some(id)) => {
                let Some(data) = message.data::<Delivery<'_>>() else { return };
                match self.pending.remove(&id) {
                    Some(Pending::Join(handle)) => self.on_joined(id, handle, Ok(&data)),
                    _ => self.on_history(RequestId(id), &data),
                }
            }
            ("echo", Some(id)) => {
                if let Some(data) = message.raw_data() {
                    self.on_echo(RequestId(id), data);
                }
            }
            ("authenticated", Some(id)) => {
                if matches!(self.pending.remove(&id), Some(Pending::Authenticate)) {
                    let expires_at = message.data::<Authenticated>().and_then(|data| data.expires_at);
                    self.on_authenticated(Ok(expires_at));
                }
            }
            ("error", _) => self.on_error(id, message),
            _ => {}
        }
    }

    fn on_subscribed_message(&mut self, id: u64, message: &Envelope<'_>) {
        if !matches!(self.pending.get(&id), Some(Pending::Subscribe(_))) {
            return;
        }
        self.pending.remove(&id);
        if let Some(list) = message.data::<SubscribedList<'_>>() {
            for entry in &list.topics {
                self.on_subscribed(id, entry);
            }
        } else if let Some(entry) = message.data::<Delivery<'_>>() {
            self.on_subscribed(id, &entry);
        }
    }

    fn on_error(&mut self, id: Option<u64>, message: &Envelope<'_>) {
        let Some(error) = message.data::<ErrorData<'_>>().map(|data| data.to_error()) else { return };
        let Some(id) = id else {
            self.report(error);
            return;
        };
        match self.pending.remove(&id) {
            Some(Pending::Subscribe(numbers)) => self.on_subscribe_error(id, &numbers, &error),
            Some(Pending::Join(handle)) => self.on_joined(id, handle, Err(error)),
            Some(Pending::Authenticate) => self.on_authenticated(Err(error)),
            None if self.publishes.contains(RequestId(id)) => self.on_publish_error(RequestId(id), error),
            None => {
                self.on_late_answer(RequestId(id), None);
                self.finish_request(RequestId(id), error);
            }
        }
    }
}
