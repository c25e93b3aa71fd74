//! Messages there and back, against flate2's own streams, and what must not get through.

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use proptest::prelude::*;

use super::*;
use crate::frame::{
    Extended, Frame, FrameDecoder, FrameError, FrameLimits, Incoming, MessageKind, write_binary, write_ping,
    write_text,
};

const LIMIT: usize = 65_536;

fn params(offer: &str) -> Params {
    negotiate(&Config::default(), [offer.as_bytes()]).unwrap().expect("an acceptable offer")
}

/// A client's compressor: flate2's stream driven by hand, with a window of its own.
struct Client {
    stream: Compress,
}

impl Client {
    fn new(level: u32, window_bits: u8) -> Self {
        Self { stream: Compress::new_with_window_bits(Compression::new(level), false, window_bits) }
    }

    fn compress(&mut self, parts: &[&[u8]], flush: FlushCompress) -> Vec<u8> {
        let mut out = Vec::with_capacity(parts.iter().map(|part| part.len() + part.len() / 8 + 64).sum());
        for part in parts {
            let before = self.stream.total_in();
            self.stream.compress_vec(part, &mut out, flush).unwrap();
            assert_eq!(self.stream.total_in() - before, part.len() as u64);
        }
        out
    }

    /// The payload of a message, with the tail taken off.
    fn message(&mut self, payload: &[u8]) -> Vec<u8> {
        let mut out = self.compress(&[payload], FlushCompress::Sync);
        if payload.is_empty() {
            // A stream that has just been flushed makes nothing of nothing (RFC 7692 section 7.2.3.6).
            return vec![0];
        }
        assert!(out.ends_with(&[0, 0, 0xff, 0xff]));
        out.truncate(out.len() - 4);
        out
    }
}

/// A client's decompressor, which knows no more than RFC 7692 section 7.2.2.
fn inflated(payload: &[u8], window_bits: u8) -> Vec<u8> {
    let mut stream = Decompress::new_with_window_bits(false, window_bits);
    let mut out = Vec::with_capacity(1 << 20);
    let all = [payload, &[0, 0, 0xff, 0xff]].concat();
    stream.decompress_vec(&all, &mut out, FlushDecompress::Sync).unwrap();
    assert_eq!(stream.total_in(), all.len() as u64);
    out
}

fn decode(payload: &[u8]) -> Result<Vec<u8>, FrameError> {
    decode_with(&mut Inflater::new(), None, payload)
}

fn decode_with(
    inflater: &mut Inflater,
    history: Option<&mut History>,
    payload: &[u8],
) -> Result<Vec<u8>, FrameError> {
    match inflater.decode(history, LIMIT, MessageKind::Binary, payload)? {
        Incoming::Binary(bytes) => Ok(bytes.to_vec()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_examples_of_the_rfc_are_decoded() {
    for payload in [
        // One compressed block; one block without compression; a final block; two blocks (section 7.2.3).
        &b"\xf2\x48\xcd\xc9\xc9\x07\x00"[..],
        b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00",
        b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00",
        b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00",
    ] {
        assert_eq!(decode(payload), Ok(b"Hello".to_vec()), "{payload:x?}");
    }
    // With context takeover, the second message refers to the first.
    let (mut inflater, mut history) = (Inflater::new(), History::new());
    for payload in [&b"\xf2\x48\xcd\xc9\xc9\x07\x00"[..], b"\xf2\x00\x11\x00\x00"] {
        assert_eq!(decode_with(&mut inflater, Some(&mut history), payload), Ok(b"Hello".to_vec()));
    }
    assert_eq!(decode(b"\xf2\x00\x11\x00\x00"), Err(FrameError::MalformedDeflate), "there is no first");
}

#[test]
fn empty_messages_are_decoded() {
    assert_eq!(decode(b"\0"), Ok(vec![]));
    assert_eq!(decode(b""), Ok(vec![]), "with the last byte left out");
    assert_eq!(decode(b"\x02\0"), Ok(vec![]), "an empty block with fixed codes");
    assert_eq!(decode(b"\x03\0\0"), Ok(vec![]), "a final one");
}
