//! Decodes arbitrary bytes as frames: the messages do not depend on read sizes, memory is bounded,
//! and tungstenite decodes the same messages.

#![no_main]

use std::io::{self, Cursor, Read, Write};

use deeperhub_protocol::frame::{Extended, FrameDecoder, FrameError, FrameLimits, Incoming};
use libfuzzer_sys::fuzz_target;
use tungstenite::protocol::{Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};

const LIMIT: usize = 2000;

/// Memory that the decoder may hold in addition to the message.
const BOOKKEEPING_BYTES: usize = 400;

#[derive(Debug, PartialEq, Eq)]
enum Decoded {
    Text(String),
    Binary(Vec<u8>),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Close,
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&first_read, bytes)) = bytes.split_first() else { return };
    let at_once = decode(bytes, bytes.len().max(1));
    assert_eq!(decode(bytes, 1), at_once, "byte by byte");
    assert_eq!(decode(bytes, usize::from(first_read).max(1)), at_once, "in reads of {first_read}");
    decode_extended(bytes, usize::from(first_read).max(1));

    let (ours, end) = at_once;
    let theirs = decode_with_tungstenite(bytes);
    if matches!(end, Err(FrameError::LengthNotMinimal | FrameError::ControlTooLong)) {
        // tungstenite accepts non-minimal lengths, even for control frames.
        assert!(theirs.starts_with(&ours));
    } else if matches!(end, Err(FrameError::CloseCodeNotAllowed { .. } | FrameError::CloseTooShort)) {
        // tungstenite accepts a close frame with an invalid code.
        assert_eq!(ours[..], theirs[..ours.len()]);
    } else {
        assert_eq!(ours, theirs);
    }
});

fn decode(bytes: &[u8], read_size: usize) -> (Vec<Decoded>, Result<(), FrameError>) {
    let limits = FrameLimits::new(LIMIT);
    let mut decoder = FrameDecoder::new();
    let mut decoded = Vec::new();
    let mut arrived = 0;
    for read in bytes.chunks(read_size) {
        arrived += read.len();
        let (mut input, mut pos) = (read.to_vec(), 0);
        loop {
            match decoder.next(&limits, &mut input, &mut pos) {
                Ok(Some(Incoming::Text(text))) => decoded.push(Decoded::Text(text.to_owned())),
                Ok(Some(Incoming::Binary(bytes))) => decoded.push(Decoded::Binary(bytes.to_vec())),
                Ok(Some(Incoming::Ping(payload))) => decoded.push(Decoded::Ping(payload.to_vec())),
                Ok(Some(Incoming::Pong(payload))) => decoded.push(Decoded::Pong(payload.to_vec())),
                Ok(Some(Incoming::Close(_))) => {
                    decoded.push(Decoded::Close);
                    return (decoded, Ok(()));
                }
                Ok(None) => break,
                Err(error) => return (decoded, Err(error)),
            }
            assert!(pos <= read.len());
        }
        assert_eq!(pos, read.len());
        assert_eq!(decoder.is_mid_message(), decoder.buffered_bytes() > 0);
        assert!(decoder.buffered_bytes() <= (2 * arrived).min(LIMIT) + BOOKKEEPING_BYTES);
    }
    (decoded, Ok(()))
}

/// Decodes with RSV1 in use: no panics, and no payload over the limit.
fn decode_extended(bytes: &[u8], read_size: usize) {
    let limits = FrameLimits::new(LIMIT);
    let mut decoder = FrameDecoder::new();
    for read in bytes.chunks(read_size) {
        let (mut input, mut pos) = (read.to_vec(), 0);
        loop {
            match decoder.next_extended(&limits, &mut input, &mut pos) {
                Ok(Some(Extended::Encoded { payload, .. })) => assert!(payload.len() <= LIMIT + 100),
                Ok(Some(Extended::Plain(Incoming::Close(_)))) | Err(_) => return,
                Ok(Some(Extended::Plain(_))) => {}
                Ok(None) => break,
            }
        }
        assert_eq!(pos, read.len());
    }
}

fn decode_with_tungstenite(bytes: &[u8]) -> Vec<Decoded> {
    let config = WebSocketConfig::default()
        .read_buffer_size(1024)
        .max_message_size(Some(LIMIT))
        .max_frame_size(Some(LIMIT));
    let mut socket = WebSocket::from_raw_socket(Source(Cursor::new(bytes)), Role::Server, Some(config));
    let mut decoded = Vec::new();
    while let Ok(message) = socket.read() {
        decoded.push(match message {
            Message::Text(text) => Decoded::Text(text.as_str().to_owned()),
            Message::Binary(bytes) => Decoded::Binary(bytes.to_vec()),
            Message::Ping(payload) => Decoded::Ping(payload.to_vec()),
            Message::Pong(payload) => Decoded::Pong(payload.to_vec()),
            Message::Close(_) => {
                decoded.push(Decoded::Close);
                break;
            }
            Message::Frame(frame) => panic!("a raw frame: {frame}"),
        });
    }
    decoded
}

/// Bytes to read; written bytes are discarded.
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
