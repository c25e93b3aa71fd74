//! Request bodies, limited in bytes and time, and counted.

use std::pin::Pin;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderName, header};
use hyper::body::Body as _;
use tokio::time::Instant;

use crate::connection::{ConnectionState, transfer_deadline};
use crate::error::ApiError;
use crate::guard::BATCH_PATH;
use crate::metrics::HeldBytes;
use crate::{Api, ApiConfig, SharedApiConfig};

/// Body of a request, or the error to respond with.
///
/// A body that is too long or encoded gets an error before `100 Continue` asks the client for it.
#[derive(Debug)]
pub(crate) struct Body(Result<WholeBody, ApiError>);

#[derive(Debug)]
struct WholeBody {
    bytes: Vec<u8>,
    /// Counts the bytes for as long as they are held.
    _held: HeldBytes,
}

impl Body {
    /// Returns the body as text.
    pub(crate) fn text(&self) -> Result<&str, ApiError> {
        let whole = self.0.as_ref().map_err(Clone::clone)?;
        let text = std::str::from_utf8(&whole.bytes)
            .map_err(|_| ApiError::invalid_json("the body is not UTF-8; send JSON in UTF-8"))?;
        if text.starts_with('\u{feff}') {
            // RFC 8259 section 8.1. Without the mark, the payload would not be delivered byte for
            // byte.
            return Err(ApiError::invalid_json(
                "the body starts with a byte order mark; send JSON without it",
            ));
        }
        Ok(text)
    }
}

impl FromRequest<Arc<Api>> for Body {
    type Rejection = std::convert::Infallible;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Self::Rejection> {
        Ok(Self(read(request, &api.config, api.metrics.hold()).await))
    }
}

async fn read(
    request: Request,
    config: &SharedApiConfig,
    mut held: HeldBytes,
) -> Result<WholeBody, ApiError> {
    check_codings(request.headers())?;
    let limits = config.limits();
    let limit =
        if request.uri().path() == BATCH_PATH { limits.max_batch_bytes } else { limits.max_body_bytes };
    let &ApiConfig { timeout, max_held_bytes, .. } = config.fixed();
    let state = request.extensions().get::<Arc<ConnectionState>>().cloned();
    let mut body = request.into_body();
    let known = body.size_hint();
    if known.lower() > limit as u64 {
        return Err(ApiError::body_too_large());
    }
    let (began, mut bytes) = (Instant::now(), Vec::new());
    while let Some(frame) = {
        let next = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx));
        let deadline = transfer_deadline(began, timeout, bytes.len() as u64);
        tokio::time::timeout_at(deadline, next).await.map_err(|_| {
            record_timeout(state.as_deref());
            ApiError::request_timeout("the request body did not arrive in time; send it without pauses")
        })?
    } {
        let frame = frame.map_err(|_| {
            ApiError::parameter("body", "reading the request body failed; check its length and chunks")
        })?;
        // Trailers are ignored.
        let Ok(data): Result<Bytes, _> = frame.into_data() else { continue };
        if data.len() > limit - bytes.len() {
            return Err(ApiError::body_too_large());
        }
        if !held.try_grow(data.len(), max_held_bytes) {
            return Err(ApiError::overloaded());
        }
        if bytes.capacity() - bytes.len() < data.len() {
            // Reserves once if the length is known, but never far ahead of what has arrived.
            let left = usize::try_from(known.lower()).unwrap_or(usize::MAX).saturating_sub(bytes.len());
            bytes.reserve(left.min(4 * (bytes.len() + data.len())).max(data.len()));
        }
        bytes.extend_from_slice(&data);
    }
    if let Some(state) = state {
        state.end_body();
    }
    Ok(WholeBody { bytes, _held: held })
}

fn record_timeout(state: Option<&ConnectionState>) {
    if let Some(state) = state {
        state.permit.metrics().timed_out();
    }
    tracing::info!(limit = "api_timeout", "Server API request body timed out");
}

/// Returns an error if the body would have to be decoded.
fn check_codings(headers: &HeaderMap) -> Result<(), ApiError> {
    let is_only = |name: HeaderName, known: &[u8]| {
        headers.get_all(name).iter().flat_map(|value| value.as_bytes().split(|&byte| byte == b',')).all(
            |coding| {
                let coding = coding.trim_ascii();
                coding.is_empty() || coding.eq_ignore_ascii_case(known)
            },
        )
    };
    if !is_only(header::TRANSFER_ENCODING, b"chunked") {
        return Err(ApiError::unsupported_transfer_coding());
    }
    if !is_only(header::CONTENT_ENCODING, b"identity") {
        return Err(ApiError::unsupported_content_encoding());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderValue, StatusCode};

    use super::*;

    fn check(pairs: &[(HeaderName, &'static str)], expected: Option<StatusCode>) {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, HeaderValue::from_static(value));
        }
        let status = check_codings(&headers).err().map(|error| error.status());
        assert_eq!(status, expected, "{pairs:?}");
    }

    #[test]
    fn encoded_bodies_are_refused() {
        use axum::http::header::{CONTENT_ENCODING as CONTENT, TRANSFER_ENCODING as TRANSFER};
        let (unsupported, unknown) =
            (Some(StatusCode::UNSUPPORTED_MEDIA_TYPE), Some(StatusCode::NOT_IMPLEMENTED));
        check(&[], None);
        check(&[(CONTENT, "")], None);
        check(&[(CONTENT, "identity"), (TRANSFER, "Chunked")], None);
        check(&[(CONTENT, "Identity, identity")], None);
        for encoding in ["gzip", "GZIP", "identity, br", "deflate,identity", "x"] {
            check(&[(CONTENT, encoding)], unsupported);
        }
        check(&[(CONTENT, "identity"), (CONTENT, "gzip")], unsupported);
        for coding in ["gzip, chunked", "gzip,Chunked", "x", "identity"] {
            check(&[(TRANSFER, coding)], unknown);
        }
        check(&[(TRANSFER, "gzip"), (TRANSFER, "chunked")], unknown);
    }
}
