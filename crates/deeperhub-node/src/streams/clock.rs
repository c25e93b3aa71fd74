//! The clock of streams.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use deeperhub_history::{Policy, Seconds};

/// Time before the start of the process at which the times of streams begin. Older messages than
/// these are never kept, so all messages of earlier processes have a time.
const BEFORE_START: Duration = Policy::MAX_TTL.saturating_add(Duration::from_secs(3600));

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
    /// Tasks of a simulation that sleep.
    #[cfg(test)]
    sleepers: std::sync::Mutex<Vec<std::task::Waker>>,
}

impl Clock {
    pub(crate) fn new(started: Instant) -> Self {
        let clock = Self {
            started,
            started_unix_ms: AtomicU64::new(0),
            #[cfg(test)]
            simulated: std::sync::Mutex::default(),
            #[cfg(test)]
            sleepers: std::sync::Mutex::default(),
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
        use std::sync::PoisonError;
        *self.simulated.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        let sleepers = std::mem::take(&mut *self.sleepers.lock().unwrap_or_else(PoisonError::into_inner));
        sleepers.iter().for_each(std::task::Waker::wake_by_ref);
    }

    /// Sets the wall-clock time at the start of a simulation.
    #[cfg(test)]
    pub(crate) fn simulate_wall_clock(&self, started_unix_ms: u64) {
        self.started_unix_ms.store(started_unix_ms, Ordering::Relaxed);
    }

    /// Waits. Needs a tokio runtime with time, except in a simulation.
    pub(crate) async fn sleep(&self, time: Duration) {
        #[cfg(test)]
        if self.simulated.lock().unwrap_or_else(std::sync::PoisonError::into_inner).is_some() {
            let until = self.now() + time;
            return std::future::poll_fn(|cx| {
                if self.now() >= until {
                    return std::task::Poll::Ready(());
                }
                let mut sleepers = self.sleepers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                sleepers.push(cx.waker().clone());
                std::task::Poll::Pending
            })
            .await;
        }
        tokio::time::sleep(time).await;
    }

    /// Reads the wall clock.
    pub(crate) fn synchronize(&self) {
        let unix_ms = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
        let started_unix_ms = unix_ms.saturating_sub(age_ms(self.age(Instant::now())));
        self.started_unix_ms.store(started_unix_ms, Ordering::Relaxed);
    }

    /// Returns the whole seconds from [`BEFORE_START`] to `at`.
    pub(crate) fn seconds(&self, at: Instant) -> Seconds {
        seconds_of_age(self.age(at))
    }

    /// Returns what [`Self::seconds`] and [`Self::unix_ms`] return.
    #[inline]
    pub(crate) fn seconds_and_unix_ms(&self, at: Instant) -> (Seconds, u64) {
        let age = self.age(at);
        (seconds_of_age(age), self.started_unix_ms.load(Ordering::Relaxed) + age_ms(age))
    }

    /// Returns the seconds of a wall-clock time, which can be before the start. A time in the future,
    /// of a clock that was set back, becomes the present.
    pub(crate) fn seconds_of_unix_ms(&self, unix_ms: u64) -> Seconds {
        let before_start = u64::try_from(BEFORE_START.as_millis()).unwrap_or(u64::MAX);
        let since_start =
            (unix_ms + before_start).saturating_sub(self.started_unix_ms.load(Ordering::Relaxed));
        Seconds::from(Duration::from_millis(since_start)).min(self.seconds(self.now()))
    }

    /// Returns milliseconds since the Unix epoch.
    pub(crate) fn unix_ms(&self, at: Instant) -> u64 {
        self.seconds_and_unix_ms(at).1
    }

    #[inline]
    fn age(&self, at: Instant) -> Duration {
        at.saturating_duration_since(self.started)
    }
}

/// Returns the time of streams of a process of this age.
#[inline]
fn seconds_of_age(age: Duration) -> Seconds {
    Seconds::from(Duration::from_secs(age.as_secs().saturating_add(BEFORE_START.as_secs())))
}

/// Returns the milliseconds of an age. An age that has more of them than the number holds is never
/// reached.
#[inline]
fn age_ms(age: Duration) -> u64 {
    age.as_secs().saturating_mul(1000).saturating_add(age.subsec_millis().into())
}
