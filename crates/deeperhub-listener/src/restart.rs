//! Backoff between restarts of a thread or task that panicked.

use std::time::Duration;

/// Lifetime after which a restart counts as successful, and the backoff is reset.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// Delay of the second restart in a row. Each further restart doubles the delay.
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// Maximum delay of a restart.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// Backoff between restarts of a thread or task that panicked.
///
/// The first restart is not delayed. Further restarts are delayed more and more, unless the thread
/// ran for half a minute before its panic. A thread that always panics thus uses little CPU time.
///
/// ```
/// use std::time::Duration;
/// use deeperhub_listener::RestartDelay;
///
/// let mut delay = RestartDelay::default();
/// let lifetime = Duration::from_millis(3);
/// assert_eq!(delay.after(lifetime), Duration::ZERO);
/// assert_eq!(delay.after(lifetime), Duration::from_millis(100));
/// assert_eq!(delay.after(lifetime), Duration::from_millis(200));
/// ```
#[derive(Debug, Default)]
pub struct RestartDelay {
    next: Duration,
}

impl RestartDelay {
    /// Returns the delay before the next restart, at most 5 s. `lifetime` is the time from the last
    /// start to the panic.
    pub fn after(&mut self, lifetime: Duration) -> Duration {
        if lifetime >= STABLE_AFTER {
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
    fn delays_grow_up_to_a_maximum_and_are_reset_after_a_long_lifetime() {
        let mut delay = RestartDelay::default();
        let delays: Vec<_> = (0..10).map(|_| delay.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(delays, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000]);
        assert_eq!(delay.after(STABLE_AFTER), Duration::ZERO);
        assert_eq!(delay.after(Duration::from_secs(1)), FIRST_DELAY);
    }
}
