//! State of one worker.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, Cache};
use deeperhub_events::{Event, EventDetails, EventKind};
use deeperhub_listener::ConnectionKey;
use deeperhub_protocol::{ClientId, Subscription};
use deeperhub_router::{ShardId, WORKER_SUBSCRIBER};
use deeperhub_security::{LimitMode, RetryAfter};
use tokio::sync::mpsc;
use tokio::time::Sleep;

use super::refusals::Refusals;
use super::request::QueuedRequest;
use super::store_link::StoreLink;
use super::sweep::Sweep;
use super::users::Users;
use crate::auth::unix_seconds;
use crate::config::Limits;
use crate::hub::Hub;
use crate::metrics::{Limit, WorkerMetrics};
use crate::phase::Phase;
use crate::replay::Replays;
use crate::streams::HubShard;
use crate::top::TopWindow;
use crate::trace::fan_out::FanOutTracker;

/// Messages that a worker handles before it flushes deferred wake-ups of other workers
/// ([`HubShard::publish`]). A round rarely reads more messages, so its publishes wake each worker
/// once. If a round reads more (up to 256 KiB from each of 256 sockets), the other workers still
/// start within a fraction of a millisecond.
///
/// This is a count and not a time, because a time would need the clock for each message.
const MESSAGES_PER_WAKE_UP: u32 = 64;

/// State of one worker. Only its thread accesses it, so it has no locks.
#[derive(Debug)]
pub(crate) struct NodeWorker {
    pub(crate) hub: Arc<Hub>,
    /// Number of the worker, which is also the number of its shard.
    pub(crate) index: u16,
    pub(crate) shard: HubShard,
    pub(crate) metrics: WorkerMetrics,
    /// Serial of the worker's latest connection.
    pub(super) last_serial: u64,
    pub(super) users: Users,
    /// Connections whose reading is paused until no worker is congested.
    pub(crate) paused_publishers: Vec<ConnectionKey>,
    /// Number of rounds at whose end no worker was congested; wraps around. When the number grows,
    /// connections no longer hold the bytes of their earlier publishes.
    pub(crate) uncongested_rounds: u32,
    /// Start of a round, and the Unix seconds that were read in it.
    unix_clock: Option<(Instant, u64)>,
    /// Code of the last error reply, for the span of the message that is being handled.
    pub(crate) last_error_code: Option<&'static str>,
    pub(super) fan_out_tracker: FanOutTracker,
    /// Subscriptions that are behind their topic's stream.
    pub(crate) replays: Replays,
    /// Deliveries for which a connection's queue had no room.
    pub(super) refusals: Refusals,
    /// Timer of the next tick of sampled topics.
    pub(super) tick_timer: Option<Pin<Box<Sleep>>>,
    /// Messages since the last flush of deferred wake-ups.
    messages_since_wake_up: u32,
    pub(super) requests: Option<mpsc::Receiver<QueuedRequest>>,
    /// Request that waits until earlier publishes are delivered.
    pub(super) blocked_request: Option<QueuedRequest>,
    /// Sweep in progress. Requests wait until it is done.
    pub(super) sweep: Option<Sweep>,
    /// Side of the history store; `None` without a store.
    pub(super) store: Option<Box<StoreLink>>,
    /// Counts per topic and client. `None` while the busiest ones are not tracked.
    pub(crate) top_window: Option<Box<TopWindow>>,
    /// Limits as of this round.
    pub(crate) limits: Arc<Limits>,
    pub(super) shared_limits: Cache<Arc<ArcSwap<Limits>>, Arc<Limits>>,
}

impl NodeWorker {
    /// Creates the state of a worker that starts, or that replaces a dead one.
    pub(crate) fn new(hub: &Arc<Hub>, worker: usize) -> Self {
        let index = u16::try_from(worker).unwrap_or(u16::MAX);
        // The replaced worker returned its cells when it was dropped.
        let mut metrics = match hub.metrics.worker(worker) {
            Ok(metrics) => metrics,
            Err(error) => panic!("the worker's cells are taken: {error}"),
        };
        // A replaced worker's subscriptions ended with its shard. This worker closes the sessions
        // of the replaced one, and each decrements the gauge of active connections.
        metrics.subscriptions.set(0);
        metrics.behind.set(0);
        // Without system randomness, the clock makes serials differ across restarts.
        let random = getrandom::u64().unwrap_or_else(|_| {
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
        });
        let mut shard = hub.router.attach(ShardId(index));
        if let Some(topic) = hub.canary.topic(index) {
            shard.subscribe(WORKER_SUBSCRIBER, &Subscription::Topic(topic));
            hub.canary.on_worker_subscribed(index);
        }
        Self {
            shard,
            index,
            metrics,
            // The shift leaves room to count up without overflow, and keeps client IDs short.
            last_serial: random >> 24,
            users: Users::default(),
            paused_publishers: Vec::new(),
            uncongested_rounds: 0,
            unix_clock: None,
            last_error_code: None,
            fan_out_tracker: FanOutTracker::default(),
            replays: Replays::new(),
            refusals: Refusals::default(),
            tick_timer: None,
            messages_since_wake_up: 0,
            requests: hub.take_request_receiver(worker),
            blocked_request: None,
            sweep: None,
            store: StoreLink::open(&hub.streams, index),
            top_window: None,
            limits: hub.limits.load_full(),
            shared_limits: Cache::new(Arc::clone(&hub.limits)),
            hub: Arc::clone(hub),
        }
    }

    /// Counts a client's message before it is handled. Flushes deferred wake-ups after every
    /// [`MESSAGES_PER_WAKE_UP`] messages.
    pub(crate) fn on_message(&mut self) {
        if self.messages_since_wake_up == MESSAGES_PER_WAKE_UP {
            self.flush_wakeups();
        }
        self.messages_since_wake_up += 1;
    }

    /// Flushes deferred wake-ups of other workers.
    pub(super) fn flush_wakeups(&mut self) {
        self.messages_since_wake_up = 0;
        self.shard.flush_wakeups();
    }

    /// Counts a message over a limit.
    ///
    /// # Errors
    ///
    /// Returns the time that the client should wait, if limits are enforced.
    pub(crate) fn on_limit_exceeded(&mut self, limit: Limit, retry: RetryAfter) -> Result<(), Duration> {
        self.metrics.count_limited(limit);
        match self.hub.config.listener.limit_mode {
            LimitMode::Enforce => Err(retry.0),
            LimitMode::Observe => Ok(()),
        }
    }

    pub(crate) fn allocate_serial(&mut self) -> u64 {
        self.last_serial += 1;
        self.last_serial
    }

    /// Returns the time in Unix seconds. Reads the system clock once per round; `round` is the
    /// start of the current round.
    pub(crate) fn unix_seconds(&mut self, round: Instant) -> u64 {
        match self.unix_clock {
            Some((read_in, seconds)) if read_in == round => seconds,
            _ => {
                let seconds = unix_seconds();
                self.unix_clock = Some((round, seconds));
                seconds
            }
        }
    }

    pub(crate) fn add_user(&mut self, user: &Arc<str>, key: ConnectionKey) {
        self.users.add(user, key);
    }

    pub(crate) fn remove_user(&mut self, user: &Arc<str>, key: ConnectionKey) {
        self.users.remove(user, key);
    }

    /// Ends a subscription of a connection. Returns `false` if there was none.
    pub(crate) fn unsubscribe(&mut self, key: ConnectionKey, subscription: &Subscription<'_>) -> bool {
        let has_ended = self.replays.unsubscribe(key, subscription, (&self.hub.router, &mut self.shard));
        if has_ended {
            self.metrics.subscriptions.dec();
        }
        has_ended
    }

    /// Ends all subscriptions of a connection.
    pub(crate) fn unsubscribe_all(&mut self, key: ConnectionKey) {
        let ended = self.replays.unsubscribe_all(key, &mut self.shard);
        self.metrics.subscriptions.add(-(ended as i64));
        // The next round, which counts them too, can be late.
        self.metrics.behind.set(i64::try_from(self.replays.behind()).unwrap_or(i64::MAX));
    }

    /// Publishes an event if its kind is observed.
    pub(crate) fn publish_event(
        &self,
        kind: EventKind,
        client_id: &ClientId,
        details: impl FnOnce() -> EventDetails,
    ) {
        if self.hub.bus.is_observed(kind) {
            self.hub.bus.publish(Event::new(SystemTime::now(), client_id.clone(), details()));
        }
    }
}

impl Drop for NodeWorker {
    fn drop(&mut self) {
        self.hub.flush_broker();
        if *self.hub.phase.borrow() != Phase::Stopped {
            // The worker died. Its replacement may start much later, so its subscriptions end here.
            // Its inbox is then empty, gets no further messages, and congests no publisher.
            drop(self.hub.router.attach(ShardId(self.index)));
            self.metrics.subscriptions.set(0);
        }
        if let Some(mut requests) = self.requests.take() {
            // Dropping the queued requests fails their callers at once. The clients of this worker
            // lose their connections anyway.
            while requests.try_recv().is_ok() {}
            self.hub.return_request_receiver(self.index.into(), requests);
        }
    }
}
