//! Which topics and patterns this node wants to get from the broker.
//!
//! The broker delivers a message once for each of the node's subscriptions that match it. So a name
//! is not subscribed to if a followed pattern covers it. At most [`MAX_COPIES`] followed patterns
//! may match a common topic; beyond that, one broader pattern that covers them all is followed
//! instead. Names that lose their cover are followed before the cover is left, so that no message
//! is missed.

mod placement;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::cover::{Patterns, Wildcards};
use placement::{Inner, Told, cost};

/// How long the broker's subscription stays after the last subscriber of the node has left: those who come and go, or
/// change their connection, cost the broker nothing.
const LINGER: Duration = Duration::from_secs(2);

/// Limit of the lingering names' cost in bytes. Over it, the names that linger longest end at once.
const MAX_LINGERING_BYTES: usize = 8 << 20;

/// Names that one change takes to the broker.
const BATCH: usize = 1024;

/// Most names and pattern-tree nodes visited for one change.
const MAX_STEPS: usize = 32_768;

/// What this node's subscribers want, and what the broker has been told.
#[derive(Debug)]
pub(crate) struct Interests {
    inner: Mutex<Inner>,
    /// Told when there is something to tell the broker.
    pub(crate) changed: Notify,
    /// Memory that the client library keeps per followed name.
    each_followed: usize,
}

/// Subscriptions to add at the broker and, once it has confirmed them, subscriptions to remove.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) follow: Vec<Arc<str>>,
    pub(crate) leave: Vec<Arc<str>>,
    /// More changes can be taken at once.
    pub(crate) is_more: bool,
}

impl Interests {
    pub(crate) fn new(wildcards: Wildcards, each_followed: usize) -> Self {
        let inner = Inner {
            names: BTreeMap::new(),
            patterns: Patterns::new(wildcards),
            covered: HashMap::default(),
            waiting: VecDeque::new(),
            lingering: VecDeque::new(),
            lingering_bytes: 0,
            retiring: VecDeque::new(),
            unswept: None,
            sweep: None,
            followed: 0,
            bytes: 0,
            now: Instant::now(),
        };
        Self { inner: Mutex::new(inner), changed: Notify::new(), each_followed }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The node's first subscriber of a topic or pattern has come.
    pub(crate) fn gained(&self, name: &Arc<str>) {
        let mut inner = self.lock();
        let entry = inner.entry(name);
        entry.is_wanted = true;
        let is_told = matches!(entry.told, Told::Followed | Told::Covered(_));
        if !is_told && !entry.is_waiting {
            entry.is_waiting = true;
            inner.waiting.push_back(Arc::clone(name));
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// Its last one has left.
    pub(crate) fn lost(&self, name: &Arc<str>, now: Instant) {
        let mut inner = self.lock();
        let Some(entry) = inner.names.get_mut(name) else { return };
        entry.is_wanted = false;
        let is_new = entry.ends.replace(now + LINGER).is_none();
        if is_new {
            inner.lingering.push_back((now + LINGER, Arc::clone(name)));
            inner.lingering_bytes += cost(name);
        }
        let is_due = inner.lingering.len() == 1 || inner.lingering_bytes > MAX_LINGERING_BYTES;
        drop(inner);
        if is_due {
            self.changed.notify_one();
        }
    }

    /// When there will be something to tell the broker, as far as that is known; `None`: perhaps never.
    pub(crate) fn due(&self) -> Option<Instant> {
        let inner = self.lock();
        let lingering = inner.lingering.front().map(|(at, _)| *at);
        let unswept = inner.unswept.as_ref().map(|(at, _)| *at);
        lingering.into_iter().chain(unswept).min()
    }

    /// What is to be told now, up to a batch, as if the broker had heard it.
    pub(crate) fn take(&self, now: Instant) -> Changes {
        let mut inner = self.lock();
        inner.now = now;
        let mut changes = Changes::default();
        let mut steps = 0;
        // The order matters, and each phase runs once. A name left in one change must not be
        // followed in the same change, since all additions are sent first.
        let phases: [fn(&mut Inner, &mut Changes) -> bool; 4] =
            [Inner::retire_next, Inner::place_next, Inner::end_next, Inner::sweep_next];
        for next in phases {
            while next(&mut inner, &mut changes) {
                steps += 1 + inner.patterns.take_steps();
                if steps >= MAX_STEPS || changes.follow.len() >= BATCH || changes.leave.len() >= BATCH {
                    changes.is_more = true;
                    return changes;
                }
            }
        }
        // Names that ended may have left a pattern to retire.
        changes.is_more = !inner.retiring.is_empty();
        changes
    }

    /// The broker knows nothing any more: all that is wanted waits to be told again.
    pub(crate) fn start_over(&self) {
        let mut inner = self.lock();
        inner.start_over();
        drop(inner);
        self.changed.notify_one();
    }

    /// Returns the number of names subscribed to at the broker.
    pub(crate) fn len(&self) -> usize {
        self.lock().followed
    }

    /// Returns the approximate memory of all names and of the client library's subscriptions.
    pub(crate) fn bytes(&self) -> usize {
        let inner = self.lock();
        inner.bytes + inner.followed * self.each_followed
    }
}

#[cfg(test)]
mod tests;
