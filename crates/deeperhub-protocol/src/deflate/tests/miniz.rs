//! Tests against miniz_oxide, an implementation that shares no code with zlib's descendants.

use miniz_oxide::deflate::core::{CompressorOxide, create_comp_flags_from_zip_params};
use miniz_oxide::deflate::stream::deflate;
use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZFlush};
use proptest::prelude::*;

use super::{LIMIT, frames, params, payload};
use crate::deflate::{Config, Deflater, History, Inflater, compress_frames};
use crate::frame::{Extended, Frame, FrameDecoder, FrameLimits, Incoming};

/// Returns a client's compressor with context takeover.
fn client(level: i32) -> CompressorOxide {
    // Negative window bits select a raw stream, without zlib's header.
    CompressorOxide::new(create_comp_flags_from_zip_params(level, -15, 0))
}

fn message(client: &mut CompressorOxide, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![0; payload.len() + payload.len() / 8 + 256];
    let result = deflate(client, payload, &mut out, MZFlush::Sync);
    assert_eq!(result.bytes_consumed, payload.len());
    out.truncate(result.bytes_written);
    assert!(out.ends_with(&[0, 0, 0xff, 0xff]), "a flush is complete");
    out.truncate(out.len() - 4);
    out
}

fn decompressed(payload: &[u8], len: usize) -> Vec<u8> {
    let whole = [payload, &[0, 0, 0xff, 0xff]].concat();
    let mut out = vec![0; len + 1];
    let result = inflate(&mut InflateState::new(DataFormat::Raw), &whole, &mut out, MZFlush::Sync);
    assert_eq!(result.bytes_consumed, whole.len());
    out.truncate(result.bytes_written);
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn messages_that_miniz_compressed_are_decoded(
        messages in proptest::collection::vec(payload(LIMIT), 1..5),
        level in 0..=9i32,
        takeover: bool,
        cuts in proptest::collection::vec(0..500usize, 0..5),
        read_len in 1..5000usize,
    ) {
        let (mut compressor, mut wire) = (client(level), Vec::new());
        for payload in &messages {
            if !takeover {
                compressor = client(level);
            }
            wire.extend(frames(&message(&mut compressor, payload), &cuts));
        }
        let (mut decoder, mut inflater, mut history) = (FrameDecoder::new(), Inflater::new(), History::new());
        let (limits, mut decoded) = (FrameLimits::new(LIMIT), Vec::new());
        for read in wire.chunks(read_len) {
            let (mut input, mut pos) = (read.to_vec(), 0);
            while let Some(item) = decoder.next_extended(&limits, &mut input, &mut pos).unwrap() {
                let (kind, payload) = match item {
                    Extended::Encoded { kind, payload } => (kind, payload),
                    Extended::Plain(Incoming::Ping(_)) => continue,
                    _ => panic!("{item:?}"),
                };
                let history = takeover.then_some(&mut history);
                match inflater.decode(history, LIMIT, kind, payload).unwrap() {
                    Incoming::Binary(bytes) => decoded.push(bytes.to_vec()),
                    other => panic!("{other:?}"),
                }
            }
        }
        prop_assert!(decoded == messages);
    }

    #[test]
    fn miniz_decompresses_compressed_frames(
        payload in payload(100_000),
        level in 1..=9u8,
        bits in 9..=15u8,
    ) {
        let config = Config { threshold_bytes: 0, level, ..Config::default() };
        let mut deflater = Deflater::new(&config);
        let any = params("permessage-deflate");
        let small = params(&format!("permessage-deflate; server_max_window_bits={bits}"));
        let frame = Frame::binary(&payload);
        let shared = frame.for_receiver(&mut deflater, any).as_bytes();
        let mut reply = frame.as_bytes().to_vec();
        compress_frames(&mut deflater, small, &mut reply, 0);
        for sent in [shared, &reply] {
            let header = match sent[1] { 126 => 4, 127 => 10, _ => 2 };
            prop_assert_eq!(sent[0], 0xc2);
            prop_assert!(decompressed(&sent[header..], payload.len()) == payload);
        }
    }
}
