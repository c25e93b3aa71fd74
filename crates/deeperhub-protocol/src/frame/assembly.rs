//! The decoder's state between reads.
//!
//! An assembly holds the received part of a frame or message until the rest arrives. It then lends
//! the complete item to the caller until the next call.

use super::header::{Header, MAX_CLIENT_HEADER_BYTES, MAX_CONTROL_PAYLOAD_BYTES, Opcode};
use super::mask::unmask;
use super::utf8::Utf8Buffer;
use super::{FrameError, FrameLimits, MessageKind};

/// An incomplete frame or message, or a complete one that the decoder lends to its caller.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    header: HeaderBytes,
    frame: Option<OpenFrame>,
    /// The message whose fragments are arriving, or that is lent.
    message: Option<PartialMessage>,
    control: ControlPayload,
    /// The item that the last call lent to the caller. The next call releases it.
    lent: Option<Completed>,
    /// Number of frames opened since the last [`Self::take_frame_count`].
    opened_frames: u32,
}

/// The frame whose payload is arriving.
#[derive(Debug)]
struct OpenFrame {
    opcode: Opcode,
    fin: bool,
    /// The mask, rotated so that its first byte applies to the next payload byte.
    mask: [u8; 4],
    /// Number of payload bytes that have not arrived yet.
    remaining: usize,
}

/// The kind of item that [`Assembly::read_payload`] completed. The item itself is in the assembly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Completed {
    Message,
    Control(Opcode),
}

impl Assembly {
    /// Releases the lent item.
    pub(super) fn release(&mut self) {
        match self.lent.take() {
            Some(Completed::Message) => self.message = None,
            Some(Completed::Control(_)) => self.control.len = 0,
            None => {}
        }
    }

    /// Returns the number of frames opened since the last call, and resets it.
    pub(super) fn take_frame_count(&mut self) -> u32 {
        std::mem::take(&mut self.opened_frames)
    }

    /// Returns `true` if nothing is incomplete and nothing is lent, so that the assembly can be
    /// freed.
    pub(super) fn is_idle(&self) -> bool {
        self.lent.is_none() && !self.is_mid_message()
    }

    /// Returns `true` if a frame or message is incomplete.
    pub(super) fn is_mid_message(&self) -> bool {
        self.header.len > 0
            || self.frame.is_some()
            || (self.message.is_some() && self.lent != Some(Completed::Message))
    }

    /// Returns the heap bytes of the assembly, including its message.
    pub(super) fn heap_bytes(&self) -> usize {
        size_of::<Self>() + self.message.as_ref().map_or(0, |message| message.body.capacity())
    }

    /// Returns the fragmented message that a continuation frame would continue, or the lent
    /// message.
    pub(super) fn message(&self) -> Option<&PartialMessage> {
        self.message.as_ref()
    }

    /// Returns the received payload of a control frame.
    pub(super) fn control(&self) -> &[u8] {
        &self.control.bytes[..usize::from(self.control.len)]
    }

    pub(super) fn has_open_frame(&self) -> bool {
        self.frame.is_some()
    }

    pub(super) fn header_mut(&mut self) -> &mut HeaderBytes {
        &mut self.header
    }

    /// Opens a frame after the decoder checked its header against `limits`. Starts a message if the
    /// frame is its first fragment.
    pub(super) fn open_frame(&mut self, header: &Header, payload_len: usize, limits: &FrameLimits) {
        let Header { opcode, fin, mask, .. } = *header;
        self.opened_frames = self.opened_frames.saturating_add(1);
        if !opcode.is_control() {
            let message = self.message.get_or_insert_with(|| PartialMessage::new(header));
            message.fragments = message.fragments.saturating_add(1);
            let declared = message.received.saturating_add(payload_len);
            message.max_capacity = if fin { declared } else { limits.max_message_bytes.max(declared) };
        }
        self.frame = Some(OpenFrame { opcode, fin, mask, remaining: payload_len });
    }

    /// Reads payload of the open frame from the start of `input`, and unmasks it there. Returns the
    /// number of bytes read, and the item that these bytes completed.
    pub(super) fn read_payload(
        &mut self,
        input: &mut [u8],
    ) -> Result<(usize, Option<Completed>), FrameError> {
        let Some(frame) = &mut self.frame else { return Ok((0, None)) };
        let read_len = frame.remaining.min(input.len());
        let payload = &mut input[..read_len];
        unmask(payload, frame.mask);
        frame.mask.rotate_left(read_len % 4);
        frame.remaining -= read_len;
        if frame.opcode.is_control() {
            self.control.push(payload);
        } else if let Some(message) = &mut self.message {
            message.push(payload)?;
        }
        if frame.remaining > 0 {
            return Ok((read_len, None));
        }
        let completed = if frame.opcode.is_control() {
            Some(Completed::Control(frame.opcode))
        } else if frame.fin {
            Some(Completed::Message)
        } else {
            None
        };
        self.frame = None;
        self.lent = completed;
        Ok((read_len, completed))
    }
}

/// The received part of an incomplete header.
#[derive(Debug, Default)]
pub(super) struct HeaderBytes {
    bytes: [u8; MAX_CLIENT_HEADER_BYTES],
    len: u8,
}

impl HeaderBytes {
    /// Parses the header that starts with the stored bytes and continues in `input`. Returns the
    /// header and the number of its bytes in `input`. If the header is still incomplete, stores all
    /// of `input` and returns `None`.
    pub(super) fn parse<const ALLOW_RSV1: bool>(
        &mut self,
        input: &[u8],
    ) -> Result<Option<(Header, usize)>, FrameError> {
        let stored_len = usize::from(self.len);
        let free = &mut self.bytes[stored_len..];
        let added_len = free.len().min(input.len());
        free[..added_len].copy_from_slice(&input[..added_len]);
        let header = Header::parse::<ALLOW_RSV1>(&self.bytes[..stored_len + added_len])?;
        // An incomplete header is shorter than the longest header (14 bytes), so the length fits
        // `u8`.
        self.len = if header.is_some() { 0 } else { (stored_len + added_len) as u8 };
        Ok(header.map(|header| (header, header.len.saturating_sub(stored_len))))
    }
}

/// The payload of a control frame that arrives in several reads.
#[derive(Debug)]
struct ControlPayload {
    bytes: [u8; MAX_CONTROL_PAYLOAD_BYTES],
    len: u8,
}

impl Default for ControlPayload {
    fn default() -> Self {
        Self { bytes: [0; MAX_CONTROL_PAYLOAD_BYTES], len: 0 }
    }
}

impl ControlPayload {
    fn push(&mut self, payload: &[u8]) {
        let len = usize::from(self.len);
        if let Some(free) = self.bytes.get_mut(len..len + payload.len()) {
            free.copy_from_slice(payload);
            self.len += payload.len() as u8;
        }
    }
}

/// A message that the decoder joins from one or more fragments.
#[derive(Debug)]
pub(super) struct PartialMessage {
    pub(super) kind: MessageKind,
    pub(super) body: Body,
    /// Number of payload bytes received.
    pub(super) received: usize,
    /// Number of fragments opened.
    pub(super) fragments: u32,
    /// Maximum capacity of the buffer: the message limit, or in the last fragment the declared
    /// length of all fragments.
    max_capacity: usize,
}

/// The payload of a [`PartialMessage`].
#[derive(Debug)]
pub(super) enum Body {
    Text(Utf8Buffer),
    Binary(Vec<u8>),
    /// A payload that an extension must decode. Text is not checked as UTF-8 before that.
    Encoded(Vec<u8>),
}

impl PartialMessage {
    fn new(header: &Header) -> Self {
        let kind = MessageKind::of(header.opcode);
        let body = if header.rsv1 {
            Body::Encoded(Vec::new())
        } else {
            match kind {
                MessageKind::Text => Body::Text(Utf8Buffer::default()),
                MessageKind::Binary => Body::Binary(Vec::new()),
            }
        };
        Self { kind, body, received: 0, fragments: 0, max_capacity: 0 }
    }

    /// Returns `true` if an extension must decode the message.
    pub(super) fn is_encoded(&self) -> bool {
        matches!(self.body, Body::Encoded(_))
    }

    fn push(&mut self, payload: &[u8]) -> Result<(), FrameError> {
        self.received += payload.len();
        let (len, capacity) = (self.body.len(), self.body.capacity());
        // The buffer grows with the received bytes, not with the declared length: to at most twice
        // the received bytes, and never above the maximum capacity.
        if self.received > capacity {
            let new_capacity = capacity.saturating_mul(2).min(self.max_capacity).max(self.received);
            self.body.reserve_exact(new_capacity - len);
        }
        match &mut self.body {
            Body::Text(text) => text.push(payload),
            Body::Binary(bytes) | Body::Encoded(bytes) => {
                bytes.extend_from_slice(payload);
                Ok(())
            }
        }
    }
}

impl Body {
    fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) | Self::Encoded(bytes) => bytes.len(),
        }
    }

    fn capacity(&self) -> usize {
        match self {
            Self::Text(text) => text.capacity(),
            Self::Binary(bytes) | Self::Encoded(bytes) => bytes.capacity(),
        }
    }

    fn reserve_exact(&mut self, additional: usize) {
        match self {
            Self::Text(text) => text.reserve_exact(additional),
            Self::Binary(bytes) | Self::Encoded(bytes) => bytes.reserve_exact(additional),
        }
    }
}
