//! Reading messages back from the files.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;

use crate::location::Location;
use crate::log::Files;
use crate::segment::{Found, Segment};
use crate::{ReadError, Record, StreamId};

/// Direction of a [`Read`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// From the oldest message to the newest.
    Ascending,
    /// From the newest message to the oldest.
    Descending,
}

/// A part of a stream that is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// The first offset. In ascending order, an offset below the oldest one starts at the oldest.
    /// In descending order, an offset over the newest one starts at the newest.
    pub from: u64,
    /// The direction.
    pub order: Order,
    /// Most messages to read.
    pub limit: usize,
    /// Most bytes of messages to read. The first message is read whatever its length.
    pub max_bytes: usize,
}

/// The messages of a stream from a location back.
struct Chain<'a> {
    files: &'a Files,
    next: Location,
    opened: Option<(Arc<Segment>, File)>,
}

impl Chain<'_> {
    /// Returns the next older message. Returns `None` after the oldest one that is kept.
    fn next(&mut self) -> Result<Option<Record>, ReadError> {
        let location = self.next;
        if location == Location::NONE {
            return Ok(None);
        }
        if self.opened.as_ref().is_none_or(|(segment, _)| segment.id != location.segment()) {
            // Dropped segments end the chain.
            let Some(segment) = self.files.segment(location.segment()) else { return Ok(None) };
            let failed = |source| ReadError::Io { path: segment.path.clone(), source };
            let Some(file) = segment.open().map_err(failed)? else { return Ok(None) };
            self.opened = Some((segment, file));
        }
        let Some((segment, file)) = &self.opened else { return Ok(None) };
        let found = segment
            .message(file, location.position())
            .map_err(|source| ReadError::Io { path: segment.path.clone(), source })?;
        let Some(Found { record, previous }) = found else {
            return Err(ReadError::Damaged {
                path: segment.path.clone(),
                position: location.position().into(),
            });
        };
        self.next = Location::from_bits(previous);
        Ok(Some(record))
    }
}

/// Reads messages of a stream. Returns none if the stream is unknown.
pub(crate) fn read(files: &Files, id: StreamId, read: &Read) -> Result<Vec<Record>, ReadError> {
    let Some(stream) = files.table().get(id).cloned() else { return Ok(Vec::new()) };
    let chain = |next| Chain { files, next, opened: None };
    // The message from which an offset is reached in the fewest steps back.
    let location_for = |offset: u64| {
        let at = stream.index.partition_point(|(indexed, _)| *indexed < offset);
        stream.index.get(at).map_or(stream.last, |(_, location)| *location)
    };
    match read.order {
        Order::Descending => descending(chain(location_for(read.from)), read),
        Order::Ascending => {
            let mut from = read.from.max(1);
            // The oldest message is at most some steps before the first one in the index.
            if stream.index.first().is_none_or(|(first, _)| from < *first) {
                let mut chain = chain(location_for(1));
                let mut oldest = None;
                while let Some(record) = chain.next()? {
                    oldest = Some(record.offset);
                }
                let Some(oldest) = oldest else { return Ok(Vec::new()) };
                from = from.max(oldest);
            }
            let to = from.saturating_add(read.limit as u64).saturating_sub(1);
            ascending(chain(location_for(to)), from, to, read.max_bytes)
        }
    }
}

fn descending(mut chain: Chain<'_>, read: &Read) -> Result<Vec<Record>, ReadError> {
    let (mut records, mut bytes) = (Vec::new(), 0_usize);
    while records.len() < read.limit {
        let Some(record) = chain.next()? else { break };
        if record.offset > read.from {
            continue;
        }
        bytes = bytes.saturating_add(record.bytes.len());
        if bytes > read.max_bytes && !records.is_empty() {
            break;
        }
        records.push(record);
    }
    Ok(records)
}

/// Reads the messages `from..=to`, and keeps the first ones if they have more than `max_bytes`.
fn ascending(mut chain: Chain<'_>, from: u64, to: u64, max_bytes: usize) -> Result<Vec<Record>, ReadError> {
    let (mut records, mut bytes) = (VecDeque::new(), 0);
    while let Some(record) = chain.next()?.filter(|record| record.offset >= from) {
        if record.offset > to {
            continue;
        }
        bytes += record.bytes.len();
        records.push_front(record);
        while bytes > max_bytes && records.len() > 1 {
            bytes -= records.pop_back().map_or(0, |last: Record| last.bytes.len());
        }
    }
    Ok(records.into())
}
