//! Positions in a stream.

use std::fmt;

/// Name of one life of a stream: eight ASCII letters and digits.
///
/// Offsets mean something only within their epoch. A stream gets a new epoch when it comes into
/// being and when it is emptied, so a position from before is recognized as foreign.
///
/// ```
/// use deeperhub_history::Epoch;
///
/// let epoch = Epoch::from_random(0x3c6e_f372_fe94);
/// assert_eq!(Epoch::parse(epoch.as_str()), Some(epoch));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch([u8; Self::BYTES]);

/// Number of random bits of an epoch. 62 to the power of 8 exceeds 2 to the power of 47.
const EPOCH_BITS: u32 = 47;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

impl Epoch {
    /// Length of the text in bytes.
    pub const BYTES: usize = 8;

    /// Creates an epoch from the lowest 47 bits of `random`. Different bits give different epochs.
    #[must_use]
    pub fn from_random(random: u64) -> Self {
        let mut bits = random & ((1 << EPOCH_BITS) - 1);
        let mut text = [0; Self::BYTES];
        for digit in &mut text {
            *digit = DIGITS[(bits % 62) as usize];
            bits /= 62;
        }
        Self(text)
    }

    /// Parses the text of an epoch. Returns `None` if `text` is not eight ASCII letters and digits,
    /// so that no stream has this epoch.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; Self::BYTES] = text.as_bytes().try_into().ok()?;
        bytes.iter().all(u8::is_ascii_alphanumeric).then_some(Self(bytes))
    }

    /// Returns the epoch as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Both constructors write ASCII only.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Epoch({self})")
    }
}

/// A position in a stream, with all that a client must give back to continue from it.
///
/// The three parts always travel together: an offset without its epoch could be taken for a
/// position in another stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// The stream's epoch.
    pub epoch: Epoch,
    /// Offset of the last message at or before this position; 0 before the first message.
    pub offset: u64,
    /// Time of the message, or of the look at the stream, in milliseconds since the Unix epoch.
    pub time_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
            let bits = |random: u64| random << (64 - EPOCH_BITS);
            let (first, second) = (Epoch::from_random(one), Epoch::from_random(other));
            prop_assert_eq!(first == second, bits(one) == bits(other));
            prop_assert_eq!(Epoch::from_random(one | 1 << 63), Epoch::from_random(one));
            prop_assert_eq!(Epoch::parse(first.as_str()), Some(first));
        }
    }
}
