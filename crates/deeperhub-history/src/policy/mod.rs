//! The settings of a rule for a topic: how much is kept, and how slow subscribers move.

mod error;
mod settings;
mod values;

pub use error::RuleError;
pub(crate) use error::excerpt;
pub use settings::PolicySettings;

use std::fmt;
use std::time::Duration;

/// Valid settings of a topic's history. [`PolicySettings::resolve`] creates them.
///
/// `Display` writes the settings in the text form of a rule, without those that have their default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    history: u32,
    history_bytes: u32,
    ttl: Duration,
    delivery: Delivery,
    acknowledge: Acknowledge,
    share: u32,
    max_streams: Option<u32>,
}

impl Policy {
    /// Maximum of `history`.
    pub const MAX_HISTORY: u32 = 1_000_000;
    /// Default of `history_bytes`: 4 MiB.
    pub const DEFAULT_HISTORY_BYTES: u32 = 4 << 20;
    /// Maximum of `history_bytes`: 1 GiB.
    pub const MAX_HISTORY_BYTES: u32 = 1 << 30;
    /// Default of `ttl`: ten minutes.
    pub const DEFAULT_TTL: Duration = Duration::from_secs(600);
    /// Minimum of `ttl`: a second.
    pub const MIN_TTL: Duration = Duration::from_secs(1);
    /// Maximum of `ttl`: seven days.
    pub const MAX_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
    /// Default of `keep`, if `history` is not lower.
    pub const DEFAULT_KEEP: u32 = 16;
    /// Default of `every`.
    pub const DEFAULT_EVERY: Duration = Duration::from_millis(500);
    /// Minimum of `every`.
    pub const MIN_EVERY: Duration = Duration::from_millis(10);
    /// Maximum of `every`: an hour.
    pub const MAX_EVERY: Duration = Duration::from_secs(3600);
    /// Maximum of `share`.
    pub const MAX_SHARE: u32 = 1000;
    /// Maximum of `max_streams`.
    pub const MAX_STREAMS: u32 = 100_000_000;

    /// Returns `true` if messages of the topic are kept.
    #[must_use]
    pub const fn keeps_history(&self) -> bool {
        self.history > 0
    }

    /// Returns the maximum number of messages that are kept of a topic.
    #[must_use]
    pub const fn history(&self) -> u32 {
        self.history
    }

    /// Returns the maximum number of bytes that are kept of a topic.
    #[must_use]
    pub const fn history_bytes(&self) -> u32 {
        self.history_bytes
    }

    /// Returns the maximum age of a message.
    #[must_use]
    pub const fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Returns how a subscriber that is behind moves.
    #[must_use]
    pub const fn delivery(&self) -> Delivery {
        self.delivery
    }

    /// Returns when a publish is acknowledged.
    #[must_use]
    pub const fn acknowledge(&self) -> Acknowledge {
        self.acknowledge
    }

    /// Returns the rule's weight in the bytes and streams of all rules.
    #[must_use]
    pub const fn share(&self) -> u32 {
        self.share
    }

    /// Returns the maximum number of topics with a stream; `None` for the rule's share of the
    /// budget's streams.
    #[must_use]
    pub const fn max_streams(&self) -> Option<u32> {
        self.max_streams
    }

    /// Returns the bounds of one stream.
    #[must_use]
    pub fn retention(&self) -> Retention {
        // Rounding up keeps a message at least as long as the rule says.
        let ttl = self.ttl.as_secs() + u64::from(self.ttl.subsec_nanos() > 0);
        Retention {
            messages: self.history,
            bytes: self.history_bytes,
            ttl_seconds: u32::try_from(ttl).unwrap_or(u32::MAX),
        }
    }
}

/// Settings without a rule's history: nothing is kept, and slow subscribers are disconnected.
impl Default for Policy {
    fn default() -> Self {
        Self {
            history: 0,
            history_bytes: Self::DEFAULT_HISTORY_BYTES,
            ttl: Self::DEFAULT_TTL,
            delivery: Delivery::Close,
            acknowledge: Acknowledge::Memory,
            share: 1,
            max_streams: None,
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "history={}", self.history)?;
        if self.history_bytes != Self::DEFAULT_HISTORY_BYTES {
            write!(formatter, " history_bytes={}", values::Bytes(self.history_bytes))?;
        }
        if self.ttl != Self::DEFAULT_TTL {
            write!(formatter, " ttl={}", values::Time(self.ttl))?;
        }
        if self.delivery != Delivery::default_for(self.history) {
            write!(formatter, " delivery={}", self.delivery.as_str())?;
        }
        match self.delivery {
            Delivery::DropOldest { keep } if keep != Self::DEFAULT_KEEP.min(self.history) => {
                write!(formatter, " keep={keep}")?;
            }
            Delivery::Sample { every } if every != Self::DEFAULT_EVERY => {
                write!(formatter, " every={}", values::Time(every))?;
            }
            _ => {}
        }
        if self.acknowledge != Acknowledge::Memory {
            write!(formatter, " ack={}", self.acknowledge.as_str())?;
        }
        if self.share != 1 {
            write!(formatter, " share={}", self.share)?;
        }
        match self.max_streams {
            Some(streams) => write!(formatter, " max_streams={streams}"),
            None => Ok(()),
        }
    }
}

/// Bounds of one stream. The oldest messages are evicted until all three hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Maximum number of messages.
    pub messages: u32,
    /// Maximum number of bytes, as the caller counts them.
    pub bytes: u32,
    /// Maximum age of a message in seconds.
    pub ttl_seconds: u32,
}

/// How a subscriber that is behind moves through a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// It gets all that is kept.
    Lossless,
    /// It jumps to the last `keep` messages.
    DropOldest {
        /// Number of messages that are not skipped.
        keep: u32,
    },
    /// It jumps to the newest message.
    Latest,
    /// It gets the newest message once per interval.
    Sample {
        /// The interval.
        every: Duration,
    },
    /// It is disconnected as soon as it misses a message.
    Close,
}

impl Delivery {
    /// Returns the delivery of a rule that names none.
    const fn default_for(history: u32) -> Self {
        if history == 0 { Self::Close } else { Self::Lossless }
    }

    /// Returns the name in a rule.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lossless => "lossless",
            Self::DropOldest { .. } => "drop_oldest",
            Self::Latest => "latest",
            Self::Sample { .. } => "sample",
            Self::Close => "close",
        }
    }

    /// Returns the maximum number of messages that a subscriber gets of those that it is behind.
    #[must_use]
    pub fn max_messages(self) -> u64 {
        match self {
            Self::Lossless | Self::Close => u64::MAX,
            // A `keep` of 0 would skip messages and never deliver one.
            Self::DropOldest { keep } => u64::from(keep.max(1)),
            Self::Latest | Self::Sample { .. } => 1,
        }
    }
}

/// When a publish is acknowledged. This crate stores nothing; the setting is for callers with a
/// store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledge {
    /// When the message is in memory.
    Memory,
    /// When the message is on disk.
    Disk,
}

impl Acknowledge {
    /// Returns the name in a rule.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Disk => "disk",
        }
    }
}
