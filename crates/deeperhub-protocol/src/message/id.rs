//! Message IDs, which correlate replies with messages.

use crate::json::unescape;
use std::fmt;

/// A message's `id`, which its reply repeats unchanged. It is stored as the received JSON text: a
/// string with quotes and escapes, or digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageId<'a>(&'a str);

impl<'a> MessageId<'a> {
    /// Maximum length of a string ID in bytes of UTF-8, without quotes and with escapes decoded.
    pub const MAX_BYTES: usize = 64;

    /// Returns the ID as JSON text.
    #[must_use]
    pub const fn as_json(self) -> &'a str {
        self.0
    }

    /// Converts a JSON value that is a string of at most [`Self::MAX_BYTES`] or an unsigned 64-bit
    /// integer. Returns `None` for other values.
    ///
    /// An integer consists of digits only: `1.0`, `1e3` and `-0` are not integers.
    #[must_use]
    pub fn from_json(json: &'a str) -> Option<Self> {
        let valid = match json.strip_prefix('"').and_then(|json| json.strip_suffix('"')) {
            Some(inside) => {
                // Compare the decoded length, since escapes are longer than their characters.
                unescape(inside).is_some_and(|text| text.len() <= Self::MAX_BYTES)
            }
            // The largest `u64` has 20 digits, so a number of up to 19 digits always fits.
            None => {
                json.bytes().all(|byte| byte.is_ascii_digit())
                    && (json.len() < 20 || json.parse::<u64>().is_ok())
            }
        };
        valid.then_some(Self(json))
    }
}

impl fmt::Display for MessageId<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_of_64_bytes_and_integers_of_64_bits_are_ids() {
        let longest = format!("\"{}\"", "x".repeat(64));
        let escaped = format!("\"{}\"", "\\u0078".repeat(64));
        let two_bytes_each = format!("\"{}\"", "\\u00e9".repeat(32));
        for json in [
            r#""""#,
            r#""a\"b\\""#,
            r#""\ud83d\ude00""#,
            "0",
            "7",
            "18446744073709551615",
            longest.as_str(),
            escaped.as_str(),
            two_bytes_each.as_str(),
        ] {
            assert_eq!(MessageId::from_json(json).map(MessageId::as_json), Some(json));
        }
    }

    #[test]
    fn other_values_are_not_ids() {
        let too_long = format!("\"{}\"", "x".repeat(65));
        let too_long_decoded = format!("\"{}\"", "\\u00e9".repeat(33));
        for json in [
            "-0",
            "-1",
            "1.0",
            "1e3",
            "0e0",
            "18446744073709551616",
            "null",
            "true",
            "[]",
            "{}",
            r#"["a"]"#,
            r#""\ud800""#,
            too_long.as_str(),
            too_long_decoded.as_str(),
        ] {
            assert_eq!(MessageId::from_json(json), None, "{json}");
        }
    }
}
