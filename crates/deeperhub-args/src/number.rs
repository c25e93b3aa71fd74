//! Whole numbers and ratios.

use std::fmt;
use std::str::FromStr;

/// Returns a function that parses whole numbers from `min` to `max`, for example for clap's
/// `value_parser`.
///
/// ```
/// let parse_port = deeperhub_args::whole::<u16>(1, 65_535);
/// assert_eq!(parse_port("8080"), Ok(8080));
/// assert_eq!(parse_port("0"), Err("expected a whole number from 1 to 65535".to_owned()));
/// ```
pub fn whole<N: TryFrom<u64>>(
    min: u64,
    max: u64,
) -> impl Fn(&str) -> Result<N, String> + Clone + Send + Sync + 'static {
    move |text| {
        text.parse::<u64>()
            .ok()
            .filter(|number| (min..=max).contains(number))
            .and_then(|number| N::try_from(number).ok())
            .ok_or_else(|| {
                // If a namespace has a service named deeperhub, Kubernetes sets the variable
                // DEEPERHUB_PORT to a URL in each container of the namespace.
                let hint = if text.starts_with("tcp://") {
                    " (Kubernetes sets this for a service named deeperhub: set `enableServiceLinks: false`)"
                } else {
                    ""
                };
                format!("expected a whole number from {min} to {max}{hint}")
            })
    }
}

/// A number from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio(pub f64);

impl FromStr for Ratio {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.map(Self).ok_or_else(|| "expected a number from 0 (none) to 1 (all), such as 0.01".to_owned())
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `Debug` writes 1 as `1.0`, so that TOML parses it as a float.
        write!(f, "{:?}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check;

    #[test]
    fn numbers_stay_between_their_bounds() {
        let port = whole::<u16>(0, 65_535);
        assert_eq!(port("65535"), Ok(65_535));
        for text in ["65536", "-1", "", "8080 ", "0x10", "1e3", "1.0", "99999999999999999999"] {
            assert_eq!(port(text), Err("expected a whole number from 0 to 65535".to_owned()), "{text}");
        }
        assert!(port("tcp://10.0.0.1:8080").is_err_and(|reason| reason.contains("enableServiceLinks")));
    }

    #[test]
    fn ratios_are_from_0_to_1() {
        for (input, expected) in [
            ("0", Some("0.0")),
            ("1", Some("1.0")),
            ("0.01", Some("0.01")),
            ("1e-3", Some("0.001")),
            ("1.01", None),
            ("-0.5", None),
            ("NaN", None),
            ("1%", None),
            ("", None),
        ] {
            check::<Ratio>(input, expected);
        }
    }
}
