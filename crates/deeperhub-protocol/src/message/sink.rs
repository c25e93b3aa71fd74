//! Output sinks for JSON: write it, measure it, or omit a payload.

use crate::json::escape;

/// A destination for JSON. The same code writes and measures a message, so that the frame header
/// and the buffer size are known before the first byte is copied.
pub(super) trait JsonSink: Sized {
    fn raw(&mut self, json: &str);

    /// Writes a message's payload.
    fn payload(&mut self, json: &str) {
        self.raw(json);
    }

    /// Writes `text` as a JSON string with quotes.
    fn string(&mut self, text: &str);

    fn number(&mut self, number: u64) {
        self.raw(itoa::Buffer::new().format(number));
    }
}

impl JsonSink for Vec<u8> {
    fn raw(&mut self, json: &str) {
        self.extend_from_slice(json.as_bytes());
    }

    fn string(&mut self, text: &str) {
        escape(text, |piece| self.extend_from_slice(piece));
    }
}

/// A sink that counts bytes.
#[derive(Debug, Default)]
pub(super) struct LengthCounter(pub(super) usize);

impl JsonSink for LengthCounter {
    fn raw(&mut self, json: &str) {
        self.0 += json.len();
    }

    fn string(&mut self, text: &str) {
        escape(text, |piece| self.0 += piece.len());
    }
}

/// A sink that omits the payload and records its offset.
#[derive(Debug)]
pub(super) struct PayloadGap<'a> {
    pub(super) out: &'a mut Vec<u8>,
    /// The offset of the payload in `out`.
    pub(super) at: Option<usize>,
}

impl JsonSink for PayloadGap<'_> {
    fn raw(&mut self, json: &str) {
        self.out.raw(json);
    }

    fn payload(&mut self, _: &str) {
        self.at = Some(self.out.len());
    }

    fn string(&mut self, text: &str) {
        self.out.string(text);
    }
}
