//! The thread that reads messages from the disk, so that no worker waits for it.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use deeperhub_protocol::message::HistoryOrder;
use deeperhub_store::{Order, Read, Store};

use super::message::StoredMessage;
use crate::metrics::{ReadLabel, StoreMetrics};
use crate::streams::{ReadFailed, ReadPurpose, ReadRequest, ReadResult};

/// Time after which a disk that does not answer a read counts as hanging. As long as publishers wait
/// for it: a disk that is only slow, or wakes up from standby, answers earlier.
pub(super) const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Answers that wait at a time. Subscribers that are behind have no limit, since each has one read
/// at a time.
const MAX_ANSWERS: usize = 1024;

/// Function that reads. It waits for the disk.
type ReadFn = Box<dyn FnOnce() -> ReadResult + Send>;

/// Function that gets the result of a read.
type Done = Box<dyn FnOnce(ReadResult) + Send>;

struct Job {
    read: ReadFn,
    purpose: ReadPurpose,
    since: Instant,
    done: Done,
}

/// The read in progress.
struct Running {
    since: Instant,
    /// `None` if the time is over and the read has failed already: the disk hangs.
    done: Option<Done>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    running: Option<Running>,
    is_closed: bool,
    has_ended: bool,
}

struct Shared {
    state: Mutex<State>,
    /// Wakes the thread, and the end that waits for it.
    changed: Condvar,
    metrics: StoreMetrics,
}

/// The running thread. Dropping this value ends it, unless the disk hangs.
pub(super) struct Reader {
    shared: Arc<Shared>,
    handle: Option<JoinHandle<()>>,
    time_limit: Duration,
}

impl Reader {
    /// Starts the thread. If a read takes `time_limit`, the disk hangs.
    pub(super) fn start(time_limit: Duration, metrics: StoreMetrics) -> io::Result<Self> {
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new(), metrics });
        let running = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("dh-history-read".to_owned());
        let handle = thread.spawn(move || running.run())?;
        Ok(Self { shared, handle: Some(handle), time_limit })
    }

    /// Queues a read. `done` gets an error at once if the disk hangs, or if too many answers wait.
    pub(super) fn read(&self, read: ReadFn, purpose: ReadPurpose, done: Done) {
        let mut state = self.shared.lock();
        let hangs = state.running.as_ref().is_some_and(|running| running.done.is_none());
        let is_full = purpose == ReadPurpose::Answer && state.waiting.len() >= MAX_ANSWERS;
        if hangs || is_full || state.is_closed {
            drop(state);
            return self.shared.finish(done, Err(ReadFailed));
        }
        state.waiting.push_back(Job { read, purpose, since: Instant::now(), done });
        self.shared.changed.notify_all();
    }

    /// Fails the reads whose time is over. If the read in progress takes too long, the disk hangs,
    /// and all reads fail until it answers. Otherwise, only answers have waited too long: messages
    /// for a replay would be lost.
    pub(super) fn expire(&self, now: Instant) {
        let is_late = |since: Instant| now.saturating_duration_since(since) >= self.time_limit;
        let mut state = self.shared.lock();
        let hanging = state.running.as_mut().filter(|running| is_late(running.since));
        let (hangs, running) = (hanging.is_some(), hanging.and_then(|running| running.done.take()));
        let is_late = |job: &Job| hangs || (job.purpose == ReadPurpose::Answer && is_late(job.since));
        let waiting = std::mem::take(&mut state.waiting).into_iter();
        let (late, in_time): (VecDeque<_>, _) = waiting.partition(is_late);
        state.waiting = in_time;
        drop(state);
        if running.is_some() {
            tracing::error!("History store does not answer");
        }
        for done in running.into_iter().chain(late.into_iter().map(|job| job.done)) {
            self.shared.finish(done, Err(ReadFailed));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads until the reader is dropped.
    fn run(&self) {
        let mut state = self.lock();
        while !state.is_closed {
            let Some(Job { read, done, .. }) = state.waiting.pop_front() else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            state.running = Some(Running { since: Instant::now(), done: Some(done) });
            drop(state);
            // A panic fails this read only. The panic hook has logged it.
            let result = catch_unwind(AssertUnwindSafe(read));
            let running = self.lock().running.take();
            match running.and_then(|running| running.done) {
                Some(done) => self.finish(done, result.unwrap_or(Err(ReadFailed))),
                None => tracing::info!("History store answers again"),
            }
            state = self.lock();
        }
        state.has_ended = true;
        self.changed.notify_all();
    }

    fn finish(&self, done: Done, result: ReadResult) {
        self.metrics.reads.inc(if result.is_ok() { ReadLabel::Ok } else { ReadLabel::Failed });
        let _ = catch_unwind(AssertUnwindSafe(|| done(result)));
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.is_closed = true;
        self.shared.changed.notify_all();
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        drop(waiting);
        // The last read may own the node, so that the thread itself drops this value. It ends then.
        let other = self.handle.take().filter(|handle| handle.thread().id() != std::thread::current().id());
        let Some(handle) = other else { return };
        let runs = |state: &mut State| !state.has_ended;
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), self.time_limit, runs);
        if waited.unwrap_or_else(PoisonError::into_inner).0.has_ended {
            // The thread does not panic.
            let _ = handle.join();
        }
        // Otherwise, the disk hangs, and the thread ends with the process.
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Reader").field("time_limit", &self.time_limit).finish_non_exhaustive()
    }
}

/// Reads messages and encodes their deliveries.
pub(super) fn read(store: &Store, request: &ReadRequest) -> ReadResult {
    let ReadRequest { stream, topic, epoch, from, order, limit, max_bytes } = request;
    let order = match order {
        HistoryOrder::Ascending => Order::Ascending,
        HistoryOrder::Descending => Order::Descending,
    };
    let read = Read { from: *from, order, limit: *limit, max_bytes: *max_bytes };
    let records = store.read(*stream, &read).map_err(|error| {
        tracing::warn!(%topic, %error, "History not readable");
        ReadFailed
    })?;
    let (mut frames, mut bytes) = (Vec::with_capacity(records.len()), 0);
    for record in records {
        let message = StoredMessage::parse(&record.bytes).ok_or(ReadFailed)?;
        let frame = message.frame(topic, *epoch, (record.offset, record.time_ms)).ok_or(ReadFailed)?;
        bytes += frame.len();
        if bytes > *max_bytes && !frames.is_empty() {
            break;
        }
        frames.push((record.offset, frame));
    }
    Ok(frames)
}

#[cfg(test)]
mod tests;
