//! Clients that wait until the mirrors of their topics have read the cluster's store.
//!
//! A subscribe to a topic that no client of this node followed cannot be judged at once. The client's
//! connection is parked: it handles no further message. Its subscription begins suspended, so that the
//! node follows the topic, and then the store is read once for all clients that wait. The reply judges
//! the client's position as for any other topic.
//!
//! [`ParkedClients`] needs no connections, so a simulation can run it.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;
use deeperhub_listener::ConnectionKey;
use deeperhub_protocol::message::SubscribeRequest;
use deeperhub_protocol::{Subscription, Topic};
use deeperhub_router::{DeliveryState, Subscribed, TopicView};

use crate::connection_id::ConnectionId;
use crate::hub::Hub;
use crate::metrics::GaugeUnit;
use crate::planted::planted;
use crate::streams::{HubShard, KeptStream, Readiness, Remains, StreamStripe};

/// The parked connections of a worker.
#[derive(Debug, Default)]
pub(crate) struct ParkedClients {
    clients: HashMap<ConnectionKey, ParkedClient, RandomState>,
    /// Connections that wait for a topic.
    waiting: HashMap<Arc<str>, Vec<ConnectionKey>, RandomState>,
}

/// A connection whose `subscribe` waits for the store.
#[derive(Debug)]
pub(crate) struct ParkedClient {
    pub(crate) connection: ConnectionId,
    /// The client's message.
    pub(super) text: Box<str>,
    pub(super) topics: Vec<HeldTopic>,
    /// Number of topics that have not been read.
    unread: usize,
    _counted: Option<GaugeUnit>,
}

/// A topic that a parked connection waits for.
#[derive(Debug)]
pub(super) struct HeldTopic {
    pub(super) name: Arc<str>,
    /// `true` if the message has begun the subscription.
    pub(super) is_new: bool,
}

/// Result of [`ParkedClients::hold`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// `true` if the connection is to be parked.
    pub(crate) is_parked: bool,
    /// Number of subscriptions that have begun.
    pub(crate) subscriptions: i64,
}

impl ParkedClients {
    /// Begins subscriptions to those topics of a message whose streams must be read from the
    /// cluster's store first. If there are any, the caller parks the connection, and the message is
    /// answered later. Requests for which `may_subscribe` returns `false` are answered with errors.
    pub(crate) fn hold<'r>(
        &mut self,
        (connection, text): (ConnectionId, &str),
        requests: impl Iterator<Item = &'r SubscribeRequest<'r>>,
        may_subscribe: impl Fn(&HubShard, &SubscribeRequest<'_>) -> bool,
        (hub, shard): (&Hub, &mut HubShard),
    ) -> Held {
        let key = connection.key;
        let mut topics: Vec<HeldTopic> = Vec::new();
        for request in requests {
            let Subscription::Topic(topic) = &request.subscription else { continue };
            if topics.iter().any(|held| *held.name == *topic.as_str()) || !may_subscribe(shard, request) {
                continue;
            }
            let position = request.recover.and_then(|recover| Some((recover.epoch?, recover.offset)));
            let Readiness::Waits(read) = hub.streams.readiness(&hub.router, topic, position) else {
                continue;
            };
            let Some(store) = &hub.streams.cluster else { continue };
            // A store that is away fails the read, which the mirror must be told.
            let held = if store.is_up() { begin(key, topic, (hub, shard)) } else { None };
            match (held, read) {
                (Some(held), read) => {
                    store.read_for_worker(Arc::clone(&held.name), read, connection.worker);
                    topics.push(held);
                }
                (None, Some(read)) => store.queue_read(topic.as_str().into(), read),
                (None, None) => {}
            }
        }
        if topics.is_empty() {
            return Held::default();
        }
        for topic in &topics {
            self.waiting.entry(Arc::clone(&topic.name)).or_default().push(key);
        }
        let subscriptions = topics.iter().map(|topic| i64::from(topic.is_new)).sum();
        let counted = hub.streams.cluster.as_ref().map(|store| GaugeUnit::new(&store.mirror_metrics.parked));
        let client =
            ParkedClient { connection, text: text.into(), unread: topics.len(), topics, _counted: counted };
        self.clients.insert(key, client);
        Held { is_parked: true, subscriptions }
    }

    /// Notes that the store was read for a topic, or that it could not be read. Returns the clients
    /// that wait for nothing else. The caller answers them and continues their connections.
    pub(crate) fn on_topic_read(&mut self, topic: &str) -> Vec<ParkedClient> {
        let mut ready = Vec::new();
        for key in self.waiting.remove(topic).unwrap_or_default() {
            let Some(client) = self.clients.get_mut(&key) else { continue };
            client.unread = client.unread.saturating_sub(1);
            if planted!(ParkedForgotten) && !ready.is_empty() {
                continue;
            }
            if client.unread == 0 {
                ready.extend(self.clients.remove(&key));
            }
        }
        ready
    }

    /// Returns the memory that is held for a parked connection.
    pub(crate) fn bytes(&self, key: ConnectionKey) -> usize {
        let Some(client) = self.clients.get(&key) else { return 0 };
        size_of::<ParkedClient>() + client.text.len() + client.topics.len() * size_of::<HeldTopic>()
    }

    /// Returns `true` if nothing waits.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.clients.is_empty() && self.waiting.is_empty()
    }

    /// Forgets a parked connection that has closed.
    pub(crate) fn remove(&mut self, key: ConnectionKey) {
        let Some(client) = self.clients.remove(&key) else { return };
        for topic in client.topics {
            if let Some(waiting) = self.waiting.get_mut(&*topic.name) {
                waiting.retain(|other| *other != key);
                if waiting.is_empty() {
                    self.waiting.remove(&*topic.name);
                }
            }
        }
    }
}

/// Begins a suspended subscription to a topic. Returns `None` if the topic can have no stream.
fn begin(key: ConnectionKey, topic: &Topic<'_>, (hub, shard): (&Hub, &mut HubShard)) -> Option<HeldTopic> {
    let streams = &hub.streams;
    let now = streams.clock.seconds(streams.clock.now());
    let (budget, rule) = streams.rule(topic)?;
    let held = streams.with_room(&hub.router, || {
        let mut remains = Remains::default();
        let open = |topic: TopicView<'_>, kept: &mut KeptStream, stripe: &mut StreamStripe| {
            let opened = stripe.find_or_open(topic, kept, (&*budget, rule), now, &mut remains);
            (DeliveryState::Suspended, opened.map(|_| Arc::clone(topic.name())))
        };
        let (subscribed, opened) = shard.subscribe_at(key, topic, open);
        streams.finish(&hub.router, remains, now);
        let is_new = subscribed == Subscribed::New;
        if is_new && opened.is_err() {
            shard.unsubscribe(key, &Subscription::Topic(topic.borrow()));
        }
        opened.map(|name| HeldTopic { name, is_new })
    });
    held.ok()
}

#[cfg(test)]
mod tests;
