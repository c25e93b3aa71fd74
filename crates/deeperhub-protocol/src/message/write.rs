//! Writing JSON, or only counting what would be written.

use crate::json::escape;

/// Where JSON goes. The same code writes a message and measures it, so that a frame's header and
/// its buffer have the right size before the first byte is copied.
pub(super) trait Sink: Sized {
    fn raw(&mut self, json: &str);

    /// `text` as a JSON string, with its quotes.
    fn string(&mut self, text: &str);

    fn number(&mut self, number: u64) {
        self.raw(itoa::Buffer::new().format(number));
    }
}

impl Sink for Vec<u8> {
    fn raw(&mut self, json: &str) {
        self.extend_from_slice(json.as_bytes());
    }

    fn string(&mut self, text: &str) {
        escape(text, |piece| self.extend_from_slice(piece));
    }
}

/// Counts bytes.
#[derive(Debug, Default)]
pub(super) struct Length(pub(super) usize);

impl Sink for Length {
    fn raw(&mut self, json: &str) {
        self.0 += json.len();
    }

    fn string(&mut self, text: &str) {
        escape(text, |piece| self.0 += piece.len());
    }
}

/// Header of an unfragmented, unmasked text frame (RFC 6455 section 5.2), and how much of the
/// array it is.
pub(super) fn frame_header(length: usize) -> ([u8; 10], usize) {
    const TEXT: u8 = 0x81;
    let [.., high, low] = length.to_be_bytes();
    match length {
        0..=125 => ([TEXT, low, 0, 0, 0, 0, 0, 0, 0, 0], 2),
        126..=0xffff => ([TEXT, 126, high, low, 0, 0, 0, 0, 0, 0], 4),
        _ => {
            let [a, b, c, d, e, f, g, h] = (length as u64).to_be_bytes();
            ([TEXT, 127, a, b, c, d, e, f, g, h], 10)
        }
    }
}
