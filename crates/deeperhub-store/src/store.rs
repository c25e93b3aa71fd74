//! The store.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use deeperhub_types::Epoch;

use crate::log::{Files, Log};
use crate::queue::{Queue, Stop};
use crate::read::{self, Read};
use crate::record::{Declaration, Head, Kind};
use crate::segment::{HEADER, Segment};
use crate::table::Table;
use crate::{
    AppendError, Availability, CloseError, OpenError, Options, Progress, ReadError, Record, Recovered,
    StreamId, Ticket, Usage, WaitError, folder, summary, writer,
};

/// Time that a read waits for the writer. Then it reads what is in the files.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// Message history on disk, with a thread that writes it.
///
/// Appends never wait and do no I/O, so they may be made under a lock. Appends of one stream are
/// kept in their order. All methods can be called from any thread; [`read`](Self::read) and
/// [`wait`](Self::wait) block.
pub struct Store {
    queue: Arc<Queue>,
    files: Arc<Files>,
    next_stream: AtomicU64,
    thread: Option<thread::JoinHandle<()>>,
    /// Keeps other processes out until the writer has ended.
    lock: File,
}

impl Store {
    /// Opens a folder, or creates it. Returns the store with what it has kept.
    ///
    /// `random` returns random numbers. After an unclean stop, each stream gets a new epoch from
    /// one of them, and its old epoch is recorded as [`Predecessor`](crate::Predecessor).
    ///
    /// # Errors
    ///
    /// Fails if the folder cannot be written, is in use, has another format or is damaged.
    pub fn open(
        folder: impl AsRef<Path>,
        options: &Options,
        random: impl FnMut() -> u64,
    ) -> Result<(Self, Recovered), OpenError> {
        let folder = folder.as_ref();
        let lock = folder::prepare(folder)?;
        let mut found = Found::read(folder)?;
        if !found.is_clean {
            found.table.renew_epochs(random);
        }
        let next_stream = AtomicU64::new(found.table.highest + 1);
        let files = Arc::new(Files::new(folder, found.table, found.segments));
        let recovered = Recovered::new(Arc::clone(&files), found.is_clean, found.lost_bytes);
        // From here on, a crash is an unclean stop.
        folder::unmark_clean(folder)?;
        let mut log = Log::new(Arc::clone(&files), options);
        log.start(!found.is_clean)?;
        let queue = Arc::new(Queue::new(options));
        let writer = {
            let queue = Arc::clone(&queue);
            move || writer::run(&queue, log)
        };
        let thread = thread::Builder::new().name("history-store".to_owned()).spawn(writer);
        let thread = Some(thread.map_err(OpenError::Thread)?);
        Ok((Self { queue, files, next_stream, thread, lock }, recovered))
    }

    /// Creates a stream and returns its number, which appends need. The topic must have no other
    /// stream: use [`clear`](Self::clear) to start anew.
    ///
    /// # Errors
    ///
    /// Fails if the queue is full, or the store is unavailable or closed.
    pub fn create_stream(&self, topic: &str, epoch: Epoch) -> Result<StreamId, AppendError> {
        self.declare(topic, epoch, None)
    }

    /// Empties a topic: its messages are never read again. The topic goes on as another stream
    /// under another epoch. Its offsets go on, so none is given twice. A crash before the next
    /// [`sync`](Self::sync) may bring the messages back.
    ///
    /// # Errors
    ///
    /// Fails if the queue is full, or the store is unavailable or closed. The stream is then as it
    /// was.
    pub fn clear(&self, stream: StreamId, topic: &str, epoch: Epoch) -> Result<StreamId, AppendError> {
        self.declare(topic, epoch, Some(stream))
    }

    fn declare(&self, topic: &str, epoch: Epoch, before: Option<StreamId>) -> Result<StreamId, AppendError> {
        let id = self.next_stream.fetch_add(1, Ordering::Relaxed);
        let previous = before.map_or(0, |before| before.0);
        let head = Head { previous, ..Head::new(Kind::Declare, id, 0) };
        let remove = before.map(|before| Head::new(Kind::Remove, before.0, 0));
        let declaration = Declaration { epoch, predecessor: None, topic };
        self.queue.push_declaration(head, &declaration, remove).map(|_| StreamId(id))
    }

    /// Removes a stream with its messages.
    ///
    /// # Errors
    ///
    /// Fails if the queue is full, or the store is unavailable or closed. Call it again later, or
    /// the stream stays.
    pub fn remove(&self, stream: StreamId) -> Result<Ticket, AppendError> {
        self.queue.push(Head::new(Kind::Remove, stream.0, 0), &[])
    }

    /// Appends a message to a stream. Its offset must be higher than those before.
    ///
    /// # Errors
    ///
    /// Fails at once if the queue is full, or the store is unavailable or closed. The message is
    /// then not kept, so its offset must not be given to anybody.
    pub fn append(&self, stream: StreamId, record: Record<&[u8]>) -> Result<Ticket, AppendError> {
        let Record { offset, time_ms, bytes } = record;
        self.append_parts(stream, Record { offset, time_ms, bytes: &[bytes] })
    }

    /// Appends a message, like [`append`](Self::append), whose bytes are in several places.
    ///
    /// # Errors
    ///
    /// The same.
    pub fn append_parts(&self, stream: StreamId, record: Record<&[&[u8]]>) -> Result<Ticket, AppendError> {
        let head = Head { time_ms: record.time_ms, ..Head::new(Kind::Message, stream.0, record.offset) };
        self.queue.push(head, record.bytes)
    }

    /// Records that the offsets up to `offset` are used although their messages are not kept.
    ///
    /// # Errors
    ///
    /// The same as of [`append`](Self::append).
    pub fn skip_to(&self, stream: StreamId, offset: u64) -> Result<Ticket, AppendError> {
        self.queue.push(Head::new(Kind::Skip, stream.0, offset), &[])
    }

    /// Asks for a sync as soon as possible, for a message that somebody waits for. Several requests
    /// at a time share one sync.
    pub fn request_sync(&self) {
        self.queue.request_sync();
    }

    /// Waits until all that was appended, created, cleared or removed before is on the disk for
    /// good.
    ///
    /// # Errors
    ///
    /// The same as of [`wait`](Self::wait).
    pub fn sync(&self, timeout: Duration) -> Result<(), WaitError> {
        self.queue.sync(timeout)
    }

    /// Waits until an append is on the disk for good.
    ///
    /// # Errors
    ///
    /// Fails if the store becomes unavailable, is closed before, or the time is over.
    pub fn wait(&self, ticket: Ticket, timeout: Duration) -> Result<(), WaitError> {
        self.queue.wait_durable(ticket, timeout)
    }

    /// Returns the ticket behind all that was appended, created, cleared or removed before.
    #[must_use]
    pub fn queued(&self) -> Ticket {
        self.queue.queued()
    }

    /// Returns the time since which the store has all messages, in milliseconds since the Unix
    /// epoch: messages with a later time were not dropped. It is 0 until a segment is dropped.
    #[must_use]
    pub fn complete_since_ms(&self) -> u64 {
        self.files.dropped_until_ms.load(Ordering::Relaxed)
    }

    /// Returns how far appends are on the disk, and whether the store is available.
    #[must_use]
    pub fn progress(&self) -> Progress {
        self.queue.progress()
    }

    /// Returns whether the store takes appends.
    #[must_use]
    pub fn availability(&self) -> Availability {
        self.queue.progress().availability
    }

    /// Reads messages of a stream. It sees every append that returned before, as long as the disk
    /// takes them. It blocks, and its work is at most linear in the limit.
    ///
    /// # Errors
    ///
    /// Fails if a file cannot be read, or a message in it is damaged.
    pub fn read(&self, stream: StreamId, read: &Read) -> Result<Vec<Record>, ReadError> {
        // Without the writer, what is in the files is still worth reading.
        let _ = self.queue.flush(FLUSH_TIMEOUT);
        match (read::read(&self.files, stream, read), self.availability()) {
            (Err(_), Availability::Unavailable(reason)) => Err(ReadError::Unavailable(reason)),
            (read, _) => read,
        }
    }

    /// Drops segments, whole, whose messages are all older than the longest time that any rule
    /// keeps them. It returns at once; the store's thread does it.
    ///
    /// Both times are in milliseconds, `now_ms` since the Unix epoch. A message from the future
    /// keeps its segment until then, or until `max_disk_bytes` drops it.
    pub fn drop_expired(&self, now_ms: u64, longest_ttl_ms: u64) {
        self.queue.expire(now_ms.saturating_sub(longest_ttl_ms));
    }

    /// Returns the contents of the store, in numbers. It never waits for the disk.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage {
            streams: self.files.streams.load(Ordering::Relaxed),
            segments: self.files.segments().len(),
            disk_bytes: self.files.bytes(),
            queued_bytes: self.queue.bytes(),
            withdrawn: self.files.withdrawn.load(Ordering::Relaxed),
        }
    }

    /// Writes and syncs all that was appended, then records a clean stop, so that streams keep
    /// their epochs. Later appends fail, and another store can open the folder. Without this call, a
    /// stop is unclean.
    ///
    /// # Errors
    ///
    /// Fails if the disk does not take what is queued. The stop is then unclean.
    pub fn close_clean(&self) -> Result<(), CloseError> {
        let stopped = self.queue.stop(Stop::Clean).map_err(CloseError);
        // The writer has ended. If the lock stays, it ends with this value.
        let _ = self.lock.unlock();
        stopped
    }
}

/// Writes and syncs what is queued, as far as the disk takes it, but records no clean stop.
impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.queue.stop(Stop::Unclean);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Store").field("folder", &self.files.folder).finish_non_exhaustive()
    }
}

/// The contents of a folder.
struct Found {
    segments: BTreeMap<u32, Arc<Segment>>,
    table: Table,
    is_clean: bool,
    lost_bytes: u64,
}

impl Found {
    fn read(folder: &Path) -> Result<Self, OpenError> {
        let ids = folder::segment_ids(folder)?;
        let mut found =
            Self { segments: BTreeMap::new(), table: Table::default(), is_clean: false, lost_bytes: 0 };
        for id in &ids {
            found.read_segment(folder, *id)?;
        }
        found.table.finish();
        found.is_clean =
            ids.is_empty() || folder::is_clean(folder, found.segments.values().map(|segment| &**segment));
        Ok(found)
    }

    fn read_segment(&mut self, folder: &Path, id: u32) -> Result<(), OpenError> {
        let path = folder::segment_path(folder, id);
        let Some(segment) = Segment::find(&path, id).map_err(OpenError::at(&path))? else {
            let bytes = fs::metadata(&path).map_err(OpenError::at(&path))?.len();
            // A crash while the file was created leaves no messages.
            if bytes <= HEADER.into() {
                return fs::remove_file(&path).map_err(OpenError::at(&path));
            }
            return Err(OpenError::Damaged { path, reason: "its header is not the one of a segment" });
        };
        self.table.removed.clear();
        if !summary::apply(folder, &segment, &mut self.table) {
            self.scan(folder, &segment).map_err(OpenError::at(&path))?;
        }
        self.segments.insert(id, Arc::new(segment));
        Ok(())
    }

    /// Reads a segment without a summary. A record that is not whole was being written when the
    /// process or the machine stopped. It is cut off, with all that follows.
    fn scan(&mut self, folder: &Path, segment: &Segment) -> std::io::Result<()> {
        let mut scan = segment.scan()?;
        while let Some((position, head, body)) = scan.next()? {
            self.table.apply(&head, body, crate::location::Location::new(segment.id, position));
            if head.kind == Kind::Message {
                segment.note_time(head.time_ms);
            }
        }
        if scan.is_torn() {
            self.lost_bytes += segment.bytes() - scan.position();
            segment.truncate(scan.position())?;
        }
        // Without its summary, the segment is read again at the next start.
        let _ = summary::write(folder, segment, &self.table);
        Ok(())
    }
}
