//! From those that publish to those that observe.

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
    /// How many may observe at a time. Default: 64.
    pub max_observers: usize,
    /// Events that wait for an observer. Default: 4096.
    pub max_queue_events: usize,
    /// Bytes of the events that wait for an observer, payloads included; an event larger than this is lost
    /// always. Default: 4 MiB.
    pub max_queue_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_observers: 64, max_queue_events: 4096, max_queue_bytes: 4 * 1024 * 1024 }
    }
}

/// Brings events from those that publish to those that observe, without ever waiting for an observer.
///
/// Cheap to clone; clones are the same bus.
#[derive(Debug, Clone)]
pub struct EventBus {
    shared: Arc<BusState>,
}

#[derive(Debug)]
struct BusState {
    config: Config,
    /// The union of the observers' filters; written under the lock of `observers`.
    observed: AtomicU32,
    lost: AtomicU64,
    observers: RwLock<Observers>,
}

#[derive(Debug, Default)]
struct Observers {
    queues: Vec<Arc<ObserverQueue>>,
    closed: bool,
}

impl EventBus {
    /// A bus that nobody observes yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let (observed, lost) = (AtomicU32::new(0), AtomicU64::new(0));
        Self { shared: Arc::new(BusState { config, observed, lost, observers: RwLock::default() }) }
    }

    /// Whether anybody wants events of this kind: ask before you make one.
    ///
    /// One relaxed load. An observer that has just come or gone on another thread may not be seen yet.
    #[must_use]
    #[inline]
    pub fn is_observed(&self, kind: EventKind) -> bool {
        EventFilter::from_bits(self.shared.observed.load(Ordering::Relaxed)).contains(kind)
    }

    /// Hands an event to every observer whose filter lets it through.
    ///
    /// Events that one thread publishes reach each observer in their order. Where an observer's queue is full,
    /// this event is lost for it. Does nothing after [`close`](Self::close).
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
        // No lock is held here: an executor may run the observer, or drop it, within `wake`.
        wakers.into_iter().for_each(|waker| waker.wake());
    }

    /// Observes the events of `filter`, from now until the stream is dropped.
    ///
    /// `None` when there are [`Config::max_observers`] already. After [`close`](Self::close), a stream that has
    /// ended.
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

    /// How many events were lost, over all observers since the start: one that two observers lost counts twice.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }

    /// Returns the number of bytes queued for observers. An event queued for two observers counts
    /// twice.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.shared.read().queues.iter().map(|queue| queue.bytes()).sum()
    }

    /// Ends all streams after what waits in them; what is published from now on reaches nobody.
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

/// An observer's events, in their order. Dropping it ends the observation.
#[derive(Debug)]
pub struct EventStream {
    shared: Arc<BusState>,
    queue: Arc<ObserverQueue>,
}

impl EventStream {
    /// What comes next; `None` once the bus is closed and all that came before is read.
    ///
    /// Where there is nothing yet, the waker of the last call is woken when there is.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Option<Received>> {
        self.queue.poll_pop(cx)
    }

    /// Waits for what comes next, as [`poll_recv`](Self::poll_recv). Giving up the wait loses nothing.
    pub async fn recv(&mut self) -> Option<Received> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// What is there already; `None` where there is nothing, and after the end.
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
