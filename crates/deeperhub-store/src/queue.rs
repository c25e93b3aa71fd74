//! The hand-over from the threads that append to the one that writes.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::options::ProgressFn;
use crate::record::{Declaration, HEAD, Head};
use crate::{AppendError, Availability, Options, Progress, SyncPolicy, Ticket, WaitError, lock};

/// Most queued bytes until the writer is woken before its time.
const WRITE_AT: usize = 256 << 10;

/// Longest time between two syncs, so that it can be added to any time.
const MAX_INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// A queue of records, bounded in bytes.
pub(crate) struct Queue {
    state: Mutex<State>,
    /// Wakes the writer.
    work: Condvar,
    /// Wakes threads that wait for the writer.
    progress: Condvar,
    limit: usize,
    /// Time between two syncs; `None` to sync each batch.
    interval: Option<Duration>,
    on_progress: Option<ProgressFn>,
}

struct State {
    records: Vec<u8>,
    /// Bytes that the writer has taken and not synced yet.
    taken: usize,
    /// Number of records that were queued, written, and synced.
    queued: u64,
    written: u64,
    durable: u64,
    wants_write: bool,
    wants_sync: bool,
    expire_before_ms: Option<u64>,
    availability: Availability,
    stop: Option<Stop>,
    /// `true` once the writer has stopped, with the result of a clean stop.
    ended: Option<Result<(), Arc<str>>>,
    writer_waits: bool,
}

/// The way a store stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    Clean,
    Unclean,
}

/// Work for the writer.
pub(crate) struct Work {
    pub(crate) records: Vec<u8>,
    /// Number of records up to here.
    pub(crate) last: u64,
    /// `true` if it must be synced now; otherwise `sync_due` is the time for it.
    pub(crate) wants_sync: bool,
    pub(crate) sync_due: Option<Instant>,
    pub(crate) expire_before_ms: Option<u64>,
    pub(crate) stop: Option<Stop>,
}

impl Queue {
    pub(crate) fn new(options: &Options) -> Self {
        let state = State {
            records: Vec::new(),
            taken: 0,
            queued: 0,
            written: 0,
            durable: 0,
            wants_write: false,
            wants_sync: false,
            expire_before_ms: None,
            availability: Availability::Available,
            stop: None,
            ended: None,
            writer_waits: false,
        };
        Self {
            state: Mutex::new(state),
            work: Condvar::new(),
            progress: Condvar::new(),
            limit: options.queue_limit(),
            interval: match options.sync {
                SyncPolicy::Interval(interval) => Some(interval.min(MAX_INTERVAL)),
                SyncPolicy::Always => None,
            },
            on_progress: options.on_progress.clone(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Returns the time between two syncs; zero if each batch is synced.
    pub(crate) fn interval(&self) -> Duration {
        self.interval.unwrap_or_default()
    }

    /// Returns the bytes of unsynced records at which a sync is due before its time.
    pub(crate) fn sync_at(&self) -> usize {
        self.limit / 4
    }

    /// Returns the queued bytes at which the writer is woken before its time.
    fn write_at(&self) -> usize {
        WRITE_AT.min(self.sync_at())
    }

    /// Queues a record.
    pub(crate) fn push(&self, head: Head, body: &[&[u8]]) -> Result<Ticket, AppendError> {
        let bytes = HEAD + body.iter().map(|part| part.len()).sum::<usize>();
        self.push_with(bytes, 1, |records| head.encode(body, records))
    }

    /// Queues the declaration of a stream, and another record behind it.
    pub(crate) fn push_declaration(
        &self,
        head: Head,
        declaration: &Declaration<'_>,
        then: Option<Head>,
    ) -> Result<Ticket, AppendError> {
        let bytes = 3 * HEAD + declaration.topic.len();
        self.push_with(bytes, 1 + u64::from(then.is_some()), |records| {
            declaration.encode(head, records);
            if let Some(then) = then {
                then.encode(&[], records);
            }
        })
    }

    fn push_with(
        &self,
        bytes: usize,
        count: u64,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Ticket, AppendError> {
        if bytes > self.limit {
            return Err(AppendError::TooLarge { bytes });
        }
        let mut state = self.state();
        if state.stop.is_some() {
            return Err(AppendError::Closed);
        }
        if let Availability::Unavailable(reason) = &state.availability {
            return Err(AppendError::Unavailable(Arc::clone(reason)));
        }
        let before = state.records.len();
        if state.taken + before + bytes > self.limit {
            return Err(AppendError::QueueFull);
        }
        encode(&mut state.records);
        state.queued += count;
        let ticket = Ticket(state.queued);
        let write_at = self.write_at();
        let is_due = before == 0 || (before < write_at && state.records.len() >= write_at);
        if is_due {
            self.wake_writer(state);
        }
        Ok(ticket)
    }

    fn wake_writer(&self, mut state: MutexGuard<'_, State>) {
        // A notification is a system call even if nobody waits.
        let waits = std::mem::take(&mut state.writer_waits);
        drop(state);
        if waits {
            self.work.notify_one();
        }
    }

    /// Asks the writer to sync what is queued now.
    pub(crate) fn request_sync(&self) {
        let mut state = self.state();
        state.wants_sync = true;
        self.wake_writer(state);
    }

    pub(crate) fn expire(&self, before_ms: u64) {
        let mut state = self.state();
        state.expire_before_ms = state.expire_before_ms.max(Some(before_ms));
        self.wake_writer(state);
    }

    pub(crate) fn progress(&self) -> Progress {
        self.state().progress()
    }

    /// Returns the ticket of the newest record.
    pub(crate) fn queued(&self) -> Ticket {
        Ticket(self.state().queued)
    }

    /// Returns the bytes that are queued or not synced.
    pub(crate) fn bytes(&self) -> usize {
        let state = self.state();
        state.taken + state.records.len()
    }

    /// Asks the writer to sync, and waits until all that is queued now is on the disk.
    pub(crate) fn sync(&self, timeout: Duration) -> Result<(), WaitError> {
        let mut state = self.state();
        let ticket = Ticket(state.queued);
        if state.durable < ticket.0 {
            state.wants_sync = true;
        }
        self.wake_writer(state);
        self.wait_durable(ticket, timeout)
    }

    /// Waits until a record is on the disk.
    pub(crate) fn wait_durable(&self, ticket: Ticket, timeout: Duration) -> Result<(), WaitError> {
        self.wait(timeout, |state| state.durable >= ticket.0)
    }

    /// Waits until all that is queued now can be read from the files.
    pub(crate) fn flush(&self, timeout: Duration) -> Result<(), WaitError> {
        let mut state = self.state();
        let queued = state.queued;
        if state.written >= queued {
            return Ok(());
        }
        state.wants_write = true;
        self.wake_writer(state);
        self.wait(timeout, |state| state.written >= queued)
    }

    fn wait(&self, timeout: Duration, done: impl Fn(&State) -> bool) -> Result<(), WaitError> {
        let start = Instant::now();
        let mut state = self.state();
        loop {
            if done(&state) {
                return Ok(());
            }
            if let Availability::Unavailable(reason) = &state.availability {
                return Err(WaitError::Unavailable(Arc::clone(reason)));
            }
            if state.ended.is_some() {
                return Err(WaitError::Closed);
            }
            let left = timeout.checked_sub(start.elapsed()).filter(|left| !left.is_zero());
            let left = left.ok_or(WaitError::Timeout)?;
            state = self.progress.wait_timeout(state, left).unwrap_or_else(|error| error.into_inner()).0;
        }
    }

    /// Stops the writer and waits until it has ended.
    pub(crate) fn stop(&self, stop: Stop) -> Result<(), Arc<str>> {
        let mut state = self.state();
        state.stop.get_or_insert(stop);
        self.work.notify_one();
        loop {
            if let Some(result) = &state.ended {
                return result.clone();
            }
            state = self.progress.wait(state).unwrap_or_else(|error| error.into_inner());
        }
    }

    // The writer's side.

    /// Waits for work. `sync_due` is the time at which written records must be synced. `spare`
    /// becomes the buffer of the queue.
    pub(crate) fn wait_for_work(&self, sync_due: Option<Instant>, spare: Vec<u8>) -> Work {
        let mut state = self.state();
        let mut due = sync_due;
        loop {
            let now = Instant::now();
            if due.is_none() && !state.records.is_empty() {
                due = Some(now + self.interval());
            }
            let is_due = due.is_some_and(|due| due <= now)
                || state.records.len() >= self.write_at()
                || state.wants_write
                || state.wants_sync
                || state.expire_before_ms.is_some()
                || state.stop.is_some();
            if is_due {
                let is_due = due.is_some_and(|due| due <= now);
                return Work { sync_due: due, ..state.take(spare, is_due) };
            }
            state.writer_waits = true;
            state = match due {
                Some(due) => {
                    let waited = self.work.wait_timeout(state, due - now);
                    waited.unwrap_or_else(|error| error.into_inner()).0
                }
                None => self.work.wait(state).unwrap_or_else(|error| error.into_inner()),
            };
            state.writer_waits = false;
        }
    }

    /// Waits for the time of the next attempt, or until the store is to be stopped.
    pub(crate) fn wait_for_retry(&self, pause: Duration) -> Work {
        let end = Instant::now() + pause;
        let mut state = self.state();
        loop {
            let now = Instant::now();
            if end <= now || state.stop.is_some() {
                return state.take(Vec::new(), true);
            }
            // Other work waits for the disk too, so it does not end the pause.
            state = self.work.wait_timeout(state, end - now).unwrap_or_else(|error| error.into_inner()).0;
        }
    }

    pub(crate) fn note_written(&self, last: u64) {
        self.state().written = last;
        self.progress.notify_all();
    }

    /// Notes that records are on the disk, and `bytes` of the queue are free.
    pub(crate) fn note_durable(&self, last: u64, bytes: usize) {
        self.tell(|state| {
            (state.written, state.durable) = (last, last);
            state.taken = state.taken.saturating_sub(bytes);
            state.availability = Availability::Available;
        });
    }

    pub(crate) fn note_unavailable(&self, reason: Arc<str>) {
        self.tell(|state| state.availability = Availability::Unavailable(reason));
    }

    /// Notes that the writer has ended. `on_progress` is not told, since its panic may be the
    /// cause.
    pub(crate) fn note_end(&self, result: Result<(), Arc<str>>) {
        let mut state = self.state();
        state.stop.get_or_insert(Stop::Unclean);
        state.ended.get_or_insert(result);
        drop(state);
        self.progress.notify_all();
    }

    fn tell(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.state();
        change(&mut state);
        let progress = state.progress();
        drop(state);
        self.progress.notify_all();
        if let Some(on_progress) = &self.on_progress {
            on_progress(&progress);
        }
    }
}

impl State {
    fn progress(&self) -> Progress {
        Progress { durable: Ticket(self.durable), availability: self.availability.clone() }
    }

    fn take(&mut self, spare: Vec<u8>, is_due: bool) -> Work {
        let records = std::mem::replace(&mut self.records, spare);
        self.taken += records.len();
        self.wants_write = false;
        Work {
            records,
            last: self.queued,
            wants_sync: std::mem::take(&mut self.wants_sync) || is_due,
            sync_due: None,
            expire_before_ms: self.expire_before_ms.take(),
            stop: self.stop,
        }
    }
}
