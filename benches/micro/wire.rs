//! Decoding and encoding of frames.

use deeperhub_protocol::frame::{self, Frame, FrameDecoder, FrameLimits, Incoming};
use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};

const SIZES: [usize; 4] = [64, 128, 4096, 16_384];
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const TEXT: u8 = 1;
const BINARY: u8 = 2;

/// Returns a masked, final client frame.
fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x80 | opcode];
    match payload.len() {
        len @ 0..126 => frame.push(0x80 | len as u8),
        len @ 126..65_536 => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Decodes all of `input`. Returns the number of payload bytes.
fn decode(decoder: &mut FrameDecoder, limits: &FrameLimits, input: &mut [u8]) -> usize {
    let (mut pos, mut bytes) = (0, 0);
    while let Ok(Some(incoming)) = decoder.next(limits, input, &mut pos) {
        bytes += match black_box(incoming) {
            Incoming::Text(text) => text.len(),
            Incoming::Binary(binary) => binary.len(),
            _ => 0,
        };
    }
    bytes
}

fn bench_decode(bencher: Bencher<'_, '_>, input: &[u8], payload: usize, messages: usize) {
    let limits = FrameLimits::default();
    let mut decoder = FrameDecoder::new();
    // Unmasking happens in place, so each run needs a copy, which is not measured.
    bencher
        .counter(BytesCount::new(payload * messages))
        .counter(ItemsCount::new(messages))
        .with_inputs(|| input.to_vec())
        .bench_local_refs(|input| {
            assert_eq!(decode(&mut decoder, &limits, input), payload * messages);
        });
}

/// Parses the header, unmasks, and validates UTF-8.
#[divan::bench(args = SIZES)]
fn decode_text(bencher: Bencher<'_, '_>, size: usize) {
    bench_decode(bencher, &client_frame(TEXT, &vec![b'x'; size]), size, 1);
}

/// Decodes text of three-byte characters.
#[divan::bench(args = SIZES)]
fn decode_text_not_ascii(bencher: Bencher<'_, '_>, size: usize) {
    let text = "語".repeat(size / 3);
    bench_decode(bencher, &client_frame(TEXT, text.as_bytes()), text.len(), 1);
}

/// Parses the header and unmasks. The difference to `decode_text` is the UTF-8 validation.
#[divan::bench(args = SIZES)]
fn decode_binary(bencher: Bencher<'_, '_>, size: usize) {
    bench_decode(bencher, &client_frame(BINARY, &vec![b'x'; size]), size, 1);
}

/// Decodes 32 messages of one read.
#[divan::bench]
fn decode_32_pipelined(bencher: Bencher<'_, '_>) {
    bench_decode(bencher, &client_frame(TEXT, &[b'x'; 128]).repeat(32), 128, 32);
}

/// Decodes a frame that arrives in two reads and is reassembled in the connection's memory.
#[divan::bench(args = SIZES)]
fn decode_in_two_reads(bencher: Bencher<'_, '_>, size: usize) {
    let frame = client_frame(TEXT, &vec![b'x'; size]);
    let limits = FrameLimits::default();
    let mut decoder = FrameDecoder::new();
    bencher.counter(BytesCount::new(size)).with_inputs(|| frame.clone()).bench_local_refs(|input| {
        let (first, second) = input.split_at_mut(size / 2);
        assert_eq!(decode(&mut decoder, &limits, first), 0);
        assert_eq!(decode(&mut decoder, &limits, second), size);
    });
}

/// Validates UTF-8 alone, for comparison.
#[divan::bench(args = SIZES)]
fn utf8_check(bencher: Bencher<'_, '_>, size: usize) {
    let text = vec![b'x'; size];
    bencher
        .counter(BytesCount::new(size))
        .bench_local(|| simdutf8::basic::from_utf8(black_box(&text)).is_ok());
}

/// Writes a reply to a buffer, like the worker's arena.
#[divan::bench(args = SIZES)]
fn write_text(bencher: Bencher<'_, '_>, size: usize) {
    let text = "x".repeat(size);
    let mut out = Vec::with_capacity(size + 16);
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        out.clear();
        frame::write_text(&mut out, black_box(&text));
        black_box(out.len())
    });
}

/// Creates a shared frame, as each publish does.
#[divan::bench(args = SIZES)]
fn shared_frame(bencher: Bencher<'_, '_>, size: usize) {
    let text = "x".repeat(size);
    bencher.counter(BytesCount::new(size)).bench_local(|| Frame::text(black_box(&text)));
}

/// Clones a shared frame, as each delivery does.
#[divan::bench]
fn clone_a_frame(bencher: Bencher<'_, '_>) {
    let frame = Frame::text("x");
    bencher.bench_local(|| black_box(&frame).clone());
}
