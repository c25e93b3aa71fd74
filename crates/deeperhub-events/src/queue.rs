//! An observer's events on their way to it.

use crate::bus::Config;
use crate::{Event, EventFilter};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

/// What an observer gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// An event, shared with the other observers.
    Event(Arc<Event>),
    /// At this place, so many events that the filter lets through are missing, because the observer was too
    /// slow.
    Lost(u64),
}

/// Bounded, many writers, one reader.
#[derive(Debug)]
pub(crate) struct ObserverQueue {
    filter: EventFilter,
    max_events: usize,
    max_bytes: usize,
    state: Mutex<QueueState>,
}

#[derive(Debug, Default)]
struct QueueState {
    /// Never two [`Received::Lost`] beside each other, so their number is bounded by that of the events.
    items: VecDeque<Received>,
    events: usize,
    bytes: usize,
    closed: bool,
    waker: Option<Waker>,
}

/// What became of an event, and who must be told.
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

    /// Appends an event of `size` bytes, or counts it as lost. Never waits for the reader; the waker is the
    /// caller's to wake, once it holds no lock.
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

    /// Ends the queue after what is in it.
    pub(crate) fn close(&self) -> Option<Waker> {
        let mut state = self.lock();
        state.closed = true;
        state.waker.take()
    }

    /// A panic elsewhere leaves the state whole: every change above is complete before anything can fail.
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
