//! Responses to refused handshakes.

use std::borrow::Cow;
use std::time::Duration;

use crate::json;

/// The response to a refused handshake: HTTP status, code, message, and delay before a retry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status} {code}: {message}")]
pub struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The `code` of the JSON body, for programs.
    pub code: &'static str,
    /// The `message` of the JSON body, for people. It is sent to the client, so it must not contain
    /// secrets.
    pub message: Cow<'static, str>,
    /// Minimum delay before a retry, for the `Retry-After` header; `None` omits the header.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// Returns 400 `bad_handshake`: the request is not HTTP/1.1, violates RFC 6455, or exceeds a
    /// limit on its size or time.
    pub fn bad_handshake(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(400, "bad_handshake", message)
    }

    /// Returns 401 `unauthorized`: the token is missing or not accepted.
    pub fn unauthorized(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(401, "unauthorized", message)
    }

    /// Returns 403 `origin_not_allowed`: the page's origin is not allowed.
    pub fn origin_not_allowed(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(403, "origin_not_allowed", message)
    }

    /// Returns 404 `not_found`: the path is unknown.
    #[must_use]
    pub fn not_found() -> Self {
        Self::new(404, "not_found", "Unknown path.")
    }

    /// Returns 405 `method_not_allowed`: the method is not GET.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        Self::new(405, "method_not_allowed", "Method not allowed; use GET.")
    }

    /// Returns 426 `upgrade_required`: the request is not an upgrade to WebSocket version 13.
    #[must_use]
    pub fn upgrade_required() -> Self {
        Self::new(426, "upgrade_required", "This endpoint accepts only WebSocket version 13 upgrades.")
    }

    /// Returns 429 `rate_limited`: the client's address has too many connections, or connects too
    /// often.
    #[must_use]
    pub fn rate_limited(retry_after: Duration) -> Self {
        Self::new(429, "rate_limited", "Too many connections from this address.")
            .with_retry_after(retry_after)
    }

    /// Returns 503 `too_many_connections`: the server has reached its limit on connections or on
    /// memory.
    #[must_use]
    pub fn too_many_connections(retry_after: Duration) -> Self {
        Self::new(503, "too_many_connections", "The server has reached its connection limit.")
            .with_retry_after(retry_after)
    }

    /// Returns 503 `draining`: the server is shutting down.
    #[must_use]
    pub fn draining(retry_after: Duration) -> Self {
        Self::new(503, "draining", "The server is shutting down.").with_retry_after(retry_after)
    }

    /// Returns 503 `not_ready`: the response to a readiness probe if clients should not connect.
    #[must_use]
    pub fn not_ready() -> Self {
        Self::new(503, "not_ready", "The server is not ready.")
    }

    /// Appends the HTTP response to `out`: status line, headers, and
    /// `{"error":{"code","message"}}`.
    ///
    /// The response always has `Content-Type: application/json`, `Content-Length` and `Connection:
    /// close`. `Retry-After` is in whole seconds, rounded up, at least 1. These statuses have more
    /// headers:
    ///
    /// - 401: `WWW-Authenticate: Bearer`
    /// - 405: `Allow: GET`
    /// - 426: `Upgrade: websocket`, `Sec-WebSocket-Version: 13`, and `Upgrade` in `Connection`
    ///
    /// The caller must close the connection after it sent the response.
    pub fn write(&self, out: &mut Vec<u8>) {
        let body = self.write_status_and_headers(out);
        out.extend_from_slice(&body);
    }

    /// Appends the HTTP response like [`Self::write`], but without the body. It is the response to
    /// a HEAD request (RFC 9110 section 9.3.2).
    pub fn write_head(&self, out: &mut Vec<u8>) {
        self.write_status_and_headers(out);
    }

    /// Appends the status line and headers. Returns the body, which belongs after them.
    fn write_status_and_headers(&self, out: &mut Vec<u8>) -> Vec<u8> {
        let mut body = Vec::with_capacity(128);
        body.extend_from_slice(b"{\"error\":{\"code\":");
        json::escape(self.code, |piece| body.extend_from_slice(piece));
        body.extend_from_slice(b",\"message\":");
        json::escape(&self.message, |piece| body.extend_from_slice(piece));
        body.extend_from_slice(b"}}");

        let mut number = itoa::Buffer::new();
        let mut push = |piece: &str| out.extend_from_slice(piece.as_bytes());
        push("HTTP/1.1 ");
        push(number.format(self.status));
        push(" ");
        push(self.reason_phrase());
        push("\r\nContent-Type: application/json\r\nContent-Length: ");
        push(number.format(body.len()));
        push("\r\nConnection: close");
        if let Some(retry_after) = self.retry_after {
            let seconds = retry_after.as_secs().saturating_add(u64::from(retry_after.subsec_nanos() > 0));
            push("\r\nRetry-After: ");
            push(number.format(seconds.max(1)));
        }
        push(match self.status {
            401 => "\r\nWWW-Authenticate: Bearer",
            405 => "\r\nAllow: GET",
            // `Connection` is the last header so far. It must list `Upgrade` besides `close` (RFC
            // 9110 section 7.8).
            426 => ", Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13",
            _ => "",
        });
        push("\r\n\r\n");
        body
    }

    fn new(status: u16, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, message: message.into(), retry_after: None }
    }

    fn with_retry_after(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after);
        self
    }

    /// Returns the reason phrase, which is only for people (RFC 9112 section 4).
    fn reason_phrase(&self) -> &'static str {
        match self.status {
            400 => "Bad Request",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "Not Found",
            405 => "Method Not Allowed",
            426 => "Upgrade Required",
            429 => "Too Many Requests",
            503 => "Service Unavailable",
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(refusal: &Refusal) -> (String, String) {
        let mut out = Vec::new();
        refusal.write(&mut out);
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    #[test]
    fn a_refusal_is_a_complete_http_response() {
        let (head, body) = written(&Refusal::bad_handshake("no \"key\"\n"));
        assert_eq!(
            head,
            "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: 59\r\nConnection: close"
        );
        assert_eq!(body, r#"{"error":{"code":"bad_handshake","message":"no \"key\"\n"}}"#);
    }

    #[test]
    fn content_length_counts_the_bytes_of_the_body() {
        let (head, body) = written(&Refusal::unauthorized("kein Schlüssel"));
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["error"]["message"], "kein Schlüssel");
    }

    #[test]
    fn the_response_to_head_has_no_body() {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        Refusal::method_not_allowed().write(&mut with);
        Refusal::method_not_allowed().write_head(&mut without);
        assert!(without.ends_with(b"\r\n\r\n"));
        assert!(with.starts_with(&without) && with[without.len()..].starts_with(b"{\"error\""));
    }

    #[test]
    fn each_refusal_has_its_status_code_and_headers() {
        let second = Duration::from_secs(1);
        for (refusal, status_line, code, header) in [
            (Refusal::unauthorized(""), "401 Unauthorized", "unauthorized", "WWW-Authenticate: Bearer"),
            (Refusal::origin_not_allowed(""), "403 Forbidden", "origin_not_allowed", "Connection: close"),
            (Refusal::not_found(), "404 Not Found", "not_found", "Connection: close"),
            (Refusal::method_not_allowed(), "405 Method Not Allowed", "method_not_allowed", "Allow: GET"),
            (Refusal::upgrade_required(), "426 Upgrade Required", "upgrade_required", "Upgrade: websocket"),
            (
                Refusal::upgrade_required(),
                "426 Upgrade Required",
                "upgrade_required",
                "Connection: close, Upgrade",
            ),
            (
                Refusal::upgrade_required(),
                "426 Upgrade Required",
                "upgrade_required",
                "Sec-WebSocket-Version: 13",
            ),
            (Refusal::rate_limited(second), "429 Too Many Requests", "rate_limited", "Retry-After: 1"),
            (Refusal::draining(second), "503 Service Unavailable", "draining", "Retry-After: 1"),
            (
                Refusal::too_many_connections(second),
                "503 Service Unavailable",
                "too_many_connections",
                "Retry-After: 1",
            ),
        ] {
            let (head, body) = written(&refusal);
            assert_eq!(head.lines().next(), Some(format!("HTTP/1.1 {status_line}").as_str()));
            assert!(head.lines().any(|line| line == header), "{header} in {head}");
            let body: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(body["error"]["code"], code);
            assert!(refusal.message.is_empty() || refusal.message.ends_with('.'));
        }
    }

    #[test]
    fn retry_after_is_rounded_up_to_whole_seconds() {
        for (millis, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (29_500, 30), (30_000, 30)] {
            let (head, _) = written(&Refusal::draining(Duration::from_millis(millis)));
            assert!(head.contains(&format!("Retry-After: {seconds}")), "{millis} ms: {head}");
        }
        assert!(written(&Refusal::draining(Duration::MAX)).0.contains(&u64::MAX.to_string()));
    }
}
