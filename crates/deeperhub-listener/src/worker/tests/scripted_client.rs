//! The clients of the scripted test, and the check of what they receive.

use fastrand::Rng;

use super::fixture::{UPGRADE, client_frame, client_text};
use crate::transport::Scripted;

/// A client that sends random bytes of random messages.
pub(super) struct ScriptedClient {
    pub(super) stream: Scripted,
    pub(super) uses_proxy: bool,
    is_compressed: bool,
    /// Bytes that the client sends next.
    queued: Vec<u8>,
    /// Number of numbered texts so far.
    texts: u32,
}

impl ScriptedClient {
    pub(super) fn new(random: &mut Rng) -> Self {
        let room = [0, 10, 1000, 30_000, 1 << 20][random.usize(0..5)];
        let uses_proxy = random.u32(0..4) == 0;
        let is_compressed = random.u32(0..3) == 0;
        let mut queued = Vec::new();
        if uses_proxy {
            queued.extend_from_slice(match random.u32(0..8) {
                0 => b"PROXY UDP4 nonsense\r\n",
                1 => b"",
                _ => b"PROXY TCP4 192.0.2.7 192.0.2.2 4660 2\r\n",
            });
        }
        queued.extend(match random.u32(0..12) {
            0 => b"HEAD /nowhere HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            1 => b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
            2 => b"\x16\x03\x01 this is not HTTP".to_vec(),
            3 => b"GET / HTTP/1.1\r\nX: ".iter().copied().chain([b'x'; 3000]).collect(),
            _ if is_compressed => {
                let extension = "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
                format!("{}{extension}", UPGRADE.trim_end_matches("\r\n").to_owned() + "\r\n").into_bytes()
            }
            _ => UPGRADE.into(),
        });
        Self { stream: Scripted::new(room), uses_proxy, is_compressed, queued, texts: 0 }
    }

    /// Does one random thing.
    pub(super) fn act(&mut self, random: &mut Rng) {
        match random.u32(0..40) {
            0..12 => {
                let len = match random.u32(0..3) {
                    0 => random.usize(0..=self.queued.len().min(20)),
                    _ => self.queued.len(),
                };
                self.stream.send(&self.queued[..len]);
                self.queued.drain(..len);
            }
            12..25 => self.queue_message(random),
            25..36 => self.stream.receive([1, 100, 5000, usize::MAX][random.usize(0..4)]),
            36 => self.stream.end_input(),
            37 if random.bool() => self.stream.reset(),
            _ => self.stream.interrupt(random.u32(0..3)),
        }
    }

    fn queue_message(&mut self, random: &mut Rng) {
        let number = self.texts;
        let message = match random.u32(0..60) {
            0 => client_text("panic"),
            1 => client_text("close"),
            2 => client_text("close and pause"),
            3 => client_frame(0x88, &3210_u16.to_be_bytes()),
            4 => client_frame(0x88, b""),
            // A reserved opcode, a message over the limit, and invalid UTF-8.
            5 => client_frame(0x8f, b""),
            6 => client_frame(0x82, &[0; 30_000]),
            7 => client_frame(0x81, b"\xff"),
            8..11 => client_text("pause"),
            11..14 => client_text("long"),
            14..16 => client_text("expensive"),
            16..22 => client_frame(0x89, b"ping"),
            22..26 => client_frame(0x8a, b"pong"),
            26..30 => {
                let parts =
                    [client_frame(0x01, b"in "), client_frame(0x89, b""), client_frame(0x80, b"parts")];
                parts.concat()
            }
            30..35 => client_frame(0x82, &vec![7; random.usize(0..20_000)]),
            // A compressed message of one stored block (RFC 1951 section 3.2.4).
            35..40 if self.is_compressed => {
                client_frame(0xc1, &[&[0, 5, 0, 250, 255][..], b"hello", &[0]].concat())
            }
            _ => {
                self.texts += 1;
                client_text(&format!("number {number}"))
            }
        };
        self.queued.extend(message);
    }

    /// Checks all that the client was sent: one response, then whole frames, with the replies to
    /// numbered texts in order, and nothing after a close frame.
    pub(super) fn check_output(&self) {
        let output = self.stream.output();
        assert!(!self.stream.is_written_after_shutdown(), "bytes were sent after the end");
        let Some(head_end) = output.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return };
        if !output.starts_with(b"HTTP/1.1 101 ") {
            let responses = output.windows(9).filter(|bytes| *bytes == b"HTTP/1.1 ").count();
            assert_eq!(responses, 1, "{}", String::from_utf8_lossy(&output));
            return;
        }
        let mut rest = &output[head_end + 4..];
        let (mut is_closed, mut next_number) = (false, 0);
        while let Some((first_byte, payload, after)) = split_frame(rest) {
            assert!(!is_closed, "a frame follows the close frame: {first_byte:#x} {payload:?}");
            assert!(matches!(first_byte, 0x81 | 0x82 | 0x88 | 0x89 | 0x8a | 0xc1 | 0xc2), "{first_byte:#x}");
            is_closed = first_byte == 0x88;
            if first_byte == 0x81
                && let Some(number) = payload.strip_prefix(b"number ")
            {
                assert_eq!(number, next_number.to_string().as_bytes());
                next_number += 1;
            }
            rest = after;
        }
        assert!(!is_closed || rest.is_empty(), "{} bytes follow the close frame", rest.len());
    }
}

/// Splits a server's frame from the start of `bytes`, if it is complete. Returns its first byte,
/// its payload and the rest.
fn split_frame(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (header, len) = match *bytes {
        [_, 126, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
        [_, 127, a, b, c, d, e, f, g, h, ..] => {
            (10, usize::try_from(u64::from_be_bytes([a, b, c, d, e, f, g, h])).unwrap())
        }
        [_, len @ 0..126, ..] => (2, usize::from(len)),
        _ => return None,
    };
    let payload = bytes.get(header..header + len)?;
    Some((bytes[0], payload, &bytes[header + len..]))
}
