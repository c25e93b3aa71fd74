//! Configuration of the probes.

use std::time::Duration;

/// Interval and timeout of the probes that prove delivery.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct CanaryConfig {
    /// Time between probes. With zero, no probes are sent, and readiness does not depend on them.
    /// Default 5 s.
    pub interval: Duration,
    /// Time within which a probe must return. Default 5 s.
    pub timeout: Duration,
}

impl CanaryConfig {
    /// Returns a configuration without probes. Readiness then does not depend on them.
    #[must_use]
    pub fn disabled() -> Self {
        Self { interval: Duration::ZERO, ..Self::default() }
    }

    /// Returns a configuration with probes at each interval, which must return within the timeout.
    #[must_use]
    pub const fn new(interval: Duration, timeout: Duration) -> Self {
        Self { interval, timeout }
    }
}

impl Default for CanaryConfig {
    fn default() -> Self {
        Self { interval: Duration::from_secs(5), timeout: Duration::from_secs(5) }
    }
}
