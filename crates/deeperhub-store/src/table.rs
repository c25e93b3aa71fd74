//! The streams of a store, in memory.

use std::collections::HashMap;
use std::sync::Arc;

use deeperhub_types::Epoch;

use crate::location::Location;
use crate::record::{self, Declaration, HEAD, Head, Kind};
use crate::{Predecessor, StreamId};

/// Offsets between two entries of a stream's index.
const INDEX_STEP: u64 = 64;

/// A stream as the log has it.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) topic: Arc<str>,
    pub(crate) epoch: Epoch,
    pub(crate) predecessor: Option<Predecessor>,
    /// Newest offset that was used, with or without a message.
    pub(crate) newest: u64,
    /// Offset of the newest message; 0 before the first one.
    pub(crate) last_offset: u64,
    /// Location of the newest message.
    pub(crate) last: Location,
    /// Segment with the declaration that counts. While the log is read, 0 if the declaration is
    /// still to come: it was written again when an older segment was dropped.
    pub(crate) declared: u32,
    /// Segment with the newest record of offsets without messages; 0 if there is none.
    pub(crate) skipped: u32,
    /// Offset and location of about every 64th message, in order.
    pub(crate) index: Vec<(u64, Location)>,
}

/// All streams of a store by number.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) streams: HashMap<u64, Stream>,
    /// Streams whose removal is in the newest segment.
    pub(crate) removed: Vec<u64>,
    /// The highest number that was seen.
    pub(crate) highest: u64,
    /// Messages that were withdrawn: their stream is unknown, or their offset does not rise.
    pub(crate) withdrawn: u64,
}

impl Stream {
    /// Notes a message as the newest one. Entries of the index at or after its offset are replaced.
    fn note_message(&mut self, offset: u64, location: Location) {
        while self.index.last().is_some_and(|(indexed, _)| *indexed >= offset) {
            self.index.pop();
        }
        let indexed = self.index.last().map_or(self.last_offset.min(offset - 1), |(indexed, _)| *indexed);
        if offset / INDEX_STEP != indexed / INDEX_STEP {
            self.index.push((offset, location));
        }
        (self.last_offset, self.last) = (offset, location);
        self.newest = self.newest.max(offset);
    }

    fn undeclared() -> Self {
        Self {
            topic: "".into(),
            epoch: Epoch::from_bits(0),
            predecessor: None,
            newest: 0,
            last_offset: 0,
            last: Location::NONE,
            declared: 0,
            skipped: 0,
            index: Vec::new(),
        }
    }

    /// Returns a copy without the index.
    pub(crate) fn without_index(&self) -> Self {
        Self { topic: Arc::clone(&self.topic), index: Vec::new(), ..*self }
    }

    /// Appends a record that declares the stream as it is.
    pub(crate) fn encode(&self, id: u64, buffer: &mut Vec<u8>) {
        let head = Head::new(Kind::Declare, id, self.newest);
        let declaration =
            Declaration { epoch: self.epoch, predecessor: self.predecessor, topic: &self.topic };
        declaration.encode(head, buffer);
    }
}

impl Table {
    /// Takes over a record that was read from the log. Messages at or below a stream's newest one
    /// are left out: they were written again after an error.
    pub(crate) fn apply(&mut self, head: &Head, body: &[u8], location: Location) {
        self.highest = self.highest.max(head.stream);
        match head.kind {
            Kind::Void => {}
            Kind::Declare => {
                if let Some(declaration) = Declaration::parse(body) {
                    self.declare(head, &declaration, location.segment());
                }
            }
            Kind::Message => {
                let stream = self.streams.entry(head.stream).or_insert_with(Stream::undeclared);
                if head.offset > stream.last_offset {
                    stream.note_message(head.offset, location);
                }
            }
            Kind::Skip => self.note_skipped(head.stream, head.offset, location.segment()),
            Kind::Remove => self.remove(head.stream),
        }
    }

    /// Gives a queued record its place in the log and takes it over. `again` tells that the record
    /// may have had another place before, which was lost.
    pub(crate) fn place(&mut self, record: &mut [u8], location: Location, again: bool) {
        let Some(head) = Head::parse(record) else { return };
        self.highest = self.highest.max(head.stream);
        match head.kind {
            Kind::Void => {}
            Kind::Declare => {
                let inherited = self.streams.get(&head.previous).map_or(0, |stream| stream.newest);
                let head = Head { offset: head.offset.max(inherited), ..head };
                record::set_offset(record, head.offset);
                if let Some(declaration) = Declaration::parse(&record[HEAD..]) {
                    self.declare(&head, &declaration, location.segment());
                }
            }
            Kind::Message => match self.streams.get_mut(&head.stream) {
                Some(stream) if head.offset > stream.last_offset => {
                    record::set_previous(record, stream.last.to_bits());
                    stream.note_message(head.offset, location);
                }
                // The first message of its stream that is written again. The message before it has
                // kept its place, so the record already names it.
                Some(stream) if again && head.offset > 0 => stream.note_message(head.offset, location),
                _ => {
                    record::set_kind(record, Kind::Void);
                    self.withdrawn += 1;
                }
            },
            Kind::Skip => {
                if self.streams.contains_key(&head.stream) {
                    self.note_skipped(head.stream, head.offset, location.segment());
                }
            }
            Kind::Remove => self.remove(head.stream),
        }
    }

    pub(crate) fn declare(&mut self, head: &Head, declaration: &Declaration<'_>, segment: u32) {
        let stream = self.streams.entry(head.stream).or_insert_with(Stream::undeclared);
        if stream.declared == 0 {
            stream.topic = declaration.topic.into();
        }
        (stream.epoch, stream.predecessor) = (declaration.epoch, declaration.predecessor);
        stream.newest = stream.newest.max(head.offset);
        stream.declared = segment;
    }

    /// Takes the newest message and an entry of the index from a summary.
    pub(crate) fn note_last(&mut self, id: u64, offset: u64, location: Location) {
        // A stream whose declaration is lost must not share its number with a new one.
        self.highest = self.highest.max(id);
        let stream = self.streams.entry(id).or_insert_with(Stream::undeclared);
        if offset > stream.last_offset {
            (stream.last_offset, stream.last) = (offset, location);
            stream.newest = stream.newest.max(offset);
        }
    }

    pub(crate) fn note_indexed(&mut self, id: u64, offset: u64, location: Location) {
        let stream = self.streams.entry(id).or_insert_with(Stream::undeclared);
        if stream.index.last().is_none_or(|(last, _)| *last < offset) {
            stream.index.push((offset, location));
        }
    }

    pub(crate) fn note_skipped(&mut self, id: u64, offset: u64, segment: u32) {
        self.highest = self.highest.max(id);
        let stream = self.streams.entry(id).or_insert_with(Stream::undeclared);
        (stream.newest, stream.skipped) = (stream.newest.max(offset), segment);
    }

    pub(crate) fn remove(&mut self, id: u64) {
        self.highest = self.highest.max(id);
        self.streams.remove(&id);
        self.removed.push(id);
    }

    /// Ends the reading of the log: removes streams without a declaration, and all but the newest
    /// stream of each topic. An older one stays after a crash if its removal did not reach the
    /// disk.
    pub(crate) fn finish(&mut self) {
        self.streams.retain(|_, stream| stream.declared > 0);
        let mut newest = HashMap::<Arc<str>, u64>::new();
        for (id, stream) in &self.streams {
            let highest = newest.entry(Arc::clone(&stream.topic)).or_insert(*id);
            *highest = (*highest).max(*id);
        }
        self.streams.retain(|id, stream| newest.get(&stream.topic) == Some(id));
    }

    /// Gives every stream a new epoch, with the present one as its predecessor.
    pub(crate) fn renew_epochs(&mut self, mut random: impl FnMut() -> u64) {
        for stream in self.streams.values_mut() {
            let bits = random();
            let epoch = Epoch::from_bits(bits);
            let epoch = if epoch == stream.epoch { Epoch::from_bits(bits ^ 1) } else { epoch };
            stream.predecessor = Some(Predecessor { epoch: stream.epoch, newest: stream.newest });
            stream.epoch = epoch;
        }
    }

    /// Forgets what lies in a segment that goes away, the oldest one. Returns declarations of the
    /// streams that would be lost with it.
    pub(crate) fn forget_segment(&mut self, segment: u32) -> Vec<u8> {
        let mut declarations = Vec::new();
        for (id, stream) in &mut self.streams {
            let dropped = stream.index.partition_point(|(_, location)| location.segment() <= segment);
            if dropped > 0 {
                stream.index.drain(..dropped);
                stream.index.shrink_to_fit();
            }
            if stream.last.segment() <= segment {
                stream.last = Location::NONE;
            }
            // A later declaration has the newest offset of all records before it.
            if stream.declared <= segment {
                stream.encode(*id, &mut declarations);
            }
        }
        declarations
    }

    /// Returns a stream with its number.
    pub(crate) fn get(&self, id: StreamId) -> Option<&Stream> {
        self.streams.get(&id.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_streams_that_lost_their_declaration_count_as_used() {
        let mut table = Table::default();
        table.note_last(9, 1, Location::new(1, 16));
        table.finish();
        assert_eq!((table.highest, table.streams.len()), (9, 0));
    }

    #[test]
    fn about_every_64th_message_is_in_the_index() {
        let mut stream = Stream::undeclared();
        let offsets = (1..=130).chain(200..=400);
        offsets.for_each(|offset| stream.note_message(offset, Location::new(1, offset as u32)));
        let indexed: Vec<_> = stream.index.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(indexed, [64, 128, 200, 256, 320, 384]);
        // Messages that are written again replace the entries behind them.
        stream.note_message(300, Location::new(2, 16));
        assert_eq!(stream.index.last(), Some(&(256, Location::new(1, 256))));
    }
}
