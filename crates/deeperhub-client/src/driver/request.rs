//! Publishes and reads of history before they are sent.

use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::oneshot;

use super::shared::Shared;
use crate::core::{HistoryOptions, PublishOptions};
use crate::{Error, HistoryPage, Order, Published};

pub(super) type BoxFuture<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

/// Returns JSON text.
pub(super) fn to_json<T: Serialize + ?Sized>(value: &T) -> Result<Box<RawValue>, Error> {
    to_raw_value(value).map_err(|error| {
        Error::new(Error::INVALID_MESSAGE, format!("the value cannot be written as JSON: {error}"))
    })
}

/// Waits for an answer of the hub's task.
pub(super) async fn answer_of<T>(receiver: oneshot::Receiver<Result<T, Error>>) -> Result<T, Error> {
    receiver.await.unwrap_or_else(|_| Err(Error::closed("its task has ended")))
}

/// A publish that is not sent yet. Awaiting it returns the server's answer.
#[must_use = "it does nothing until it is awaited"]
pub struct Publish {
    shared: Arc<Shared>,
    topic: String,
    message: Result<Box<RawValue>, Error>,
    options: PublishOptions,
}

impl Publish {
    pub(super) fn new<T: Serialize + ?Sized>(shared: Arc<Shared>, topic: String, message: &T) -> Self {
        Self { shared, topic, message: to_json(message), options: PublishOptions::default() }
    }

    /// Keeps the message from this client's own subscriptions.
    pub fn exclude_self(mut self) -> Self {
        self.options.exclude_self = true;
        self
    }

    /// With `false`, does not wait for the answer to the publish before it on the same topic, so
    /// messages may change places if the server refuses one for a while.
    pub fn ordered(mut self, ordered: bool) -> Self {
        self.options.ordered = ordered;
        self
    }
}

impl IntoFuture for Publish {
    type Output = Result<Published, Error>;
    type IntoFuture = BoxFuture<Published>;

    /// Puts the message into the queue at once. The future waits for the answer, and dropping it
    /// does not take the message back.
    fn into_future(self) -> Self::IntoFuture {
        let receiver = self.message.and_then(|message| {
            self.shared.call_and_send(|inner, now| {
                let id = inner.core.publish(&self.topic, &message, &self.options, now)?;
                let (sender, receiver) = oneshot::channel();
                inner.published.insert(id, sender);
                Ok(receiver)
            })
        });
        Box::pin(async move { answer_of(receiver?).await })
    }
}

/// A read of history that is not sent yet. Awaiting it returns the messages.
#[must_use = "it does nothing until it is awaited"]
pub struct HistoryRequest {
    shared: Arc<Shared>,
    topic: String,
    options: HistoryOptions,
}

impl HistoryRequest {
    pub(super) fn new(shared: Arc<Shared>, topic: String) -> Self {
        Self { shared, topic, options: HistoryOptions::default() }
    }

    /// Sets the offset of the first message. A negative number counts from the end: -1 is the
    /// newest message.
    pub fn from(mut self, from: i64) -> Self {
        self.options.from = Some(from);
        self
    }

    /// Sets the number of messages (100).
    pub fn limit(mut self, limit: u32) -> Self {
        self.options.limit = Some(limit);
        self
    }

    /// Sets the order of the messages.
    pub fn order(mut self, order: Order) -> Self {
        self.options.order = Some(order);
        self
    }
}

impl IntoFuture for HistoryRequest {
    type Output = Result<HistoryPage, Error>;
    type IntoFuture = BoxFuture<HistoryPage>;

    fn into_future(self) -> Self::IntoFuture {
        let receiver = self.shared.call_and_send(|inner, now| {
            let id = inner.core.history(&self.topic, &self.options, now)?;
            let (sender, receiver) = oneshot::channel();
            inner.histories.insert(id, sender);
            Ok(receiver)
        });
        Box::pin(async move { answer_of(receiver?).await })
    }
}
