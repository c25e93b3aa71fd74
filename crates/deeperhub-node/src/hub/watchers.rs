//! Subscribers in this process that wait for the next message of a topic with history.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Waiting subscribers by topic. Publishes pay one atomic read while there are none.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    count: AtomicUsize,
    topics: Mutex<HashMap<Box<str>, Vec<Arc<Notify>>>>,
}

impl Watchers {
    /// Wakes the subscribers of a topic. Called after a message was appended.
    #[inline]
    pub(crate) fn wake(&self, topic: &str) {
        if self.count.load(Ordering::SeqCst) > 0 {
            self.wake_all(topic);
        }
    }

    #[cold]
    fn wake_all(&self, topic: &str) {
        for notify in self.lock().get(topic).into_iter().flatten() {
            notify.notify_one();
        }
    }

    /// Adds a subscriber, unless there are `max` already.
    pub(crate) fn add(&self, topic: &str, max: usize) -> Option<Arc<Notify>> {
        let mut topics = self.lock();
        if self.count.load(Ordering::SeqCst) >= max {
            return None;
        }
        let notify = Arc::new(Notify::new());
        topics.entry(topic.into()).or_default().push(Arc::clone(&notify));
        self.count.fetch_add(1, Ordering::SeqCst);
        Some(notify)
    }

    /// Removes a subscriber.
    pub(crate) fn remove(&self, topic: &str, notify: &Arc<Notify>) {
        let mut topics = self.lock();
        let Some(watchers) = topics.get_mut(topic) else { return };
        let before = watchers.len();
        watchers.retain(|watcher| !Arc::ptr_eq(watcher, notify));
        self.count.fetch_sub(before - watchers.len(), Ordering::SeqCst);
        if watchers.is_empty() {
            topics.remove(topic);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Box<str>, Vec<Arc<Notify>>>> {
        self.topics.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
