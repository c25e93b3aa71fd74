//! Settings that can be switched off.

use std::fmt;
use std::str::FromStr;

/// A setting that is either a value or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switchable<T> {
    /// The setting is switched off.
    Off,
    /// The setting is switched on, with this value.
    On(T),
}

impl<T: FromStr<Err = String>> FromStr for Switchable<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::Off);
        }
        text.parse().map(Self::On).map_err(|expected| format!("{expected}, or off"))
    }
}

impl<T: fmt::Display> fmt::Display for Switchable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::On(value) => value.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Address, check};

    #[test]
    fn off_is_accepted_beside_values() {
        for (input, expected) in [
            ("127.0.0.1:8081", Some("127.0.0.1:8081")),
            ("off", Some("off")),
            ("on", None),
            ("127.0.0.1", None),
        ] {
            check::<Switchable<Address>>(input, expected);
        }
        let error = "on".parse::<Switchable<Address>>().unwrap_err();
        assert!(error.ends_with(", or off"), "{error}");
    }
}
