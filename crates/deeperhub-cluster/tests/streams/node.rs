//! A node of the hub: a broker's handle, a driver, and a record of what it received.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use deeperhub_cluster::{
    Append, AppendError, AppendNumber, Appended, Broker, BrokerUrl, Config, DriverHandle, EnqueueError,
    Envelope, InterestChange, JoinOutcome, Message, MessageHandler, PendingAnswer, RawJson, StorePosition,
    StreamLimits, StreamRange, StreamRead, StreamRule, Subscription, Topic, TraceContext, connect,
};

use crate::{WAIT_TIMEOUT, eventually, wait};

/// Limits that no test reaches by accident.
pub(crate) const LIMITS: StreamLimits =
    StreamLimits { messages: 10_000, ttl: Duration::from_secs(600), forget: Duration::from_secs(3600) };

/// Messages that a node received of a topic, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Received {
    Stored { position: StorePosition, previous: u64, payload: String },
    Reset { epoch: u64 },
    Plain { payload: String },
}

pub(crate) type Outcome = Result<Appended, AppendError>;

#[derive(Debug, Default)]
struct Record {
    received: Mutex<Vec<Received>>,
    outcomes: Mutex<BTreeMap<u64, Vec<Outcome>>>,
}

struct Recorder(Arc<Record>);

impl MessageHandler for Recorder {
    async fn handle(&self, envelope: Envelope<'_>) -> Option<PendingAnswer> {
        let received = match envelope.message {
            Message::Stored { position, previous, payload, .. } => {
                Received::Stored { position, previous, payload: payload.as_str().to_owned() }
            }
            Message::StreamReset { epoch, .. } => Received::Reset { epoch },
            Message::Publish { payload, .. } => Received::Plain { payload: payload.as_str().to_owned() },
            _ => return None,
        };
        self.0.received.lock().unwrap().push(received);
        None
    }

    fn on_appended(&self, number: AppendNumber, outcome: Outcome) {
        self.0.outcomes.lock().unwrap().entry(number.0).or_default().push(outcome);
    }

    fn connections(&self) -> u64 {
        0
    }
}

/// A node.
pub(crate) struct Node {
    pub(crate) broker: Broker,
    pub(crate) driver: DriverHandle,
    record: Arc<Record>,
}

impl Node {
    pub(crate) fn join(url: &str, name: &str) -> Self {
        Self::join_with(Config::new(BrokerUrl::parse(url).unwrap()), name, &[(">", LIMITS)])
    }

    /// Joins with rules, which matter for JetStream.
    pub(crate) fn join_with(config: Config, name: &str, rules: &[(&str, StreamLimits)]) -> Self {
        let (broker, driver) = connect(config, name, "1").unwrap();
        set_rules(&broker, rules);
        let record = Arc::<Record>::default();
        let driver = driver.spawn(Recorder(Arc::clone(&record))).unwrap();
        assert_eq!(driver.wait_for_join(WAIT_TIMEOUT), Some(JoinOutcome::Joined));
        Self { broker, driver, record }
    }

    /// Replaces the rules while the node runs.
    pub(crate) fn set_rules(&self, rules: &[(&str, StreamLimits)]) {
        set_rules(&self.broker, rules);
    }

    /// Follows a topic, and waits until the broker has confirmed it.
    pub(crate) fn follow(&self, topic: &str) {
        self.broker.change_interest(&Arc::from(topic), InterestChange::Gained);
        let reply = self.broker.read_streams(vec![StreamRead { follows: true, ..read(topic, None, 0) }]);
        wait(reply.unwrap()).unwrap().remove(0).unwrap();
    }

    pub(crate) fn append(&self, number: u64, append: Append<'_>) -> Result<(), EnqueueError> {
        self.broker.append(append, AppendNumber(number))
    }

    /// Waits for the only outcome of an append.
    pub(crate) fn outcome(&self, number: u64) -> Outcome {
        eventually("the outcome of an append", || self.record.outcomes.lock().unwrap().contains_key(&number));
        let outcomes = self.record.outcomes.lock().unwrap();
        let outcomes = &outcomes[&number];
        assert_eq!(outcomes.len(), 1, "{outcomes:?}");
        outcomes[0].clone()
    }

    pub(crate) fn outcome_count(&self) -> usize {
        self.record.outcomes.lock().unwrap().len()
    }

    /// Appends a number and waits until it is stored.
    pub(crate) fn store(&self, topic: &str, number: u64) -> StorePosition {
        self.store_with(number, message(topic, &number.to_string()))
    }

    pub(crate) fn store_with(&self, number: u64, append: Append<'_>) -> StorePosition {
        self.append(number, append).unwrap();
        self.outcome(number).expect("the message is stored").position
    }

    pub(crate) fn received(&self) -> Vec<Received> {
        self.record.received.lock().unwrap().clone()
    }

    /// Waits for a number of received messages and returns all.
    pub(crate) fn receive(&self, count: usize) -> Vec<Received> {
        eventually("messages", || self.record.received.lock().unwrap().len() >= count);
        self.received()
    }

    pub(crate) fn read(&self, read: StreamRead) -> StreamRange {
        let ranges = wait(self.broker.read_streams(vec![read]).unwrap()).unwrap();
        assert_eq!(ranges.len(), 1);
        ranges.into_iter().next().unwrap().unwrap()
    }

    /// Waits until the node has lost its connection.
    pub(crate) fn wait_until_down(&self) {
        eventually("the end of the connection", || !self.broker.is_up());
    }

    pub(crate) fn wait_until_up(&self) {
        eventually("a new connection", || self.broker.is_up());
    }

    /// Stops the driver and waits until it has ended.
    pub(crate) fn stop(self, deadline: Instant) -> Stopped {
        self.broker.stop(deadline);
        wait(self.driver.wait_for_end());
        Stopped { broker: self.broker, record: self.record }
    }
}

fn set_rules(broker: &Broker, rules: &[(&str, StreamLimits)]) {
    broker.set_stream_rules(rules.iter().map(|(pattern, limits)| StreamRule {
        pattern: Subscription::parse((*pattern).to_owned()).unwrap(),
        limits: Some(*limits),
    }));
}

/// A node whose driver has ended.
pub(crate) struct Stopped {
    pub(crate) broker: Broker,
    record: Arc<Record>,
}

impl Stopped {
    pub(crate) fn outcomes(&self) -> Vec<(u64, Outcome)> {
        let outcomes = self.record.outcomes.lock().unwrap();
        outcomes.iter().flat_map(|(number, all)| all.iter().map(|one| (*number, one.clone()))).collect()
    }
}

pub(crate) fn topic(name: &str) -> Topic<'static> {
    Topic::parse(name.to_owned()).unwrap()
}

/// Returns a message without further fields.
pub(crate) fn message<'a>(name: &str, payload: &'a str) -> Append<'a> {
    Append {
        topic: topic(name),
        limits: LIMITS,
        known: None,
        from: None,
        excludes_publisher: false,
        trace: TraceContext::default(),
        payload: RawJson::parse(payload).unwrap(),
        once: None,
    }
}

/// Returns a read of a topic with [`LIMITS`].
pub(crate) fn read(name: &str, after: Option<StorePosition>, messages: u32) -> StreamRead {
    StreamRead { topic: topic(name), after, messages, limits: LIMITS, creates: false, follows: false }
}

/// Returns offsets and payloads of a range.
pub(crate) fn contents(range: &StreamRange) -> Vec<(u64, String)> {
    range
        .messages
        .iter()
        .map(|message| match message.envelope().unwrap().message {
            Message::Stored { position, payload, .. } => {
                assert_eq!(position.offset, message.offset());
                (message.offset(), payload.as_str().to_owned())
            }
            other => panic!("expected a stored message, got {other:?}"),
        })
        .collect()
}

/// Returns the contents of a range that holds its offsets as payloads.
pub(crate) fn numbers(offsets: impl IntoIterator<Item = u64>) -> Vec<(u64, String)> {
    offsets.into_iter().map(|offset| (offset, offset.to_string())).collect()
}
