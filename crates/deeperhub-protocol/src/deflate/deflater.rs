//! Compression of outgoing messages.

use flate2::{Compress, Compression, FlushCompress, Status};

use super::negotiation::{MAX_WINDOW_BITS, MIN_WINDOW_BITS};
use super::{Config, Params};
use crate::frame::{TEXT, rsv1_header, server_frame, text_header, write_rsv1, write_text};

/// The last four bytes of a flushed stream. The sender removes them (RFC 7692 section 7.2.1).
const FLUSH_TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// Maximum capacity in bytes that the output buffer keeps from one message to the next. The next
/// message shrinks a larger buffer to this capacity before it uses it.
const RETAINED_OUTPUT_BYTES: usize = 64 * 1024;

/// A compressor without context takeover. One per worker serves any number of connections.
///
/// The first message allocates about 370 KiB and the output buffer. The output buffer holds the
/// last compressed message until the next one; a capacity over 64 KiB is freed then. Each smaller
/// window that clients request needs its own stream, at most six more. No common client requests a
/// smaller window.
#[derive(Debug)]
pub struct Deflater {
    /// One stream for each number of window bits, from 9 to 15.
    streams: [Option<Compress>; (MAX_WINDOW_BITS - MIN_WINDOW_BITS) as usize],
    level: Compression,
    threshold_bytes: usize,
    output: Vec<u8>,
    message_count: u64,
    input_bytes: u64,
}

impl Deflater {
    /// Creates a compressor with the level and threshold of `config`, without allocating.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self {
            streams: Default::default(),
            level: Compression::new(u32::from(config.level.clamp(1, 9))),
            threshold_bytes: config.threshold_bytes,
            output: Vec::new(),
            message_count: 0,
            input_bytes: 0,
        }
    }

    /// Returns the number of messages compressed so far, including those that did not shrink. A
    /// shared frame counts once.
    #[must_use]
    pub fn message_count(&self) -> u64 {
        self.message_count
    }

    /// Returns the number of payload bytes passed to the compressor so far.
    #[must_use]
    pub fn input_bytes(&self) -> u64 {
        self.input_bytes
    }

    /// Compresses a payload with the largest window. Returns `None` if the payload is below the
    /// threshold, or if compression does not shrink it and the threshold is not 0.
    pub(crate) fn deflate(&mut self, payload: &[u8]) -> Option<&[u8]> {
        self.deflate_with(MAX_WINDOW_BITS, payload)
    }

    /// Compresses a payload for one client, like [`Self::deflate`], with a window that the client
    /// supports. Also returns `None` if the payload exceeds the client's window and that window has
    /// 8 bits.
    fn deflate_for(&mut self, params: Params, payload: &[u8]) -> Option<&[u8]> {
        self.deflate_with(params.compressor_window_bits(payload.len())?, payload)
    }

    fn deflate_with(&mut self, window_bits: u8, payload: &[u8]) -> Option<&[u8]> {
        if payload.len() < self.threshold_bytes {
            return None;
        }
        self.output.clear();
        self.output.shrink_to(RETAINED_OUTPUT_BYTES);
        // The capacity must hold every result that is sent. With threshold 0 that is any result:
        // fixed codes can turn eight bits into nine, and small windows add blocks. Otherwise the
        // result must shrink, so room for the overhead of stored blocks and the tail is enough.
        let overhead = if self.threshold_bytes == 0 {
            payload.len() / 8 + payload.len() / 64
        } else {
            payload.len() / 1024
        };
        self.output.reserve(payload.len() + overhead + 64);
        let stream_index = usize::from(window_bits.checked_sub(MIN_WINDOW_BITS + 1)?);
        let stream_slot = self.streams.get_mut(stream_index)?;
        self.message_count += 1;
        self.input_bytes += payload.len() as u64;
        let stream = match stream_slot {
            Some(stream) => {
                stream.reset();
                stream
            }
            unallocated => unallocated.insert(Compress::new_with_window_bits(self.level, false, window_bits)),
        };
        let status = stream.compress_vec(payload, &mut self.output, FlushCompress::Sync).ok()?;
        // If the output buffer is full, the end of the flush can be missing.
        let is_complete = status == Status::Ok
            && stream.total_in() == payload.len() as u64
            && self.output.len() < self.output.capacity();
        let deflated = self.output.strip_suffix(&FLUSH_TAIL)?;
        let is_worth_it = deflated.len() < payload.len() || self.threshold_bytes == 0;
        (is_complete && is_worth_it).then_some(deflated)
    }
}

/// Appends a text frame to `out`. Compresses it if the payload reaches the threshold, shrinks, and
/// can be compressed for the client's window. Returns the number of bytes saved, or 0 for an
/// uncompressed frame.
///
/// Use this function for payloads with one receiver. For many receivers, share a
/// [`Frame`](crate::frame::Frame::for_receiver).
///
/// ```
/// use deeperhub_protocol::deflate::{Config, Deflater, Inflater, negotiate, write_text_compressed};
/// use deeperhub_protocol::frame::{Incoming, MessageKind};
///
/// let config = Config::default();
/// let offers = [&b"permessage-deflate; client_max_window_bits"[..]];
/// let params = negotiate(&config, offers)?.expect("the offer is acceptable");
/// let (mut deflater, mut out) = (Deflater::new(&config), Vec::new());
///
/// let text = r#"{"type":"message","topic":"sports.football"}"#.repeat(100);
/// let saved = write_text_compressed(&mut deflater, params, &text, &mut out);
/// assert!(saved > 4000 && out[0] == 0xc1);
/// // The header of a short frame is two bytes.
/// let mut inflater = Inflater::new();
/// let decoded = inflater.decode(None, 65_536, MessageKind::Text, &out[2..]);
/// assert_eq!(decoded, Ok(Incoming::Text(&text)));
///
/// assert_eq!(write_text_compressed(&mut deflater, params, "below the threshold", &mut out), 0);
/// # Ok::<(), deeperhub_protocol::handshake::Refusal>(())
/// ```
pub fn write_text_compressed(
    deflater: &mut Deflater,
    params: Params,
    payload: &str,
    out: &mut Vec<u8>,
) -> usize {
    let Some(deflated) = deflater.deflate_for(params, payload.as_bytes()) else {
        write_text(out, payload);
        return 0;
    };
    let start = out.len();
    write_rsv1(out, TEXT, deflated);
    (text_header(payload.len()).1 + payload.len()).saturating_sub(out.len() - start)
}

/// Compresses the messages in `out[start..]` in place. Compresses a message under the same
/// conditions as [`write_text_compressed`]. Returns the number of bytes by which `out` got shorter.
/// With a threshold of 0, `out` can grow; the function then returns 0.
///
/// `out[start..]` must hold whole frames written by the `write_…` functions of
/// [`frame`](crate::frame). Control frames and compressed frames stay unchanged. If `out[start..]`
/// is shorter than the threshold, the call costs one comparison.
pub fn compress_frames(deflater: &mut Deflater, params: Params, out: &mut Vec<u8>, start: usize) -> usize {
    let original_len = out.len();
    let mut end = original_len;
    if end.saturating_sub(start) < deflater.threshold_bytes {
        return 0;
    }
    // Bytes before `read_pos` are processed; bytes before `write_pos` are output.
    let (mut read_pos, mut write_pos) = (start, start);
    while let Some(frame) = out.get(read_pos..).and_then(server_frame) {
        let payload = read_pos + frame.header_len..read_pos + frame.header_len + frame.payload_len;
        let mut next_read_pos = payload.end;
        let plain = out.get(payload).filter(|_| frame.is_plain_message());
        match plain.and_then(|plain| deflater.deflate_for(params, plain)) {
            Some(deflated) => {
                let (header, header_len) = rsv1_header(frame.opcode(), deflated.len());
                // The output may overwrite all bytes before `next_read_pos`. It needs more space
                // only if the message grew, which a threshold of 0 allows.
                let next_write_pos = write_pos + header_len + deflated.len();
                let missing = next_write_pos.saturating_sub(next_read_pos);
                if missing > 0 {
                    out.resize(end + missing, 0);
                    out.copy_within(next_read_pos..end, next_write_pos);
                    (next_read_pos, end) = (next_write_pos, end + missing);
                }
                let Some(target) = out.get_mut(write_pos..next_write_pos) else { break };
                let (target_header, target_payload) = target.split_at_mut(header_len);
                target_header.copy_from_slice(&header[..header_len]);
                target_payload.copy_from_slice(deflated);
                write_pos = next_write_pos;
            }
            None => {
                out.copy_within(read_pos..next_read_pos, write_pos);
                write_pos += next_read_pos - read_pos;
            }
        }
        read_pos = next_read_pos;
    }
    // A last frame that is incomplete is a caller's error; its bytes stay unchanged.
    out.copy_within(read_pos..end, write_pos);
    out.truncate(write_pos + (end - read_pos));
    original_len.saturating_sub(out.len())
}
