//! Optional features of a server.

use std::ops::BitOr;

/// The optional features that a server offers, announced in `welcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Features(u8);

impl Features {
    /// No optional feature.
    pub const NONE: Self = Self(0);
    /// Topics with history: positions, recovery, and reading what is kept.
    pub const HISTORY: Self = Self(1);

    /// The single features with their names on the wire.
    const NAMES: &'static [(Self, &'static str)] = &[(Self::HISTORY, "history")];

    /// Returns `true` if the set contains all of `other`.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns the names of the features in the set.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.iter().filter(move |(feature, _)| self.contains(*feature)).map(|(_, name)| *name)
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_names_its_features() {
        assert_eq!(Features::NONE.names().count(), 0);
        assert_eq!((Features::NONE | Features::HISTORY).names().collect::<Vec<_>>(), ["history"]);
        assert!(Features::HISTORY.contains(Features::NONE));
        assert!(!Features::NONE.contains(Features::HISTORY));
    }
}
