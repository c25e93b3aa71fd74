//! Topics and patterns that this node's clients subscribe to, and the subscriptions at the broker
//! that deliver them.
//!
//! The broker delivers a message once for each of the node's subscriptions that match it. So a name
//! gets no subscription at the broker if a subscribed pattern covers it. At most
//! [`MAX_COPIES`](placement::MAX_COPIES) subscribed patterns may match a common topic. Beyond that,
//! one broader pattern that covers them all replaces them. Names that lose their cover are
//! subscribed to before the cover is unsubscribed, so that no message is missed.
//!
//! A *name* is a topic or a pattern.

mod placement;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::cover::{Patterns, Wildcards};
use placement::{Placement, Placements, cost};

/// Time that a subscription at the broker lingers after the node's last subscriber has left.
/// Clients that reconnect within this time cause no work at the broker.
const LINGER_TIME: Duration = Duration::from_secs(2);

/// Maximum cost of the lingering names, in bytes. Limits the memory that clients can cause by
/// subscribing to many names and leaving. Over the limit, the oldest lingering names end at once.
const MAX_LINGERING_BYTES: usize = 8 << 20;

/// Maximum number of names in each list of [`Changes`]. Limits the size of one command to the
/// broker.
const MAX_CHANGES: usize = 1024;

/// Maximum number of names and pattern-tree nodes visited in one call of [`Interests::take`].
/// Limits the time that the lock is held.
const MAX_STEPS_PER_CHANGE: usize = 32_768;

/// The names that this node's clients subscribe to, and their placement at the broker.
#[derive(Debug)]
pub(crate) struct Interests {
    inner: Mutex<Placements>,
    /// Notified when there may be a change for the broker.
    pub(crate) changed: Notify,
    /// Memory that the client library uses per subscription.
    bytes_per_subscription: usize,
    /// Number of requests for a confirmation.
    requested: AtomicU64,
    /// Number of the last request that is confirmed.
    confirmed: AtomicU64,
}

/// Subscriptions to add at the broker, and subscriptions to remove after the broker has confirmed
/// the added ones.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) subscribe: Vec<Arc<str>>,
    pub(crate) unsubscribe: Vec<Arc<str>>,
    /// `true` if more changes can be taken without waiting.
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
        Self {
            inner: Mutex::new(inner),
            changed: Notify::new(),
            bytes_per_subscription,
            requested: AtomicU64::new(0),
            confirmed: AtomicU64::new(0),
        }
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

    /// Returns the time at which the next change is due, if one is scheduled.
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
        // Each phase runs once, in this order. A name must not be removed and added again in the
        // same change, because all additions are sent before the removals.
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
        // The end of a name can start the retirement of a pattern.
        changes.has_more = !inner.retiring.is_empty();
        changes
    }

    /// Clears all placements after a reconnect, so that all names are subscribed to again.
    pub(crate) fn reset(&self) {
        let mut inner = self.lock();
        inner.reset();
        drop(inner);
        self.changed.notify_one();
    }

    /// Requests a confirmation that the broker has the subscriptions for all names that were added
    /// before. Returns its number, which [`confirmed`](Self::confirmed) reaches.
    pub(crate) fn request_confirmation(&self) -> u64 {
        let number = self.requested.fetch_add(1, Ordering::SeqCst) + 1;
        self.changed.notify_one();
        number
    }

    /// Returns the number of the last request for a confirmation.
    pub(crate) fn requested(&self) -> u64 {
        self.requested.load(Ordering::SeqCst)
    }

    /// Returns the number of the last request that is confirmed.
    pub(crate) fn confirmed(&self) -> u64 {
        self.confirmed.load(Ordering::SeqCst)
    }

    /// Confirms the requests up to a number: the broker has confirmed all changes that were due
    /// after it was requested.
    pub(crate) fn confirm(&self, number: u64) {
        self.confirmed.store(number, Ordering::SeqCst);
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
