//! Permit of one open connection.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::signal::{Command, Signal};
use super::table::{Activity, Entry, Table, Tier};
use super::{Admission, POLL};
use crate::metrics::ApiMetrics;

/// Time that a request waits for others to finish before it gets 503.
const PLACE_WAIT: Duration = Duration::from_secs(1);

/// Permit of one open connection. Dropping it frees the connection's place.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    pub(super) admission: Arc<Admission>,
    pub(super) number: u64,
    pub(super) signal: Arc<Signal>,
}

impl ConnectionPermit {
    /// Records what the connection does now.
    pub(crate) fn set(&self, activity: Activity) {
        let mut table = self.admission.lock();
        if let Some(&Entry { tier, .. }) = table.entries.get(&self.number) {
            table.change(self.number, tier, activity, Some(Instant::now()));
        }
        drop(table);
        if matches!(activity, Activity::Idle | Activity::Discarding) {
            self.admission.room.notify_one();
        }
    }

    /// Records that a whole request has arrived. Returns `true` if it may be served now, as it may
    /// in any case if `always` is set.
    pub(crate) fn begin_request(&self, always: bool) -> bool {
        let now = Instant::now();
        let mut table = self.admission.lock();
        let Some(&Entry { tier, .. }) = table.entries.get(&self.number) else { return false };
        if tier == Tier::Regular {
            table.change(self.number, tier, Activity::Busy, Some(now));
            return true;
        }
        // A command to leave no longer applies: the connection is not idle.
        let (leave, stay) = (Command::Leave as u8, Command::Stay as u8);
        let _ = self.signal.command.compare_exchange(leave, stay, Ordering::AcqRel, Ordering::Relaxed);
        table.change(self.number, Tier::Reserved, Activity::Waiting, Some(now));
        let may_go_on = self.go_on(&mut table, now);
        if always && !may_go_on {
            table.change(self.number, Tier::Reserved, Activity::Busy, Some(now));
        }
        self.admission.trim(&mut table, now);
        may_go_on || always
    }

    /// Waits until the request may be served. Returns `false` after [`PLACE_WAIT`], or if the
    /// connection is told to leave.
    pub(crate) async fn wait_for_turn(&self) -> bool {
        let deadline = Instant::now() + PLACE_WAIT;
        let found = loop {
            let served = self.admission.room.notified();
            if self.go_on(&mut self.admission.lock(), Instant::now()) {
                break true;
            }
            tokio::select! {
                () = served => {}
                () = tokio::time::sleep(POLL) => if Instant::now() >= deadline { break false },
                () = std::future::poll_fn(|cx| match self.poll_command(cx) {
                    Command::Leave | Command::Kill => Poll::Ready(()),
                    Command::Stay | Command::Drain => Poll::Pending,
                }) => break false,
            }
        };
        if !found {
            self.set(Activity::Busy);
            self.admission.metrics.connection_refused();
        }
        found
    }

    /// Returns `true` if the waiting request may be served, and marks it as served. The connection
    /// becomes regular if there is room; otherwise this is its only request.
    fn go_on(&self, table: &mut Table, now: Instant) -> bool {
        let may_stay = self.admission.has_room(table, true, now);
        let may_go_on = may_stay || table.busy < self.admission.max_connections;
        if may_go_on {
            let tier = if may_stay { Tier::Regular } else { Tier::Reserved };
            table.change(self.number, tier, Activity::Busy, Some(now));
        }
        may_go_on
    }

    /// Returns the current command. The task is woken when it changes.
    pub(crate) fn poll_command(&self, cx: &Context<'_>) -> Command {
        let mut waker = self.signal.waker.lock().unwrap_or_else(PoisonError::into_inner);
        if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Command::of(self.signal.command.load(Ordering::Acquire))
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
        self.admission.metrics.set_connections(table.open());
        drop(table);
        self.admission.room.notify_one();
    }
}
