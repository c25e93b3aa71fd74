//! The parked connections of a worker, see [`ParkedClients`](super::parked::ParkedClients).

use deeperhub_listener::{ConnectionKey, Connections};
use deeperhub_protocol::message::{ServerMessage, SubscribeRequest, SubscribedError, SubscriptionStart};

use super::NodeWorker;
use super::parked::ParkedClient;
use super::parked_answers::AnswerParked;
use crate::commands;
use crate::connection_id::ConnectionId;
use crate::metrics::SentType;
use crate::replay::SubscribeStep;
use crate::session::Session;
use crate::streams::HubShard;

/// A parked connection and its worker.
struct Answerer<'a, 'c> {
    worker: &'a mut NodeWorker,
    connection: ConnectionId,
    connections: &'a mut Connections<'c, Session>,
}

impl AnswerParked for Answerer<'_, '_> {
    fn start(
        &mut self,
        request: &SubscribeRequest<'_>,
        step: SubscribeStep,
    ) -> Result<SubscriptionStart, SubscribedError> {
        let now = self.connections.now();
        let session = NodeWorker::find_session(self.connection, self.connections);
        let login = session.and_then(|session| session.login.as_deref());
        commands::start((login, self.connection.key), (request, step), now, self.worker)
    }

    fn reply(&mut self, reply: &ServerMessage<'_>) {
        let Self { worker, connection, connections } = self;
        if let ServerMessage::Error { .. } = reply {
            worker.send_error(*connection, reply, connections);
        } else {
            worker.send(SentType::Subscribed, connection.key, &reply.to_frame(), connections);
        }
    }
}

impl NodeWorker {
    /// Begins subscriptions to those topics of a message whose streams must be read from the
    /// cluster's store first. Returns `true` if there are any: the caller then parks the connection,
    /// and the message is answered later.
    pub(crate) fn hold_cold_topics<'r>(
        &mut self,
        session: &Session,
        text: &str,
        requests: impl Iterator<Item = &'r SubscribeRequest<'r>>,
    ) -> bool {
        let Some(link) = &mut self.store else { return false };
        let (key, max) = (session.connection_id.key, self.limits.session.max_subscriptions);
        let may_subscribe = |shard: &HubShard, request: &SubscribeRequest<'_>| {
            let has_room = shard.subscription_count(key) < max;
            (has_room || shard.is_subscribed(key, &request.subscription))
                && commands::check_subscribe(session.login.as_deref(), request).is_ok()
        };
        let client = (session.connection_id, text);
        let held = link.parked.hold(client, requests, may_subscribe, (&self.hub, &mut self.shard));
        self.metrics.subscriptions.add(held.subscriptions);
        held.is_parked
    }

    /// Notes that the store was read for a topic, or that it could not be read, and answers the
    /// clients that wait for nothing else.
    pub(super) fn on_topic_read(&mut self, topic: &str, connections: &mut Connections<'_, Session>) {
        let Some(link) = &mut self.store else { return };
        for client in link.parked.on_topic_read(topic) {
            self.answer_parked(client, connections);
        }
    }

    /// Answers a client whose topics were read, and continues its connection.
    fn answer_parked(&mut self, client: ParkedClient, connections: &mut Connections<'_, Session>) {
        let connection = client.connection;
        if Self::find_session(connection, connections).is_none() {
            return;
        }
        let max_depth = self.limits.session.max_json_depth;
        client.answer(max_depth, &mut Answerer { worker: self, connection, connections });
        connections.unpark(connection.key);
    }

    /// Returns the memory that is held for a parked connection.
    pub(crate) fn parked_bytes(&self, key: ConnectionKey) -> usize {
        self.store.as_ref().map_or(0, |link| link.parked.bytes(key))
    }

    /// Forgets a parked connection that has closed.
    pub(crate) fn remove_parked(&mut self, key: ConnectionKey) {
        if let Some(link) = &mut self.store {
            link.parked.remove(key);
        }
    }
}
