//! Sizes in bytes.

use std::fmt;
use std::str::FromStr;

/// A size in bytes, written as `64KiB`, `256MiB`, `1GiB`, `2TiB` or a number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Units with their bytes, largest first.
const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let bytes = match unit {
            "" => Some(1),
            _ => UNITS.iter().find(|(name, _)| *name == unit).map(|(_, bytes)| *bytes),
        };
        number
            .parse::<u64>()
            .ok()
            .zip(bytes)
            .and_then(|(number, bytes)| number.checked_mul(bytes))
            .map(Self)
            .ok_or_else(|| "expected a size such as 64KiB, 256MiB or 1GiB, or a number of bytes".to_owned())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.iter().find(|(_, bytes)| self.0 >= *bytes && self.0.is_multiple_of(*bytes)) {
            Some((unit, bytes)) => write!(f, "{}{unit}", self.0 / bytes),
            None => self.0.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;

    #[test]
    fn sizes_have_a_binary_unit_or_none_and_display_in_the_largest_exact_one() {
        for (input, expected) in [
            ("0", Some("0")),
            ("1000", Some("1000")),
            ("1024", Some("1KiB")),
            ("268435456", Some("256MiB")),
            ("64KiB", Some("64KiB")),
            ("1025KiB", Some("1025KiB")),
            ("1024MiB", Some("1GiB")),
            ("2TiB", Some("2TiB")),
            ("0GiB", Some("0")),
            ("18446744073709551615", Some("18446744073709551615")),
            ("18446744073709551616", None),
            ("16777216TiB", None),
            ("-1", None),
            ("+1", None),
            ("1.5GiB", None),
            ("1 GiB", None),
            ("1GB", None),
            ("1gib", None),
            ("1G", None),
            ("GiB", None),
            ("", None),
        ] {
            check::<Size>(input, expected);
        }
    }
}
