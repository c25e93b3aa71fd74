//! Secrets: keys and tokens that no log may show.

use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Secret bytes: a key or a token.
///
/// `Debug` hides them, and there is no `Display`. Dropping a secret overwrites its memory.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Returns a secret of these bytes, or of the bytes of a text.
    ///
    /// Only this memory is overwritten on drop, not the caller's copies or buffers that grew earlier.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// Wraps bytes that are overwritten on drop already, without a copy.
    #[cfg(any(feature = "auth", feature = "tls"))]
    pub(crate) const fn from_zeroizing(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }

    /// Returns the bytes, for computing with them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Returns `true` if `given` equals the secret. Nothing matches an empty secret.
    ///
    /// The time depends only on the length of `given`: neither a difference nor a wrong length ends
    /// the comparison early.
    #[must_use]
    pub fn matches(&self, given: &[u8]) -> bool {
        // An empty secret is a configuration mistake, which must not let callers without a key in.
        if self.0.is_empty() {
            return false;
        }
        // Each given byte is compared with one of the secret, which repeats as often as necessary.
        let same = given.iter().zip(self.0.iter().cycle());
        let same = same.fold(subtle::Choice::from(1), |same, (a, b)| same & a.ct_eq(b));
        bool::from(same & given.len().ct_eq(&self.0.len()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn debug_shows_nothing_of_it() {
        assert_eq!(format!("{:?} {:#?}", Secret::new("hunter2"), Secret::new("")), "Secret(…) Secret(…)");
    }

    #[test]
    fn what_repeats_or_starts_like_the_secret_does_not_match() {
        let secret = Secret::new("abab".to_owned());
        assert!(secret.matches(b"abab"));
        for other in ["", "a", "ab", "aba", "ababa", "abababab", "abac", "xbab", "ABAB"] {
            assert!(!secret.matches(other.as_bytes()), "{other:?}");
        }
    }

    #[test]
    fn nothing_matches_an_empty_secret() {
        let secret = Secret::new(Vec::new());
        assert!(!secret.matches(b"") && !secret.matches(b"a"));
    }

    proptest! {
        #[test]
        fn exactly_the_same_bytes_match(secret in prop::collection::vec(0..3_u8, 1..6),
                                        given in prop::collection::vec(0..3_u8, 0..6)) {
            let kept = Secret::new(secret.clone());
            prop_assert_eq!(kept.matches(&given), secret == given);
            prop_assert!(kept.matches(kept.expose()));
        }
    }
}
