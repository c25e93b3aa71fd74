//! Decompression of incoming messages.

use flate2::{Decompress, FlushDecompress, Status};

use crate::frame::{FrameError, Incoming, MessageKind};

/// Size of DEFLATE's largest window in bytes. A back-reference reaches at most this far.
const MAX_WINDOW_BYTES: usize = 32 * 1024;

/// The four bytes that a sender removes from the end of a message (RFC 7692 section 7.2.1),
/// followed by an empty final block. The stream of a complete message ends at the last byte of this
/// tail.
const MESSAGE_TAIL: [u8; 9] = [0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff];

/// Initial capacity of the output buffer in bytes.
const INITIAL_OUTPUT_BYTES: usize = 4096;

/// Maximum capacity in bytes that the output buffer keeps from one message to the next. The next
/// message shrinks a larger buffer to this capacity before it uses it.
const RETAINED_OUTPUT_BYTES: usize = 64 * 1024;

/// Maximum number of final blocks in a message. Limits CPU use: a final block of two bytes restarts
/// the stream, and the restart copies up to 32 KiB into the window. Senders that use final blocks
/// (RFC 7692 section 7.2.3.4) write one per flush.
const MAX_FINAL_BLOCKS: usize = 256;

/// A decompressor. One per worker serves any number of connections.
///
/// A connection's state between messages is in its [`History`], not in the decompressor. The first
/// compressed message allocates about 46 KiB and the output buffer. The output buffer holds the
/// last message until the next one; a capacity over 64 KiB is freed then.
#[derive(Debug, Default)]
pub struct Inflater {
    stream: Option<Decompress>,
    output: Vec<u8>,
    copied_window_bytes: u64,
}

/// The sliding window of one connection with context takeover: the last decompressed bytes, to
/// which the client's next messages may refer.
///
/// A connection needs a history only if
/// [`Params::client_no_context_takeover`](super::Params::client_no_context_takeover) is `false`.
/// The history is empty before the first compressed message and holds at most 32 KiB.
#[derive(Debug, Clone, Default)]
pub struct History(Vec<u8>);

impl Inflater {
    /// Creates a decompressor without allocating.
    #[must_use]
    pub const fn new() -> Self {
        Self { stream: None, output: Vec::new(), copied_window_bytes: 0 }
    }

    /// Decompresses the payload of an [`Extended::Encoded`](crate::frame::Extended::Encoded) and
    /// checks that text is UTF-8. Returns [`Incoming::Text`] or [`Incoming::Binary`].
    ///
    /// `history` is the connection's history if its client uses context takeover, otherwise `None`.
    /// Decompression stops one byte over `max_message_bytes`, so a decompression bomb costs no more
    /// memory than the largest allowed message.
    ///
    /// # Errors
    ///
    /// - [`FrameError::MessageTooBig`]: the message decompresses to more than `max_message_bytes`.
    /// - [`FrameError::InvalidUtf8`]: the message is text, and its bytes are not UTF-8.
    /// - [`FrameError::MalformedDeflate`]: the payload is not valid DEFLATE, ends inside a block,
    ///   or has more than 256 final blocks.
    ///
    /// After an error, the caller must close the connection. It can still use the decompressor for
    /// other connections.
    pub fn decode<'a>(
        &'a mut self,
        history: Option<&mut History>,
        max_message_bytes: usize,
        kind: MessageKind,
        payload: &[u8],
    ) -> Result<Incoming<'a>, FrameError> {
        let bytes = self.inflate(history, max_message_bytes, payload)?;
        match kind {
            MessageKind::Binary => Ok(Incoming::Binary(bytes)),
            MessageKind::Text => {
                simdutf8::basic::from_utf8(bytes).map(Incoming::Text).map_err(|_| FrameError::InvalidUtf8)
            }
        }
    }

    /// Returns the total number of bytes copied into windows: when a message starts with a
    /// [`History`], and when a stream restarts after a final block. The number is not proportional
    /// to the input or the output, so a caller that limits CPU use must count it separately.
    #[must_use]
    pub fn copied_window_bytes(&self) -> u64 {
        self.copied_window_bytes
    }

    #[cfg(test)]
    pub(super) fn output_capacity(&self) -> usize {
        self.output.capacity()
    }

    fn inflate(
        &mut self,
        history: Option<&mut History>,
        max_message_bytes: usize,
        payload: &[u8],
    ) -> Result<&[u8], FrameError> {
        self.output.clear();
        self.output.shrink_to(RETAINED_OUTPUT_BYTES);
        let stream = match &mut self.stream {
            Some(stream) => {
                stream.reset(false);
                stream
            }
            unallocated => unallocated.insert(Decompress::new(false)),
        };
        let mut inflation = MessageInflation {
            stream,
            output: &mut self.output,
            copied_window_bytes: &mut self.copied_window_bytes,
            max_message_bytes,
            history: history.as_deref().map_or(&[], |history| &history.0),
        };
        inflation.inflate_message(payload)?;
        if let Some(history) = history {
            history.push(&self.output);
        }
        Ok(&self.output)
    }
}

impl History {
    /// Creates the history of a new connection, without allocating.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Returns the allocated heap bytes, at most 32 KiB.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.0.capacity()
    }

    /// Appends a decompressed message and removes the oldest bytes over 32 KiB.
    fn push(&mut self, message: &[u8]) {
        let appended = last_bytes(message, MAX_WINDOW_BYTES);
        let surplus = (self.0.len() + appended.len()).saturating_sub(MAX_WINDOW_BYTES);
        self.0.drain(..surplus);
        let needed = self.0.len() + appended.len();
        if needed > self.0.capacity() {
            let capacity = self.0.capacity().saturating_mul(2).max(needed).min(MAX_WINDOW_BYTES);
            self.0.reserve_exact(capacity - self.0.len());
        }
        self.0.extend_from_slice(appended);
    }
}

/// The decompression of one message.
struct MessageInflation<'a> {
    stream: &'a mut Decompress,
    output: &'a mut Vec<u8>,
    copied_window_bytes: &'a mut u64,
    max_message_bytes: usize,
    /// The last bytes of the connection's earlier messages; empty without context takeover.
    history: &'a [u8],
}

/// The reason why the stream stopped.
enum StopReason {
    /// The stream consumed all input and expects more blocks.
    InputUsed,
    /// A final block ended with `unread` bytes of input left.
    FinalBlock { unread: usize },
}

impl MessageInflation<'_> {
    fn inflate_message(&mut self, payload: &[u8]) -> Result<(), FrameError> {
        // RFC 7692 encodes an empty message as one byte. Some senders omit even this byte.
        if payload.is_empty() {
            return Ok(());
        }
        self.fill_window()?;
        let mut input = payload;
        let mut final_blocks = 0;
        loop {
            let StopReason::FinalBlock { unread } = self.feed(input)? else { return self.check_complete() };
            final_blocks += 1;
            if final_blocks > MAX_FINAL_BLOCKS {
                return Err(FrameError::MalformedDeflate);
            }
            // After the last final block, a sender must add a zero byte: the start of an empty
            // block whose other bytes are the removed tail. Some senders omit the zero byte.
            if unread == 0 {
                return Ok(());
            }
            input = last_bytes(input, unread);
            self.stream.reset(false);
            self.fill_window()?;
        }
    }

    /// Feeds the tail that the sender removed, and checks that the message was complete.
    fn check_complete(&mut self) -> Result<(), FrameError> {
        let message_bytes = self.output.len();
        match self.feed(&MESSAGE_TAIL)? {
            // A block that was still open would decode some bytes of the tail to output.
            StopReason::FinalBlock { unread: 0 } if self.output.len() == message_bytes => Ok(()),
            _ => Err(FrameError::MalformedDeflate),
        }
    }

    /// Fills the window of a new or restarted stream with the last 32 KiB of output. These are the
    /// end of earlier messages, and then the decompressed part of this message.
    fn fill_window(&mut self) -> Result<(), FrameError> {
        let current = last_bytes(self.output, MAX_WINDOW_BYTES);
        let earlier = last_bytes(self.history, MAX_WINDOW_BYTES - current.len());
        for bytes in [earlier, current] {
            if !bytes.is_empty() {
                *self.copied_window_bytes += bytes.len() as u64;
                self.stream.set_dictionary(bytes).map_err(|_| FrameError::MalformedDeflate)?;
            }
        }
        Ok(())
    }

    /// Decompresses `input` until the stream has consumed it or a final block ends.
    fn feed(&mut self, mut input: &[u8]) -> Result<StopReason, FrameError> {
        loop {
            if self.output.len() == self.output.capacity() {
                self.grow_output()?;
            }
            let total_in = self.stream.total_in();
            let status = self.stream.decompress_vec(input, self.output, FlushDecompress::None);
            let status = status.map_err(|_| FrameError::MalformedDeflate)?;
            // The stream consumes at most `input`, so the number fits `usize`.
            let consumed = (self.stream.total_in() - total_in) as usize;
            input = input.get(consumed..).unwrap_or_default();
            if self.output.len() > self.max_message_bytes {
                return Err(self.too_big());
            }
            if status == Status::StreamEnd {
                return Ok(StopReason::FinalBlock { unread: input.len() });
            }
            // The stream left output capacity unused, so the input has no more output.
            if self.output.len() < self.output.capacity() {
                return if input.is_empty() {
                    Ok(StopReason::InputUsed)
                } else {
                    Err(FrameError::MalformedDeflate)
                };
            }
        }
    }

    /// Doubles the output buffer, up to one byte over the message limit. The extra byte is enough
    /// to detect a message over the limit.
    fn grow_output(&mut self) -> Result<(), FrameError> {
        let (len, max_capacity) = (self.output.len(), self.max_message_bytes.saturating_add(1));
        if len >= max_capacity {
            return Err(self.too_big());
        }
        let capacity = len.saturating_mul(2).max(INITIAL_OUTPUT_BYTES).min(max_capacity);
        self.output.reserve_exact(capacity - len);
        Ok(())
    }

    fn too_big(&self) -> FrameError {
        FrameError::MessageTooBig { limit: self.max_message_bytes }
    }
}

/// Returns the last `len` bytes, or all bytes if there are fewer.
fn last_bytes(bytes: &[u8], len: usize) -> &[u8] {
    bytes.get(bytes.len().saturating_sub(len)..).unwrap_or(bytes)
}
