//! Keeps the connection to the broker: connects, joins, sends, receives, and begins again when it is lost.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, oneshot};
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{info, warn};

use crate::broker::{Broker, Shared, State};
use crate::envelope::{Envelope, EnvelopeError, Message};
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
            Life::new(self.shared, inbound, started).run();
            drop(end);
        })?;
        Ok(Running { start, ended })
    }
}

/// All that outlives a connection.
struct Life<I> {
    shared: Arc<Shared>,
    inbound: I,
    started: mpsc::Sender<Start>,
    seen: RefCell<Seen>,
    /// What was given to the broker and not confirmed; it goes again, and who has it already knows.
    unconfirmed: RefCell<Vec<Outbound>>,
    /// How much goes to the broker at a time.
    batch_bytes: Cell<usize>,
    /// Whether the node has had its name for a while.
    joined: Cell<bool>,
    lost_at: Option<Instant>,
    invalid_told: Cell<bool>,
}

impl<I: Inbound> Life<I> {
    fn new(shared: Arc<Shared>, inbound: I, started: mpsc::Sender<Start>) -> Self {
        Self {
            shared,
            inbound,
            started,
            seen: RefCell::default(),
            unconfirmed: RefCell::default(),
            batch_bytes: Cell::new(BATCH_BYTES),
            joined: Cell::new(false),
            lost_at: None,
            invalid_told: Cell::new(false),
        }
    }

    fn run(&mut self) {
        let mut attempt = 0;
        loop {
            // One runtime for each connection: with it all tasks end that client libraries have left behind.
            let end = match runtime() {
                Ok(runtime) => runtime.block_on(self.connection(attempt)),
                Err(error) => End::Lost(LinkError::new(error)),
            };
            attempt = if self.is_up() { 0 } else { attempt + 1 };
            match end {
                End::Stopped => return self.shared.set_state(State::Stopped),
                End::Taken => {
                    self.shared.set_state(State::Taken);
                    let _ = self.started.send(Start::Taken);
                    return;
                }
                End::Lost(error) => self.lost(error),
            }
            if self.pause(attempt) {
                return self.shared.set_state(State::Stopped);
            }
        }
    }

    fn lost(&mut self, error: LinkError) {
        let shared = &self.shared;
        let _ = self.started.send(Start::Unreachable(error.0.clone()));
        let is_first = self.lost_at.is_none();
        if is_first {
            self.lost_at = Some(Instant::now());
            shared.metrics.outages.inc();
            let waiting = shared.queue.len() + self.unconfirmed.borrow().len();
            warn!(
                broker = %shared.config.url, %error, waiting,
                "The cluster's broker cannot be reached; this node serves its own clients until it can."
            );
        }
        shared.set_state(State::Away { error: error.0 });
        shared.queue.clear_control();
    }

    /// Waits before the next attempt; answers whether the driver is to end instead.
    fn pause(&self, attempt: usize) -> bool {
        let doubled = FIRST_PAUSE.saturating_mul(1 << attempt.min(10));
        let chance = getrandom::u32().unwrap_or(u32::MAX / 2);
        let pause = doubled.min(LONGEST_PAUSE).mul_f64(1.0 - f64::from(chance) / f64::from(u32::MAX) / 2.0);
        let wait = async {
            tokio::select! {
                () = sleep(pause) => {}
                () = self.shared.stop.told.notified() => {}
            }
        };
        match runtime() {
            Ok(runtime) => runtime.block_on(wait),
            Err(_) => std::thread::sleep(pause),
        }
        self.shared.stop_wanted().is_some()
    }

    /// One connection from its beginning to its end.
    async fn connection(&mut self, attempt: usize) -> End {
        if self.shared.stop_wanted().is_some() {
            return End::Stopped;
        }
        let connecting = timeout(DEADLINE + DEADLINE, Link::connect(&self.shared, attempt));
        let link = tokio::select! {
            link = connecting => link,
            () = self.shared.stop.told.notified() => return End::Stopped,
        };
        let link = match link {
            Ok(Ok(link)) => link,
            Ok(Err(error)) => return End::Lost(error),
            Err(_) => return End::Lost(LinkError::new("it does not answer")),
        };
        let now = Instant::now();
        self.shared.interests.start_over();
        self.shared.peers.start_over(now);
        let end = Connection {
            life: self,
            backlog: Backlog::new(self.shared.config.queue_bytes),
            followed: Notify::new(),
            taken: Notify::new(),
            echoed: Cell::new(now),
        }
        .run(link)
        .await;
        if self.is_up() {
            // The outage before it is over; what comes now is another.
            self.lost_at = None;
        }
        end
    }

    fn is_up(&self) -> bool {
        self.shared.is_up.load(std::sync::atomic::Ordering::Acquire)
    }
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

/// One connection while it holds.
struct Connection<'l, I> {
    life: &'l Life<I>,
    backlog: Backlog,
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
            end = self.carry_out() => end,
            end = self.take_part(echoes) => end,
            () = self.taken.notified() => End::Taken,
            () = self.stopped() => End::Stopped,
        };
        if matches!(end, End::Stopped) {
            self.say_goodbye(&mut sender).await;
        }
        end
    }

    async fn stopped(&self) {
        while self.shared().stop_wanted().is_none() {
            self.shared().stop.told.notified().await;
        }
    }

    fn shared(&self) -> &Shared {
        &self.life.shared
    }

    /// Sends what waits, and leaves.
    async fn say_goodbye(&self, sender: &mut Sender) {
        let shared = self.shared();
        let Some(deadline) = shared.stop_wanted() else { return };
        let goodbye = async {
            loop {
                let mut batch = std::mem::take(&mut *self.life.unconfirmed.borrow_mut());
                if batch.is_empty() {
                    shared.queue.take(Lane::Data, BATCH_BYTES, &mut batch);
                }
                if batch.is_empty() {
                    break;
                }
                if sender.send(&batch).await.is_err() {
                    return;
                }
                shared.metrics.sent.add(batch.len() as u64);
            }
            shared.control(Destination::All, Message::Bye);
            let mut batch = Vec::new();
            shared.queue.take(Lane::Control, BATCH_BYTES, &mut batch);
            let _ = sender.send(&batch).await;
        };
        let _ = tokio::time::timeout_at(deadline.into(), goodbye).await;
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
            let kept = Kept { batch: &mut batch, life: self.life };
            if let Err(error) = send_in_time(sender, kept.batch, shared).await {
                return error.into();
            }
            if !echoes {
                self.probes_are_back(kept.batch);
            }
            kept.batch.clear();
            drop(kept);
            self.life.batch_bytes.set(next_batch(max_bytes, began.elapsed()));
        }
    }

    /// What goes to the node itself, of a batch that the broker has confirmed, goes on as if it had been brought.
    fn probes_are_back(&self, batch: &[Outbound]) {
        let shared = self.shared();
        for outbound in batch {
            if matches!(&outbound.to, Destination::Node(node) if **node == *shared.node) {
                // Without room it counts as lost, as what the broker brings does.
                self.backlog.push(outbound.envelope.clone());
            }
        }
    }

    /// Tells the broker what the node's subscribers want.
    async fn follow(&self, subscriber: &mut Subscriber) -> End {
        let interests = &self.shared().interests;
        loop {
            let changes = interests.take(Instant::now());
            if changes.follow.is_empty() && changes.leave.is_empty() {
                self.followed.notify_one();
                let due = interests.due();
                tokio::select! {
                    () = interests.changed.notified() => {}
                    () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {}
                }
                continue;
            }
            let tell = async {
                subscriber.leave(&changes.leave).await?;
                if changes.follow.is_empty() { Ok(()) } else { subscriber.follow(&changes.follow).await }
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
        let mut budget = 0;
        loop {
            match receiver.next().await {
                Ok(envelope) => {
                    if !self.backlog.push(envelope) {
                        self.shared().metrics.dropped(Dropped::SlowNode, 1);
                    }
                }
                Err(error) => return error.into(),
            }
            budget += 1;
            if budget % RECEIVE_BUDGET == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Carries out what was read, in its order.
    async fn carry_out(&self) -> End {
        let mut answers: FuturesUnordered<Answering> = FuturesUnordered::new();
        let mut budget = 0;
        loop {
            let envelope = tokio::select! {
                Some(()) = answers.next(), if !answers.is_empty() => continue,
                envelope = self.backlog.next(), if answers.len() < MAX_ANSWERS => envelope,
            };
            answers.extend(self.on_envelope(&envelope).await);
            budget += 1;
            if budget % RECEIVE_BUDGET == 0 {
                tokio::task::yield_now().await;
            }
        }
    }

    async fn on_envelope(&self, bytes: &[u8]) -> Option<Answering> {
        let shared = self.shared();
        let envelope = match Envelope::parse(bytes) {
            Ok(envelope) => envelope,
            Err(error) => {
                self.invalid(error);
                return None;
            }
        };
        let origin = envelope.origin;
        if origin.node == shared.node && origin.incarnation == shared.incarnation {
            self.echoed.set(Instant::now());
            return match envelope.message {
                Message::Probe { .. } => self.life.inbound.receive(envelope).await,
                _ => None,
            };
        }
        if !self.life.seen.borrow_mut().is_new(origin.node, origin.incarnation, envelope.sequence) {
            shared.metrics.duplicates.inc();
            return None;
        }
        shared.metrics.received.inc();
        match envelope.message {
            Message::Hello { joined, wants_answer, connections, version } => {
                if origin.node == shared.node {
                    self.on_namesake(origin.incarnation, joined);
                    return None;
                }
                if shared.peers.heard(origin.node, origin.incarnation, version, connections, Instant::now()) {
                    info!(node = origin.node, version, "Another node of the cluster is there.");
                }
                if wants_answer {
                    shared.control(Destination::Node(origin.node.into()), self.hello(false));
                }
                None
            }
            Message::Taken { incarnation } => {
                if origin.node == shared.node && incarnation == shared.incarnation {
                    self.taken.notify_one();
                }
                None
            }
            Message::Bye => {
                if shared.peers.left(origin.node, origin.incarnation) {
                    info!(node = origin.node, "A node has left the cluster.");
                }
                None
            }
            Message::Answer { request, text } => {
                shared.answered(request, text);
                None
            }
            // Of a node that has this one's name: it is about to go, or this one is.
            _ if origin.node == shared.node => None,
            _ => self.life.inbound.receive(envelope).await,
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

    fn invalid(&self, error: EnvelopeError) {
        self.shared().metrics.invalid.inc();
        if !self.life.invalid_told.replace(true) {
            warn!(%error, "A message of the cluster cannot be read: perhaps another program uses the prefix.");
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
        match self.life.lost_at {
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
        if !self.batch.is_empty() {
            let mut unconfirmed = self.life.unconfirmed.borrow_mut();
            self.batch.append(&mut unconfirmed);
            *unconfirmed = std::mem::take(self.batch);
            self.life.batch_bytes.set((self.life.batch_bytes.get() / 4).max(LEAST_BATCH));
        }
    }
}

/// What came from the broker and waits for the node, bounded by bytes.
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
    fn push(&self, envelope: Bytes) -> bool {
        let mut inner = self.inner.borrow_mut();
        if inner.1 > 0 && inner.1 + envelope.len() > self.max_bytes {
            return false;
        }
        inner.1 += envelope.len();
        inner.0.push_back(envelope);
        self.came.notify_one();
        true
    }

    async fn next(&self) -> Bytes {
        loop {
            let next = {
                let mut inner = self.inner.borrow_mut();
                let next = inner.0.pop_front();
                inner.1 -= next.as_ref().map_or(0, Bytes::len);
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
