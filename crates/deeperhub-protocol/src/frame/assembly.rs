//! What a decoder keeps of a connection between two reads: the part of a frame or message that has arrived.

use super::header::{Header, MAX_CLIENT_HEADER_BYTES, MAX_CONTROL_PAYLOAD_BYTES, Opcode};
use super::mask::unmask;
use super::utf8::Utf8Buffer;
use super::{FrameError, FrameLimits, MessageKind};

/// An incomplete frame or message, or one that has just been completed and lent to the caller.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    header: HeaderBytes,
    frame: Option<OpenFrame>,
    message: Option<PartialMessage>,
    control: ControlPayload,
    /// What the caller was given last, and so will not need any more when it comes back.
    lent: Option<Completed>,
    /// Number of frames opened since the last [`Self::take_frame_count`].
    opened_frames: u32,
}

/// The frame whose payload is arriving.
#[derive(Debug)]
struct OpenFrame {
    opcode: Opcode,
    fin: bool,
    /// Turned so that it starts with the next byte's.
    mask: [u8; 4],
    remaining: usize,
}

/// What [`Assembly::read_payload`] has completed, to be read from the assembly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Completed {
    Message,
    Control(Opcode),
}

impl Assembly {
    /// Drops what was lent.
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

    /// Whether there is nothing to keep.
    pub(super) fn is_idle(&self) -> bool {
        self.lent.is_none() && !self.is_mid_message()
    }

    /// Whether more must come before something is complete.
    pub(super) fn is_mid_message(&self) -> bool {
        self.header.len > 0
            || self.frame.is_some()
            || (self.message.is_some() && self.lent != Some(Completed::Message))
    }

    /// Heap bytes of the assembly and its message.
    pub(super) fn heap_bytes(&self) -> usize {
        size_of::<Self>() + self.message.as_ref().map_or(0, |message| message.body.capacity())
    }

    /// The message that the next data frame continues.
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

    /// Starts to take the payload of an admitted frame, which may bring its message to `max_message_bytes`.
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

    /// Takes as much of the open frame's payload as `input` starts with, and unmasks it there. Gives the length of
    /// that, and what it completed.
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

/// The start of a header, until all of it has arrived.
#[derive(Debug, Default)]
pub(super) struct HeaderBytes {
    bytes: [u8; MAX_CLIENT_HEADER_BYTES],
    len: u8,
}

impl HeaderBytes {
    /// Reads the header that starts with what is kept here and goes on in `input`; gives it with the number of bytes
    /// that it took from `input`. When it is still not complete, all of `input` is kept.
    pub(super) fn parse<const ALLOW_RSV1: bool>(
        &mut self,
        input: &[u8],
    ) -> Result<Option<(Header, usize)>, FrameError> {
        let kept = usize::from(self.len);
        let free = &mut self.bytes[kept..];
        let added = free.len().min(input.len());
        free[..added].copy_from_slice(&input[..added]);
        let header = Header::parse::<ALLOW_RSV1>(&self.bytes[..kept + added])?;
        // Without a header there were fewer bytes than the longest takes, so a length below 14.
        self.len = if header.is_some() { 0 } else { (kept + added) as u8 };
        Ok(header.map(|header| (header, header.len.saturating_sub(kept))))
    }
}

/// The payload of a control frame that did not arrive in one piece.
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

/// A message of which a part has arrived, in one or more fragments.
#[derive(Debug)]
pub(super) struct PartialMessage {
    pub(super) kind: MessageKind,
    pub(super) body: Body,
    pub(super) received: usize,
    pub(super) fragments: u32,
    /// What the buffer never outgrows: in the last fragment what all have declared together, before that the limit.
    max_capacity: usize,
}

#[derive(Debug)]
pub(super) enum Body {
    Text(Utf8Buffer),
    Binary(Vec<u8>),
    /// For an extension to decode: text is not checked before.
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
        // Memory follows what has arrived, not what was declared: at most twice as much, and never more than can
        // still come.
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
