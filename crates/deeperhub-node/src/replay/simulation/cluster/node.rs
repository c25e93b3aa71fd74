//! A simulated node: its hub, its reader, and workers without threads.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use deeperhub_cluster::simulation::SimulatedDriver;
use deeperhub_cluster::{AppendError, AppendNumber, Appended, Envelope, MessageHandler, StreamLimits};
use deeperhub_listener::ConnectionKey;
use deeperhub_protocol::Topic;
use deeperhub_router::{DeliveryFlow, InboxPosition, ShardId};
use tokio::sync::mpsc;

use super::super::socket::Sockets;
use super::settings::Settings;
use crate::cluster::forward_interest;
use crate::cluster::receive::ClusterReceiver;
use crate::config::Config;
use crate::delivery::Delivery;
use crate::hub::Hub;
use crate::mirrors::{self, SimulatedReader};
use crate::replay::Replays;
use crate::streams::{ClusterStore, HubShard, StoreNotice};
use crate::worker::AppendReply;
use crate::worker::parked::ParkedClients;
use crate::worker::refusals::Refusals;

/// Times of the simulation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) started: Instant,
    pub(super) started_unix_ms: u64,
    pub(super) now: Duration,
}

/// A worker, which runs only when an operation says so.
pub(super) struct Worker {
    pub(super) shard: HubShard,
    pub(super) replays: Replays,
    refusals: Refusals,
    pub(super) sockets: Sockets,
    pub(super) notices: mpsc::UnboundedReceiver<StoreNotice>,
    pub(super) parked: ParkedClients,
    /// Times since which connections are parked.
    pub(super) parked_since: BTreeMap<ConnectionKey, Duration>,
    pub(super) appends: BTreeMap<AppendNumber, AppendReply>,
}

/// A running node.
pub(super) struct Node {
    pub(super) hub: Arc<Hub>,
    pub(super) store: Arc<ClusterStore>,
    pub(super) driver: SimulatedDriver,
    receiver: ClusterReceiver,
    pub(super) reader: SimulatedReader,
    pub(super) workers: Vec<Worker>,
    clears: Vec<Pin<Box<dyn Future<Output = bool>>>>,
}

impl Node {
    pub(super) fn new(index: usize, incarnation: u64, settings: &Settings, times: Times) -> Self {
        let name = format!("n{index}");
        let driver = SimulatedDriver::new(&name, incarnation);
        let broker = driver.broker();
        let mut config = Config::default();
        config.listener.workers = settings.workers.into();
        config.history = settings.limits(0);
        let started_unix_ms = times.started_unix_ms.saturating_add_signed(settings.skews_ms[index]);
        let clock = (times.started, times.started + times.now, started_unix_ms);
        let mut router_config = deeperhub_router::Config::default();
        router_config.hash_seeds = Some([settings.seed, 2, 3, 4]);
        let (hub, store) = Hub::simulated(config, (&name, broker.clone()), clock, router_config);
        forward_interest(&hub.router, &broker, Some(Arc::clone(&store)));
        let workers = (0..settings.workers).map(|index| Worker::new(&hub, &store, index, settings)).collect();
        let receiver = ClusterReceiver::new(Arc::clone(&hub));
        let reader = SimulatedReader::new(&hub, &store);
        Self { hub, store, driver, receiver, reader, workers, clears: Vec::new() }
    }

    /// Moves the clock.
    pub(super) fn set_time(&self, now: Instant) {
        self.hub.streams.clock.simulate(now);
    }

    /// Handles a message of the broker.
    pub(super) fn handle(&self, envelope: &[u8]) -> Result<(), String> {
        let envelope = Envelope::parse(envelope).map_err(|error| error.to_string())?;
        let mut handling = std::pin::pin!(self.receiver.handle(envelope));
        let mut cx = Context::from_waker(Waker::noop());
        let is_ready = handling.as_mut().poll(&mut cx).is_ready();
        self.receiver.flush();
        if is_ready { Ok(()) } else { Err("a node waits for its workers".to_owned()) }
    }

    /// Notes the loss of the connection to the broker. The reader learns of it later.
    pub(super) fn on_disconnected(&self) {
        self.receiver.on_disconnected();
        self.driver.disconnect();
    }

    /// Handles the outcome of an append.
    pub(super) fn on_appended(&self, number: AppendNumber, outcome: Result<Appended, AppendError>) {
        self.receiver.on_appended(number, outcome);
    }

    /// Begins to empty the history of a topic.
    pub(super) fn clear(&mut self, topic: &'static str) {
        let (hub, store) = (Arc::clone(&self.hub), Arc::clone(&self.store));
        let clear = async move { mirrors::clear(&hub, &store, &Topic::parse(topic).expect("a topic")).await };
        self.clears.push(Box::pin(clear));
    }

    /// Lets the reader, and what waits for the store, do all that they can.
    pub(super) fn run(&mut self) {
        self.reader.run();
        let mut cx = Context::from_waker(Waker::noop());
        self.clears.retain_mut(|clear| clear.as_mut().poll(&mut cx).is_pending());
        self.reader.run();
    }

    /// Returns the limits of a topic's stream, if a rule keeps its messages.
    pub(super) fn limits_of(&self, topic: &Topic<'_>) -> Option<StreamLimits> {
        let (budget, rule) = self.hub.streams.rule(topic)?;
        let policy = budget.rules().get(rule)?.policy();
        policy.keeps_history().then(|| self.store.limits_of(policy))
    }

    /// Changes the rules.
    pub(super) fn set_rules(&self, settings: &Settings, set: usize) {
        let history = settings.limits(set);
        self.hub.streams.set_limits(&self.hub.router, &history);
        let mut limits = (**self.hub.limits.load()).clone();
        limits.history = history;
        self.hub.limits.store(Arc::new(limits));
    }
}

impl Worker {
    fn new(hub: &Arc<Hub>, store: &Arc<ClusterStore>, index: u16, settings: &Settings) -> Self {
        Self {
            shard: hub.router.attach(ShardId(index)),
            replays: Replays::new(),
            refusals: Refusals::default(),
            sockets: Sockets::new(settings.max_queue_bytes),
            notices: store.attach(index),
            parked: ParkedClients::default(),
            parked_since: BTreeMap::new(),
            appends: BTreeMap::new(),
        }
    }

    /// Delivers queued messages and continues replays, at most `budget` messages.
    pub(super) fn deliver(&mut self, hub: &Hub, budget: usize, now: Instant) {
        let Self { shard, replays, refusals, sockets, .. } = self;
        sockets.budget = budget;
        let index = shard.id();
        let _ = shard.poll_deliver(&mut Context::from_waker(Waker::noop()), |key, delivery| {
            deliver_to_one((index, key), delivery, (replays, refusals, sockets))
        });
        refusals.settle((shard, replays), now, sockets);
        replays.run((&hub.streams, &hub.router, shard), now, sockets);
        sockets.sent.clear();
    }

    /// Delivers messages that were queued before `position`.
    pub(super) fn deliver_until(&mut self, position: InboxPosition) {
        let Self { shard, replays, refusals, sockets, .. } = self;
        sockets.budget = usize::MAX;
        let index = shard.id();
        shard.deliver_until(position, |key, delivery| {
            deliver_to_one((index, key), delivery, (replays, refusals, sockets))
        });
    }
}

fn deliver_to_one(
    (shard, key): (ShardId, ConnectionKey),
    delivery: &Delivery,
    (replays, refusals, sockets): (&mut Replays, &mut Refusals, &mut Sockets),
) -> DeliveryFlow {
    let is_excluded = delivery.excluded.is_some_and(|id| {
        (id.worker, id.key) == (shard.0, key)
            && sockets.open.get(&key).is_some_and(|socket| socket.id.serial == id.serial)
    });
    if is_excluded {
        refusals.deliver_position(key, delivery, replays, sockets);
    } else {
        refusals.deliver(key, delivery, replays, sockets);
    }
    if sockets.budget == 0 { DeliveryFlow::Pause } else { DeliveryFlow::Continue }
}
