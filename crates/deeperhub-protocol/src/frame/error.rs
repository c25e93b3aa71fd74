//! Errors in client frames.

use crate::{CloseCode, CloseReason};

/// A violation of RFC 6455 or of a limit. The caller closes the connection with
/// [`Self::close_reason`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// A client frame is not masked (RFC 6455 section 5.1).
    #[error("frame is not masked")]
    Unmasked,
    /// A reserved bit is set without a negotiated extension that uses it (RFC 6455 section 5.2).
    #[error("reserved bits are set")]
    ReservedBits,
    /// The opcode is reserved (RFC 6455 section 5.2).
    #[error("opcode {opcode} is reserved")]
    ReservedOpcode {
        /// The received opcode: 3 to 7 or 11 to 15.
        opcode: u8,
    },
    /// A close, ping or pong frame is not final (RFC 6455 section 5.5).
    #[error("control frame is fragmented")]
    FragmentedControl,
    /// A close, ping or pong frame declares more than 125 bytes (RFC 6455 section 5.5).
    #[error("control frame is over 125 bytes")]
    ControlTooLong,
    /// The length is not encoded in its shortest form (RFC 6455 section 5.2).
    #[error("length is not in its shortest form")]
    LengthNotMinimal,
    /// A 64-bit length has its top bit set (RFC 6455 section 5.2).
    #[error("length has its top bit set")]
    LengthOutOfRange,
    /// A continuation frame arrived outside a fragmented message (RFC 6455 section 5.4).
    #[error("continuation frame without a message")]
    UnexpectedContinuation,
    /// A text or binary frame arrived inside a fragmented message (RFC 6455 section 5.4).
    #[error("new message inside a fragmented message")]
    UnfinishedMessage,
    /// The body of a close frame is one byte, too short for a code (RFC 6455 section 5.5.1).
    #[error("close frame is too short for a code")]
    CloseTooShort,
    /// A close frame has a code that must not be sent (RFC 6455 section 7.4).
    #[error("close code {code} is not allowed")]
    CloseCodeNotAllowed {
        /// The received code.
        code: u16,
    },
    /// A text message or the reason of a close frame is not UTF-8 (RFC 6455 section 8.1).
    #[error("text is not UTF-8")]
    InvalidUtf8,
    /// A compressed message is not valid DEFLATE (RFC 7692 section 7.2.2).
    #[cfg(feature = "deflate")]
    #[error("compressed message is malformed")]
    MalformedDeflate,
    /// A message, summed over its fragments, exceeds the limit. The declared length is checked
    /// before the payload arrives. The length of a compressed message is also checked during
    /// decompression.
    #[error("message is over {limit} bytes")]
    MessageTooBig {
        /// [`FrameLimits::max_message_bytes`](super::FrameLimits::max_message_bytes).
        limit: usize,
    },
    /// A message has more fragments than allowed.
    #[error("message has more than {limit} fragments")]
    TooManyFragments {
        /// [`FrameLimits::max_fragments`](super::FrameLimits::max_fragments).
        limit: u32,
    },
}

impl FrameError {
    /// Returns the reason for the close frame. Its code is:
    ///
    /// - 1007 for text that is not UTF-8, and for a compressed message that cannot be decompressed.
    ///   RFC 7692 names no code for it; 1007 ("data not consistent with the type") fits best.
    /// - 1009 for a message over a limit on bytes or fragments. The same message would fail again,
    ///   so a client should not reconnect automatically.
    /// - 1002 for all other errors.
    pub fn close_reason(self) -> CloseReason {
        let (code, text) = match self {
            Self::InvalidUtf8 => (CloseCode::InvalidUtf8, "text is not UTF-8"),
            #[cfg(feature = "deflate")]
            Self::MalformedDeflate => (CloseCode::InvalidUtf8, "compressed message is malformed"),
            Self::MessageTooBig { .. } | Self::TooManyFragments { .. } => {
                return CloseReason::new(CloseCode::MessageTooBig, self.to_string());
            }
            Self::ReservedOpcode { .. } => (CloseCode::ProtocolError, "opcode is reserved"),
            Self::CloseCodeNotAllowed { .. } => (CloseCode::ProtocolError, "close code is not allowed"),
            Self::Unmasked => (CloseCode::ProtocolError, "frame is not masked"),
            Self::ReservedBits => (CloseCode::ProtocolError, "reserved bits are set"),
            Self::FragmentedControl => (CloseCode::ProtocolError, "control frame is fragmented"),
            Self::ControlTooLong => (CloseCode::ProtocolError, "control frame is over 125 bytes"),
            Self::LengthNotMinimal => (CloseCode::ProtocolError, "length is not in its shortest form"),
            Self::LengthOutOfRange => (CloseCode::ProtocolError, "length has its top bit set"),
            Self::UnexpectedContinuation => {
                (CloseCode::ProtocolError, "continuation frame without a message")
            }
            Self::UnfinishedMessage => (CloseCode::ProtocolError, "new message inside a fragmented message"),
            Self::CloseTooShort => (CloseCode::ProtocolError, "close frame is too short for a code"),
        };
        CloseReason::new(code, text)
    }
}
