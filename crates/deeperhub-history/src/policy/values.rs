//! Text forms of values: numbers, sizes and durations.

use std::fmt;
use std::time::Duration;

/// Parses a whole number from `min` to `max`.
pub(super) fn whole(text: &str, min: u32, max: u32) -> Option<u32> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = text.parse().ok().filter(|_| is_plain)?;
    (min..=max).contains(&number).then_some(number)
}

/// Returns the leading number of `text`, and its unit.
fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit))
}

/// A size in bytes, written as `4MiB`, `64KiB` or `1000`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bytes(pub(super) u32);

const BYTE_UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl Bytes {
    /// Parses a size from `min` to `max`.
    pub(super) fn parse(text: &str, min: u32, max: u32) -> Option<u32> {
        let (number, unit) = number_and_unit(text)?;
        let factor = match unit {
            "" => 1,
            _ => BYTE_UNITS.iter().find(|(name, _)| *name == unit)?.1,
        };
        let bytes = u32::try_from(number.checked_mul(factor)?).ok()?;
        (min..=max).contains(&bytes).then_some(bytes)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = u64::from(self.0);
        match BYTE_UNITS.iter().find(|(_, factor)| bytes >= *factor && bytes % factor == 0) {
            Some((unit, factor)) => write!(formatter, "{}{unit}", bytes / factor),
            None => bytes.fmt(formatter),
        }
    }
}

/// A duration, written as `500ms`, `10s`, `2m` or `1h`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time(pub(super) Duration);

/// Units of durations in milliseconds, longest first.
const TIME_UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

impl Time {
    /// Parses a duration from `min` to `max`.
    pub(super) fn parse(text: &str, min: Duration, max: Duration) -> Option<Duration> {
        let (number, unit) = number_and_unit(text)?;
        let factor = TIME_UNITS.iter().find(|(name, _)| *name == unit)?.1;
        let time = Duration::from_millis(number.checked_mul(factor)?);
        (min..=max).contains(&time).then_some(time)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX);
        // Every number of milliseconds is a multiple of the last unit.
        let (unit, factor) = *TIME_UNITS.iter().find(|(_, factor)| ms % factor == 0).unwrap_or(&("ms", 1));
        write!(formatter, "{}{unit}", ms / factor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units_or_none() {
        for (text, bytes) in [
            ("1", Some(1)),
            ("1000", Some(1000)),
            ("64KiB", Some(65_536)),
            ("4MiB", Some(4 << 20)),
            ("1GiB", Some(1 << 30)),
            ("0", None),
            ("2GiB", None),
            ("4MB", None),
            ("4 MiB", None),
            ("MiB", None),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1.5MiB", None),
            ("18446744073709551615GiB", None),
        ] {
            assert_eq!(Bytes::parse(text, 1, 1 << 30), bytes, "{text}");
        }
        for (bytes, text) in [(1, "1"), (1024, "1KiB"), (1025, "1025"), (3 << 20, "3MiB"), (1 << 30, "1GiB")]
        {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn durations_have_a_unit() {
        let parse = |text| Time::parse(text, Duration::from_millis(10), Duration::from_secs(3600));
        for (text, ms) in [
            ("10ms", Some(10)),
            ("1500ms", Some(1500)),
            ("2s", Some(2000)),
            ("5m", Some(300_000)),
            ("1h", Some(3_600_000)),
            ("9ms", None),
            ("61m", None),
            ("10", None),
            ("1d", None),
            ("1.5s", None),
            ("s", None),
            ("", None),
            ("18446744073709551615h", None),
        ] {
            assert_eq!(parse(text), ms.map(Duration::from_millis), "{text}");
        }
        for (ms, text) in [(10, "10ms"), (1500, "1500ms"), (2000, "2s"), (120_000, "2m"), (7_200_000, "2h")] {
            assert_eq!(Time(Duration::from_millis(ms)).to_string(), text);
        }
    }

    #[test]
    fn numbers_are_digits_within_their_bounds() {
        for (text, number) in [("1", Some(1)), ("64", Some(64)), ("0", None), ("65", None), ("+1", None)] {
            assert_eq!(whole(text, 1, 64), number, "{text}");
        }
        for text in ["", "-1", "1e1", "1 ", "0x1", "99999999999999999999"] {
            assert_eq!(whole(text, 0, u32::MAX), None, "{text}");
        }
    }
}
