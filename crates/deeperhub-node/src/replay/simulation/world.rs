//! The simulated node: workers without threads, a router, streams, and a clock.

use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use deeperhub_listener::ConnectionKey;
use deeperhub_metrics::Cells;
use deeperhub_protocol::message::{Recover, ServerMessage, SubscribeRequest};
use deeperhub_protocol::{Epoch, Subscription, Topic};
use deeperhub_router::{DeliveryFlow, Router, ShardId, Subscribed};

use super::super::{Replays, SubscribeStep};
use super::client::Client;
use super::log::Look;
use super::operation::{CLIENTS, Meanwhile, Wish};
use super::oracle::{Oracle, describe};
use super::socket::{Socket, Sockets};
use super::topics::{PATTERNS, Settings, TOPICS};
use crate::connection_id::ConnectionId;
use crate::metrics::HistoryMetrics;
use crate::streams::{Clock, HubShard, StreamRouter, Streams};
use crate::worker::refusals::Refusals;

/// A worker, which runs only when an operation says so.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) shard: HubShard,
    pub(super) replays: Replays,
    refusals: Refusals,
    pub(super) sockets: Sockets,
}

/// The node with its clients, and the oracle that watches them.
#[derive(Debug)]
pub(super) struct World {
    pub(super) settings: Settings,
    started: Instant,
    pub(super) now: Duration,
    pub(super) clock: Arc<Clock>,
    pub(super) streams: Streams,
    pub(super) router: StreamRouter,
    pub(super) workers: Vec<Worker>,
    pub(super) clients: Vec<Client>,
    pub(super) oracle: Oracle,
    /// `false` if the oracle is to know only what was published, and not to check frames.
    pub(super) checks_frames: bool,
    serial: u64,
    /// Number of the last message.
    pub(super) number: u64,
}

impl World {
    pub(super) fn new(settings: Settings) -> Self {
        // Epochs and the order of stripes come from this generator.
        fastrand::seed(settings.seed);
        let started = Instant::now();
        let clock = Arc::new(Clock::new(started));
        clock.simulate(started);
        let metrics = HistoryMetrics::new(&Cells::new(1));
        let streams = Streams::new(&settings.limits(0), Arc::clone(&clock), None, None, None, metrics);
        let mut config = deeperhub_router::Config::default();
        config.hash_seeds = Some([settings.seed, 2, 3, 4]);
        let router = Router::keeping_with(settings.workers, config, |_| streams.stripe());
        let worker = |index| Worker::new(&router, index, settings.max_queue_bytes);
        let workers = (0..settings.workers).map(worker).collect();
        let clients = (0..CLIENTS).map(|_| Client::default()).collect();
        let now = Duration::ZERO;
        let oracle = Oracle::new();
        Self {
            settings,
            started,
            now,
            clock,
            streams,
            router,
            workers,
            clients,
            oracle,
            checks_frames: true,
            serial: 0,
            number: 0,
        }
    }

    pub(super) fn now(&self) -> Instant {
        self.started + self.now
    }

    pub(super) fn advance(&mut self, time: Duration) {
        self.now += time;
        self.clock.simulate(self.now());
    }

    /// Looks at all streams and at all frames that were sent since the last call.
    pub(super) fn check(&mut self) -> Result<(), String> {
        for (topic, name) in TOPICS.iter().enumerate() {
            let look = look(&self.router, name);
            let step = self.oracle.step;
            self.oracle.topics[topic].observe(look, step).map_err(|text| format!("{name}: {text}"))?;
        }
        for worker in &mut self.workers {
            if !self.checks_frames {
                worker.sockets.sent.clear();
            }
            for sent in worker.sockets.sent.drain(..) {
                let Some(socket) = worker.sockets.open.get(&sent.key) else { continue };
                let serial = socket.id.serial;
                let checked = self.oracle.on_sent(serial, sent.topic, &sent.content);
                checked.map_err(|text| {
                    format!("{}; sent: {:?}", describe(sent.topic, serial, &text), sent.content)
                })?;
            }
        }
        Ok(())
    }

    /// Subscribes a client's connection.
    pub(super) fn subscribe(&mut self, client: u8, topic: usize, wish: Wish) -> Result<(), String> {
        let Some((worker, key)) = self.clients[usize::from(client)].connection else { return Ok(()) };
        let (history, recover) = self.clients[usize::from(client)].request(topic, wish);
        let name = Topic::parse(TOPICS[topic]).unwrap();
        let request = SubscribeRequest { subscription: Subscription::Topic(name), recover, history };
        let now = self.now();
        let Worker { shard, replays, sockets, .. } = &mut self.workers[worker];
        let parts = (&self.streams, &self.router, shard);
        let Ok((subscribed, start)) = replays.subscribe(key, &request, SubscribeStep::Begin, parts, now)
        else {
            // The attempt can have removed the stream of another topic.
            self.check()?;
            return self.check_is_full(topic);
        };
        let reply = ServerMessage::Subscribed { id: None, topic: TOPICS[topic], start };
        sockets.queue(key, reply.to_frame().as_bytes());
        let serial = sockets.open[&key].id.serial;
        self.clients[usize::from(client)].topics.insert(topic);
        self.check()?;
        let is_new = subscribed == Subscribed::New;
        let checked = self.oracle.on_subscribed(serial, (topic, &request), (is_new, &start));
        checked.map_err(|text| describe(topic, serial, &text))
    }

    pub(super) fn unsubscribe(&mut self, client: u8, topic: usize) {
        self.clients[usize::from(client)].topics.remove(&topic);
        let Some((worker, key)) = self.clients[usize::from(client)].connection else { return };
        let Worker { shard, replays, sockets, .. } = &mut self.workers[worker];
        let subscription = Subscription::parse(TOPICS[topic]).unwrap();
        replays.unsubscribe(key, &subscription, (&self.router, shard));
        let reply = ServerMessage::Unsubscribed { id: None, topic: TOPICS[topic] };
        sockets.queue(key, reply.to_frame().as_bytes());
        let serial = sockets.open[&key].id.serial;
        self.oracle.connections.entry(serial).or_default().on_unsubscribed(topic);
    }

    pub(super) fn set_pattern(&mut self, client: u8, pattern: usize, is_subscribed: bool) {
        let Some((worker, key)) = self.clients[usize::from(client)].connection else { return };
        let subscription = Subscription::parse(PATTERNS[pattern]).unwrap();
        let now = self.now();
        let Worker { shard, replays, sockets, .. } = &mut self.workers[worker];
        if is_subscribed {
            let request = SubscribeRequest { subscription, recover: None, history: 0 };
            let started = replays.subscribe(
                key,
                &request,
                SubscribeStep::Begin,
                (&self.streams, &self.router, shard),
                now,
            );
            assert!(started.is_ok_and(|(_, start)| start.position.is_none()));
        } else {
            replays.unsubscribe(key, &subscription, (&self.router, shard));
        }
        let serial = sockets.open[&key].id.serial;
        self.oracle.connections.entry(serial).or_default().on_pattern(pattern, is_subscribed);
    }

    /// Connects a client that is not connected.
    pub(super) fn connect(
        &mut self,
        client: u8,
        worker: usize,
        (speed, has_compression): (usize, bool),
    ) -> bool {
        if self.clients[usize::from(client)].connection.is_some() {
            return false;
        }
        let worker = worker % self.workers.len();
        let sockets = &mut self.workers[worker].sockets;
        let key = (0..).find(|key| !sockets.open.contains_key(key)).unwrap();
        self.serial += 1;
        let id = ConnectionId { worker: worker as u16, key, serial: self.serial };
        let mut socket = Socket::new(id, id.client_id("n").unwrap(), client, speed);
        socket.has_compression = has_compression;
        sockets.open.insert(key, socket);
        self.oracle.connections.insert(self.serial, Default::default());
        self.clients[usize::from(client)].connection = Some((worker, key));
        true
    }

    /// Ends a connection. What is queued for it is lost.
    pub(super) fn end(&mut self, worker: usize, key: ConnectionKey) {
        let Worker { shard, replays, sockets, .. } = &mut self.workers[worker];
        let Some(socket) = sockets.open.remove(&key) else { return };
        sockets.sent.retain(|sent| sent.key != key);
        replays.unsubscribe_all(key, shard);
        self.oracle.connections.remove(&socket.id.serial);
        self.clients[usize::from(socket.client)].on_end();
    }

    /// Replaces a worker that has died, with its connections.
    pub(super) fn replace(&mut self, worker: usize) {
        let worker = worker % self.workers.len();
        let replacement = Worker::new(&self.router, worker as u16, self.settings.max_queue_bytes);
        let dead = std::mem::replace(&mut self.workers[worker], replacement);
        self.workers[worker].sockets = dead.sockets;
        let keys: Vec<_> = self.workers[worker].sockets.open.keys().copied().collect();
        keys.into_iter().for_each(|key| self.end(worker, key));
    }

    /// Runs a round of a worker, like the worker of a node.
    pub(super) fn round(
        &mut self,
        worker: usize,
        budget: usize,
        meanwhile: Option<Meanwhile>,
    ) -> Result<(), String> {
        let worker = worker % self.workers.len();
        let now = self.now();
        let index = worker as u16;
        let Worker { shard, replays, refusals, sockets } = &mut self.workers[worker];
        sockets.budget = budget;
        let _ = shard.poll_deliver(&mut Context::from_waker(Waker::noop()), |key, delivery| {
            let is_excluded = delivery.excluded.is_some_and(|id| {
                (id.worker, id.key) == (index, key)
                    && sockets.open.get(&key).is_some_and(|socket| socket.id.serial == id.serial)
            });
            if !is_excluded {
                refusals.deliver(key, delivery, replays, sockets);
            }
            if sockets.budget == 0 { DeliveryFlow::Pause } else { DeliveryFlow::Continue }
        });
        refusals.settle((shard, replays), now, sockets);
        match meanwhile {
            Some(Meanwhile::Publish { topic }) => self.publish(topic, None, (50, false), None)?,
            Some(Meanwhile::Clear { topic }) => {
                self.publish(topic, None, (50, false), None)?;
                self.clear(topic)?;
            }
            None => {}
        }
        let Worker { shard, replays, sockets, .. } = &mut self.workers[worker];
        replays.run((&self.streams, &self.router, shard), now, sockets);
        self.check()?;
        for key in self.workers[worker].sockets.ending() {
            self.end(worker, key);
        }
        let Worker { replays, sockets, .. } = &mut self.workers[worker];
        for key in sockets.write() {
            replays.on_drained(key);
        }
        for socket in sockets.open.values_mut() {
            let client = &mut self.clients[usize::from(socket.client)];
            socket.received.drain(..).for_each(|sent| client.receive(sent));
        }
        Ok(())
    }

    /// Changes the speed of a client's socket.
    pub(super) fn set_speed(&mut self, client: u8, speed: usize) {
        let Some((worker, key)) = self.clients[usize::from(client)].connection else { return };
        if let Some(socket) = self.workers[worker].sockets.open.get_mut(&key) {
            socket.speed = speed;
        }
    }

    /// Empties a topic's history.
    pub(super) fn clear(&mut self, topic: usize) -> Result<(), String> {
        let cleared = self.streams.clear(&self.router, &Topic::parse(TOPICS[topic]).unwrap());
        assert!(cleared.is_ok());
        self.check()
    }

    pub(super) fn set_rules(&mut self, set: usize) -> Result<(), String> {
        self.streams.set_limits(&self.router, &self.settings.limits(set));
        self.check()?;
        self.oracle.on_rules_changed();
        Ok(())
    }
}

impl Worker {
    fn new(router: &StreamRouter, index: u16, max_queue_bytes: usize) -> Self {
        Self {
            shard: router.attach(ShardId(index)),
            replays: Replays::new(),
            refusals: Refusals::default(),
            sockets: Sockets::new(max_queue_bytes),
        }
    }
}

/// Returns the state of a topic's stream without a change.
fn look(router: &StreamRouter, name: &str) -> Option<Look> {
    router.update_kept(&Topic::parse(name).unwrap(), |_, kept, stripe| {
        let id = stripe.find(kept)?;
        let stream = stripe.table.get(id)?;
        let policy = stripe.table.budget().rules().get(stripe.table.rule(id)?)?.policy();
        Some(Look {
            epoch: stream.epoch(),
            oldest: stream.oldest(),
            newest: stream.newest(),
            delivery: policy.delivery(),
        })
    })
}

/// Returns a position to recover.
pub(super) fn recover(epoch: Epoch, offset: u64, is_partial: bool) -> Recover {
    Recover { epoch: Some(epoch), offset, time: None, partial: is_partial }
}
