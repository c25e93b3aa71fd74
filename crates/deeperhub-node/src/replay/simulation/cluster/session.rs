//! The node's side of a client's connection: executes its texts as a session does.

use std::sync::Arc;
use std::time::{Duration, Instant};

use deeperhub_listener::ConnectionKey;
use deeperhub_protocol::message::{
    ClientMessage, Command, MessageId, ServerMessage, SubscribeRequest, SubscribedError, SubscriptionStart,
    WelcomeLimits,
};
use deeperhub_protocol::{Epoch, Position};

use super::super::socket::Socket;
use super::Simulation;
use super::node::{Node, Worker};
use crate::commands;
use crate::connection_id::ConnectionId;
use crate::hub::{Hub, Publisher};
use crate::replay::SubscribeStep;
use crate::streams::{HistoryNotice, HistoryRead, HubShard, Once, PublishRefusal, StoreNotice};
use crate::worker::AppendReply;
use crate::worker::parked_answers::AnswerParked;

/// Levels of a message's JSON.
const MAX_DEPTH: usize = 16;

/// Bytes of a page of a history.
const MAX_PAGE_BYTES: usize = 1500;

/// A connection of a worker, to which replies go.
struct Answerer<'a> {
    hub: &'a Hub,
    worker: &'a mut Worker,
    key: ConnectionKey,
    now: Instant,
}

impl AnswerParked for Answerer<'_> {
    fn start(
        &mut self,
        request: &SubscribeRequest<'_>,
        step: SubscribeStep,
    ) -> Result<SubscriptionStart, SubscribedError> {
        let Worker { replays, shard, .. } = &mut *self.worker;
        let parts = (&self.hub.streams, &self.hub.router, shard);
        let started = replays.subscribe(self.key, request, step, parts, self.now);
        started.map(|(_, start)| start).map_err(|refusal| SubscribedError {
            code: refusal.code(),
            message: refusal.text(),
            field: None,
            retry_after_ms: refusal.retry_after_ms(),
        })
    }

    fn reply(&mut self, reply: &ServerMessage<'_>) {
        self.worker.sockets.queue(self.key, reply.to_frame().as_bytes());
    }
}

impl Answerer<'_> {
    fn refuse(&mut self, id: Option<MessageId<'_>>, topic: &str, refusal: PublishRefusal) {
        self.reply(&ServerMessage::Error {
            id,
            code: refusal.code(),
            message: &refusal.text(),
            field: None,
            topic: Some(topic),
            retry_after_ms: refusal.retry_after_ms(),
        });
    }
}

impl Worker {
    /// Handles what the store has told the worker.
    pub(super) fn handle_notices(&mut self, hub: &Hub, now: Instant) {
        while let Ok(notice) = self.notices.try_recv() {
            match notice {
                StoreNotice::TopicRead { topic } => {
                    for client in self.parked.on_topic_read(&topic) {
                        let key = client.connection.key;
                        self.parked_since.remove(&key);
                        if self.is_open(client.connection) {
                            client.answer(MAX_DEPTH, &mut Answerer { hub, worker: self, key, now });
                        }
                    }
                }
                StoreNotice::Appended { number, outcome } => {
                    let Some(reply) = self.appends.remove(&number) else { continue };
                    let AppendReply { connection, id, topic, subscribers, .. } = reply;
                    if !self.is_open(connection) {
                        continue;
                    }
                    let (id, topic) = (MessageId::from_json(&id), &*topic);
                    let mut answerer = Answerer { hub, worker: self, key: connection.key, now };
                    let Ok(appended) = outcome else {
                        answerer.refuse(id, topic, PublishRefusal::Unavailable);
                        continue;
                    };
                    let epoch = Epoch::from_bits(appended.position.epoch);
                    let position = Position { epoch, offset: appended.position.offset, time: appended.time };
                    let position = Some(position);
                    answerer.reply(&ServerMessage::Published {
                        id,
                        topic,
                        subscribers,
                        position,
                        cluster: None,
                    });
                }
                StoreNotice::History(notice) => {
                    let HistoryNotice { connection, id, topic, page, after } = *notice;
                    self.deliver_until(after);
                    if !self.is_open(connection) {
                        continue;
                    }
                    self.parked_since.remove(&connection.key);
                    let id = id.as_deref().and_then(MessageId::from_json);
                    let mut answerer = Answerer { hub, worker: self, key: connection.key, now };
                    let Ok(page) = page else {
                        answerer.refuse(id, &topic, PublishRefusal::Unavailable);
                        continue;
                    };
                    let messages = page.messages();
                    let (position, next) = (page.position, page.next);
                    let topic = &*topic;
                    answerer.reply(&ServerMessage::History {
                        id,
                        topic,
                        position,
                        messages: &messages,
                        next,
                    });
                }
                StoreNotice::Progress | StoreNotice::Replay { .. } => {}
            }
        }
    }

    fn is_open(&self, connection: ConnectionId) -> bool {
        self.sockets.open.get(&connection.key).is_some_and(|socket| socket.id.serial == connection.serial)
    }
}

impl Node {
    /// Opens a connection and sends its first message.
    pub(super) fn open(
        &mut self,
        client: u8,
        (worker, speed, serial): (usize, usize, u64),
        now: Instant,
    ) -> ConnectionKey {
        let sockets = &mut self.workers[worker].sockets;
        let key = (0..).find(|key| !sockets.open.contains_key(key)).expect("a free key");
        let id = ConnectionId { worker: worker as u16, key, serial };
        let client_id = id.client_id(&self.hub.node_id).expect("a valid ID");
        sockets.open.insert(key, Socket::new(id, client_id.clone(), client, speed));
        let welcome = ServerMessage::Welcome {
            client_id: &client_id,
            server: "simulation",
            version: "0",
            features: None,
            server_time: Some(self.hub.streams.clock.unix_ms(now)),
            limits: WelcomeLimits {
                max_message_bytes: 65_536,
                max_delivery_bytes: 65_536,
                max_subscriptions: 100,
                ping_interval_ms: 20_000,
            },
        };
        sockets.queue(key, welcome.to_frame().as_bytes());
        key
    }

    /// Ends a connection. Returns its client.
    pub(super) fn close(&mut self, worker: usize, key: ConnectionKey) -> Option<u8> {
        let Worker { shard, replays, sockets, parked, parked_since, .. } = &mut self.workers[worker];
        let socket = sockets.open.remove(&key)?;
        replays.unsubscribe_all(key, shard);
        parked.remove(key);
        parked_since.remove(&key);
        Some(socket.client)
    }
}

impl Simulation {
    /// Executes a client's next text on its node. Returns `false` if there is none, or if the
    /// connection waits for the store.
    pub(super) fn execute_text(&mut self, client: u8) -> Result<bool, String> {
        let line = &self.lines[usize::from(client)];
        let Some((node, worker, key)) = line.connection else { return Ok(false) };
        let (now, since) = (self.times.started + self.times.now, self.times.now);
        let Some(node) = &mut self.nodes[node] else { return Ok(false) };
        if node.workers[worker].parked_since.contains_key(&key) {
            return Ok(false);
        }
        let view = &mut self.clients[usize::from(client)];
        let Some(text) = view.outbox.pop_front() else { return Ok(false) };
        execute(node, (worker, key), &text, (now, since)).map_err(|error| format!("{error}, with {text}"))?;
        Ok(true)
    }
}

fn execute(
    node: &mut Node,
    (index, key): (usize, ConnectionKey),
    text: &str,
    (now, since): (Instant, Duration),
) -> Result<(), String> {
    let message = ClientMessage::parse(text).map_err(|error| format!("{error:?}"))?;
    let hub = Arc::clone(&node.hub);
    let worker = &mut node.workers[index];
    let Some(socket) = worker.sockets.open.get(&key) else { return Ok(()) };
    let (connection, client_id) = (socket.id, socket.client_id.clone());
    let may_subscribe = |_: &HubShard, _: &SubscribeRequest<'_>| true;
    let id = message.id;
    match message.command {
        Command::Subscribe(request) => {
            let parts = (&*hub, &mut worker.shard);
            let requests = std::iter::once(&request);
            if worker.parked.hold((connection, text), requests, may_subscribe, parts).is_parked {
                worker.parked_since.insert(key, since);
                return Ok(());
            }
            let mut answerer = Answerer { hub: &hub, worker, key, now };
            let topic = request.subscription.as_str();
            match answerer.start(&request, SubscribeStep::Begin) {
                Ok(start) => answerer.reply(&ServerMessage::Subscribed { id, topic, start }),
                Err(error) => answerer.reply(&commands::subscribe_error(id, topic, &error)),
            }
        }
        Command::SubscribeList { topics } => {
            let requests: Vec<_> = topics.entries().filter_map(|entry| entry.request.ok()).collect();
            let parts = (&*hub, &mut worker.shard);
            if worker.parked.hold((connection, text), requests.iter(), may_subscribe, parts).is_parked {
                worker.parked_since.insert(key, since);
                return Ok(());
            }
            let mut answerer = Answerer { hub: &hub, worker, key, now };
            let entries =
                commands::start_each(topics, |request| answerer.start(request, SubscribeStep::Begin));
            answerer.reply(&ServerMessage::SubscribedList { id, topics: &entries });
        }
        Command::Unsubscribe { subscription } => {
            let Worker { shard, replays, .. } = &mut *worker;
            replays.unsubscribe(key, &subscription, (&hub.router, shard));
            let topic = subscription.as_str();
            Answerer { hub: &hub, worker, key, now }.reply(&ServerMessage::Unsubscribed { id, topic });
        }
        Command::Publish { topic, message, exclude_self, once } => {
            let publisher = Publisher {
                id: &client_id,
                connection_id: connection,
                is_excluded: exclude_self,
                shard: &mut worker.shard,
                once: once.as_deref().map(|text| Once { user: None, text }),
                wants_reply: id.is_some(),
            };
            let published = hub.publish(&topic, message, Some(publisher), now, None);
            let mut answerer = Answerer { hub: &hub, worker, key, now };
            match published {
                Err(refusal) => answerer.refuse(id, topic.as_str(), refusal),
                Ok(outcome) => {
                    let Some(message_id) = id else { return Ok(()) };
                    let (topic, subscribers) = (topic.as_str(), outcome.subscribers);
                    if let Some(number) = outcome.append {
                        let id = message_id.as_json().into();
                        let reply =
                            AppendReply { connection, id, topic: topic.into(), subscribers, since: now };
                        answerer.worker.appends.insert(number, reply);
                        return Ok(());
                    }
                    let (position, cluster) = (outcome.position, None);
                    answerer.reply(&ServerMessage::Published { id, topic, subscribers, position, cluster });
                }
            }
        }
        Command::History(request) => {
            let topic = request.topic.as_str();
            let answer = commands::answer_later((connection, id), topic, (&hub, worker.shard.id()));
            match hub.streams.read(&hub.router, &request, MAX_PAGE_BYTES) {
                HistoryRead::Page(page) if hub.streams.may_answer_now(&hub.router, &worker.shard) => {
                    let messages = page.messages();
                    let (position, next) = (page.position, page.next);
                    let reply = ServerMessage::History { id, topic, position, messages: &messages, next };
                    Answerer { hub: &hub, worker, key, now }.reply(&reply);
                }
                HistoryRead::Stored(_) => return Err("the node has no disk".to_owned()),
                HistoryRead::Page(page) => {
                    answer(Ok(page));
                    worker.parked_since.insert(key, since);
                }
                HistoryRead::InCluster(page) => {
                    node.store.read_page(page, Box::new(answer));
                    worker.parked_since.insert(key, since);
                }
            }
        }
        Command::Ping => Answerer { hub: &hub, worker, key, now }.reply(&ServerMessage::Pong { id }),
        command => return Err(format!("an unexpected command: {command:?}")),
    }
    Ok(())
}
