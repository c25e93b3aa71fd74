//! Why a message cannot be carried out.

use super::{MessageId, ServerMessage};
use crate::json::SyntaxError;
use crate::{ErrorCode, TopicError};
use std::borrow::Cow;

/// A message that cannot be carried out, with what its `error` reply needs.
///
/// The client is at fault. It costs no more than the reply ([`Self::to_message`]); the next message
/// works.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct MessageError<'a> {
    /// What kind of fault it is.
    pub code: ErrorCode,
    /// The message's id, where one could be read.
    pub id: Option<MessageId<'a>>,
    /// The key at fault.
    pub field: Option<&'static str>,
    /// A sentence for a person.
    pub message: Cow<'static, str>,
    /// Whether it is refused for nothing but the levels of its arrays and objects.
    pub is_too_deep: bool,
}

impl<'a> MessageError<'a> {
    /// The `error` that answers the message.
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

    /// [`ErrorCode::InvalidMessage`] without a key at fault.
    pub(super) const fn invalid(message: &'static str) -> Self {
        Self {
            code: ErrorCode::InvalidMessage,
            id: None,
            field: None,
            message: Cow::Borrowed(message),
            is_too_deep: false,
        }
    }

    /// [`ErrorCode::InvalidMessage`]: it is JSON, and has more than `limit` levels.
    pub(crate) fn too_deep(limit: u32) -> Self {
        let message = format!("arrays and objects nest deeper than the limit of {limit}");
        Self { message: Cow::Owned(message), is_too_deep: true, ..Self::invalid("") }
    }

    pub(super) fn at(self, field: &'static str) -> Self {
        Self { field: Some(field), ..self }
    }

    pub(super) fn with_id(self, id: Option<MessageId<'a>>) -> Self {
        Self { id, ..self }
    }
}

impl From<SyntaxError> for MessageError<'_> {
    fn from(fault: SyntaxError) -> Self {
        Self { code: ErrorCode::InvalidJson, message: fault.to_string().into(), ..Self::invalid("") }
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
