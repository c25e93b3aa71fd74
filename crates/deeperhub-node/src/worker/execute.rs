//! Execution of requests: operations on clients, and queries.

use std::task::{self, Poll};

use deeperhub_events::{EventDetails, EventKind};
use deeperhub_listener::{ConnectionKey, Connections};
use deeperhub_protocol::frame::Frame;
use deeperhub_protocol::message::ServerMessage;
use deeperhub_protocol::{CloseCode, CloseReason, Subscription};
use tokio::sync::oneshot;

use super::NodeWorker;
use super::request::WorkerRequest;
use super::sweep::{SWEEP_COST_PER_ROUND, Sweep, SweepTargets};
use crate::connection_id::ConnectionId;
use crate::hub::Hub;
use crate::metrics::SentType;
use crate::operation::{Action, Operation, Reached, Target, WorkerAction};
use crate::session::Session;
use crate::top::{MAX_TOPICS_BEHIND, TopWindow};
use crate::types::{ClientInfo, ConnectionInfo, MAX_CLIENTS_PAGE_BYTES, SubscriptionBehind};

/// Maximum number of handles' requests that a worker executes per round. Bounds the time for which
/// requests delay reads and deliveries.
const REQUESTS_PER_ROUND: usize = 256;

impl NodeWorker {
    /// Returns the session of a connection that is still open.
    pub(super) fn find_session<'c>(
        id: ConnectionId,
        connections: &'c mut Connections<'_, Session>,
    ) -> Option<&'c mut Session> {
        connections.session(id.key).filter(|session| session.connection_id.serial == id.serial)
    }

    /// Sends and counts a frame. Returns `false` if the connection is not open.
    pub(super) fn send(
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
    fn unsubscribe_and_notify(
        &mut self,
        key: ConnectionKey,
        topic: &Subscription<'_>,
        connections: &mut Connections<'_, Session>,
    ) -> bool {
        if !self.unsubscribe(key, topic) {
            return false;
        }
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
                let behind = self.replays.topics_behind(MAX_TOPICS_BEHIND);
                let _ = reply.send(top_window.report(now).with_behind(behind));
            }
            WorkerRequest::Client { client, reply } => {
                let is_open = Self::find_session(client, connections).is_some();
                let _ = reply.send(is_open.then(|| self.client_info(client.key, connections)).flatten());
            }
            WorkerRequest::Clients { from, limit, reply } => {
                let (mut clients, mut bytes) = (Vec::new(), 0);
                let mut next = connections.next_open(from);
                while let Some(key) = next.filter(|_| clients.len() < limit && bytes < MAX_CLIENTS_PAGE_BYTES)
                {
                    let client = self.client_info(key, connections);
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

    /// Describes a connection. Returns `None` if it is not open.
    fn client_info(
        &self,
        key: ConnectionKey,
        connections: &mut Connections<'_, Session>,
    ) -> Option<ClientInfo> {
        let (now, queued_bytes) = (connections.now(), connections.queued_bytes(key)?);
        let session = connections.session(key)?;
        let behind = self.replays.behind_of(key);
        Some(ClientInfo {
            client_id: session.client_id.clone(),
            user: session.user().map(|user| user.to_string()),
            subscriptions: self.shard.subscriptions(key).map(str::to_owned).collect(),
            connection: Some(ConnectionInfo {
                peer: session.peer(),
                origin: session.origin().map(str::to_owned),
                connected_ms: u64::try_from(session.connected_for(now).as_millis()).unwrap_or(u64::MAX),
                received_total: session.received,
                sent_total: session.sent,
                queued_bytes: queued_bytes as u64,
                behind: behind
                    .map(|(topic, offset)| SubscriptionBehind { topic: topic.to_owned(), offset })
                    .collect(),
            }),
        })
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
            Action::Unsubscribe(topic) => Some(self.unsubscribe_and_notify(key, topic, connections)),
            Action::Disconnect => {
                connections.close(key, disconnect_reason());
                Some(true)
            }
        }
    }

    /// Starts a sweep over connections that are open now.
    pub(super) fn start_sweep(
        &mut self,
        targets: SweepTargets,
        action: WorkerAction,
        reply: oneshot::Sender<Reached>,
    ) {
        let serial_limit = self.last_serial + 1;
        self.sweep = Some(Sweep { action, targets, serial_limit, reached: 0, reply });
    }

    /// Continues the sweep in progress. Returns `true` if no sweep remains.
    fn continue_sweep(&mut self, connections: &mut Connections<'_, Session>) -> bool {
        let Some(mut sweep) = self.sweep.take() else { return true };
        let mut cost = 0;
        while cost < SWEEP_COST_PER_ROUND && connections.send_budget() > 0 {
            let Some(key) = sweep.targets.next_key(connections) else {
                let _ = sweep.reply.send(Some(sweep.reached));
                return true;
            };
            cost += 1;
            if !connections.session(key).is_some_and(|session| is_target(&sweep, session, &self.hub)) {
                continue;
            }
            if matches!(sweep.action, Action::Disconnect) {
                // They end with the connection, at the end of the round.
                cost += self.shard.subscription_count(key);
            }
            if self.apply(&sweep.action, key, connections) == Some(true) {
                sweep.reached += 1;
            }
        }
        self.sweep = Some(sweep);
        false
    }

    /// Executes queued requests. Returns `Pending` if none remain and the worker is registered for
    /// a wake-up by the next one.
    pub(super) fn process_requests(
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
            if !self.deliver_until(queued.after, connections) {
                self.blocked_request = Some(queued);
                return Poll::Ready(());
            }
            self.execute(queued.request, connections);
        }
        Poll::Ready(())
    }
}

/// Returns `true` if the action of a sweep applies to a visited connection.
pub(super) fn is_target(sweep: &Sweep, session: &Session, hub: &Hub) -> bool {
    session.connection_id.serial < sweep.serial_limit
        && match (&sweep.targets, &sweep.action) {
            // A broadcast leaves out clients without a required token.
            (SweepTargets::All { .. }, Action::Send(_)) => session.is_admitted(hub),
            (SweepTargets::All { .. }, Action::Unsubscribe(_) | Action::Disconnect) => true,
            // The key may now belong to a connection of another user.
            (SweepTargets::User { user, .. }, _) => session.user() == Some(user),
        }
}

fn disconnect_reason() -> CloseReason {
    CloseReason::new(CloseCode::Disconnected, "disconnected by the server API")
}
