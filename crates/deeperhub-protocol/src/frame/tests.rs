//! Tests of the decoder with single frames and messages. `properties` tests it with any input, and
//! `differential` compares it with another implementation.

mod differential;
mod properties;

use super::*;

pub(super) const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
pub(super) const FINAL: u8 = 0x80;
pub(super) const CONTINUATION: u8 = 0;
pub(super) const TEXT: u8 = 1;
pub(super) const BINARY: u8 = 2;
pub(super) const CLOSE: u8 = 8;
pub(super) const PING: u8 = 9;
pub(super) const PONG: u8 = 10;

/// Maximum bytes of an assembly, without its message.
pub(super) const BOOKKEEPING_BYTES: usize = 400;

/// A decoded item that owns its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decoded {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close(Option<(u16, String)>),
}

impl From<Incoming<'_>> for Decoded {
    fn from(incoming: Incoming<'_>) -> Self {
        match incoming {
            Incoming::Text(text) => Self::Text(text.to_owned()),
            Incoming::Binary(bytes) => Self::Binary(bytes.to_vec()),
            Incoming::Ping(payload) => Self::Ping(payload.to_vec()),
            Incoming::Pong(payload) => Self::Pong(payload.to_vec()),
            Incoming::Close(body) => Self::Close(body.map(|(code, reason)| (code, reason.to_owned()))),
        }
    }
}

pub(super) fn text(text: &str) -> Decoded {
    Decoded::Text(text.to_owned())
}

/// Returns a client's frame with the first byte `first` (FIN and opcode) and a masked payload.
pub(super) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode::write_frame(&mut out, first & 0xf, payload);
    let header_len = out.len() - payload.len();
    out[0] = first;
    out[1] |= 0x80;
    out.splice(header_len..header_len, MASK);
    mask::unmask(&mut out[header_len + 4..], MASK);
    out
}

/// Decodes the reads in order, up to the first error or close frame. Also checks the decoder's
/// memory and progress.
pub(super) fn decode<'a>(
    limits: &FrameLimits,
    reads: impl IntoIterator<Item = &'a [u8]>,
) -> (Vec<Decoded>, Result<(), FrameError>) {
    let mut decoder = FrameDecoder::new();
    let mut decoded = Vec::new();
    let mut received = 0;
    for read in reads {
        received += read.len();
        let mut input = read.to_vec();
        let mut pos = 0;
        loop {
            let pos_before_call = pos;
            match decoder.next(limits, &mut input, &mut pos) {
                Ok(Some(incoming)) => {
                    decoded.push(Decoded::from(incoming));
                    assert!(pos <= read.len());
                    if let Some(Decoded::Close(_)) = decoded.last() {
                        return (decoded, Ok(()));
                    }
                }
                Ok(None) => break,
                Err(error) => return (decoded, Err(error)),
            }
            assert!(pos > pos_before_call || decoder.buffered_bytes() > 0, "each call makes progress");
        }
        assert_eq!(pos, read.len(), "the decoder consumes all input");
        assert_eq!(decoder.is_mid_message(), decoder.buffered_bytes() > 0, "an idle decoder has no memory");
        let message_bytes = decoder.buffered_bytes().saturating_sub(BOOKKEEPING_BYTES);
        assert!(
            message_bytes <= (2 * received).min(limits.max_message_bytes),
            "{message_bytes} of {received}"
        );
    }
    (decoded, Ok(()))
}

/// Decodes `bytes` in one read, in reads of one byte, and in two reads split at every position.
/// Checks that all results are as expected.
fn check(bytes: &[u8], expected: &[Decoded], error: Option<FrameError>) {
    let limits = FrameLimits::new(1000);
    let expected = (expected.to_vec(), error.map_or(Ok(()), Err));
    assert_eq!(decode(&limits, [bytes]), expected, "one read");
    assert_eq!(decode(&limits, bytes.chunks(1)), expected, "byte by byte");
    for cut in 0..bytes.len() {
        assert_eq!(decode(&limits, [&bytes[..cut], &bytes[cut..]]), expected, "split at {cut}");
    }
}

fn decodes(bytes: &[u8], expected: &[Decoded]) {
    check(bytes, expected, None);
}

fn fails(bytes: &[u8], error: FrameError) {
    check(bytes, &[], Some(error));
}

#[test]
fn an_idle_decoder_is_one_pointer() {
    assert_eq!(size_of::<FrameDecoder>(), 8);
    let decoder = FrameDecoder::new();
    assert_eq!((decoder.is_mid_message(), decoder.buffered_bytes()), (false, 0));
}

#[test]
fn an_assembly_is_small() {
    assert!(size_of::<assembly::Assembly>() <= BOOKKEEPING_BYTES);
}

#[test]
fn whole_messages_are_decoded() {
    decodes(&frame(FINAL | TEXT, b""), &[text("")]);
    decodes(&frame(FINAL | TEXT, "grüße 🦀".as_bytes()), &[text("grüße 🦀")]);
    decodes(&frame(FINAL | BINARY, &[0xff; 300]), &[Decoded::Binary(vec![0xff; 300])]);
    decodes(
        &[frame(FINAL | TEXT, b"one"), frame(FINAL | TEXT, b"two")].concat(),
        &[text("one"), text("two")],
    );
}

#[test]
fn a_whole_message_is_borrowed_from_the_input() {
    let mut input = frame(FINAL | TEXT, b"hello");
    let range = input.as_ptr_range();
    let (mut decoder, mut pos) = (FrameDecoder::new(), 0);
    let Ok(Some(Incoming::Text(text))) = decoder.next(&FrameLimits::default(), &mut input, &mut pos) else {
        panic!()
    };
    assert!(range.contains(&text.as_ptr()));
    assert_eq!(decoder.buffered_bytes(), 0);
}

#[test]
fn control_frames_are_decoded() {
    decodes(&frame(FINAL | PING, b""), &[Decoded::Ping(vec![])]);
    decodes(&frame(FINAL | PING, &[1; 125]), &[Decoded::Ping(vec![1; 125])]);
    decodes(&frame(FINAL | PONG, b"abc"), &[Decoded::Pong(b"abc".to_vec())]);
    decodes(&frame(FINAL | CLOSE, b""), &[Decoded::Close(None)]);
    decodes(&frame(FINAL | CLOSE, b"\x03\xe8bye"), &[Decoded::Close(Some((1000, "bye".to_owned())))]);
}

#[test]
fn decoding_stops_at_a_close_frame() {
    decodes(&[frame(FINAL | CLOSE, b""), frame(FINAL | TEXT, b"more")].concat(), &[Decoded::Close(None)]);
}

#[test]
fn fragments_are_joined_with_control_frames_between_them() {
    let bytes = [
        frame(TEXT, "a\u{e4}".as_bytes().split_at(2).0),
        frame(FINAL | PING, b"between"),
        frame(CONTINUATION, "\u{e4}".as_bytes().split_at(1).1),
        frame(CONTINUATION, b""),
        frame(FINAL | PONG, b""),
        frame(FINAL | CONTINUATION, b"z"),
        frame(FINAL | BINARY, b"next"),
    ];
    let expected = [
        Decoded::Ping(b"between".to_vec()),
        Decoded::Pong(vec![]),
        text("aäz"),
        Decoded::Binary(b"next".to_vec()),
    ];
    decodes(&bytes.concat(), &expected);
}

#[test]
fn fragments_in_the_wrong_order_are_rejected() {
    fails(&frame(FINAL | CONTINUATION, b"a"), FrameError::UnexpectedContinuation);
    fails(&frame(CONTINUATION, b""), FrameError::UnexpectedContinuation);
    for first in [TEXT, BINARY, FINAL | TEXT] {
        fails(&[frame(BINARY, b"a"), frame(first, b"b")].concat(), FrameError::UnfinishedMessage);
    }
    let finished = [frame(TEXT, b"a"), frame(FINAL | CONTINUATION, b"b"), frame(FINAL | CONTINUATION, b"c")];
    check(&finished.concat(), &[text("ab")], Some(FrameError::UnexpectedContinuation));
}

#[test]
fn malformed_frames_are_rejected() {
    fails(b"\x81\x02hi", FrameError::Unmasked);
    fails(&frame(FINAL | 0x40 | TEXT, b"a"), FrameError::ReservedBits);
    fails(&frame(FINAL | 3, b"a"), FrameError::ReservedOpcode { opcode: 3 });
    fails(&frame(PING, b"a"), FrameError::FragmentedControl);
    fails(&frame(FINAL | PING, &[0; 126]), FrameError::ControlTooLong);
    fails(&frame(FINAL | CLOSE, b"\x03"), FrameError::CloseTooShort);
    fails(&frame(FINAL | CLOSE, b"\x03\xed"), FrameError::CloseCodeNotAllowed { code: 1005 });
    fails(&frame(FINAL | CLOSE, b"\x03\xe8\xff"), FrameError::InvalidUtf8);
}

#[test]
fn messages_before_an_error_are_decoded() {
    let bytes = [frame(FINAL | TEXT, b"good"), frame(FINAL | PING, b""), frame(FINAL | TEXT, b"\xff")];
    check(&bytes.concat(), &[text("good"), Decoded::Ping(vec![])], Some(FrameError::InvalidUtf8));
}

#[test]
fn text_must_end_with_a_whole_character() {
    fails(&frame(FINAL | TEXT, b"a\xe2\x82"), FrameError::InvalidUtf8);
    fails(&[frame(TEXT, b"a\xe2"), frame(FINAL | CONTINUATION, b"\x82")].concat(), FrameError::InvalidUtf8);
}

#[test]
fn invalid_text_is_reported_before_its_frame_is_complete() {
    let message =
        frame(FINAL | TEXT, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80 and more");
    let invalid_at = 6 + 12;
    let limits = FrameLimits::default();
    assert_eq!(decode(&limits, [&message[..invalid_at]]), (vec![], Ok(())), "f4 can start a character");
    assert_eq!(
        decode(&limits, [&message[..=invalid_at]]),
        (vec![], Err(FrameError::InvalidUtf8)),
        "f4 90 cannot"
    );
}

#[test]
fn the_declared_length_is_checked_before_the_payload_arrives() {
    let too_big = FrameError::MessageTooBig { limit: 1000 };
    let message = frame(FINAL | TEXT, &[b'x'; 1001]);
    for header_only in [&message[..8], &message[..]] {
        fails(header_only, too_big);
    }
    decodes(&message[..7], &[]);
    decodes(&frame(FINAL | TEXT, &[b'x'; 1000]), &[text(&"x".repeat(1000))]);
    let fragments = |last: usize| {
        [
            frame(TEXT, &[b'x'; 600]),
            frame(CONTINUATION, &[b'x'; 300]),
            frame(FINAL | CONTINUATION, &vec![b'x'; last]),
        ]
        .concat()
    };
    decodes(&fragments(100), &[text(&"x".repeat(1000))]);
    fails(&fragments(101), too_big);
    fails(b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00", too_big);
    fails(b"\x82\xff\x80\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", FrameError::LengthOutOfRange);
}

#[test]
fn the_number_of_fragments_is_limited() {
    let mut limits = FrameLimits::new(1000);
    limits.max_fragments = 3;
    let message = |fragments: usize| {
        let mut bytes = frame(BINARY, b"");
        (2..fragments).for_each(|_| bytes.extend(frame(CONTINUATION, b"")));
        bytes.extend(frame(FINAL | CONTINUATION, b""));
        bytes
    };
    let twice = [message(3), message(3)].concat();
    assert_eq!(decode(&limits, [&twice[..]]).0.len(), 2);
    assert_eq!(decode(&limits, [&message(4)[..]]).1, Err(FrameError::TooManyFragments { limit: 3 }));
}

#[test]
fn memory_grows_with_received_bytes_not_with_the_declared_length() {
    const MIB: usize = 1 << 20;
    let limits = FrameLimits::new(16 * MIB);
    for first in [FINAL | BINARY, FINAL | TEXT] {
        let message = frame(first, &vec![b'x'; 16 * MIB]);
        let mut decoder = FrameDecoder::new();
        let mut received = 0;
        for read in message.chunks(65_536) {
            let (mut input, mut pos) = (read.to_vec(), 0);
            received += read.len();
            let incoming = decoder.next(&limits, &mut input, &mut pos).unwrap();
            assert_eq!(incoming.is_some(), received == message.len());
            assert!(decoder.buffered_bytes() <= 2 * received + BOOKKEEPING_BYTES);
            assert!(decoder.buffered_bytes() <= 16 * MIB + BOOKKEEPING_BYTES);
        }
        assert!(!decoder.is_mid_message());
        assert_eq!(decoder.next(&limits, &mut [], &mut 0), Ok(None));
        assert_eq!(decoder.buffered_bytes(), 0, "the next call releases the message");
    }
}

#[test]
fn many_small_fragments_cause_few_reallocations() {
    let limits = FrameLimits::new(1 << 20);
    let mut decoder = FrameDecoder::new();
    let mut capacities = Vec::new();
    for i in 0..50_000 {
        let mut input = frame(if i == 0 { BINARY } else { CONTINUATION }, b"x");
        assert_eq!(decoder.next(&limits, &mut input, &mut 0), Ok(None));
        capacities.push(decoder.buffered_bytes());
    }
    capacities.dedup();
    assert!(capacities.len() < 20, "{capacities:?}");
}

#[test]
fn every_error_has_a_close_reason() {
    for (error, code, text) in [
        (FrameError::InvalidUtf8, 1007, "text is not UTF-8"),
        (FrameError::MessageTooBig { limit: 5 }, 1009, "message is over 5 bytes"),
        (FrameError::TooManyFragments { limit: 5 }, 1009, "message has more than 5 fragments"),
        (FrameError::Unmasked, 1002, "frame is not masked"),
        (FrameError::ReservedOpcode { opcode: 3 }, 1002, "opcode is reserved"),
        (FrameError::CloseCodeNotAllowed { code: 1005 }, 1002, "close code is not allowed"),
    ] {
        let reason = error.close_reason();
        assert_eq!((reason.code().as_u16(), reason.text()), (code, text));
    }
}

#[test]
fn encoded_messages_are_returned_undecoded() {
    let rsv1 = |kind, payload: &[u8]| (Some(kind), payload.to_vec());
    let bytes = [
        frame(FINAL | 0x40 | TEXT, b"\xff\x00"),
        frame(0x40 | BINARY, b"a"),
        frame(FINAL | PING, b"p"),
        frame(FINAL | CONTINUATION, b"b"),
        frame(FINAL | TEXT, b"plain"),
    ]
    .concat();
    let expected = [
        rsv1(MessageKind::Text, b"\xff\x00"),
        (None, b"p".to_vec()),
        rsv1(MessageKind::Binary, b"ab"),
        (None, b"plain".to_vec()),
    ];
    for size in [1, 3, bytes.len()] {
        let (mut decoder, mut decoded) = (FrameDecoder::new(), Vec::new());
        for read in bytes.chunks(size) {
            let (mut input, mut pos) = (read.to_vec(), 0);
            while let Some(next) =
                decoder.next_extended(&FrameLimits::default(), &mut input, &mut pos).unwrap()
            {
                decoded.push(match next {
                    Extended::Encoded { kind, payload } => rsv1(kind, payload),
                    Extended::Plain(Incoming::Text(text)) => (None, text.as_bytes().to_vec()),
                    Extended::Plain(Incoming::Ping(payload)) => (None, payload.to_vec()),
                    Extended::Plain(other) => panic!("{other:?}"),
                });
            }
        }
        assert_eq!(decoded, expected, "reads of {size}");
    }
    let mut continuation = [frame(0x40 | TEXT, b""), frame(FINAL | 0x40 | CONTINUATION, b"")].concat();
    let mut decoder = FrameDecoder::new();
    let result = decoder.next_extended(&FrameLimits::default(), &mut continuation, &mut 0);
    assert_eq!(result, Err(FrameError::ReservedBits));
}

#[test]
fn an_encoded_message_can_be_slightly_longer_than_the_limit() {
    let limits = FrameLimits::new(1000);
    let is_accepted = |first: u8, bytes: usize| {
        let mut input = frame(first, &vec![0; bytes]);
        FrameDecoder::new().next_extended(&limits, &mut input, &mut 0).is_ok()
    };
    assert!(is_accepted(FINAL | 0x40 | BINARY, 1005));
    assert!(!is_accepted(FINAL | 0x40 | BINARY, 1100));
    assert!(!is_accepted(FINAL | BINARY, 1001));
}
