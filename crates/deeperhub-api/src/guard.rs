//! Access checks before every call: key, origin and host.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::error::ApiError;
use crate::{Api, SharedApiConfig, client_script, dashboard};

/// Path of batches, whose bodies may be larger than others.
pub(crate) const BATCH_PATH: &str = "/v1/batch";

/// Returns `true` if a path needs no key. Health checks send no key, and the dashboard's files hold
/// no data.
pub(crate) fn needs_no_key(path: &str) -> bool {
    dashboard::is_file(path) || path.starts_with("/health/") || is_public(path)
}

/// Returns `true` if pages of every origin may read a path: it is the same for everyone.
pub(crate) fn is_public(path: &str) -> bool {
    path == client_script::PATH
}

/// Middleware that checks access, and adds the headers of every response.
pub(crate) async fn guard(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let mut response =
        match check_access(&api.config, &request).and_then(|()| check_path(request.uri().path())) {
            Ok(()) => next.run(request).await,
            Err(error) => error.into_response(),
        };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn check_access(config: &SharedApiConfig, request: &Request) -> Result<(), ApiError> {
    if is_public(request.uri().path()) {
        return Ok(());
    }
    let limits = config.limits();
    let forbidden = |message: String| ApiError::new(StatusCode::FORBIDDEN, "origin_not_allowed", message);
    let text = |name: &HeaderName| match request.headers().get(name) {
        None => Ok(None),
        Some(value) => value
            .to_str()
            .map(Some)
            .map_err(|_| forbidden(format!("the header {name} is not visible ASCII text"))),
    };
    if request.headers().get_all(header::ORIGIN).iter().nth(1).is_some() {
        return Err(forbidden("the request has more than one Origin header".to_owned()));
    }
    let origin = text(&header::ORIGIN)?;
    let host = text(&header::HOST)?;
    // Without a key, every process on this machine is trusted, including browsers. A page can make
    // its own name point here (DNS rebinding). Its GET requests have no Origin, so the host is
    // checked.
    if limits.api_key.is_none()
        && !needs_no_key(request.uri().path())
        && !(limits.allowed_origins.is_rebinding_safe(host)
            && limits.allowed_origins.is_rebinding_safe(request.uri().authority().map(Authority::as_str)))
    {
        return Err(forbidden(
            "without an API key, calls to this host name are refused; call a loopback address, or set a key"
                .to_owned(),
        ));
    }
    if let Some(origin) = origin {
        limits
            .allowed_origins
            .check_same_origin(Some(origin), host, config.fixed().uses_tls())
            .map_err(|error| forbidden(error.to_string()))?;
    } else if !is_allowed_without_origin(request) {
        return Err(forbidden(
            "a page of another site made this request without an Origin header; let it send one".to_owned(),
        ));
    }
    if let Some(key) = &limits.api_key
        && !needs_no_key(request.uri().path())
    {
        let mut given = request.headers().get_all(header::AUTHORIZATION).iter().peekable();
        // All values must match, because a proxy in front of this server may have checked any one.
        let is_authorized = given.peek().is_some()
            && given.all(|value| bearer_key(value.as_bytes()).is_some_and(|given| key.matches(given)));
        if !is_authorized {
            return Err(ApiError::unauthorized());
        }
    }
    Ok(())
}

/// Returns the key of an `Authorization: Bearer KEY`.
fn bearer_key(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
}

/// Returns `true` unless a browser reports that a page of another site makes the request.
///
/// Browsers send no `Origin` with an image, a script or a `fetch` of mode `no-cors`, but they send
/// `Sec-Fetch-Site` (W3C Fetch Metadata). Other clients do not send it. Links on other sites may
/// lead to a page, because those sites cannot read the page. Calls below `/v1/` are not pages.
fn is_allowed_without_origin(request: &Request) -> bool {
    let header = |name| request.headers().get_all(name).iter().map(HeaderValue::as_bytes);
    let is_own = |site: &[u8]| matches!(site, b"same-origin" | b"none");
    let is = |name, expected: &[u8]| {
        let mut values = header(name).peekable();
        values.peek().is_some() && values.all(|value| value == expected)
    };
    header("sec-fetch-site").all(is_own)
        || (matches!(*request.method(), Method::GET | Method::HEAD)
            && !request.uri().path().starts_with("/v1/")
            && is("sec-fetch-mode", b"navigate")
            && is("sec-fetch-dest", b"document"))
}

/// Returns an error for a path with invalid percent-encoding, which axum would pass on unchanged.
fn check_path(path: &str) -> Result<(), ApiError> {
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let mut is_digit = || bytes.next().is_some_and(|digit| digit.is_ascii_hexdigit());
        if byte == b'%' && !(is_digit() && is_digit()) {
            let message =
                "the path has a % without two hexadecimal digits after it; write a literal % as %25";
            return Err(if path.starts_with("/v1/topics/") {
                ApiError::invalid_topic(message)
            } else {
                ApiError::parameter("path", message)
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn check_fetch(request: &str, headers: &[(&str, &str)], expected: bool) {
        let (method, path) = request.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        assert_eq!(is_allowed_without_origin(&request), expected, "{request:?}");
    }

    #[test]
    fn fetch_metadata_identifies_pages_of_other_sites() {
        let (site, mode, dest) = ("sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest");
        check_fetch("GET /v1/events", &[], true);
        // Node's `fetch` sends this header.
        check_fetch("GET /v1/events", &[(mode, "cors")], true);
        for own in ["same-origin", "none"] {
            check_fetch("GET /v1/events", &[(site, own)], true);
        }
        for other in ["cross-site", "same-site", "", "Cross-Site", "none, cross-site", "future-value"] {
            check_fetch("GET /v1/events", &[(site, other)], false);
            check_fetch("GET /health/live", &[(site, other), (mode, "no-cors"), (dest, "image")], false);
            check_fetch("GET /v1/events", &[(site, other), (mode, "navigate"), (dest, "document")], false);
            check_fetch("GET /", &[(site, other), (mode, "navigate"), (dest, "document")], true);
            check_fetch("GET /metrics", &[(site, other), (mode, "navigate"), (dest, "iframe")], false);
            check_fetch("POST /", &[(site, other), (mode, "navigate"), (dest, "document")], false);
        }
        check_fetch("GET /v1/events", &[(site, "none"), (site, "cross-site")], false);
    }

    #[test]
    fn invalid_percent_encoding_in_paths_is_an_error() {
        for good in ["/", "/v1/topics/100%25", "/v1/topics/%fF/messages", "*", ""] {
            assert!(check_path(good).is_ok(), "{good}");
        }
        for bad in ["/v1/topics/50%", "/v1/users/%zz", "/%", "/v1/topics/%4", "/v1/topics/%%20", "/%2"] {
            assert!(check_path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_scheme_of_a_key_is_case_insensitive() {
        for good in ["Bearer k", "bearer k", "BEARER  k "] {
            assert_eq!(bearer_key(good.as_bytes()), Some(&b"k"[..]), "{good}");
        }
        for bad in ["", "Bearer", "Basic k", "Bearerk", "k"] {
            assert_eq!(bearer_key(bad.as_bytes()), None, "{bad}");
        }
    }
}
