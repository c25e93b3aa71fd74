//! Output sinks for JSON: one writes it, one measures it, and one omits a payload.

use crate::json::escape;

/// A destination for JSON. The same code writes and measures a message. Measuring first gives the
/// length for the frame header and the buffer before the first byte is copied.
pub(super) trait JsonSink: Sized {
    /// Writes JSON text unchanged.
    fn raw(&mut self, json: &str);

    /// Writes a message's payload, which is JSON text. [`PayloadGap`] omits it.
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
    /// The offset in `out` at which the payload belongs; `None` if no payload was written.
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
