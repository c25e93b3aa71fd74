//! The summary of a segment, with which a store starts without reading all messages.
//!
//! A summary can be lost: the segment is then read instead.

use std::fs;
use std::io;
use std::path::Path;

use crate::folder;
use crate::location::Location;
use crate::record::{Declaration, HEAD, Head, u32_at, u64_at};
use crate::segment::Segment;
use crate::table::Table;

const MAGIC: &[u8; 8] = b"dhsindx\n";

/// The magic, number, length and newest time of the segment, then five counts: bytes of
/// declarations, removed streams, newest messages, entries of indexes, newest offsets without
/// messages.
const HEADER: usize = 8 + 4 + 8 + 8 + 5 * 8;

/// Bytes of a stream's number, an offset and a position.
const ENTRY: usize = 20;

/// Writes the summary of a segment that has just become complete. The table must be as it was after
/// the last record of the segment.
pub(crate) fn write(folder: &Path, segment: &Segment, table: &Table) -> io::Result<()> {
    let (mut declarations, mut newest, mut index, mut skipped) = (vec![], vec![], vec![], vec![]);
    let entry = |buffer: &mut Vec<u8>, id: u64, offset: u64, location: Location| {
        buffer.extend_from_slice(&id.to_le_bytes());
        buffer.extend_from_slice(&offset.to_le_bytes());
        buffer.extend_from_slice(&location.position().to_le_bytes());
    };
    for (id, stream) in &table.streams {
        if stream.declared == segment.id {
            stream.encode(*id, &mut declarations);
        }
        if stream.last.segment() == segment.id {
            entry(&mut newest, *id, stream.last_offset, stream.last);
        }
        if stream.skipped == segment.id {
            entry(&mut skipped, *id, stream.newest, Location::NONE);
        }
        let here = stream.index.partition_point(|(_, location)| location.segment() < segment.id);
        for (offset, location) in &stream.index[here..] {
            entry(&mut index, *id, *offset, *location);
        }
    }
    let mut bytes = Vec::with_capacity(HEADER + declarations.len() + newest.len() + index.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&segment.id.to_le_bytes());
    bytes.extend_from_slice(&segment.bytes().to_le_bytes());
    bytes.extend_from_slice(&segment.newest_ms().to_le_bytes());
    let entries = [&newest, &index, &skipped].map(|entries| entries.len() / ENTRY);
    for count in [declarations.len(), table.removed.len()].into_iter().chain(entries) {
        bytes.extend_from_slice(&(count as u64).to_le_bytes());
    }
    bytes.extend_from_slice(&declarations);
    table.removed.iter().for_each(|id| bytes.extend_from_slice(&id.to_le_bytes()));
    bytes.extend_from_slice(&newest);
    bytes.extend_from_slice(&index);
    bytes.extend_from_slice(&skipped);
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    folder::write_whole(folder, &folder::summary_path(folder, segment.id), &bytes)
}

/// Takes over the summary of a segment. Returns `false` if there is none, or if it is not the one
/// of the file as it is.
pub(crate) fn apply(folder: &Path, segment: &Segment, table: &mut Table) -> bool {
    let Ok(bytes) = fs::read(folder::summary_path(folder, segment.id)) else { return false };
    apply_bytes(&bytes, segment, table).is_some()
}

fn apply_bytes(bytes: &[u8], segment: &Segment, table: &mut Table) -> Option<()> {
    let (bytes, checksum) = bytes.split_last_chunk::<4>()?;
    let (header, mut rest) = bytes.split_at_checked(HEADER)?;
    if u32::from_le_bytes(*checksum) != crc32fast::hash(bytes)
        || !header.starts_with(MAGIC)
        || u32_at(header, 8) != segment.id
        || u64_at(header, 12) != segment.bytes()
    {
        return None;
    }
    let count = |number: usize| usize::try_from(u64_at(header, 28 + 8 * number)).ok();
    let mut part = |length: usize| {
        let (part, behind) = rest.split_at_checked(length)?;
        rest = behind;
        Some(part)
    };
    let mut declarations = part(count(0)?)?;
    let removed = part(count(1)?.checked_mul(8)?)?;
    let newest = part(count(2)?.checked_mul(ENTRY)?)?;
    let index = part(count(3)?.checked_mul(ENTRY)?)?;
    let skipped = part(count(4)?.checked_mul(ENTRY)?)?;
    while let Some(head) = Head::parse(declarations) {
        let (record, behind) = declarations.split_at_checked(head.record_length())?;
        table.highest = table.highest.max(head.stream);
        table.declare(&head, &Declaration::parse(&record[HEAD..])?, segment.id);
        declarations = behind;
    }
    let entries = |bytes: &'_ [u8]| {
        let entries = bytes.chunks_exact(ENTRY);
        let location = |entry: &[u8]| Location::new(segment.id, u32_at(entry, 16));
        entries.map(|entry| (u64_at(entry, 0), u64_at(entry, 8), location(entry))).collect::<Vec<_>>()
    };
    for (id, offset, location) in entries(newest) {
        table.note_last(id, offset, location);
    }
    for (id, offset, location) in entries(index) {
        table.note_indexed(id, offset, location);
    }
    for (id, offset, _) in entries(skipped) {
        table.note_skipped(id, offset, segment.id);
    }
    removed.chunks_exact(8).for_each(|id| table.remove(u64_at(id, 0)));
    table.removed.clear();
    segment.note_time(u64_at(header, 20));
    Some(())
}
