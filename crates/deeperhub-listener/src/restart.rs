//! How soon something that died is started again.

use std::time::Duration;

/// A life of this length says that the last start was good.
const STEADY: Duration = Duration::from_secs(30);

/// The delay of the second restart in a row; each further one doubles it.
const FIRST_DELAY: Duration = Duration::from_millis(100);

/// The longest delay.
const MAX_DELAY: Duration = Duration::from_secs(5);

/// Delays between the lives of a thread or task that dies: the first restart comes at once, those
/// that follow soon after come later and later, so that a fault that stays is no hot loop.
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
    /// Returns the delay after a life of this length; 5 s at most. A life of half a minute counts
    /// as the end of the fault.
    pub fn after(&mut self, life: Duration) -> Duration {
        if life >= STEADY {
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
        assert_eq!(delay.after(STEADY), Duration::ZERO);
        assert_eq!(delay.after(Duration::from_secs(1)), FIRST_DELAY);
    }
}
