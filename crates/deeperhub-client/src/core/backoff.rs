//! Random delays between attempts.

use std::time::Duration;

use super::Settings;

/// Delays before repeated attempts, each random between two limits.
#[derive(Debug, Clone, Default)]
pub(super) struct Backoff {
    attempts: u32,
}

impl Backoff {
    /// Returns the delay before the next attempt. The first is at most twice the shortest delay,
    /// the later ones lie between the shortest delay and a limit that doubles.
    pub(super) fn next_delay(&mut self, settings: &Settings, rng: &mut fastrand::Rng) -> Duration {
        self.count();
        let (min, max) = (settings.min_delay, settings.max_delay.max(settings.min_delay));
        let limit = min.saturating_mul(1 << self.attempts.min(20)).min(max);
        let from = if self.attempts == 1 { Duration::ZERO } else { min.min(limit) };
        from + limit.saturating_sub(from).mul_f64(rng.f64())
    }

    /// Counts an attempt at a time of the server.
    pub(super) fn count(&mut self) {
        self.attempts = self.attempts.saturating_add(1);
    }

    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_lie_between_limits_that_double() {
        let settings = Settings::default();
        for seed in 0..200 {
            let (mut backoff, mut rng) = (Backoff::default(), fastrand::Rng::with_seed(seed));
            for limits in [(0, 1000), (500, 2000), (500, 4000), (500, 8000), (500, 16_000), (500, 20_000)] {
                let delay = backoff.next_delay(&settings, &mut rng).as_millis();
                assert!((limits.0..=limits.1).contains(&delay), "{delay} ms is not in {limits:?}");
            }
            backoff.reset();
            assert!(backoff.next_delay(&settings, &mut rng) <= Duration::from_secs(1));
        }
    }

    #[test]
    fn many_attempts_stay_at_the_longest_delay() {
        let settings = Settings { min_delay: Duration::from_millis(1), ..Settings::default() };
        let (mut backoff, mut rng) = (Backoff { attempts: u32::MAX }, fastrand::Rng::with_seed(1));
        assert!(backoff.next_delay(&settings, &mut rng) <= settings.max_delay);
    }
}
