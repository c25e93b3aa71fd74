//! The fields at the start of every envelope.

use super::reader::Reader;
use super::{
    ANSWER, BYE, EnvelopeError, HELLO, Origin, PROBE, STAMP_BYTES, STORED, STREAM_RESET, TAKEN, VERSION,
    is_node_id,
};

/// Offset of the sequence, which the queue fills in.
pub(super) const SEQUENCE_OFFSET: usize = 10;

/// Offset of the origin's name, which starts with its length byte.
pub(super) const ORIGIN_OFFSET: usize = 18;

/// Fields at the start of every envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header<'a> {
    pub(super) kind: u8,
    pub(crate) origin: Origin<'a>,
    pub(crate) sequence: u64,
}

impl<'a> Header<'a> {
    /// Parses the start of an envelope and ignores the rest.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        Self::read(&mut Reader::new(bytes))
    }

    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, EnvelopeError> {
        let version = reader.byte()?;
        if version != VERSION {
            return Err(EnvelopeError::Version(version));
        }
        let kind = reader.byte()?;
        let incarnation = reader.number()?;
        let sequence = reader.number()?;
        let node = reader.short_text("origin")?;
        if !is_node_id(node) {
            return Err(EnvelopeError::Field("origin"));
        }
        Ok(Self { kind, origin: Origin { node, incarnation }, sequence })
    }

    /// Returns `true` if the message is between drivers, such as an answer or a heartbeat. Such
    /// messages never wait in the backlog.
    pub(crate) const fn is_control(&self) -> bool {
        matches!(self.kind, ANSWER | HELLO | TAKEN | BYE)
    }

    /// Returns `true` if the message comes from the store. Its position tells whether it is a
    /// duplicate, so the sequence does not matter. The origin gets its own ones, too.
    pub(crate) const fn is_from_store(&self) -> bool {
        matches!(self.kind, STORED | STREAM_RESET)
    }

    /// Returns `true` if the message is a probe of the origin to itself.
    pub(crate) const fn is_probe(&self) -> bool {
        self.kind == PROBE
    }
}

/// Fills in the sequence of an encoded envelope.
pub(crate) fn set_sequence(envelope: &mut [u8], sequence: u64) {
    if let Some(field) = envelope.get_mut(SEQUENCE_OFFSET..ORIGIN_OFFSET) {
        field.copy_from_slice(&sequence.to_be_bytes());
    }
}

/// Returns the offset of the fields that the store fills in, for an origin's name of this length.
pub(crate) const fn stamp_offset(origin_len: usize) -> usize {
    ORIGIN_OFFSET + 1 + origin_len
}

/// Returns the offset of the topic in an encoded [`Message::Stored`](super::Message::Stored).
pub(crate) const fn stored_topic_offset(origin_len: usize) -> usize {
    stamp_offset(origin_len) + STAMP_BYTES + 2
}

/// Returns the offset of the topic in an encoded publish whose origin's name has this length.
pub(crate) const fn topic_offset(origin_len: usize) -> usize {
    ORIGIN_OFFSET + 1 + origin_len + 1
}
