//! Compressed messages of clients.

use flate2::{Decompress, FlushDecompress, Status};

use crate::frame::{FrameError, Incoming, MessageKind};

/// DEFLATE's largest window: how far back a reference can reach.
const WINDOW_BYTES: usize = 32 * 1024;

/// What a sender takes off the end of a message (RFC 7692 section 7.2.1), and behind it an empty final block: the
/// message is whole exactly if the stream ends there.
const MESSAGE_TAIL: [u8; 9] = [0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff];

/// Room for the first output.
const INITIAL_OUTPUT_BYTES: usize = 4096;

/// Output memory that is kept between messages.
const RETAINED_OUTPUT_BYTES: usize = 64 * 1024;

/// Final blocks that a message may have. Each starts the stream again and brings the window over, up to 32 KiB for
/// two bytes of input; senders that use them at all (RFC 7692 section 7.2.3.4) make one for each flush.
const MAX_FINAL_BLOCKS: usize = 256;

/// Decompresses messages: one for each worker, for any number of connections.
///
/// It keeps nothing of a connection from one message to the next; what a connection with context takeover needs is in
/// its [`History`]. Empty until first used, then about 46 KiB, and an output buffer of at most 64 KiB between
/// messages.
#[derive(Debug, Default)]
pub struct Inflater {
    stream: Option<Decompress>,
    output: Vec<u8>,
    window_bytes: u64,
}

/// The end of what one connection's compressed messages held, for a client that refers to its earlier messages.
///
/// Needed only where [`Params::client_no_context_takeover`](super::Params::client_no_context_takeover) is false.
/// Empty until the first compressed message, then as many bytes as came out, up to 32 KiB.
#[derive(Debug, Clone, Default)]
pub struct History(Vec<u8>);

impl Inflater {
    /// Without memory yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { stream: None, output: Vec::new(), window_bytes: 0 }
    }

    /// Decompresses a message that [`Extended::Encoded`](crate::frame::Extended::Encoded) gave, and checks that text is
    /// UTF-8. Returns [`Incoming::Text`] or [`Incoming::Binary`].
    ///
    /// `history` is that of the connection, if its client uses context takeover. More than `max_message_bytes` are
    /// never decompressed but for one byte, so that a message that would be larger costs no more memory than one that
    /// is as large as allowed.
    ///
    /// # Errors
    ///
    /// [`FrameError::MessageTooBig`], [`FrameError::MalformedDeflate`] (also for what ends inside of a block, or has
    /// more than 256 final blocks), [`FrameError::InvalidUtf8`]. The connection must be closed; the inflater can be
    /// used on.
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
    /// Of a connection that has sent no compressed message yet; takes no memory.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Heap bytes that it holds now, at most 32 KiB.
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

/// One message on its way.
struct MessageInflation<'a> {
    stream: &'a mut Decompress,
    output: &'a mut Vec<u8>,
    window_bytes: &'a mut u64,
    max_message_bytes: usize,
    /// What the connection's earlier messages held.
    earlier: Option<&'a [u8]>,
}

/// Where a stream stopped.
enum StopReason {
    /// All input is used.
    InputUsed,
    /// A final block has ended; so much of the input is left.
    FinalBlock { unread: usize },
}

impl MessageInflation<'_> {
    fn inflate_message(&mut self, payload: &[u8]) -> Result<(), FrameError> {
        // An empty message is the one byte of a block without content. Senders exist that leave out that too.
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
                        // Anything that came out of the tail was taken into a block that had not ended.
                        StopReason::FinalBlock { unread: 0 } if self.output.len() == len => Ok(()),
                        _ => Err(FrameError::MalformedDeflate),
                    };
                }
                // Behind a final block a sender has yet to put the byte that the tail completes to an empty block;
                // one that has forgotten it has sent all of its message.
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

    /// Gives a stream that starts what it may refer to: the message so far, and what was before it.
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
            // No more than `input` was long.
            let taken = (self.stream.total_in() - before) as usize;
            input = input.get(taken..).unwrap_or_default();
            if self.output.len() > self.max_message_bytes {
                return Err(self.too_big());
            }
            if status == Status::StreamEnd {
                return Ok(StopReason::FinalBlock { unread: input.len() });
            }
            // With room to spare in the output, there was nothing more to be had from the input.
            if self.output.len() < self.output.capacity() {
                return if input.is_empty() {
                    Ok(StopReason::InputUsed)
                } else {
                    Err(FrameError::MalformedDeflate)
                };
            }
        }
    }

    /// Twice the room, but not more than one byte over what is allowed, which is enough to see that it is too much.
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

/// The last `len` bytes, or all.
fn last_bytes(bytes: &[u8], len: usize) -> &[u8] {
    bytes.get(bytes.len().saturating_sub(len)..).unwrap_or(bytes)
}
