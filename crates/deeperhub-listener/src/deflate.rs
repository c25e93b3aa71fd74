//! Message compression on one worker. All of its connections share one codec, so an idle connection
//! needs no memory for compression.

use std::collections::HashMap;

use deeperhub_protocol::deflate::{self, Deflater, History, Inflater, Params};
use deeperhub_protocol::frame::{Extended, Frame, FrameDecoder, FrameError, FrameLimits, Incoming};

use crate::round::{COMPRESSED_BYTE_COST, COPIED_BYTES_PER_COST};

/// Compressor and decompressor of a worker. They allocate nothing until a connection uses
/// compression.
#[derive(Debug)]
pub(crate) struct DeflateCodec {
    pub(crate) compressor: Compressor,
    pub(crate) decompressor: Decompressor,
}

impl DeflateCodec {
    pub(crate) fn new(config: &deflate::Config) -> Self {
        Self {
            compressor: Compressor {
                deflater: Deflater::new(config),
                counted_messages: 0,
                charged_input_bytes: 0,
                sizes: Sizes::default(),
            },
            decompressor: Decompressor {
                inflater: Inflater::new(),
                histories: HashMap::new(),
                sizes: Sizes::default(),
                inflated_bytes: 0,
                charged_window_bytes: 0,
            },
        }
    }
}

/// Input and output bytes of compression or decompression since the last metrics update.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sizes {
    pub(crate) input: u64,
    pub(crate) output: u64,
}

/// Compresses frames for clients that negotiated compression.
#[derive(Debug)]
pub(crate) struct Compressor {
    deflater: Deflater,
    /// Value of [`Deflater::message_count`] at the last call of `take_message_count`.
    counted_messages: u64,
    /// Value of [`Deflater::input_bytes`] at the last call of `take_cost`.
    charged_input_bytes: u64,
    /// Sizes of the frames sent compressed, counted for each receiver.
    pub(crate) sizes: Sizes,
}

impl Compressor {
    /// Returns a shared frame in the form for clients with `params`. Compresses the frame if no
    /// client with these parameters got it before.
    pub(crate) fn shared<'f>(&mut self, params: Params, frame: &'f Frame) -> &'f Frame {
        let form = frame.for_receiver(&mut self.deflater, params);
        if !std::ptr::eq(form, frame) {
            self.sizes.input += frame.len() as u64;
            self.sizes.output += form.len() as u64;
        }
        form
    }

    /// Compresses the replies to one connection in place. They are the bytes of `arena` from
    /// `start`.
    pub(crate) fn replies(&mut self, params: Params, arena: &mut Vec<u8>, start: usize) {
        let saved_bytes = deflate::compress_frames(&mut self.deflater, params, arena, start);
        if saved_bytes > 0 {
            let output = arena.len() - start;
            self.sizes.input += (output + saved_bytes) as u64;
            self.sizes.output += output as u64;
        }
    }

    /// Returns the cost of compression since the last call, in [byte cost](crate::round).
    pub(crate) fn take_cost(&mut self) -> usize {
        let input_bytes = self.deflater.input_bytes();
        let new_bytes = input_bytes - std::mem::replace(&mut self.charged_input_bytes, input_bytes);
        usize::try_from(new_bytes).unwrap_or(usize::MAX).saturating_mul(COMPRESSED_BYTE_COST)
    }

    /// Returns the number of messages compressed since the last call.
    pub(crate) fn take_message_count(&mut self) -> u64 {
        let messages = self.deflater.message_count();
        messages - std::mem::replace(&mut self.counted_messages, messages)
    }
}

/// Decompresses messages from clients that negotiated compression.
#[derive(Debug)]
pub(crate) struct Decompressor {
    inflater: Inflater,
    /// Last decompressed bytes of clients that use context takeover, at most 32 KiB each. A client
    /// has an entry from its first compressed message on.
    histories: HashMap<u32, History>,
    /// Sizes of compressed messages received.
    pub(crate) sizes: Sizes,
    /// Decompressed bytes since the last call of `take_cost`.
    inflated_bytes: usize,
    /// Value of [`Inflater::copied_window_bytes`] at the last call of `take_cost`.
    charged_window_bytes: u64,
}

impl Decompressor {
    /// Decodes like [`FrameDecoder::next`], for a connection that negotiated `params`.
    /// Decompression stops at the message limit.
    pub(crate) fn next<'a>(
        &'a mut self,
        key: u32,
        params: Params,
        decoder: &'a mut FrameDecoder,
        limits: &FrameLimits,
        input: &'a mut [u8],
        pos: &mut usize,
    ) -> Result<Option<Incoming<'a>>, FrameError> {
        let (kind, payload) = match decoder.next_extended(limits, input, pos)? {
            None => return Ok(None),
            Some(Extended::Plain(incoming)) => return Ok(Some(incoming)),
            Some(Extended::Encoded { kind, payload }) => (kind, payload),
        };
        let history = (!params.client_no_context_takeover()).then(|| self.histories.entry(key).or_default());
        let message = self.inflater.decode(history, limits.max_message_bytes, kind, payload)?;
        self.sizes.input += payload.len() as u64;
        let len = match message {
            Incoming::Text(text) => text.len(),
            Incoming::Binary(bytes) => bytes.len(),
            _ => 0,
        };
        self.sizes.output += len as u64;
        self.inflated_bytes += len;
        Ok(Some(message))
    }

    /// Returns the cost of decompression since the last call, in [byte cost](crate::round).
    pub(crate) fn take_cost(&mut self) -> usize {
        let window_bytes = self.inflater.copied_window_bytes();
        let new_bytes = window_bytes - std::mem::replace(&mut self.charged_window_bytes, window_bytes);
        let copy_cost = usize::try_from(new_bytes).unwrap_or(usize::MAX) / COPIED_BYTES_PER_COST;
        std::mem::take(&mut self.inflated_bytes) + copy_cost
    }

    /// Returns the heap bytes of a connection's history.
    pub(crate) fn history_bytes(&self, key: u32, params: Option<Params>) -> usize {
        if params.is_none_or(|params| params.client_no_context_takeover()) {
            return 0;
        }
        self.histories.get(&key).map_or(0, History::heap_bytes)
    }

    /// Returns the number of connections that have a history.
    #[cfg(test)]
    pub(crate) fn history_count(&self) -> usize {
        self.histories.len()
    }

    /// Drops the history of a connection.
    pub(crate) fn remove_history(&mut self, key: u32, params: Option<Params>) {
        if params.is_some_and(|params| !params.client_no_context_takeover()) {
            self.histories.remove(&key);
            if self.histories.is_empty() {
                self.histories.shrink_to_fit();
            }
        }
    }
}

/// Decodes like [`FrameDecoder::next`], but leaves compressed messages compressed. Used for closing
/// connections, whose messages are discarded.
pub(crate) fn decode_without_inflating<'a>(
    params: Option<Params>,
    decoder: &'a mut FrameDecoder,
    limits: &FrameLimits,
    input: &'a mut [u8],
    pos: &mut usize,
) -> Result<Option<Extended<'a>>, FrameError> {
    match params {
        Some(_) => decoder.next_extended(limits, input, pos),
        None => decoder.next(limits, input, pos).map(|incoming| incoming.map(Extended::Plain)),
    }
}
