//! The tables of error codes and close codes.
use std::borrow::Cow;

/// Why a message was answered with an `error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    InvalidJson, InvalidMessage, UnknownType, InvalidTopic, Unauthorized, Forbidden,
    TokenInvalid, TokenExpired, RateLimited, TooManySubscriptions, Internal,
}
impl ErrorCode {
    /// All, in the order of the README's table.
    pub const ALL: &'static [Self] = &[];
    pub const fn as_str(self) -> &'static str { unimplemented!() }
    /// Position in [`Self::ALL`]: for arrays of counters.
    pub const fn index(self) -> usize { unimplemented!() }
}

/// Close codes that the server sends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseCode {
    /// 1000
    Normal, /// 1001
    GoingAway, /// 1002
    ProtocolError, /// 1007
    InvalidUtf8, /// 1008
    PolicyViolation, /// 1009
    MessageTooBig, /// 1011
    InternalError, /// 1013
    TooSlow, /// 4001
    TokenExpired, /// 4003
    Disconnected, /// 4200
    PongTimeout,
}
impl CloseCode {
    pub const ALL: &'static [Self] = &[];
    pub const fn as_u16(self) -> u16 { unimplemented!() }
    /// Whether a client may come back by itself (the `reconnect` of `goodbye`).
    pub const fn reconnect(self) -> bool { unimplemented!() }
    /// Whether `goodbye` goes ahead of the close frame: 1001, 1008, 1013 and the codes of our own.
    pub const fn says_goodbye(self) -> bool { unimplemented!() }
}

/// Why a connection is closed: a code and a few words for the close frame (at most 123 bytes, RFC 6455 section 5.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseReason { code: CloseCode, text: Cow<'static, str> }
impl CloseReason {
    pub fn new(code: CloseCode, text: impl Into<Cow<'static, str>>) -> Self { Self { code, text: text.into() } }
    pub fn code(&self) -> CloseCode { self.code }
    pub fn text(&self) -> &str { &self.text }
}
