//! The bounded queue of one observer.

use crate::bus::Config;
use crate::{Event, EventFilter};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// Item of an [`EventStream`](crate::EventStream).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// An event, shared with the other observers.
    Event(Arc<Event>),
    /// Number of events missing at this position, because the observer was too slow. Only events
    /// that match the filter count.
    Lost(u64),
}

/// A bounded queue with many writers and one reader.
#[derive(Debug)]
pub(crate) struct ObserverQueue {
    filter: EventFilter,
    max_events: usize,
    max_bytes: usize,
    state: Mutex<QueueState>,
}

#[derive(Debug, Default)]
struct QueueState {
    /// Two [`Received::Lost`] are never adjacent, so their number is bounded by that of the events.
    items: VecDeque<Received>,
    events: usize,
    bytes: usize,
    closed: bool,
    waker: Option<Waker>,
}

/// Result of a push: whether the event was lost, and the waker to call.
pub(crate) struct PushOutcome {
    pub(crate) lost: bool,
    pub(crate) waker: Option<Waker>,
}

impl ObserverQueue {
    pub(crate) fn new(filter: EventFilter, config: &Config) -> Self {
        let (max_events, max_bytes) = (config.max_queue_events, config.max_queue_bytes);
        Self { filter, max_events, max_bytes, state: Mutex::default() }
    }

    pub(crate) fn filter(&self) -> EventFilter {
        self.filter
    }

    /// Appends an event of `size` bytes, or counts it as lost. Never waits for the reader. The
    /// caller calls the waker after it has released its locks.
    pub(crate) fn push(&self, event: &Arc<Event>, size: usize) -> PushOutcome {
        let mut guard = self.lock();
        let state = &mut *guard;
        let bytes = state.bytes.saturating_add(size);
        let lost = state.events >= self.max_events || bytes > self.max_bytes;
        if !lost {
            state.items.push_back(Received::Event(Arc::clone(event)));
            state.events += 1;
            state.bytes = bytes;
        } else if let Some(Received::Lost(count)) = state.items.back_mut() {
            *count += 1;
        } else {
            state.items.push_back(Received::Lost(1));
        }
        PushOutcome { lost, waker: state.waker.take() }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    pub(crate) fn try_pop(&self) -> Option<Received> {
        self.lock().pop()
    }

    pub(crate) fn poll_pop(&self, cx: &mut Context<'_>) -> Poll<Option<Received>> {
        let mut state = self.lock();
        if let Some(received) = state.pop() {
            return Poll::Ready(Some(received));
        }
        if state.closed {
            return Poll::Ready(None);
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Ends the queue after the items in it.
    pub(crate) fn close(&self) -> Option<Waker> {
        let mut state = self.lock();
        state.closed = true;
        state.waker.take()
    }

    /// Locks the state, even if poisoned: every change above is complete before anything can panic.
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueState {
    fn pop(&mut self) -> Option<Received> {
        let received = self.items.pop_front()?;
        if let Received::Event(event) = &received {
            self.events -= 1;
            self.bytes -= event.memory_bytes();
        }
        Some(received)
    }
}
