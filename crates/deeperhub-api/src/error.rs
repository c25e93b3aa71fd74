//! Error responses: `{"error":{"code","message"}}`.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use deeperhub_node::{
    ClientNotFound, CursorError, ListError, PublishError, SendError, StoreUnavailable, SubscribeError,
    WorkerTimeout,
};
use deeperhub_protocol::{MessageError, TopicError};
use serde::Serialize;

/// An error response.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct ApiError {
    #[serde(skip)]
    status: StatusCode,
    /// Headers in addition to those of every error.
    #[serde(skip)]
    headers: Headers,
    error: Detail,
}

/// Header names in lower case, and their values.
type Headers = &'static [(&'static str, &'static str)];

/// Headers of an error that does not depend on the request. A retry may succeed soon.
const RETRY: Headers = &[("retry-after", "1")];

/// Headers of an error that lasts until others use fewer topics.
const RETRY_LATER: Headers = &[("retry-after", "10")];

/// Headers of an error sent before the whole request was read. The connection takes no other
/// request.
const CLOSE: Headers = &[("connection", "close")];

const RETRY_AND_CLOSE: Headers = &[("retry-after", "1"), ("connection", "close")];

/// The error.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(utoipa::ToSchema))]
pub(crate) struct Detail {
    /// Stable code for programs.
    #[cfg_attr(test, schema(value_type = String, example = "invalid_topic"))]
    code: Cow<'static, str>,
    /// Explanation for people; the wording may change.
    #[cfg_attr(test, schema(value_type = String))]
    message: Cow<'static, str>,
    /// Key, parameter or header at fault; absent if the error concerns no single one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schema(value_type = String, required = false, example = "limit"))]
    field: Option<&'static str>,
}

impl Detail {
    pub(crate) fn new(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code: Cow::Borrowed(code), message: message.into(), field: None }
    }
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, headers: &[], error: Detail::new(code, message) }
    }

    /// Returns the error for an invalid parameter or header, or for a body that cannot be read.
    pub(crate) fn parameter(field: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_message", message).at(Some(field))
    }

    /// Returns the error for an invalid topic, in a path or in a call of a batch.
    pub(crate) fn invalid_topic(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_topic", message).at(Some("topic"))
    }

    pub(crate) fn with_headers(mut self, headers: Headers) -> Self {
        self.headers = headers;
        self
    }

    fn at(mut self, field: Option<&'static str>) -> Self {
        self.error.field = field;
        self
    }

    pub(crate) fn body_too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "message_too_big",
            "the body is over the size limit; send a smaller one",
        )
    }

    pub(crate) fn invalid_json(message: &'static str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_json", message)
    }

    /// Returns the error for a request that did not arrive in time.
    pub(crate) fn request_timeout(message: &'static str) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message).with_headers(CLOSE)
    }

    /// Returns the error for a body with a `Content-Encoding`.
    pub(crate) fn unsupported_content_encoding() -> Self {
        let message = "Content-Encoding is not supported; send the body unencoded";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", message)
            // RFC 9110 section 15.5.16 asks for the encodings that are accepted.
            .with_headers(&[("accept-encoding", "identity")])
    }

    /// Returns the error for a transfer coding other than `chunked`.
    pub(crate) fn unsupported_transfer_coding() -> Self {
        let message = "this Transfer-Encoding is not supported; use chunked or Content-Length";
        Self::new(StatusCode::NOT_IMPLEMENTED, "unsupported_encoding", message).with_headers(CLOSE)
    }

    /// Returns the error for a request over the limit on connections.
    pub(crate) fn too_many_connections() -> Self {
        let message = "the server API is at its connection limit; retry later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_connections", message)
            .with_headers(RETRY_AND_CLOSE)
    }

    /// Returns the error for a request over the limit on held bytes.
    pub(crate) fn overloaded() -> Self {
        let message = "other requests use all the memory for bodies and responses; retry later";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message).with_headers(RETRY)
    }

    /// Returns the error for an event stream over the limit.
    pub(crate) fn too_many_observers() -> Self {
        let message = "the limit on event streams is reached; retry later, or close another stream";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_observers", message).with_headers(RETRY)
    }

    /// Returns the whole HTTP response, which is the last one on its connection.
    pub(crate) fn to_http(&self) -> Vec<u8> {
        let body = serde_json::to_string(self).unwrap_or_default();
        let mut head = format!(
            "HTTP/1.1 {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\
             cache-control: no-store\r\nx-content-type-options: nosniff\r\n",
            self.status,
            body.len()
        );
        for (name, value) in self.headers.iter().filter(|(name, _)| *name != "connection") {
            head += &format!("{name}: {value}\r\n");
        }
        format!("{head}\r\n{body}").into_bytes()
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn not_found() -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "unknown path; GET /openapi.json lists all paths")
    }

    pub(crate) fn method_not_allowed() -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "the path does not support this method; GET /openapi.json lists its methods",
        )
    }

    pub(crate) fn unauthorized() -> Self {
        let message = "the API key is missing or wrong; send it as Authorization: Bearer KEY";
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", message)
            .with_headers(&[("www-authenticate", "Bearer")])
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(&self)).into_response();
        for &(name, value) in self.headers {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
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
        Self::invalid_topic(error.to_string())
    }
}

impl From<ClientNotFound> for ApiError {
    fn from(error: ClientNotFound) -> Self {
        Self::new(StatusCode::NOT_FOUND, "client_not_found", error.to_string())
    }
}

impl From<PublishError> for ApiError {
    fn from(error: PublishError) -> Self {
        match error {
            PublishError::Topic { source, .. } => source.into(),
            PublishError::Payload(error) => {
                Self::new(StatusCode::BAD_REQUEST, "invalid_message", error.to_string())
            }
            PublishError::TooManyTopics => Self {
                headers: RETRY_LATER,
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_topics", error.to_string())
            },
            PublishError::Unavailable(error) => error.into(),
            PublishError::TooLarge { .. } => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "message_too_big", error.to_string())
            }
            other => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", other.to_string()),
        }
    }
}

impl From<StoreUnavailable> for ApiError {
    fn from(error: StoreUnavailable) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", error.to_string()).with_headers(RETRY)
    }
}

impl From<SubscribeError> for ApiError {
    fn from(error: SubscribeError) -> Self {
        match error {
            SubscribeError::Topic { source, .. } => source.into(),
            SubscribeError::NoHistory => {
                let message = "no rule keeps messages of this topic; add one whose pattern matches it, \
                    for example with --topic 'PATTERN: history=100'";
                Self::new(StatusCode::NOT_FOUND, "no_history", message)
            }
            SubscribeError::TooManyTopics => PublishError::TooManyTopics.into(),
            SubscribeError::TooManySubscribers => Self::too_many_observers(),
            SubscribeError::Unavailable(unavailable) => unavailable.into(),
            other => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", other.to_string()),
        }
    }
}

impl From<SendError> for ApiError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Payload(error) => {
                Self::new(StatusCode::BAD_REQUEST, "invalid_message", error.to_string())
            }
            SendError::NotFound(error) => error.into(),
            SendError::WorkerTimeout(error) => error.into(),
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
            ListError::WorkerTimeout(error) => error.into(),
            other => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", other.to_string()),
        }
    }
}

impl From<WorkerTimeout> for ApiError {
    fn from(error: WorkerTimeout) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "delivery_stalled", error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_the_store_does_not_accept_is_too_large() {
        let error = ApiError::from(PublishError::TooLarge { limit: 1000 });
        assert_eq!(error.status(), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(error.error.code, "message_too_big");
        assert!(error.error.message.contains("at most 1000 bytes") && error.headers.is_empty());
    }
}
