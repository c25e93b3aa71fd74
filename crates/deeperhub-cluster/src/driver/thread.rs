//! The driver's thread, and its restart after a panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tracing::error;

use super::{DriverState, MessageHandler, reconnect_backoff};
use crate::broker::{Broker, ClusterState, Shared};
use crate::metrics::Dropped;

/// Run time after which the next panic counts as the first in a row, which resets the backoff.
const PANIC_RESET_AFTER: Duration = Duration::from_secs(60);

/// Outcome of the first attempt to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinOutcome {
    /// The node has joined.
    Joined,
    /// The broker was unreachable; the text is the reason. The driver continues to try.
    Unreachable(String),
    /// Another node has this node's name. The driver has ended.
    NameTaken,
}

/// The driver of a [`Broker`]. It runs on its own thread, so that load on other threads does not
/// delay heartbeats.
#[derive(Debug)]
pub struct Driver {
    shared: Arc<Shared>,
}

/// Handle to a running driver.
#[derive(Debug)]
pub struct DriverHandle {
    join_outcome: mpsc::Receiver<JoinOutcome>,
    ended: oneshot::Receiver<()>,
}

impl DriverHandle {
    /// Blocks until the first attempt to join ends, for at most `timeout`. Returns `None` if the
    /// attempt takes longer.
    #[must_use]
    pub fn wait_for_join(&self, timeout: Duration) -> Option<JoinOutcome> {
        self.join_outcome.recv_timeout(timeout).ok()
    }

    /// Waits until the driver ends, for example after [`Broker::stop`].
    pub async fn wait_for_end(self) {
        // An error means that the driver's thread dropped the sender, because it ended.
        let _ = self.ended.await;
    }
}

impl Driver {
    pub(crate) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Returns a handle to the broker.
    #[must_use]
    pub fn broker(&self) -> Broker {
        Broker(Arc::clone(&self.shared))
    }

    /// Starts the driver's thread.
    ///
    /// # Errors
    ///
    /// Returns an error if the thread cannot be started.
    pub fn spawn(self, handler: impl MessageHandler) -> std::io::Result<DriverHandle> {
        let (outcome_sender, join_outcome) = mpsc::channel();
        let (end_sender, ended) = oneshot::channel::<()>();
        std::thread::Builder::new().name("cluster".to_owned()).spawn(move || {
            let shared = Arc::clone(&self.shared);
            let mut driver = DriverState::new(self.shared, handler, outcome_sender);
            supervise(|| driver.run(), |panics| restart_after_panic(&shared, panics));
            // A panic here has been logged, and there is nothing left to do.
            let _ = catch_unwind(AssertUnwindSafe(|| driver.fail_appends()));
            drop(end_sender);
        })?;
        Ok(DriverHandle { join_outcome, ended })
    }
}

/// Calls `run` until it returns without a panic. After each panic, calls `restart` with the number
/// of panics in a row, and returns if `restart` returns `false`.
pub(super) fn supervise(mut run: impl FnMut(), mut restart: impl FnMut(usize) -> bool) {
    let mut panics = 0;
    loop {
        let began = Instant::now();
        if catch_unwind(AssertUnwindSafe(&mut run)).is_ok() {
            return;
        }
        panics = if began.elapsed() >= PANIC_RESET_AFTER { 1 } else { panics + 1 };
        if !restart(panics) {
            return;
        }
    }
}

/// Counts and logs a driver panic. Waits for the backoff and returns `true`, or returns `false` if
/// the driver was asked to stop. Messages that are queued for the broker stay in the queue.
pub(super) fn restart_after_panic(shared: &Shared, panics: usize) -> bool {
    shared.metrics.restarts.inc();
    let backoff = reconnect_backoff(panics);
    error!(panics, pause = ?backoff, "Cluster driver panicked");
    shared.set_state(ClusterState::Disconnected { error: "the cluster's driver panicked".to_owned() });
    shared.queue.clear_control();
    if shared.stop_request().is_none() {
        std::thread::sleep(backoff);
        return true;
    }
    let lost = shared.queue.len() as u64;
    shared.metrics.dropped(Dropped::Stopped, lost);
    shared.set_state(ClusterState::Stopped);
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_panics_runs_again_until_it_ends_by_itself() {
        let (mut runs, mut panics) = (0, Vec::new());
        let run = || {
            runs += 1;
            assert!(runs > 3, "a panic that this test wants");
        };
        supervise(run, |count| {
            panics.push(count);
            true
        });
        assert_eq!((runs, panics), (4, vec![1, 2, 3]));
        let mut runs = 0;
        let run = || {
            runs += 1;
            panic!("another panic that this test wants");
        };
        supervise(run, |_| false);
        assert_eq!(runs, 1);
    }
}
