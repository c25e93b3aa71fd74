//! The log: segments in order, of which the newest one is written.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::location::Location;
use crate::record::{self, Head, Kind};
use crate::segment::{HEADER, Segment};
use crate::table::Table;
use crate::{OpenError, Options, folder, lock, summary};

/// The streams and segments, which the writer and the readers share.
#[derive(Debug)]
pub(crate) struct Files {
    pub(crate) folder: PathBuf,
    table: Mutex<Table>,
    segments: Mutex<BTreeMap<u32, Arc<Segment>>>,
    /// Bytes of all segments.
    bytes: AtomicU64,
    /// Number of streams, and of withdrawn messages, to be read without the table's lock.
    pub(crate) streams: AtomicUsize,
    pub(crate) withdrawn: AtomicU64,
    /// Time of the newest message that was dropped with its segment.
    pub(crate) dropped_until_ms: AtomicU64,
}

impl Files {
    pub(crate) fn new(folder: &Path, table: Table, segments: BTreeMap<u32, Arc<Segment>>) -> Self {
        let bytes = segments.values().map(|segment| segment.bytes()).sum::<u64>().into();
        let (streams, withdrawn) = (table.streams.len().into(), AtomicU64::new(0));
        let (table, segments) = (Mutex::new(table), Mutex::new(segments));
        let dropped_until_ms = AtomicU64::new(0);
        Self { folder: folder.to_owned(), table, segments, bytes, streams, withdrawn, dropped_until_ms }
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    pub(crate) fn segment(&self, id: u32) -> Option<Arc<Segment>> {
        lock(&self.segments).get(&id).cloned()
    }

    /// Returns the segments in order.
    pub(crate) fn segments(&self) -> Vec<Arc<Segment>> {
        lock(&self.segments).values().cloned().collect()
    }

    /// Returns the bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn set_segment_bytes(&self, segment: &Segment, bytes: u64) {
        let before = segment.bytes();
        segment.set_bytes(bytes);
        self.bytes.fetch_add(bytes.wrapping_sub(before), Ordering::Relaxed);
    }

    fn add(&self, segment: Arc<Segment>) {
        self.bytes.fetch_add(segment.bytes(), Ordering::Relaxed);
        lock(&self.segments).insert(segment.id, segment);
    }

    /// Removes a segment's files. Readers that have it open can still read it.
    fn remove(&self, id: u32) {
        let removed = lock(&self.segments).remove(&id);
        if let Some(segment) = removed {
            self.bytes.fetch_sub(segment.bytes(), Ordering::Relaxed);
            // A file that stays is found at the next start, and dropped again.
            let _ = fs::remove_file(folder::summary_path(&self.folder, id));
            let _ = fs::remove_file(&segment.path);
        }
    }
}

/// A queued buffer of records that is not synced yet.
#[derive(Debug)]
struct Batch {
    records: Vec<u8>,
    /// `true` if the records may have had places in the log.
    is_placed: bool,
}

/// The segment that is written.
#[derive(Debug)]
struct Current {
    segment: Arc<Segment>,
    file: File,
    /// Bytes that were written.
    written: u64,
    /// Bytes that were synced.
    synced: u64,
    /// Time bucket of its messages. A segment without messages has none.
    bucket: Option<u64>,
}

/// The writing side of the log.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) files: Arc<Files>,
    current: Option<Current>,
    next_id: u32,
    /// Newest segment when the limit of bytes was last enforced.
    limited: u32,
    unsynced: Vec<Batch>,
    /// A buffer of a synced batch, for the next one.
    spare: Vec<u8>,
    segment_limit: u64,
    bucket_ms: u64,
    max_disk_bytes: u64,
}

impl Log {
    /// Creates the writing side. It has no segment to write yet.
    pub(crate) fn new(files: Arc<Files>, options: &Options) -> Self {
        let next_id = files.segments().last().map_or(1, |segment| segment.id.saturating_add(1));
        Self {
            files,
            current: None,
            next_id,
            limited: 0,
            unsynced: Vec::new(),
            spare: Vec::new(),
            segment_limit: options.segment_limit(),
            bucket_ms: options.bucket_ms(),
            max_disk_bytes: options.max_disk_bytes.unwrap_or(u64::MAX),
        }
    }

    /// Starts the first segment of this process. After an unclean stop, it has all streams with
    /// their new epochs.
    pub(crate) fn start(&mut self, redeclare: bool) -> Result<(), OpenError> {
        let failed = OpenError::at(&self.files.folder);
        let mut records = Vec::new();
        if redeclare {
            let table = self.files.table();
            table.streams.iter().for_each(|(id, stream)| stream.encode(*id, &mut records));
        }
        self.new_segment().and_then(|()| self.write(records)).and_then(|()| self.sync()).map_err(failed)
    }

    /// Returns an empty buffer for records.
    pub(crate) fn take_spare(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.spare)
    }

    /// Keeps records until they can be written.
    pub(crate) fn keep(&mut self, records: Vec<u8>) {
        if !records.is_empty() {
            self.unsynced.push(Batch { records, is_placed: false });
        }
    }

    /// Writes records. They are kept until they are synced, even if writing fails.
    pub(crate) fn write(&mut self, records: Vec<u8>) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        let mut batch = Batch { records, is_placed: true };
        let written = self.write_batch(&mut batch.records, false);
        self.unsynced.push(batch);
        written
    }

    fn write_batch(&mut self, records: &mut [u8], again: bool) -> io::Result<()> {
        // `start..at` has places in the present segment.
        let (mut start, mut at) = (0, 0);
        let files = Arc::clone(&self.files);
        // A reader must not find a place before its record is in the file.
        let mut table = files.table();
        while let Some(head) = Head::parse(&records[at..]) {
            let end = at + head.record_length();
            let bucket = (head.kind == Kind::Message).then_some(head.time_ms / self.bucket_ms);
            if self.must_rotate((end - start) as u64, at == start, bucket) {
                self.append(&records[start..at])?;
                // Readers need not wait for a sync.
                drop(table);
                self.rotate()?;
                (start, table) = (at, files.table());
            }
            let current = self.current.as_mut().ok_or_else(no_segment)?;
            let position = u32::try_from(current.written + (at - start) as u64).map_err(io::Error::other)?;
            let record = &mut records[at..end];
            table.place(record, Location::new(current.segment.id, position), again);
            record::seal(record);
            if let Some(bucket) = bucket {
                current.segment.note_time(head.time_ms);
                current.bucket.get_or_insert(bucket);
            }
            at = end;
        }
        files.withdrawn.store(table.withdrawn, Ordering::Relaxed);
        files.streams.store(table.streams.len(), Ordering::Relaxed);
        self.append(&records[start..at])
    }

    /// Returns `true` if a record belongs into a new segment. `bytes` are those that the present
    /// one would get with it, and `is_first` tells that they are of this record alone.
    fn must_rotate(&self, bytes: u64, is_first: bool, bucket: Option<u64>) -> bool {
        let Some(current) = &self.current else { return false };
        // Threads append in no exact order of time, so one bucket back is still the present one.
        let moved = bucket.zip(current.bucket).is_some_and(|(new, old)| new > old || new + 1 < old);
        // A segment takes one record of any length.
        let is_empty = current.written == HEADER.into() && is_first;
        moved || (!is_empty && current.written + bytes > self.segment_limit)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let current = self.current.as_mut().ok_or_else(no_segment)?;
        current.file.write_all(bytes)?;
        current.written += bytes.len() as u64;
        self.files.set_segment_bytes(&current.segment, current.written);
        Ok(())
    }

    /// Makes all that was written durable.
    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.sync_current()?;
        let largest = self.unsynced.drain(..).map(|batch| batch.records).max_by_key(Vec::capacity);
        if let Some(mut largest) = largest.filter(|records| records.capacity() <= 1 << 20) {
            largest.clear();
            self.spare = largest;
        }
        Ok(())
    }

    fn sync_current(&mut self) -> io::Result<()> {
        let current = self.current.as_mut().ok_or_else(no_segment)?;
        if current.synced < current.written {
            current.file.sync_data()?;
            current.synced = current.written;
        }
        Ok(())
    }

    /// Completes the present segment and starts the next one.
    fn rotate(&mut self) -> io::Result<()> {
        self.sync_current()?;
        if let Some(current) = &self.current {
            // Without its summary, a segment is read at the next start.
            let _ = summary::write(&self.files.folder, &current.segment, &self.files.table());
        }
        self.new_segment()
    }

    fn new_segment(&mut self) -> io::Result<()> {
        let id = self.next_id;
        self.next_id = id.checked_add(1).ok_or_else(|| io::Error::other("no more segment numbers"))?;
        // The number may be that of a segment which somebody removed without its summary.
        let _ = fs::remove_file(folder::summary_path(&self.files.folder, id));
        let (segment, file) = Segment::create(&self.files.folder, id)?;
        let segment = Arc::new(segment);
        self.files.add(Arc::clone(&segment));
        self.files.table().removed.clear();
        let written = HEADER.into();
        self.current = Some(Current { segment, file, written, synced: written, bucket: None });
        Ok(())
    }

    /// Drops the oldest segments until the present one can become full within the limit.
    pub(crate) fn keep_limit(&mut self) -> io::Result<()> {
        let newest = self.next_id - 1;
        if std::mem::replace(&mut self.limited, newest) == newest {
            return Ok(());
        }
        let allowed = self.max_disk_bytes.saturating_sub(self.segment_limit);
        while self.files.bytes() > allowed {
            // Declarations of dropped streams may start new segments, which are not for this call.
            let Some(oldest) = self.oldest_complete().filter(|oldest| oldest.id < newest) else { break };
            self.drop_segment(oldest.id)?;
        }
        Ok(())
    }

    /// Drops the oldest segments while all of their messages are older than `oldest_ms`.
    pub(crate) fn drop_expired(&mut self, oldest_ms: u64) -> io::Result<()> {
        let is_expired = |segment: &Segment| segment.newest_ms() < oldest_ms;
        let current = self.current.as_ref();
        if current.is_some_and(|current| current.bucket.is_some() && is_expired(&current.segment)) {
            self.rotate()?;
        }
        while let Some(oldest) = self.oldest_complete().filter(|segment| is_expired(segment)) {
            self.drop_segment(oldest.id)?;
        }
        Ok(())
    }

    /// Returns the oldest segment, if it is not the one that is written.
    fn oldest_complete(&self) -> Option<Arc<Segment>> {
        let current = self.current.as_ref().map(|current| current.segment.id);
        let oldest = self.files.segments().into_iter().next()?;
        (Some(oldest.id) != current).then_some(oldest)
    }

    /// Drops a segment, after the streams that it declares are declared anew. If that fails, it is
    /// dropped nevertheless: on a full disk, nothing else makes room. The declarations are kept, to
    /// be written later. A crash before that makes their streams start anew.
    fn drop_segment(&mut self, id: u32) -> io::Result<()> {
        if let Some(segment) = self.files.segment(id) {
            // Before the messages are gone, nobody counts on them any more.
            self.files.dropped_until_ms.fetch_max(segment.newest_ms(), Ordering::Relaxed);
        }
        let declarations = self.files.table().forget_segment(id);
        let written = if self.current.is_some() {
            self.write(declarations).and_then(|()| self.sync_current())
        } else {
            self.keep(declarations);
            Ok(())
        };
        self.files.remove(id);
        written.and_then(|()| folder::sync_folder(&self.files.folder))
    }

    /// Gives up the present segment after an error. What is not synced is kept, to be written
    /// again.
    pub(crate) fn abandon(&mut self) {
        let Some(current) = self.current.take() else { return };
        if current.synced <= HEADER.into() {
            self.files.remove(current.segment.id);
            return;
        }
        // The kernel may have dropped what it could not write, so it is not read again. If the file
        // cannot be cut, the next start finds records twice, and takes the first.
        let before = current.segment.bytes();
        if current.segment.truncate(current.synced).is_ok() {
            self.files.bytes.fetch_sub(before - current.synced, Ordering::Relaxed);
        }
    }

    /// Writes what is not synced into a new segment, and syncs it.
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        self.new_segment()?;
        let mut batches = std::mem::take(&mut self.unsynced);
        let written = batches.iter_mut().try_for_each(|batch| {
            let again = std::mem::replace(&mut batch.is_placed, true);
            self.write_batch(&mut batch.records, again)
        });
        batches.append(&mut self.unsynced);
        self.unsynced = batches;
        written.and_then(|()| self.sync())
    }

    /// Records a clean stop, after everything is on the disk.
    pub(crate) fn close(&mut self) -> io::Result<()> {
        self.sync()?;
        if let Some(current) = self.current.take() {
            if current.written > HEADER.into() {
                // Without its summary, the segment is read at the next start.
                let _ = summary::write(&self.files.folder, &current.segment, &self.files.table());
            } else {
                self.files.remove(current.segment.id);
                folder::sync_folder(&self.files.folder)?;
            }
        }
        let segments = self.files.segments();
        folder::mark_clean(&self.files.folder, segments.iter().map(|segment| &**segment))
    }
}

fn no_segment() -> io::Error {
    io::Error::other("no segment is open")
}
