//! Errors with the codes of the protocol.

use std::borrow::Cow;
use std::time::Duration;

/// An error of the server or of the client.
///
/// [`code`](Self::code) is the server's code, or one of the constants here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
#[non_exhaustive]
pub struct Error {
    /// The code, for programs.
    pub code: Cow<'static, str>,
    /// A sentence for people.
    pub message: String,
    /// The time after which the server would accept a new attempt, if it said so.
    pub retry_after: Option<Duration>,
}

impl Error {
    /// The hub was closed.
    pub const CLOSED: &'static str = "closed";
    /// No answer came in time.
    pub const TIMEOUT: &'static str = "timeout";
    /// Too many bytes wait to be sent.
    pub const QUEUE_FULL: &'static str = "queue_full";
    /// The message is longer than the server accepts.
    pub const MESSAGE_TOO_LARGE: &'static str = "message_too_large";
    /// The function that returns tokens failed.
    pub const TOKEN_FAILED: &'static str = "token_failed";
    /// A handler of the application failed.
    pub const HANDLER_FAILED: &'static str = "handler_failed";
    /// A message was missing, and the server told no gap. The client asks for it again.
    pub const HOLE: &'static str = "hole";
    /// The address of the hub, or a setting, is not valid.
    pub const INVALID_OPTIONS: &'static str = "invalid_options";
    /// A value cannot be written as JSON.
    pub const INVALID_MESSAGE: &'static str = "invalid_message";

    /// Creates an error.
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), retry_after: None }
    }

    /// Returns the code.
    #[must_use]
    pub fn code(&self) -> &str {
        &self.code
    }

    pub(crate) fn closed(reason: &str) -> Self {
        Self::new(Self::CLOSED, format!("the hub is closed: {reason}"))
    }

    /// Returns `true` if the same request may succeed later.
    pub(crate) fn is_temporary(&self) -> bool {
        matches!(&*self.code, "unavailable" | "rate_limited" | "too_many_topics" | "internal")
    }
}
