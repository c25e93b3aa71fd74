//! State of one worker of a node, and the worker's handling of requests and deliveries.

use std::sync::Arc;
use std::task::{self, Poll};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, Cache};
use deeperhub_events::{Event, EventDetails, EventKind};
use deeperhub_listener::{ConnectionKey, Connections};
use deeperhub_protocol::frame::Frame;
use deeperhub_protocol::message::ServerMessage;
use deeperhub_protocol::{ClientId, CloseCode, CloseReason, Subscription};
use deeperhub_router::{DeliveryFlow, InboxPosition, Shard, ShardId, WORKER_SUBSCRIBER};
use deeperhub_security::{LimitMode, RetryAfter};
use tokio::sync::{mpsc, oneshot};

use crate::auth::unix_seconds;
use crate::config::Config;
use crate::connection_id::ConnectionId;
use crate::hub::{Delivery, Hub};
use crate::metrics::{Limit, SentType, WorkerMetrics};
use crate::operation::{Action, Operation, Reached, Target, WorkerAction};
use crate::phase::Phase;
use crate::session::Session;
use crate::sweep::{SWEEP_STEPS_PER_ROUND, Sweep, SweepTargets};
use crate::top::TopWindow;
use crate::trace::fan_out::FanOutTracker;
use crate::types::{ClientInfo, MAX_CLIENTS_PAGE_BYTES};
use crate::users::Users;
use crate::worker_request::{QueuedRequest, WorkerRequest};

/// Maximum number of handles' requests that a worker executes per round. Bounds the time for which
/// requests delay reads and deliveries.
const REQUESTS_PER_ROUND: usize = 256;

/// Messages that a worker handles before it flushes deferred wake-ups of other workers
/// ([`Shard::publish`]). A round rarely reads more messages, so its publishes wake each worker
/// once. If a round reads more (up to 256 KiB from each of 256 sockets), the other workers still
/// start within a fraction of a millisecond.
///
/// This is a count and not a time, because a time would need the clock for each message.
const MESSAGES_PER_WAKE_UP: u32 = 64;

/// Messages that a call of [`NodeWorker::deliver`] delivers.
enum DeliveryScope<'c, 'w> {
    /// All queued messages. If none remain, the worker registers for a wake-up.
    All(&'c mut task::Context<'w>),
    /// Messages published before a position.
    Until(InboxPosition),
}

/// State of one worker. Only its thread accesses it, so it has no locks.
#[derive(Debug)]
pub(crate) struct NodeWorker {
    pub(crate) hub: Arc<Hub>,
    /// Number of the worker, which is also the number of its shard.
    pub(crate) index: u16,
    pub(crate) shard: Shard<Delivery>,
    pub(crate) metrics: WorkerMetrics,
    /// Serial of the worker's latest connection.
    last_serial: u64,
    users: Users,
    /// Connections whose reading is paused until no worker is congested.
    pub(crate) paused_publishers: Vec<ConnectionKey>,
    /// Number of rounds at whose end no worker was congested; wraps around. When the number grows,
    /// connections no longer hold the bytes of their earlier publishes.
    pub(crate) uncongested_rounds: u32,
    /// Start of a round, and the Unix seconds that were read in it.
    unix_clock: Option<(Instant, u64)>,
    /// Code of the last error reply, for the span of the message that is being handled.
    pub(crate) last_error_code: Option<&'static str>,
    fan_out_tracker: FanOutTracker,
    /// Messages since the last flush of deferred wake-ups.
    messages_since_wake_up: u32,
    requests: Option<mpsc::Receiver<QueuedRequest>>,
    /// Request that waits until earlier publishes are delivered.
    blocked_request: Option<QueuedRequest>,
    /// Sweep in progress. Requests wait until it is done.
    sweep: Option<Sweep>,
    /// Counts per topic and client. `None` while the busiest ones are not tracked.
    pub(crate) top_window: Option<Box<TopWindow>>,
    /// Configuration as of this round.
    pub(crate) live_config: Arc<Config>,
    shared_config: Cache<Arc<ArcSwap<Config>>, Arc<Config>>,
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
            messages_since_wake_up: 0,
            requests: hub.take_request_receiver(worker),
            blocked_request: None,
            sweep: None,
            top_window: None,
            live_config: hub.live_config.load_full(),
            shared_config: Cache::new(Arc::clone(&hub.live_config)),
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
    fn flush_wakeups(&mut self) {
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
        match self.live_config.listener.limit_mode {
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

    /// Returns the session of a connection that is still open.
    fn find_session<'c>(
        id: ConnectionId,
        connections: &'c mut Connections<'_, Session>,
    ) -> Option<&'c mut Session> {
        connections.session(id.key).filter(|session| session.connection_id.serial == id.serial)
    }

    /// Sends and counts a frame. Returns `false` if the connection is not open.
    fn send(
        &mut self,
        sent_type: SentType,
        key: ConnectionKey,
        frame: &Frame,
        connections: &mut Connections<'_, Session>,
    ) -> bool {
        self.count_sent(sent_type, connections.send(key, frame), frame.len())
    }

    /// Counts a message that was sent to `session`. Returns `false` if there is no session.
    fn count_sent(&mut self, sent_type: SentType, session: Option<&mut Session>, bytes: usize) -> bool {
        let Some(session) = session else { return false };
        session.sent += 1;
        self.metrics.count_sent(sent_type, 1);
        self.publish_event(EventKind::MessageSent, &session.client_id, || EventDetails::MessageSent {
            message_type: sent_type.name(),
            topic: None,
            bytes,
        });
        true
    }

    /// Ends a client's subscription at the request of a backend, and notifies the client. Returns
    /// `false` if there was no such subscription.
    pub(crate) fn unsubscribe(
        &mut self,
        key: ConnectionKey,
        topic: &Subscription<'_>,
        connections: &mut Connections<'_, Session>,
    ) -> bool {
        if !self.shard.unsubscribe(key, topic) {
            return false;
        }
        self.metrics.subscriptions.dec();
        let notice = ServerMessage::Unsubscribed { id: None, topic: topic.as_str() };
        self.send(SentType::Unsubscribed, key, &notice.to_frame(), connections);
        true
    }

    /// Executes a request, or starts its sweep.
    fn execute(&mut self, request: WorkerRequest, connections: &mut Connections<'_, Session>) {
        // A reply fails if the caller has timed out and dropped its receiver. That is no error.
        match request {
            WorkerRequest::Execute { operation: Operation { target, action }, reply } => match target {
                Target::Client(client) => {
                    let is_open = Self::find_session(client, connections).is_some();
                    let effect = is_open.then(|| self.apply(&action, client.key, connections)).flatten();
                    let _ = reply.send(effect.map(u64::from));
                }
                Target::User(user) => {
                    let targets = SweepTargets::user(&user, self.users.keys(&user));
                    self.start_sweep(targets, action, reply);
                }
                Target::All => self.start_sweep(SweepTargets::all(), action, reply),
            },
            WorkerRequest::Top { reply } => {
                let now = connections.now();
                let top_window = self.top_window.get_or_insert_with(|| Box::new(TopWindow::new(now)));
                let _ = reply.send(top_window.report(now));
            }
            WorkerRequest::Client { client, reply } => {
                let info =
                    Self::find_session(client, connections).map(|session| client_info(session, &self.shard));
                let _ = reply.send(info);
            }
            WorkerRequest::Clients { from, limit, reply } => {
                let (mut clients, mut bytes) = (Vec::new(), 0);
                let mut next = connections.next_open(from);
                while let Some(key) = next.filter(|_| clients.len() < limit && bytes < MAX_CLIENTS_PAGE_BYTES)
                {
                    let client = connections.session(key).map(|session| client_info(session, &self.shard));
                    bytes += client.as_ref().map_or(0, ClientInfo::bytes);
                    clients.extend(client);
                    next = key.checked_add(1).and_then(|key| connections.next_open(key));
                }
                let _ = reply.send((clients, next));
            }
            #[cfg(test)]
            WorkerRequest::Run(action) => action(),
        }
    }

    /// Applies an action to an open connection. Returns `true` if it had an effect, and `None` if
    /// the connection is about to be closed.
    fn apply(
        &mut self,
        action: &WorkerAction,
        key: ConnectionKey,
        connections: &mut Connections<'_, Session>,
    ) -> Option<bool> {
        match action {
            Action::Send(multicast) => {
                let session = connections.send_multicast(key, multicast);
                self.count_sent(SentType::Raw, session, multicast.frame().len()).then_some(true)
            }
            Action::Unsubscribe(topic) => Some(self.unsubscribe(key, topic, connections)),
            Action::Disconnect => {
                connections.close(key, disconnect_reason());
                Some(true)
            }
        }
    }

    /// Starts a sweep over connections that are open now.
    fn start_sweep(&mut self, targets: SweepTargets, action: WorkerAction, reply: oneshot::Sender<Reached>) {
        let serial_limit = self.last_serial + 1;
        self.sweep = Some(Sweep { action, targets, serial_limit, reached: 0, reply });
    }

    /// Continues the sweep in progress. Returns `true` if no sweep remains.
    fn continue_sweep(&mut self, connections: &mut Connections<'_, Session>) -> bool {
        let Some(mut sweep) = self.sweep.take() else { return true };
        for _ in 0..SWEEP_STEPS_PER_ROUND {
            if connections.send_budget() == 0 {
                break;
            }
            let Some(key) = sweep.targets.next_key(connections) else {
                let _ = sweep.reply.send(Some(sweep.reached));
                return true;
            };
            let is_target =
                connections.session(key).is_some_and(|session| sweep.includes(session, &self.hub));
            if is_target && self.apply(&sweep.action, key, connections) == Some(true) {
                sweep.reached += 1;
            }
        }
        self.sweep = Some(sweep);
        false
    }

    /// Executes queued requests. Returns `Pending` if none remain and the worker is registered for
    /// a wake-up by the next one.
    fn process_requests(
        &mut self,
        cx: &mut task::Context<'_>,
        connections: &mut Connections<'_, Session>,
    ) -> Poll<()> {
        for _ in 0..REQUESTS_PER_ROUND {
            if !self.continue_sweep(connections) || connections.send_budget() == 0 {
                return Poll::Ready(());
            }
            let queued = match (self.blocked_request.take(), &mut self.requests) {
                (Some(queued), _) => queued,
                (None, None) => return Poll::Pending,
                (None, Some(requests)) => match requests.poll_recv(cx) {
                    Poll::Ready(Some(queued)) => queued,
                    Poll::Ready(None) => {
                        self.requests = None;
                        return Poll::Pending;
                    }
                    Poll::Pending => return Poll::Pending,
                },
            };
            if !self.shard.has_delivered(queued.after) && !self.deliver_until(queued.after, connections) {
                self.blocked_request = Some(queued);
                return Poll::Ready(());
            }
            self.execute(queued.request, connections);
        }
        Poll::Ready(())
    }

    /// Delivers messages published before `position`. Returns `false` if the round's budget ended
    /// before all were delivered.
    fn deliver_until(&mut self, position: InboxPosition, connections: &mut Connections<'_, Session>) -> bool {
        self.deliver(DeliveryScope::Until(position), connections).is_pending()
    }

    /// Delivers queued messages. Returns `Ready` if some of `scope` may remain.
    fn deliver(
        &mut self,
        scope: DeliveryScope<'_, '_>,
        connections: &mut Connections<'_, Session>,
    ) -> Poll<()> {
        let Self { shard, metrics, hub, index, fan_out_tracker, .. } = self;
        let mut sent = 0;
        let now = connections.now();
        let deliver_to_one = |key, delivery: &Delivery| {
            if let Some(publisher) = delivery.excluded
                && publisher.key == key
                && publisher.worker == *index
                && Self::find_session(publisher, connections).is_some()
            {
                return DeliveryFlow::Continue;
            }
            if let Some(session) = connections.send_multicast(key, &delivery.frame) {
                sent += 1;
                session.sent += 1;
                let bytes = delivery.frame.frame().len();
                if let Some(traced_index) =
                    fan_out_tracker.record_delivery(&delivery.stamp, bytes, now, metrics)
                {
                    fan_out_tracker.record_subscriber(
                        traced_index,
                        &session.client_id,
                        session.handshake_span(),
                        bytes,
                        now,
                    );
                }
                if let Some(topic) = &delivery.topic {
                    let details = EventDetails::MessageSent {
                        message_type: SentType::Message.name(),
                        topic: Some(Arc::clone(topic)),
                        bytes,
                    };
                    hub.bus.publish(Event::new(SystemTime::now(), session.client_id.clone(), details));
                }
            } else if key == WORKER_SUBSCRIBER {
                // Usual deliveries find a connection and do not reach this check.
                hub.canary.on_probe_delivered(*index, delivery.frame.frame().as_bytes());
            }
            if connections.send_budget() == 0 { DeliveryFlow::Pause } else { DeliveryFlow::Continue }
        };
        let poll = match scope {
            DeliveryScope::All(cx) => shard.poll_deliver(cx, deliver_to_one),
            DeliveryScope::Until(position) if shard.deliver_until(position, deliver_to_one) => Poll::Pending,
            DeliveryScope::Until(_) => Poll::Ready(()),
        };
        metrics.count_sent(SentType::Message, sent);
        poll
    }
}

impl deeperhub_listener::WorkerState<Session> for NodeWorker {
    fn on_written(&mut self, now: Instant) {
        self.fan_out_tracker.on_round_written(now, self.index, &self.hub.config.tracer, &mut self.metrics);
    }

    fn poll(&mut self, cx: &mut task::Context<'_>, connections: &mut Connections<'_, Session>) -> Poll<()> {
        // This step comes first, so that the other workers run in parallel with the rest.
        self.flush_wakeups();
        let config = self.shared_config.load();
        if !Arc::ptr_eq(config, &self.live_config) {
            self.live_config = Arc::clone(config);
        }
        if self.top_window.is_some() != self.hub.top.is_tracking(connections.now()) {
            self.top_window = match self.top_window {
                None => Some(Box::new(TopWindow::new(connections.now()))),
                Some(_) => None,
            };
        }
        let requests = self.process_requests(cx, connections);
        let deliveries = self.deliver(DeliveryScope::All(cx), connections);
        if !self.hub.router.is_congested() {
            self.uncongested_rounds = self.uncongested_rounds.wrapping_add(1);
            for key in self.paused_publishers.drain(..) {
                connections.resume_reading(key);
            }
        }
        if requests.is_ready() || deliveries.is_ready() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for NodeWorker {
    fn drop(&mut self) {
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

fn disconnect_reason() -> CloseReason {
    CloseReason::new(CloseCode::Disconnected, "disconnected by the server API")
}

fn client_info(session: &Session, shard: &Shard<Delivery>) -> ClientInfo {
    ClientInfo {
        client_id: session.client_id.clone(),
        user: session.user().map(|user| user.to_string()),
        subscriptions: shard.subscriptions(session.connection_id.key).map(str::to_owned).collect(),
    }
}

#[cfg(test)]
mod tests;
