//! Envelopes that arrived, with a valid header.

use bytes::Bytes;

use super::header::{Head, ORIGIN_OFFSET};
use super::reader::Reader;
use super::{
    ANSWER, BYE, Envelope, EnvelopeError, HELLO, Message, Origin, PROBE, STORED, STREAM_RESET, TAKEN,
    are_node_id_bytes,
};

/// An envelope whose header is checked. Its message is checked when [`Self::parse`] is called.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    bytes: Bytes,
    /// Length of the origin's name.
    node_len: u8,
}

impl Received {
    /// Checks the header, and ignores the rest.
    #[inline]
    pub(crate) fn check(bytes: Bytes) -> Result<Self, EnvelopeError> {
        let (_, rest) = Head::split(&bytes)?;
        let (node_len, rest) = rest.split_first().ok_or(EnvelopeError::Length)?;
        let (node_len, node) = (*node_len, rest.get(..usize::from(*node_len)));
        if !are_node_id_bytes(node.ok_or(EnvelopeError::Length)?) {
            return Err(EnvelopeError::Field("origin"));
        }
        Ok(Self { bytes, node_len })
    }

    #[inline]
    fn head(&self) -> Head {
        // It was split before.
        let empty = Head { kind: 0, incarnation: 0, sequence: 0 };
        Head::split(&self.bytes).map_or(empty, |(head, _)| head)
    }

    /// Returns the origin's name, which is ASCII.
    #[inline]
    pub(crate) fn node(&self) -> &[u8] {
        let start = ORIGIN_OFFSET + 1;
        self.bytes.get(start..start + usize::from(self.node_len)).unwrap_or_default()
    }

    #[inline]
    pub(crate) fn incarnation(&self) -> u64 {
        self.head().incarnation
    }

    #[inline]
    pub(crate) fn sequence(&self) -> u64 {
        self.head().sequence
    }

    #[inline]
    fn kind(&self) -> u8 {
        self.head().kind
    }

    /// Returns the length of the envelope, in bytes.
    #[inline]
    pub(crate) const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the same envelope in a buffer of its own.
    pub(crate) fn to_unshared(&self) -> Self {
        Self { bytes: Bytes::copy_from_slice(&self.bytes), node_len: self.node_len }
    }

    /// Returns `true` if the message is between drivers, such as an answer or a heartbeat. Such
    /// messages never wait in the backlog.
    #[inline]
    pub(crate) fn is_control(&self) -> bool {
        matches!(self.kind(), ANSWER | HELLO | TAKEN | BYE)
    }

    /// Returns `true` if the message comes from the store. Its position tells whether it is a
    /// duplicate, so the sequence does not matter. The origin gets its own ones, too.
    #[inline]
    pub(crate) fn is_from_store(&self) -> bool {
        matches!(self.kind(), STORED | STREAM_RESET)
    }

    /// Returns `true` if the message is a probe of the origin to itself.
    #[inline]
    pub(crate) fn is_probe(&self) -> bool {
        self.kind() == PROBE
    }

    /// Parses the envelope like [`Envelope::parse`], without another check of its header.
    pub(crate) fn parse(&self) -> Result<Envelope<'_>, EnvelopeError> {
        let (Head { kind, incarnation, sequence }, rest) = Head::split(&self.bytes)?;
        let mut reader = Reader::of_texts(rest);
        let origin = Origin { node: reader.short_text("origin")?, incarnation };
        let message = Message::read(kind, &mut reader)?;
        Ok(Envelope { origin, sequence, message })
    }
}
