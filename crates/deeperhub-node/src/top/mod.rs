//! The busiest topics and clients, in bounded memory: the Space-Saving sketch of Metwally, Agrawal
//! and El Abbadi ("Efficient Computation of Frequent and Top-k Elements in Data Streams", 2005).
//! Each worker has its own sketches.
//!
//! Tracking starts with a request and stops some time after the last request. While it is off, it
//! costs one atomic load per round, and one per publish that no worker makes. Each message of a
//! client costs one branch.

mod report;
mod sketch;
mod window;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use report::{Top, TopEntry};
pub(crate) use window::{TopReport, TopWindow};

/// Time that tracking continues after a request.
const TRACKING_TIMEOUT: Duration = Duration::from_secs(30);

/// Maximum topics in a worker's report of subscriptions that are behind.
pub(crate) const MAX_TOPICS_BEHIND: usize = 128;

/// Switches tracking on and off, and counts the publishes that no worker makes: those of backends
/// and of other nodes.
#[derive(Debug)]
pub(crate) struct TopTracker {
    started: Instant,
    /// End of the tracking, in milliseconds since `started`. 0 if tracking is off.
    track_until_ms: AtomicU64,
    non_worker_window: Mutex<Option<TopWindow>>,
}

impl TopTracker {
    pub(crate) fn new(started: Instant) -> Self {
        Self { started, track_until_ms: AtomicU64::new(0), non_worker_window: Mutex::new(None) }
    }

    /// Starts tracking, or extends it.
    pub(crate) fn keep_tracking(&self, now: Instant) {
        self.track_until_ms.fetch_max(self.elapsed_ms(now + TRACKING_TIMEOUT), Ordering::Relaxed);
    }

    pub(crate) fn is_tracking(&self, now: Instant) -> bool {
        match self.track_until_ms.load(Ordering::Relaxed) {
            0 => false,
            track_until_ms => self.elapsed_ms(now) < track_until_ms,
        }
    }

    /// Counts a publish of a backend or of another node.
    pub(crate) fn publish(&self, topic: &str, deliveries: u64, bytes: usize) {
        // Avoids reading the clock while tracking is off.
        if self.track_until_ms.load(Ordering::Relaxed) == 0 {
            return;
        }
        let now = Instant::now();
        let is_tracking = self.is_tracking(now);
        let mut non_worker_window = self.non_worker_window.lock().unwrap_or_else(PoisonError::into_inner);
        if !is_tracking {
            *non_worker_window = None;
            self.stop_tracking(now);
            return;
        }
        non_worker_window.get_or_insert_with(|| TopWindow::new(now)).publish(topic, deliveries, bytes, now);
    }

    /// Returns the counts of publishes that no worker made.
    pub(crate) fn report(&self, now: Instant) -> TopReport {
        let mut non_worker_window = self.non_worker_window.lock().unwrap_or_else(PoisonError::into_inner);
        non_worker_window.get_or_insert_with(|| TopWindow::new(now)).report(now)
    }

    /// Switches tracking off if its time is over.
    fn stop_tracking(&self, now: Instant) {
        let track_until_ms = self.track_until_ms.load(Ordering::Relaxed);
        if track_until_ms != 0 && self.elapsed_ms(now) >= track_until_ms {
            let _ =
                self.track_until_ms.compare_exchange(track_until_ms, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn elapsed_ms(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests;
