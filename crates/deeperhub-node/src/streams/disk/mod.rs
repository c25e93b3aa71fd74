//! The disk store of streams (feature `disk`).
//!
//! The streams in memory stay what is served. The store makes them survive a restart, and keeps what
//! the memory's budget evicts. A message is queued for the disk under the same lock that gives its
//! offset, before the offset is used. If the store takes nothing, the publish fails and no offset is
//! given.

mod message;
mod reader;
mod restore;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deeperhub_metrics::{RegisterError, Registry, Unit};
use deeperhub_protocol::Epoch;
use deeperhub_store::{AppendError, Availability, Progress, Record, Recovered, Store, Usage};
use tokio::sync::{mpsc, watch};

use super::links::Links;
use super::stored::{
    DiskStream, ReadPurpose, ReadRequest, ReadResult, StoreNotice, StoreRefused, StoreState, Ticket,
};
use crate::config::DiskConfig;
use crate::metrics::{AppendLabel, StoreMetrics};
pub(crate) use message::StoredMessage;
use reader::Reader;

/// Contents of a folder when it was opened.
pub(crate) type Found = Recovered;

/// Error of a folder that cannot be used.
pub(crate) type OpenError = deeperhub_store::OpenError;

/// Name, help, unit and value of a gauge of the store.
type StoreGauge = (&'static str, &'static str, Unit, fn(&Usage) -> u64);

/// The store, with what connects it to the node.
#[derive(Debug)]
pub(crate) struct Disk {
    // Ends before the store, which it uses.
    reader: Reader,
    store: Arc<Store>,
    links: Arc<Links>,
    progress: watch::Receiver<Progress>,
    /// Streams whose removal the store did not take.
    unremoved: Mutex<Vec<DiskStream>>,
    metrics: StoreMetrics,
}

impl Disk {
    /// Opens the store and returns it with what it has kept. `max_message_bytes` is the length of
    /// the longest message.
    ///
    /// # Errors
    ///
    /// Returns an error if the folder cannot be used.
    pub(crate) fn open(
        config: &DiskConfig,
        (workers, max_message_bytes): (usize, usize),
        metrics: StoreMetrics,
    ) -> Result<(Self, Found), OpenError> {
        let initial = Progress { durable: Ticket::default(), availability: Availability::Available };
        let (sender, progress) = watch::channel(initial);
        let links = Arc::new(Links::new(workers));
        let mut options = config.options(max_message_bytes);
        let woken = Arc::clone(&links);
        options.on_progress = Some(Arc::new(move |progress: &Progress| {
            sender.send_if_modified(|known| {
                log_change(&known.availability, &progress.availability);
                *known = progress.clone();
                true
            });
            woken.wake();
        }));
        let (store, found) = Store::open(&config.folder, &options, || fastrand::u64(..))?;
        let store = Arc::new(store);
        let reader = Reader::start(reader::TIME_LIMIT, metrics.clone()).map_err(OpenError::Thread)?;
        let unremoved = Mutex::default();
        Ok((Self { reader, store, links, progress, unremoved, metrics }, found))
    }

    /// Creates a stream.
    ///
    /// # Errors
    ///
    /// Returns an error if the store takes nothing now.
    pub(crate) fn create(&self, topic: &str, epoch: Epoch) -> Result<DiskStream, StoreRefused> {
        self.store.create_stream(topic, epoch).map_err(|error| self.refused(&error))
    }

    /// Queues a message.
    ///
    /// # Errors
    ///
    /// Returns an error if the store takes nothing now. The offset must then not be used.
    pub(crate) fn append(
        &self,
        stream: DiskStream,
        (offset, time_ms): (u64, u64),
        message: &StoredMessage<'_>,
    ) -> Result<Ticket, StoreRefused> {
        let (head, from) = message.head();
        let bytes = [&head[..], from.as_bytes(), message.payload.as_bytes()];
        let appended = self.store.append_parts(stream, Record { offset, time_ms, bytes: &bytes });
        let ticket = appended.map_err(|error| self.refused(&error))?;
        self.metrics.appends.inc(AppendLabel::Ok);
        Ok(ticket)
    }

    /// Queues that an offset is used for a message that is not kept.
    ///
    /// # Errors
    ///
    /// Returns an error if the store takes nothing now. The offset must then not be used.
    pub(crate) fn skip_to(&self, stream: DiskStream, offset: u64) -> Result<Ticket, StoreRefused> {
        self.store.skip_to(stream, offset).map_err(|error| self.refused(&error))
    }

    /// Empties a stream, which goes on under another number and epoch.
    ///
    /// # Errors
    ///
    /// Returns an error if the store takes nothing now. The stream is then as it was.
    pub(crate) fn clear(
        &self,
        stream: DiskStream,
        topic: &str,
        epoch: Epoch,
    ) -> Result<DiskStream, StoreRefused> {
        self.store.clear(stream, topic, epoch).map_err(|error| self.refused(&error))
    }

    /// Removes a stream, now or when the store takes it.
    pub(crate) fn remove(&self, stream: DiskStream) {
        if self.store.remove(stream).is_err() {
            self.unremoved.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
        }
    }

    fn refused(&self, error: &AppendError) -> StoreRefused {
        self.metrics.appends.inc(match error {
            AppendError::QueueFull => AppendLabel::QueueFull,
            _ => AppendLabel::Unavailable,
        });
        StoreRefused
    }

    /// Returns the place behind all that is queued now.
    pub(crate) fn queued(&self) -> Ticket {
        self.store.queued()
    }

    /// Asks for a sync as soon as possible.
    pub(crate) fn request_sync(&self) {
        self.store.request_sync();
    }

    pub(crate) fn state(&self, ticket: Ticket) -> StoreState {
        state(&self.progress.borrow(), ticket)
    }

    /// Waits until a message is on the disk. Returns `false` if the store becomes unavailable, or if
    /// the time is over.
    pub(crate) async fn wait(&self, ticket: Ticket, timeout: Duration) -> bool {
        let mut progress = self.progress.clone();
        let is_settled = |progress: &Progress| state(progress, ticket) != StoreState::Pending;
        let settled = tokio::time::timeout(timeout, progress.wait_for(is_settled)).await;
        matches!(settled, Ok(Ok(progress)) if state(&progress, ticket) == StoreState::Durable)
    }

    /// Notes the time from a publish until its message was on the disk.
    pub(crate) fn record_stored(&self, time: Duration) {
        self.metrics.append_time.observe_duration(time);
    }

    /// Returns the reason why the store takes nothing, if it does not.
    pub(crate) fn fault(&self) -> Option<Arc<str>> {
        match &self.progress.borrow().availability {
            Availability::Available => None,
            Availability::Unavailable(reason) => Some(Arc::clone(reason)),
        }
    }

    /// Creates the queue of a worker that starts.
    pub(crate) fn attach(&self, worker: u16) -> mpsc::UnboundedReceiver<StoreNotice> {
        self.links.attach(worker)
    }

    pub(crate) fn notify(&self, worker: u16, notice: StoreNotice) {
        self.links.send(worker, notice);
    }

    /// Tells a worker the next progress. The caller looks at the state once more after this call.
    pub(crate) fn notify_of_progress(&self, worker: u16) {
        self.links.wait(worker);
    }

    /// Reads messages on another thread. `done` gets an error at once if the disk hangs or too many
    /// reads wait, and later if the time is over.
    pub(crate) fn read(
        &self,
        request: ReadRequest,
        purpose: ReadPurpose,
        done: impl FnOnce(ReadResult) + Send + 'static,
    ) {
        let store = Arc::clone(&self.store);
        self.reader.read(Box::new(move || reader::read(&store, &request)), purpose, Box::new(done));
    }

    /// Returns the time since which the disk has all messages, in milliseconds since the Unix epoch.
    /// Older ones may have been dropped, because the folder was too large.
    pub(crate) fn complete_since_ms(&self) -> u64 {
        self.store.complete_since_ms()
    }

    /// Does what is due from time to time.
    pub(crate) fn maintain(&self, now_ms: u64, longest_ttl: Duration) {
        let unremoved = std::mem::take(&mut *self.unremoved.lock().unwrap_or_else(PoisonError::into_inner));
        unremoved.into_iter().for_each(|stream| self.remove(stream));
        self.store.drop_expired(now_ms, u64::try_from(longest_ttl.as_millis()).unwrap_or(u64::MAX));
        // Workers look for replies that wait too long.
        self.links.wake();
        self.reader.expire(Instant::now());
    }

    /// Writes all that is queued and records a clean stop. Later messages are refused.
    pub(crate) fn close(&self) {
        match self.store.close_clean() {
            Ok(()) => {}
            Err(error) => tracing::error!(%error, "History store not closed cleanly"),
        }
        self.links.wake();
    }

    /// Registers the metrics.
    pub(crate) fn register(&self, registry: &mut Registry) -> Result<(), RegisterError> {
        self.metrics.register(registry)?;
        let gauges: [StoreGauge; 4] = [
            ("deeperhub_store_bytes", "Bytes of messages on the disk", Unit::Bytes, |usage| usage.disk_bytes),
            (
                "deeperhub_store_queued_bytes",
                "Bytes of messages that are not on the disk for good yet",
                Unit::Bytes,
                |usage| usage.queued_bytes as u64,
            ),
            ("deeperhub_store_segments", "Files of messages on the disk", Unit::None, |usage| {
                usage.segments as u64
            }),
            ("deeperhub_store_streams", "Topics with a history on the disk", Unit::None, |usage| {
                usage.streams as u64
            }),
        ];
        for (name, help, unit, value) in gauges {
            let store = Arc::clone(&self.store);
            registry.register_gauge_fn(name, help, unit, move || {
                i64::try_from(value(&store.usage())).unwrap_or(i64::MAX)
            })?;
        }
        let progress = self.progress.clone();
        registry.register_gauge_fn(
            "deeperhub_store_available",
            "1 if the disk takes messages, 0 otherwise",
            Unit::None,
            move || i64::from(progress.borrow().availability == Availability::Available),
        )
    }
}

fn state(progress: &Progress, ticket: Ticket) -> StoreState {
    match progress.availability {
        _ if ticket <= progress.durable => StoreState::Durable,
        Availability::Available => StoreState::Pending,
        Availability::Unavailable(_) => StoreState::Failed,
    }
}

fn log_change(before: &Availability, after: &Availability) {
    match (before, after) {
        (Availability::Available, Availability::Unavailable(reason)) => {
            tracing::error!(%reason, "History store unavailable");
        }
        (Availability::Unavailable(_), Availability::Available) => {
            tracing::info!("History store available again");
        }
        _ => {}
    }
}
