//! The clock of streams.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use deeperhub_history::Seconds;

/// Converts times of this process to the times of streams.
///
/// Instants are cheap, because a worker has one for each round. The clock therefore adds the age of
/// an instant to the wall-clock time at the start. [`Self::synchronize`] corrects that time when the
/// wall clock was set.
#[derive(Debug)]
pub(crate) struct Clock {
    started: Instant,
    /// Wall-clock time at `started` in milliseconds since the Unix epoch.
    started_unix_ms: AtomicU64,
    /// Present time of a simulation.
    #[cfg(test)]
    simulated: std::sync::Mutex<Option<Instant>>,
}

impl Clock {
    pub(crate) fn new(started: Instant) -> Self {
        let clock = Self {
            started,
            started_unix_ms: AtomicU64::new(0),
            #[cfg(test)]
            simulated: std::sync::Mutex::default(),
        };
        clock.synchronize();
        clock
    }

    /// Returns the present time.
    pub(crate) fn now(&self) -> Instant {
        #[cfg(test)]
        if let Some(now) = *self.simulated.lock().unwrap_or_else(std::sync::PoisonError::into_inner) {
            return now;
        }
        Instant::now()
    }

    /// Sets the present time of a simulation.
    #[cfg(test)]
    pub(crate) fn simulate(&self, now: Instant) {
        *self.simulated.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(now);
    }

    /// Reads the wall clock.
    pub(crate) fn synchronize(&self) {
        let unix_ms = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let started_unix_ms = unix_ms.saturating_sub(self.age_ms(Instant::now()));
        self.started_unix_ms.store(started_unix_ms, Ordering::Relaxed);
    }

    /// Returns the whole seconds from the start to `at`.
    pub(crate) fn seconds(&self, at: Instant) -> Seconds {
        at.saturating_duration_since(self.started).into()
    }

    /// Returns milliseconds since the Unix epoch.
    pub(crate) fn unix_ms(&self, at: Instant) -> u64 {
        self.started_unix_ms.load(Ordering::Relaxed) + self.age_ms(at)
    }

    fn age_ms(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }
}
