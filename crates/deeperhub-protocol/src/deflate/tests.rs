//! Tests of compression and decompression, with flate2's streams as the client.

mod miniz;

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

/// A client's compressor: a flate2 stream with any window, used without the code under test.
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
            let total_in = self.stream.total_in();
            self.stream.compress_vec(part, &mut out, flush).unwrap();
            assert_eq!(self.stream.total_in() - total_in, part.len() as u64);
        }
        out
    }

    /// Returns the compressed payload of a message, without the tail.
    fn message(&mut self, payload: &[u8]) -> Vec<u8> {
        let mut out = self.compress(&[payload], FlushCompress::Sync);
        if out.is_empty() {
            // A flushed stream produces no output for an empty message, which is then sent as one
            // zero byte (RFC 7692 section 7.2.3.6).
            return vec![0];
        }
        assert!(out.ends_with(&[0, 0, 0xff, 0xff]));
        out.truncate(out.len() - 4);
        out
    }
}

/// Decompresses a payload as a client does (RFC 7692 section 7.2.2), without the code under test.
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
        // One compressed block; one block without compression; a final block; two blocks (section
        // 7.2.3).
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
    assert_eq!(
        decode(b"\xf2\x00\x11\x00\x00"),
        Err(FrameError::MalformedDeflate),
        "without a history there is no first message"
    );
}

#[test]
fn empty_messages_are_decoded() {
    assert_eq!(decode(b"\0"), Ok(vec![]));
    assert_eq!(decode(b""), Ok(vec![]), "without its only byte");
    assert_eq!(decode(b"\x02\0"), Ok(vec![]), "an empty block with fixed codes");
    assert_eq!(decode(b"\x03\0\0"), Ok(vec![]), "a final block with fixed codes");
}

#[test]
fn final_blocks_are_accepted_at_the_end_and_inside_a_message() {
    let text = b"one two three one two three";
    let finished = Client::new(6, 15).compress(&[text], FlushCompress::Finish);
    assert_eq!(decode(&[&finished[..], &[0]].concat()), Ok(text.to_vec()));
    assert_eq!(decode(&finished), Ok(text.to_vec()), "without the zero byte after the final block");
    let twice = [&finished[..], &finished, &[0]].concat();
    assert_eq!(decode(&twice), Ok([text, &text[..]].concat()));
    let then_not_final = [&finished[..], &Client::new(6, 15).message(b"!")].concat();
    assert_eq!(decode(&then_not_final), Ok([&text[..], b"!"].concat()));
}

#[test]
fn references_reach_back_across_a_final_block() {
    let words = "the same words again and again".as_bytes();
    let finished = Client::new(6, 15).compress(&[words], FlushCompress::Finish);
    let mut client = Client::new(6, 15);
    client.stream.set_dictionary(words).unwrap();
    let second = client.message(words);
    assert!(second.len() < 8, "it is a reference: {second:x?}");
    assert_eq!(decode(&[&finished[..], &second].concat()), Ok([words, words].concat()));
    // With context takeover, references also reach back across the end of a message.
    let (mut inflater, mut history) = (Inflater::new(), History::new());
    let first = [&finished[..], &[0]].concat();
    for payload in [&first, &second] {
        assert_eq!(decode_with(&mut inflater, Some(&mut history), payload), Ok(words.to_vec()));
    }
}

#[test]
fn a_message_has_at_most_256_final_blocks() {
    for final_byte in [&b"\0"[..], b""] {
        let message = |blocks: usize| [&b"\x03\0".repeat(blocks)[..], final_byte].concat();
        assert_eq!(decode(&message(256)), Ok(vec![]), "{final_byte:?}");
        assert_eq!(decode(&message(257)), Err(FrameError::MalformedDeflate), "{final_byte:?}");
    }
}

#[test]
fn a_large_output_buffer_shrinks_when_the_next_message_starts() {
    let large = Client::new(6, 15).message(&vec![b'x'; 1 << 20]);
    let mut inflater = Inflater::new();
    inflater.decode(None, 1 << 20, MessageKind::Binary, &large).unwrap();
    assert!(inflater.output_capacity() >= 1 << 20);
    assert_eq!(decode_with(&mut inflater, None, b"\0"), Ok(vec![]));
    assert_eq!(inflater.output_capacity(), 64 * 1024);
}

#[test]
fn copied_window_bytes_counts_histories_and_restarts() {
    let (mut inflater, mut history) = (Inflater::new(), History::new());
    let message = Client::new(6, 15).message(b"Hello");
    decode_with(&mut inflater, Some(&mut history), &message).unwrap();
    assert_eq!(inflater.copied_window_bytes(), 0, "the history was empty");
    decode_with(&mut inflater, Some(&mut history), &message).unwrap();
    assert_eq!(inflater.copied_window_bytes(), 5, "the history had five bytes");
    let finished = Client::new(6, 15).compress(&[b"abc"], FlushCompress::Finish);
    decode_with(&mut inflater, None, &[&finished[..], &[0]].concat()).unwrap();
    assert_eq!(inflater.copied_window_bytes(), 8, "the stream restarted after three bytes");
}

#[test]
fn malformed_streams_are_rejected() {
    for payload in [
        &b"\xff"[..],
        b"\x06",
        b"\x00\x05\x00\xfa\xfe\x48\x65\x6c\x6c\x6f\x00",
        b"\xf2\x48\xcd\xc9",
        b"\xf3\x48\xcd\xc9\xc9\x07\x00\x06",
        b"plain text that was marked as compressed",
        b"\x01\x05\x00\xfa\xffHel",
    ] {
        assert_eq!(decode(payload), Err(FrameError::MalformedDeflate), "{payload:x?}");
    }
}

#[test]
fn a_truncated_message_is_rejected() {
    let text = "It was truncated by a peer that does not flush. ".repeat(20);
    for level in [0, 1, 6] {
        let whole = Client::new(level, 15).message(text.as_bytes());
        // A first byte alone can be a valid empty message.
        for cut in 2..whole.len() {
            let result = decode(&whole[..cut]);
            assert_eq!(result, Err(FrameError::MalformedDeflate), "{cut} of {whole:x?}");
        }
    }
}

#[test]
fn text_is_checked_when_it_is_decompressed() {
    let mut inflater = Inflater::new();
    let good = Client::new(6, 15).message("grüße 🦀".as_bytes());
    assert_eq!(inflater.decode(None, LIMIT, MessageKind::Text, &good), Ok(Incoming::Text("grüße 🦀")));
    let bad = Client::new(6, 15).message(b"abc\xff");
    assert_eq!(inflater.decode(None, LIMIT, MessageKind::Text, &bad), Err(FrameError::InvalidUtf8));
    assert_eq!(inflater.decode(None, LIMIT, MessageKind::Binary, &bad), Ok(Incoming::Binary(b"abc\xff")));
}

#[test]
fn the_limit_applies_to_decompressed_bytes() {
    let mut inflater = Inflater::new();
    for limit in [0, 1, 1000, 4095, 4096, 4097, 65_536, 100_000] {
        for (len, fits) in [(limit, true), (limit + 1, false), (10 * limit + 2, false)] {
            let payload = Client::new(6, 15).message(&vec![b'x'; len]);
            let result = inflater.decode(None, limit, MessageKind::Binary, &payload);
            let expected = if fits { Ok(len) } else { Err(FrameError::MessageTooBig { limit }) };
            let decoded_len = result.map(|incoming| match incoming {
                Incoming::Binary(bytes) => bytes.len(),
                other => panic!("{other:?}"),
            });
            assert_eq!(decoded_len, expected, "{len} bytes, {limit} allowed");
        }
    }
}

#[test]
fn a_decompression_bomb_is_bounded_by_the_message_limit() {
    let bomb = Client::new(9, 15).message(&vec![0; 64 << 20]);
    assert!(bomb.len() < 70_000);
    for limit in [1000, LIMIT, 1 << 20] {
        let mut inflater = Inflater::new();
        let result = inflater.decode(None, limit, MessageKind::Binary, &bomb);
        assert_eq!(result, Err(FrameError::MessageTooBig { limit }));
        assert!(inflater.output_capacity() <= limit + 1, "{}", inflater.output_capacity());
        assert_eq!(decode_with(&mut inflater, None, b"\0"), Ok(vec![]), "the inflater stays usable");
        assert!(inflater.output_capacity() <= LIMIT + 1);
    }
}

#[test]
fn a_history_holds_at_most_one_window() {
    let (mut inflater, mut history, mut client) = (Inflater::new(), History::new(), Client::new(1, 15));
    assert_eq!(history.heap_bytes(), 0);
    for i in 0..200u32 {
        let payload: Vec<u8> = (0..i * 10).map(|n| (n.wrapping_mul(n ^ i) >> 3) as u8).collect();
        let message = client.message(&payload);
        assert_eq!(decode_with(&mut inflater, Some(&mut history), &message), Ok(payload));
        assert!(history.heap_bytes() <= 32 * 1024);
    }
    assert_eq!(history.heap_bytes(), 32 * 1024);
}

#[test]
fn frames_are_compressed_once_and_for_all_forks() {
    let (mut deflater, any) = (Deflater::new(&Config::default()), params("permessage-deflate"));
    let text = "a payload that says the same again and again; ".repeat(20);
    let frame = Frame::text(&text);
    let (fork, clone) = (frame.fork(), frame.clone());
    let compressed = frame.for_receiver(&mut deflater, any);
    assert_eq!(compressed.as_bytes()[0], 0xc1);
    assert_eq!(inflated(&compressed.as_bytes()[2..], 15), text.as_bytes());
    // All forks return the same memory, even with a deflater that declines every payload.
    let config = Config { threshold_bytes: usize::MAX, ..Config::default() };
    let mut other = Deflater::new(&config);
    for again in [&fork, &clone, &frame] {
        assert_eq!(again.for_receiver(&mut other, any).as_bytes().as_ptr(), compressed.as_bytes().as_ptr());
    }
    assert_eq!(frame.as_bytes(), Frame::text(&text).as_bytes(), "the plain form is unchanged");
    // A compressed form is not compressed again.
    assert_eq!(compressed.for_receiver(&mut deflater, any).as_bytes(), compressed.as_bytes());
}

#[test]
fn concurrent_workers_get_the_same_bytes() {
    let any = params("permessage-deflate");
    for _ in 0..20 {
        let frame = Frame::text(&"what many workers send; ".repeat(200));
        let forks: Vec<_> = (0..4).map(|_| frame.fork()).collect();
        let addresses = std::thread::scope(|scope| {
            let compress = |fork: &Frame| {
                let mut deflater = Deflater::new(&Config::default());
                fork.for_receiver(&mut deflater, any).as_bytes().as_ptr().addr()
            };
            let threads: Vec<_> = forks.iter().map(|fork| scope.spawn(move || compress(fork))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(addresses.iter().all(|&address| address == addresses[0]));
        assert_ne!(addresses[0], frame.as_bytes().as_ptr().addr());
    }
}

#[test]
fn frames_that_do_not_shrink_stay_uncompressed() {
    let (mut deflater, any) = (Deflater::new(&Config::default()), params("permessage-deflate"));
    let noise: Vec<u8> = std::iter::successors(Some(88_172_645_463_325_252_u64), |&n| {
        let n = n ^ (n << 13);
        let n = n ^ (n >> 7);
        Some(n ^ (n << 17))
    })
    .map(|n| (n >> 32) as u8)
    .take(1000)
    .collect();
    let (text, mut ping) = ("x".repeat(500), Vec::new());
    write_ping(&mut ping, &[b'x'; 125]);
    let two = [Frame::text(&text).as_bytes(), Frame::text(&text).as_bytes()].concat();
    for frame in [
        Frame::text(&text[..255]),
        Frame::text(""),
        Frame::binary(&noise),
        Frame::from_encoded(&ping),
        Frame::from_encoded(&two),
        Frame::from_encoded(&two[..300]),
        Frame::from_encoded(b""),
    ] {
        let sent = frame.for_receiver(&mut deflater, any);
        assert_eq!(sent.as_bytes().as_ptr(), frame.as_bytes().as_ptr());
        let eager = Config { threshold_bytes: 0, ..Config::default() };
        let again = frame.for_receiver(&mut Deflater::new(&eager), any);
        assert_eq!(again.as_bytes().as_ptr(), frame.as_bytes().as_ptr(), "the decision is remembered");
    }
    assert_eq!(Frame::text(&text[..256]).for_receiver(&mut deflater, any).as_bytes()[0], 0xc1);
}

#[test]
fn compressed_messages_fit_a_small_window() {
    let mut deflater = Deflater::new(&Config::default());
    for bits in 8..=15 {
        let small = params(&format!("permessage-deflate; server_max_window_bits={bits}"));
        for len in [(1usize << bits) - 20, 1 << bits, (1 << bits) + 1, 3 << bits] {
            // The text repeats itself after slightly more than one window.
            let noise = std::iter::successors(Some(1_u32), |n| {
                Some(n.wrapping_mul(1_664_525).wrapping_add(1_013_904_223))
            });
            let digits = noise.filter_map(|n| char::from_digit(n >> 28, 16));
            let text: String =
                digits.take((1 << bits) + 50).collect::<Vec<_>>().iter().cycle().take(len).collect();
            let frame = Frame::text(&text);
            let sent = frame.for_receiver(&mut deflater, small);
            let mut reply = Vec::new();
            let saved = write_text_compressed(&mut deflater, small, &text, &mut reply);
            let fits = bits == 15 || len <= 1 << bits;
            let is_long = len >= 256;
            // A message for one client is compressed with the client's window unless it has 8 bits.
            assert_eq!(saved > 0, is_long && (fits || bits > 8), "{len} bytes, {bits} bits");
            if saved > 0 {
                let header = if reply.len() < 128 { 2 } else { 4 };
                assert_eq!(inflated(&reply[header..], bits.max(9)), text.as_bytes());
                // zlib-rs also decompresses references beyond the window, so check the length. With
                // such references, only the first copy of the digits (four bits each) would count.
                assert!(reply.len() > len * 9 / 20, "{len} bytes, {bits} bits: {}", reply.len());
            }
            if sent.len() < frame.len() {
                let header = if sent.len() < 128 { 2 } else { 4 };
                assert_eq!(inflated(&sent.as_bytes()[header..], bits.max(9)), text.as_bytes());
            } else {
                assert!(!fits || !is_long || len + 10 > 1 << bits, "{len} bytes, {bits} bits");
            }
        }
    }
}

#[test]
fn replies_are_compressed_in_place() {
    let (mut deflater, any) = (Deflater::new(&Config::default()), params("permessage-deflate"));
    let (long, short) = ("a long reply; ".repeat(100), "short");
    let mut out = b"before".to_vec();
    write_text(&mut out, short);
    assert_eq!(compress_frames(&mut deflater, any, &mut out, 6), 0);
    write_text(&mut out, &long);
    write_ping(&mut out, b"ping");
    write_binary(&mut out, long.as_bytes());
    write_text(&mut out, short);
    let plain = out.len();
    let saved = compress_frames(&mut deflater, any, &mut out, 6);
    assert_eq!((out.len() + saved, &out[..6]), (plain, &b"before"[..]));
    let mut expected = b"before".to_vec();
    write_text(&mut expected, short);
    assert!(write_text_compressed(&mut deflater, any, &long, &mut expected) > 1000);
    write_ping(&mut expected, b"ping");
    let binary = Frame::binary(long.as_bytes());
    expected.extend_from_slice(binary.for_receiver(&mut deflater, any).as_bytes());
    write_text(&mut expected, short);
    assert_eq!(out, expected);
    assert_eq!(compress_frames(&mut deflater, any, &mut out, 6), 0, "nothing is left to compress");
    assert_eq!(out, expected);
    assert_eq!(compress_frames(&mut deflater, any, &mut out, usize::MAX), 0);
}

#[test]
fn bytes_that_are_not_a_frame_are_unchanged() {
    let (mut deflater, any) = (Deflater::new(&Config::default()), params("permessage-deflate"));
    for junk in [
        vec![0x81; 400],
        vec![0xff; 400],
        vec![0x81, 127, 255, 255],
        [vec![0x81, 126, 1, 0], vec![0; 255]].concat(),
    ] {
        let mut out = junk.clone();
        assert_eq!(compress_frames(&mut deflater, any, &mut out, 0), 0);
        assert_eq!(out, junk);
    }
}

#[test]
fn levels_out_of_range_are_clamped() {
    for level in [0, 10, 255] {
        let config = Config { level, ..Config::default() };
        let mut out = Vec::new();
        let text = "x".repeat(1000);
        assert!(
            write_text_compressed(&mut Deflater::new(&config), params("permessage-deflate"), &text, &mut out)
                > 900
        );
    }
}

#[test]
fn memory_is_allocated_on_first_use() {
    assert!(size_of::<Params>() <= 4 && size_of::<Option<Params>>() <= 4);
    assert_eq!(History::new().heap_bytes(), 0);
    assert_eq!(Inflater::new().output_capacity(), 0);
}

/// Returns a strategy for payloads, some of which compress well.
fn payload(max: usize) -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        3 => "[a-z{}\":, ]{0,40}".prop_map(String::into_bytes),
        1 => proptest::collection::vec(any::<u8>(), 0..200),
        2 => (any::<u8>(), 0..3000usize).prop_map(|(byte, len)| vec![byte; len]),
    ];
    let pieces = (proptest::collection::vec(piece, 0..6), 1..20usize);
    pieces.prop_map(move |(pieces, times)| {
        let mut bytes = pieces.concat().repeat(times);
        bytes.truncate(max);
        bytes
    })
}

/// Returns a client's frames for one compressed message: fragments of the lengths in `cuts`,
/// masked, with a ping before every third fragment.
fn frames(payload: &[u8], cuts: &[usize]) -> Vec<u8> {
    fragments(0x42, payload, cuts)
}

/// Returns frames like [`frames`], with `start` as the first byte of the first frame, without FIN.
fn fragments(start: u8, payload: &[u8], cuts: &[usize]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = payload;
    for i in 0..=cuts.len() {
        let len = cuts.get(i).map_or(rest.len(), |&cut| cut.min(rest.len()));
        let (part, tail) = rest.split_at(len);
        rest = tail;
        if i % 3 == 1 {
            out.extend_from_slice(&[0x89, 0x82, 0, 0, 0, 0, b'h', b'i']);
        }
        let first = if i == 0 { start } else { 0 } | if i == cuts.len() { 0x80 } else { 0 };
        out.push(first);
        match part.len() {
            len @ 0..126 => out.push(0x80 | len as u8),
            len @ 126..65_536 => {
                out.push(0xfe);
                out.extend_from_slice(&(len as u16).to_be_bytes());
            }
            len => {
                out.push(0xff);
                out.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        let mask = [7, 77, 177, i as u8];
        out.extend_from_slice(&mask);
        out.extend(part.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn compressed_messages_are_decoded_for_any_fragments_and_reads(
        messages in proptest::collection::vec((payload(LIMIT), prop::bool::weighted(0.8)), 1..5),
        level in 0..=9u32,
        window_bits in 9..=15u8,
        takeover: bool,
        flushes in proptest::collection::vec(0..2000usize, 0..4),
        cuts in proptest::collection::vec(0..500usize, 0..5),
        read_len in 1..5000usize,
    ) {
        let (mut client, mut wire) = (Client::new(level, window_bits), Vec::new());
        for (message, compressed) in &messages {
            if !compressed {
                wire.extend(fragments(0x02, message, &cuts));
                continue;
            }
            if !takeover {
                client = Client::new(level, window_bits);
            }
            let mut payload = Vec::new();
            let mut rest = &message[..];
            for flush in &flushes {
                let (part, tail) = rest.split_at((*flush).min(rest.len()));
                rest = tail;
                // Each flush ends a block; a block before a partial flush can end inside a byte.
                let kind = if flush % 2 == 0 { FlushCompress::Sync } else { FlushCompress::Partial };
                payload.extend(client.compress(&[part], kind));
            }
            payload.extend(client.message(rest));
            wire.extend(frames(&payload, &cuts));
        }
        let (mut decoder, mut inflater, mut history) = (FrameDecoder::new(), Inflater::new(), History::new());
        let (limits, mut decoded) = (FrameLimits::new(LIMIT), Vec::new());
        for read in wire.chunks(read_len) {
            let (mut input, mut pos) = (read.to_vec(), 0);
            while let Some(item) = decoder.next_extended(&limits, &mut input, &mut pos).unwrap() {
                match item {
                    Extended::Plain(Incoming::Ping(payload)) => assert_eq!(payload, b"hi"),
                    Extended::Plain(Incoming::Binary(bytes)) => decoded.push((bytes.to_vec(), false)),
                    Extended::Encoded { kind: MessageKind::Binary, payload } => {
                        let history = takeover.then_some(&mut history);
                        decoded.push((decode_with(&mut inflater, history, payload).unwrap(), true));
                    }
                    _ => panic!("{item:?}"),
                }
            }
        }
        prop_assert!(decoded == messages);
    }

    #[test]
    fn clients_decompress_compressed_frames(
        text in payload(100_000),
        level in 1..=9u8,
        threshold_bytes in 1..600usize,
        bits in 9..=15u8,
    ) {
        let config = Config { threshold_bytes, level, ..Config::default() };
        let mut deflater = Deflater::new(&config);
        let params = params(&format!("permessage-deflate; server_max_window_bits={bits}"));
        let frame = Frame::binary(&text);
        let sent = frame.for_receiver(&mut deflater, params);
        prop_assert!(sent.len() <= frame.len());
        let (mut bytes, mut out) = (frame.as_bytes().to_vec(), Vec::new());
        let saved = compress_frames(&mut deflater, params, &mut bytes, 0);
        prop_assert_eq!(bytes.len() + saved, frame.len());
        for bytes in [sent.as_bytes(), &bytes] {
            let (header, first) = match bytes[1] { 126 => (4, bytes[0]), 127 => (10, bytes[0]), _ => (2, bytes[0]) };
            match first {
                0x82 => prop_assert_eq!(bytes, frame.as_bytes()),
                0xc2 => {
                    prop_assert!(text.len() >= threshold_bytes);
                    prop_assert!(inflated(&bytes[header..], bits) == text);
                    out.extend_from_slice(&bytes[header..]);
                }
                other => panic!("{other:x}"),
            }
        }
    }

    #[test]
    fn with_threshold_0_all_messages_and_no_other_frames_are_compressed(
        messages in proptest::collection::vec((payload(3000), any::<bool>()), 0..6),
        before in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let config = Config { threshold_bytes: 0, ..Config::default() };
        let (mut deflater, any) = (Deflater::new(&config), params("permessage-deflate"));
        let mut out = before.clone();
        for (payload, ping) in &messages {
            write_binary(&mut out, payload);
            if *ping {
                write_ping(&mut out, b"between");
            }
        }
        let plain = out.len();
        let saved = compress_frames(&mut deflater, any, &mut out, before.len());
        prop_assert_eq!(saved, plain.saturating_sub(out.len()));
        prop_assert!(out.starts_with(&before));
        let mut rest = &out[before.len()..];
        for (payload, ping) in &messages {
            let shared = Frame::binary(payload);
            let shared = shared.for_receiver(&mut deflater, any).as_bytes();
            prop_assert_eq!(&rest[..shared.len()], shared);
            let header = match shared[1] { 126 => 4, 127 => 10, _ => 2 };
            prop_assert_eq!(shared[0], 0xc2);
            prop_assert!(&inflated(&shared[header..], 15) == payload);
            rest = &rest[shared.len()..];
            if *ping {
                prop_assert!(rest.starts_with(b"\x89\x07between"));
                rest = &rest[9..];
            }
        }
        prop_assert_eq!(rest, b"");
    }

    #[test]
    fn rsv1_is_accepted_only_on_the_first_frame_of_a_message(
        frames in proptest::collection::vec((any::<bool>(), any::<bool>(), 0..5usize), 1..8),
    ) {
        let (mut wire, mut decoder, limits) = (Vec::new(), FrameDecoder::new(), FrameLimits::default());
        let (mut is_mid_message, mut is_valid) = (false, true);
        for (rsv1, fin, kind) in frames {
            let opcode = [0x0, 0x1, 0x2, 0x9, 0xa][kind];
            let fin = fin || opcode > 0x2;
            wire.extend([opcode | if rsv1 { 0x40 } else { 0 } | if fin { 0x80 } else { 0 }, 0x80, 0, 0, 0, 0]);
            is_valid &= match opcode {
                0x0 => is_mid_message && !rsv1,
                0x1 | 0x2 => !is_mid_message,
                _ => !rsv1,
            };
            if opcode <= 0x2 {
                is_mid_message = !fin;
            }
            if !is_valid {
                break;
            }
        }
        let mut pos = 0;
        let result = loop {
            match decoder.next_extended(&limits, &mut wire, &mut pos) {
                Ok(Some(_)) => {}
                Ok(None) => break Ok(()),
                Err(error) => break Err(error.close_reason().code().as_u16()),
            }
        };
        prop_assert_eq!(result, if is_valid { Ok(()) } else { Err(1002) });
    }

    #[test]
    fn any_payload_is_decoded_or_rejected(
        payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 1..6),
        limit in 0..2000usize,
    ) {
        let (mut inflater, mut history) = (Inflater::new(), History::new());
        for payload in &payloads {
            match inflater.decode(Some(&mut history), limit, MessageKind::Binary, payload) {
                Ok(Incoming::Binary(bytes)) => prop_assert!(bytes.len() <= limit),
                Ok(other) => panic!("{other:?}"),
                Err(error) => prop_assert!(
                    matches!(error, FrameError::MalformedDeflate | FrameError::MessageTooBig { .. }), "{error}"
                ),
            }
            prop_assert!(inflater.output_capacity() <= limit.max(1) + 1);
        }
    }

    #[test]
    fn a_corrupted_message_decodes_as_with_flate2(
        text in payload(2000),
        at in any::<prop::sample::Index>(),
        change in 1..=255u8,
    ) {
        let mut message = Client::new(6, 15).message(&text);
        let at = at.index(message.len());
        message[at] ^= change;
        if let Ok(bytes) = decode(&message) {
            // The output must start with everything that flate2 decodes from the first stream. More
            // output can follow only after a final block.
            let mut stream = Decompress::new(false);
            let mut out = Vec::with_capacity(1 << 20);
            let all = [&message[..], &[0, 0, 0xff, 0xff]].concat();
            stream.decompress_vec(&all, &mut out, FlushDecompress::Sync).unwrap();
            prop_assert!(bytes.starts_with(&out));
        }
    }
}
