//! Secrets: keys and tokens that must not appear in logs.

use std::fmt;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Secret bytes: a key or a token.
///
/// `Debug` hides them, and there is no `Display`. Dropping a secret overwrites its memory.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Secret {
    /// Creates a secret from bytes or a text.
    ///
    /// The drop overwrites only the memory of this value, not copies that the caller has or that a
    /// growing buffer has left.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(Zeroizing::new(bytes.into()))
    }

    /// Creates a secret without copying the bytes.
    #[cfg(any(feature = "auth", feature = "tls"))]
    pub(crate) const fn from_zeroizing(bytes: Zeroizing<Vec<u8>>) -> Self {
        Self(bytes)
    }

    /// Returns the bytes, for computing with them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Returns `true` if `given` equals the secret and the secret is not empty.
    ///
    /// The time depends only on the length of `given`: neither a difference nor a wrong length ends
    /// the comparison early.
    #[must_use]
    pub fn matches(&self, given: &[u8]) -> bool {
        // An empty secret is a mistake of configuration. Callers without a key must not match it.
        if self.0.is_empty() {
            return false;
        }
        // The secret is repeated to the length of `given`, so that each given byte is compared.
        let pairs = given.iter().zip(self.0.iter().cycle());
        let bytes_match =
            pairs.fold(subtle::Choice::from(1), |match_so_far, (a, b)| match_so_far & a.ct_eq(b));
        bool::from(bytes_match & given.len().ct_eq(&self.0.len()))
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
