//! Keeps the connection to the broker: connects, joins, sends, receives, and begins again when it is lost.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{error, info, warn};

use crate::broker::{Broker, Shared, State};
use crate::envelope::{Envelope, EnvelopeError, Header, Message};
use crate::link::{Link, LinkError, Receiver, Sender, Subscriber};
use crate::metrics::Dropped;
use crate::peers::EXPIRY;
use crate::queue::{BATCH_BYTES, Destination, Lane, Outbound};
use crate::seen::Seen;

/// The time in which a broker must do what it is asked; after it, it counts as lost. Long enough for a busy machine,
/// short enough for someone who waits for a paused one.
pub(crate) const DEADLINE: Duration = Duration::from_secs(3);

/// Between two heartbeats.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long a node that joins waits for another of its name to object.
const OBJECTION: Duration = Duration::from_millis(500);

/// How long a node that comes back waits for the others to come back too: their own attempts are not further apart.
const COMPANY: Duration = Duration::from_secs(3);

/// The pauses between attempts to connect grow from the first to the second; each is cut by up to half at random, so
/// that nodes do not come all at once.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Answers of this node that may be under way at one time; what comes from the broker waits for the next to be done.
const MAX_ANSWERS: usize = 1024;

/// Time that the final flush waits for an unreachable broker: enough to reconnect and to join.
const AWAY_AT_END: Duration = Duration::from_secs(5);

/// Time limit of each send on leaving: the rest of the queue, then the goodbye.
const GOODBYE: Duration = Duration::from_millis(500);

/// Time limit for the envelope in progress when a connection ends. After it, the envelope counts as
/// dropped.
const FINISH: Duration = Duration::from_secs(5);

/// Run time after which a panic counts as the first in a row again, which resets the backoff.
const STEADY: Duration = Duration::from_secs(60);

/// Most batches read from a connection after it has ended.
const MAX_RESTS: usize = 1024;

/// Largest capacity, in envelopes, that an empty buffer keeps.
const KEPT_BATCH: usize = 4096;

/// Cost of an envelope in the backlog besides its bytes.
const BACKLOG_OVERHEAD: usize = 64;

/// The smallest batch that goes to a slow broker.
const LEAST_BATCH: usize = 8 << 10;

/// Envelopes that are carried out before other parts of the driver have a turn.
const RECEIVE_BUDGET: u32 = 128;

/// Something that goes on after an envelope was received: an answer under way.
pub type Answering = Pin<Box<dyn Future<Output = ()>>>;

/// What a node does with messages of other nodes.
pub trait Inbound: Send + 'static {
    /// Carries out a message, in the order in which they came; none comes twice, none but probes is the node's own. It may wait
    /// until the node's threads can take it, meanwhile others queue up. What is returned goes on beside the next.
    fn receive(&self, envelope: Envelope<'_>) -> impl Future<Output = Option<Answering>>;

    /// The node's open connections.
    fn connections(&self) -> u64;
}

/// How the start went; the driver goes on in any case, unless the name is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// The node has joined.
    Joined,
    /// The broker was not reached; it will be tried again.
    Unreachable(String),
    /// Another node has this one's name.
    Taken,
}

/// The other end of a [`Broker`]: a thread of its own, so that a burst on other threads does not delay heartbeats.
#[derive(Debug)]
pub struct Driver {
    shared: Arc<Shared>,
}

/// A driver that runs.
#[derive(Debug)]
pub struct Running {
    start: mpsc::Receiver<Start>,
    ended: oneshot::Receiver<()>,
}

impl Running {
    /// Waits for the first attempt to join. `None`: it takes longer than `deadline`, or was waited for before.
    #[must_use]
    pub fn start(&self, deadline: Duration) -> Option<Start> {
        self.start.recv_timeout(deadline).ok()
    }

    /// Waits for the end, see [`Broker::stop`].
    pub async fn ended(self) {
        // An error is a driver that panicked: it has ended too.
        let _ = self.ended.await;
    }
}

/// How a connection ended.
enum End {
    Stopped,
    Taken,
    Lost(LinkError),
}

impl From<LinkError> for End {
    fn from(error: LinkError) -> Self {
        Self::Lost(error)
    }
}

impl Driver {
    pub(crate) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// A handle to what it drives.
    #[must_use]
    pub fn broker(&self) -> Broker {
        Broker(Arc::clone(&self.shared))
    }

    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The system has no thread.
    pub fn spawn(self, inbound: impl Inbound) -> std::io::Result<Running> {
        let (started, start) = mpsc::channel();
        let (end, ended) = oneshot::channel::<()>();
        std::thread::Builder::new().name("cluster".to_owned()).spawn(move || {
            let shared = Arc::clone(&self.shared);
            let mut life = Life::new(self.shared, inbound, started);
            supervise(|| life.run(), |panics| panicked(&shared, panics));
            drop(end);
        })?;
        Ok(Running { start, ended })
    }
}

/// Runs `run` until it returns, and again after each panic. Between runs it calls `restart` with
/// the number of panics in a row; `false` ends the loop.
fn supervise(mut run: impl FnMut(), mut restart: impl FnMut(usize) -> bool) {
    let mut panics = 0;
    loop {
        let began = Instant::now();
        if catch_unwind(AssertUnwindSafe(&mut run)).is_ok() {
            return;
        }
        panics = if began.elapsed() >= STEADY { 1 } else { panics + 1 };
        if !restart(panics) {
            return;
        }
    }
}

/// Counts and logs a driver panic. Returns `true` after a backoff, or `false` if the driver is to
/// end. Messages queued for the broker are kept.
fn panicked(shared: &Shared, panics: usize) -> bool {
    shared.metrics.restarts.inc();
    let pause = pause_after(panics);
    error!(panics, ?pause, "Cluster driver panicked");
    shared.set_state(State::Away { error: "the cluster's driver panicked".to_owned() });
    shared.queue.clear_control();
    if shared.stop_wanted().is_none() {
        std::thread::sleep(pause);
        return true;
    }
    let lost = shared.queue.len() as u64;
    shared.metrics.dropped(Dropped::Stopped, lost);
    shared.set_state(State::Stopped);
    false
}

/// Returns the exponential backoff after so many attempts. Jitter cuts it by up to half, so that
/// nodes do not reconnect all at once.
fn pause_after(attempts: usize) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << attempts.min(10));
    let chance = getrandom::u32().unwrap_or(u32::MAX / 2);
    doubled.min(LONGEST_PAUSE).mul_f64(1.0 - f64::from(chance) / f64::from(u32::MAX) / 2.0)
}

/// All that outlives a connection.
struct Life<I> {
    shared: Arc<Shared>,
    inbound: I,
    started: mpsc::Sender<Start>,
    seen: RefCell<Seen>,
    /// What was given to the broker and not confirmed; it goes again, and who has it already knows.
    unconfirmed: RefCell<Vec<Outbound>>,
    /// Number of messages sent to the broker and not confirmed yet.
    under_way: Cell<usize>,
    /// Notified when the broker has confirmed a batch.
    confirmed: Notify,
    /// Received envelopes that are not processed yet.
    backlog: Backlog,
    /// How much goes to the broker at a time.
    batch_bytes: Cell<usize>,
    /// Whether the node has had its name for a while.
    joined: Cell<bool>,
    lost_at: Cell<Option<Instant>>,
    invalid_told: Cell<bool>,
}

impl<I: Inbound> Life<I> {
    fn new(shared: Arc<Shared>, inbound: I, started: mpsc::Sender<Start>) -> Self {
        Self {
            backlog: Backlog::new(shared.config.queue_bytes),
            shared,
            inbound,
            started,
            seen: RefCell::default(),
            unconfirmed: RefCell::default(),
            under_way: Cell::new(0),
            confirmed: Notify::new(),
            batch_bytes: Cell::new(BATCH_BYTES),
            joined: Cell::new(false),
            lost_at: Cell::new(None),
            invalid_told: Cell::new(false),
        }
    }

    fn run(&mut self) {
        let mut attempt = 0;
        loop {
            // One runtime for each connection: with it all tasks end that client libraries have left behind.
            let end = match runtime() {
                Ok(runtime) => runtime.block_on(self.carrying_out(self.connection(attempt))),
                Err(error) => End::Lost(LinkError::new(error)),
            };
            attempt = if self.is_up() { 0 } else { attempt + 1 };
            match end {
                End::Stopped => return self.stopped(),
                End::Taken => {
                    self.shared.set_state(State::Taken);
                    let _ = self.started.send(Start::Taken);
                    return;
                }
                End::Lost(error) => self.lost(error),
            }
            if self.pause(attempt) {
                return self.stopped();
            }
        }
    }

    fn lost(&self, error: LinkError) {
        let shared = &self.shared;
        let _ = self.started.send(Start::Unreachable(error.0.clone()));
        if self.lost_at.get().is_none() {
            self.lost_at.set(Some(Instant::now()));
            shared.metrics.outages.inc();
            warn!(
                broker = %shared.config.url, %error, waiting = self.waiting(),
                "The cluster's broker cannot be reached; this node serves its own clients until it can."
            );
        }
        shared.set_state(State::Away { error: error.0 });
        shared.queue.clear_control();
    }

    /// Returns the number of messages that the broker has not confirmed.
    fn waiting(&self) -> usize {
        self.shared.queue.len() + self.unconfirmed.borrow().len() + self.under_way.get()
    }

    /// Counts and logs the messages that the broker has not taken.
    fn stopped(&self) {
        // First, so that no more messages are taken.
        self.shared.set_state(State::Stopped);
        let messages = self.waiting();
        if messages > 0 {
            self.shared.metrics.dropped(Dropped::Stopped, messages as u64);
            warn!(messages, "Stopped before the cluster's broker took all messages");
        }
    }

    /// Returns the deadline of the final flush; `None` if the driver is not to end.
    fn stop_at(&self) -> Option<Instant> {
        let stop = self.shared.stop_wanted()?;
        if self.is_up() {
            return Some(stop.deadline);
        }
        let away_since = self.lost_at.get().map_or(stop.since, |lost_at| lost_at.max(stop.since));
        Some(stop.deadline.min(away_since + AWAY_AT_END))
    }

    /// Waits until the driver is to end and the broker has taken everything, or the deadline has
    /// passed.
    async fn flushed(&self) {
        loop {
            match self.stop_at() {
                None => self.shared.stop.told.notified().await,
                Some(at) if self.waiting() == 0 || at <= Instant::now() => return,
                Some(at) => {
                    tokio::select! {
                        () = self.confirmed.notified() => {}
                        // The deadline may move closer.
                        () = self.shared.stop.told.notified() => {}
                        () = sleep_until(at.into()) => {}
                    }
                }
            }
        }
    }

    /// Waits before the next attempt; answers whether the driver is to end instead.
    fn pause(&self, attempt: usize) -> bool {
        let pause = pause_after(attempt);
        let wait = async {
            tokio::select! {
                () = sleep(pause) => false,
                () = self.flushed() => true,
            }
        };
        match runtime() {
            Ok(runtime) => runtime.block_on(self.carrying_out(wait)),
            Err(_) => {
                std::thread::sleep(pause);
                self.shared.stop_wanted().is_some()
            }
        }
    }

    /// One connection from its beginning to its end.
    async fn connection(&self, attempt: usize) -> End {
        let connecting = timeout(DEADLINE + DEADLINE, Link::connect(&self.shared, attempt));
        let link = tokio::select! {
            biased;
            () = self.flushed() => return End::Stopped,
            link = connecting => link,
        };
        let link = match link {
            Ok(Ok(link)) => link,
            Ok(Err(error)) => return End::Lost(error),
            Err(_) => return End::Lost(LinkError::new("it does not answer")),
        };
        let now = Instant::now();
        self.shared.interests.start_over();
        self.shared.peers.start_over(now);
        let connection =
            Connection { life: self, followed: Notify::new(), taken: Notify::new(), echoed: Cell::new(now) };
        let end = connection.run(link).await;
        if self.is_up() {
            // The outage before it is over; what comes now is another.
            self.lost_at.set(None);
        }
        end
    }

    /// Processes the backlog in order while `other` runs, and stops when `other` ends. The envelope
    /// in progress is still finished, within [`FINISH`].
    async fn carrying_out<T>(&self, other: impl Future<Output = T>) -> T {
        let over = Notify::new();
        let carrying = self.carry_out(&over);
        tokio::pin!(carrying);
        let result = tokio::select! {
            result = other => result,
            () = &mut carrying => unreachable!("it ends when it is told"),
        };
        over.notify_one();
        let _ = timeout(FINISH, carrying).await;
        result
    }

    async fn carry_out(&self, over: &Notify) {
        let shared = &self.shared;
        let mut answers: FuturesUnordered<Answering> = FuturesUnordered::new();
        let mut budget = 0;
        loop {
            let envelope = tokio::select! {
                biased;
                () = over.notified() => return,
                Some(()) = answers.next(), if !answers.is_empty() => continue,
                envelope = self.backlog.next(shared), if answers.len() < MAX_ANSWERS => envelope,
            };
            let in_hand = InHand(shared);
            match Envelope::parse(&envelope) {
                // From another node with this one's name: one of the two is about to leave.
                Ok(envelope)
                    if envelope.origin.node == shared.node
                        && envelope.origin.incarnation != shared.incarnation => {}
                Ok(envelope) => answers.extend(self.inbound.receive(envelope).await),
                Err(error) => self.invalid(error),
            }
            std::mem::forget(in_hand);
            budget += 1;
            if budget % RECEIVE_BUDGET == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    fn invalid(&self, error: EnvelopeError) {
        self.shared.metrics.invalid.inc();
        if !self.invalid_told.replace(true) {
            warn!(%error, "A message of the cluster cannot be read: perhaps another program uses the prefix.");
        }
    }

    fn is_up(&self) -> bool {
        self.shared.is_up.load(Ordering::Acquire)
    }
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// One connection while it holds.
struct Connection<'l, I> {
    life: &'l Life<I>,
    /// Told when the broker has been told all that is wanted.
    followed: Notify,
    /// Told when another node has this one's name.
    taken: Notify,
    /// When the node's own messages came back last.
    echoed: Cell<Instant>,
}

impl<I: Inbound> Connection<'_, I> {
    async fn run(&self, link: Link) -> End {
        let Link { mut sender, mut subscriber, mut receiver, echoes } = link;
        let end = tokio::select! {
            end = self.send(&mut sender, echoes) => end,
            end = self.follow(&mut subscriber) => end,
            end = self.read(&mut receiver) => end,
            end = self.take_part(echoes) => end,
            () = self.taken.notified() => End::Taken,
            () = self.life.flushed() => End::Stopped,
        };
        self.read_rest(&mut receiver);
        if matches!(end, End::Stopped) {
            self.say_goodbye(&mut sender).await;
        }
        end
    }

    fn shared(&self) -> &Shared {
        &self.life.shared
    }

    /// Sends the rest of the queue and a goodbye.
    async fn say_goodbye(&self, sender: &mut Sender) {
        let shared = self.shared();
        // From here on, publishers learn that other nodes do not get their messages.
        shared.set_state(State::Stopped);
        if shared.stop_wanted().is_some_and(|stop| stop.deadline > Instant::now()) {
            let _ = timeout(GOODBYE, self.send_rest(sender)).await;
        }
        shared.queue.clear_control();
        shared.control(Destination::All, Message::Bye);
        let mut batch = Vec::new();
        shared.queue.take(Lane::Control, BATCH_BYTES, &mut batch);
        let _ = timeout(GOODBYE, sender.send(&batch)).await;
    }

    /// Sends messages that were queued while the last batch of the flush was confirmed.
    async fn send_rest(&self, sender: &mut Sender) {
        let shared = self.shared();
        loop {
            let mut batch = std::mem::take(&mut *self.life.unconfirmed.borrow_mut());
            if batch.is_empty() {
                shared.queue.take(Lane::Data, BATCH_BYTES, &mut batch);
            }
            if batch.is_empty() {
                return;
            }
            self.life.under_way.set(batch.len());
            let kept = Kept { batch: &mut batch, life: self.life };
            if send_in_time(sender, kept.batch, shared).await.is_err() {
                return;
            }
            kept.batch.clear();
        }
    }

    /// Sends batches, one after the other: the next goes when the broker has confirmed the last, so that after a loss
    /// the order is known.
    async fn send(&self, sender: &mut Sender, echoes: bool) -> End {
        let shared = self.shared();
        loop {
            let mut batch = Vec::new();
            shared.queue.take(Lane::Control, BATCH_BYTES, &mut batch);
            if !batch.is_empty()
                && let Err(error) = send_in_time(sender, &batch, shared).await
            {
                return error.into();
            }
            if !self.life.is_up() {
                shared.queue.changed.notified().await;
                continue;
            }
            let max_bytes = self.life.batch_bytes.get();
            let mut batch = std::mem::take(&mut *self.life.unconfirmed.borrow_mut());
            if batch.is_empty() {
                shared.queue.take(Lane::Data, max_bytes, &mut batch);
            } else {
                *self.life.unconfirmed.borrow_mut() = split_off(&mut batch, max_bytes);
            }
            if batch.is_empty() {
                shared.queue.changed.notified().await;
                continue;
            }
            let began = Instant::now();
            // Also when this future is dropped: it must not be lost.
            self.life.under_way.set(batch.len());
            let kept = Kept { batch: &mut batch, life: self.life };
            if let Err(error) = send_in_time(sender, kept.batch, shared).await {
                return error.into();
            }
            if !echoes {
                self.probes_are_back(kept.batch);
            }
            kept.batch.clear();
            drop(kept);
            self.life.confirmed.notify_one();
            self.life.batch_bytes.set(next_batch(max_bytes, began.elapsed()));
        }
    }

    /// What goes to the node itself, of a batch that the broker has confirmed, goes on as if it had been brought.
    fn probes_are_back(&self, batch: &[Outbound]) {
        let shared = self.shared();
        for outbound in batch {
            if matches!(&outbound.to, Destination::Node(node) if **node == *shared.node) {
                // Without room it counts as lost, as what the broker brings does.
                self.life.backlog.push(shared, outbound.envelope.clone());
            }
        }
    }

    /// Tells the broker what the node's subscribers want.
    async fn follow(&self, subscriber: &mut Subscriber) -> End {
        let interests = &self.shared().interests;
        loop {
            let changes = interests.take(Instant::now());
            if changes.follow.is_empty() && changes.leave.is_empty() {
                if changes.is_more {
                    tokio::task::yield_now().await;
                    continue;
                }
                self.followed.notify_one();
                let due = interests.due();
                tokio::select! {
                    () = interests.changed.notified() => {}
                    () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
                }
                continue;
            }
            let tell = async {
                // Follow first: a followed name may replace names that are left.
                if !changes.follow.is_empty() {
                    subscriber.follow(&changes.follow).await?;
                }
                subscriber.leave(&changes.leave).await
            };
            match timeout(DEADLINE, tell).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error.into(),
                Err(_) => return LinkError::new("it does not answer").into(),
            }
        }
    }

    /// Reads what the broker brings, always at once: a broker that has to wait drops the connection.
    async fn read(&self, receiver: &mut Receiver) -> End {
        let mut batch = Vec::new();
        loop {
            if let Err(error) = receiver.next(&mut batch).await {
                return error.into();
            }
            let now = Instant::now();
            batch.drain(..).for_each(|envelope| self.take_in(envelope, now));
            if batch.capacity() > KEPT_BATCH {
                batch = Vec::new();
            }
            tokio::task::yield_now().await;
        }
    }

    /// Reads envelopes that arrived before the connection ended.
    fn read_rest(&self, receiver: &mut Receiver) {
        let (mut batch, now) = (Vec::new(), Instant::now());
        for _ in 0..MAX_RESTS {
            let is_open = matches!(receiver.next(&mut batch).now_or_never(), Some(Ok(())));
            batch.drain(..).for_each(|envelope| self.take_in(envelope, now));
            if !is_open {
                return;
            }
        }
    }

    /// Handles messages between drivers and drops duplicates at once; only the rest waits for the
    /// node's workers.
    fn take_in(&self, bytes: Bytes, now: Instant) {
        let shared = self.shared();
        let header = match Header::parse(&bytes) {
            Ok(header) => header,
            Err(error) => return self.life.invalid(error),
        };
        let origin = header.origin;
        if origin.node == shared.node && origin.incarnation == shared.incarnation {
            self.echoed.set(now);
            if header.is_probe() {
                self.life.backlog.push(shared, bytes);
            }
            return;
        }
        if !self.life.seen.borrow_mut().is_new(origin.node, origin.incarnation, header.sequence) {
            shared.metrics.duplicates.inc();
            return;
        }
        shared.metrics.received.inc();
        if header.is_of_driver() {
            match Envelope::parse(&bytes) {
                Ok(envelope) => self.on_driver(&envelope, now),
                Err(error) => self.life.invalid(error),
            }
        } else if !self.life.backlog.push(shared, bytes) {
            shared.metrics.dropped(Dropped::SlowNode, 1);
        }
    }

    fn on_driver(&self, envelope: &Envelope<'_>, now: Instant) {
        let shared = self.shared();
        let origin = envelope.origin;
        match envelope.message {
            Message::Hello { joined, wants_answer, connections, version } => {
                if origin.node == shared.node {
                    return self.on_namesake(origin.incarnation, joined);
                }
                if shared.peers.heard(origin.node, origin.incarnation, version, connections, now) {
                    info!(node = origin.node, version, "Another node of the cluster is there.");
                }
                if wants_answer {
                    shared.control(Destination::Node(origin.node.into()), self.hello(false));
                }
            }
            Message::Taken { incarnation }
                if origin.node == shared.node && incarnation == shared.incarnation =>
            {
                self.taken.notify_one();
            }
            Message::Bye if shared.peers.left(origin.node, origin.incarnation) => {
                info!(node = origin.node, "A node has left the cluster.");
            }
            Message::Answer { request, text } => shared.answered(request, text),
            _ => {}
        }
    }

    /// Another node has this one's name. That it lives must be seen from an answer to this node: the message may be
    /// one of a node that has crashed, or of this one's former life.
    fn on_namesake(&self, incarnation: u64, joined: bool) {
        let shared = self.shared();
        let it_goes = match (self.life.joined.get(), joined) {
            (true, false) => true,
            (false, true) => false,
            _ => shared.incarnation < incarnation,
        };
        if it_goes {
            warn!(node = shared.node, "Another node was started with this one's name; it is told to end.");
            shared.control(Destination::All, Message::Taken { incarnation });
        } else {
            shared.control(Destination::All, self.hello(true));
        }
    }

    fn hello(&self, wants_answer: bool) -> Message<'static> {
        Message::Hello {
            joined: self.life.joined.get(),
            wants_answer,
            connections: self.life.inbound.connections(),
            version: self.shared().version,
        }
    }

    /// Joins, then shows all second that it is there.
    async fn take_part(&self, echoes: bool) -> End {
        let shared = self.shared();
        self.followed.notified().await;
        shared.control(Destination::All, self.hello(true));
        if self.life.joined.get() {
            let _ = timeout(COMPANY, async {
                while !shared.peers.all_back() {
                    sleep(Duration::from_millis(20)).await;
                }
            })
            .await;
        } else {
            sleep(OBJECTION).await;
            self.life.joined.set(true);
        }
        self.came_up();
        loop {
            shared.control(Destination::All, self.hello(false));
            sleep(HEARTBEAT).await;
            let now = Instant::now();
            for node in shared.peers.expire(now) {
                warn!(node, "A node of the cluster is silent; it counts as gone.");
            }
            if echoes && now.saturating_duration_since(self.echoed.get()) > EXPIRY {
                return LinkError::new("it does not bring the node's own messages back").into();
            }
        }
    }

    fn came_up(&self) {
        let shared = self.shared();
        shared.set_state(State::Up);
        let nodes = shared.peers.len() + 1;
        match self.life.lost_at.get() {
            Some(lost_at) => {
                info!(outage = ?lost_at.elapsed(), nodes, "The cluster's broker is reached again.")
            }
            None => info!(broker = %shared.config.url, node = shared.node, nodes, "Joined the cluster."),
        }
        let _ = self.life.started.send(Start::Joined);
    }
}

async fn send_in_time(sender: &mut Sender, batch: &[Outbound], shared: &Shared) -> Result<(), LinkError> {
    match timeout(DEADLINE, sender.send(batch)).await {
        Ok(sent) => sent?,
        Err(_) => return Err(LinkError::new("it does not answer")),
    }
    shared.metrics.sent.add(batch.len() as u64);
    Ok(())
}

/// The size of the next batch, after one of `bytes` took so long: as large as can be confirmed well within the deadline,
/// so that a thin link carries less at a time rather than the same again and again.
fn next_batch(bytes: usize, took: Duration) -> usize {
    if took > DEADLINE / 4 {
        (bytes / 2).max(LEAST_BATCH)
    } else if took < DEADLINE / 32 {
        (bytes * 2).min(BATCH_BYTES)
    } else {
        bytes
    }
}

/// Takes what is beyond so many bytes off the end of a batch, which keeps one message at least.
fn split_off(batch: &mut Vec<Outbound>, max_bytes: usize) -> Vec<Outbound> {
    let mut bytes = 0;
    let fits = batch.iter().take_while(|outbound| {
        let has_room = bytes < max_bytes;
        bytes += outbound.envelope.len();
        has_room
    });
    let fits = fits.count();
    batch.split_off(fits)
}

/// Puts a batch that was not confirmed where the next connection finds it, before what did not fit into it. That one
/// begins with less at a time: it may have been too much.
struct Kept<'b, I> {
    batch: &'b mut Vec<Outbound>,
    life: &'b Life<I>,
}

impl<I> Drop for Kept<'_, I> {
    fn drop(&mut self) {
        self.life.under_way.set(0);
        if !self.batch.is_empty() {
            let mut unconfirmed = self.life.unconfirmed.borrow_mut();
            self.batch.append(&mut unconfirmed);
            *unconfirmed = std::mem::take(self.batch);
            self.life.batch_bytes.set((self.life.batch_bytes.get() / 4).max(LEAST_BATCH));
        }
    }
}

/// Guard that counts an envelope from the backlog as dropped unless it is processed.
struct InHand<'s>(&'s Shared);

impl Drop for InHand<'_> {
    fn drop(&mut self) {
        self.0.metrics.dropped(Dropped::SlowNode, 1);
    }
}

/// Received envelopes that wait for the node, bounded by bytes. Outlives connections.
struct Backlog {
    inner: RefCell<(VecDeque<Bytes>, usize)>,
    came: Notify,
    max_bytes: usize,
}

impl Backlog {
    fn new(max_bytes: usize) -> Self {
        Self { inner: RefCell::default(), came: Notify::new(), max_bytes }
    }

    /// False: there is no room, it is dropped.
    fn push(&self, shared: &Shared, envelope: Bytes) -> bool {
        let mut inner = self.inner.borrow_mut();
        let bytes = inner.1.saturating_add(envelope.len() + BACKLOG_OVERHEAD);
        if inner.1 > 0 && bytes > self.max_bytes {
            return false;
        }
        inner.1 = bytes;
        inner.0.push_back(envelope);
        shared.backlog_bytes.store(bytes, Ordering::Relaxed);
        self.came.notify_one();
        true
    }

    async fn next(&self, shared: &Shared) -> Bytes {
        loop {
            let next = {
                let mut inner = self.inner.borrow_mut();
                let next = inner.0.pop_front();
                inner.1 -= next.as_ref().map_or(0, |envelope| envelope.len() + BACKLOG_OVERHEAD);
                if inner.0.is_empty() && inner.0.capacity() > KEPT_BATCH {
                    inner.0 = VecDeque::new();
                }
                shared.backlog_bytes.store(inner.1, Ordering::Relaxed);
                next
            };
            match next {
                Some(envelope) => return envelope,
                None => self.came.notified().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_that_panics_runs_again_until_it_ends_by_itself() {
        let (mut runs, mut panics) = (0, Vec::new());
        let run = || {
            runs += 1;
            assert!(runs > 3, "a panic that this test wants");
        };
        supervise(run, |count| {
            panics.push(count);
            true
        });
        assert_eq!((runs, panics), (4, vec![1, 2, 3]));
        let mut runs = 0;
        let run = || {
            runs += 1;
            panic!("another panic that this test wants");
        };
        supervise(run, |_| false);
        assert_eq!(runs, 1);
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        for attempts in [0, 1, 5, 10, 1000] {
            let longest = FIRST_PAUSE.saturating_mul(1 << attempts.min(10)).min(LONGEST_PAUSE);
            let pause = pause_after(attempts);
            assert!(pause >= longest / 2 && pause <= longest, "{attempts}: {pause:?}");
        }
    }

    #[test]
    fn batches_fit_the_broker() {
        let mut bytes = BATCH_BYTES;
        for _ in 0..20 {
            bytes = next_batch(bytes, DEADLINE);
        }
        assert_eq!(bytes, LEAST_BATCH);
        assert_eq!(next_batch(bytes, DEADLINE / 10), bytes);
        for _ in 0..20 {
            bytes = next_batch(bytes, Duration::ZERO);
        }
        assert_eq!(bytes, BATCH_BYTES);
    }

    #[test]
    fn what_does_not_fit_into_a_batch_follows_in_its_order() {
        let of = |length: u8| Outbound { to: Destination::All, envelope: vec![length; length.into()].into() };
        let lengths =
            |batch: &[Outbound]| batch.iter().map(|outbound| outbound.envelope.len()).collect::<Vec<_>>();
        for (max_bytes, expected) in [(1, 1), (10, 1), (11, 2), (30, 2), (31, 3), (1000, 4)] {
            let mut batch: Vec<_> = [10, 20, 30, 40].map(of).into();
            let rest = split_off(&mut batch, max_bytes);
            assert_eq!(batch.len(), expected, "{max_bytes}");
            assert_eq!([lengths(&batch), lengths(&rest)].concat(), [10, 20, 30, 40]);
        }
    }
}

/// Tests that need the URL of a broker but never reach it.
#[cfg(test)]
#[cfg(feature = "nats")]
mod tests_of_life {
    use super::*;

    /// Receiver that records each sequence after `pause`.
    #[derive(Debug, Default)]
    struct Notes {
        received: Arc<std::sync::Mutex<Vec<u64>>>,
        pause: Duration,
        /// Sequence to panic at.
        panics_at: Option<u64>,
    }

    impl Inbound for Notes {
        async fn receive(&self, envelope: Envelope<'_>) -> Option<Answering> {
            sleep(self.pause).await;
            assert_ne!(Some(envelope.sequence), self.panics_at, "a panic that a test wants");
            self.received.lock().unwrap().push(envelope.sequence);
            None
        }

        fn connections(&self) -> u64 {
            0
        }
    }

    fn life(inbound: Notes, queue_bytes: usize) -> Life<Notes> {
        let mut config = crate::Config::new(crate::BrokerUrl::parse("nats://localhost").unwrap());
        config.queue_bytes = queue_bytes;
        let broker = Broker::new(config, "own".to_owned(), 7, "1");
        Life::new(broker.0, inbound, mpsc::channel().0)
    }

    fn envelope(node: &str, sequence: u64, message: Message<'_>) -> Bytes {
        let origin = crate::Origin { node, incarnation: 7 };
        let mut bytes = Envelope { origin, sequence: 0, message }.write();
        crate::envelope::set_sequence(&mut bytes, sequence);
        bytes.into()
    }

    fn hello() -> Message<'static> {
        Message::Hello { joined: true, wants_answer: false, connections: 1, version: "1" }
    }

    fn broadcast() -> Message<'static> {
        Message::Broadcast { payload: deeperhub_protocol::RawJson::parse(r#"{"type":"x"}"#).unwrap() }
    }

    #[test]
    fn signs_of_life_and_copies_are_noted_when_they_are_read() {
        let life = life(Notes::default(), 1000);
        let now = Instant::now();
        let connection =
            Connection { life: &life, followed: Notify::new(), taken: Notify::new(), echoed: Cell::new(now) };
        let later = now + Duration::from_secs(9);
        let (shared, metrics) = (&life.shared, &life.shared.metrics);
        // The backlog is not processed meanwhile: the node's workers are behind.
        for _ in 0..3 {
            connection.take_in(envelope("other", 1, broadcast()), now);
        }
        assert_eq!(life.backlog.inner.borrow().0.len(), 1);
        assert_eq!((metrics.received.value(), metrics.duplicates.value()), (1, 2));
        connection.take_in(envelope("own", 1, hello()), later);
        connection.take_in(envelope("other", 2, hello()), later);
        assert_eq!(connection.echoed.get(), later);
        assert_eq!(shared.peers.list(later).first().map(|peer| peer.silent), Some(Duration::ZERO));
        assert_eq!(life.backlog.inner.borrow().0.len(), 1);

        // Envelopes without room are counted as dropped; the others are accounted.
        for sequence in 3..100 {
            connection.take_in(envelope("other", sequence, broadcast()), now);
        }
        let kept = life.backlog.inner.borrow().0.len() as u64;
        assert!(kept > 3 && kept < 20, "{kept}");
        assert_eq!(metrics.dropped_for(Dropped::SlowNode), 98 - kept);
        let bytes = shared.backlog_bytes.load(Ordering::Relaxed);
        assert!(bytes > 500 && bytes <= 1000, "{bytes}");
    }

    #[test]
    fn what_came_is_carried_out_in_order_over_connections() {
        let received = Arc::<std::sync::Mutex<Vec<u64>>>::default();
        let notes =
            Notes { received: Arc::clone(&received), pause: Duration::from_millis(1), panics_at: None };
        let life = life(notes, 100_000);
        for sequence in 0..30 {
            assert!(life.backlog.push(&life.shared, envelope("other", sequence, broadcast())));
        }
        // Connections end while an envelope is being processed.
        for _ in 0..10_000 {
            if received.lock().unwrap().len() == 30 {
                break;
            }
            let connection = async { sleep(Duration::from_millis(3)).await };
            runtime().unwrap().block_on(life.carrying_out(connection));
        }
        assert_eq!(*received.lock().unwrap(), (0..30).collect::<Vec<_>>());
        assert_eq!(life.shared.metrics.dropped_for(Dropped::SlowNode), 0);
        assert_eq!(life.shared.backlog_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_panic_costs_what_it_happened_at() {
        let received = Arc::<std::sync::Mutex<Vec<u64>>>::default();
        let notes = Notes { received: Arc::clone(&received), panics_at: Some(2), ..Notes::default() };
        let life = life(notes, 100_000);
        let broker = Broker(Arc::clone(&life.shared));
        life.shared.set_state(State::Up);
        let payload = deeperhub_protocol::RawJson::parse(r#"{"type":"x"}"#).unwrap();
        broker.publish(Message::Broadcast { payload }).unwrap();
        for sequence in 0..5 {
            assert!(life.backlog.push(&life.shared, envelope("other", sequence, broadcast())));
        }
        let run = || {
            let all = async {
                while life.shared.backlog_bytes.load(Ordering::Relaxed) > 0 {
                    sleep(Duration::from_millis(1)).await;
                }
            };
            runtime().unwrap().block_on(life.carrying_out(all));
        };
        supervise(run, |panics| panicked(&life.shared, panics));
        assert_eq!(*received.lock().unwrap(), [0, 1, 3, 4]);
        let metrics = &life.shared.metrics;
        assert_eq!((metrics.restarts.value(), metrics.dropped_for(Dropped::SlowNode)), (1, 1));
        // Messages queued for the broker are kept.
        assert_eq!(life.waiting(), 1);
        assert!(matches!(broker.state(), State::Away { .. }));
    }

    #[test]
    fn what_the_broker_has_not_taken_at_the_end_is_counted() {
        let life = life(Notes::default(), 100_000);
        let broker = Broker(Arc::clone(&life.shared));
        life.shared.set_state(State::Up);
        let payload = deeperhub_protocol::RawJson::parse(r#"{"type":"x"}"#).unwrap();
        for _ in 0..3 {
            broker.publish(Message::Broadcast { payload }).unwrap();
        }
        let mut batch = Vec::new();
        life.shared.queue.take(Lane::Data, 1, &mut batch);
        drop(Kept { batch: &mut batch, life: &life });
        assert_eq!(life.stop_at(), None);
        let deadline = Instant::now();
        broker.stop(deadline);
        assert_eq!(life.stop_at(), Some(deadline));
        runtime().unwrap().block_on(life.flushed());
        life.stopped();
        assert_eq!(life.shared.metrics.dropped_for(Dropped::Stopped), 3);
        assert_eq!(broker.state(), State::Stopped);
        // The flush waits for an unreachable broker, but not for the whole of a long drain.
        broker.stop(Instant::now() + Duration::from_secs(1000));
        assert!(life.stop_at().is_some_and(|at| at <= Instant::now() + AWAY_AT_END));
    }
}
