//! Streams of what concerns the whole hub.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use futures_core::Stream;

use super::HubState;
use crate::Error;

/// Values that wait in a stream. Then the oldest is dropped.
const MAX_WAITING: usize = 256;

#[derive(Debug)]
struct Queue<T> {
    values: VecDeque<T>,
    waker: Option<Waker>,
    is_ended: bool,
}

/// The streams of one kind.
#[derive(Debug)]
pub(super) struct Listeners<T>(Vec<Weak<Mutex<Queue<T>>>>);

impl<T> Default for Listeners<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Clone> Listeners<T> {
    /// Adds a stream, which starts with `first`.
    pub(super) fn add(&mut self, first: Option<T>, is_ended: bool) -> Listener<T> {
        let queue =
            Arc::new(Mutex::new(Queue { values: first.into_iter().collect(), waker: None, is_ended }));
        self.0.push(Arc::downgrade(&queue));
        Listener(queue)
    }

    /// Appends a value to each stream, and forgets streams that were dropped.
    pub(super) fn push(&mut self, value: &T) {
        self.each(|queue| {
            if queue.values.len() == MAX_WAITING {
                queue.values.pop_front();
            }
            queue.values.push_back(value.clone());
        });
    }

    /// Ends each stream.
    pub(super) fn end(&mut self) {
        self.each(|queue| queue.is_ended = true);
    }

    fn each(&mut self, mut change: impl FnMut(&mut Queue<T>)) {
        self.0.retain(|queue| {
            let Some(queue) = queue.upgrade() else { return false };
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            change(&mut queue);
            if let Some(waker) = queue.waker.take() {
                waker.wake();
            }
            true
        });
    }
}

#[derive(Debug)]
pub(super) struct Listener<T>(Arc<Mutex<Queue<T>>>);

impl<T> Listener<T> {
    fn poll(&self, context: &mut Context<'_>) -> Poll<Option<T>> {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match queue.values.pop_front() {
            Some(value) => Poll::Ready(Some(value)),
            None if queue.is_ended => Poll::Ready(None),
            None => {
                queue.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// The states of a hub, from the current one on. It ends after `Closed`.
#[derive(Debug)]
#[must_use]
pub struct States(pub(super) Listener<HubState>);

impl Stream for States {
    type Item = HubState;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<HubState>> {
        self.0.poll(context)
    }
}

/// Errors of a hub that no call waits for. It ends when the hub is closed.
#[derive(Debug)]
#[must_use]
pub struct Errors(pub(super) Listener<Error>);

impl Stream for Errors {
    type Item = Error;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Error>> {
        self.0.poll(context)
    }
}
