//! Compression on one worker. All of its connections share the coders, so an idle one holds none.

use std::collections::HashMap;

use deeperhub_protocol::deflate::{self, Deflater, History, Inflater, Params};
use deeperhub_protocol::frame::{Extended, Frame, FrameDecoder, FrameError, FrameLimits, Incoming};

use crate::round::{COMPRESSED_BYTE_COST, COPIED_BYTES};

/// Compressor and decompressor of a worker. Allocates nothing until a connection needs it.
#[derive(Debug)]
pub(crate) struct Coders {
    pub(crate) outgoing: Compression,
    pub(crate) incoming: Decompression,
}

impl Coders {
    pub(crate) fn new(config: &deflate::Config) -> Self {
        Self {
            outgoing: Compression {
                deflater: Deflater::new(config),
                runs: 0,
                charged: 0,
                sizes: Sizes::default(),
            },
            incoming: Decompression {
                inflater: Inflater::new(),
                histories: HashMap::new(),
                sizes: Sizes::default(),
                inflated_bytes: 0,
                charged_window_bytes: 0,
            },
        }
    }
}

/// Input and output bytes of a coder since the last metrics update.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sizes {
    pub(crate) input: u64,
    pub(crate) output: u64,
}

/// Compression of frames for clients that negotiated it.
#[derive(Debug)]
pub(crate) struct Compression {
    deflater: Deflater,
    /// Part of [`Deflater::runs`] that was counted.
    runs: u64,
    /// Part of [`Deflater::input_bytes`] whose cost was taken.
    charged: u64,
    /// Sizes of compressed frames, per receiver.
    pub(crate) sizes: Sizes,
}

impl Compression {
    /// Returns the form of a shared frame for a client; compresses it at first need.
    pub(crate) fn shared<'f>(&mut self, params: Params, frame: &'f Frame) -> &'f Frame {
        let form = frame.for_receiver(&mut self.deflater, params);
        if !std::ptr::eq(form, frame) {
            self.sizes.input += frame.len() as u64;
            self.sizes.output += form.len() as u64;
        }
        form
    }

    /// Compresses a connection's own replies, `arena[start..]`, in place.
    pub(crate) fn replies(&mut self, params: Params, arena: &mut Vec<u8>, start: usize) {
        let saved = deflate::compress_frames(&mut self.deflater, params, arena, start);
        if saved > 0 {
            let output = arena.len() - start;
            self.sizes.input += (output + saved) as u64;
            self.sizes.output += output as u64;
        }
    }

    /// Returns the cost of compression since the last call, in byte cost.
    pub(crate) fn take_cost(&mut self) -> usize {
        let input = self.deflater.input_bytes();
        let new = input - std::mem::replace(&mut self.charged, input);
        usize::try_from(new).unwrap_or(usize::MAX).saturating_mul(COMPRESSED_BYTE_COST)
    }

    /// Returns the number of messages compressed since the last call.
    pub(crate) fn take_message_count(&mut self) -> u64 {
        let runs = self.deflater.message_count();
        runs - std::mem::replace(&mut self.runs, runs)
    }
}

/// Decompression of messages from clients that negotiated it.
#[derive(Debug)]
pub(crate) struct Decompression {
    inflater: Inflater,
    /// Histories of clients that use context takeover, from their first compressed message on, at most
    /// 32 KiB each.
    histories: HashMap<u32, History>,
    /// Sizes of compressed messages received.
    pub(crate) sizes: Sizes,
    /// Decompressed bytes since the cost was last taken.
    inflated_bytes: usize,
    /// Part of [`Inflater::copied_window_bytes`] whose cost was taken.
    charged_window_bytes: u64,
}

impl Decompression {
    /// Decodes like [`FrameDecoder::next`], for a connection that negotiated `params`. The message limit
    /// also applies during decompression.
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

    /// Returns the cost of decompression since the last call, in byte cost.
    pub(crate) fn take_cost(&mut self) -> usize {
        let charged_window_bytes = self.inflater.copied_window_bytes();
        let new =
            charged_window_bytes - std::mem::replace(&mut self.charged_window_bytes, charged_window_bytes);
        std::mem::take(&mut self.inflated_bytes) + usize::try_from(new).unwrap_or(usize::MAX) / COPIED_BYTES
    }

    /// Returns the heap bytes of a connection's history.
    pub(crate) fn history_bytes(&self, key: u32, params: Option<Params>) -> usize {
        if params.is_none_or(|params| params.client_no_context_takeover()) {
            return 0;
        }
        self.histories.get(&key).map_or(0, History::heap_bytes)
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

/// Decodes like [`FrameDecoder::next_extended`] but decompresses nothing. For closing connections,
/// whose messages are discarded.
pub(crate) fn skip<'a>(
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
