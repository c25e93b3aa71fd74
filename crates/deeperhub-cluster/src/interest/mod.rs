//! Topics and patterns that this node's clients subscribe to, and the subscriptions at the broker
//! that deliver them.
//!
//! The broker delivers a message once for each of the node's subscriptions that match it. So a name
//! gets no subscription at the broker if a subscribed pattern covers it. At most
//! [`MAX_COPIES`](placement::MAX_COPIES) subscribed patterns may match a common topic. Beyond that,
//! one broader pattern that covers them all replaces them. Names that lose their cover are
//! subscribed to before the cover is unsubscribed, so that no message is missed.
//!
//! A *name* is a topic or pattern here.

mod placement;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::cover::{Patterns, Wildcards};
use placement::{Placement, Placements, cost};

/// Time that the subscription at the broker stays after the node's last subscriber has left.
/// Clients that come and go, or reconnect, cost the broker nothing.
const LINGER_TIME: Duration = Duration::from_secs(2);

/// Maximum cost of the lingering names, in bytes. Over it, the names that linger longest end at
/// once.
const MAX_LINGERING_BYTES: usize = 8 << 20;

/// Maximum number of names in one change.
const MAX_CHANGES: usize = 1024;

/// Maximum number of names and pattern-tree nodes visited for one change.
const MAX_STEPS_PER_CHANGE: usize = 32_768;

/// The names that this node's clients subscribe to, and their placement at the broker.
#[derive(Debug)]
pub(crate) struct Interests {
    inner: Mutex<Placements>,
    /// Notified when there may be a change for the broker.
    pub(crate) changed: Notify,
    /// Memory that the client library keeps per subscription.
    bytes_per_subscription: usize,
}

/// Subscriptions to add at the broker and, once it has confirmed them, subscriptions to remove.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) subscribe: Vec<Arc<str>>,
    pub(crate) unsubscribe: Vec<Arc<str>>,
    /// More changes can be taken at once.
    pub(crate) has_more: bool,
}

impl Interests {
    pub(crate) fn new(wildcards: Wildcards, bytes_per_subscription: usize) -> Self {
        let inner = Placements {
            names: BTreeMap::new(),
            patterns: Patterns::new(wildcards),
            covered: HashMap::default(),
            unplaced: VecDeque::new(),
            lingering: VecDeque::new(),
            lingering_bytes: 0,
            retiring: VecDeque::new(),
            unswept: None,
            sweep: None,
            subscribed: 0,
            bytes: 0,
            now: Instant::now(),
        };
        Self { inner: Mutex::new(inner), changed: Notify::new(), bytes_per_subscription }
    }

    fn lock(&self) -> MutexGuard<'_, Placements> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the node's first subscriber of a name.
    pub(crate) fn add(&self, name: &Arc<str>) {
        let mut inner = self.lock();
        let entry = inner.entry(name);
        entry.is_wanted = true;
        let is_placed = matches!(entry.placement, Placement::Subscribed | Placement::Covered(_));
        if !is_placed && !entry.is_unplaced {
            entry.is_unplaced = true;
            inner.unplaced.push_back(Arc::clone(name));
            drop(inner);
            self.changed.notify_one();
        }
    }

    /// Records that the node's last subscriber of a name has left.
    pub(crate) fn remove(&self, name: &Arc<str>, now: Instant) {
        let mut inner = self.lock();
        let Some(entry) = inner.names.get_mut(name) else { return };
        entry.is_wanted = false;
        let is_new = entry.lingers_until.replace(now + LINGER_TIME).is_none();
        if is_new {
            inner.lingering.push_back((now + LINGER_TIME, Arc::clone(name)));
            inner.lingering_bytes += cost(name);
        }
        let is_due = inner.lingering.len() == 1 || inner.lingering_bytes > MAX_LINGERING_BYTES;
        drop(inner);
        if is_due {
            self.changed.notify_one();
        }
    }

    /// Returns when the next change is due, if one is scheduled.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let inner = self.lock();
        let lingering = inner.lingering.front().map(|(at, _)| *at);
        let unswept = inner.unswept.as_ref().map(|(at, _)| *at);
        lingering.into_iter().chain(unswept).min()
    }

    /// Returns the changes that are due, and records them as applied.
    pub(crate) fn take(&self, now: Instant) -> Changes {
        let mut inner = self.lock();
        inner.now = now;
        let mut changes = Changes::default();
        let mut steps = 0;
        // The order matters, and each phase runs once. A name left in one change must not be
        // followed in the same change, since all additions are sent first.
        let phases: [fn(&mut Placements, &mut Changes) -> bool; 4] =
            [Placements::retire_next, Placements::place_next, Placements::end_next, Placements::sweep_next];
        for next in phases {
            while next(&mut inner, &mut changes) {
                steps += 1 + inner.patterns.take_steps();
                if steps >= MAX_STEPS_PER_CHANGE
                    || changes.subscribe.len() >= MAX_CHANGES
                    || changes.unsubscribe.len() >= MAX_CHANGES
                {
                    changes.has_more = true;
                    return changes;
                }
            }
        }
        // Names that ended may have left a pattern to retire.
        changes.has_more = !inner.retiring.is_empty();
        changes
    }

    /// Forgets the broker's subscriptions after a reconnect: all names are to be placed again.
    pub(crate) fn reset(&self) {
        let mut inner = self.lock();
        inner.reset();
        drop(inner);
        self.changed.notify_one();
    }

    /// Returns the number of names subscribed to at the broker.
    pub(crate) fn len(&self) -> usize {
        self.lock().subscribed
    }

    /// Returns the approximate memory of all names and of the client library's subscriptions.
    pub(crate) fn bytes(&self) -> usize {
        let inner = self.lock();
        inner.bytes + inner.subscribed * self.bytes_per_subscription
    }
}

#[cfg(test)]
mod tests;
