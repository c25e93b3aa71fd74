//! The bytes of a record.
//!
//! Numbers are little-endian: the length of the body (4 bytes), a checksum of all but itself (4),
//! the kind (1), the number of the stream (8), an offset (8), a time (8), the location of the
//! stream's previous message (8), then the body.

use deeperhub_types::Epoch;

use crate::Predecessor;

/// Length of a record without its body.
pub(crate) const HEAD: usize = 41;

const CHECKSUM: usize = 4;
const KIND: usize = 8;
const STREAM: usize = 9;
const OFFSET: usize = 17;
const TIME: usize = 25;
const PREVIOUS: usize = 33;

/// The meaning of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing: a record that was withdrawn after it was queued.
    Void,
    /// A stream with its present values. `offset` is the newest one. In the queue, `previous` is
    /// the number of the stream whose newest offset it takes over, or 0.
    Declare,
    /// A message.
    Message,
    /// Offsets up to `offset` are used.
    Skip,
    /// The stream is no more.
    Remove,
}

impl Kind {
    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Void),
            1 => Some(Self::Declare),
            2 => Some(Self::Message),
            3 => Some(Self::Skip),
            4 => Some(Self::Remove),
            _ => None,
        }
    }
}

/// The fields before the body of a record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    /// Length of the body.
    pub(crate) length: u32,
    pub(crate) kind: Kind,
    pub(crate) stream: u64,
    pub(crate) offset: u64,
    pub(crate) time_ms: u64,
    pub(crate) previous: u64,
}

impl Head {
    /// Creates the head of a record whose body is still to be written.
    pub(crate) const fn new(kind: Kind, stream: u64, offset: u64) -> Self {
        Self { length: 0, kind, stream, offset, time_ms: 0, previous: 0 }
    }

    /// Reads a head. Returns `None` if the bytes are too few or the kind is unknown.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEAD)?;
        Some(Self {
            length: u32_at(bytes, 0),
            kind: Kind::from_byte(bytes[KIND])?,
            stream: u64_at(bytes, STREAM),
            offset: u64_at(bytes, OFFSET),
            time_ms: u64_at(bytes, TIME),
            previous: u64_at(bytes, PREVIOUS),
        })
    }

    /// Returns the length of the record with its body.
    pub(crate) const fn record_length(&self) -> usize {
        HEAD + self.length as usize
    }

    /// Appends a record with the parts of its body. Its checksum is written by [`seal`].
    pub(crate) fn encode(&self, parts: &[&[u8]], buffer: &mut Vec<u8>) {
        // The queue bounds a record far below 4 GiB.
        let length = parts.iter().map(|part| part.len()).sum::<usize>() as u32;
        let mut head = [0; HEAD];
        head[..CHECKSUM].copy_from_slice(&length.to_le_bytes());
        head[KIND] = self.kind as u8;
        head[STREAM..OFFSET].copy_from_slice(&self.stream.to_le_bytes());
        head[OFFSET..TIME].copy_from_slice(&self.offset.to_le_bytes());
        head[TIME..PREVIOUS].copy_from_slice(&self.time_ms.to_le_bytes());
        head[PREVIOUS..].copy_from_slice(&self.previous.to_le_bytes());
        buffer.extend_from_slice(&head);
        parts.iter().for_each(|part| buffer.extend_from_slice(part));
    }
}

/// Changes the kind of an encoded record.
pub(crate) fn set_kind(record: &mut [u8], kind: Kind) {
    record[KIND] = kind as u8;
}

/// Changes the offset of an encoded record.
pub(crate) fn set_offset(record: &mut [u8], offset: u64) {
    record[OFFSET..TIME].copy_from_slice(&offset.to_le_bytes());
}

/// Changes the location of the previous message in an encoded record.
pub(crate) fn set_previous(record: &mut [u8], previous: u64) {
    record[PREVIOUS..HEAD].copy_from_slice(&previous.to_le_bytes());
}

/// Writes the checksum of a record.
pub(crate) fn seal(record: &mut [u8]) {
    let checksum = checksum(record);
    record[CHECKSUM..KIND].copy_from_slice(&checksum.to_le_bytes());
}

/// Returns `true` if a record, with its body, has the checksum that it says.
pub(crate) fn is_intact(record: &[u8]) -> bool {
    record.len() >= HEAD && u32_at(record, CHECKSUM) == checksum(record)
}

fn checksum(record: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&record[..CHECKSUM]);
    hasher.update(&record[KIND..]);
    hasher.finalize()
}

/// Reads a number of 4 bytes at a place that the caller has checked.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

/// Reads a number of 8 bytes at a place that the caller has checked.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

/// The body of a declaration: the epoch, the predecessor's epoch and newest offset (zeros if there
/// is none), the topic.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Declaration<'a> {
    pub(crate) epoch: Epoch,
    pub(crate) predecessor: Option<Predecessor>,
    pub(crate) topic: &'a str,
}

impl<'a> Declaration<'a> {
    const TOPIC: usize = 24;

    /// Appends a record that declares a stream.
    pub(crate) fn encode(&self, head: Head, buffer: &mut Vec<u8>) {
        let (epoch, newest) = self
            .predecessor
            .map_or(([0; Epoch::BYTES], 0), |predecessor| (predecessor.epoch.to_bytes(), predecessor.newest));
        let parts = [&self.epoch.to_bytes()[..], &epoch, &newest.to_le_bytes(), self.topic.as_bytes()];
        head.encode(&parts, buffer);
    }

    pub(crate) fn parse(body: &'a [u8]) -> Option<Self> {
        let (fixed, topic) = body.split_at_checked(Self::TOPIC)?;
        let epoch = |at: usize| {
            let mut epoch = [0; Epoch::BYTES];
            epoch.copy_from_slice(&fixed[at..at + Epoch::BYTES]);
            Epoch::from_bytes(epoch)
        };
        Some(Self {
            epoch: epoch(0)?,
            predecessor: epoch(8).map(|epoch| Predecessor { epoch, newest: u64_at(fixed, 16) }),
            topic: std::str::from_utf8(topic).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_is_noticed() {
        let mut record = Vec::new();
        Head { time_ms: 5, ..Head::new(Kind::Message, 1, 2) }.encode(&[b"some ", b"text"], &mut record);
        seal(&mut record);
        assert!(is_intact(&record));
        for at in 0..record.len() {
            record[at] ^= 1;
            assert!(!is_intact(&record), "byte {at}");
            record[at] ^= 1;
        }
        assert!(!is_intact(&record[..HEAD - 1]));
        // A page that the disk has lost.
        record.fill(0);
        assert!(!is_intact(&record) && !is_intact(&[0; HEAD]));
    }

    #[test]
    fn a_declaration_is_read_back() {
        let predecessor = Predecessor { epoch: Epoch::from_bits(9), newest: 41 };
        for predecessor in [None, Some(predecessor)] {
            let declaration = Declaration { epoch: Epoch::from_bits(7), predecessor, topic: "chat.tea" };
            let mut record = Vec::new();
            declaration.encode(Head::new(Kind::Declare, 3, 50), &mut record);
            let head = Head::parse(&record).expect("the head is whole");
            assert_eq!((head.kind, head.stream, head.offset), (Kind::Declare, 3, 50));
            assert_eq!(head.record_length(), record.len());
            let read = Declaration::parse(&record[HEAD..]).expect("the body is whole");
            assert_eq!((read.epoch, read.topic), (declaration.epoch, "chat.tea"));
            assert_eq!(read.predecessor, predecessor);
        }
        assert!(Declaration::parse(b"short").is_none());
    }
}
