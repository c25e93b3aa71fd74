//! The header of a client frame (RFC 6455 section 5.2).
//!
//! tungstenite's `FrameHeader::parse` is not used, because it requires a `Cursor` and accepts
//! lengths that are not in their shortest form. It also reports errors only when the header is
//! complete.

use super::FrameError;

pub(super) const FIN: u8 = 0x80;
const RSV: u8 = 0x70;
pub(super) const RSV1: u8 = 0x40;
pub(super) const OPCODE: u8 = 0x0f;
const MASKED: u8 = 0x80;
pub(super) const LENGTH: u8 = 0x7f;

pub(super) const CONTINUATION: u8 = 0x0;
pub(crate) const TEXT: u8 = 0x1;
pub(super) const BINARY: u8 = 0x2;
pub(super) const CLOSE: u8 = 0x8;
pub(super) const PING: u8 = 0x9;
pub(super) const PONG: u8 = 0xa;

/// Maximum payload length in bytes of a control frame, and of a server frame with a two-byte
/// header.
pub(super) const MAX_CONTROL_PAYLOAD_BYTES: usize = 125;

/// Maximum length of a client frame's header: two bytes, a 64-bit length and the mask.
pub(super) const MAX_CLIENT_HEADER_BYTES: usize = 14;

/// An opcode that RFC 6455 defines. The reserved opcodes are an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Opcode {
    Continuation = CONTINUATION,
    Text = TEXT,
    Binary = BINARY,
    Close = CLOSE,
    Ping = PING,
    Pong = PONG,
}

impl Opcode {
    #[inline]
    pub(super) fn is_control(self) -> bool {
        self as u8 & 0x8 != 0
    }
}

/// A complete and valid frame header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) opcode: Opcode,
    pub(super) fin: bool,
    /// The bit RSV1, which is allowed only on the first frame of a message.
    pub(super) rsv1: bool,
    pub(super) mask: [u8; 4],
    /// Length of the header in bytes.
    pub(super) len: usize,
    /// Declared length of the payload, below 2^63.
    pub(super) payload_len: u64,
}

impl Header {
    /// Parses the header at the start of `bytes`. Returns `None` if the header is incomplete.
    ///
    /// An error in the first two bytes is reported as soon as these two bytes have arrived.
    /// `ALLOW_RSV1` is `true` if the connection has an extension that uses RSV1.
    #[inline]
    pub(super) fn parse<const ALLOW_RSV1: bool>(bytes: &[u8]) -> Result<Option<Self>, FrameError> {
        let Some(&[first, second]) = bytes.first_chunk() else { return Ok(None) };
        let opcode = match first & OPCODE {
            CONTINUATION => Opcode::Continuation,
            TEXT => Opcode::Text,
            BINARY => Opcode::Binary,
            CLOSE => Opcode::Close,
            PING => Opcode::Ping,
            PONG => Opcode::Pong,
            opcode => return Err(FrameError::ReservedOpcode { opcode }),
        };
        let fin = first & FIN != 0;
        let starts_message = matches!(opcode, Opcode::Text | Opcode::Binary);
        let rsv1 = ALLOW_RSV1 && first & RSV1 != 0 && starts_message;
        if first & RSV != 0 && !(rsv1 && first & RSV == RSV1) {
            return Err(FrameError::ReservedBits);
        }
        if second & MASKED == 0 {
            return Err(FrameError::Unmasked);
        }
        let length = second & LENGTH;
        if opcode.is_control() {
            if !fin {
                return Err(FrameError::FragmentedControl);
            }
            if length > MAX_CONTROL_PAYLOAD_BYTES as u8 {
                return Err(FrameError::ControlTooLong);
            }
        }
        let (len, payload_len, mask) = match length {
            126 => {
                let Some(&[_, _, a, b, ref mask @ ..]) = bytes.first_chunk::<8>() else { return Ok(None) };
                let payload_len = u16::from_be_bytes([a, b]);
                if payload_len <= MAX_CONTROL_PAYLOAD_BYTES as u16 {
                    return Err(FrameError::LengthNotMinimal);
                }
                (8, u64::from(payload_len), *mask)
            }
            127 => {
                let Some(&[_, _, a, b, c, d, e, f, g, h, ref mask @ ..]) =
                    bytes.first_chunk::<MAX_CLIENT_HEADER_BYTES>()
                else {
                    return Ok(None);
                };
                let payload_len = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
                if payload_len <= u64::from(u16::MAX) {
                    return Err(FrameError::LengthNotMinimal);
                }
                if payload_len >> 63 != 0 {
                    return Err(FrameError::LengthOutOfRange);
                }
                (MAX_CLIENT_HEADER_BYTES, payload_len, *mask)
            }
            _ => {
                let Some(&[_, _, ref mask @ ..]) = bytes.first_chunk::<6>() else { return Ok(None) };
                (6, u64::from(length), *mask)
            }
        };
        Ok(Some(Self { opcode, fin, rsv1, mask, len, payload_len }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Option<Header>, FrameError> {
        Header::parse::<false>(bytes)
    }

    #[test]
    fn all_forms_of_a_length_are_parsed() {
        for (bytes, len, payload_len) in [
            (&[0x81, 0x80, 1, 2, 3, 4][..], 6, 0),
            (&[0x81, 0xfd, 1, 2, 3, 4], 6, 125),
            (&[0x81, 0xfe, 0, 126, 1, 2, 3, 4], 8, 126),
            (&[0x81, 0xfe, 0xff, 0xff, 1, 2, 3, 4], 8, 65_535),
            (&[0x81, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4], 14, 65_536),
            (&[0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4], 14, u64::MAX >> 1),
        ] {
            let header = parse(bytes).unwrap().unwrap();
            assert_eq!((header.len, header.payload_len, header.mask), (len, payload_len, [1, 2, 3, 4]));
            for cut in 0..bytes.len() {
                assert_eq!(parse(&bytes[..cut]), Ok(None), "{cut} of {bytes:?}");
            }
        }
    }

    #[test]
    fn lengths_not_in_their_shortest_form_are_rejected() {
        for bytes in [
            &[0x81, 0xfe, 0, 125, 0, 0, 0, 0][..],
            &[0x81, 0xfe, 0, 0, 0, 0, 0, 0],
            &[0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0],
        ] {
            assert_eq!(parse(bytes), Err(FrameError::LengthNotMinimal), "{bytes:?}");
        }
    }

    #[test]
    fn a_length_with_the_top_bit_is_rejected() {
        let bytes = [0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(parse(&bytes), Err(FrameError::LengthOutOfRange));
    }

    #[test]
    fn errors_in_the_first_two_bytes_are_reported_at_once() {
        for (bytes, error) in [
            ([0x81, 0x05], FrameError::Unmasked),
            ([0x83, 0x80], FrameError::ReservedOpcode { opcode: 3 }),
            ([0x8b, 0x80], FrameError::ReservedOpcode { opcode: 11 }),
            ([0xc1, 0x80], FrameError::ReservedBits),
            ([0xa1, 0x80], FrameError::ReservedBits),
            ([0x91, 0x80], FrameError::ReservedBits),
            ([0x09, 0x80], FrameError::FragmentedControl),
            ([0x89, 0xfe], FrameError::ControlTooLong),
            ([0x88, 0xff], FrameError::ControlTooLong),
        ] {
            assert_eq!(parse(&bytes), Err(error), "{bytes:?}");
        }
    }

    #[test]
    fn rsv1_is_allowed_only_on_the_first_frame_of_a_message() {
        let parse = Header::parse::<true>;
        for first in [0xc1, 0x42] {
            assert!(parse(&[first, 0x80, 0, 0, 0, 0]).unwrap().unwrap().rsv1);
        }
        assert!(!parse(&[0x81, 0x80, 0, 0, 0, 0]).unwrap().unwrap().rsv1);
        for first in [0xc0, 0xc8, 0xc9, 0xd1, 0xe1, 0xf1, 0xa1, 0x91] {
            assert_eq!(parse(&[first, 0x80, 0, 0, 0, 0]), Err(FrameError::ReservedBits), "{first:x}");
        }
    }
}
