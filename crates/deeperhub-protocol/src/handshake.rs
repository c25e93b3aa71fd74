//! The opening handshake (RFC 6455 section 4): request head, answer, refusal.
use std::borrow::Cow;
use std::time::Duration;

/// Longest request head that is read, in bytes.
pub const MAX_HEAD_BYTES: usize = 16 * 1024;
pub const MAX_HEADERS: usize = 96;

/// A request head, owned. Header names compare without case.
#[derive(Debug, Clone)]
pub struct Request { /* head: Box<[u8]>, ranges */ }
/// What a buffer holds so far.
#[derive(Debug)]
pub enum Parsed { Partial, Complete { request: Request, head_bytes: usize } }
impl Request {
    /// Parses a request head from the start of `buffer`. Over the limits or malformed: a refusal (400 `bad_handshake`).
    pub fn parse(buffer: &[u8]) -> Result<Parsed, Refusal> { let _ = buffer; unimplemented!() }
    pub fn method(&self) -> &str { unimplemented!() }
    /// Path without the query.
    pub fn path(&self) -> &str { unimplemented!() }
    pub fn query(&self) -> Option<&str> { unimplemented!() }
    /// First value of a header, if it is visible ASCII/UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> { let _ = name; unimplemented!() }
    /// All values of a header in their order.
    pub fn headers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> + 'a { let _ = name; std::iter::empty() }
    pub fn host(&self) -> Option<&str> { self.header("host") }
    pub fn origin(&self) -> Option<&str> { self.header("origin") }
    /// Subprotocols offered, in order, over all `Sec-WebSocket-Protocol` lines.
    pub fn subprotocols(&self) -> impl Iterator<Item = &str> + '_ { std::iter::empty() }
    /// Checks method, upgrade, version and key, in the order that the table of refusals needs
    /// (405, then 426, then 400), and gives the value for `Sec-WebSocket-Accept`.
    pub fn check_upgrade(&self) -> Result<AcceptKey, Refusal> { unimplemented!() }
}
/// The value of `Sec-WebSocket-Accept`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptKey(String);

/// Writes the `101 Switching Protocols` answer.
pub fn write_accept(out: &mut Vec<u8>, key: &AcceptKey, subprotocol: Option<&str>, extensions: Option<&str>) { let _ = (out, key, subprotocol, extensions); unimplemented!() }

/// A handshake that is refused: HTTP status, code, a sentence, and when to come back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{status} {code}: {message}")]
pub struct Refusal { pub status: u16, pub code: &'static str, pub message: Cow<'static, str>, pub retry_after: Option<Duration> }
impl Refusal {
    pub fn bad_handshake(message: impl Into<Cow<'static, str>>) -> Self { let _ = message.into(); unimplemented!() }
    pub fn unauthorized(message: impl Into<Cow<'static, str>>) -> Self { let _ = message.into(); unimplemented!() }
    pub fn origin_not_allowed(message: impl Into<Cow<'static, str>>) -> Self { let _ = message.into(); unimplemented!() }
    pub fn not_found() -> Self { unimplemented!() }
    pub fn method_not_allowed() -> Self { unimplemented!() }
    pub fn upgrade_required() -> Self { unimplemented!() }
    pub fn rate_limited(retry_after: Duration) -> Self { let _ = retry_after; unimplemented!() }
    pub fn too_many_connections(retry_after: Duration) -> Self { let _ = retry_after; unimplemented!() }
    pub fn draining(retry_after: Duration) -> Self { let _ = retry_after; unimplemented!() }
    /// Writes the whole HTTP answer: status line, headers (`Content-Type: application/json`, `Content-Length`,
    /// `Connection: close`, `Retry-After` in whole seconds rounded up, at least 1; for 426 `Upgrade: websocket` and
    /// `Sec-WebSocket-Version: 13`, for 405 `Allow: GET`), and `{"error":{"code","message"}}`.
    pub fn write(&self, out: &mut Vec<u8>) { let _ = out; unimplemented!() }
}
