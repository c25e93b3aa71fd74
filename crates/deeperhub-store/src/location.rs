//! Places of records in the log.

/// The place of a record: a segment and the position of its first byte there.
///
/// Locations are ordered like the records were written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Location(u64);

impl Location {
    /// No record. Segments are numbered from 1, so no record has this location.
    pub(crate) const NONE: Self = Self(0);

    pub(crate) const fn new(segment: u32, position: u32) -> Self {
        Self((segment as u64) << 32 | position as u64)
    }

    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    pub(crate) const fn to_bits(self) -> u64 {
        self.0
    }

    pub(crate) const fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(crate) const fn position(self) -> u32 {
        self.0 as u32
    }
}
