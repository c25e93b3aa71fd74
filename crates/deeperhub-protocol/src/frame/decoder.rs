//! The incremental decoder for client frames.

use std::ops::Range;

use super::assembly::{Assembly, Body, Completed};
use super::header::{Header, Opcode};
use super::mask::unmask;
use super::{Extended, FrameError, Incoming, MessageKind};

/// Limits on the messages of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FrameLimits {
    /// Maximum length of a message in bytes, summed over its fragments. Default 65536.
    pub max_message_bytes: usize,
    /// Maximum number of fragments of a message. Default 65536. Limits CPU use: it stops a message
    /// of endless empty fragments. The decoder joins fragments as they arrive, so their number
    /// costs no memory.
    pub max_fragments: u32,
}

impl FrameLimits {
    /// Creates the default limits with a different `max_message_bytes`.
    #[must_use]
    pub const fn new(max_message_bytes: usize) -> Self {
        Self { max_message_bytes, max_fragments: 65_536 }
    }

    /// Returns the maximum length of a message on the wire. A message with RSV1 can be slightly
    /// longer than its decoded form: DEFLATE stores incompressible data in blocks with five bytes
    /// of overhead.
    fn max_wire_bytes(&self, rsv1: bool) -> usize {
        if rsv1 {
            self.max_message_bytes.saturating_add(self.max_message_bytes / 1024 + 64)
        } else {
            self.max_message_bytes
        }
    }
}

impl Default for FrameLimits {
    fn default() -> Self {
        Self::new(65_536)
    }
}

/// The frame decoder of one connection. Between messages, it is one pointer without heap memory.
///
/// The decoder implements the server side: frames must be masked. If the input holds a whole
/// message, the decoder unmasks it in place and borrows it from the input. It copies an incomplete
/// frame or message to a buffer. The buffer exceeds neither twice the received bytes nor the
/// maximum length of a message on the wire.
///
/// Text is validated as it arrives: an error is reported at the first invalid byte, even inside a
/// frame.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    partial: Option<Box<Assembly>>,
}

/// The location of a complete message or control frame.
enum Decoded {
    /// The unmasked payload of a whole message or control frame is in the input.
    InInput { opcode: Opcode, rsv1: bool, payload: Range<usize> },
    /// The message or control frame is in the [`Assembly`].
    Assembled(Completed),
}

impl FrameDecoder {
    /// Creates a decoder for a new connection.
    #[must_use]
    pub const fn new() -> Self {
        Self { partial: None }
    }

    /// Decodes the next message or control frame in `input[*pos..]`, unmasking in place, and
    /// advances `pos` past it.
    ///
    /// `Ok(None)` means that the decoder consumed all of `input` and copied an incomplete frame at
    /// its end. The caller may then reuse `input`, and calls again after the next read. The next
    /// call releases the buffer of the last message.
    ///
    /// # Errors
    ///
    /// Returns an error for a violation of RFC 6455 or of `limits`. After an error, or after
    /// [`Incoming::Close`], the caller must not decode further input of the connection.
    #[inline]
    pub fn next<'a>(
        &'a mut self,
        limits: &FrameLimits,
        input: &'a mut [u8],
        pos: &mut usize,
    ) -> Result<Option<Incoming<'a>>, FrameError> {
        match self.decode::<false>(limits, input, pos)? {
            Some(Extended::Plain(incoming)) => Ok(Some(incoming)),
            // Without `ALLOW_RSV1` a header with RSV1 is an error.
            Some(Extended::Encoded { .. }) => Err(FrameError::ReservedBits),
            None => Ok(None),
        }
    }

    /// Decodes like [`Self::next`], for a connection with an extension that marks messages with
    /// RSV1. The caller decodes the marked messages and applies the message limit to their decoded
    /// size.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Self::next`], but allows RSV1 on the first frame of a message. RSV1
    /// is an error on continuations and control frames.
    pub fn next_extended<'a>(
        &'a mut self,
        limits: &FrameLimits,
        input: &'a mut [u8],
        pos: &mut usize,
    ) -> Result<Option<Extended<'a>>, FrameError> {
        self.decode::<true>(limits, input, pos)
    }

    /// Returns `true` if a frame or message is incomplete.
    #[inline]
    #[must_use]
    pub fn is_mid_message(&self) -> bool {
        self.partial.as_ref().is_some_and(|partial| partial.is_mid_message())
    }

    /// Returns the number of incrementally decoded frames that began since the last call, and
    /// resets it. These are the fragments of messages, and frames that arrived in several reads. A
    /// client can split a message into thousands of empty fragments, and each of them costs CPU
    /// time.
    ///
    /// Call this after each call of [`Self::next`]: releasing a message can discard the count.
    #[inline]
    pub fn take_frame_count(&mut self) -> u32 {
        self.partial.as_mut().map_or(0, |partial| partial.take_frame_count())
    }

    /// Returns the heap bytes of the decoder. It holds an incomplete message until its end, and an
    /// assembled message until the next call.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.heap_bytes())
    }

    #[inline]
    fn decode<'a, const ALLOW_RSV1: bool>(
        &'a mut self,
        limits: &FrameLimits,
        input: &'a mut [u8],
        pos: &mut usize,
    ) -> Result<Option<Extended<'a>>, FrameError> {
        let decoded = match self.decode_whole_frame::<ALLOW_RSV1>(limits, input, pos)? {
            Some(decoded) => decoded,
            None => match self.decode_incrementally::<ALLOW_RSV1>(limits, input, pos)? {
                Some(decoded) => decoded,
                None => return Ok(None),
            },
        };
        let incoming = match decoded {
            Decoded::InInput { opcode, rsv1, payload } => {
                let payload = &input[payload];
                if rsv1 {
                    return Ok(Some(Extended::Encoded { kind: MessageKind::of(opcode), payload }));
                }
                match opcode {
                    Opcode::Text => {
                        let text = simdutf8::basic::from_utf8(payload);
                        Incoming::Text(text.map_err(|_| FrameError::InvalidUtf8)?)
                    }
                    Opcode::Binary => Incoming::Binary(payload),
                    opcode => Incoming::control(opcode, payload)?,
                }
            }
            Decoded::Assembled(completed) => return self.lend_assembled(completed),
        };
        Ok(Some(Extended::Plain(incoming)))
    }

    /// Handles the common case: no frame or message is incomplete, and `input` holds a whole
    /// unfragmented message. In other cases, changes nothing and returns `None`; the caller then
    /// calls [`Self::decode_incrementally`].
    #[inline]
    fn decode_whole_frame<const ALLOW_RSV1: bool>(
        &self,
        limits: &FrameLimits,
        input: &mut [u8],
        pos: &mut usize,
    ) -> Result<Option<Decoded>, FrameError> {
        if self.partial.is_some() {
            return Ok(None);
        }
        let Some(rest) = input.get_mut(*pos..) else { return Ok(None) };
        let Some(header) = Header::parse::<ALLOW_RSV1>(rest)? else { return Ok(None) };
        let Header { opcode, fin: true, rsv1, mask, len, payload_len } = header else { return Ok(None) };
        if !matches!(opcode, Opcode::Text | Opcode::Binary)
            || payload_len > limits.max_wire_bytes(rsv1) as u64
            || payload_len > (rest.len() - len) as u64
        {
            return Ok(None);
        }
        let payload_len = payload_len as usize;
        unmask(&mut rest[len..len + payload_len], mask);
        let start = *pos + len;
        *pos = start + payload_len;
        Ok(Some(Decoded::InInput { opcode, rsv1, payload: start..*pos }))
    }

    /// Handles all other cases, up to the next complete message or control frame.
    #[inline(never)]
    fn decode_incrementally<const ALLOW_RSV1: bool>(
        &mut self,
        limits: &FrameLimits,
        input: &mut [u8],
        pos: &mut usize,
    ) -> Result<Option<Decoded>, FrameError> {
        if let Some(partial) = &mut self.partial {
            partial.release();
        }
        self.drop_if_idle();
        loop {
            let Some(rest) = input.get_mut(*pos..) else { return Ok(None) };
            if let Some(partial) = self.partial.as_mut().filter(|partial| partial.has_open_frame()) {
                let (read_len, completed) = partial.read_payload(rest)?;
                *pos += read_len;
                if let Some(completed) = completed {
                    return Ok(Some(Decoded::Assembled(completed)));
                }
                if partial.has_open_frame() {
                    return Ok(None);
                }
                continue;
            }
            if rest.is_empty() {
                return Ok(None);
            }
            let parsed = match &mut self.partial {
                Some(partial) => partial.header_mut().parse::<ALLOW_RSV1>(rest)?,
                None => Header::parse::<ALLOW_RSV1>(rest)?.map(|header| (header, header.len)),
            };
            let Some((header, header_len)) = parsed else {
                if self.partial.is_none() {
                    self.assembly_mut().header_mut().parse::<ALLOW_RSV1>(rest)?;
                }
                *pos = input.len();
                return Ok(None);
            };
            let payload_len = self.check_frame(&header, limits)?;
            let (opcode, rsv1) = (header.opcode, header.rsv1);
            *pos += header_len;
            let is_unfragmented = opcode.is_control() || (header.fin && opcode != Opcode::Continuation);
            if is_unfragmented && let Some(payload) = rest[header_len..].get_mut(..payload_len) {
                unmask(payload, header.mask);
                let start = *pos;
                *pos += payload_len;
                return Ok(Some(Decoded::InInput { opcode, rsv1, payload: start..*pos }));
            }
            self.assembly_mut().open_frame(&header, payload_len, limits);
        }
    }

    /// Checks the order of frames (RFC 6455 section 5.4) and the limits before any payload is read.
    /// Returns the payload's length.
    fn check_frame(&self, header: &Header, limits: &FrameLimits) -> Result<usize, FrameError> {
        let too_big = FrameError::MessageTooBig { limit: limits.max_message_bytes };
        let payload_len = usize::try_from(header.payload_len).map_err(|_| too_big)?;
        let message = self.partial.as_ref().and_then(|partial| partial.message());
        let (rsv1, received, fragments) = match (header.opcode, message) {
            (opcode, _) if opcode.is_control() => return Ok(payload_len),
            (Opcode::Continuation, None) => return Err(FrameError::UnexpectedContinuation),
            (Opcode::Continuation, Some(message)) => {
                (message.is_encoded(), message.received, message.fragments)
            }
            (_, Some(_)) => return Err(FrameError::UnfinishedMessage),
            (_, None) => (header.rsv1, 0, 0),
        };
        if received.checked_add(payload_len).is_none_or(|sum| sum > limits.max_wire_bytes(rsv1)) {
            return Err(too_big);
        }
        if fragments >= limits.max_fragments {
            return Err(FrameError::TooManyFragments { limit: limits.max_fragments });
        }
        Ok(payload_len)
    }

    fn assembly_mut(&mut self) -> &mut Assembly {
        self.partial.get_or_insert_default()
    }

    /// Frees the assembly if it is idle.
    fn drop_if_idle(&mut self) {
        if self.partial.as_ref().is_some_and(|partial| partial.is_idle()) {
            self.partial = None;
        }
    }

    /// Returns the completed item, borrowed from the assembly.
    fn lend_assembled(&self, completed: Completed) -> Result<Option<Extended<'_>>, FrameError> {
        let Some(partial) = &self.partial else { return Ok(None) };
        let incoming = match completed {
            Completed::Control(opcode) => Incoming::control(opcode, partial.control())?,
            Completed::Message => {
                let Some(message) = partial.message() else { return Ok(None) };
                match &message.body {
                    Body::Text(text) => Incoming::Text(text.finish()?),
                    Body::Binary(bytes) => Incoming::Binary(bytes),
                    Body::Encoded(payload) => {
                        return Ok(Some(Extended::Encoded { kind: message.kind, payload }));
                    }
                }
            }
        };
        Ok(Some(Extended::Plain(incoming)))
    }
}
