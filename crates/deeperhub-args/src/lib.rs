//! Value types for command-line arguments and settings.
//!
//! Each type implements `FromStr` and `Display`. The error of `FromStr` describes the expected
//! text. The text of `Display` parses to the same value.
//!
//! ```
//! use std::time::Duration;
//!
//! use deeperhub_args::{Address, Time};
//!
//! assert_eq!("1500ms".parse::<Time>()?.0, Duration::from_millis(1500));
//! assert_eq!("[::1]:8081".parse::<Address>()?.port, 8081);
//! assert!("10".parse::<Time>().is_err_and(|error| error.starts_with("expected a duration")));
//! # Ok::<(), String>(())
//! ```

mod address;
mod number;
mod size;
mod switchable;
mod time;
mod url;

pub use address::{Address, Host};
pub use number::{Ratio, whole};
pub use size::Size;
pub use switchable::Switchable;
pub use time::Time;
pub use url::{HttpUrl, UrlPath};

/// Runs the README's example as a doc test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

/// Asserts that `input` parses to a value that displays as `expected`, or that it does not parse.
#[cfg(test)]
fn check<T: std::str::FromStr + std::fmt::Display>(input: &str, expected: Option<&str>) {
    let shown = input.parse::<T>().ok().map(|value| value.to_string());
    assert_eq!(shown.as_deref(), expected, "{input:?}");
}
