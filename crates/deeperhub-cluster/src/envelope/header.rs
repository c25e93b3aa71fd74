//! The fields at the start of every envelope.

use super::reader::Reader;
use super::{EnvelopeError, Origin, STAMP_BYTES, VERSION, is_node_id};

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
        let (head, rest) = Head::split(bytes)?;
        head.with_node(&mut Reader::new(rest))
    }
}

/// Fields before the origin's name, which have fixed lengths.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) kind: u8,
    pub(super) incarnation: u64,
    pub(super) sequence: u64,
}

impl Head {
    /// Parses the fields, and returns the bytes after them.
    #[inline]
    pub(super) fn split(bytes: &[u8]) -> Result<(Self, &[u8]), EnvelopeError> {
        if let Some(version) = bytes.first().filter(|version| **version != VERSION) {
            return Err(EnvelopeError::Version(*version));
        }
        let (head, rest) = bytes.split_first_chunk::<ORIGIN_OFFSET>().ok_or(EnvelopeError::Length)?;
        let &[_, kind, i0, i1, i2, i3, i4, i5, i6, i7, s0, s1, s2, s3, s4, s5, s6, s7] = head;
        let incarnation = u64::from_be_bytes([i0, i1, i2, i3, i4, i5, i6, i7]);
        let sequence = u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        Ok((Self { kind, incarnation, sequence }, rest))
    }

    /// Reads and checks the origin's name, which follows.
    pub(super) fn with_node<'a>(self, reader: &mut Reader<'a>) -> Result<Header<'a>, EnvelopeError> {
        let Self { kind, incarnation, sequence } = self;
        let node = reader.short_text("origin")?;
        if !is_node_id(node) {
            return Err(EnvelopeError::Field("origin"));
        }
        Ok(Header { kind, origin: Origin { node, incarnation }, sequence })
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
