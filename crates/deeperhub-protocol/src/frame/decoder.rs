//! The incremental decoder of a client's frames.

use std::ops::Range;

use super::assembly::{Assembly, Body, Completed};
use super::header::{Header, Opcode};
use super::mask::unmask;
use super::{Extended, FrameError, Incoming, MessageKind};

/// What one connection may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct FrameLimits {
    /// Bytes of a message, all its fragments together. Default 65536.
    pub max_message_bytes: usize,
    /// Fragments of a message. Default 65536: fragments are joined as they come, so that they cost no memory, and
    /// this only ends a message that never does.
    pub max_fragments: u32,
}

impl FrameLimits {
    /// The defaults with another limit on the bytes of a message.
    #[must_use]
    pub const fn new(max_message_bytes: usize) -> Self {
        Self { max_message_bytes, max_fragments: 65_536 }
    }

    /// Bytes of a message as it is sent. One that an extension has encoded may be a little longer than what comes out
    /// of it: deflate keeps bytes that it cannot compress in blocks with five bytes of their own.
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

/// The decoder's state for one connection. Idle (between messages) it holds no heap memory and is one pointer.
///
/// It speaks the server's side: frames must be masked. A message that lies in the input in one piece, as nearly all
/// do, is unmasked there and lent from there; only an incomplete frame or message is copied, into memory that grows
/// with what has arrived and never reaches more than twice that, nor more than a message may have.
///
/// Text is checked while it arrives: the error comes with the first byte that proves it, even inside of a frame.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    partial: Option<Box<Assembly>>,
}

/// Where something complete is.
enum Decoded {
    /// The unmasked payload of a whole message or control frame.
    InInput {
        opcode: Opcode,
        rsv1: bool,
        payload: Range<usize>,
    },
    Assembled(Completed),
}

impl FrameDecoder {
    /// A decoder at the start of a connection.
    #[must_use]
    pub const fn new() -> Self {
        Self { partial: None }
    }

    /// Decodes what comes next in `input[*pos..]`, unmasking in place, and moves `pos` behind it.
    ///
    /// `Ok(None)`: `input` is used up; what is incomplete was copied into the decoder. The caller drops or overwrites
    /// `input` afterwards and comes back with the next read. A buffer that the decoder held for the last message is
    /// released at the next call.
    ///
    /// # Errors
    ///
    /// Anything against RFC 6455 or over `limits`. After an error, or after [`Incoming::Close`], the connection's
    /// input must not be decoded any further.
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

    /// As [`Self::next`], on a connection with an extension that uses RSV1 to mark messages. The caller decodes those
    /// and holds them to the limit once more, decoded.
    ///
    /// # Errors
    ///
    /// As [`Self::next`]. RSV1 stays an error on continuations and control frames.
    pub fn next_extended<'a>(
        &'a mut self,
        limits: &FrameLimits,
        input: &'a mut [u8],
        pos: &mut usize,
    ) -> Result<Option<Extended<'a>>, FrameError> {
        self.decode::<true>(limits, input, pos)
    }

    /// Whether a message or frame is under way.
    #[inline]
    #[must_use]
    pub fn is_mid_message(&self) -> bool {
        self.partial.as_ref().is_some_and(|partial| partial.is_mid_message())
    }

    /// Returns the number of frames of fragmented messages that began since the last call, and
    /// resets it. A client can split a message into thousands of empty frames, and each one costs
    /// work.
    #[inline]
    pub fn take_frame_count(&mut self) -> u32 {
        self.partial.as_mut().map_or(0, |partial| partial.take_frame_count())
    }

    /// Heap bytes held for an incomplete message, or for the last one until the next call.
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
                match opcode {
                    _ if rsv1 => return Ok(Some(Extended::Encoded { kind: message_kind(opcode), payload })),
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

    /// The common case: nothing is under way, and the next frame is a whole message that lies in `input`. `None`
    /// leaves everything as it was, for [`Self::decode_incrementally`] to look at.
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

    /// Everything else, up to the next thing that is complete.
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
                let (taken, completed) = partial.read_payload(rest)?;
                *pos += taken;
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

    /// Whether a frame may come here (RFC 6455 section 5.4) and within the limits, which is asked before any of its
    /// payload is looked at. Gives the payload's length.
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

    fn drop_if_idle(&mut self) {
        if self.partial.as_ref().is_some_and(|partial| partial.is_idle()) {
            self.partial = None;
        }
    }

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

fn message_kind(opcode: Opcode) -> MessageKind {
    if opcode == Opcode::Text { MessageKind::Text } else { MessageKind::Binary }
}
