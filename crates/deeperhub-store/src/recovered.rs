//! The streams and messages that a store had kept when it was opened.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;

use deeperhub_types::Epoch;

use crate::location::Location;
use crate::log::Files;
use crate::older::{Older, OlderPart};
use crate::record::{Head, Kind};
use crate::segment::Segment;
use crate::table::Stream;
use crate::{OpenError, Predecessor, Record, StreamId};

/// The streams that a store had kept when it was opened.
///
/// Take what is needed before the first append: it does not change with the store.
#[derive(Debug)]
pub struct Recovered {
    files: Arc<Files>,
    streams: Vec<(StreamId, Stream)>,
    was_clean: bool,
    lost_bytes: u64,
}

/// A stream that a store had kept, with its newest messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveredStream {
    /// The stream's number, for appends.
    pub id: StreamId,
    /// The topic.
    pub topic: Arc<str>,
    /// The epoch. After an unclean stop it is new.
    pub epoch: Epoch,
    /// The epoch before the last unclean stop.
    pub predecessor: Option<Predecessor>,
    /// The newest offset.
    pub newest: u64,
    /// The last messages up to the newest offset, oldest first, without holes.
    pub records: Vec<Record>,
    /// The messages before them that are wanted, but not within the budget, oldest first. They can
    /// be read with [`Store::read`](crate::Store::read).
    pub older: Vec<OlderPart>,
}

/// The messages that are wanted of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Most messages.
    pub messages: usize,
    /// Most bytes.
    pub bytes: usize,
    /// Time of the oldest message, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// Bytes that each message takes in the budget, in addition to its own.
    pub overhead: usize,
}

/// A stream whose messages are being collected, newest segment first.
struct Collected {
    wanted: Wanted,
    /// Bytes of all messages so far.
    bytes: usize,
    /// Messages so far, oldest first.
    records: VecDeque<Record>,
    /// Messages before them, which stay on the disk.
    older: Older,
    /// Location of the message before the first of them; none if no more are wanted.
    next: Location,
    /// Offset of that message.
    next_offset: u64,
    /// Messages of the segment that is being read.
    part: VecDeque<Part>,
    part_bytes: usize,
    /// Number of messages of the part, the oldest ones, that stay on the disk.
    part_older: usize,
}

struct Part {
    position: u32,
    previous: Location,
    /// The record, without its bytes if it stays on the disk.
    record: Record,
    len: usize,
}

impl Recovered {
    pub(crate) fn new(files: Arc<Files>, was_clean: bool, lost_bytes: u64) -> Self {
        let mut streams: Vec<_> = files
            .table()
            .streams
            .iter()
            .map(|(id, stream)| (StreamId(*id), stream.without_index()))
            .collect();
        streams.sort_unstable_by_key(|(id, stream)| (std::cmp::Reverse(stream.last), *id));
        Self { files, streams, was_clean, lost_bytes }
    }

    /// Returns `true` if the store was closed cleanly before, or is new. Otherwise its streams have
    /// new epochs.
    #[must_use]
    pub const fn was_clean(&self) -> bool {
        self.was_clean
    }

    /// Returns the bytes of messages that were only partly on the disk, and were cut off.
    #[must_use]
    pub const fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    /// Returns the number of streams.
    #[must_use]
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Returns `true` if there are no streams.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Reads messages back and hands each stream to `visit`, those with the newest messages first.
    ///
    /// `budget` bounds the bytes of all messages; the newest ones count first. `wanted` says for a
    /// topic which messages are read. Of those over the budget, only the places are told. Files are
    /// read in order, newest first, and only as far as needed.
    ///
    /// # Errors
    ///
    /// A file that cannot be read ends the reading. Behind a damaged message, the rest of its file
    /// is left out.
    pub fn load(
        self,
        budget: usize,
        mut wanted: impl FnMut(&str) -> Wanted,
        mut visit: impl FnMut(RecoveredStream),
    ) -> Result<(), OpenError> {
        let mut collected = HashMap::with_capacity(self.streams.len());
        for (id, stream) in &self.streams {
            let wanted = wanted(&stream.topic);
            // A newest offset without its message leaves no messages without a hole.
            let is_wanted = wanted.messages > 0 && stream.last_offset == stream.newest;
            let next = if is_wanted { stream.last } else { Location::NONE };
            collected.insert(id.0, Collected::new(wanted, next, stream.newest));
        }
        let mut left = Some(budget);
        loop {
            // The newest segment with a message that is still wanted; 0 if there is none.
            let newest = collected.values().map(|stream| stream.next.segment()).max().unwrap_or_default();
            if newest == 0 {
                break;
            }
            match self.files.segment(newest) {
                Some(segment) => {
                    let read = read_segment(&segment, &mut collected, &mut left);
                    read.map_err(OpenError::at(&segment.path))?;
                }
                // It was dropped, which ends the streams that go on there.
                None => collected.values_mut().for_each(|stream| _ = stream.merge(newest)),
            }
        }
        for (id, stream) in self.streams {
            let (records, older) = match collected.remove(&id.0) {
                Some(Collected { records, older, .. }) => (records.into(), older.into_parts()),
                None => (Vec::new(), Vec::new()),
            };
            let Stream { topic, epoch, predecessor, newest, .. } = stream;
            visit(RecoveredStream { id, topic, epoch, predecessor, newest, records, older });
        }
        Ok(())
    }
}

/// Reads the messages of one segment that are wanted. Leaves `None` of the budget if not all of them
/// fit: older messages then stay on the disk, whatever their length, so that no stream has a hole.
fn read_segment(
    segment: &Segment,
    collected: &mut HashMap<u64, Collected>,
    left: &mut Option<usize>,
) -> io::Result<()> {
    let (mut order, mut bytes, mut is_over) = (VecDeque::new(), 0_usize, left.is_none());
    let mut scan = segment.scan()?;
    while let Some((position, head, body)) = scan.next()? {
        if head.kind != Kind::Message {
            continue;
        }
        let Some(stream) = collected.get_mut(&head.stream) else { continue };
        if stream.next.segment() != segment.id || position > stream.next.position() {
            continue;
        }
        let freed = stream.push(position, &head, body);
        bytes = (bytes + body.len() + stream.wanted.overhead).saturating_sub(freed);
        order.push_back((head.stream, position));
        while left.is_none_or(|left| bytes > left) {
            is_over = true;
            let Some((id, position)) = order.pop_front() else { break };
            let Some(stream) = collected.get_mut(&id) else { continue };
            // The stream's own limits may have removed it before.
            let oldest = stream.part.get_mut(stream.part_older);
            if let Some(oldest) = oldest.filter(|part| part.position == position) {
                bytes = bytes.saturating_sub(oldest.len + stream.wanted.overhead);
                oldest.record.bytes = Vec::new();
                stream.part_older += 1;
            }
        }
    }
    let taken: usize = collected.values_mut().map(|stream| stream.merge(segment.id)).sum();
    *left = left.filter(|_| !is_over).map(|left| left.saturating_sub(taken));
    Ok(())
}

impl Collected {
    fn new(wanted: Wanted, next: Location, newest: u64) -> Self {
        Self {
            wanted,
            bytes: 0,
            records: VecDeque::new(),
            older: Older::default(),
            next,
            next_offset: newest,
            part: VecDeque::new(),
            part_bytes: 0,
            part_older: 0,
        }
    }

    /// Adds a message to the part. Returns the bytes of messages that are no longer wanted, without
    /// those that stay on the disk.
    fn push(&mut self, position: u32, head: &Head, body: &[u8]) -> usize {
        let record = Record { offset: head.offset, time_ms: head.time_ms, bytes: body.to_vec() };
        let (previous, len) = (Location::from_bits(head.previous), body.len());
        self.part_bytes += len;
        self.part.push_back(Part { position, previous, record, len });
        let mut freed = 0;
        while !self.part.is_empty()
            && (self.part.len() + self.records.len() + self.older.messages > self.wanted.messages
                || self.part_bytes + self.bytes > self.wanted.bytes)
        {
            freed += self.pop_front();
        }
        freed
    }

    /// Removes the oldest message of the part. Returns its bytes in the budget, or 0 if it stays on
    /// the disk.
    fn pop_front(&mut self) -> usize {
        let len = self.part.pop_front().map_or(0, |part| part.len);
        self.part_bytes -= len;
        if self.part_older > 0 {
            self.part_older -= 1;
            return 0;
        }
        len + self.wanted.overhead
    }

    /// Puts the part of a segment before the messages that are there. Returns its bytes, without
    /// those that stay on the disk.
    fn merge(&mut self, segment: u32) -> usize {
        if self.next.segment() != segment {
            return 0;
        }
        let mut taken = 0;
        self.part_bytes = 0;
        while let Some(part) = self.part.pop_back() {
            // Records that were written twice are not all on the chain.
            if Location::new(segment, part.position) != self.next {
                continue;
            }
            if part.record.offset != self.next_offset || part.record.time_ms < self.wanted.since_ms {
                break;
            }
            self.bytes += part.len;
            (self.next, self.next_offset) = (part.previous, part.record.offset.saturating_sub(1));
            if self.part.len() < self.part_older {
                let Record { offset, time_ms, .. } = part.record;
                self.older.add(OlderPart { offset, time_ms, bytes: part.len as u64 });
            } else {
                taken += part.len + self.wanted.overhead;
                self.records.push_front(part.record);
            }
        }
        self.part.clear();
        self.part_older = 0;
        // A message that is still missing here was not wanted, or is damaged.
        let messages = self.records.len() + self.older.messages;
        if self.next.segment() == segment || messages >= self.wanted.messages {
            self.next = Location::NONE;
        }
        taken
    }
}
