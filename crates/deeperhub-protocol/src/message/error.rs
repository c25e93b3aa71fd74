//! The error for an invalid message.

use super::{MessageId, ServerMessage};
use crate::json::SyntaxError;
use crate::{ErrorCode, TopicError};
use std::borrow::Cow;

/// The error for an invalid message, with the content of the `error` reply.
///
/// Send the reply ([`Self::to_message`]) and keep the connection open: an invalid message does not
/// affect later messages.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct MessageError<'a> {
    /// The error code.
    pub code: ErrorCode,
    /// The message's ID; `None` if it is absent or could not be parsed.
    pub id: Option<MessageId<'a>>,
    /// The key that is missing or invalid; `None` if the error concerns no single key.
    pub field: Option<&'static str>,
    /// Description for people.
    pub message: Cow<'static, str>,
    /// `true` if the message is rejected because its arrays and objects nest deeper than the limit.
    pub is_too_deep: bool,
}

impl<'a> MessageError<'a> {
    /// Returns the `error` reply.
    #[must_use]
    pub fn to_message(&self) -> ServerMessage<'_> {
        ServerMessage::Error {
            id: self.id,
            code: self.code,
            message: &self.message,
            field: self.field,
            topic: None,
            retry_after_ms: None,
        }
    }

    /// Creates an [`ErrorCode::InvalidMessage`] error without a key.
    pub(super) const fn invalid(message: &'static str) -> Self {
        Self {
            code: ErrorCode::InvalidMessage,
            id: None,
            field: None,
            message: Cow::Borrowed(message),
            is_too_deep: false,
        }
    }

    /// Creates an [`ErrorCode::InvalidMessage`] error for JSON that nests deeper than `limit`
    /// levels.
    pub(crate) fn too_deep(limit: u32) -> Self {
        let message = format!("arrays and objects nest deeper than the limit of {limit}");
        Self { message: Cow::Owned(message), is_too_deep: true, ..Self::invalid("") }
    }

    /// Sets the key that is missing or invalid.
    pub(super) fn at(self, field: &'static str) -> Self {
        Self { field: Some(field), ..self }
    }

    pub(super) fn with_id(self, id: Option<MessageId<'a>>) -> Self {
        Self { id, ..self }
    }
}

impl From<SyntaxError> for MessageError<'_> {
    fn from(error: SyntaxError) -> Self {
        Self { code: ErrorCode::InvalidJson, message: error.to_string().into(), ..Self::invalid("") }
    }
}

impl From<TopicError> for MessageError<'_> {
    fn from(error: TopicError) -> Self {
        Self {
            code: ErrorCode::InvalidTopic,
            field: Some("topic"),
            message: error.to_string().into(),
            ..Self::invalid("")
        }
    }
}
