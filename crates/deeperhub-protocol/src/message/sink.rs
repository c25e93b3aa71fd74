//! Writing JSON, or only counting what would be written.

use crate::json::escape;

/// Where JSON goes. The same code writes a message and measures it, so that a frame's header and
/// its buffer have the right size before the first byte is copied.
pub(super) trait JsonSink: Sized {
    fn raw(&mut self, json: &str);

    /// A message's payload.
    fn payload(&mut self, json: &str) {
        self.raw(json);
    }

    /// `text` as a JSON string, with its quotes.
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

/// Counts bytes.
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

/// Leaves a payload out.
#[derive(Debug)]
pub(super) struct PayloadGap<'a> {
    pub(super) out: &'a mut Vec<u8>,
    /// Where in `out` the payload belongs.
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
