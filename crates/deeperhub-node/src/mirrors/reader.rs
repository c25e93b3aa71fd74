//! The thread that reads streams from the cluster's store.
//!
//! All workers send their requests here, so one read of a topic serves all clients that wait for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use deeperhub_cluster::{ClusterState, ReadError, ResetWhen, StorePosition, StreamRange};
use deeperhub_history::ReadRequest;
use deeperhub_protocol::Topic;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{mpsc, oneshot};

use super::checks;
use super::reads::Begin;
use crate::hub::Hub;
use crate::metrics::ReadLabel;
use crate::planted::planted;
use crate::streams::{ClusterStore, ReaderRequest, StoreNotice, Waiter};

/// Topics that one exchange with the store reads.
const TOPICS_PER_BATCH: usize = 64;

/// Exchanges with the store that are under way. JetStream reads many topics together for less.
const MAX_BATCHES: usize = 16;

/// Exchanges that are under way when the next one waits until it is full.
const MAX_PARTIAL_BATCHES: usize = 2;

/// Time after which a client that waits is told that the store is unavailable.
const WAIT_TIMEOUT: Duration = Duration::from_secs(3);

/// Interval at which the reader looks for clients that waited too long, and retries reads.
const TICK: Duration = Duration::from_millis(500);

/// Interval between checks of quiet topics. A topic is quiet from the second check after its last
/// message on. So a lost last message comes within ten seconds: two intervals and a second look.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(4);

type Task<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Topics that were read together, and the answer.
pub(super) type Batch = (Vec<(Arc<str>, ReadRequest)>, BatchResult);

pub(super) type BatchResult = Result<Vec<Result<StreamRange, ReadError>>, ReadError>;

/// The running thread. Dropping this value ends it.
#[derive(Debug)]
pub(crate) struct StoreReader {
    stop: Option<oneshot::Sender<()>>,
    handle: Option<JoinHandle<()>>,
}

/// State of the thread.
pub(crate) struct Reader {
    hub: Arc<Hub>,
    store: Arc<ClusterStore>,
    // Ordered, so that a simulation repeats itself.
    waiting: BTreeMap<Arc<str>, Vec<(Waiter, Instant)>>,
    queue: VecDeque<(Arc<str>, ReadRequest)>,
    /// Topics whose reads have failed.
    failed: BTreeSet<Arc<str>>,
    pub(super) batches: FuturesUnordered<Task<Batch>>,
    pub(super) tasks: FuturesUnordered<Task<()>>,
    /// Probe of the store that is under way.
    probe: Option<Task<()>>,
    /// Check of all mirrors after the broker was away.
    pub(super) reconnect: Option<Task<()>>,
    /// Check of quiet topics.
    pub(super) check: Option<Task<()>>,
    next_check: Instant,
}

impl StoreReader {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// Returns an error if the system starts no thread.
    pub(crate) fn start(hub: &Arc<Hub>, store: &Arc<ClusterStore>) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let reader = Reader::new(hub, store);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = std::thread::Builder::new().name("store-reader".to_owned()).spawn(move || {
            let Some(requests) = reader.store.take_receiver() else { return };
            runtime.block_on(async {
                tokio::select! {
                    () = reader.run(requests) => {}
                    _ = stopped => {}
                }
            });
        })?;
        Ok(Self { stop: Some(stop), handle: Some(handle) })
    }
}

impl Drop for StoreReader {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(handle) = self.handle.take() {
            // The panic hook has logged a panic.
            let _ = handle.join();
        }
    }
}

impl Reader {
    pub(super) fn new(hub: &Arc<Hub>, store: &Arc<ClusterStore>) -> Self {
        Self {
            hub: Arc::clone(hub),
            store: Arc::clone(store),
            waiting: BTreeMap::new(),
            queue: VecDeque::new(),
            failed: BTreeSet::new(),
            batches: FuturesUnordered::new(),
            tasks: FuturesUnordered::new(),
            probe: None,
            reconnect: None,
            check: None,
            next_check: hub.streams.clock.now() + CHECK_INTERVAL,
        }
    }

    async fn run(mut self, mut requests: mpsc::UnboundedReceiver<ReaderRequest>) {
        let mut states = self.store.broker.watch();
        let mut rules = self.store.rule_changes.subscribe();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // The node can have joined before.
        states.mark_unchanged();
        loop {
            self.start_batches();
            tokio::select! {
                request = requests.recv() => {
                    let Some(request) = request else { return };
                    self.handle(request);
                    // Topics that are asked for at once are read together.
                    while let Ok(request) = requests.try_recv() {
                        self.handle(request);
                    }
                }
                Some((topics, result)) = self.batches.next(), if !self.batches.is_empty() => {
                    self.finish_batch(topics, result);
                }
                Some(()) = self.tasks.next(), if !self.tasks.is_empty() => {}
                () = run_optional(&mut self.probe) => {
                    self.probe = None;
                }
                () = run_optional(&mut self.reconnect) => {
                    self.reconnect = None;
                }
                () = run_optional(&mut self.check) => {
                    self.check = None;
                }
                changed = states.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let is_up = *states.borrow_and_update() == ClusterState::Up;
                    self.on_broker_changed(is_up);
                }
                Ok(()) = rules.changed() => self.on_rules_changed(),
                _ = ticks.tick() => self.on_tick(),
            }
        }
    }

    pub(super) fn handle(&mut self, request: ReaderRequest) {
        match request {
            ReaderRequest::Read { topic, read } => self.queue.push_back((topic, read)),
            ReaderRequest::Rewritten { topic, known } => {
                self.reset(topic, (known, ResetWhen::StoreHasRewritten), None);
            }
            ReaderRequest::Wait { topic, read, waiter } => {
                self.waiting
                    .entry(Arc::clone(&topic))
                    .or_default()
                    .push((waiter, self.hub.streams.clock.now()));
                match read.map_or_else(|| self.hub.begin_read(&topic), Begin::Read) {
                    Begin::Read(read) => self.queue.push_back((topic, read)),
                    Begin::Reading => {}
                    Begin::Done => self.notify(&topic),
                }
            }
            ReaderRequest::Page { page, done } => {
                let store = Arc::clone(&self.store);
                let hub = Arc::clone(&self.hub);
                self.tasks.push(Box::pin(async move { done(super::page::read(&page, &hub, &store).await) }));
            }
            ReaderRequest::Probe { number } => {
                let (hub, store) = (Arc::clone(&self.hub), Arc::clone(&self.store));
                self.probe = Some(Box::pin(async move { super::probe::run(&hub, &store, number).await }));
            }
        }
    }

    /// Starts exchanges with the store for the reads that wait.
    pub(super) fn start_batches(&mut self) {
        let may_start = |under_way: usize, waiting: usize| {
            under_way < if waiting < TOPICS_PER_BATCH { MAX_PARTIAL_BATCHES } else { MAX_BATCHES }
        };
        while !self.queue.is_empty() && may_start(self.batches.len(), self.queue.len()) {
            let count = self.queue.len().min(TOPICS_PER_BATCH);
            let mut topics = Vec::with_capacity(count);
            let mut reads = Vec::with_capacity(count);
            for (topic, request) in self.queue.drain(..count).collect::<Vec<_>>() {
                match self.hub.store_read(&self.store, &topic, request) {
                    Some(read) => {
                        reads.push(read);
                        topics.push((topic, request));
                    }
                    // No rule keeps messages of the topic any more.
                    None => {
                        if let Ok(parsed) = Topic::parse(&*topic) {
                            self.hub.apply_read(&parsed, request, None);
                        }
                        self.notify(&topic);
                    }
                }
            }
            if reads.is_empty() {
                continue;
            }
            match self.store.broker.read_streams(reads) {
                Ok(reply) => self.batches.push(Box::pin(async move { (topics, reply.await) })),
                Err(error) => self.finish_batch(topics, Err(error)),
            }
        }
    }

    /// Applies the answer to an exchange.
    pub(super) fn finish_batch(&mut self, topics: Vec<(Arc<str>, ReadRequest)>, result: BatchResult) {
        if let Err(error) = &result {
            tracing::debug!(topics = topics.len(), %error, "Read of the cluster's store failed");
        }
        let mut ranges = result.unwrap_or_default().into_iter();
        for (topic, request) in topics {
            let range = ranges.next().and_then(|range| {
                range.inspect_err(|error| tracing::debug!(%topic, %error, "Read of a stream failed")).ok()
            });
            let is_read = range.is_some();
            self.store.metrics.reads.inc(if is_read { ReadLabel::Ok } else { ReadLabel::Failed });
            let Ok(parsed) = Topic::parse(&*topic) else { continue };
            if let Some(range) = &range
                && let Some(read) = self.hub.read_from_oldest(&parsed, request, range)
            {
                self.queue.push_back((topic, read));
                continue;
            }
            let outcome = self.hub.apply_read(&parsed, request, range);
            if let Some(reset) = outcome.reset {
                if outcome.next.is_none() {
                    self.failed.insert(Arc::clone(&topic));
                }
                self.reset(topic, reset, outcome.next);
            } else if let Some(next) = outcome.next {
                self.queue.push_back((topic, next));
            } else if outcome.is_settled {
                self.notify(&topic);
            } else if !is_read {
                self.notify(&topic);
                self.failed.insert(topic);
            }
        }
    }

    /// Lets the store compare itself with what this node knows, and then does the next read.
    fn reset(&self, topic: Arc<str>, reset: (StorePosition, ResetWhen), next: Option<ReadRequest>) {
        let (hub, store) = (Arc::clone(&self.hub), Arc::clone(&self.store));
        self.tasks.push(Box::pin(async move {
            checks::reset(&hub, &store, &topic, reset).await;
            if let Some(next) = next {
                store.queue_read(topic, next);
            }
        }));
    }

    /// Tells those that wait for a topic that its read has ended.
    fn notify(&mut self, topic: &Arc<str>) {
        let mut workers = Vec::new();
        for (waiter, _) in self.waiting.remove(topic).unwrap_or_default() {
            tell(&self.store, topic, waiter, &mut workers);
        }
    }

    /// Reads the topics whose subscribers were here before their rule, and answers the clients that
    /// wait for topics which no rule keeps any more.
    pub(super) fn on_rules_changed(&mut self) {
        self.queue.extend(self.hub.open_late_streams());
        let has_rule =
            |topic: &str| Topic::parse(topic).is_ok_and(|topic| self.hub.streams.rule(&topic).is_some());
        let without: Vec<_> = self.waiting.keys().filter(|topic| !has_rule(topic)).cloned().collect();
        without.iter().for_each(|topic| self.notify(topic));
    }

    pub(super) fn on_tick(&mut self) {
        let now = self.hub.streams.clock.now();
        let store = &self.store;
        self.waiting.retain(|topic, waiters| {
            let mut workers = Vec::new();
            let is_late = |since: &Instant| now.saturating_duration_since(*since) >= WAIT_TIMEOUT;
            for (waiter, _) in waiters.extract_if(.., |(_, since)| is_late(since)) {
                tell(store, topic, waiter, &mut workers);
            }
            !waiters.is_empty()
        });
        if !self.store.is_up() {
            return;
        }
        for topic in std::mem::take(&mut self.failed) {
            if let Some(read) = self.hub.retry_read(&topic) {
                self.queue.push_back((topic, read));
            }
        }
        let is_busy = self.reconnect.is_some() || self.check.is_some();
        if now >= self.next_check && !is_busy && !planted!(TailUnchecked) {
            self.next_check = now + CHECK_INTERVAL;
            let (hub, store) = (Arc::clone(&self.hub), Arc::clone(&self.store));
            self.check = Some(Box::pin(async move { checks::check_quiet_topics(&hub, &store).await }));
        }
    }

    /// Handles a change of the connection to the broker. The node may have missed messages, even if
    /// it is connected again by now.
    pub(super) fn on_broker_changed(&mut self, is_up: bool) {
        let topics = self.hub.disconnect_mirrors();
        self.store.is_checked.store(topics.is_empty(), std::sync::atomic::Ordering::Release);
        self.reconnect = None;
        if is_up {
            let (hub, store) = (Arc::clone(&self.hub), Arc::clone(&self.store));
            let (checked, keeps_history) =
                (Arc::clone(&self.store), self.hub.limits.load().history.rules.keep_history());
            if keeps_history {
                self.tasks.push(Box::pin(async move { checks::check_server(&checked).await }));
            }
            self.reconnect =
                Some(Box::pin(async move { checks::check_after_reconnect(&hub, &store, topics).await }));
        } else {
            let waiting: Vec<_> = self.waiting.keys().cloned().collect();
            waiting.iter().for_each(|topic| self.notify(topic));
        }
    }
}

/// Tells a waiter that a read has ended. A worker is told once for each topic.
fn tell(store: &ClusterStore, topic: &Arc<str>, waiter: Waiter, workers: &mut Vec<u16>) {
    match waiter {
        Waiter::Worker(worker) => {
            if !workers.contains(&worker) {
                workers.push(worker);
                store.notify(worker, StoreNotice::TopicRead { topic: Arc::clone(topic) });
            }
        }
        // The caller may have gone.
        Waiter::Handle(sender) => drop(sender.send(())),
    }
}

async fn run_optional(task: &mut Option<Task<()>>) {
    match task {
        Some(task) => task.await,
        None => std::future::pending().await,
    }
}
