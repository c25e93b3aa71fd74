//! Publishing, echoes and reads of history.

use std::sync::Arc;
use std::time::Duration;

use serde_json::value::RawValue;

use super::request::Kind;
use super::wire::{self, Delivery};
use super::{Action, Core, RequestId};
use crate::{Error, HistoryPage, Message, Order, Position, Published};

/// Bytes of a kept message beside its payload, about.
const MESSAGE_BYTES: usize = 150;

/// The settings of a publish.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct PublishOptions {
    /// The client itself does not get the message.
    pub exclude_self: bool,
    /// The message is sent only when the one before it on the same topic was answered.
    pub ordered: bool,
}

impl Default for PublishOptions {
    fn default() -> Self {
        Self { exclude_self: false, ordered: true }
    }
}

/// The settings of a read of history. Fields that are `None` have the server's defaults.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct HistoryOptions {
    /// The first offset; a negative number counts from the end.
    pub from: Option<i64>,
    /// Number of messages.
    pub limit: Option<u32>,
    /// The order of the messages.
    pub order: Option<Order>,
}

impl Core {
    /// Publishes a message. The result is an [`Action::Published`].
    ///
    /// # Errors
    /// Fails at once if the hub is closed, if too many bytes wait, or if the message is too large.
    pub fn publish(
        &mut self,
        topic: &str,
        message: &RawValue,
        options: &PublishOptions,
        now: Duration,
    ) -> Result<RequestId, Error> {
        self.now = self.now.max(now);
        let id = self.next_id();
        let once = format!("{}-{id:x}", self.once);
        let data = wire::PublishData { topic, message, exclude_self: options.exclude_self, once: &once };
        let text = wire::request("publish", id, &data);
        self.check(&text)?;
        if !self.publishes.has_room(text.len(), self.settings.max_pending_bytes) {
            return Err(self.queue_full());
        }
        let id = RequestId(id);
        self.publishes.add(id, topic.into(), text, options.exclude_self, options.ordered);
        Ok(id)
    }

    /// Sends data that the server sends back. The result is an [`Action::Echoed`].
    ///
    /// # Errors
    /// Fails at once for the same reasons as [`Self::publish`].
    pub fn echo(&mut self, data: &RawValue, now: Duration) -> Result<RequestId, Error> {
        self.request(Kind::Echo, now, |id| wire::request("echo", id, data))
    }

    /// Reads kept messages. The result is an [`Action::History`].
    ///
    /// # Errors
    /// Fails at once for the same reasons as [`Self::publish`].
    pub fn history(
        &mut self,
        topic: &str,
        options: &HistoryOptions,
        now: Duration,
    ) -> Result<RequestId, Error> {
        let order = options.order.map(|order| match order {
            Order::Ascending => "asc",
            Order::Descending => "desc",
        });
        let data = wire::HistoryData { topic, from: options.from, limit: options.limit, order };
        self.request(Kind::History, now, |id| wire::request("history", id, &data))
    }

    fn request(
        &mut self,
        kind: Kind,
        now: Duration,
        text: impl FnOnce(u64) -> String,
    ) -> Result<RequestId, Error> {
        self.now = self.now.max(now);
        let id = self.next_id();
        let text = text(id);
        self.check(&text)?;
        if !self.requests.has_room(text.len(), self.settings.max_pending_bytes) {
            return Err(self.queue_full());
        }
        self.requests.add(RequestId(id), kind, text, self.now + self.settings.request_timeout);
        Ok(RequestId(id))
    }

    fn check(&self, text: &str) -> Result<(), Error> {
        if self.is_closed() {
            return Err(Error::closed("nothing more is sent"));
        }
        match self.connection.max_message_bytes {
            Some(max) if text.len() > max => Err(too_large(max)),
            _ => Ok(()),
        }
    }

    fn queue_full(&self) -> Error {
        let max = self.settings.max_pending_bytes;
        Error::new(Error::QUEUE_FULL, format!("over {max} bytes would wait to be sent; publish again later"))
    }

    /// Fails what waits and is longer than the server takes.
    pub(super) fn fail_too_large(&mut self, max: usize) {
        for id in self.publishes.too_large(max) {
            self.finish_publish(id, Err(too_large(max)));
        }
        for id in self.requests.too_large(max) {
            self.finish_request(id, too_large(max));
        }
    }

    /// Sends publishes whose turn it is.
    pub(super) fn send_publishes(&mut self) {
        while let Some(text) = self.publishes.next(self.now, self.settings.publish_timeout) {
            self.actions.push_back(Action::Send(text.to_owned()));
        }
    }

    /// Takes a `published`.
    pub(super) fn on_published(&mut self, id: RequestId, data: &Delivery<'_>) {
        let position = data.position(None);
        if !self.publishes.contains(id) {
            self.on_late_answer(id, position.as_ref());
            return;
        }
        let topic: Arc<str> = data.topic.as_ref().into();
        let subscribers = data.subscribers.unwrap_or(0);
        self.finish_publish(id, Ok(Published { topic, subscribers, position }));
    }

    /// Takes an error that answers a publish.
    pub(super) fn on_publish_error(&mut self, id: RequestId, error: Error) {
        let Some(publish) = self.publishes.get_mut(id) else { return };
        if !error.is_temporary() {
            self.finish_publish(id, Err(error));
            return;
        }
        let delay =
            error.retry_after.unwrap_or_else(|| publish.backoff.next_delay(&self.settings, &mut self.rng));
        let at = self.now + delay;
        self.publishes.retry(id, at);
        if error.code == "rate_limited" {
            self.publishes.hold_until(at);
        }
    }

    /// Takes an answer to a publish that was not answered in time. Its message fills its place.
    pub(super) fn on_late_answer(&mut self, id: RequestId, position: Option<&Position>) {
        if let Some(topic) = self.publishes.take_late(id) {
            self.on_own_answered(&topic, position);
        }
    }

    pub(super) fn finish_publish(&mut self, id: RequestId, result: Result<Published, Error>) {
        let Some(publish) = self.publishes.remove(id) else { return };
        if publish.exclude_self {
            let position = result.as_ref().ok().and_then(|published| published.position.as_ref());
            self.on_own_answered(&publish.topic, position);
        }
        self.actions.push_back(Action::Published(id, result));
    }

    pub(super) fn finish_request(&mut self, id: RequestId, error: Error) {
        match self.requests.remove(id) {
            Some(Kind::Echo) => self.actions.push_back(Action::Echoed(id, Err(error))),
            Some(Kind::History) => self.actions.push_back(Action::History(id, Err(error))),
            None => {}
        }
    }

    pub(super) fn on_echo(&mut self, id: RequestId, data: &RawValue) {
        if self.requests.kind(id) == Some(Kind::Echo) {
            self.requests.remove(id);
            self.actions.push_back(Action::Echoed(id, Ok(data.to_owned())));
        }
    }

    pub(super) fn on_history(&mut self, id: RequestId, data: &Delivery<'_>) {
        if self.requests.kind(id) == Some(Kind::History) {
            self.requests.remove(id);
            self.actions.push_back(Action::History(id, Ok(page_of(data))));
        }
    }
}

/// Returns the kept messages in a `history`.
pub(super) fn page_of(data: &Delivery<'_>) -> HistoryPage {
    let topic: Arc<str> = data.topic.as_ref().into();
    let position = data.position(None);
    let messages = data.messages.iter().flatten();
    let messages = messages.filter_map(|message| {
        let bytes = message.message.map_or(0, |payload| payload.get().len()) + MESSAGE_BYTES;
        message.to_message(&topic, position.as_ref(), bytes)
    });
    let messages: Vec<Message> = messages.collect();
    HistoryPage { topic, position, messages, next: data.next }
}

fn too_large(max: usize) -> Error {
    Error::new(Error::MESSAGE_TOO_LARGE, format!("the server takes at most {max} bytes; shorten the message"))
}
