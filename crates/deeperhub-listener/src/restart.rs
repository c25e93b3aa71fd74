//! Backoff between restarts of a thread or task that panicked.

use std::time::Duration;

/// Lifetime after which the last start counts as good.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// Delay of the second restart in a row; each further one doubles it.
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// Upper bound of the delay.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// Backoff between restarts of a thread or task that panics. The first restart comes at once;
/// further ones soon after are delayed more and more. So a lasting fault does not become a hot
/// loop.
///
/// ```
/// use std::time::Duration;
/// use deeperhub_listener::RestartDelay;
///
/// let mut delay = RestartDelay::default();
/// let short_life = Duration::from_millis(3);
/// assert_eq!(delay.after(short_life), Duration::ZERO);
/// assert_eq!(delay.after(short_life), Duration::from_millis(100));
/// assert_eq!(delay.after(short_life), Duration::from_millis(200));
/// ```
#[derive(Debug, Default)]
pub struct RestartDelay {
    next: Duration,
}

impl RestartDelay {
    /// Returns the delay before the next restart, at most 5 s, after a lifetime of `life`. A
    /// lifetime of half a minute resets the backoff.
    pub fn after(&mut self, life: Duration) -> Duration {
        if life >= STABLE_AFTER {
            self.next = Duration::ZERO;
        }
        let delay = self.next;
        self.next = (delay * 2).clamp(FIRST_DELAY, MAX_DELAY);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_bound_and_start_anew_after_a_long_life() {
        let mut delay = RestartDelay::default();
        let delays: Vec<_> = (0..10).map(|_| delay.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(delays, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
        assert_eq!(delay.after(STABLE_AFTER), Duration::ZERO);
        assert_eq!(delay.after(Duration::from_secs(1)), FIRST_DELAY);
    }
}
