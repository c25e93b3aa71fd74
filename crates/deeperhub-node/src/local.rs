//! What a worker keeps for its sessions, and what comes to them from elsewhere.

use std::sync::Arc;
use std::task::{self, Poll};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::{ArcSwap, Cache};
use deeperhub_events::{Details, Event, EventKind};
use deeperhub_listener::{ConnectionKey, Connections, Multicast};
use deeperhub_protocol::frame::Frame;
use deeperhub_protocol::message::ServerMessage;
use deeperhub_protocol::{ClientId, CloseCode, CloseReason, Subscription};
use deeperhub_router::{Flow, LOOPBACK, Mark, Shard, ShardId};
use deeperhub_security::{LimitMode, RetryAfter};
use tokio::sync::{mpsc, oneshot};

use crate::ask::Posted;
use crate::auth::unix_seconds;
use crate::config::Config;
use crate::handle::{CLIENTS_BYTES, ClientInfo};
use crate::hub::{Delivery, Hub, Request};
use crate::id::Place;
use crate::metrics::{Limit, Sent, WorkerMetrics};
use crate::phase::Phase;
use crate::session::Session;
use crate::sweep::{Action, STEPS_PER_ROUND, Sweep};
use crate::top::Counting;
use crate::trace::fan_out::FanOuts;
use crate::users::Users;

/// Requests of handles that one round takes.
const REQUESTS_PER_ROUND: usize = 256;

/// Messages that this worker handles before it wakes those that it has left asleep ([`Shard::publish`]). A round seldom
/// reads more, so what it publishes wakes each worker once. Where it does (up to 256 KiB of each of 256 sockets), the others
/// begin after a fraction of a millisecond nonetheless.
///
/// Not a time, since that would be a look at the clock for each message.
const MESSAGES_PER_WAKE_UP: u32 = 64;

/// How much of what was published is delivered.
enum Extent<'c, 'w> {
    /// All, and then a wake-up is asked for.
    All(&'c mut task::Context<'w>),
    Until(Mark),
}

/// One worker's part of the node. Nothing in it is shared, so nothing is locked.
#[derive(Debug)]
pub(crate) struct Local {
    pub(crate) hub: Arc<Hub>,
    pub(crate) worker: u16,
    pub(crate) shard: Shard<Delivery>,
    pub(crate) metrics: WorkerMetrics,
    /// Serial of the next connection.
    next_serial: u64,
    users: Users,
    /// Sessions that wait for other workers to catch up before they read on.
    pub(crate) paused: Vec<ConnectionKey>,
    /// Number of rounds in which no worker was behind. Messages published before the last of them
    /// are delivered, or will be soon.
    pub(crate) relief: u32,
    /// The time of a round, and the same in seconds since 1970.
    clock: Option<(Instant, u64)>,
    /// The code of the last error that a message was answered with, for its span.
    pub(crate) answered_with: Option<&'static str>,
    fan_outs: FanOuts,
    /// Messages since the other workers were woken last.
    messages: u32,
    inbox: Option<mpsc::Receiver<Posted>>,
    /// A request that waits for deliveries before it.
    next: Option<Posted>,
    /// What is done to many connections; requests wait until it is over.
    sweep: Option<Sweep>,
    /// What is busiest, while someone wants to know.
    pub(crate) counting: Option<Box<Counting>>,
    /// Limits as of this round.
    pub(crate) live: Arc<Config>,
    shared_config: Cache<Arc<ArcSwap<Config>>, Arc<Config>>,
}

impl Local {
    pub(crate) fn new(hub: &Arc<Hub>, worker: usize) -> Self {
        let shard = u16::try_from(worker).unwrap_or(u16::MAX);
        // The replaced worker's cells were given back when it was dropped.
        let mut metrics = match hub.metrics.worker(worker) {
            Ok(metrics) => metrics,
            Err(error) => panic!("the worker's cells are taken: {error}"),
        };
        // Subscriptions ended with the old worker's shard. Its sessions are told of their end here,
        // and each decrements the count of active ones then.
        metrics.subscriptions.set(0);
        // Without the system's randomness the clock keeps serials apart over restarts.
        let start = getrandom::u64().unwrap_or_else(|_| {
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64)
        });
        let mut subscribed = hub.router.attach(ShardId(shard));
        if let Some(topic) = hub.canary.topic(shard) {
            subscribed.subscribe(LOOPBACK, &Subscription::Topic(topic));
            hub.canary.attached(shard);
        }
        Self {
            shard: subscribed,
            worker: shard,
            metrics,
            // Room to count up without an overflow, and short enough to read.
            next_serial: start >> 24,
            users: Users::default(),
            paused: Vec::new(),
            relief: 0,
            clock: None,
            answered_with: None,
            fan_outs: FanOuts::default(),
            messages: 0,
            inbox: hub.take_inbox(worker),
            next: None,
            sweep: None,
            counting: None,
            live: hub.live.load_full(),
            shared_config: Cache::new(Arc::clone(&hub.live)),
            hub: Arc::clone(hub),
        }
    }

    /// A message is about to be handled.
    pub(crate) fn on_message(&mut self) {
        if self.messages == MESSAGES_PER_WAKE_UP {
            self.wake_others();
        }
        self.messages += 1;
    }

    /// Wakes the workers for what was published here.
    fn wake_others(&mut self) {
        self.messages = 0;
        self.shard.wake_others();
    }

    /// A message is over a rate: counts it, and says how long its client should wait where limits are enforced.
    pub(crate) fn over_limit(&mut self, limit: Limit, retry: RetryAfter) -> Result<(), Duration> {
        self.metrics.limited(limit);
        match self.live.listener.limit_mode {
            LimitMode::Enforce => Err(retry.0),
            LimitMode::Observe => Ok(()),
        }
    }

    pub(crate) fn serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial
    }

    /// Seconds since 1970 at the time of a round, which the system is asked for once.
    pub(crate) fn unix_seconds(&mut self, round: Instant) -> u64 {
        match self.clock {
            Some((at, seconds)) if at == round => seconds,
            _ => {
                let seconds = unix_seconds();
                self.clock = Some((round, seconds));
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

    /// Publishes an event if someone observes its kind.
    pub(crate) fn event(&self, kind: EventKind, client_id: &ClientId, details: impl FnOnce() -> Details) {
        if self.hub.bus.is_observed(kind) {
            self.hub.bus.publish(Event::new(SystemTime::now(), client_id.clone(), details()));
        }
    }

    fn find<'c>(place: Place, connections: &'c mut Connections<'_, Session>) -> Option<&'c mut Session> {
        connections.session(place.key).filter(|session| session.place.serial == place.serial)
    }

    fn send(
        &mut self,
        what: Sent,
        key: ConnectionKey,
        frame: &Frame,
        connections: &mut Connections<'_, Session>,
    ) -> bool {
        self.count(what, connections.send(key, frame), frame.len())
    }

    /// Counts what was sent, if it was.
    fn count(&mut self, what: Sent, session: Option<&mut Session>, bytes: usize) -> bool {
        let Some(session) = session else { return false };
        session.sent += 1;
        self.metrics.sent(what, 1);
        self.event(EventKind::MessageSent, &session.client_id, || Details::MessageSent {
            message_type: what.name(),
            topic: None,
            bytes,
        });
        true
    }

    /// Ends a subscription that its client did not end itself, and tells it.
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
        let told = ServerMessage::Unsubscribed { id: None, topic: topic.as_str() };
        self.send(Sent::Unsubscribed, key, &told.to_frame(), connections);
        true
    }

    fn carry_out(&mut self, request: Request, connections: &mut Connections<'_, Session>) {
        // A handle that no longer waits for its reply does not mind that it is lost.
        match request {
            Request::Send { to, frame, reply } => {
                let found = Self::find(to, connections).is_some();
                let _ = reply.send(found && self.send(Sent::Raw, to.key, &frame, connections));
            }
            Request::SendToUser { user, frame, reply } => {
                self.sweep_user(Action::Send(Multicast::new(frame)), &user, reply);
            }
            Request::Broadcast { frame, reply } => {
                self.sweep =
                    Some(Sweep::of_all(Action::Send(Multicast::new(frame)), self.next_serial + 1, reply));
            }
            Request::Disconnect { client, reply } => {
                let found = Self::find(client, connections).is_some();
                if found {
                    connections.close(client.key, disconnected());
                }
                let _ = reply.send(found);
            }
            Request::DisconnectUser { user, reply } => {
                self.sweep_user(Action::Disconnect, &user, reply);
            }
            Request::Unsubscribe { client, topic, reply } => {
                let found = Self::find(client, connections).is_some();
                let _ = reply.send(found.then(|| self.unsubscribe(client.key, &topic, connections)));
            }
            Request::UnsubscribeUser { user, topic, reply } => {
                self.sweep_user(Action::Unsubscribe(topic), &user, reply);
            }
            Request::Top { reply } => {
                let now = connections.now();
                let counting = self.counting.get_or_insert_with(|| Box::new(Counting::new(now)));
                let _ = reply.send(counting.report(now));
            }
            Request::Client { client, reply } => {
                let info = Self::find(client, connections).map(|session| info(session, &self.shard));
                let _ = reply.send(info);
            }
            Request::Clients { from, limit, reply } => {
                let (mut clients, mut bytes) = (Vec::new(), 0);
                let mut next = connections.next_open(from);
                while let Some(key) = next.filter(|_| clients.len() < limit && bytes < CLIENTS_BYTES) {
                    let client = connections.session(key).map(|session| info(session, &self.shard));
                    bytes += client.as_ref().map_or(0, ClientInfo::bytes);
                    clients.extend(client);
                    next = key.checked_add(1).and_then(|key| connections.next_open(key));
                }
                let _ = reply.send((clients, next));
            }
            #[cfg(test)]
            Request::Run(action) => action(),
        }
    }

    /// Begins to do something to the connections that a user has now.
    fn sweep_user(&mut self, action: Action, user: &str, reply: oneshot::Sender<u64>) {
        let (keys, end) = (self.users.keys(user), self.next_serial + 1);
        self.sweep = Some(Sweep::of_user(action, user, keys, end, reply));
    }

    /// False: there is more of it to do.
    fn go_on_with_sweep(&mut self, connections: &mut Connections<'_, Session>) -> bool {
        let Some(mut sweep) = self.sweep.take() else { return true };
        for _ in 0..STEPS_PER_ROUND {
            if connections.send_budget() == 0 {
                break;
            }
            let Some(key) = sweep.next(connections) else {
                let _ = sweep.reply.send(sweep.reached);
                return true;
            };
            let is_meant = connections.session(key).is_some_and(|session| sweep.is_for(session, &self.hub));
            let reached = is_meant
                && match &sweep.action {
                    Action::Send(multicast) => {
                        let session = connections.send_multicast(key, multicast);
                        self.count(Sent::Raw, session, multicast.frame().len())
                    }
                    Action::Unsubscribe(topic) => self.unsubscribe(key, topic, connections),
                    Action::Disconnect => {
                        connections.close(key, disconnected());
                        true
                    }
                };
            sweep.reached += u64::from(reached);
        }
        self.sweep = Some(sweep);
        false
    }

    fn take_requests(
        &mut self,
        cx: &mut task::Context<'_>,
        connections: &mut Connections<'_, Session>,
    ) -> Poll<()> {
        for _ in 0..REQUESTS_PER_ROUND {
            if !self.go_on_with_sweep(connections) || connections.send_budget() == 0 {
                return Poll::Ready(());
            }
            let posted = match (self.next.take(), &mut self.inbox) {
                (Some(posted), _) => posted,
                (None, None) => return Poll::Pending,
                (None, Some(inbox)) => match inbox.poll_recv(cx) {
                    Poll::Ready(Some(posted)) => posted,
                    Poll::Ready(None) => {
                        self.inbox = None;
                        return Poll::Pending;
                    }
                    Poll::Pending => return Poll::Pending,
                },
            };
            if !self.shard.has_delivered(posted.after) && !self.deliver_until(posted.after, connections) {
                self.next = Some(posted);
                return Poll::Ready(());
            }
            self.carry_out(posted.request, connections);
        }
        Poll::Ready(())
    }

    /// Delivers up to a mark. False: there is no room for all of it in this round.
    fn deliver_until(&mut self, mark: Mark, connections: &mut Connections<'_, Session>) -> bool {
        self.deliver(Extent::Until(mark), connections).is_pending()
    }

    /// `Ready`: there is, or may be, more of it.
    fn deliver(&mut self, extent: Extent<'_, '_>, connections: &mut Connections<'_, Session>) -> Poll<()> {
        let Self { shard, metrics, hub, worker, fan_outs, .. } = self;
        let mut sent = 0;
        let now = connections.now();
        let to_one = |key, delivery: &Delivery| {
            if let Some(publisher) = delivery.exclude
                && publisher.key == key
                && publisher.worker == *worker
                && Self::find(publisher, connections).is_some()
            {
                return Flow::Continue;
            }
            if let Some(session) = connections.send_multicast(key, &delivery.frame) {
                sent += 1;
                session.sent += 1;
                let bytes = delivery.frame.frame().len();
                if let Some(followed) = fan_outs.delivered(&delivery.stamp, bytes, now, metrics) {
                    fan_outs.delivered_to(followed, &session.client_id, session.trace(), bytes, now);
                }
                if let Some(topic) = &delivery.topic {
                    let details = Details::MessageSent {
                        message_type: Sent::Message.name(),
                        topic: Some(Arc::clone(topic)),
                        bytes,
                    };
                    hub.bus.publish(Event::new(SystemTime::now(), session.client_id.clone(), details));
                }
            } else if key == LOOPBACK {
                // Here, where no connection was found, it costs the usual delivery nothing.
                hub.canary.came_back(*worker, delivery.frame.frame().as_bytes());
            }
            if connections.send_budget() == 0 { Flow::Pause } else { Flow::Continue }
        };
        let more = match extent {
            Extent::All(cx) => shard.poll_deliver(cx, to_one),
            Extent::Until(mark) if shard.deliver_until(mark, to_one) => Poll::Pending,
            Extent::Until(_) => Poll::Ready(()),
        };
        metrics.sent(Sent::Message, sent);
        more
    }
}

impl deeperhub_listener::WorkerState<Session> for Local {
    fn on_written(&mut self, now: Instant) {
        self.fan_outs.written(now, self.worker, &self.hub.config.tracer, &mut self.metrics);
    }

    fn poll(&mut self, cx: &mut task::Context<'_>, connections: &mut Connections<'_, Session>) -> Poll<()> {
        // First of all, so that they work while this one does.
        self.wake_others();
        let config = self.shared_config.load();
        if !Arc::ptr_eq(config, &self.live) {
            self.live = Arc::clone(config);
        }
        if self.counting.is_some() != self.hub.top.is_wanted(connections.now()) {
            self.counting = match self.counting {
                None => Some(Box::new(Counting::new(connections.now()))),
                Some(_) => None,
            };
        }
        let requests = self.take_requests(cx, connections);
        let deliveries = self.deliver(Extent::All(cx), connections);
        if !self.hub.router.is_congested() {
            self.relief = self.relief.wrapping_add(1);
            for key in self.paused.drain(..) {
                connections.resume_reading(key);
            }
        }
        if requests.is_ready() || deliveries.is_ready() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        if *self.hub.phase.borrow() != Phase::Stopped {
            // The worker died. Its subscriptions end now, not when its replacement starts, which
            // may take a while. So nothing more is published to it, and it congests no publisher.
            drop(self.hub.router.attach(ShardId(self.worker)));
            self.metrics.subscriptions.set(0);
        }
        if let Some(mut inbox) = self.inbox.take() {
            // Callers get an error at once: the clients that they ask about are gone.
            while inbox.try_recv().is_ok() {}
            self.hub.give_back_inbox(self.worker.into(), inbox);
        }
    }
}

fn disconnected() -> CloseReason {
    CloseReason::new(CloseCode::Disconnected, "disconnected by the server API")
}

fn info(session: &Session, shard: &Shard<Delivery>) -> ClientInfo {
    ClientInfo {
        client_id: session.client_id.clone(),
        user: session.user().map(|user| user.to_string()),
        subscriptions: shard.subscriptions(session.place.key).map(str::to_owned).collect(),
    }
}

#[cfg(test)]
mod tests;
