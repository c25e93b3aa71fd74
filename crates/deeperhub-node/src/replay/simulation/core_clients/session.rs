//! The node's side of a real client's connection: executes its texts as a session does.

use deeperhub_protocol::message::{
    ClientMessage, Command, HistoryRequest, MessageId, ServerMessage, SubscribeRequest, SubscribedEntry,
    SubscribedError, SubscriptionStart, WelcomeLimits,
};
use deeperhub_protocol::{Position, RawJson};

use super::super::log::{Look, Published};
use super::super::publish::Publication;
use super::super::real_clients::{GlueBug, is_loose};
use super::super::socket::Payload;
use super::super::topics::TOPICS;
use super::super::world::{Worker, World};
use super::Simulation;
use crate::replay::SubscribeStep;
use crate::streams::{HistoryRead, Once, PublishRefusal};

/// A publish in a client's text.
struct Publish<'a> {
    topic: &'a str,
    message: RawJson<'a>,
    exclude_self: bool,
    once: Option<&'a str>,
}

impl Simulation {
    /// Executes a client's next text on the node. Returns `false` if there is none.
    pub(super) fn execute_text(&mut self, client: u8) -> Result<bool, String> {
        if self.world.clients[usize::from(client)].connection.is_none() {
            return Ok(false);
        }
        let Some(text) = self.clients[usize::from(client)].outbox.pop_front() else { return Ok(false) };
        self.execute(client, &text).map_err(|error| format!("{error}, with {text}"))?;
        Ok(true)
    }

    fn execute(&mut self, client: u8, text: &str) -> Result<(), String> {
        let message = ClientMessage::parse(text).map_err(|error| format!("{error:?}"))?;
        let (id, world) = (message.id, &mut self.world);
        match message.command {
            Command::Subscribe(request) => {
                let topic = request.subscription.as_str();
                match world.start(client, &request) {
                    Ok(start) => world.reply(client, &ServerMessage::Subscribed { id, topic, start }),
                    Err(refusal) => world.reply_refused(client, id, topic, refusal),
                }
            }
            Command::SubscribeList { topics } => {
                let mut entries = Vec::new();
                for entry in topics.entries() {
                    let request = entry.request.map_err(|error| format!("{error:?}"))?;
                    let result = world.start(client, &request).map_err(|refusal| SubscribedError {
                        code: refusal.code(),
                        message: refusal.text(),
                        field: None,
                        retry_after_ms: refusal.retry_after_ms(),
                    });
                    entries.push(SubscribedEntry { topic: entry.topic, result });
                }
                world.reply(client, &ServerMessage::SubscribedList { id, topics: &entries });
            }
            Command::Unsubscribe { subscription } => {
                let Some((worker, key)) = world.clients[usize::from(client)].connection else {
                    return Ok(());
                };
                let Worker { shard, replays, .. } = &mut world.workers[worker];
                replays.unsubscribe(key, &subscription, (&world.router, shard));
                let topic = subscription.as_str();
                world.reply(client, &ServerMessage::Unsubscribed { id, topic });
            }
            Command::Publish { topic, message, exclude_self, once } => {
                let (topic, once) = (topic.as_str(), once.as_deref());
                let publish = Publish { topic, message, exclude_self, once };
                self.execute_publish(client, id, &publish)?;
            }
            Command::Ping => world.reply(client, &ServerMessage::Pong { id }),
            Command::History(request) => world.reply_history(client, id, &request),
            command => return Err(format!("an unexpected command: {command:?}")),
        }
        self.world.check()
    }

    fn execute_publish(
        &mut self,
        client: u8,
        id: Option<MessageId<'_>>,
        publish: &Publish<'_>,
    ) -> Result<(), String> {
        let json = publish.message.as_str();
        let Payload { n: number } = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let index = TOPICS.iter().position(|topic| *topic == publish.topic).ok_or("an unknown topic")?;
        let once = publish.once.filter(|_| !is_loose(GlueBug::OnceForgotten));
        let publication = Publication {
            topic: index,
            json,
            by: Some(client),
            is_excluded: publish.exclude_self,
            once: once.map(|text| Once { user: None, text }),
        };
        let serial = self.world.connection_id(Some(client)).map(|id| id.serial);
        let is_made = !is_loose(GlueBug::PublishNotMade) || !number.is_multiple_of(16);
        let newest = |look: Look| Position { epoch: look.epoch, offset: look.newest, time: 0 };
        let published = match is_made {
            true => self.world.publish_message(&publication),
            false => Ok((0, self.world.oracle.topics[index].look.map(newest))),
        };
        let (subscribers, position) = match published {
            Ok(published) => published,
            Err(refusal) => {
                self.world.reply_refused(client, id, publish.topic, refusal);
                return Ok(());
            }
        };
        if let Some(position) = position
            && is_made
        {
            let (step, now) = (self.world.oracle.step, self.world.now);
            let place = (position.epoch, position.offset);
            let message = Published { number, excluded: serial.filter(|_| publish.exclude_self) };
            if self.world.oracle.topics[index].record(place, message, step)? {
                self.publishes.on_stored(client, (index, number), place, now)?;
            }
        }
        let topic = publish.topic;
        self.world
            .reply(client, &ServerMessage::Published { id, topic, subscribers, position, cluster: None });
        Ok(())
    }
}

impl World {
    /// Queues a message for a client.
    fn reply(&mut self, client: u8, message: &ServerMessage<'_>) {
        if let Some((worker, key)) = self.clients[usize::from(client)].connection {
            self.workers[worker].sockets.queue(key, message.to_frame().as_bytes());
        }
    }

    fn reply_refused(&mut self, client: u8, id: Option<MessageId<'_>>, topic: &str, refusal: PublishRefusal) {
        let error = ServerMessage::Error {
            id,
            code: refusal.code(),
            message: &refusal.text(),
            field: None,
            topic: Some(topic),
            retry_after_ms: refusal.retry_after_ms(),
        };
        self.reply(client, &error);
    }

    /// Queues the first message of a connection.
    pub(super) fn welcome(&mut self, client: u8) {
        let Some((worker, key)) = self.clients[usize::from(client)].connection else { return };
        let client_id = self.workers[worker].sockets.open[&key].client_id.clone();
        let welcome = ServerMessage::Welcome {
            client_id: &client_id,
            server: "simulation",
            version: "0",
            features: None,
            server_time: Some(self.clock.unix_ms(self.now())),
            limits: WelcomeLimits {
                max_message_bytes: 65_536,
                max_delivery_bytes: 65_536,
                max_subscriptions: 100,
                ping_interval_ms: 20_000,
            },
        };
        self.reply(client, &welcome);
    }

    /// Subscribes a client's connection, and returns where the subscription starts.
    fn start(
        &mut self,
        client: u8,
        request: &SubscribeRequest<'_>,
    ) -> Result<SubscriptionStart, PublishRefusal> {
        let (worker, key) = self.clients[usize::from(client)].connection.expect("the client is connected");
        let now = self.now();
        let Worker { shard, replays, .. } = &mut self.workers[worker];
        replays
            .subscribe(key, request, SubscribeStep::Begin, (&self.streams, &self.router, shard), now)
            .map(|(_, start)| start)
    }

    fn reply_history(&mut self, client: u8, id: Option<MessageId<'_>>, request: &HistoryRequest<'_>) {
        let max_bytes = self.settings.max_queue_bytes / 4;
        let HistoryRead::Page(page) = self.streams.read(&self.router, request, max_bytes) else {
            unreachable!("the node has no store");
        };
        let messages = page.messages();
        let (topic, position, next) = (request.topic.as_str(), page.position, page.next);
        self.reply(client, &ServerMessage::History { id, topic, position, messages: &messages, next });
    }
}
