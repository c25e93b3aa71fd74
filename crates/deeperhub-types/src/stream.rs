//! Positions in the streams of topics with history.

use std::fmt;

/// Digits of an [`Epoch`] in ascending order, which is also the order of their bytes.
const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// The identity of a stream. Two streams of one topic have different epochs, so an offset of one
/// stream means nothing in the other.
///
/// An epoch is a number below 62⁸, written as eight characters of `0-9 A-Z a-z`. It needs no
/// escaping in JSON or in a URL. Epochs are ordered like their numbers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch([u8; Self::BYTES]);

impl Epoch {
    /// Length of an epoch in bytes.
    pub const BYTES: usize = 8;

    /// Number of bits of a number that every epoch can hold: 2⁴⁷ is below 62⁸.
    const BITS: u32 = 47;

    /// Creates an epoch from the lowest 47 bits of `bits`. The caller supplies random bits for a
    /// new stream, or a number that is higher than that of the previous epoch.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        let mut rest = bits & ((1 << Self::BITS) - 1);
        let mut text = [b'0'; Self::BYTES];
        let mut at = Self::BYTES;
        while at > 0 {
            at -= 1;
            text[at] = DIGITS[(rest % 62) as usize];
            rest /= 62;
        }
        Self(text)
    }

    /// Converts the eight characters of an epoch. Returns `None` if one of them is not allowed.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::BYTES]) -> Option<Self> {
        let mut at = 0;
        while at < Self::BYTES {
            if !bytes[at].is_ascii_alphanumeric() {
                return None;
            }
            at += 1;
        }
        Some(Self(bytes))
    }

    /// Parses an epoch. Returns `None` if `text` is not the text of an epoch.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::from_bytes(text.as_bytes().try_into().ok()?)
    }

    /// Returns the characters of the epoch, which are ASCII.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; Self::BYTES] {
        self.0
    }

    /// Returns the epoch as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // The constructors accept only ASCII, so the conversion succeeds.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Epoch({self})")
    }
}

/// A position in a stream. Epoch, offset and time always travel together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Position {
    /// The stream.
    pub epoch: Epoch,
    /// The offset of a message. The first message of a stream has offset 1, so 0 is the position
    /// before all messages.
    pub offset: u64,
    /// Milliseconds since the Unix epoch: the time of the message, or of the look at the stream.
    pub time: u64,
}

/// The reason why a subscriber does not get some messages of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum GapReason {
    /// The messages are older than what is kept.
    Trimmed,
    /// The topic's delivery policy dropped the oldest messages for a slow subscriber.
    Dropped,
    /// The topic's delivery policy delivers only the newest message to a slow subscriber.
    Conflated,
    /// The store of the stream cannot return the messages.
    Lost,
    /// The topic has a new stream.
    Epoch,
}

impl GapReason {
    /// All reasons, in the order of [`Self::index`].
    pub const ALL: &'static [Self] =
        &[Self::Trimmed, Self::Dropped, Self::Conflated, Self::Lost, Self::Epoch];

    /// Returns the value of `reason` in a `gap` message.
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

    /// Returns the position in [`Self::ALL`], which is an index for arrays of counters.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for GapReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

/// The reason why a subscription does not continue at the position that a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NotRecovered {
    /// The position belongs to another stream.
    Epoch,
    /// The position is after the newest message.
    Ahead,
    /// Messages after the position are no longer kept.
    Trimmed,
    /// The topic has no history.
    NoHistory,
    /// The subscription is a pattern.
    Pattern,
    /// Another subscription of the client matches the topic.
    Overlap,
}

impl NotRecovered {
    /// All reasons, in the order of [`Self::index`].
    pub const ALL: &'static [Self] =
        &[Self::Epoch, Self::Ahead, Self::Trimmed, Self::NoHistory, Self::Pattern, Self::Overlap];

    /// Returns the value of `reason` in a `subscribed` message.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Epoch => "epoch",
            Self::Ahead => "ahead",
            Self::Trimmed => "trimmed",
            Self::NoHistory => "no_history",
            Self::Pattern => "pattern",
            Self::Overlap => "overlap",
        }
    }

    /// Returns the position in [`Self::ALL`], which is an index for arrays of counters.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for NotRecovered {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_epoch_is_its_number_in_base_62() {
        for (bits, text) in [
            (0, "00000000"),
            (61, "0000000z"),
            (62, "00000010"),
            ((1 << 47) - 1, "dxlGgaI3"),
            (1 << 47, "00000000"),
            (u64::MAX, "dxlGgaI3"),
        ] {
            assert_eq!(Epoch::from_bits(bits).as_str(), text, "{bits}");
        }
    }

    #[test]
    fn epochs_are_ordered_like_their_numbers() {
        let mut numbers: Vec<u64> = (0..47).map(|bit| 1 << bit).chain([0, 9, 10, 35, 36, 61]).collect();
        numbers.sort_unstable();
        assert!(numbers.iter().map(|&bits| Epoch::from_bits(bits)).is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn an_epoch_parses_to_the_same_value() {
        for epoch in [0, 1, 12_345, u64::MAX].map(Epoch::from_bits) {
            assert_eq!(Epoch::parse(epoch.as_str()), Some(epoch));
            assert_eq!(Epoch::from_bytes(epoch.to_bytes()), Some(epoch));
            assert_eq!(epoch.to_string(), epoch.as_str());
        }
    }

    #[test]
    fn other_text_is_not_an_epoch() {
        for text in ["", "1234567", "123456789", "1234 678", "1234-678", "éééé", "\"\"\"\"\"\"\"\""] {
            assert_eq!(Epoch::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn only_eight_letters_and_digits_are_an_epoch() {
        assert_eq!(Epoch::parse("k3J9aQx2").map(|epoch| epoch.to_string()), Some("k3J9aQx2".to_owned()));
        for text in ["", "k3J9aQx", "k3J9aQx22", "k3J9aQx-", "k3J9aQ\u{e9}", "k3J9 Qx2"] {
            assert_eq!(Epoch::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_lowest_bits_alone_determine_the_epoch(one: u64, other: u64) {
            let bits = |random: u64| random << (64 - Epoch::BITS);
            let (first, second) = (Epoch::from_bits(one), Epoch::from_bits(other));
            prop_assert_eq!(first == second, bits(one) == bits(other));
            prop_assert_eq!(Epoch::from_bits(one | 1 << 63), Epoch::from_bits(one));
            prop_assert_eq!(Epoch::parse(first.as_str()), Some(first));
        }
    }

    #[test]
    fn reasons_are_ordered_by_index() {
        for (index, reason) in GapReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index, "{reason}");
        }
        assert_eq!(GapReason::ALL.len(), GapReason::Epoch.index() + 1, "the table is complete");
        for (index, reason) in NotRecovered::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index, "{reason}");
        }
        assert_eq!(NotRecovered::ALL.len(), NotRecovered::Overlap.index() + 1, "the table is complete");
    }
}
