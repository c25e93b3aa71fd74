//! Times of a stream.

use std::time::Duration;

/// A time in whole seconds since a fixed point that the caller chooses, such as the start of the
/// process.
///
/// Ages are counted in whole seconds, which keeps the time of a message at four bytes. A message
/// therefore lives for its `ttl`, and up to one second longer.
///
/// ```
/// use deeperhub_history::Seconds;
/// use std::time::Duration;
///
/// let now = Seconds::from(Duration::from_millis(61_900));
/// assert_eq!(now.since(Seconds::new(60)), 1);
/// assert_eq!(Seconds::new(60).since(now), 0);
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seconds(u32);

impl Seconds {
    /// Creates a time from a number of seconds.
    #[must_use]
    pub const fn new(seconds: u32) -> Self {
        Self(seconds)
    }

    /// Returns the number of seconds.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Returns the seconds from `earlier` to this time, or 0 if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u32 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Rounds down to whole seconds. Durations over 136 years become the maximum.
impl From<Duration> for Seconds {
    fn from(since_start: Duration) -> Self {
        Self(u32::try_from(since_start.as_secs()).unwrap_or(u32::MAX))
    }
}
