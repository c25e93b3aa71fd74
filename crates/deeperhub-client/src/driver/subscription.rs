//! Subscriptions as streams.

use std::future::{IntoFuture, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;
use tokio::sync::oneshot;

use super::shared::Shared;
use crate::core::{HandleId, Next};
use crate::{Error, Event, Position, SubscriptionState};

/// A subscribe that is not sent yet. Awaiting it returns the [`Subscription`] when the server has
/// accepted it.
#[derive(Clone)]
#[must_use = "it does nothing until it is awaited"]
pub struct Subscribe {
    shared: Arc<Shared>,
    topic: String,
    history: u32,
}

impl Subscribe {
    pub(super) fn new(shared: Arc<Shared>, topic: String) -> Self {
        Self { shared, topic, history: 0 }
    }

    /// Asks for the last `messages` kept messages first. 1 is "last value".
    pub fn history(mut self, messages: u32) -> Self {
        self.history = messages;
        self
    }

    /// Subscribes without waiting for the server. The stream tells the states on the way.
    pub fn start(self) -> Subscription {
        let saved =
            self.shared.storage.as_ref().and_then(|storage| storage.get(&self.shared.key(&self.topic)));
        // A text that is no position is as good as none.
        let position: Option<Position> = saved.and_then(|text| serde_json::from_str(&text).ok());
        let (sender, ready) = oneshot::channel();
        let id = self.shared.call(|inner, now| {
            let id = inner.core.subscribe(&self.topic, self.history, position, now);
            inner.ready.insert(id, sender);
            id
        });
        Subscription {
            shared: self.shared,
            id,
            topic: self.topic.into(),
            state: SubscriptionState::Subscribing,
            ready: Some(ready),
        }
    }
}

impl IntoFuture for Subscribe {
    type Output = Result<Subscription, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let mut subscription = self.start();
            subscription.ready().await?;
            Ok(subscription)
        })
    }
}

/// The events of a topic or pattern, as a stream. Dropping it unsubscribes.
///
/// An event counts as processed when the next one is asked for. So a position that is saved in a
/// [`Storage`](crate::Storage) is that of the event before.
#[must_use = "dropping it unsubscribes"]
pub struct Subscription {
    shared: Arc<Shared>,
    id: HandleId,
    topic: Arc<str>,
    state: SubscriptionState,
    ready: Option<oneshot::Receiver<Result<(), Error>>>,
}

impl Subscription {
    /// Returns the topic or pattern.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Returns the state as of the last event that was taken.
    #[must_use]
    pub fn state(&self) -> &SubscriptionState {
        &self.state
    }

    /// Returns the position up to which events were processed, in a topic with history.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.shared.lock().core.processed_position(self.id).cloned()
    }

    /// Waits for the first `subscribed`.
    ///
    /// # Errors
    /// Returns the error that ended the subscription before.
    pub async fn ready(&mut self) -> Result<(), Error> {
        let Some(ready) = &mut self.ready else { return Ok(()) };
        let result = ready.await.unwrap_or_else(|_| Err(Error::closed("its task has ended")));
        self.ready = None;
        result
    }

    /// Returns the next event, or `None` after the end. It can be dropped without losing an event.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|context| self.poll_event(context)).await
    }

    /// Ends the subscription and removes its saved position. The stream ends with the state
    /// [`Ended`](SubscriptionState::Ended).
    pub fn unsubscribe(&mut self) {
        self.shared.call(|inner, now| inner.core.unsubscribe(self.id, now));
    }

    /// Reports that the application failed to process an event: [`Hub::errors`](crate::Hub::errors)
    /// has it as `handler_failed`. The next event follows as usual.
    pub fn report_failure(&self, text: impl std::fmt::Display) {
        let text = format!("an event of {} was not processed: {text}", self.topic);
        self.shared.lock().errors.push(&Error::new(Error::HANDLER_FAILED, text));
    }

    fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let next = self.shared.call(|inner, now| {
            let next = inner.core.take(self.id, now);
            if matches!(next, Next::Empty) {
                inner.wakers.insert(self.id, context.waker().clone());
            }
            next
        });
        match next {
            Next::Event(event) => {
                if let Event::State(state) = &event {
                    self.state = state.clone();
                }
                Poll::Ready(Some(event))
            }
            Next::Empty => Poll::Pending,
            Next::Ended => Poll::Ready(None),
        }
    }
}

impl Stream for Subscription {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.poll_event(context)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.shared.call(|inner, now| {
            inner.wakers.remove(&self.id);
            inner.ready.remove(&self.id);
            inner.core.drop_handle(self.id, now);
        });
    }
}
