//! Encoding of server frames, which are unmasked (RFC 6455 section 5.1).

use super::header::{BINARY, CLOSE, FIN, MAX_CONTROL_PAYLOAD_BYTES, PING, PONG, TEXT};
#[cfg(feature = "deflate")]
use super::header::{LENGTH, OPCODE, RSV1};

/// Maximum length of a server frame's header: two bytes and a 64-bit length.
pub(super) const MAX_SERVER_HEADER_BYTES: usize = 10;

/// Appends an unfragmented text frame to `out`.
pub fn write_text(out: &mut Vec<u8>, payload: &str) {
    write_frame(out, TEXT, payload.as_bytes());
}

/// Appends an unfragmented binary frame to `out`.
pub fn write_binary(out: &mut Vec<u8>, payload: &[u8]) {
    write_frame(out, BINARY, payload);
}

/// Appends an unfragmented text frame. `write` appends the payload, whose length is not known
/// before.
///
/// `write` must only append to its buffer. The payload must be UTF-8; otherwise the peer closes the
/// connection with 1007. A payload of 126 to 65,535 bytes stays in place. Other payloads are moved
/// by a few bytes, because their headers are shorter or longer than the four reserved bytes.
///
/// ```
/// let mut out = Vec::new();
/// deeperhub_protocol::frame::write_text_with(&mut out, |out| out.extend_from_slice(b"hello"));
/// assert_eq!(out, b"\x81\x05hello");
/// ```
pub fn write_text_with(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    const RESERVED_HEADER_BYTES: usize = 4;
    let start = out.len();
    let payload_start = start + RESERVED_HEADER_BYTES;
    out.extend_from_slice(&[0; RESERVED_HEADER_BYTES]);
    write(out);
    if out.len() < payload_start {
        // If `write` truncated the buffer, an empty frame keeps the stream valid.
        out.resize(payload_start, 0);
    }
    let length = out.len() - payload_start;
    let (header, header_len) = header(TEXT, length);
    if header_len < RESERVED_HEADER_BYTES {
        out.copy_within(payload_start.., start + header_len);
        out.truncate(start + header_len + length);
    } else if header_len > RESERVED_HEADER_BYTES {
        out.resize(start + header_len + length, 0);
        out.copy_within(payload_start..payload_start + length, start + header_len);
    }
    out[start..start + header_len].copy_from_slice(&header[..header_len]);
}

/// Appends a ping frame. A payload over 125 bytes is truncated.
pub fn write_ping(out: &mut Vec<u8>, payload: &[u8]) {
    write_control(out, PING, payload);
}

/// Appends a pong frame. A payload over 125 bytes is truncated.
pub fn write_pong(out: &mut Vec<u8>, payload: &[u8]) {
    write_control(out, PONG, payload);
}

/// Appends a close frame.
///
/// If `code` is `None`, writes an empty close frame, which replies to an empty close frame. It then
/// ignores `reason`, because a reason requires a code. A reason over 123 bytes is truncated at a
/// character boundary.
pub fn write_close(out: &mut Vec<u8>, code: Option<u16>, reason: &str) {
    let Some(code) = code else { return write_control(out, CLOSE, &[]) };
    let reason = &reason[..reason.floor_char_boundary(MAX_CONTROL_PAYLOAD_BYTES - 2)];
    let (header, header_len) = header(CLOSE, 2 + reason.len());
    out.extend_from_slice(&header[..header_len]);
    out.extend_from_slice(&code.to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

/// Returns the header of an unfragmented text frame with a payload of `length` bytes, and the
/// header's length in the array.
pub(crate) fn text_header(length: usize) -> ([u8; MAX_SERVER_HEADER_BYTES], usize) {
    header(TEXT, length)
}

/// Returns the payload of the text frame in `bytes`. Returns `None` if `bytes` are not exactly one
/// unmasked, unfragmented text frame.
pub(crate) fn text_payload(bytes: &[u8]) -> Option<&str> {
    let header_len = match bytes.get(1)? {
        126 => 4,
        127 => MAX_SERVER_HEADER_BYTES,
        _ => 2,
    };
    let (head, payload) = bytes.split_at_checked(header_len)?;
    let (expected, expected_len) = text_header(payload.len());
    if head != expected.get(..expected_len)? {
        return None;
    }
    simdutf8::basic::from_utf8(payload).ok()
}

/// The parsed header of a server frame.
#[cfg(feature = "deflate")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ServerFrame {
    first_byte: u8,
    pub(crate) header_len: usize,
    pub(crate) payload_len: usize,
}

#[cfg(feature = "deflate")]
impl ServerFrame {
    /// Returns `true` for an unfragmented text or binary message that no extension encoded.
    pub(crate) fn is_plain_message(self) -> bool {
        self.first_byte == FIN | TEXT || self.first_byte == FIN | BINARY
    }

    pub(crate) fn opcode(self) -> u8 {
        self.first_byte & OPCODE
    }
}

/// Parses the header of the server frame at the start of `bytes`. Returns `None` if the frame is
/// incomplete or masked.
#[cfg(feature = "deflate")]
pub(crate) fn server_frame(bytes: &[u8]) -> Option<ServerFrame> {
    let (&[first, length], rest) = bytes.split_first_chunk()?;
    let (header_len, payload_len) = match length {
        126 => (4, usize::from(u16::from_be_bytes(*rest.first_chunk()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(*rest.first_chunk()?)).ok()?),
        length if length <= LENGTH => (2, usize::from(length)),
        // The mask bit is set, which is invalid in a server frame.
        _ => return None,
    };
    if payload_len > bytes.len().checked_sub(header_len)? {
        return None;
    }
    Some(ServerFrame { first_byte: first, header_len, payload_len })
}

/// Returns the header like [`header`], with RSV1 set.
#[cfg(feature = "deflate")]
pub(crate) fn rsv1_header(opcode: u8, length: usize) -> ([u8; MAX_SERVER_HEADER_BYTES], usize) {
    header(RSV1 | opcode, length)
}

/// Appends an unfragmented frame with RSV1 set. Large messages are one frame too, since Safari
/// fails on fragmented compressed messages.
#[cfg(feature = "deflate")]
pub(crate) fn write_rsv1(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    write_frame(out, RSV1 | opcode, payload);
}

/// Returns the length of the shortest header for a payload of `length` bytes.
pub(crate) fn header_len(length: usize) -> usize {
    header(TEXT, length).1
}

pub(super) fn write_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    let (header, header_len) = header(opcode, payload.len());
    out.reserve(header_len + payload.len());
    out.extend_from_slice(&header[..header_len]);
    out.extend_from_slice(payload);
}

fn write_control(out: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    write_frame(out, opcode, payload.get(..MAX_CONTROL_PAYLOAD_BYTES).unwrap_or(payload));
}

/// Returns the shortest header for a payload of `length` bytes, and its length in the array.
fn header(opcode: u8, length: usize) -> ([u8; MAX_SERVER_HEADER_BYTES], usize) {
    let mut header = [0; MAX_SERVER_HEADER_BYTES];
    header[0] = FIN | opcode;
    if length <= MAX_CONTROL_PAYLOAD_BYTES {
        header[1] = length as u8;
        (header, 2)
    } else if let Ok(length) = u16::try_from(length) {
        header[1] = 126;
        header[2..4].copy_from_slice(&length.to_be_bytes());
        (header, 4)
    } else {
        header[1] = 127;
        header[2..].copy_from_slice(&(length as u64).to_be_bytes());
        (header, MAX_SERVER_HEADER_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = b"before".to_vec();
        write(&mut out);
        assert_eq!(&out[..6], b"before", "earlier bytes of the buffer stay unchanged");
        out.split_off(6)
    }

    #[test]
    fn lengths_are_encoded_in_the_shortest_form() {
        for (length, header) in [
            (0, &[0x82, 0][..]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (65_535, &[0x82, 126, 0xff, 0xff]),
            (65_536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            let payload = vec![b'x'; length];
            let frame = written(|out| write_binary(out, &payload));
            assert_eq!(&frame[..header.len()], header);
            assert_eq!(&frame[header.len()..], payload);
        }
    }

    #[test]
    fn a_payload_written_in_place_gets_the_same_frame() {
        for length in [0, 1, 125, 126, 127, 1000, 65_535, 65_536, 70_000] {
            let text: String = ('a'..='z').cycle().take(length).collect();
            let expected = written(|out| write_text(out, &text));
            let in_place = written(|out| write_text_with(out, |out| out.extend_from_slice(text.as_bytes())));
            assert!(expected == in_place, "{length} bytes");
        }
    }

    #[test]
    fn a_payload_function_that_truncates_the_buffer_leaves_an_empty_frame() {
        let mut out = b"before".to_vec();
        write_text_with(&mut out, |out| out.truncate(2));
        assert_eq!(&out[6..], b"\x81\x00");
    }

    #[test]
    fn control_payloads_are_truncated_to_125_bytes() {
        let frame = written(|out| write_ping(out, &[7; 200]));
        assert_eq!((&frame[..2], frame.len()), (&[0x89, 125][..], 127));
        let frame = written(|out| write_pong(out, b"abc"));
        assert_eq!(frame, b"\x8a\x03abc");
    }

    #[test]
    fn close_without_code_is_empty() {
        assert_eq!(written(|out| write_close(out, None, "unsaid")), b"\x88\x00");
        assert_eq!(written(|out| write_close(out, Some(1001), "bye")), b"\x88\x05\x03\xe9bye");
    }

    #[test]
    fn close_reasons_are_truncated_between_characters() {
        let frame = written(|out| write_close(out, Some(1000), &"ä".repeat(100)));
        assert_eq!(frame[1], 124, "61 whole characters and the code");
        assert!(std::str::from_utf8(&frame[4..]).is_ok());
    }
}
