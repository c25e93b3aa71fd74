//! The reason why a scene failed.

use std::fmt;

/// Result of a step of a scene.
pub(crate) type Result<T = ()> = std::result::Result<T, Failure>;

/// A difference between the client and what the scene expects.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self(format!("the kit's own socket or pipe failed: {error}"))
    }
}

/// Fails with a text if a condition does not hold.
pub(crate) fn ensure(condition: bool, text: impl FnOnce() -> String) -> Result {
    if condition { Ok(()) } else { Err(Failure(text())) }
}
