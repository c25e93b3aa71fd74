//! Clients that wait until the mirrors of their topics have read the cluster's store.
//!
//! A subscribe to a topic that no client of this node followed cannot be judged at once. The client's
//! connection is parked: it handles no further message. Its subscription begins suspended, so that the
//! node follows the topic, and then the store is read once for all clients that wait. The reply judges
//! the client's position as for any other topic.

use std::sync::Arc;

use deeperhub_listener::{ConnectionKey, Connections};
use deeperhub_protocol::message::{ClientMessage, Command, ServerMessage, SubscribeRequest};
use deeperhub_protocol::{Subscription, Topic};
use deeperhub_router::{DeliveryState, Subscribed, TopicView};

use super::NodeWorker;
use super::store_link::{HeldTopic, ParkedClient};
use crate::commands;
use crate::metrics::{GaugeUnit, SentType};
use crate::replay::SubscribeStep;
use crate::session::Session;
use crate::streams::{KeptStream, NoStream, Readiness, Remains, StreamStripe};

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
        let key = session.connection_id.key;
        let mut topics: Vec<HeldTopic> = Vec::new();
        for request in requests {
            let Subscription::Topic(topic) = &request.subscription else { continue };
            let is_full = self.shard.subscription_count(key) >= self.limits.session.max_subscriptions;
            if topics.iter().any(|held| *held.name == *topic.as_str())
                || is_full && !self.shard.is_subscribed(key, &request.subscription)
                || commands::check_subscribe(session.login.as_deref(), request).is_err()
            {
                continue;
            }
            let position = request.recover.and_then(|recover| Some((recover.epoch?, recover.offset)));
            let Readiness::Waits(read) = self.hub.streams.readiness(&self.hub.router, topic, position) else {
                continue;
            };
            let Some(store) = self.hub.streams.cluster.clone() else { continue };
            // A store that is away fails the read, which the mirror must be told.
            let held = if store.is_up() { self.hold(key, topic) } else { None };
            match (held, read) {
                (Some(held), read) => {
                    store.read_for_worker(Arc::clone(&held.name), read, self.index);
                    topics.push(held);
                }
                (None, Some(read)) => store.queue_read(topic.as_str().into(), read),
                (None, None) => {}
            }
        }
        let Some(store) = self.hub.streams.cluster.as_ref().filter(|_| !topics.is_empty()) else {
            return false;
        };
        let Some(link) = &mut self.store else { return false };
        for topic in &topics {
            link.parked.waiting.entry(Arc::clone(&topic.name)).or_default().push(key);
        }
        let client = ParkedClient {
            connection: session.connection_id,
            text: text.into(),
            unread: topics.len(),
            topics,
            counted: GaugeUnit::new(&store.mirror_metrics.parked),
        };
        link.parked.clients.insert(key, client);
        true
    }

    /// Begins a suspended subscription to a topic. Returns `None` if the topic can have no stream.
    fn hold(&mut self, key: ConnectionKey, topic: &Topic<'_>) -> Option<HeldTopic> {
        let streams = &self.hub.streams;
        let now = streams.clock.seconds(streams.clock.now());
        let (budget, rule) = streams.rule(topic)?;
        let mut has_made_room = false;
        loop {
            let mut remains = Remains::default();
            let open = |topic: TopicView<'_>, kept: &mut KeptStream, stripe: &mut StreamStripe| {
                let opened = stripe.find_or_open(topic, kept, (&*budget, rule), now, &mut remains);
                (DeliveryState::Suspended, opened.map(|_| Arc::clone(topic.name())))
            };
            let (subscribed, opened) = self.shard.subscribe_at(key, topic, open);
            streams.finish(&self.hub.router, remains, now);
            let is_new = subscribed == Subscribed::New;
            let no_stream = match opened {
                Ok(name) => {
                    if is_new {
                        self.metrics.subscriptions.inc();
                    }
                    return Some(HeldTopic { name, is_new });
                }
                Err(no_stream) => no_stream,
            };
            if is_new {
                self.shard.unsubscribe(key, &Subscription::Topic(topic.borrow()));
            }
            match no_stream {
                NoStream::TooMany(rule) if !has_made_room && streams.make_room(&self.hub.router, rule) => {
                    has_made_room = true;
                }
                _ => return None,
            }
        }
    }

    /// Notes that the store was read for a topic, or that it could not be read, and answers the
    /// clients that wait for nothing else.
    pub(super) fn on_topic_read(&mut self, topic: &str, connections: &mut Connections<'_, Session>) {
        let Some(link) = &mut self.store else { return };
        let keys = link.parked.waiting.remove(topic).unwrap_or_default();
        for key in keys {
            let Some(link) = &mut self.store else { return };
            let Some(client) = link.parked.clients.get_mut(&key) else { continue };
            client.unread = client.unread.saturating_sub(1);
            if client.unread == 0
                && let Some(client) = link.parked.clients.remove(&key)
            {
                self.answer_parked(client, connections);
            }
        }
    }

    /// Answers a client whose topics were read, and continues its connection.
    fn answer_parked(&mut self, client: ParkedClient, connections: &mut Connections<'_, Session>) {
        let ParkedClient { connection, text, topics, unread: _, counted: _counted } = client;
        let key = connection.key;
        let now = connections.now();
        let Some(session) = Self::find_session(connection, connections) else { return };
        let login = session.login.as_deref();
        let max_depth = self.limits.session.max_json_depth;
        let mut topics = topics;
        let mut start_held = |request: &SubscribeRequest<'_>| {
            let name = request.subscription.as_str();
            let held = topics.iter_mut().find(|topic| topic.is_new && *topic.name == *name);
            // A list can name a topic twice.
            let subscribe = match held {
                Some(held) => {
                    held.is_new = false;
                    SubscribeStep::Resume
                }
                None => SubscribeStep::Begin,
            };
            commands::start((login, key), (request, subscribe), now, self)
        };
        // The message was valid when the client was parked. Only these messages wait.
        match ClientMessage::parse_within(&text, max_depth) {
            Ok(ClientMessage { id, command: Command::Subscribe(request), .. }) => {
                let topic = request.subscription.as_str();
                match start_held(&request) {
                    Ok(start) => {
                        let reply = ServerMessage::Subscribed { id, topic, start };
                        self.send(SentType::Subscribed, key, &reply.to_frame(), connections);
                    }
                    Err(error) => {
                        self.send_error(
                            connection,
                            &commands::subscribe_error(id, topic, &error),
                            connections,
                        );
                    }
                }
            }
            Ok(ClientMessage { id, command: Command::SubscribeList { topics }, .. }) => {
                let entries = commands::start_each(topics, |request| start_held(request));
                let reply = ServerMessage::SubscribedList { id, topics: &entries };
                self.send(SentType::Subscribed, key, &reply.to_frame(), connections);
            }
            _ => debug_assert!(false, "another message was parked"),
        }
        connections.unpark(key);
    }

    /// Returns the memory that is held for a parked connection.
    pub(crate) fn parked_bytes(&self, key: ConnectionKey) -> usize {
        let Some(client) = self.store.as_ref().and_then(|link| link.parked.clients.get(&key)) else {
            return 0;
        };
        size_of::<ParkedClient>() + client.text.len() + client.topics.len() * size_of::<HeldTopic>()
    }

    /// Forgets a parked connection that has closed.
    pub(crate) fn remove_parked(&mut self, key: ConnectionKey) {
        let Some(link) = &mut self.store else { return };
        let Some(client) = link.parked.clients.remove(&key) else { return };
        for topic in client.topics {
            if let Some(waiting) = link.parked.waiting.get_mut(&*topic.name) {
                waiting.retain(|other| *other != key);
                if waiting.is_empty() {
                    link.parked.waiting.remove(&*topic.name);
                }
            }
        }
    }
}
