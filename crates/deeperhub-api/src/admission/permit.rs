//! Permit of one open connection.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::signal::{Command, Signal};
use super::table::{Activity, Entry, Table, Tier};
use super::{ADMISSION_POLL_INTERVAL, Admission};
use crate::metrics::ApiMetrics;

/// Time that a request waits for others to finish before it gets 503.
const REQUEST_QUEUE_TIMEOUT: Duration = Duration::from_secs(1);

/// Permit of one open connection. Dropping it admits another one.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    pub(super) admission: Arc<Admission>,
    pub(super) number: u64,
    pub(super) signal: Arc<Signal>,
}

impl ConnectionPermit {
    /// Records the connection's current activity.
    pub(crate) fn set(&self, activity: Activity) {
        let mut table = self.admission.lock();
        if let Some(&Entry { tier, .. }) = table.entries.get(&self.number) {
            table.change(self.number, tier, activity, Some(Instant::now()));
        }
        drop(table);
        if matches!(activity, Activity::Idle | Activity::Discarding) {
            self.admission.slot_freed.notify_one();
        }
    }

    /// Records that a whole request has arrived. Returns `true` if it may be served now. A health
    /// check may always be served.
    pub(crate) fn begin_request(&self, is_health_check: bool) -> bool {
        let now = Instant::now();
        let mut table = self.admission.lock();
        let Some(&Entry { tier, .. }) = table.entries.get(&self.number) else { return false };
        if tier == Tier::Regular {
            table.change(self.number, tier, Activity::Busy, Some(now));
            return true;
        }
        // A command to close if idle no longer applies.
        let (close, proceed) = (Command::CloseIfIdle as u8, Command::Continue as u8);
        let _ = self.signal.command.compare_exchange(close, proceed, Ordering::AcqRel, Ordering::Relaxed);
        table.change(self.number, Tier::Reserved, Activity::Waiting, Some(now));
        let may_serve = self.try_serve(&mut table, now);
        if is_health_check && !may_serve {
            table.change(self.number, Tier::Reserved, Activity::Busy, Some(now));
        }
        self.admission.evict_over_reserve(&mut table, now);
        may_serve || is_health_check
    }

    /// Waits until the request may be served. Returns `false` after [`REQUEST_QUEUE_TIMEOUT`], or
    /// if the connection is told to close.
    pub(crate) async fn wait_for_turn(&self) -> bool {
        let deadline = Instant::now() + REQUEST_QUEUE_TIMEOUT;
        let may_serve = loop {
            let slot_freed = self.admission.slot_freed.notified();
            if self.try_serve(&mut self.admission.lock(), Instant::now()) {
                break true;
            }
            tokio::select! {
                () = slot_freed => {}
                () = tokio::time::sleep(ADMISSION_POLL_INTERVAL) => if Instant::now() >= deadline { break false },
                () = std::future::poll_fn(|cx| match self.poll_command(cx) {
                    Command::CloseIfIdle | Command::Kill => Poll::Ready(()),
                    Command::Continue | Command::Drain => Poll::Pending,
                }) => break false,
            }
        };
        if !may_serve {
            self.set(Activity::Busy);
            self.admission.metrics.connection_refused();
        }
        may_serve
    }

    /// Returns `true` if the waiting request may be served, and marks it as served. The connection
    /// becomes regular if there is room; otherwise this is its only request.
    fn try_serve(&self, table: &mut Table, now: Instant) -> bool {
        let may_become_regular = self.admission.make_room(table, true, now);
        let may_serve = may_become_regular || table.busy < self.admission.max_connections;
        if may_serve {
            let tier = if may_become_regular { Tier::Regular } else { Tier::Reserved };
            table.change(self.number, tier, Activity::Busy, Some(now));
        }
        may_serve
    }

    /// Returns the current command, and registers the task to be woken when it changes.
    pub(crate) fn poll_command(&self, cx: &Context<'_>) -> Command {
        let mut waker = self.signal.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Command::from_number(self.signal.command.load(Ordering::Acquire))
    }

    pub(crate) fn metrics(&self) -> &ApiMetrics {
        &self.admission.metrics
    }

    pub(crate) fn is_regular(&self) -> bool {
        let table = self.admission.lock();
        table.entries.get(&self.number).is_some_and(|entry| entry.tier == Tier::Regular)
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut table = self.admission.lock();
        table.remove(self.number);
        self.admission.metrics.set_connections(table.len());
        drop(table);
        self.admission.slot_freed.notify_one();
    }
}
