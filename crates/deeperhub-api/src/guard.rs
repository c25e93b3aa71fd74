//! Who may call.

use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;
use crate::{Api, ApiConfig};

/// The path that takes larger bodies than the others.
pub(crate) const BATCH: &str = "/v1/batch";

/// Paths that need no key: probes have none, and the page holds no data.
pub(crate) fn is_open(path: &str) -> bool {
    path == "/" || path.starts_with("/health/")
}

/// Checks origin and key, and adds the headers that every answer has.
pub(crate) async fn guard(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let config = api.config.current();
    let is_batch = request.uri().path() == BATCH;
    let limit = if is_batch { config.max_batch_bytes } else { config.max_body_bytes };
    DefaultBodyLimit::max(limit).apply(&mut request);
    let mut response = match check(&config, &request) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn check(config: &ApiConfig, request: &Request) -> Result<(), ApiError> {
    let forbidden = |message: String| ApiError::new(StatusCode::FORBIDDEN, "origin_not_allowed", message);
    let text = |name: &HeaderName| match request.headers().get(name) {
        None => Ok(None),
        Some(value) => value.to_str().map(Some).map_err(|_| forbidden(format!("{name} is not plain text"))),
    };
    if request.headers().get_all(header::ORIGIN).iter().nth(1).is_some() {
        return Err(forbidden("more than one Origin".to_owned()));
    }
    let origin = text(&header::ORIGIN)?;
    let host = text(&header::HOST)?;
    // Without a key whoever is on this machine is trusted, a browser too: not with a page whose name was made to point
    // here. Its GET has no origin, so the host must tell.
    if config.api_key.is_none()
        && !is_open(request.uri().path())
        && !(config.allowed_origins.knows_host(host)
            && config.allowed_origins.knows_host(request.uri().authority().map(Authority::as_str)))
    {
        return Err(forbidden(
            "without an API key, this host is none to be called by: use a loopback address, or set a key"
                .to_owned(),
        ));
    }
    if let Some(origin) = origin {
        config
            .allowed_origins
            .check_own(Some(origin), host, false)
            .map_err(|error| forbidden(error.to_string()))?;
    }
    if let Some(key) = &config.api_key
        && !is_open(request.uri().path())
    {
        let value = request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
        let given = value.and_then(|value| {
            let (scheme, key) = value.split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
        });
        if !given.is_some_and(|given| key.matches(given)) {
            return Err(ApiError::unauthorized());
        }
    }
    Ok(())
}
