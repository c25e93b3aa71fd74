//! RFC 6455 frames: an incremental decoder for what clients send, and shared frames for what the server sends.
use std::sync::Arc;

/// A complete server frame (header and payload), made once and shared by all its receivers.
/// Eight bytes to hold, one reference count to clone.
#[derive(Debug, Clone)]
pub struct Frame(Arc<FrameInner>);
#[derive(Debug)]
struct FrameInner { bytes: Arc<[u8]> } // room for a deflated form made at first need
impl Frame {
    /// One unfragmented, unmasked text frame.
    pub fn text(payload: &str) -> Self { let _ = payload; unimplemented!() }
    /// One unfragmented, unmasked binary frame.
    pub fn binary(payload: &[u8]) -> Self { let _ = payload; unimplemented!() }
    /// From bytes that are already one or more complete frames.
    pub fn from_encoded(bytes: &[u8]) -> Self { Self(Arc::new(FrameInner { bytes: Arc::from(bytes) })) }
    pub fn as_bytes(&self) -> &[u8] { &self.0.bytes }
    pub fn len(&self) -> usize { self.0.bytes.len() }
    pub fn is_empty(&self) -> bool { self.0.bytes.is_empty() }
    /// The same bytes behind a reference count of their own, so that another thread's
    /// clones don't contend for this one's cache line.
    pub fn fork(&self) -> Self { Self(Arc::new(FrameInner { bytes: Arc::clone(&self.0.bytes) })) }
}

/// Appends a server frame to `out`.
pub fn write_text(out: &mut Vec<u8>, payload: &str) { let _ = (out, payload); unimplemented!() }
pub fn write_binary(out: &mut Vec<u8>, payload: &[u8]) { let _ = (out, payload); unimplemented!() }
pub fn write_ping(out: &mut Vec<u8>, payload: &[u8]) { let _ = (out, payload); unimplemented!() }
/// Payload over 125 bytes is a caller's fault and is cut.
pub fn write_pong(out: &mut Vec<u8>, payload: &[u8]) { let _ = (out, payload); unimplemented!() }
/// `reason` is cut at a character boundary to 123 bytes. `None`: an empty close frame (answer to an empty one).
pub fn write_close(out: &mut Vec<u8>, code: Option<u16>, reason: &str) { let _ = (out, code, reason); unimplemented!() }

/// What one connection may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FrameLimits {
    /// All fragments of a message together. Default 65536.
    pub max_message_bytes: usize,
    /// Fragments of a message. Default 65536... chosen with the memory bound in mind: fragments are joined as they come.
    pub max_fragments: u32,
}
impl Default for FrameLimits { fn default() -> Self { Self { max_message_bytes: 65536, max_fragments: 65536 } } }

/// One thing that a peer said, borrowed from the input or from the decoder.
#[derive(Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
    Ping(&'a [u8]),
    Pong(&'a [u8]),
    /// `None`: a close frame without a body. The code was checked (RFC 6455 section 7.4).
    Close(Option<(u16, &'a str)>),
}

/// The decoder's state for one connection. Idle (between messages) it holds no heap memory and is one or two words.
#[derive(Debug, Default)]
pub struct FrameDecoder { partial: Option<Box<()>> }
impl FrameDecoder {
    pub const fn new() -> Self { Self { partial: None } }
    /// Decodes what comes next in `input[*pos..]`, unmasking in place, and moves `pos` behind it.
    ///
    /// `Ok(None)`: `input` is used up; what is incomplete was copied into the decoder.
    /// The caller drops or overwrites `input` afterwards and comes back with the next read.
    /// After an error, or after [`Incoming::Close`], the connection's input must not be decoded any further.
    /// A buffer that the decoder held for the last message is released at the next call.
    pub fn next<'a>(&'a mut self, limits: &FrameLimits, input: &'a mut [u8], pos: &mut usize) -> Result<Option<Incoming<'a>>, FrameError> {
        let _ = (limits, input, pos); unimplemented!()
    }
    /// Whether a message or frame is under way.
    pub fn is_mid_message(&self) -> bool { self.partial.is_some() }
    /// Heap bytes held for an incomplete message.
    pub fn buffered_bytes(&self) -> usize { 0 }
}

/// What a peer did against RFC 6455 or over a limit. The connection must be closed with [`Self::close_reason`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    #[error("frame is not masked")] Unmasked,
    #[error("text is not UTF-8")] InvalidUtf8,
    #[error("message is over {limit} bytes")] MessageTooBig { limit: usize },
}
impl FrameError {
    pub fn close_reason(self) -> crate::CloseReason { unimplemented!() }
}
