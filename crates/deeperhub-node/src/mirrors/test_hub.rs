//! A hub of a cluster for tests, which act as its broker and its only worker.

use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use deeperhub_cluster::simulation::{SimulatedDriver, stored_envelope};
use deeperhub_cluster::{Envelope, StorePosition, StreamRange, Whole};
use deeperhub_history::{ReadRequest, Rules};
use deeperhub_listener::ConnectionKey;
use deeperhub_protocol::message::{ClientMessage, Command, SubscribeRequest};
use deeperhub_protocol::{RawJson, Subscription, Topic};
use deeperhub_router::{DeliveryFlow, ShardId};
use serde_json::Value;

use crate::config::Config;
use crate::connection_id::ConnectionId;
use crate::hub::{Hub, Publisher};
use crate::stream_counts::StreamContent;
use crate::streams::{HubShard, Remains};

/// The epoch of all streams.
pub(crate) const EPOCH: u64 = 1_800_000_000_000;

/// The topic that the tests use.
pub(crate) const TOPIC: &str = "kept.1";

/// A hub whose rule keeps ten messages of each topic below `kept` for 100 seconds.
pub(crate) struct TestHub {
    pub(crate) hub: Arc<Hub>,
    pub(crate) driver: SimulatedDriver,
    pub(crate) shard: HubShard,
    started: Instant,
}

impl TestHub {
    pub(crate) fn new() -> Self {
        let driver = SimulatedDriver::new("n", 1);
        let mut config = Config::default();
        config.listener.workers = 1;
        config.listener.workers = 1;
        config.history.rules = Rules::new(["kept.>: history=10 ttl=100s".parse().unwrap()]).unwrap();
        let started = Instant::now();
        let times = (started, started, EPOCH);
        let (hub, _) =
            Hub::simulated(config, ("n", driver.broker()), times, deeperhub_router::Config::default());
        let shard = hub.router.attach(ShardId(0));
        driver.connect();
        Self { hub, driver, shard, started }
    }

    /// Lets time pass.
    pub(crate) fn advance(&self, time: Duration) {
        let now = self.hub.streams.clock.now();
        self.hub.streams.clock.simulate(now + time);
    }

    /// Returns the connection with a key.
    pub(crate) const fn connection(key: ConnectionKey) -> ConnectionId {
        ConnectionId { worker: 0, key, serial: 0 }
    }

    /// Subscribes a connection to the topic, whose mirror then asks for its first read.
    pub(crate) fn follow(&mut self, key: ConnectionKey) -> ReadRequest {
        let (hub, topic) = (Arc::clone(&self.hub), Topic::parse(TOPIC).unwrap());
        let (budget, rule) = hub.streams.rule(&topic).unwrap();
        let now = hub.streams.clock.seconds(self.started);
        let read = hub.router.update_kept(&topic, |topic, kept, stripe| {
            let mut remains = Remains::default();
            let id = stripe.find_or_open(topic, kept, (&*budget, rule), now, &mut remains).unwrap();
            stripe.begin_read(id).unwrap()
        });
        self.shard.subscribe(key, &Subscription::Topic(topic));
        read
    }

    /// Applies the answer of a read.
    pub(crate) fn read(&self, request: ReadRequest, range: StreamRange) {
        self.hub.apply_read(&Topic::parse(TOPIC).unwrap(), request, Some(range));
    }

    /// Returns a number as a message that the store keeps, at a time after the start of the hub.
    pub(crate) fn stored(&mut self, number: u64, offset: u64, previous: u64, ms: u64) -> Bytes {
        self.stored_by(None, number, (offset, previous, ms))
    }

    /// Returns a message of a connection that is excluded from it.
    pub(crate) fn stored_by(
        &mut self,
        excluded: Option<ConnectionKey>,
        number: u64,
        (offset, previous, ms): (u64, u64, u64),
    ) -> Bytes {
        let (topic, text, hub) = (Topic::parse(TOPIC).unwrap(), number.to_string(), Arc::clone(&self.hub));
        let id = excluded.map(|key| Self::connection(key).client_id("n").unwrap());
        let publisher = id.as_ref().zip(excluded).map(|(id, key)| Publisher {
            id,
            connection_id: Self::connection(key),
            is_excluded: true,
            shard: &mut self.shard,
            once: None,
            wants_reply: false,
        });
        hub.publish(&topic, RawJson::parse(&text).unwrap(), publisher, self.started, None).unwrap();
        let append = self.driver.take_appends(0).pop().unwrap();
        append.stored(StorePosition { epoch: EPOCH, offset }, previous, EPOCH + ms)
    }

    /// Handles a live message.
    pub(crate) fn live(&self, message: &Bytes) {
        let envelope = Envelope::parse(message).unwrap();
        let mut publisher = self.hub.router.deferred_publisher();
        self.hub.apply_stored(&mut publisher, ("n", &envelope.message), None, false);
    }

    /// Returns an answer of the store with messages. With `whole_to`, offsets have holes.
    pub(crate) fn range(top: u64, messages: &[Bytes], whole_to: Option<u64>) -> StreamRange {
        let topic = Topic::parse(TOPIC).unwrap();
        let messages: Vec<_> =
            messages.iter().map(|bytes| stored_envelope(bytes.clone(), &topic, EPOCH).unwrap()).collect();
        let oldest = messages.first().map_or(top + 1, |first| first.offset());
        StreamRange {
            top: Some(StorePosition { epoch: EPOCH, offset: top }),
            oldest,
            time: EPOCH,
            kept: messages.len() as u64,
            messages,
            is_cut: false,
            whole: whole_to.map(|to| Whole { after: oldest - 1, to }),
        }
    }

    /// Returns the frames that the worker delivers, each with its connection. Checks that metrics count
    /// them as what they are.
    pub(crate) fn deliveries(&mut self) -> Vec<(ConnectionKey, Value)> {
        let mut delivered = Vec::new();
        let _ = self.shard.poll_deliver(&mut Context::from_waker(Waker::noop()), |key, delivery| {
            let frame = delivery.frame.frame().as_bytes();
            let text = String::from_utf8_lossy(frame);
            let start = text.find(r#"{"type""#).unwrap();
            let frame: Value = serde_json::from_str(&text[start..]).unwrap();
            let counted = match delivery.sequenced.as_ref().map(|sequenced| sequenced.content) {
                Some(StreamContent::Gap(_)) => "gap",
                Some(StreamContent::Position) => "position",
                Some(StreamContent::Message) | None => "message",
            };
            assert_eq!(frame["type"], counted);
            delivered.push((key, frame));
            DeliveryFlow::Continue
        });
        delivered
    }

    /// Calls `call` with the requests of a `subscribe`.
    pub(crate) fn with_requests<R>(text: &str, call: impl FnOnce(&[SubscribeRequest<'_>]) -> R) -> R {
        match ClientMessage::parse(text).unwrap().command {
            Command::Subscribe(request) => call(&[request]),
            Command::SubscribeList { topics } => {
                call(&topics.entries().filter_map(|entry| entry.request.ok()).collect::<Vec<_>>())
            }
            command => panic!("no subscribe: {command:?}"),
        }
    }
}
