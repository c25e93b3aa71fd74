//! Durations.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A duration, written as `500ms`, `10s`, `2m`, `1h` or `0`. `FromStr` accepts at most a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Duration);

/// Maximum duration that [`Time`]'s `FromStr` accepts.
const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

impl FromStr for Time {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse_up_to(text, MAX_DURATION)
            .ok_or_else(|| "expected a duration such as 500ms, 10s, 2m or 1h, at most 24h".to_owned())
    }
}

impl Time {
    /// Parses a duration of at most `max`. Returns `None` if `text` is not a duration or is over
    /// `max`.
    pub fn parse_up_to(text: &str, max: Duration) -> Option<Self> {
        if text == "0" {
            return Some(Self(Duration::ZERO));
        }
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(unit_ms))
            .map(Duration::from_millis)
            .filter(|time| *time <= max)
            .map(Self)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            0 => f.write_str("0s"),
            ms if ms % 3_600_000 == 0 => write!(f, "{}h", ms / 3_600_000),
            ms if ms % 60_000 == 0 => write!(f, "{}m", ms / 60_000),
            ms if ms % 1000 == 0 => write!(f, "{}s", ms / 1000),
            ms => write!(f, "{ms}ms"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;

    #[test]
    fn durations_have_a_unit_and_display_in_the_largest_exact_unit() {
        for (input, expected) in [
            ("500ms", Some("500ms")),
            ("10s", Some("10s")),
            ("2m", Some("2m")),
            ("1h", Some("1h")),
            ("1500ms", Some("1500ms")),
            ("2000ms", Some("2s")),
            ("120s", Some("2m")),
            ("0", Some("0s")),
            ("0ms", Some("0s")),
            ("24h", Some("24h")),
            ("25h", None),
            ("10", None),
            ("", None),
            ("s", None),
            ("-1s", None),
            ("+1s", None),
            ("1.5s", None),
            ("1 s", None),
            ("1S", None),
            ("1d", None),
            ("99999999999999999999s", None),
            ("18446744073709551615h", None),
        ] {
            check::<Time>(input, expected);
        }
    }
}
