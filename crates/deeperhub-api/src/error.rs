//! Errors as `{"error":{"code","message"}}`.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use deeperhub_node::{ClientNotFound, CursorError, ListError, SendError, Unanswered};
use deeperhub_protocol::{MessageError, TopicError};
use serde::Serialize;
use utoipa::ToSchema;

/// An error answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct ApiError {
    #[serde(skip)]
    status: StatusCode,
    error: Detail,
}

/// What went wrong.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Detail {
    /// A word for programs.
    #[schema(value_type = String, example = "invalid_topic")]
    code: Cow<'static, str>,
    /// A sentence for people.
    #[schema(value_type = String)]
    message: Cow<'static, str>,
    /// The key, parameter or header at fault, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String, required = false, example = "limit")]
    field: Option<&'static str>,
}

impl Detail {
    pub(crate) fn new(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code: Cow::Borrowed(code), message: message.into(), field: None }
    }
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, error: Detail::new(code, message) }
    }

    /// Something beside the body is not as it should be.
    pub(crate) fn parameter(field: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_message", message).at(Some(field))
    }

    fn at(mut self, field: Option<&'static str>) -> Self {
        self.error.field = field;
        self
    }

    pub(crate) fn too_big() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "message_too_big",
            "the body is larger than a message may be",
        )
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "there is no such path")
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "the path does not take this method")
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "send the key as Authorization: Bearer KEY")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(&self)).into_response();
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<MessageError<'_>> for ApiError {
    fn from(error: MessageError<'_>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.code.as_str(), error.message).at(error.field)
    }
}

impl From<TopicError> for ApiError {
    fn from(error: TopicError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_topic", error.to_string())
    }
}

impl From<ClientNotFound> for ApiError {
    fn from(error: ClientNotFound) -> Self {
        Self::new(StatusCode::NOT_FOUND, "client_not_found", error.to_string())
    }
}

impl From<SendError> for ApiError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::NotFound(error) => error.into(),
            SendError::Unanswered(error) => error.into(),
            SendError::TooLarge => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "message_too_big", error.to_string())
            }
            other => Self::new(StatusCode::SERVICE_UNAVAILABLE, "cluster_unavailable", other.to_string()),
        }
    }
}

impl From<CursorError> for ApiError {
    fn from(error: CursorError) -> Self {
        Self::parameter("cursor", error.to_string())
    }
}

impl From<ListError> for ApiError {
    fn from(error: ListError) -> Self {
        match error {
            ListError::Cursor(error) => error.into(),
            ListError::Unanswered(error) => error.into(),
            other => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", other.to_string()),
        }
    }
}

impl From<Unanswered> for ApiError {
    fn from(error: Unanswered) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "delivery_stalled", error.to_string())
    }
}
