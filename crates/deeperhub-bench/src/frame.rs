//! The client's side of RFC 6455: parses headers of server frames, writes masked client frames.

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
/// Maximum payload of a frame, more than any hub sends. Limits memory use.
const MAX_FRAME_PAYLOAD_BYTES: u64 = 1 << 28;

/// The header of a server frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FrameHeader {
    /// One of the six opcodes of RFC 6455 section 5.2.
    pub(crate) opcode: u8,
    pub(crate) fin: bool,
    /// `true` if RSV1 is set: the message is compressed (RFC 7692).
    pub(crate) compressed: bool,
    /// Length of the header.
    pub(crate) len: usize,
    pub(crate) payload_len: usize,
}

impl FrameHeader {
    /// Parses a header at the start of `bytes`. Returns `None` if the header is incomplete.
    ///
    /// # Errors
    ///
    /// If the header violates RFC 6455. The error is the violation in a few words.
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

/// A generator of masking keys. The keys are predictable, which is safe because no untrusted code
/// chooses the payloads (RFC 6455 section 10.3).
#[derive(Debug)]
pub(crate) struct MaskingKeys(u64);

impl MaskingKeys {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// Returns the next key.
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

/// Appends the header of a masked frame.
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

/// Masks `part`, which starts at `offset` in its payload.
#[inline]
fn mask(part: &mut [u8], key: [u8; 4], offset: usize) {
    let key = u32::from_ne_bytes(key);
    // Byte 0 of the part is masked with byte `offset % 4` of the key.
    let rotated = if cfg!(target_endian = "little") {
        key.rotate_right(8 * (offset as u32 & 3))
    } else {
        key.rotate_left(8 * (offset as u32 & 3))
    };
    let (words, rest) = part.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ rotated).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(rotated.to_ne_bytes()) {
        *byte ^= key;
    }
}

/// A masked text frame that is encoded once and copied for each message, with a few bytes
/// overwritten.
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

    /// Appends the frame with patches. A patch is an offset in the payload and the text that
    /// overwrites the payload from there. It must lie inside the payload.
    #[inline]
    pub(crate) fn write<const N: usize>(&self, out: &mut Vec<u8>, patches: [(usize, &[u8]); N]) {
        let payload = out.len() + self.payload_at;
        out.extend_from_slice(&self.frame);
        for (at, text) in patches {
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

    /// Decodes client frames as a server does.
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
    fn a_server_decodes_frames_of_all_lengths() {
        let mut keys = MaskingKeys::new(7);
        for len in [0, 1, 2, 3, 125, 126, 127, 65_535, 65_536] {
            let text = "x".repeat(len);
            let mut out = Vec::new();
            write_frame(&mut out, TEXT, text.as_bytes(), keys.next_key());
            assert_eq!(decoded(out), [text]);
        }
    }

    #[test]
    fn templates_are_patched_at_any_offset() {
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
    fn incomplete_headers_are_not_parsed() {
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
    fn invalid_server_frames_are_errors() {
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
