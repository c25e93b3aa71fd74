//! The client's half of RFC 6455: headers of the server's frames, masked frames of our own.

pub(crate) const TEXT: u8 = 0x1;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xa;
pub(crate) const CONTINUATION: u8 = 0x0;
pub(crate) const BINARY: u8 = 0x2;

const FIN: u8 = 0x80;
const RSV1: u8 = 0x40;
const MASKED: u8 = 0x80;
const MAX_CONTROL_PAYLOAD_BYTES: usize = 125;
/// No hub sends as much in a frame: what does is not one, and is not to fill our memory.
const MAX_FRAME_PAYLOAD_BYTES: u64 = 1 << 28;

/// The header of a server's frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    /// One of the six of RFC 6455 section 5.2.
    pub(crate) opcode: u8,
    pub(crate) fin: bool,
    /// RSV1: the message is compressed (RFC 7692).
    pub(crate) compressed: bool,
    /// Length of the header itself.
    pub(crate) len: usize,
    pub(crate) payload_len: usize,
}

impl FrameHeader {
    /// Reads a header at the start of `bytes`; `None` when it is not complete.
    ///
    /// # Errors
    ///
    /// What no server may send, in a few words.
    #[inline]
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Self>, &'static str> {
        let Some(&[first, second]) = bytes.first_chunk() else { return Ok(None) };
        if second & MASKED != 0 {
            return Err("masked frame");
        }
        let (len, payload_len) = match second {
            126 => match bytes.first_chunk() {
                Some(&[_, _, a, b]) => (4, u64::from(u16::from_be_bytes([a, b]))),
                None => return Ok(None),
            },
            127 => match bytes.first_chunk() {
                Some(&[_, _, a, b, c, d, e, f, g, h]) => (10, u64::from_be_bytes([a, b, c, d, e, f, g, h])),
                None => return Ok(None),
            },
            short => (2, u64::from(short)),
        };
        let (opcode, fin) = (first & 0xf, first & FIN != 0);
        let compressed = first & RSV1 != 0;
        match opcode {
            _ if first & 0x30 != 0 => return Err("reserved bits"),
            TEXT | BINARY => {}
            CONTINUATION if !compressed => {}
            CLOSE | PING | PONG if fin && !compressed && payload_len <= MAX_CONTROL_PAYLOAD_BYTES as u64 => {}
            CONTINUATION | CLOSE | PING | PONG => return Err("frame of the wrong form"),
            _ => return Err("unknown opcode"),
        }
        if payload_len > MAX_FRAME_PAYLOAD_BYTES {
            return Err("frame of more than 256 MiB");
        }
        Ok(Some(Self { opcode, fin, compressed, len, payload_len: payload_len as usize }))
    }
}

/// Masking keys. They have to differ, for the sake of whatever is between us and the server; nobody has to be unable
/// to guess them, as no foreign code chooses what is sent (RFC 6455 section 10.3).
#[derive(Debug)]
pub(crate) struct MaskingKeys(u64);

impl MaskingKeys {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn next_key(&mut self) -> [u8; 4] {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 16) as u32).to_ne_bytes()
    }
}

/// Appends a masked frame.
pub(crate) fn write_frame(out: &mut Vec<u8>, opcode: u8, payload: &[u8], key: [u8; 4]) {
    write_header(out, opcode, payload.len(), key);
    let start = out.len();
    out.extend_from_slice(payload);
    mask(&mut out[start..], key, 0);
}

fn write_header(out: &mut Vec<u8>, opcode: u8, len: usize, key: [u8; 4]) {
    out.push(FIN | opcode);
    if len <= MAX_CONTROL_PAYLOAD_BYTES {
        out.push(MASKED | len as u8);
    } else if let Ok(len) = u16::try_from(len) {
        out.push(MASKED | 126);
        out.extend_from_slice(&len.to_be_bytes());
    } else {
        out.push(MASKED | 127);
        out.extend_from_slice(&(len as u64).to_be_bytes());
    }
    out.extend_from_slice(&key);
}

/// Applies the key to a part of a payload that begins at `offset`.
#[inline]
fn mask(part: &mut [u8], key: [u8; 4], offset: usize) {
    let key = u32::from_ne_bytes(key);
    // What byte 0 of the part meets is byte `offset % 4` of the key.
    let turned = if cfg!(target_endian = "little") {
        key.rotate_right(8 * (offset as u32 & 3))
    } else {
        key.rotate_left(8 * (offset as u32 & 3))
    };
    let (words, rest) = part.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ turned).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(turned.to_ne_bytes()) {
        *byte ^= key;
    }
}

/// A text frame that is encoded and masked once and then sent again and again with a few bytes of it written over.
#[derive(Debug)]
pub(crate) struct FrameTemplate {
    frame: Vec<u8>,
    payload_at: usize,
    key: [u8; 4],
}

impl FrameTemplate {
    pub(crate) fn new(payload: &str, key: [u8; 4]) -> Self {
        let mut frame = Vec::new();
        write_frame(&mut frame, TEXT, payload.as_bytes(), key);
        let payload_at = frame.len() - payload.len();
        Self { frame, payload_at, key }
    }

    /// Appends the frame with `text` written over its payload at `at`, for each of `places`, which lie inside it.
    #[inline]
    pub(crate) fn write<const N: usize>(&self, out: &mut Vec<u8>, places: [(usize, &[u8]); N]) {
        let payload = out.len() + self.payload_at;
        out.extend_from_slice(&self.frame);
        for (at, text) in places {
            if let Some(part) = out.get_mut(payload + at..payload + at + text.len()) {
                part.copy_from_slice(text);
                mask(part, self.key, at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use deeperhub_protocol::frame::{FrameDecoder, FrameLimits, Incoming, write_text};

    use super::*;

    /// Reads what we wrote as a server does.
    fn decoded(mut bytes: Vec<u8>) -> Vec<String> {
        let limits = FrameLimits::default();
        let (mut decoder, mut at, mut texts) = (FrameDecoder::new(), 0, Vec::new());
        while let Some(incoming) = decoder.next(&limits, &mut bytes, &mut at).unwrap() {
            match incoming {
                Incoming::Text(text) => texts.push(text.to_owned()),
                other => panic!("{other:?}"),
            }
        }
        texts
    }

    #[test]
    fn frames_of_all_lengths_are_what_a_server_reads() {
        let mut keys = MaskingKeys::new(7);
        for len in [0, 1, 2, 3, 125, 126, 127, 65_535, 65_536] {
            let text = "x".repeat(len);
            let mut out = Vec::new();
            write_frame(&mut out, TEXT, text.as_bytes(), keys.next_key());
            assert_eq!(decoded(out), [text]);
        }
    }

    #[test]
    fn a_template_is_written_over_at_any_place() {
        for at in 0..8 {
            for len in 0..9 {
                let template = FrameTemplate::new("................", [1, 2, 3, 4]);
                let mut out = Vec::new();
                let text = "abcdefghi".get(..len).unwrap();
                template.write(&mut out, [(at, text.as_bytes())]);
                template.write(&mut out, []);
                let mut expected = "................".to_owned();
                expected.replace_range(at..at + len, text);
                assert_eq!(decoded(out), [expected.as_str(), "................"]);
            }
        }
    }

    #[test]
    fn headers_are_read_when_they_are_complete() {
        for len in [0, 125, 126, 65_535, 65_536] {
            let mut frame = Vec::new();
            write_text(&mut frame, &"x".repeat(len));
            let header_len = frame.len() - len;
            for cut in 0..header_len {
                assert_eq!(FrameHeader::parse(&frame[..cut]), Ok(None));
            }
            let header =
                FrameHeader { opcode: TEXT, fin: true, compressed: false, len: header_len, payload_len: len };
            assert_eq!(FrameHeader::parse(&frame), Ok(Some(header)));
        }
    }

    #[test]
    fn what_no_server_may_send_is_an_error() {
        for bytes in [
            &[0x81, 0x80][..],
            &[0x83, 0],
            &[0xb1, 0],
            &[0x09, 0],
            &[0xc9, 0],
            &[0xc0, 0],
            &[0x88, 126, 0, 200],
            &[0x82, 127, 0, 0, 0, 1, 0, 0, 0, 0],
        ] {
            assert!(FrameHeader::parse(bytes).is_err(), "{bytes:?}");
        }
    }
}
