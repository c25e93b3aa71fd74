//! Publishes that wait until the cluster's store has appended them.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ahash::RandomState;
use deeperhub_cluster::{AppendError, AppendNumber, Appended};
use tokio::sync::oneshot;

/// Outcome of an append.
pub(crate) type AppendOutcome = Result<Appended, AppendError>;

/// Outcomes for handles that are kept at a time. A program that publishes need not ask for them.
const MAX_KEPT: usize = 65_536;

const KIND_SHIFT: u32 = 62;
const WORKER_SHIFT: u32 = 46;

/// Where the outcome of an append goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Requester {
    /// A worker, whose client waits for its reply.
    Worker(u16),
    /// A handle, which may ask for it.
    Handle,
    /// Nobody: the client wants no reply.
    Nobody,
}

/// Numbers of appends, and the outcomes that handles wait for.
#[derive(Debug, Default)]
pub(super) struct Appends {
    last: AtomicU64,
    handles: Mutex<Handles>,
}

#[derive(Debug, Default)]
struct Handles {
    appends: HashMap<AppendNumber, HandleAppend, RandomState>,
    /// In the order of the appends.
    order: VecDeque<AppendNumber>,
}

#[derive(Debug)]
enum HandleAppend {
    /// The callers that wait.
    Pending(Vec<oneshot::Sender<AppendOutcome>>),
    Done(AppendOutcome),
}

impl Requester {
    /// Returns the requester of an append.
    pub(super) const fn of(number: AppendNumber) -> Self {
        match number.0 >> KIND_SHIFT {
            0 => Self::Worker((number.0 >> WORKER_SHIFT) as u16),
            1 => Self::Handle,
            _ => Self::Nobody,
        }
    }
}

impl Appends {
    /// Returns the number of a new append.
    pub(super) fn allocate(&self, requester: Requester) -> AppendNumber {
        let bits = match requester {
            Requester::Nobody => return AppendNumber(2 << KIND_SHIFT),
            Requester::Worker(worker) => u64::from(worker) << WORKER_SHIFT,
            Requester::Handle => 1 << KIND_SHIFT,
        };
        // So many appends take centuries.
        let serial = self.last.fetch_add(1, Ordering::Relaxed) & ((1 << WORKER_SHIFT) - 1);
        let number = AppendNumber(bits | serial);
        if requester == Requester::Handle {
            let mut handles = self.lock();
            handles.appends.insert(number, HandleAppend::Pending(Vec::new()));
            handles.order.push_back(number);
            while handles.order.len() > MAX_KEPT
                && let Some(oldest) = handles.order.pop_front()
            {
                handles.appends.remove(&oldest);
            }
        }
        number
    }

    /// Forgets an append of a handle that was not queued.
    pub(super) fn forget(&self, number: AppendNumber) {
        if Requester::of(number) == Requester::Handle {
            self.lock().appends.remove(&number);
        }
    }

    /// Notes the outcome of an append of a handle.
    pub(super) fn finish(&self, number: AppendNumber, outcome: AppendOutcome) {
        let mut handles = self.lock();
        let Some(append) = handles.appends.get_mut(&number) else { return };
        if let HandleAppend::Pending(senders) = std::mem::replace(append, HandleAppend::Done(outcome.clone()))
        {
            for sender in senders {
                // The caller may have timed out.
                let _ = sender.send(outcome.clone());
            }
        }
    }

    /// Waits for the outcome of an append of a handle. Returns `None` if there is none in time.
    pub(super) async fn wait(&self, number: AppendNumber, timeout: Duration) -> Option<AppendOutcome> {
        let receiver = {
            let mut handles = self.lock();
            match handles.appends.get_mut(&number)? {
                HandleAppend::Done(outcome) => return Some(outcome.clone()),
                HandleAppend::Pending(senders) => {
                    let (sender, receiver) = oneshot::channel();
                    senders.push(sender);
                    receiver
                }
            }
        };
        tokio::time::timeout(timeout, receiver).await.ok()?.ok()
    }

    fn lock(&self) -> MutexGuard<'_, Handles> {
        self.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use deeperhub_cluster::StorePosition;

    const APPENDED: Appended =
        Appended { position: StorePosition { epoch: 1, offset: 2 }, time: 3, is_repeat: false };

    #[test]
    fn numbers_name_their_requester() {
        let appends = Appends::default();
        let requesters =
            [Requester::Worker(0), Requester::Worker(65_534), Requester::Handle, Requester::Nobody];
        for requester in requesters {
            let numbers = [(); 2].map(|()| appends.allocate(requester));
            assert_eq!(numbers.map(Requester::of), [requester; 2]);
            assert_eq!(numbers[0] != numbers[1], requester != Requester::Nobody);
        }
    }

    #[tokio::test]
    async fn a_handle_gets_its_outcome_before_or_after_it_asks() {
        let appends = Appends::default();
        let numbers = [(); 3].map(|()| appends.allocate(Requester::Handle));
        appends.finish(numbers[0], Ok(APPENDED));
        let soon = Duration::from_millis(1);
        assert_eq!(appends.wait(numbers[0], soon).await, Some(Ok(APPENDED)));
        assert_eq!(appends.wait(numbers[0], soon).await, Some(Ok(APPENDED)), "a second time");
        let wait = appends.wait(numbers[1], Duration::from_secs(60));
        let finish = async { appends.finish(numbers[1], Err(AppendError::Stopped)) };
        assert_eq!(tokio::join!(wait, finish).0, Some(Err(AppendError::Stopped)));
        assert_eq!(appends.wait(numbers[2], soon).await, None);
        appends.finish(numbers[2], Ok(APPENDED));
        assert_eq!(appends.wait(numbers[2], soon).await, Some(Ok(APPENDED)), "after a timeout");
        appends.forget(numbers[2]);
        assert_eq!(appends.wait(numbers[2], soon).await, None);
    }

    #[test]
    fn outcomes_that_nobody_asks_for_are_bounded() {
        let appends = Appends::default();
        for _ in 0..MAX_KEPT + 10 {
            let number = appends.allocate(Requester::Handle);
            appends.finish(number, Ok(APPENDED));
        }
        let handles = appends.lock();
        assert_eq!((handles.appends.len(), handles.order.len()), (MAX_KEPT, MAX_KEPT));
    }
}
