//! Comparison with tungstenite's decoder: both must decode the same messages from the same bytes,
//! valid or not.

use std::io::{self, Cursor, Read, Write};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Error, Message, WebSocket};

use super::properties::reads;
use super::*;

const LIMIT: usize = 500;

/// A stream that reads from bytes and discards all writes.
struct Source<'a>(Cursor<&'a [u8]>);

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Source<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The reason why decoding stopped.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// All bytes were decoded.
    OutOfBytes,
    /// A close frame was decoded, valid or not: the two decoders report an invalid one differently.
    Close,
    Error,
}

/// Decodes `bytes` with tungstenite.
fn decode_with_tungstenite(bytes: &[u8]) -> (Vec<Decoded>, End) {
    let config = WebSocketConfig::default()
        .read_buffer_size(1024)
        .max_message_size(Some(LIMIT))
        .max_frame_size(Some(LIMIT));
    let mut socket = WebSocket::from_raw_socket(Source(Cursor::new(bytes)), Role::Server, Some(config));
    let mut decoded = Vec::new();
    loop {
        decoded.push(match socket.read() {
            Ok(Message::Text(text)) => Decoded::Text(text.as_str().to_owned()),
            Ok(Message::Binary(bytes)) => Decoded::Binary(bytes.to_vec()),
            Ok(Message::Ping(payload)) => Decoded::Ping(payload.to_vec()),
            Ok(Message::Pong(payload)) => Decoded::Pong(payload.to_vec()),
            Ok(Message::Close(_)) => return (decoded, End::Close),
            Ok(Message::Frame(frame)) => panic!("a raw frame: {frame}"),
            Err(Error::Protocol(tungstenite::error::ProtocolError::ResetWithoutClosingHandshake)) => {
                return (decoded, End::OutOfBytes);
            }
            Err(Error::Protocol(_) | Error::Capacity(_) | Error::Utf8(_)) => return (decoded, End::Error),
            Err(error) => panic!("{error:?}"),
        });
    }
}

/// Decodes `bytes` with the decoder under test, in reads split at `cuts`.
fn decode_in_reads(bytes: &[u8], cuts: &[Index]) -> (Vec<Decoded>, Result<End, FrameError>) {
    let (mut decoded, result) = decode(&FrameLimits::new(LIMIT), reads(bytes, cuts));
    let end = match result {
        Ok(()) if matches!(decoded.last(), Some(Decoded::Close(_))) => {
            decoded.pop();
            Ok(End::Close)
        }
        Ok(()) => Ok(End::OutOfBytes),
        Err(error) => Err(error),
    };
    (decoded, end)
}

/// Returns a strategy for frames that are mostly valid and mostly in a valid order.
fn frames() -> impl Strategy<Value = Vec<u8>> {
    let payload = prop_oneof![
        4 => ".{0,40}".prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..130),
        1 => (100..300usize).prop_map(|length| vec![b'x'; length]),
    ];
    let first = prop_oneof![
        4 => Just(FINAL | TEXT),
        2 => Just(TEXT),
        3 => Just(CONTINUATION),
        3 => Just(FINAL | CONTINUATION),
        2 => Just(FINAL | BINARY),
        1 => Just(BINARY),
        2 => Just(FINAL | PING),
        1 => Just(FINAL | PONG),
        1 => any::<u8>(),
    ];
    let close = prop_oneof![
        3 => Just(frame(FINAL | CLOSE, b"")),
        5 => ((990..1020u16), ".{0,10}").prop_map(|(code, reason)| {
            frame(FINAL | CLOSE, &[&code.to_be_bytes(), reason.as_bytes()].concat())
        }),
    ];
    let any_frame = prop_oneof![
        20 => (first, payload).prop_map(|(first, payload)| frame(first, &payload)),
        1 => close,
    ];
    vec(any_frame, 0..10).prop_map(|frames| frames.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn both_decoders_decode_the_same_messages(
        mut bytes in frames(),
        flips in vec((any::<Index>(), 0..8u8), 0..2),
        cuts in vec(any::<Index>(), 0..4),
    ) {
        for (place, bit) in flips {
            if let Some(last) = bytes.len().checked_sub(1) {
                bytes[place.index(last + 1)] ^= 1 << bit;
            }
        }
        let (our_messages, our_end) = decode_in_reads(&bytes, &cuts);
        if our_end.is_err() {
            // tungstenite checks a frame when it is complete; our decoder checks each part on
            // arrival.
            bytes.resize(bytes.len() + LIMIT + 14, 0);
        }
        let (their_messages, their_end) = decode_with_tungstenite(&bytes);
        match our_end {
            Ok(end) => {
                prop_assert_eq!(our_messages, their_messages);
                prop_assert_eq!(end, their_end);
            }
            // tungstenite accepts lengths that are not in their shortest form, even in control
            // frames.
            Err(FrameError::LengthNotMinimal | FrameError::ControlTooLong) => {
                prop_assert!(their_messages.starts_with(&our_messages));
            }
            // tungstenite replies to an invalid close frame as to a valid one.
            Err(error @ (FrameError::CloseCodeNotAllowed { .. } | FrameError::CloseTooShort)) => {
                prop_assert_eq!(our_messages, their_messages, "{}", error);
                prop_assert_ne!(their_end, End::OutOfBytes);
            }
            Err(error) => {
                prop_assert_eq!(our_messages, their_messages, "{}", error);
                prop_assert_eq!(their_end, End::Error, "{}", error);
            }
        }
    }
}
