//! The decoder's state between reads: the received part of a frame or message.

use super::header::{Header, MAX_CLIENT_HEADER_BYTES, MAX_CONTROL_PAYLOAD_BYTES, Opcode};
use super::mask::unmask;
use super::utf8::Utf8Buffer;
use super::{FrameError, FrameLimits, MessageKind};

/// An incomplete frame or message, or a complete one that is lent to the caller.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    header: HeaderBytes,
    frame: Option<OpenFrame>,
    message: Option<PartialMessage>,
    control: ControlPayload,
    /// The item lent to the caller by the last call; the next call releases it.
    lent: Option<Completed>,
    /// Number of frames opened since the last [`Self::take_frame_count`].
    opened_frames: u32,
}

/// The frame whose payload is arriving.
#[derive(Debug)]
struct OpenFrame {
    opcode: Opcode,
    fin: bool,
    /// The mask, rotated so that it starts with the next payload byte's.
    mask: [u8; 4],
    remaining: usize,
}

/// The kind of item that [`Assembly::read_payload`] completed, to be read from the assembly.
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

    /// Returns `true` if there is no state to keep.
    pub(super) fn is_idle(&self) -> bool {
        self.lent.is_none() && !self.is_mid_message()
    }

    /// Returns `true` if a frame or message is incomplete.
    pub(super) fn is_mid_message(&self) -> bool {
        self.header.len > 0
            || self.frame.is_some()
            || (self.message.is_some() && self.lent != Some(Completed::Message))
    }

    /// Returns the heap bytes of the assembly and its message.
    pub(super) fn heap_bytes(&self) -> usize {
        size_of::<Self>() + self.message.as_ref().map_or(0, |message| message.body.capacity())
    }

    /// Returns the message that the next data frame continues.
    pub(super) fn message(&self) -> Option<&PartialMessage> {
        self.message.as_ref()
    }

    pub(super) fn control(&self) -> &[u8] {
        &self.control.bytes[..usize::from(self.control.len)]
    }

    pub(super) fn has_open_frame(&self) -> bool {
        self.frame.is_some()
    }

    pub(super) fn header_mut(&mut self) -> &mut HeaderBytes {
        &mut self.header
    }

    /// Opens a checked frame, whose payload may grow its message up to `max_message_bytes`.
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

    /// Reads the open frame's payload from the start of `input`, unmasking it there. Returns the
    /// number of bytes read, and the item that they completed.
    pub(super) fn read_payload(
        &mut self,
        input: &mut [u8],
    ) -> Result<(usize, Option<Completed>), FrameError> {
        let Some(frame) = &mut self.frame else { return Ok((0, None)) };
        let taken = frame.remaining.min(input.len());
        let payload = &mut input[..taken];
        unmask(payload, frame.mask);
        frame.mask.rotate_left(taken % 4);
        frame.remaining -= taken;
        if frame.opcode.is_control() {
            self.control.push(payload);
        } else if let Some(message) = &mut self.message {
            message.push(payload)?;
        }
        if frame.remaining > 0 {
            return Ok((taken, None));
        }
        let completed = match *frame {
            OpenFrame { opcode, .. } if opcode.is_control() => Some(Completed::Control(opcode)),
            OpenFrame { fin: true, .. } => Some(Completed::Message),
            _ => None,
        };
        self.frame = None;
        self.lent = completed;
        Ok((taken, completed))
    }
}

/// The received part of an incomplete header.
#[derive(Debug, Default)]
pub(super) struct HeaderBytes {
    bytes: [u8; MAX_CLIENT_HEADER_BYTES],
    len: u8,
}

impl HeaderBytes {
    /// Parses the header that starts with the stored bytes and continues in `input`. Returns it
    /// with the number of bytes used from `input`. If it is still incomplete, stores all of
    /// `input`.
    pub(super) fn parse<const ALLOW_RSV1: bool>(
        &mut self,
        input: &[u8],
    ) -> Result<Option<(Header, usize)>, FrameError> {
        let kept = usize::from(self.len);
        let free = &mut self.bytes[kept..];
        let added = free.len().min(input.len());
        free[..added].copy_from_slice(&input[..added]);
        let header = Header::parse::<ALLOW_RSV1>(&self.bytes[..kept + added])?;
        // An incomplete header has fewer bytes than the longest header, so the length is below 14.
        self.len = if header.is_some() { 0 } else { (kept + added) as u8 };
        Ok(header.map(|header| (header, header.len.saturating_sub(kept))))
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

/// A partially received message, in one or more fragments.
#[derive(Debug)]
pub(super) struct PartialMessage {
    pub(super) kind: MessageKind,
    pub(super) body: Body,
    pub(super) received: usize,
    pub(super) fragments: u32,
    /// Maximum buffer capacity: in the last fragment the declared length of all fragments, before
    /// that the message limit.
    max_capacity: usize,
}

#[derive(Debug)]
pub(super) enum Body {
    Text(Utf8Buffer),
    Binary(Vec<u8>),
    /// A payload for an extension to decode; text is not yet checked as UTF-8.
    Encoded(Vec<u8>),
}

impl PartialMessage {
    fn new(header: &Header) -> Self {
        let kind = if header.opcode == Opcode::Text { MessageKind::Text } else { MessageKind::Binary };
        let body = match kind {
            _ if header.rsv1 => Body::Encoded(Vec::new()),
            MessageKind::Text => Body::Text(Utf8Buffer::default()),
            MessageKind::Binary => Body::Binary(Vec::new()),
        };
        Self { kind, body, received: 0, fragments: 0, max_capacity: 0 }
    }

    pub(super) fn is_encoded(&self) -> bool {
        matches!(self.body, Body::Encoded(_))
    }

    fn push(&mut self, payload: &[u8]) -> Result<(), FrameError> {
        self.received += payload.len();
        let (len, capacity) = (self.body.len(), self.body.capacity());
        // Memory grows with the received bytes, not the declared length: at most twice as much, and
        // never above the maximum capacity.
        let needed = self.received;
        if needed > capacity {
            let grown = capacity.saturating_mul(2).min(self.max_capacity).max(needed);
            self.body.reserve_exact(grown - len);
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
