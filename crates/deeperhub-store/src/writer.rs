//! The thread that writes.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::log::Log;
use crate::queue::{Queue, Stop, Work};

/// Pause before the first attempt after an error. It doubles up to [`MAX_RETRY`].
const FIRST_RETRY: Duration = Duration::from_millis(50);
const MAX_RETRY: Duration = Duration::from_secs(5);

/// Writes and syncs until the store is stopped.
pub(crate) fn run(queue: &Queue, log: Log) {
    // Without a writer, no append may be taken.
    let end = EndOnUnwind(queue);
    let mut writer =
        Writer { queue, log, unsynced_bytes: 0, last: 0, sync_due: None, retry: None, reason: "".into() };
    let result = writer.run();
    drop(writer);
    std::mem::forget(end);
    queue.note_end(result);
}

struct EndOnUnwind<'a>(&'a Queue);

impl Drop for EndOnUnwind<'_> {
    fn drop(&mut self) {
        self.0.note_end(Err("its thread ended".into()));
    }
}

struct Writer<'a> {
    queue: &'a Queue,
    log: Log,
    /// Bytes of the queue that are not synced.
    unsynced_bytes: usize,
    /// Number of records that were taken.
    last: u64,
    /// Time at which written records must be synced.
    sync_due: Option<Instant>,
    /// Pause before the next attempt, after an error.
    retry: Option<Duration>,
    /// The error.
    reason: Arc<str>,
}

impl Writer<'_> {
    fn run(&mut self) -> Result<(), Arc<str>> {
        loop {
            let stop = match self.retry {
                None => self.work(),
                Some(pause) => self.retry(pause),
            };
            match stop {
                None => {}
                Some(Stop::Unclean) => return Ok(()),
                Some(Stop::Clean) if self.retry.is_some() => return Err(Arc::clone(&self.reason)),
                Some(Stop::Clean) => return self.log.close().map_err(|error| error.to_string().into()),
            }
        }
    }

    fn work(&mut self) -> Option<Stop> {
        let spare = self.log.take_spare();
        let work = self.queue.wait_for_work(self.sync_due, spare);
        let stop = work.stop;
        if let Err(error) = self.carry_out(work) {
            self.fail(&error);
        }
        stop
    }

    fn carry_out(&mut self, work: Work) -> io::Result<()> {
        self.unsynced_bytes += work.records.len();
        self.last = work.last;
        self.log.write(work.records)?;
        self.queue.note_written(self.last);
        if let Some(before_ms) = work.expire_before_ms {
            self.log.drop_expired(before_ms)?;
        }
        self.log.keep_limit()?;
        let is_due = work.wants_sync || work.stop.is_some();
        if is_due || self.unsynced_bytes >= self.queue.sync_at() {
            self.log.sync()?;
            self.sync_due = None;
            self.queue.note_durable(self.last, std::mem::take(&mut self.unsynced_bytes));
        } else {
            self.sync_due = work.sync_due;
        }
        Ok(())
    }

    fn fail(&mut self, error: &io::Error) {
        self.log.abandon();
        self.sync_due = None;
        self.retry = Some(self.retry.map_or(FIRST_RETRY, |pause| (pause * 2).min(MAX_RETRY)));
        self.reason = error.to_string().into();
        self.queue.note_unavailable(Arc::clone(&self.reason));
    }

    /// Tries to write what is not synced. While it fails, the store takes no appends.
    fn retry(&mut self, pause: Duration) -> Option<Stop> {
        let work = self.queue.wait_for_retry(pause);
        self.unsynced_bytes += work.records.len();
        self.last = work.last;
        self.log.keep(work.records);
        let expired = work.expire_before_ms.map_or(Ok(()), |before_ms| self.log.drop_expired(before_ms));
        match expired.and_then(|()| self.log.resume()) {
            Ok(()) => {
                self.retry = None;
                self.queue.note_durable(self.last, std::mem::take(&mut self.unsynced_bytes));
            }
            Err(error) => self.fail(&error),
        }
        work.stop
    }
}
