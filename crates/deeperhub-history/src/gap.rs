//! Ranges of offsets that a subscriber does not get.

use deeperhub_types::{Epoch, GapReason, Position};

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
        Position { epoch: self.epoch, offset: self.to, time: time_ms }
    }
}
