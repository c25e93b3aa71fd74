//! Compression of outgoing messages.

use flate2::{Compress, Compression, FlushCompress, Status};

use super::negotiation::{MAX_WINDOW_BITS, MIN_WINDOW_BITS};
use super::{Config, Params};
use crate::frame::{TEXT, rsv1_header, server_frame, text_header, write_rsv1, write_text};

/// End of a flushed stream, which the sender removes (RFC 7692 section 7.2.1).
const FLUSH_TAIL: [u8; 4] = [0, 0, 0xff, 0xff];

/// Maximum output buffer capacity kept between messages, in bytes.
const RETAINED_OUTPUT_BYTES: usize = 64 * 1024;

/// A compressor without context takeover. One per worker serves any number of connections.
///
/// It allocates on first use: about 370 KiB, plus an output buffer of at most 64 KiB between
/// messages. Each smaller window that clients request needs its own stream (at most six more). No
/// common client requests one.
#[derive(Debug)]
pub struct Deflater {
    /// Streams by window bits, from 9 to 15.
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

    /// Compresses a payload with the largest window. Returns `None` below the threshold, or if the
    /// result would not be smaller and the threshold is not 0.
    pub(crate) fn deflate(&mut self, payload: &[u8]) -> Option<&[u8]> {
        self.deflate_with(MAX_WINDOW_BITS, payload)
    }

    /// Like [`Self::deflate`], with a window that fits one client.
    fn deflate_for(&mut self, params: Params, payload: &[u8]) -> Option<&[u8]> {
        self.deflate_with(params.compressor_window_bits(payload.len())?, payload)
    }

    fn deflate_with(&mut self, window_bits: u8, payload: &[u8]) -> Option<&[u8]> {
        if payload.len() < self.threshold_bytes {
            return None;
        }
        self.output.clear();
        self.output.shrink_to(RETAINED_OUTPUT_BYTES);
        // Incompressible data is stored in blocks with five bytes of overhead each; the tail is
        // removed again. With threshold 0 the result is sent even if it is larger. Then fixed codes
        // may turn eight bits into nine, and small windows add blocks.
        let overhead = match self.threshold_bytes {
            0 => payload.len() / 8 + payload.len() / 64,
            _ => payload.len() / 1024,
        };
        self.output.reserve(payload.len() + overhead + 64);
        let stream_slot = self.streams.get_mut(usize::from(window_bits.checked_sub(MIN_WINDOW_BITS + 1)?))?;
        self.message_count += 1;
        self.input_bytes += payload.len() as u64;
        let stream = match stream_slot {
            Some(stream) => {
                stream.reset();
                stream
            }
            empty => empty.insert(Compress::new_with_window_bits(self.level, false, window_bits)),
        };
        let status = stream.compress_vec(payload, &mut self.output, FlushCompress::Sync).ok()?;
        // If the output buffer is full, the flush may be incomplete.
        let is_complete = status == Status::Ok
            && stream.total_in() == payload.len() as u64
            && self.output.len() < self.output.capacity();
        let deflated = self.output.strip_suffix(&FLUSH_TAIL)?;
        let is_worth_it = deflated.len() < payload.len() || self.threshold_bytes == 0;
        (is_complete && is_worth_it).then_some(deflated)
    }
}

/// Appends a text frame to `out`, compressed if it shrinks and fits the client's window. Returns
/// the number of bytes saved, 0 if uncompressed.
///
/// For payloads with one receiver. Many receivers share a
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

/// Compresses the frames in `out[start..]` in place, each message separately, if it shrinks and
/// fits the client's window. Returns the number of bytes by which `out` got shorter. With a
/// threshold of 0 `out` can grow; the result is then 0.
///
/// `out[start..]` must hold whole frames written by the `write_…` functions of
/// [`frame`](crate::frame). Control frames and compressed frames stay unchanged. Replies shorter
/// than the threshold cost one comparison.
pub fn compress_frames(deflater: &mut Deflater, params: Params, out: &mut Vec<u8>, start: usize) -> usize {
    let before = out.len();
    let mut end = before;
    if end.saturating_sub(start) < deflater.threshold_bytes {
        return 0;
    }
    let (mut read, mut written) = (start, start);
    while let Some(frame) = out.get(read..).and_then(server_frame) {
        let payload = read + frame.header_len..read + frame.header_len + frame.payload_len;
        let mut next = payload.end;
        let plain = out.get(payload).filter(|_| frame.is_plain_message());
        match plain.and_then(|plain| deflater.deflate_for(params, plain)) {
            Some(deflated) => {
                let (header, header_len) = rsv1_header(frame.opcode(), deflated.len());
                // All bytes before `next` have been read. Space runs short only with a threshold of
                // 0.
                let after = written + header_len + deflated.len();
                let missing = after.saturating_sub(next);
                if missing > 0 {
                    out.resize(end + missing, 0);
                    out.copy_within(next..end, after);
                    (next, end) = (after, end + missing);
                }
                let Some(space) = out.get_mut(written..after) else { break };
                let (space_header, space_body) = space.split_at_mut(header_len);
                space_header.copy_from_slice(&header[..header_len]);
                space_body.copy_from_slice(deflated);
                written = after;
            }
            None => {
                out.copy_within(read..next, written);
                written += next - read;
            }
        }
        read = next;
    }
    // An incomplete frame is a caller's error and stays unchanged.
    out.copy_within(read..end, written);
    out.truncate(written + (end - read));
    before.saturating_sub(out.len())
}
