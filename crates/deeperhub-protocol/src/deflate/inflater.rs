//! Decompression of incoming messages.

use flate2::{Decompress, FlushDecompress, Status};

use crate::frame::{FrameError, Incoming, MessageKind};

/// Size of DEFLATE's largest window: the maximum distance of a back-reference.
const WINDOW_BYTES: usize = 32 * 1024;

/// The bytes that a sender removes from the end of a message (RFC 7692 section 7.2.1), followed by
/// an empty final block. A message is complete exactly if the stream ends there.
const MESSAGE_TAIL: [u8; 9] = [0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff];

/// Initial capacity of the output buffer in bytes.
const INITIAL_OUTPUT_BYTES: usize = 4096;

/// Maximum output buffer capacity kept between messages, in bytes.
const RETAINED_OUTPUT_BYTES: usize = 64 * 1024;

/// Maximum number of final blocks in a message. Each one restarts the stream and copies the window,
/// up to 32 KiB for two bytes of input. Senders that use them (RFC 7692 section 7.2.3.4) write one
/// per flush.
const MAX_FINAL_BLOCKS: usize = 256;

/// A decompressor. One per worker serves any number of connections.
///
/// It keeps no state of a connection between messages; context takeover keeps its state in a
/// [`History`]. It allocates on first use: about 46 KiB, plus an output buffer of at most 64 KiB
/// between messages.
#[derive(Debug, Default)]
pub struct Inflater {
    stream: Option<Decompress>,
    output: Vec<u8>,
    window_bytes: u64,
}

/// The sliding window of one connection with context takeover: the last decompressed bytes, to
/// which the client's next messages may refer.
///
/// Needed only if [`Params::client_no_context_takeover`](super::Params::client_no_context_takeover)
/// is `false`. It is empty before the first compressed message and holds at most 32 KiB.
#[derive(Debug, Clone, Default)]
pub struct History(Vec<u8>);

impl Inflater {
    /// Creates a decompressor without allocating.
    #[must_use]
    pub const fn new() -> Self {
        Self { stream: None, output: Vec::new(), window_bytes: 0 }
    }

    /// Decompresses the payload of an [`Extended::Encoded`](crate::frame::Extended::Encoded) and
    /// checks that text is UTF-8. Returns [`Incoming::Text`] or [`Incoming::Binary`].
    ///
    /// `history` is the connection's history if its client uses context takeover. Decompression
    /// stops one byte over `max_message_bytes`, so a decompression bomb costs no more memory than
    /// the largest allowed message.
    ///
    /// # Errors
    ///
    /// [`FrameError::MessageTooBig`], [`FrameError::InvalidUtf8`], or
    /// [`FrameError::MalformedDeflate`] (also if the message ends inside a block or has more than
    /// 256 final blocks). The connection must be closed. The inflater stays usable.
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

    /// Returns the number of window bytes copied so far into streams that start within a message or
    /// refer to an earlier one. This work is not proportional to the input or the output.
    #[must_use]
    pub fn window_bytes(&self) -> u64 {
        self.window_bytes
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
            empty => empty.insert(Decompress::new(false)),
        };
        let mut inflation = MessageInflation {
            stream,
            output: &mut self.output,
            window_bytes: &mut self.window_bytes,
            max_message_bytes,
            earlier: history.as_deref().map(|h| &h.0[..]),
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

    /// Returns the heap bytes in use, at most 32 KiB.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        self.0.capacity()
    }

    fn push(&mut self, output: &[u8]) {
        let new = last_bytes(output, WINDOW_BYTES);
        let surplus = (self.0.len() + new.len()).saturating_sub(WINDOW_BYTES);
        self.0.drain(..surplus);
        let needed = self.0.len() + new.len();
        if needed > self.0.capacity() {
            let grown = self.0.capacity().saturating_mul(2).clamp(needed, WINDOW_BYTES.max(needed));
            self.0.reserve_exact(grown - self.0.len());
        }
        self.0.extend_from_slice(new);
    }
}

/// The decompression of one message.
struct MessageInflation<'a> {
    stream: &'a mut Decompress,
    output: &'a mut Vec<u8>,
    window_bytes: &'a mut u64,
    max_message_bytes: usize,
    /// The end of the connection's earlier messages, with context takeover.
    earlier: Option<&'a [u8]>,
}

/// The reason why the stream stopped.
enum StopReason {
    /// All input is used.
    InputUsed,
    /// A final block ended with `unread` bytes of input left.
    FinalBlock { unread: usize },
}

impl MessageInflation<'_> {
    fn inflate_message(&mut self, payload: &[u8]) -> Result<(), FrameError> {
        // An empty message is one byte, an empty block. Some senders omit even that.
        if payload.is_empty() {
            return Ok(());
        }
        self.set_window()?;
        let mut rest = payload;
        for _ in 0..=MAX_FINAL_BLOCKS {
            match self.feed(rest)? {
                StopReason::InputUsed => {
                    let len = self.output.len();
                    return match self.feed(&MESSAGE_TAIL)? {
                        // Output from the tail means that a block had not ended and consumed it.
                        StopReason::FinalBlock { unread: 0 } if self.output.len() == len => Ok(()),
                        _ => Err(FrameError::MalformedDeflate),
                    };
                }
                // After a final block the sender owes the byte that the tail completes to an empty
                // block. Some senders forget it, and the message is complete without it.
                StopReason::FinalBlock { unread: 0 } => return Ok(()),
                StopReason::FinalBlock { unread } => {
                    rest = last_bytes(rest, unread);
                    self.stream.reset(false);
                    self.set_window()?;
                }
            }
        }
        Err(FrameError::MalformedDeflate)
    }

    /// Loads the window of a restarted stream: the message so far, preceded by earlier messages.
    fn set_window(&mut self) -> Result<(), FrameError> {
        let own = last_bytes(self.output, WINDOW_BYTES);
        let before = last_bytes(self.earlier.unwrap_or_default(), WINDOW_BYTES - own.len());
        for part in [before, own] {
            if !part.is_empty() {
                *self.window_bytes += part.len() as u64;
                self.stream.set_dictionary(part).map_err(|_| FrameError::MalformedDeflate)?;
            }
        }
        Ok(())
    }

    fn feed(&mut self, mut input: &[u8]) -> Result<StopReason, FrameError> {
        loop {
            if self.output.len() == self.output.capacity() {
                self.grow()?;
            }
            let before = self.stream.total_in();
            let status = self.stream.decompress_vec(input, self.output, FlushDecompress::None);
            let status = status.map_err(|_| FrameError::MalformedDeflate)?;
            // At most the length of `input`.
            let taken = (self.stream.total_in() - before) as usize;
            input = input.get(taken..).unwrap_or_default();
            if self.output.len() > self.max_message_bytes {
                return Err(self.too_big());
            }
            if status == Status::StreamEnd {
                return Ok(StopReason::FinalBlock { unread: input.len() });
            }
            // Spare output capacity means that the input has no more output.
            if self.output.len() < self.output.capacity() {
                return if input.is_empty() {
                    Ok(StopReason::InputUsed)
                } else {
                    Err(FrameError::MalformedDeflate)
                };
            }
        }
    }

    /// Doubles the output buffer, up to one byte over the limit, which suffices to detect an
    /// excess.
    fn grow(&mut self) -> Result<(), FrameError> {
        let (len, max_capacity) = (self.output.len(), self.max_message_bytes.saturating_add(1));
        if len >= max_capacity {
            return Err(self.too_big());
        }
        let grown = len.saturating_mul(2).max(INITIAL_OUTPUT_BYTES).min(max_capacity);
        self.output.reserve_exact(grown - len);
        Ok(())
    }

    fn too_big(&self) -> FrameError {
        FrameError::MessageTooBig { limit: self.max_message_bytes }
    }
}

/// Returns the last `len` bytes, or all if there are fewer.
fn last_bytes(bytes: &[u8], len: usize) -> &[u8] {
    bytes.get(bytes.len().saturating_sub(len)..).unwrap_or(bytes)
}
