//! Decoded messages and control frames.

use super::FrameError;
use super::header::Opcode;

/// A decoded message or control frame, borrowed from the input or from the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A text message, joined from its fragments.
    Text(&'a str),
    /// A binary message, joined from its fragments.
    Binary(&'a [u8]),
    /// A ping of at most 125 bytes. Reply with a pong of the same payload.
    Ping(&'a [u8]),
    /// A pong of at most 125 bytes.
    Pong(&'a [u8]),
    /// A close frame with its code and reason, or `None` if the frame has no body. The code is one
    /// that may be sent (RFC 6455 section 7.4).
    Close(Option<(u16, &'a str)>),
}

/// A message or control frame of a connection with an extension that marks messages with RSV1, such
/// as `permessage-deflate` (RFC 7692 section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extended<'a> {
    /// A message or control frame without RSV1.
    Plain(Incoming<'a>),
    /// A message with RSV1, joined from its fragments. The extension must decode it.
    Encoded {
        /// The kind of the decoded message. The caller must check that decoded text is UTF-8.
        kind: MessageKind,
        /// The encoded payload, unmasked.
        payload: &'a [u8],
    },
}

/// The two kinds of data messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageKind {
    /// The payload is UTF-8.
    Text,
    /// The payload is any bytes.
    Binary,
}

impl MessageKind {
    /// Returns the kind of the message that starts with `opcode`, a text or binary frame.
    pub(super) fn of(opcode: Opcode) -> Self {
        if opcode == Opcode::Text { Self::Text } else { Self::Binary }
    }
}

impl<'a> Incoming<'a> {
    /// Creates the item for a control frame from its whole, unmasked payload.
    pub(super) fn control(opcode: Opcode, payload: &'a [u8]) -> Result<Self, FrameError> {
        match opcode {
            Opcode::Ping => Ok(Self::Ping(payload)),
            Opcode::Pong => Ok(Self::Pong(payload)),
            _ => parse_close_body(payload).map(Self::Close),
        }
    }
}

/// Parses the body of a close frame (RFC 6455 section 5.5.1).
fn parse_close_body(body: &[u8]) -> Result<Option<(u16, &str)>, FrameError> {
    let Some((code, reason)) = body.split_first_chunk() else {
        return if body.is_empty() { Ok(None) } else { Err(FrameError::CloseTooShort) };
    };
    let code = u16::from_be_bytes(*code);
    if !is_sendable_close_code(code) {
        return Err(FrameError::CloseCodeNotAllowed { code });
    }
    let reason = std::str::from_utf8(reason).map_err(|_| FrameError::InvalidUtf8)?;
    Ok(Some((code, reason)))
}

/// Returns `true` if a close frame may carry `code`. RFC 6455 section 7.4 defines the codes; the
/// IANA registry later added 1012 to 1014. The excluded codes from 1004 to 1015 are reserved or
/// never sent on the wire.
fn is_sendable_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sendable_close_codes_are_accepted() {
        for (codes, allowed) in [
            (0..=999, false),
            (1000..=1003, true),
            (1004..=1006, false),
            (1007..=1014, true),
            (1015..=2999, false),
            (3000..=4999, true),
            (5000..=u16::MAX, false),
        ] {
            for code in codes {
                let result = parse_close_body(&code.to_be_bytes()).map(|close| close.map(|(code, _)| code));
                let expected =
                    if allowed { Ok(Some(code)) } else { Err(FrameError::CloseCodeNotAllowed { code }) };
                assert_eq!(result, expected);
            }
        }
    }

    #[test]
    fn a_close_body_is_empty_or_has_a_code_and_utf8() {
        assert_eq!(parse_close_body(b""), Ok(None));
        assert_eq!(parse_close_body(b"\x03"), Err(FrameError::CloseTooShort));
        assert_eq!(parse_close_body(b"\x03\xe8"), Ok(Some((1000, ""))));
        assert_eq!(parse_close_body("\x0b\u{38}".as_bytes()).ok(), None, "2872 is reserved");
        assert_eq!(parse_close_body(b"\x0f\xa0gr\xc3\xbc\xc3\x9fe"), Ok(Some((4000, "grüße"))));
        assert_eq!(parse_close_body(b"\x03\xe8\xff"), Err(FrameError::InvalidUtf8));
        assert_eq!(parse_close_body(b"\x03\xe8\xc3"), Err(FrameError::InvalidUtf8));
    }
}
