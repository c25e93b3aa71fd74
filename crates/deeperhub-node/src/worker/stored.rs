//! The store's messages to a worker, and the replies that wait for them.

use std::borrow::Cow;
use std::task::{self, Poll};
use std::time::Duration;

use deeperhub_cluster::AppendNumber;
use deeperhub_events::{EventDetails, EventKind};
use deeperhub_listener::Connections;
use deeperhub_protocol::message::{MessageId, ServerMessage};
use deeperhub_protocol::{Epoch, Position};

use super::NodeWorker;
use super::outlet::ConnectionOutlet;
use super::store_link::{AppendReply, StoredReply};
use crate::connection_id::ConnectionId;
use crate::metrics::{ErrorLabel, SentType};
use crate::session::Session;
use crate::streams::{AppendOutcome, HistoryNotice, PublishRefusal, StoreNotice, StoreState};

/// Notices that a worker handles per round.
const NOTICES_PER_ROUND: usize = 256;

/// Waiting replies for which memory is kept.
const KEPT_APPENDS: usize = 256;

/// Time after which a publisher is told that the store is unavailable, although the store has not
/// said so: a disk that hangs reports nothing.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);

impl NodeWorker {
    /// Lets a reply wait until its message is on the disk.
    pub(crate) fn reply_when_stored(&mut self, reply: StoredReply) {
        let (Some(disk), Some(link)) = (&self.hub.streams.disk, &mut self.store) else { return };
        disk.request_sync();
        let ticket = reply.ticket;
        link.replies.push_back(reply);
        disk.notify_of_progress(self.index);
        if disk.state(ticket) != StoreState::Pending {
            // The store made progress before it knew that this worker waits.
            disk.notify(self.index, StoreNotice::Progress);
        }
    }

    /// Lets a reply wait until the cluster's store has appended its message.
    pub(crate) fn reply_when_appended(&mut self, number: AppendNumber, reply: AppendReply) {
        if let Some(link) = &mut self.store {
            link.appends.insert(number, reply);
        }
    }

    /// Answers a publisher whose message the cluster's store has appended or refused.
    fn answer_append(
        &mut self,
        number: AppendNumber,
        outcome: AppendOutcome,
        connections: &mut Connections<'_, Session>,
    ) {
        let Some(link) = &mut self.store else { return };
        let Some(reply) = link.appends.remove(&number) else { return };
        if link.appends.is_empty() {
            link.appends.shrink_to(KEPT_APPENDS);
        }
        let AppendReply { connection, id, topic, subscribers, since } = reply;
        if let (Ok(_), Some(store)) = (&outcome, &self.hub.streams.cluster) {
            store.record_appended(connections.now().saturating_duration_since(since));
        }
        if Self::find_session(connection, connections).is_none() {
            return;
        }
        let (id, topic) = (MessageId::from_json(&id), &*topic);
        match outcome {
            Ok(appended) => {
                let (epoch, offset) = (appended.position.epoch, appended.position.offset);
                let position = Some(Position { epoch: Epoch::from_bits(epoch), offset, time: appended.time });
                let published = ServerMessage::Published { id, topic, subscribers, position, cluster: None };
                self.send(SentType::Published, connection.key, &published.to_frame(), connections);
            }
            Err(_) => self.refuse(id, (connection, topic), connections),
        }
    }

    /// Handles the store's messages. Returns `Pending` if none remain and the worker is registered
    /// for a wake-up by the next one.
    pub(super) fn process_store(
        &mut self,
        cx: &mut task::Context<'_>,
        connections: &mut Connections<'_, Session>,
    ) -> Poll<()> {
        for _ in 0..NOTICES_PER_ROUND {
            let Some(link) = &mut self.store else { return Poll::Pending };
            let notice = match link.blocked_history.take() {
                Some(history) => StoreNotice::History(history),
                None => match link.notices.poll_recv(cx) {
                    Poll::Ready(Some(notice)) => notice,
                    Poll::Ready(None) | Poll::Pending => return Poll::Pending,
                },
            };
            match notice {
                StoreNotice::Progress => self.answer_stored(connections),
                StoreNotice::Replay { key, read, result } => {
                    let time_ms = self.hub.streams.look_ms(connections.now());
                    let mut outlet = ConnectionOutlet { connections, hub: &self.hub };
                    self.replays.on_read(key, read, result, time_ms, &mut outlet);
                }
                StoreNotice::History(notice) => {
                    if !self.deliver_until(notice.after, connections) {
                        if let Some(link) = &mut self.store {
                            link.blocked_history = Some(notice);
                        }
                        return Poll::Ready(());
                    }
                    self.answer_history(*notice, connections);
                }
                StoreNotice::TopicRead { topic } => self.on_topic_read(&topic, connections),
                StoreNotice::Appended { number, outcome } => {
                    self.answer_append(number, outcome, connections);
                }
            }
        }
        Poll::Ready(())
    }

    /// Answers the publishers whose messages are on the disk, or will not get there soon.
    fn answer_stored(&mut self, connections: &mut Connections<'_, Session>) {
        loop {
            let (Some(disk), Some(link)) = (&self.hub.streams.disk, &mut self.store) else { return };
            let Some(reply) = link.replies.front() else { return };
            let waited = connections.now().saturating_duration_since(reply.since);
            let is_stored = match disk.state(reply.ticket) {
                StoreState::Durable => true,
                StoreState::Failed => false,
                StoreState::Pending if waited >= STORE_TIMEOUT => false,
                StoreState::Pending => {
                    disk.notify_of_progress(self.index);
                    if disk.state(reply.ticket) == StoreState::Pending {
                        return;
                    }
                    continue;
                }
            };
            if is_stored {
                disk.record_stored(waited);
            }
            let Some(reply) = link.replies.pop_front() else { return };
            self.answer_publisher(&reply, is_stored, connections);
        }
    }

    fn answer_publisher(
        &mut self,
        reply: &StoredReply,
        is_stored: bool,
        connections: &mut Connections<'_, Session>,
    ) {
        if Self::find_session(reply.connection, connections).is_none() {
            return;
        }
        let (id, topic) = (MessageId::from_json(&reply.id), &*reply.topic);
        if is_stored {
            let (subscribers, position) = (reply.subscribers, reply.position);
            let published = ServerMessage::Published { id, topic, subscribers, position, cluster: None };
            self.send(SentType::Published, reply.connection.key, &published.to_frame(), connections);
        } else {
            self.refuse(id, (reply.connection, topic), connections);
        }
    }

    /// Tells a client that the store is unavailable.
    fn refuse(
        &mut self,
        id: Option<MessageId<'_>>,
        (connection, topic): (ConnectionId, &str),
        connections: &mut Connections<'_, Session>,
    ) {
        let refusal = PublishRefusal::Unavailable;
        let error = ServerMessage::Error {
            id,
            code: refusal.code(),
            message: &refusal.text(),
            field: refusal.field(),
            topic: Some(topic),
            retry_after_ms: refusal.retry_after_ms(),
        };
        self.send_error(connection, &error, connections);
    }

    /// Sends an error to a client whose message was answered later.
    pub(super) fn send_error(
        &mut self,
        connection: ConnectionId,
        error: &ServerMessage<'_>,
        connections: &mut Connections<'_, Session>,
    ) {
        if let ServerMessage::Error { code, message, .. } = error {
            self.metrics.errors.inc(ErrorLabel(*code));
            if let Some(session) = Self::find_session(connection, connections) {
                let client_id = session.client_id.clone();
                self.publish_event(EventKind::Error, &client_id, || EventDetails::Error {
                    code: Cow::Borrowed(code.as_str()),
                    message: Cow::Owned((*message).to_owned()),
                });
            }
        }
        self.send(SentType::Error, connection.key, &error.to_frame(), connections);
    }

    /// Answers a client that waits for a page of a history.
    fn answer_history(&mut self, notice: HistoryNotice, connections: &mut Connections<'_, Session>) {
        let HistoryNotice { connection, id, topic, page, after: _ } = notice;
        if Self::find_session(connection, connections).is_none() {
            return;
        }
        connections.unpark(connection.key);
        let id = id.as_deref().and_then(MessageId::from_json);
        let Ok(page) = page else { return self.refuse(id, (connection, &topic), connections) };
        let messages = page.messages();
        let (position, next) = (page.position, page.next);
        let reply = ServerMessage::History { id, topic: &topic, position, messages: &messages, next };
        self.send(SentType::History, connection.key, &reply.to_frame(), connections);
    }
}
