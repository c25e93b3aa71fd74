//! The event bus, which delivers events from publishers to observers.

use crate::queue::ObserverQueue;
use crate::{Event, EventFilter, EventKind, Received};
use std::future::poll_fn;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::task::{Context, Poll};

/// Limits of an [`EventBus`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// Maximum number of observers at the same time. Default 64.
    pub max_observers: usize,
    /// Maximum number of events in an observer's queue. Default 4096.
    pub max_queue_events: usize,
    /// Maximum bytes of the events in an observer's queue, payloads included. An event that is
    /// larger is always lost. Default 4 MiB.
    pub max_queue_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_observers: 64, max_queue_events: 4096, max_queue_bytes: 4 * 1024 * 1024 }
    }
}

/// A bus that delivers events from publishers to observers. A publisher never waits for an
/// observer.
///
/// A bus is cheap to clone; clones are the same bus.
#[derive(Debug, Clone)]
pub struct EventBus {
    shared: Arc<BusState>,
}

#[derive(Debug)]
struct BusState {
    config: Config,
    /// The union of the observers' filters, as bits. It is written under the lock of `observers`.
    observed: AtomicU32,
    /// Number of lost events of all observers.
    lost: AtomicU64,
    observers: RwLock<Observers>,
}

#[derive(Debug, Default)]
struct Observers {
    queues: Vec<Arc<ObserverQueue>>,
    closed: bool,
}

impl EventBus {
    /// Creates a bus without observers.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let (observed, lost) = (AtomicU32::new(0), AtomicU64::new(0));
        Self { shared: Arc::new(BusState { config, observed, lost, observers: RwLock::default() }) }
    }

    /// Returns `true` if the filter of an observer contains `kind`. Call this before creating an
    /// event, to avoid events without observers.
    ///
    /// The cost is one relaxed load. If another thread has just added or removed an observer, the
    /// result can be outdated.
    #[must_use]
    #[inline]
    pub fn is_observed(&self, kind: EventKind) -> bool {
        EventFilter::from_bits(self.shared.observed.load(Ordering::Relaxed)).contains(kind)
    }

    /// Queues an event for every observer whose filter contains the event's kind.
    ///
    /// Each observer gets the events of one thread in order. If an observer's queue is full, this
    /// observer loses the event. Does nothing after [`close`](Self::close).
    pub fn publish(&self, event: Event) {
        let kind = event.kind();
        if !self.is_observed(kind) {
            return;
        }
        let size = event.memory_bytes();
        let event = Arc::new(event);
        let (mut lost, mut wakers) = (0, Vec::new());
        for queue in self.shared.read().queues.iter().filter(|queue| queue.filter().contains(kind)) {
            let outcome = queue.push(&event, size);
            lost += u64::from(outcome.lost);
            wakers.extend(outcome.waker);
        }
        if lost > 0 {
            self.shared.lost.fetch_add(lost, Ordering::Relaxed);
        }
        // No lock is held here, because `wake` can run the observer or drop it.
        wakers.into_iter().for_each(|waker| waker.wake());
    }

    /// Adds an observer of the event kinds in `filter`. Dropping the stream removes the observer.
    ///
    /// Returns `None` if the bus already has [`Config::max_observers`]. After
    /// [`close`](Self::close), returns a stream without events that has already ended.
    #[must_use]
    pub fn subscribe(&self, filter: EventFilter) -> Option<EventStream> {
        let queue = Arc::new(ObserverQueue::new(filter, &self.shared.config));
        let mut observers = self.shared.write();
        if observers.closed {
            queue.close();
        } else if observers.queues.len() >= self.shared.config.max_observers {
            return None;
        } else {
            observers.queues.push(Arc::clone(&queue));
            self.shared.update_observed(&observers);
        }
        drop(observers);
        Some(EventStream { shared: Arc::clone(&self.shared), queue })
    }

    /// Returns the number of lost events since the bus was created. An event that two observers
    /// lost counts twice.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Returns the total bytes of the events in all queues. An event in two queues counts twice.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.shared.read().queues.iter().map(|queue| queue.bytes()).sum()
    }

    /// Closes the bus. Each stream ends after the events that are already in its queue. Later
    /// events are discarded.
    pub fn close(&self) {
        let mut observers = self.shared.write();
        observers.closed = true;
        let queues = std::mem::take(&mut observers.queues);
        self.shared.update_observed(&observers);
        drop(observers);
        queues.iter().filter_map(|queue| queue.close()).for_each(|waker| waker.wake());
    }
}

impl Default for EventBus {
    fn default() -> Self {
        Self::new(Config::default())
    }
}

impl BusState {
    /// Recomputes the union of the filters. The caller holds the lock of `observers`.
    fn update_observed(&self, observers: &Observers) {
        let bits = observers.queues.iter().fold(0, |bits, queue| bits | queue.filter().bits());
        self.observed.store(bits, Ordering::Relaxed);
    }

    fn read(&self) -> RwLockReadGuard<'_, Observers> {
        self.observers.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Observers> {
        self.observers.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The events of one observer, in order. Dropping the stream removes the observer from the bus.
#[derive(Debug)]
pub struct EventStream {
    shared: Arc<BusState>,
    queue: Arc<ObserverQueue>,
}

impl EventStream {
    /// Polls for the next item. Returns `None` after the bus was closed and all queued items were
    /// received.
    ///
    /// If the queue is empty, the next item or the close wakes the waker of the latest call.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Received>> {
        self.queue.poll_pop(cx)
    }

    /// Waits for the next item, like [`poll_recv`](Self::poll_recv). Cancelling the future loses no
    /// item.
    pub async fn recv(&mut self) -> Option<Received> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Returns the next item without waiting. Returns `None` if the queue is empty, also after the
    /// end of the stream.
    pub fn try_recv(&mut self) -> Option<Received> {
        self.queue.try_pop()
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        let mut observers = self.shared.write();
        observers.queues.retain(|queue| !Arc::ptr_eq(queue, &self.queue));
        self.shared.update_observed(&observers);
    }
}

#[cfg(test)]
mod tests;
