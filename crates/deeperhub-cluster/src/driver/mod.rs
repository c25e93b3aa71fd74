//! The driver: a thread that connects to the broker, joins the cluster, sends and receives
//! messages, and reconnects.

mod backlog;
mod batch;
mod burst;
mod connection;
mod handler;
mod sending;
mod store_requests;
mod thread;

use std::cell::{Cell, RefCell};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;
use tokio::time::{sleep, sleep_until, timeout};
use tracing::warn;

use crate::batch::Batch;
use crate::broker::{ClusterState, Shared};
use crate::dedup_window::DedupWindow;
use crate::envelope::EnvelopeError;
use crate::link::{Link, LinkError};
use crate::metrics::Dropped;
use crate::store::{AppendError, AppendOutcome};
use backlog::{Backlog, CountDroppedOnDrop};
use batch::Unconfirmed;
use burst::{Burst, flush_after_polls};
use connection::Connection;
pub use handler::{MessageHandler, PendingAnswer};
pub use thread::{Driver, DriverHandle, JoinOutcome};

/// Timeout of each operation at the broker, after which the connection counts as lost. Long enough
/// for a busy machine, and short enough for a request that waits for a paused broker.
pub(crate) const BROKER_TIMEOUT: Duration = Duration::from_secs(3);

/// Unit of the backoff before an attempt to reconnect. The backoff doubles with each attempt.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);

/// Maximum backoff.
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// Maximum number of pending answers of this node. Limits memory use. At the limit, the next
/// envelope is processed when an answer is finished.
const MAX_PENDING_ANSWERS: usize = 1024;

/// Maximum time that a stop waits for an unreachable broker. Long enough to reconnect and to join.
const FLUSH_RECONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum time that a reconnect waits for the envelope that is being processed when a connection
/// ends. After this time, the envelope counts as dropped.
const ENVELOPE_FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Reason why a connection ended.
enum ConnectionEnd {
    Stopped,
    NameTaken,
    Lost(LinkError),
}

impl From<LinkError> for ConnectionEnd {
    fn from(error: LinkError) -> Self {
        Self::Lost(error)
    }
}

/// Returns the exponential backoff after a number of attempts. Jitter reduces it by up to half, so
/// that nodes do not reconnect all at once.
fn reconnect_backoff(attempts: usize) -> Duration {
    let backoff = FIRST_BACKOFF.saturating_mul(1 << attempts.min(10)).min(MAX_BACKOFF);
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    backoff.mul_f64(1.0 - f64::from(random) / f64::from(u32::MAX) / 2.0)
}

/// Request to stop processing.
#[derive(Default)]
struct Stop {
    is_set: Cell<bool>,
    changed: Notify,
}

/// State of the driver that outlives a connection.
struct DriverState<I> {
    shared: Arc<Shared>,
    handler: I,
    join_outcome: mpsc::Sender<JoinOutcome>,
    dedup: RefCell<DedupWindow>,
    /// Messages that were taken from the queue and that the broker has not confirmed.
    unconfirmed: Unconfirmed,
    /// Notified when the broker has confirmed a batch.
    confirmed: Notify,
    /// Received envelopes that are not processed yet.
    backlog: Backlog,
    /// `true` if the node has joined once, so that its name is confirmed.
    joined: Cell<bool>,
    /// Start of the current outage.
    disconnected_at: Cell<Option<Instant>>,
    has_logged_invalid: Cell<bool>,
    has_logged_later_version: Cell<bool>,
}

impl<I: MessageHandler> DriverState<I> {
    fn new(shared: Arc<Shared>, handler: I, join_outcome: mpsc::Sender<JoinOutcome>) -> Self {
        Self {
            backlog: Backlog::new(shared.config.queue_bytes),
            shared,
            handler,
            join_outcome,
            dedup: RefCell::default(),
            unconfirmed: Unconfirmed::new(),
            confirmed: Notify::new(),
            joined: Cell::new(false),
            disconnected_at: Cell::new(None),
            has_logged_invalid: Cell::new(false),
            has_logged_later_version: Cell::new(false),
        }
    }

    fn run(&mut self) {
        let mut attempt = 0;
        loop {
            // Each connection has its own runtime. Its drop also ends the client library's tasks.
            let end = match runtime() {
                Ok(runtime) => runtime.block_on(self.process_backlog_while(self.run_connection(attempt))),
                Err(error) => ConnectionEnd::Lost(LinkError::new(error)),
            };
            attempt = if self.is_up() { 0 } else { attempt + 1 };
            match end {
                ConnectionEnd::Stopped => return self.on_stopped(),
                ConnectionEnd::NameTaken => {
                    self.shared.set_state(ClusterState::NameTaken);
                    let _ = self.join_outcome.send(JoinOutcome::NameTaken);
                    return;
                }
                ConnectionEnd::Lost(error) => self.on_disconnected(error),
            }
            if self.wait_before_reconnect(attempt) {
                return self.on_stopped();
            }
        }
    }

    fn on_disconnected(&self, error: LinkError) {
        let shared = &self.shared;
        let _ = self.join_outcome.send(JoinOutcome::Unreachable(error.0.clone()));
        if self.disconnected_at.get().is_none() {
            self.disconnected_at.set(Some(Instant::now()));
            shared.metrics.outages.inc();
            warn!(
                broker = %shared.config.url, %error, unconfirmed = self.unconfirmed_count(),
                "Broker unreachable; serving local clients only"
            );
        }
        if self.is_up() {
            self.handler.on_disconnected();
        }
        shared.set_state(ClusterState::Disconnected { error: error.0 });
        shared.queue.clear_control();
    }

    /// Returns the number of messages that the broker has not confirmed.
    fn unconfirmed_count(&self) -> usize {
        self.shared.queue.len() + self.unconfirmed.len()
    }

    /// Passes outcomes of appends to the handler.
    fn report(&self, outcomes: Vec<AppendOutcome>) {
        for (number, outcome) in outcomes {
            self.handler.on_appended(number, outcome);
        }
    }

    /// Refuses further appends, and fails those that the store has not confirmed. The driver has
    /// ended.
    fn fail_appends(&self) {
        let unconfirmed = self.unconfirmed.take_all();
        let queued = self.shared.queue.close_for_appends();
        for target in unconfirmed.into_iter().flat_map(Batch::into_appends).chain(queued) {
            self.handler.on_appended(target.number, Err(AppendError::Stopped));
        }
    }

    /// Counts and logs the messages that the broker has not confirmed.
    fn on_stopped(&self) {
        // The state is set first, so that no more messages are accepted.
        self.shared.set_state(ClusterState::Stopped);
        let messages = self.unconfirmed_count();
        if messages > 0 {
            self.shared.metrics.dropped(Dropped::Stopped, messages as u64);
            warn!(messages, "Stopped before the broker confirmed all messages");
        }
    }

    /// Returns the deadline of the flush before the stop, or `None` if no stop was requested.
    fn flush_deadline(&self) -> Option<Instant> {
        let stop = self.shared.stop_request()?;
        if self.is_up() {
            return Some(stop.deadline);
        }
        let waiting_since =
            self.disconnected_at.get().map_or(stop.since, |disconnected_at| disconnected_at.max(stop.since));
        Some(stop.deadline.min(waiting_since + FLUSH_RECONNECT_TIMEOUT))
    }

    /// Waits until a stop was requested, and then until the broker has confirmed all messages or
    /// the deadline has passed.
    async fn wait_for_flush(&self) {
        loop {
            match self.flush_deadline() {
                None => self.shared.stop.changed.notified().await,
                Some(deadline) if self.unconfirmed_count() == 0 || deadline <= Instant::now() => return,
                Some(deadline) => {
                    tokio::select! {
                        () = self.confirmed.notified() => {}
                        // Another stop request may have an earlier deadline.
                        () = self.shared.stop.changed.notified() => {}
                        () = sleep_until(deadline.into()) => {}
                    }
                }
            }
        }
    }

    /// Waits for the backoff before the next attempt. Returns `true` if the driver must stop
    /// instead.
    fn wait_before_reconnect(&self, attempt: usize) -> bool {
        let backoff = reconnect_backoff(attempt);
        let wait = async {
            tokio::select! {
                () = sleep(backoff) => false,
                () = self.wait_for_flush() => true,
            }
        };
        match runtime() {
            Ok(runtime) => runtime.block_on(self.process_backlog_while(wait)),
            Err(_) => {
                std::thread::sleep(backoff);
                self.shared.stop_request().is_some()
            }
        }
    }

    /// Connects, and runs the connection until it ends.
    async fn run_connection(&self, attempt: usize) -> ConnectionEnd {
        let connecting = timeout(BROKER_TIMEOUT + BROKER_TIMEOUT, Link::connect(&self.shared, attempt));
        let link = tokio::select! {
            biased;
            () = self.wait_for_flush() => return ConnectionEnd::Stopped,
            link = connecting => link,
        };
        let link = match link {
            Ok(Ok(link)) => link,
            Ok(Err(error)) => return ConnectionEnd::Lost(error),
            Err(_) => return ConnectionEnd::Lost(LinkError::new("the broker did not answer in time")),
        };
        let now = Instant::now();
        // A panic may have ended the connection before.
        self.unconfirmed.requeue();
        self.shared.interests.reset();
        self.shared.peers.expect_all(now);
        let connection = Connection {
            driver: self,
            subscribed: Notify::new(),
            name_taken: Notify::new(),
            last_echo: Cell::new(now),
        };
        let end = connection.run(link).await;
        if self.is_up() {
            // The node had joined, so the loss of this connection starts another outage.
            self.disconnected_at.set(None);
        }
        end
    }

    /// Processes the backlog in order until `other` ends. Then finishes the envelope that is being
    /// processed, within [`ENVELOPE_FINISH_TIMEOUT`].
    async fn process_backlog_while<T>(&self, other: impl Future<Output = T>) -> T {
        let stop = Stop::default();
        let processing = flush_after_polls(self.process_backlog(&stop), || self.handler.flush());
        tokio::pin!(processing);
        let result = tokio::select! {
            result = other => result,
            () = &mut processing => unreachable!("processing ends only when it is notified"),
        };
        stop.is_set.set(true);
        stop.changed.notify_one();
        let _ = timeout(ENVELOPE_FINISH_TIMEOUT, processing).await;
        result
    }

    /// Processes the backlog until `stop` is set.
    async fn process_backlog(&self, stop: &Stop) {
        let shared = &self.shared;
        let mut answers: FuturesUnordered<PendingAnswer> = FuturesUnordered::new();
        let mut burst = Burst::default();
        loop {
            tokio::select! {
                biased;
                () = stop.changed.notified() => return,
                Some(()) = answers.next(), if !answers.is_empty() => continue,
                () = self.backlog.wait_for_push(), if answers.len() < MAX_PENDING_ANSWERS => {}
            }
            // The rest of a burst needs no look at anything else.
            while !stop.is_set.get()
                && answers.len() < MAX_PENDING_ANSWERS
                && let Some(envelope) = self.backlog.pop(shared)
            {
                let guard = CountDroppedOnDrop(shared);
                match envelope.parse() {
                    // Another node with this node's name sent the envelope. One of both nodes is
                    // about to leave.
                    Ok(envelope)
                        if envelope.origin.incarnation != shared.incarnation
                            && envelope.origin.node == shared.node
                            && !envelope.message.is_from_store() => {}
                    Ok(envelope) => answers.extend(self.handler.handle(envelope).await),
                    Err(error) => self.on_invalid(error),
                }
                std::mem::forget(guard);
                if burst.ends_with(envelope.len()) {
                    tokio::task::yield_now().await;
                    break;
                }
            }
        }
    }

    fn on_invalid(&self, error: EnvelopeError) {
        self.shared.metrics.invalid.inc();
        if error.is_of_later_version() {
            if !self.has_logged_later_version.replace(true) {
                warn!(%error, "Cluster message of a later version ignored");
            }
        } else if !self.has_logged_invalid.replace(true) {
            warn!(%error, "Invalid cluster message; another program may use the prefix");
        }
    }

    fn is_up(&self) -> bool {
        self.shared.is_up.load(Ordering::Acquire)
    }
}

fn runtime() -> std::io::Result<Runtime> {
    Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_to_its_limit() {
        for attempts in [0, 1, 5, 10, 1000] {
            let longest = FIRST_BACKOFF.saturating_mul(1 << attempts.min(10)).min(MAX_BACKOFF);
            let pause = reconnect_backoff(attempts);
            assert!(pause >= longest / 2 && pause <= longest, "{attempts}: {pause:?}");
        }
    }
}

#[cfg(test)]
#[cfg(feature = "nats")]
mod state_tests;
