//! The mailbox of a worker.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use super::{Arrival, BEHIND_AFTER, lock};

/// Notifications and queued connections for one worker.
#[derive(Debug)]
pub(crate) struct Mailbox {
    /// `true` if the phase or the queue changed since the worker last checked. Each round reads it
    /// once.
    is_notified: AtomicBool,
    /// Time of the first notification since the last check, in milliseconds since `started`.
    notified_at: AtomicU64,
    started: Instant,
    waker: Mutex<Option<Waker>>,
    pub(super) arrivals: Mutex<VecDeque<Arrival>>,
    /// Length of `arrivals`, readable without its lock. Only the acceptor increases it.
    pub(super) waiting: AtomicUsize,
    /// `true` if the worker panicked and its replacement has not started yet.
    is_vacant: AtomicBool,
}

impl Mailbox {
    pub(super) fn new(started: Instant) -> Self {
        Self {
            is_notified: AtomicBool::new(true),
            notified_at: AtomicU64::new(0),
            started,
            waker: Mutex::new(None),
            arrivals: Mutex::default(),
            waiting: AtomicUsize::new(0),
            is_vacant: AtomicBool::new(false),
        }
    }

    /// Sets the waker that notifications wake.
    pub(crate) fn attach(&self, waker: &Waker) {
        *lock(&self.waker) = Some(waker.clone());
    }

    /// Sets whether the worker is missing. The acceptor reads this.
    pub(crate) fn set_vacant(&self, is_vacant: bool) {
        self.is_vacant.store(is_vacant, Ordering::Relaxed);
    }

    /// Notifies the mailbox. Wakes the worker unless there already is a notification.
    pub(super) fn notify(&self, now: Instant) {
        if !self.is_notified.swap(true, Ordering::AcqRel) {
            self.notified_at.store(self.millis(now), Ordering::Relaxed);
            if let Some(waker) = &*lock(&self.waker) {
                waker.wake_by_ref();
            }
        }
    }

    /// Returns `true` if the mailbox was notified since the last call.
    pub(crate) fn take_notification(&self) -> bool {
        self.is_notified.load(Ordering::Relaxed) && self.is_notified.swap(false, Ordering::AcqRel)
    }

    /// Notifies the mailbox without waking the worker. Called on the worker's thread, before its
    /// next round.
    pub(crate) fn notify_self(&self, now: Instant) {
        self.notified_at.store(self.millis(now), Ordering::Relaxed);
        self.is_notified.store(true, Ordering::Release);
    }

    /// Returns the milliseconds from `started` to `now`.
    fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    pub(super) fn push(&self, arrival: Arrival, now: Instant) {
        {
            let mut arrivals = lock(&self.arrivals);
            arrivals.push_back(arrival);
            self.waiting.store(arrivals.len(), Ordering::Relaxed);
        }
        self.notify(now);
    }

    /// Takes the next new connection from the queue.
    pub(crate) fn pop(&self) -> Option<Arrival> {
        let mut arrivals = lock(&self.arrivals);
        let arrival = arrivals.pop_front()?;
        self.waiting.store(arrivals.len(), Ordering::Relaxed);
        Some(arrival)
    }

    /// Empties the queue and returns its connections.
    pub(super) fn take_all(&self) -> VecDeque<Arrival> {
        let mut arrivals = lock(&self.arrivals);
        self.waiting.store(0, Ordering::Relaxed);
        std::mem::take(&mut *arrivals)
    }

    /// Returns `true` if the worker is behind or missing.
    pub(super) fn is_behind(&self, now: Instant) -> bool {
        self.is_unresponsive_for(BEHIND_AFTER, now)
    }

    /// Returns `true` if the worker is missing, or has not checked its mailbox for `time` since a
    /// notification.
    pub(super) fn is_unresponsive_for(&self, time: Duration, now: Instant) -> bool {
        let unchecked_millis = || self.millis(now).saturating_sub(self.notified_at.load(Ordering::Relaxed));
        self.is_vacant.load(Ordering::Relaxed)
            || self.is_notified.load(Ordering::Acquire) && u128::from(unchecked_millis()) >= time.as_millis()
    }
}
