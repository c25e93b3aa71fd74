//! The broker and its links to the nodes, with their faults.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use deeperhub_cluster::simulation::{QueuedAppend, StoreRequest, stamp_reset};
use deeperhub_cluster::{
    AppendError, AppendNumber, Appended, Envelope, Message, ReadError, StorePosition, StreamRange,
    StreamRead, StreamTop,
};
use deeperhub_protocol::Topic;

use super::super::socket::Payload;
use super::super::topics::TOPICS;
use super::Simulation;
use super::jetstream::{Attempt, Known, LateAppend, Record, Session, limits_of};
use super::log::Stored;
use super::operation;
use super::plants::{ModelBug, is_broken};
use super::store::Store;

/// Time after which a request without an answer has failed, and the connection is lost.
const BROKER_TIMEOUT: Duration = Duration::from_secs(3);

/// Replicas that lag, each by some more changes.
const MAX_REPLICAS: usize = 8;

type Outcome = (AppendNumber, Result<Appended, AppendError>);

/// An append of a lost connection, which the broker may still execute.
#[derive(Debug)]
enum Late {
    Redis { append: QueuedAppend, is_resent: bool },
    JetStream(LateAppend),
}

/// A message on its way to a node.
#[derive(Debug, Clone)]
enum Incoming {
    Envelope(Bytes),
    /// The node writes the position into it when it comes.
    Record(Arc<Record>),
}

/// The connections of one node to the broker.
#[derive(Debug, Default)]
pub(super) struct Link {
    pub(super) is_up: bool,
    /// The batch that was sent last and is not confirmed.
    batch: Vec<QueuedAppend>,
    is_resent: bool,
    sent_at: Duration,
    /// Number of the appends of the batch that the broker has executed.
    executed: usize,
    outcomes: Vec<Outcome>,
    /// Appends of lost connections, which are sent again.
    unconfirmed: VecDeque<QueuedAppend>,
    late: VecDeque<Late>,
    /// `true` if the streams of JetStream were compared since the node has connected.
    is_prepared: bool,
    /// What JetStream was sent of the batch.
    attempt: Option<Attempt>,
    /// Knowledge of the node about the streams of JetStream.
    known: Known,
    requests: VecDeque<(StoreRequest, Duration)>,
    /// Messages on their way to the node.
    incoming: VecDeque<Incoming>,
    subscriptions: BTreeSet<Arc<str>>,
}

impl Link {
    /// Loses the connections. The broker executes the first `late` appends that it has not
    /// executed, later.
    fn cut(&mut self, late: usize) {
        self.is_up = false;
        match self.attempt.take() {
            Some(attempt) => self.late.extend(attempt.into_rest().take(late).map(Late::JetStream)),
            None => {
                let is_resent = self.is_resent;
                let rest = self.batch.iter().skip(self.executed).take(late);
                self.late.extend(rest.map(|append| Late::Redis { append: append.clone(), is_resent }));
            }
        }
        for append in std::mem::take(&mut self.batch).into_iter().rev() {
            if !is_broken(ModelBug::BatchForgotten) {
                self.unconfirmed.push_front(append);
            }
        }
        self.executed = 0;
        self.outcomes.clear();
        self.requests.clear();
        self.incoming.clear();
        self.subscriptions.clear();
    }

    fn follows(&self, topic: &str) -> bool {
        self.subscriptions.iter().any(|name| **name == *topic)
    }
}

impl Simulation {
    /// Returns the broker's time.
    pub(super) fn broker_ms(&self) -> u64 {
        let ms = self.times.started_unix_ms + self.times.now.as_millis() as u64;
        ms.saturating_add_signed(self.broker_skew_ms)
    }

    /// Returns a node's time.
    fn node_ms(&self, node: usize) -> u64 {
        let ms = self.times.started_unix_ms + self.times.now.as_millis() as u64;
        ms.saturating_add_signed(self.settings.skews_ms[node])
    }

    /// Connects a node to the broker.
    pub(super) fn connect_link(&mut self, node: usize) {
        let link = &mut self.links[node];
        if let Some(running) = &self.nodes[node]
            && !link.is_up
        {
            (link.is_up, link.is_prepared) = (true, false);
            link.known.on_connected();
            running.driver.connect();
        }
        self.follow(node);
    }

    /// Loses the connection of a node.
    pub(super) fn cut_link(&mut self, node: usize, late: usize) {
        if std::mem::take(&mut self.links[node].is_up) {
            self.links[node].cut(late);
            if let Some(running) = &self.nodes[node] {
                running.driver.disconnect();
            }
        }
    }

    /// Forgets what a node has sent: the node has ended.
    pub(super) fn drop_link(&mut self, node: usize, late: usize) {
        self.links[node].cut(late);
        self.links[node].unconfirmed.clear();
        self.links[node].known = Known::default();
    }

    /// Makes the changes of a node's subscriptions.
    pub(super) fn follow(&mut self, node: usize) {
        let (link, now) = (&mut self.links[node], self.times.started + self.times.now);
        let Some(running) = self.nodes[node].as_ref().filter(|_| link.is_up) else { return };
        let requested = running.driver.requested();
        let changes = running.driver.take_interest(now);
        link.subscriptions.extend(changes.subscribe);
        changes.unsubscribe.iter().for_each(|name| {
            link.subscriptions.remove(name);
        });
        running.driver.confirm(requested);
    }

    /// Sends a node's next batch.
    pub(super) fn send(&mut self, node: usize) {
        let time = self.node_ms(node);
        let link = &mut self.links[node];
        let Some(running) = self.nodes[node].as_ref().filter(|_| link.is_up && link.batch.is_empty()) else {
            return;
        };
        link.is_resent = !link.unconfirmed.is_empty();
        link.batch = if link.unconfirmed.is_empty() {
            running.driver.take_appends(time)
        } else {
            link.unconfirmed.drain(..).collect()
        };
        (link.executed, link.sent_at) = (0, self.times.now);
    }

    /// Executes appends of a node. Returns `false` if there are none.
    pub(super) fn execute(&mut self, node: usize, count: usize) -> Result<bool, String> {
        if self.is_paused() {
            return Ok(false);
        }
        if matches!(self.store, Store::JetStream(_)) {
            return self.execute_attempt(node, count);
        }
        let mut is_busy = false;
        for _ in 0..count {
            let link = &mut self.links[node];
            let Some(append) = link.batch.get(link.executed).cloned() else { break };
            link.executed += 1;
            is_busy = true;
            let is_resent = link.is_resent;
            let number = append.number;
            let outcome = self.append(&append, is_resent)?;
            let refused = || AppendError::Refused("late".to_owned());
            self.links[node].outcomes.push((number, outcome.ok_or_else(refused)));
        }
        Ok(is_busy)
    }

    /// Executes appends of a node at JetStream.
    fn execute_attempt(&mut self, node: usize, count: usize) -> Result<bool, String> {
        let link = &mut self.links[node];
        let attempt = link.attempt.take();
        if link.batch.is_empty() {
            return Ok(false);
        }
        let batch = link.batch.clone();
        let mut is_busy = false;
        let mut attempt = match attempt {
            Some(attempt) => attempt,
            None => self.at_jetstream(node, |session| session.prepare(&batch))?,
        };
        for _ in 0..count {
            if attempt.is_executed() {
                break;
            }
            is_busy = true;
            self.keep_replica();
            self.at_jetstream(node, |session| session.execute(&mut attempt))?;
        }
        self.links[node].attempt = Some(attempt);
        Ok(is_busy)
    }

    /// Lets a node use JetStream, which sends messages meanwhile.
    fn at_jetstream<R>(&mut self, node: usize, act: impl FnOnce(&mut Session<'_>) -> R) -> Result<R, String> {
        let now = self.broker_ms();
        let node_ms = self.node_ms(node);
        let (mut sent, begun) = (Vec::new(), self.given.begun());
        let Store::JetStream(server) = &mut self.store else { return Err("the store is Redis".to_owned()) };
        let (known, given) = (&mut self.links[node].known, &mut self.given);
        let result = act(&mut Session { server, known, given, now, node_ms, sent: &mut sent });
        let is_changed = !sent.is_empty() || self.given.begun() > begun;
        for record in sent {
            self.on_record(node, record)?;
        }
        if is_changed {
            self.note_epochs();
        }
        Ok(result)
    }

    /// Notes a new message of JetStream by a node, and sends it to the nodes that follow its topic.
    fn on_record(&mut self, sender: usize, record: Arc<Record>) -> Result<(), String> {
        let is_mark = match record.payload() {
            Some(payload) => {
                let now = self.broker_ms();
                let (epochs, _) = self.store.positions(&record.topic, now);
                let number = number(&payload)?;
                for epoch in epochs {
                    let position = StorePosition { epoch, offset: record.sequence };
                    self.on_stored(&record.topic, position, number)?;
                }
                false
            }
            None => true,
        };
        for (node, link) in self.links.iter_mut().enumerate() {
            // A node knows its own mark already.
            if node != sender || !is_mark {
                link.known.note_given(&record);
            }
        }
        for link in self.links.iter_mut().filter(|link| link.is_up) {
            // All nodes are told of a new epoch.
            if is_mark || link.follows(&record.topic) {
                link.incoming.push_back(Incoming::Record(Arc::clone(&record)));
            }
        }
        Ok(())
    }

    /// Compares all streams of JetStream with what a node knows, once for each connection.
    fn prepare_streams(&mut self, node: usize) -> Result<(), String> {
        if std::mem::replace(&mut self.links[node].is_prepared, true) {
            return Ok(());
        }
        for topic in operation::TOPICS {
            let limits = self.nodes[node].as_ref().and_then(|running| running.limits_of(&self::topic(topic)));
            if let Some(limits) = limits {
                self.at_jetstream(node, |session| session.ensure(TOPICS[topic], limits_of(limits)))?;
            }
        }
        Ok(())
    }

    /// Checks that no stream of JetStream lives on that has lost messages which a node had seen.
    pub(super) fn check_streams(&self) -> Result<(), String> {
        let Store::JetStream(server) = &self.store else { return Ok(()) };
        self.links.iter().enumerate().try_for_each(|(node, link)| {
            link.known.check_replaced(server).map_err(|text| format!("n{node}: {text}"))
        })
    }

    /// Notes the epochs of all streams of JetStream.
    fn note_epochs(&mut self) {
        let now = self.broker_ms();
        for (topic, log) in self.logs.iter_mut().enumerate() {
            let (epochs, top) = self.store.positions(TOPICS[topic], now);
            epochs.into_iter().filter(|epoch| *epoch > 0).for_each(|epoch| log.note_top(epoch, top));
        }
    }

    /// Executes appends of lost connections.
    pub(super) fn execute_late(&mut self, node: usize, count: usize) -> Result<(), String> {
        for _ in 0..count {
            match self.links[node].late.pop_front() {
                Some(Late::Redis { append, is_resent }) => drop(self.append(&append, is_resent)?),
                Some(Late::JetStream(late)) => {
                    self.keep_replica();
                    self.at_jetstream(node, |session| session.execute_late(late))?;
                }
                None => break,
            }
        }
        Ok(())
    }

    fn append(&mut self, append: &QueuedAppend, is_resent: bool) -> Result<Option<Appended>, String> {
        let now = self.broker_ms();
        self.keep_replica();
        // JetStream was not sent this.
        let Store::Redis(server) = &mut self.store else { return Ok(None) };
        let result = server.append(append, is_resent, now, &mut self.given);
        if let Some(entry) = &result.entry {
            self.on_stored(&append.topic, entry.position, number(&entry.bytes)?)?;
            self.push(&append.topic, &entry.bytes);
        }
        Ok(result.outcome)
    }

    /// Notes a new message of the store.
    fn on_stored(&mut self, name: &str, position: StorePosition, number: u64) -> Result<(), String> {
        let topic = index(name).ok_or("an unknown topic")?;
        let StorePosition { epoch, offset } = position;
        let is_known = self
            .nodes
            .iter()
            .flatten()
            .any(|node| super::checks::node_newest(node, name) >= Some((epoch, offset)));
        let time = self.broker_ms();
        let stored = Stored { number, time };
        let store = &self.store;
        let forgets =
            |before| matches!(store, Store::JetStream(server) if server.forgets(name, before, time));
        let noted = self.logs[topic].append(position, stored, is_known, forgets);
        noted.map_err(|text| format!("{name}: {text}"))
    }

    /// Sends a message to the nodes that follow a topic.
    fn push(&mut self, topic: &str, bytes: &Bytes) {
        for link in self.links.iter_mut().filter(|link| link.is_up && link.follows(topic)) {
            link.incoming.push_back(Incoming::Envelope(bytes.clone()));
        }
    }

    /// Takes the answers of JetStream to the appends of a batch. Returns `false` if some are missing,
    /// or if some appends need another attempt.
    fn receive_acks(&mut self, node: usize) -> Result<bool, String> {
        let link = &mut self.links[node];
        let Some(attempt) = link.attempt.take_if(|attempt| attempt.is_executed() && link.is_up) else {
            return Ok(false);
        };
        let mut outcomes = std::mem::take(&mut link.outcomes);
        let next = self.at_jetstream(node, |session| session.receive(attempt, &mut outcomes))?;
        let link = &mut self.links[node];
        (link.attempt, link.outcomes) = (next, outcomes);
        Ok(link.attempt.is_none())
    }

    /// Confirms a node's batch if all of it was executed.
    pub(super) fn confirm(&mut self, node: usize) -> Result<bool, String> {
        let is_executed = match self.store {
            Store::Redis(_) => {
                let link = &self.links[node];
                !link.batch.is_empty() && link.executed == link.batch.len() && link.is_up
            }
            Store::JetStream(_) => !self.is_paused() && self.receive_acks(node)?,
        };
        if !is_executed {
            return Ok(false);
        }
        let link = &mut self.links[node];
        link.batch.clear();
        link.executed = 0;
        let mut outcomes = std::mem::take(&mut link.outcomes);
        if is_broken(ModelBug::OutcomesSwapped)
            && let [(_, first), (_, second), ..] = &mut outcomes[..]
        {
            std::mem::swap(first, second);
        }
        if let Some(running) = &self.nodes[node] {
            for (number, outcome) in outcomes {
                running.on_appended(number, outcome);
            }
        }
        Ok(true)
    }

    /// Passes messages to a node.
    pub(super) fn pass(&mut self, node: usize, count: usize) -> Result<bool, String> {
        let mut is_busy = false;
        for _ in 0..count {
            let link = &mut self.links[node];
            let Some(incoming) = link.incoming.pop_front() else { break };
            is_busy = true;
            let bytes = match incoming {
                Incoming::Envelope(bytes) => Some(bytes),
                Incoming::Record(record) => link.known.stamp(&record),
            };
            if let (Some(running), Some(bytes)) = (&self.nodes[node], bytes) {
                running.handle(&bytes)?;
            }
        }
        Ok(is_busy)
    }

    /// Loses messages on their way to a node.
    pub(super) fn lose(&mut self, node: usize, count: usize) {
        let link = &mut self.links[node];
        link.incoming.drain(..count.min(link.incoming.len()));
    }

    /// Repeats the next message to a node.
    pub(super) fn repeat(&mut self, node: usize) {
        let link = &mut self.links[node];
        if let Some(incoming) = link.incoming.front().cloned() {
            link.incoming.push_back(incoming);
        }
    }

    /// Takes a node's requests to the store, and answers some.
    pub(super) fn answer(&mut self, node: usize, count: usize) -> Result<bool, String> {
        let now = self.times.now;
        if let Some(running) = self.nodes[node].as_ref().filter(|_| self.links[node].is_up) {
            let taken = running.driver.take_requests(Instant::now());
            self.links[node].requests.extend(taken.into_iter().map(|request| (request, now)));
        }
        if self.is_paused() {
            return Ok(false);
        }
        if matches!(self.store, Store::JetStream(_)) && self.links[node].is_up {
            self.prepare_streams(node)?;
        }
        let mut is_busy = false;
        for _ in 0..count {
            let Some((request, _)) = self.links[node].requests.pop_front() else { break };
            is_busy = true;
            self.answer_one(node, request)?;
        }
        Ok(is_busy)
    }

    fn answer_one(&mut self, node: usize, request: StoreRequest) -> Result<(), String> {
        match request {
            StoreRequest::Streams { reads, reply } => {
                let mut ranges = Vec::new();
                for read in &reads {
                    ranges.push(Ok(self.read(node, read)?));
                }
                let _ = reply.send(Ok(ranges));
            }
            StoreRequest::Tops { topics, remember_ms, reply } => {
                let mut tops = Vec::new();
                for topic in &topics {
                    tops.push(self.top(node, topic, remember_ms)?);
                }
                let _ = reply.send(Ok(tops));
            }
            StoreRequest::Reset { reset, mut envelope, stamp, reply } => {
                let now = self.broker_ms();
                self.keep_replica();
                let position = match &mut self.store {
                    Store::Redis(server) => {
                        let (position, has_begun) = server.reset(&reset, now, &mut self.given);
                        self.note_epoch(reset.topic.as_str(), Some(position));
                        if has_begun {
                            stamp_reset(&mut envelope, stamp, position.epoch, now);
                            self.push(reset.topic.as_str(), &envelope.into());
                        }
                        position
                    }
                    Store::JetStream(_) => self.at_jetstream(node, |session| session.reset(&reset))?,
                };
                let _ = reply.send(Ok(position));
            }
        }
        Ok(())
    }

    fn read(&mut self, node: usize, read: &StreamRead) -> Result<StreamRange, String> {
        let (now, max) = (self.broker_ms(), self.settings.max_read);
        match &mut self.store {
            Store::Redis(server) => {
                let range = server.read(read, max, now, &mut self.given);
                self.note_epoch(read.topic.as_str(), range.top);
                Ok(range)
            }
            Store::JetStream(_) => self.at_jetstream(node, |session| session.read(read, max)),
        }
    }

    fn top(&mut self, node: usize, topic: &Topic<'_>, remember_ms: Option<u64>) -> Result<StreamTop, String> {
        let now = self.broker_ms();
        if let Store::Redis(server) = &mut self.store {
            return Ok(server.top(topic.as_str(), remember_ms, now));
        }
        match self.nodes[node].as_ref().and_then(|node| node.limits_of(topic)) {
            Some(limits) => self.at_jetstream(node, |session| session.top(topic.as_str(), limits_of(limits))),
            None => Ok(StreamTop { position: None, progress: None, time: now }),
        }
    }

    fn note_epoch(&mut self, topic: &str, top: Option<StorePosition>) {
        if let (Some(topic), Some(top)) = (index(topic), top) {
            self.logs[topic].add_epoch(top.epoch);
        }
    }

    fn keep_replica(&mut self) {
        self.replicas.push_front(self.store.clone());
        self.replicas.truncate(MAX_REPLICAS);
    }

    pub(super) fn is_paused(&self) -> bool {
        self.times.now < self.paused_until
    }

    /// Fails requests that were not answered in time, and loses connections whose batch was not.
    pub(super) fn time_out(&mut self) {
        let now = self.times.now;
        let is_late = |since: Duration| now.saturating_sub(since) > BROKER_TIMEOUT;
        for node in 0..self.links.len() {
            while let Some((_, since)) = self.links[node].requests.front()
                && is_late(*since)
            {
                match self.links[node].requests.pop_front().map(|(request, _)| request) {
                    Some(StoreRequest::Streams { reply, .. }) => {
                        let _ = reply.send(Err(ReadError::TimedOut));
                    }
                    Some(StoreRequest::Tops { reply, .. }) => {
                        let _ = reply.send(Err(ReadError::TimedOut));
                    }
                    Some(StoreRequest::Reset { reply, .. }) => {
                        let _ = reply.send(Err(ReadError::TimedOut));
                    }
                    None => {}
                }
            }
            if !self.links[node].batch.is_empty() && is_late(self.links[node].sent_at) {
                self.cut_link(node, usize::MAX);
            }
        }
    }

    /// Crashes the broker, or promotes a replica. It comes back as it was some changes ago, with
    /// another clock.
    pub(super) fn fail_over(&mut self, lag: usize, skew_ms: i64) {
        if let Some(store) = self.replicas.get(lag).cloned() {
            self.store = store;
            self.on_lost();
        }
        self.store.start_again();
        self.broker_skew_ms += skew_ms;
        self.replicas.clear();
        for node in 0..self.links.len() {
            self.cut_link(node, 0);
            self.links[node].late.clear();
        }
    }

    /// Loses everything.
    pub(super) fn wipe(&mut self) {
        self.store = super::store::Store::new(self.settings.is_sparse);
        self.on_lost();
        self.fail_over(usize::MAX, 0);
    }

    /// Loses what belongs to a topic.
    pub(super) fn evict(&mut self, topic: usize, what: u8) {
        // Operators must not do so to streams of JetStream.
        if let Store::Redis(server) = &mut self.store {
            server.evict(TOPICS[topic], what);
        }
    }

    /// Notes what the store has lost.
    fn on_lost(&mut self) {
        let now = self.broker_ms();
        for (topic, log) in self.logs.iter_mut().enumerate() {
            let (epochs, top) = self.store.positions(TOPICS[topic], now);
            log.lose(&epochs, top);
        }
    }

    /// Does all that the links and the broker can do. Returns `false` if there was nothing.
    pub(super) fn pump(&mut self, node: usize) -> Result<bool, String> {
        let mut is_busy = false;
        self.follow(node);
        self.send(node);
        is_busy |= self.execute(node, usize::MAX)?;
        is_busy |= self.confirm(node)?;
        is_busy |= self.answer(node, usize::MAX)?;
        is_busy |= self.pass(node, usize::MAX)?;
        if let Some(running) = &mut self.nodes[node] {
            running.run();
        }
        Ok(is_busy)
    }
}

fn index(name: &str) -> Option<usize> {
    TOPICS.iter().position(|topic| *topic == name)
}

/// Returns the number of a stored message.
fn number(envelope: &[u8]) -> Result<u64, String> {
    let envelope = Envelope::parse(envelope).map_err(|error| error.to_string())?;
    let Message::Stored { payload, .. } = envelope.message else {
        return Err("no stored message".to_owned());
    };
    let Payload { n } = serde_json::from_str(payload.as_str()).map_err(|error| error.to_string())?;
    Ok(n)
}

/// Returns a topic of the simulation.
pub(super) fn topic(index: usize) -> Topic<'static> {
    Topic::parse(TOPICS[index]).expect("a topic")
}
