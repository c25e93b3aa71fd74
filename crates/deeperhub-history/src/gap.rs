//! Ranges of offsets that a subscriber does not get.

use crate::{Epoch, Position};
use std::fmt;

/// Offsets that a subscriber will not get. A gap is a position too: after it, the subscriber stands
/// at `to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The epoch of `to`.
    pub epoch: Epoch,
    /// First offset that is skipped; `None` for [`GapReason::Epoch`], because offsets of two epochs
    /// cannot be compared.
    pub from: Option<u64>,
    /// Last offset that is skipped.
    pub to: u64,
    /// Reason for the gap.
    pub reason: GapReason,
}

impl Gap {
    /// Returns the position at which the subscriber stands after the gap. `time_ms` is the present
    /// time in milliseconds since the Unix epoch.
    #[must_use]
    pub const fn position(&self, time_ms: u64) -> Position {
        Position { epoch: self.epoch, offset: self.to, time_ms }
    }
}

/// Reason for a [`Gap`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GapReason {
    /// The messages were evicted from the history before the subscriber got them.
    Trimmed,
    /// The policy `drop_oldest` skips them.
    Dropped,
    /// A newer message replaces them (policies `latest` and `sample`).
    Conflated,
    /// A store outside of the process lost them. Streams of this crate never report it.
    Lost,
    /// The stream was emptied or replaced. The subscriber continues in the new epoch.
    Epoch,
}

impl GapReason {
    /// All reasons, for example for the labels of a metric.
    pub const ALL: [Self; 5] = [Self::Trimmed, Self::Dropped, Self::Conflated, Self::Lost, Self::Epoch];

    /// Returns the reason's name in messages and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trimmed => "trimmed",
            Self::Dropped => "dropped",
            Self::Conflated => "conflated",
            Self::Lost => "lost",
            Self::Epoch => "epoch",
        }
    }
}

impl fmt::Display for GapReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}
