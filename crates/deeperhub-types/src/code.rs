//! Error codes and close codes.

use std::borrow::Cow;
use std::fmt;

/// Maximum length of a close frame's reason in bytes. A control frame has at most 125 bytes of
/// payload, and the close code is two of them (RFC 6455 section 5.5).
const MAX_CLOSE_TEXT_BYTES: usize = 123;

/// The code of an `error` reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// The text is not JSON.
    InvalidJson,
    /// The text is JSON but not a message: a key is missing, duplicated, or has a value of the
    /// wrong type.
    InvalidMessage,
    /// The `type` is not one of the client message types.
    UnknownType,
    /// A topic or pattern breaks a syntax rule, for example because it is reserved for the server.
    InvalidTopic,
    /// The client must authenticate first.
    Unauthorized,
    /// The client's token does not grant the topic.
    Forbidden,
    /// The server does not accept the token.
    TokenInvalid,
    /// The token has expired: the time in its claim `exp` has passed.
    TokenExpired,
    /// The client exceeds a rate limit. The error reply has the delay before a retry.
    RateLimited,
    /// The connection has reached its subscription limit.
    TooManySubscriptions,
    /// The server keeps history for as many topics as its limit allows.
    TooManyTopics,
    /// The store of a topic with history cannot be reached. Nothing was done. The error reply has
    /// the delay before a retry.
    Unavailable,
    /// The server has an internal error.
    Internal,
}

impl ErrorCode {
    /// All error codes, in the order of the table in the README.
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
        Self::TooManyTopics,
        Self::Unavailable,
        Self::Internal,
    ];

    /// Returns the code as text, as sent in `error` messages and in server API responses.
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
            Self::TooManyTopics => "too_many_topics",
            Self::Unavailable => "unavailable",
            Self::Internal => "internal",
        }
    }

    /// Returns the position in [`Self::ALL`], which is an index for arrays of counters.
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

/// The close codes of the protocol. The server sends all of them on its own initiative, except
/// [`Normal`](Self::Normal).
///
/// The range of a private code tells a client how to react, even if it does not know the code:
///
/// - 4000 to 4099: the client must not reconnect with the same request.
/// - 4100 to 4199: the client reconnects after a delay.
/// - 4200 to 4299: the client reconnects at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseCode {
    /// 1000: the client closed the connection.
    Normal,
    /// 1001: the server is shutting down.
    GoingAway,
    /// 1002: a frame violates RFC 6455.
    ProtocolError,
    /// 1007: a text is not UTF-8, or a compressed message cannot be decompressed.
    InvalidUtf8,
    /// 1008: the client exceeded the rate limit repeatedly.
    PolicyViolation,
    /// 1009: a message exceeds a limit on its bytes or fragments.
    MessageTooBig,
    /// 1011: the server has an internal error.
    InternalError,
    /// 1013: the client is a slow consumer: its send queue exceeded the limit.
    SlowConsumer,
    /// 4001: the client sent no token within the grace period, or its token expired.
    TokenExpired,
    /// 4003: the client was disconnected through the server API.
    Disconnected,
    /// 4200: liveness timeout. The client has neither sent nor acknowledged a byte since the ping.
    PongTimeout,
}

impl CloseCode {
    /// All close codes in ascending order, which is the order of the table in the README.
    pub const ALL: &'static [Self] = &[
        Self::Normal,
        Self::GoingAway,
        Self::ProtocolError,
        Self::InvalidUtf8,
        Self::PolicyViolation,
        Self::MessageTooBig,
        Self::InternalError,
        Self::SlowConsumer,
        Self::TokenExpired,
        Self::Disconnected,
        Self::PongTimeout,
    ];

    /// Returns the number that a close frame carries (RFC 6455 section 7.4).
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
            Self::SlowConsumer => 1013,
            Self::TokenExpired => 4001,
            Self::Disconnected => 4003,
            Self::PongTimeout => 4200,
        }
    }

    /// Returns the position in [`Self::ALL`], which is an index for arrays of counters.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Returns `true` if a client may reconnect automatically (`reconnect` in `goodbye`).
    #[must_use]
    pub const fn allows_reconnect(self) -> bool {
        match self {
            Self::GoingAway
            | Self::PolicyViolation
            | Self::InternalError
            | Self::SlowConsumer
            | Self::PongTimeout => true,
            Self::Normal
            | Self::ProtocolError
            | Self::InvalidUtf8
            | Self::MessageTooBig
            | Self::TokenExpired
            | Self::Disconnected => false,
        }
    }

    /// Returns `true` if the server sends a `goodbye` message before the close frame. This is the
    /// case for 1001, 1008, 1013 and the private codes.
    #[must_use]
    pub const fn sends_goodbye(self) -> bool {
        match self {
            Self::GoingAway
            | Self::PolicyViolation
            | Self::SlowConsumer
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

/// The reason why a connection is closed: a code, and a text of at most 123 bytes for the close
/// frame (RFC 6455 section 5.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseReason {
    code: CloseCode,
    text: Cow<'static, str>,
}

impl CloseReason {
    /// Creates a reason. A text over 123 bytes is truncated at a character boundary.
    pub fn new(code: CloseCode, text: impl Into<Cow<'static, str>>) -> Self {
        let mut text = text.into();
        let end = text.floor_char_boundary(MAX_CLOSE_TEXT_BYTES);
        match &mut text {
            Cow::Borrowed(text) => *text = &text[..end],
            Cow::Owned(text) => text.truncate(end),
        }
        Self { code, text }
    }

    /// Returns the close code.
    #[must_use]
    pub fn code(&self) -> CloseCode {
        self.code
    }

    /// Returns the text, at most 123 bytes.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for CloseReason {
    /// Writes the code and the text, such as `1009 message is over 65536 bytes`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.text.is_empty() {
            write!(f, "{}", self.code)
        } else {
            write!(f, "{} {}", self.code, self.text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_codes_are_ordered_by_index() {
        for (index, code) in ErrorCode::ALL.iter().enumerate() {
            assert_eq!(code.index(), index, "{code}");
        }
        assert_eq!(ErrorCode::ALL.len(), ErrorCode::Internal.index() + 1, "the table is complete");
    }

    #[test]
    fn close_codes_are_ordered_by_index_and_value() {
        for (index, code) in CloseCode::ALL.iter().enumerate() {
            assert_eq!(code.index(), index, "{code}");
        }
        assert_eq!(CloseCode::ALL.len(), CloseCode::PongTimeout.index() + 1, "the table is complete");
        assert!(CloseCode::ALL.is_sorted_by_key(|code| code.as_u16()));
    }

    #[test]
    fn error_codes_are_unique_and_in_snake_case() {
        for (index, code) in ErrorCode::ALL.iter().enumerate() {
            let name = code.as_str();
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            assert!(ErrorCode::ALL[..index].iter().all(|other| other.as_str() != name), "{name}");
        }
    }

    #[test]
    fn reconnect_and_goodbye_follow_the_table() {
        let codes = |which: fn(CloseCode) -> bool| -> Vec<u16> {
            CloseCode::ALL.iter().filter(|code| which(**code)).map(|code| code.as_u16()).collect()
        };
        assert_eq!(codes(CloseCode::allows_reconnect), [1001, 1008, 1011, 1013, 4200]);
        assert_eq!(codes(CloseCode::sends_goodbye), [1001, 1008, 1013, 4001, 4003, 4200]);
    }

    #[test]
    fn private_codes_are_in_the_documented_ranges() {
        for code in CloseCode::ALL.iter().filter(|code| code.as_u16() >= 4000) {
            assert!((4000..4300).contains(&code.as_u16()));
            assert_eq!(code.allows_reconnect(), code.as_u16() >= 4100, "{code}");
        }
    }

    #[test]
    fn close_text_is_truncated_between_characters() {
        let short = CloseReason::new(CloseCode::SlowConsumer, "too slow");
        assert_eq!((short.text(), short.to_string().as_str()), ("too slow", "1013 too slow"));
        assert_eq!(CloseReason::new(CloseCode::Normal, "").to_string(), "1000");
        let exact = CloseReason::new(CloseCode::Normal, "x".repeat(123));
        assert_eq!(exact.text().len(), 123);
        let long = CloseReason::new(CloseCode::Normal, "ä".repeat(100));
        assert_eq!(long.text(), "ä".repeat(61), "byte 123 is inside the 62nd character");
        const LONG: &str = "a static text of more than one hundred and twenty-three bytes, which is \
                            about as long as two lines of an ordinary book with narrow margins are";
        let long = CloseReason::new(CloseCode::Normal, LONG);
        assert_eq!(long.text(), &LONG[..123]);
    }
}
