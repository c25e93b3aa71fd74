//! The tables of error codes and close codes.

use std::borrow::Cow;
use std::fmt;

/// Longest text of a close frame in bytes: a control frame carries 125, and the code takes two (RFC 6455 section 5.5).
const MAX_CLOSE_TEXT: usize = 123;

/// Why a message was answered with an `error`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// The text is not JSON.
    InvalidJson,
    /// The text is JSON, but not a message: a key is missing, stands twice, or has a value of the wrong kind.
    InvalidMessage,
    /// The `type` is not one that clients send.
    UnknownType,
    /// A topic or a pattern is not written as one, or is the server's own.
    InvalidTopic,
    /// The client must authenticate first.
    Unauthorized,
    /// The client's token does not grant the topic.
    Forbidden,
    /// A token is not one that this server accepts.
    TokenInvalid,
    /// A token was good once and is past its `exp`.
    TokenExpired,
    /// The client sends faster than it may; the error says when to try again.
    RateLimited,
    /// The connection has as many subscriptions as it may have.
    TooManySubscriptions,
    /// A fault inside the server.
    Internal,
}

impl ErrorCode {
    /// All, in the order of the table in `docs/protocol.md`.
    pub const ALL: &'static [Self] = &[
        Self::InvalidJson,
        Self::InvalidMessage,
        Self::UnknownType,
        Self::InvalidTopic,
        Self::Unauthorized,
        Self::Forbidden,
        Self::TokenInvalid,
        Self::TokenExpired,
        Self::RateLimited,
        Self::TooManySubscriptions,
        Self::Internal,
    ];

    /// The code as it stands in `error` messages and in the answers of the server API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidJson => "invalid_json",
            Self::InvalidMessage => "invalid_message",
            Self::UnknownType => "unknown_type",
            Self::InvalidTopic => "invalid_topic",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::TokenInvalid => "token_invalid",
            Self::TokenExpired => "token_expired",
            Self::RateLimited => "rate_limited",
            Self::TooManySubscriptions => "too_many_subscriptions",
            Self::Internal => "internal",
        }
    }

    /// Position in [`Self::ALL`]: for arrays of counters.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Close codes that the server sends by itself.
///
/// Codes of our own keep to three ranges, so that a client need not know each: after 4000-4099 it does not come back
/// unchanged, after 4100-4199 it comes back after a pause, after 4200-4299 it comes back now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseCode {
    /// 1000: the client closed.
    Normal,
    /// 1001: the server shuts down.
    GoingAway,
    /// 1002: frames against RFC 6455.
    ProtocolError,
    /// 1007: text that is not UTF-8, or a compressed message that cannot be decompressed.
    InvalidUtf8,
    /// 1008: kept violating the rate limit.
    PolicyViolation,
    /// 1009: a message over the limit of bytes.
    MessageTooBig,
    /// 1011: a fault inside the server.
    InternalError,
    /// 1013: the client reads too slowly, and its queue passed the limit.
    TooSlow,
    /// 4001: no token within the grace time, or it expired.
    TokenExpired,
    /// 4003: disconnected by the server API.
    Disconnected,
    /// 4200: liveness timeout; since the ping, the client sent no byte and accepted none.
    PongTimeout,
}

impl CloseCode {
    /// All, in ascending order, which is that of the table in `docs/reconnecting.md`.
    pub const ALL: &'static [Self] = &[
        Self::Normal,
        Self::GoingAway,
        Self::ProtocolError,
        Self::InvalidUtf8,
        Self::PolicyViolation,
        Self::MessageTooBig,
        Self::InternalError,
        Self::TooSlow,
        Self::TokenExpired,
        Self::Disconnected,
        Self::PongTimeout,
    ];

    /// The code as it stands in a close frame (RFC 6455 section 7.4).
    #[must_use]
    pub const fn as_u16(self) -> u16 {
        match self {
            Self::Normal => 1000,
            Self::GoingAway => 1001,
            Self::ProtocolError => 1002,
            Self::InvalidUtf8 => 1007,
            Self::PolicyViolation => 1008,
            Self::MessageTooBig => 1009,
            Self::InternalError => 1011,
            Self::TooSlow => 1013,
            Self::TokenExpired => 4001,
            Self::Disconnected => 4003,
            Self::PongTimeout => 4200,
        }
    }

    /// Position in [`Self::ALL`]: for arrays of counters.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Whether a client may come back by itself (the `reconnect` of `goodbye`).
    #[must_use]
    pub const fn reconnect(self) -> bool {
        match self {
            Self::GoingAway
            | Self::PolicyViolation
            | Self::InternalError
            | Self::TooSlow
            | Self::PongTimeout => true,
            Self::Normal
            | Self::ProtocolError
            | Self::InvalidUtf8
            | Self::MessageTooBig
            | Self::TokenExpired
            | Self::Disconnected => false,
        }
    }

    /// Whether `goodbye` goes ahead of the close frame: 1001, 1008, 1013 and the codes of our own.
    #[must_use]
    pub const fn says_goodbye(self) -> bool {
        match self {
            Self::GoingAway
            | Self::PolicyViolation
            | Self::TooSlow
            | Self::TokenExpired
            | Self::Disconnected
            | Self::PongTimeout => true,
            Self::Normal
            | Self::ProtocolError
            | Self::InvalidUtf8
            | Self::MessageTooBig
            | Self::InternalError => false,
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_u16().fmt(f)
    }
}

/// Why a connection is closed: a code and a few words for the close frame (at most 123 bytes, RFC 6455 section 5.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseReason {
    code: CloseCode,
    text: Cow<'static, str>,
}

impl CloseReason {
    /// A code and its words; those beyond 123 bytes are cut off between two characters.
    pub fn new(code: CloseCode, text: impl Into<Cow<'static, str>>) -> Self {
        let mut text = text.into();
        let end = text.floor_char_boundary(MAX_CLOSE_TEXT);
        match &mut text {
            Cow::Borrowed(text) => *text = &text[..end],
            Cow::Owned(text) => text.truncate(end),
        }
        Self { code, text }
    }

    /// The code.
    #[must_use]
    pub fn code(&self) -> CloseCode {
        self.code
    }

    /// The words: at most 123 bytes.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// The code and the words: `1009 message is over 65536 bytes`.
impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if self.text.is_empty() { Ok(()) } else { write!(f, " {}", self.text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_code_stands_at_its_index() {
        for (index, code) in ErrorCode::ALL.iter().enumerate() {
            assert_eq!(code.index(), index, "{code}");
        }
        assert_eq!(ErrorCode::ALL.len(), ErrorCode::Internal.index() + 1, "none is left out");
    }

    #[test]
    fn a_close_code_stands_at_its_index_in_ascending_order() {
        for (index, code) in CloseCode::ALL.iter().enumerate() {
            assert_eq!(code.index(), index, "{code}");
        }
        assert_eq!(CloseCode::ALL.len(), CloseCode::PongTimeout.index() + 1, "none is left out");
        assert!(CloseCode::ALL.is_sorted_by_key(|code| code.as_u16()));
    }

    #[test]
    fn error_codes_are_words_in_snake_case_and_differ() {
        for (index, code) in ErrorCode::ALL.iter().enumerate() {
            let name = code.as_str();
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert!(ErrorCode::ALL[..index].iter().all(|other| other.as_str() != name), "{name}");
        }
    }

    #[test]
    fn clients_may_come_back_after_what_was_not_their_fault() {
        let codes = |which: fn(CloseCode) -> bool| -> Vec<u16> {
            CloseCode::ALL.iter().filter(|code| which(**code)).map(|code| code.as_u16()).collect()
        };
        assert_eq!(codes(CloseCode::reconnect), [1001, 1008, 1011, 1013, 4200]);
        assert_eq!(codes(CloseCode::says_goodbye), [1001, 1008, 1013, 4001, 4003, 4200]);
    }

    #[test]
    fn codes_of_our_own_keep_to_their_ranges() {
        for code in CloseCode::ALL.iter().filter(|code| code.as_u16() >= 4000) {
            assert!((4000..4300).contains(&code.as_u16()));
            assert_eq!(code.reconnect(), code.as_u16() >= 4100, "{code}");
        }
    }

    #[test]
    fn close_text_is_cut_between_characters() {
        let short = CloseReason::new(CloseCode::TooSlow, "too slow");
        assert_eq!((short.text(), short.to_string().as_str()), ("too slow", "1013 too slow"));
        assert_eq!(CloseReason::new(CloseCode::Normal, "").to_string(), "1000");
        let exact = CloseReason::new(CloseCode::Normal, "x".repeat(123));
        assert_eq!(exact.text().len(), 123);
        let long = CloseReason::new(CloseCode::Normal, "ä".repeat(100));
        assert_eq!(long.text(), "ä".repeat(61), "123 would be in the middle of the 62nd");
        const LONG: &str = "a static text of more than one hundred and twenty-three bytes, which is \
                            about as long as two lines of an ordinary book with narrow margins are";
        let long = CloseReason::new(CloseCode::Normal, LONG);
        assert_eq!(long.text(), &LONG[..123]);
    }
}
