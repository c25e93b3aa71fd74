//! The thread that reads messages from the disk, so that no worker waits for it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use deeperhub_protocol::message::HistoryOrder;
use deeperhub_store::{Order, Read, Store};

use super::message::StoredMessage;
use crate::metrics::{ReadLabel, StoreMetrics};
use crate::streams::{ReadFailed, ReadRequest, ReadResult};

/// Function that gets the result of a read.
type Done = Box<dyn FnOnce(ReadResult) + Send>;

struct Job {
    request: ReadRequest,
    done: Done,
}

/// The running thread. Dropping this value ends it.
#[derive(Debug)]
pub(super) struct Reader {
    jobs: Option<mpsc::Sender<Job>>,
    queued: Arc<AtomicUsize>,
    handle: Option<JoinHandle<()>>,
}

impl Reader {
    /// Starts the thread.
    pub(super) fn start(store: Arc<Store>, metrics: StoreMetrics) -> io::Result<Self> {
        let (jobs, receiver) = mpsc::channel::<Job>();
        let queued = Arc::new(AtomicUsize::new(0));
        let read_queued = Arc::clone(&queued);
        let handle = std::thread::Builder::new().name("dh-history-read".to_owned()).spawn(move || {
            while let Ok(Job { request, done }) = receiver.recv() {
                read_queued.fetch_sub(1, Ordering::Relaxed);
                // A panic fails this read only. The panic hook has logged it.
                let result = catch_unwind(AssertUnwindSafe(|| read(&store, &request)));
                let result = result.unwrap_or(Err(ReadFailed));
                metrics.reads.inc(if result.is_ok() { ReadLabel::Ok } else { ReadLabel::Failed });
                let _ = catch_unwind(AssertUnwindSafe(|| done(result)));
            }
        })?;
        Ok(Self { jobs: Some(jobs), queued, handle: Some(handle) })
    }

    /// Queues a read. `done` gets an error at once if the thread has ended, or if more than
    /// `max_queued` reads wait.
    pub(super) fn read(&self, request: ReadRequest, max_queued: usize, done: Done) {
        let job = Job { request, done };
        if self.queued.fetch_add(1, Ordering::Relaxed) >= max_queued {
            self.queued.fetch_sub(1, Ordering::Relaxed);
            return (job.done)(Err(ReadFailed));
        }
        let Some(jobs) = &self.jobs else { return };
        if let Err(mpsc::SendError(job)) = jobs.send(job) {
            (job.done)(Err(ReadFailed));
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        drop(self.jobs.take());
        // The last read may own the node, so that the thread itself drops this value. It ends then.
        let other = self.handle.take().filter(|handle| handle.thread().id() != std::thread::current().id());
        if let Some(handle) = other {
            // The thread does not panic.
            let _ = handle.join();
        }
    }
}

/// Reads messages and encodes their deliveries.
fn read(store: &Store, request: &ReadRequest) -> ReadResult {
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
