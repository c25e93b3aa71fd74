//! The bounded queue of one observer.

use crate::bus::Config;
use crate::{Event, EventFilter};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// An item of an [`EventStream`](crate::EventStream).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// An event. All observers share the same allocation.
    Event(Arc<Event>),
    /// A gap: the number of events that were lost at this position, because the queue was full.
    /// Events that the filter excludes do not count.
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
    /// The queued items. Two [`Received::Lost`] are never adjacent, so their number is at most the
    /// number of events plus one.
    items: VecDeque<Received>,
    /// Number of events in `items`.
    events: usize,
    /// Total bytes of the events in `items`.
    bytes: usize,
    closed: bool,
    waker: Option<Waker>,
}

/// The result of a push.
pub(crate) struct PushOutcome {
    /// `true` if the queue was full, so that the event was lost.
    pub(crate) lost: bool,
    /// The waker of an observer that waits for an item. The caller must wake it after it has
    /// released its locks.
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

    /// Appends an event of `size` bytes, or counts the event as lost if the queue is full. Never
    /// waits for the observer.
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

    /// Closes the queue: it ends after the items that are already in it. Returns the waker of an
    /// observer that waits for an item; the caller must wake it.
    pub(crate) fn close(&self) -> Option<Waker> {
        let mut state = self.lock();
        state.closed = true;
        state.waker.take()
    }

    /// Locks the state. Ignores poisoning, because no panic can leave a change incomplete.
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
