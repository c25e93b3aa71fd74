//! State of a worker, and its handling of requests and deliveries.

use std::sync::Arc;
use std::task::{self, Poll};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, Cache};
use deeperhub_events::{Event, EventDetails, EventKind};
use deeperhub_listener::{ConnectionKey, Connections, Multicast};
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
use crate::phase::Phase;
use crate::session::Session;
use crate::sweep::{Action, SWEEP_STEPS_PER_ROUND, Sweep};
use crate::top::TopWindow;
use crate::trace::fan_out::FanOutTracker;
use crate::types::{ClientInfo, MAX_CLIENTS_PAGE_BYTES};
use crate::users::Users;
use crate::worker_request::{QueuedRequest, WorkerRequest};

/// Maximum requests of handles per round.
const REQUESTS_PER_ROUND: usize = 256;

/// Messages that a worker handles before it flushes deferred wake-ups of other workers
/// ([`Shard::publish`]). A round rarely reads more, so its publishes wake each worker once. If it
/// does read more (up to 256 KiB from each of 256 sockets), the others still start within a
/// fraction of a millisecond.
///
/// This is a count and not a time, because a time would need the clock for each message.
const MESSAGES_PER_WAKE_UP: u32 = 64;

/// Extent of a delivery pass.
enum DeliveryScope<'c, 'w> {
    /// Everything queued. Afterwards the worker registers for a wake-up.
    All(&'c mut task::Context<'w>),
    Until(InboxPosition),
}

/// State of one worker. It is not shared, so it has no locks.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) hub: Arc<Hub>,
    pub(crate) worker: u16,
    pub(crate) shard: Shard<Delivery>,
    pub(crate) metrics: WorkerMetrics,
    /// Serial of the last connection.
    last_serial: u64,
    users: Users,
    /// Sessions whose reading is paused until other workers have caught up.
    pub(crate) paused_publishers: Vec<ConnectionKey>,
    /// Number of rounds without congestion. Messages published before the last one are delivered,
    /// or will be soon.
    pub(crate) uncongested_rounds: u32,
    /// Time of a round, with the same time in Unix seconds.
    unix_clock: Option<(Instant, u64)>,
    /// Code of the last error reply, for the span of the message.
    pub(crate) last_error_code: Option<&'static str>,
    fan_out_tracker: FanOutTracker,
    /// Messages since the last flush of deferred wake-ups.
    messages_since_wake_up: u32,
    requests: Option<mpsc::Receiver<QueuedRequest>>,
    /// Request that waits for deliveries before it.
    blocked_request: Option<QueuedRequest>,
    /// Sweep in progress. Requests wait until it is done.
    sweep: Option<Sweep>,
    /// Window of the busiest topics and clients, while they are tracked.
    pub(crate) top_window: Option<Box<TopWindow>>,
    /// Limits as of this round.
    pub(crate) live: Arc<Config>,
    shared_config: Cache<Arc<ArcSwap<Config>>, Arc<Config>>,
}

impl Local {
    pub(crate) fn new(hub: &Arc<Hub>, worker: usize) -> Self {
        let shard = u16::try_from(worker).unwrap_or(u16::MAX);
        // The replaced worker returned its cells when it was dropped.
        let mut metrics = match hub.metrics.worker(worker) {
            Ok(metrics) => metrics,
            Err(error) => panic!("the worker's cells are taken: {error}"),
        };
        // The old worker's subscriptions ended with its shard. Its sessions are closed by this
        // worker, and each decrements the gauge of active connections.
        metrics.subscriptions.set(0);
        // Without system randomness, the clock makes serials differ across restarts.
        let start = getrandom::u64().unwrap_or_else(|_| {
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
        });
        let mut own_shard = hub.router.attach(ShardId(shard));
        if let Some(topic) = hub.canary.topic(shard) {
            own_shard.subscribe(WORKER_SUBSCRIBER, &Subscription::Topic(topic));
            hub.canary.on_worker_attached(shard);
        }
        Self {
            shard: own_shard,
            worker: shard,
            metrics,
            // Leaves room to count up without overflow, and keeps client IDs short.
            last_serial: start >> 24,
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
            live: hub.live.load_full(),
            shared_config: Cache::new(Arc::clone(&hub.live)),
            hub: Arc::clone(hub),
        }
    }

    /// Counts a message before it is handled.
    pub(crate) fn on_message(&mut self) {
        if self.messages_since_wake_up == MESSAGES_PER_WAKE_UP {
            self.wake_others();
        }
        self.messages_since_wake_up += 1;
    }

    /// Flushes deferred wake-ups of other workers.
    fn wake_others(&mut self) {
        self.messages_since_wake_up = 0;
        self.shard.flush_wakeups();
    }

    /// Counts a message over a limit. If limits are enforced, returns the time that the client
    /// should wait as an error.
    pub(crate) fn on_limit_exceeded(&mut self, limit: Limit, retry: RetryAfter) -> Result<(), Duration> {
        self.metrics.count_limited(limit);
        match self.live.listener.limit_mode {
            LimitMode::Enforce => Err(retry.0),
            LimitMode::Observe => Ok(()),
        }
    }

    pub(crate) fn allocate_serial(&mut self) -> u64 {
        self.last_serial += 1;
        self.last_serial
    }

    /// Returns Unix seconds at the time of a round. Reads the system clock once per round.
    pub(crate) fn unix_seconds(&mut self, round: Instant) -> u64 {
        match self.unix_clock {
            Some((at, seconds)) if at == round => seconds,
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
    pub(crate) fn event(
        &self,
        kind: EventKind,
        client_id: &ClientId,
        details: impl FnOnce() -> EventDetails,
    ) {
        if self.hub.bus.is_observed(kind) {
            self.hub.bus.publish(Event::new(SystemTime::now(), client_id.clone(), details()));
        }
    }

    fn find_session<'c>(
        id: ConnectionId,
        connections: &'c mut Connections<'_, Session>,
    ) -> Option<&'c mut Session> {
        connections.session(id.key).filter(|session| session.connection_id.serial == id.serial)
    }

    fn send(
        &mut self,
        sent_type: SentType,
        key: ConnectionKey,
        frame: &Frame,
        connections: &mut Connections<'_, Session>,
    ) -> bool {
        self.count_sent(sent_type, connections.send(key, frame), frame.len())
    }

    /// Counts a sent message. Returns `false` without a session.
    fn count_sent(&mut self, sent_type: SentType, session: Option<&mut Session>, bytes: usize) -> bool {
        let Some(session) = session else { return false };
        session.sent += 1;
        self.metrics.count_sent(sent_type, 1);
        self.event(EventKind::MessageSent, &session.client_id, || EventDetails::MessageSent {
            message_type: sent_type.name(),
            topic: None,
            bytes,
        });
        true
    }

    /// Ends a subscription on behalf of a backend and notifies the client. Returns `false` if there
    /// was none.
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

    fn execute(&mut self, request: WorkerRequest, connections: &mut Connections<'_, Session>) {
        // A handle that timed out has dropped the receiver of its reply.
        match request {
            WorkerRequest::Send { to, frame, reply } => {
                let found = Self::find_session(to, connections).is_some();
                let _ = reply.send(found && self.send(SentType::Raw, to.key, &frame, connections));
            }
            WorkerRequest::SendToUser { user, frame, reply } => {
                self.start_user_sweep(Action::Send(Multicast::new(frame)), &user, reply);
            }
            WorkerRequest::Broadcast { frame, reply } => {
                self.sweep =
                    Some(Sweep::for_all(Action::Send(Multicast::new(frame)), self.last_serial + 1, reply));
            }
            WorkerRequest::Disconnect { client, reply } => {
                let found = Self::find_session(client, connections).is_some();
                if found {
                    connections.close(client.key, disconnect_reason());
                }
                let _ = reply.send(found);
            }
            WorkerRequest::DisconnectUser { user, reply } => {
                self.start_user_sweep(Action::Disconnect, &user, reply);
            }
            WorkerRequest::Unsubscribe { client, topic, reply } => {
                let found = Self::find_session(client, connections).is_some();
                let _ = reply.send(found.then(|| self.unsubscribe(client.key, &topic, connections)));
            }
            WorkerRequest::UnsubscribeUser { user, topic, reply } => {
                self.start_user_sweep(Action::Unsubscribe(topic), &user, reply);
            }
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

    /// Starts a sweep over the current connections of a user.
    fn start_user_sweep(&mut self, action: Action, user: &str, reply: oneshot::Sender<u64>) {
        let (keys, end) = (self.users.keys(user), self.last_serial + 1);
        self.sweep = Some(Sweep::for_user(action, user, keys, end, reply));
    }

    /// Continues the sweep in progress. Returns `false` if it is not done.
    fn continue_sweep(&mut self, connections: &mut Connections<'_, Session>) -> bool {
        let Some(mut sweep) = self.sweep.take() else { return true };
        for _ in 0..SWEEP_STEPS_PER_ROUND {
            if connections.send_budget() == 0 {
                break;
            }
            let Some(key) = sweep.next_key(connections) else {
                let _ = sweep.reply.send(sweep.reached);
                return true;
            };
            let is_target =
                connections.session(key).is_some_and(|session| sweep.includes(session, &self.hub));
            let reached = is_target
                && match &sweep.action {
                    Action::Send(multicast) => {
                        let session = connections.send_multicast(key, multicast);
                        self.count_sent(SentType::Raw, session, multicast.frame().len())
                    }
                    Action::Unsubscribe(topic) => self.unsubscribe(key, topic, connections),
                    Action::Disconnect => {
                        connections.close(key, disconnect_reason());
                        true
                    }
                };
            sweep.reached += u64::from(reached);
        }
        self.sweep = Some(sweep);
        false
    }

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

    /// Delivers up to a mark. Returns `false` if the round's budget ran out before.
    fn deliver_until(&mut self, mark: InboxPosition, connections: &mut Connections<'_, Session>) -> bool {
        self.deliver(DeliveryScope::Until(mark), connections).is_pending()
    }

    /// Delivers queued publishes. Returns `Ready` if more is, or may be, queued.
    fn deliver(
        &mut self,
        scope: DeliveryScope<'_, '_>,
        connections: &mut Connections<'_, Session>,
    ) -> Poll<()> {
        let Self { shard, metrics, hub, worker, fan_out_tracker, .. } = self;
        let mut sent = 0;
        let now = connections.now();
        let deliver_to_one = |key, delivery: &Delivery| {
            if let Some(publisher) = delivery.excluded
                && publisher.key == key
                && publisher.worker == *worker
                && Self::find_session(publisher, connections).is_some()
            {
                return DeliveryFlow::Continue;
            }
            if let Some(session) = connections.send_multicast(key, &delivery.frame) {
                sent += 1;
                session.sent += 1;
                let bytes = delivery.frame.frame().len();
                if let Some(traced) = fan_out_tracker.record_delivery(&delivery.stamp, bytes, now, metrics) {
                    fan_out_tracker.record_subscriber(
                        traced,
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
                // This branch costs usual deliveries nothing, because they find a connection.
                hub.canary.on_probe_delivered(*worker, delivery.frame.frame().as_bytes());
            }
            if connections.send_budget() == 0 { DeliveryFlow::Pause } else { DeliveryFlow::Continue }
        };
        let more = match scope {
            DeliveryScope::All(cx) => shard.poll_deliver(cx, deliver_to_one),
            DeliveryScope::Until(mark) if shard.deliver_until(mark, deliver_to_one) => Poll::Pending,
            DeliveryScope::Until(_) => Poll::Ready(()),
        };
        metrics.count_sent(SentType::Message, sent);
        more
    }
}

impl deeperhub_listener::WorkerState<Session> for Local {
    fn on_written(&mut self, now: Instant) {
        self.fan_out_tracker.on_round_written(now, self.worker, &self.hub.config.tracer, &mut self.metrics);
    }

    fn poll(&mut self, cx: &mut task::Context<'_>, connections: &mut Connections<'_, Session>) -> Poll<()> {
        // Comes first, so that the other workers run in parallel.
        self.wake_others();
        let config = self.shared_config.load();
        if !Arc::ptr_eq(config, &self.live) {
            self.live = Arc::clone(config);
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

impl Drop for Local {
    fn drop(&mut self) {
        if *self.hub.phase.borrow() != Phase::Stopped {
            // The worker died. Its subscriptions end now and not when its replacement starts, which
            // may take a while. Until then nothing is published to it, and it congests no
            // publisher.
            drop(self.hub.router.attach(ShardId(self.worker)));
            self.metrics.subscriptions.set(0);
        }
        if let Some(mut requests) = self.requests.take() {
            // Callers get an error at once, because the clients that they asked about are gone.
            while requests.try_recv().is_ok() {}
            self.hub.return_request_receiver(self.worker.into(), requests);
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
