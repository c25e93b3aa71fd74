//! A simulation of a cluster: nodes with their real code, real clients, and model brokers, in one
//! thread and in virtual time.
//!
//! A seed chooses the settings and a list of operations: publishes, steps of workers and links, and
//! faults of the broker, the links, the nodes and the connections. The log has everything that the
//! store gave an offset. Applications compare with it what their handles tell them. At the end the
//! faults stop, and all must arrive at what the store has.

mod application;
mod broker;
mod client;
mod log;
mod node;
mod operation;
mod plants;
mod publishes;
mod session;
mod settings;
mod store;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use deeperhub_protocol::frame::KeptFrame;
use deeperhub_protocol::message::EncodedDelivery;
use deeperhub_protocol::{Epoch, RawJson};
use serde::Deserialize;

use super::plants::{Bug, plant};
use super::socket::Payload;
use super::topics::TOPICS;
use super::{SEEDS, catch, seeds, shrink};
use application::Progress;
use broker::{Link, topic};
use client::CoreClient;
use log::TopicLog;
use node::{Node, Times, Worker};
use operation::{CLIENTS, Operation};
use plants::{ModelBug, break_model};
use settings::Settings;
use store::{Epochs, Store};

/// Operations of one run.
const OPERATIONS: usize = 250;

/// Seconds after the last operation within which all must arrive.
const LAST_SECONDS: usize = 120;

/// Exchanges of texts within one of these seconds.
const MAX_EXCHANGES: usize = 200;

/// Steps in which time passes: the interval of the readers' ticks.
const TIME_STEP: Duration = Duration::from_millis(500);

/// Time for which a connection waits for the store at most.
const MAX_PARKED: Duration = Duration::from_millis(4100);

/// Bytes by which the histories of a node can be above their limit.
const BUDGET_SLACK: u64 = 4000;

/// The cluster with its clients, and all that they are compared with.
struct Simulation {
    settings: Settings,
    times: Times,
    store: Store,
    /// States of the store after earlier changes, the newest first.
    replicas: VecDeque<Store>,
    epochs: Epochs,
    broker_skew_ms: i64,
    paused_until: Duration,
    links: Vec<Link>,
    nodes: Vec<Option<Node>>,
    clients: Vec<CoreClient>,
    logs: Vec<TopicLog>,
    serial: u64,
    incarnation: u64,
    /// Number of the last message.
    number: u64,
    /// Number of texts that clients were given.
    received: usize,
}

impl Simulation {
    fn new(settings: Settings) -> Result<Self, String> {
        // The order of stripes, the numbers of reads and the like come from this generator.
        fastrand::seed(settings.seed);
        // The broker's interest and its requests use the real time, which must be earlier.
        let started = Instant::now() + Duration::from_secs(3600);
        let times = Times { started, started_unix_ms: 1_800_000_000_000, now: Duration::ZERO };
        let mut simulation = Self {
            settings,
            times,
            store: Store::new(settings.is_sparse),
            replicas: VecDeque::new(),
            epochs: Epochs::new(),
            broker_skew_ms: 0,
            paused_until: Duration::ZERO,
            links: (0..settings.nodes).map(|_| Link::default()).collect(),
            nodes: (0..settings.nodes).map(|_| None).collect(),
            clients: (0..CLIENTS).map(|client| CoreClient::new(settings.seed, client)).collect(),
            logs: TOPICS.iter().map(|_| TopicLog::default()).collect(),
            serial: 0,
            incarnation: 0,
            number: 0,
            received: 0,
        };
        for node in 0..settings.nodes {
            simulation.start(node);
            simulation.connect_link(node);
        }
        for client in 0..CLIENTS {
            simulation.act(client)?;
        }
        Ok(simulation)
    }

    fn now(&self) -> Instant {
        self.times.started + self.times.now
    }

    /// Returns the number and the JSON of a new message.
    fn new_message(&mut self, bytes: usize) -> (u64, String) {
        self.number += 1;
        (self.number, format!(r#"{{"n":{},"x":"{:bytes$}"}}"#, self.number, ""))
    }

    fn apply(&mut self, operation: Operation) -> Result<(), String> {
        let nodes = self.nodes.len();
        match operation {
            Operation::Publish { node, topic, bytes, count } => {
                for _ in 0..count {
                    self.publish(node % nodes, topic, bytes);
                }
            }
            Operation::PublishBy { client, topic, bytes, is_excluded, count } => {
                for _ in 0..count {
                    self.publish_by(client, topic, (bytes, is_excluded))?;
                }
            }
            Operation::Subscribe { client, topic, history } => self.subscribe(client, topic, history)?,
            Operation::Unsubscribe { client, handle } => self.unsubscribe(client, handle.into())?,
            Operation::Take { client, handle, count } => {
                for _ in 0..count {
                    self.take(client, handle.into())?;
                }
            }
            Operation::Execute { client, count } => {
                for _ in 0..count {
                    self.execute_next(client)?;
                }
            }
            Operation::Receive { client, count } => {
                for _ in 0..count {
                    self.receive(client)?;
                }
            }
            Operation::Cut { client } => self.cut(client),
            Operation::Attempts { client, node, speed, failures } => {
                let client = &mut self.clients[usize::from(client)];
                (client.node, client.speed, client.failures) = (node, speed, failures);
            }
            Operation::Speed { client, speed } => self.set_speed(client, speed),
            Operation::Round { node, worker, budget } => {
                self.round(node % nodes, worker % usize::from(self.settings.workers), budget);
            }
            Operation::Pump { node } => drop(self.pump(node % nodes)?),
            Operation::Follow { node } => self.follow(node % nodes),
            Operation::Send { node, count } => {
                self.send(node % nodes);
                self.execute(node % nodes, count.into())?;
            }
            Operation::Confirm { node } => drop(self.confirm(node % nodes)),
            Operation::Answer { node, count } => drop(self.answer(node % nodes, count.into())),
            Operation::Pass { node, count } => drop(self.pass(node % nodes, count.into())?),
            Operation::Read { node } => self.nodes[node % nodes].iter_mut().for_each(Node::run),
            Operation::Lose { node, count } => self.lose(node % nodes, count.into()),
            Operation::Repeat { node } => self.repeat(node % nodes),
            Operation::CutLink { node, late } => self.cut_link(node % nodes, late),
            Operation::Connect { node } => self.connect_link(node % nodes),
            Operation::Late { node, count } => self.execute_late(node % nodes, count.into())?,
            Operation::Pause { milliseconds } => {
                self.paused_until = self.times.now + Duration::from_millis(milliseconds);
            }
            Operation::FailOver { lag, skew_ms } => self.fail_over(lag, skew_ms),
            Operation::Rewrite { lag, node, topic, count } => {
                self.crash(node % nodes, 0);
                self.start(node % nodes);
                self.fail_over(lag, 0);
                self.connect_link(node % nodes);
                for _ in 0..count {
                    self.publish(node % nodes, topic, 10);
                }
                self.send(node % nodes);
                self.execute(node % nodes, usize::MAX)?;
            }
            Operation::Wipe => self.wipe(),
            Operation::Evict { topic, what } => self.evict(topic, what),
            Operation::Crash { node, late } => self.crash(node % nodes, late),
            Operation::Start { node } => self.start(node % nodes),
            Operation::Move { node, to } => self.move_clients(node % nodes, to % nodes),
            Operation::Rules { node, set } => {
                if let Some(node) = &self.nodes[node % nodes] {
                    node.set_rules(&self.settings, set);
                }
            }
            Operation::Clear { node, topic } => {
                if let Some(node) = &mut self.nodes[node % nodes] {
                    node.clear(TOPICS[topic]);
                }
            }
            Operation::Sweep { node } => self.sweep(node % nodes)?,
            Operation::Advance { milliseconds, pumps } => {
                self.advance(Duration::from_millis(milliseconds), pumps)?;
            }
        }
        self.notice()
    }

    /// Publishes a message by a server.
    fn publish(&mut self, node: usize, topic: usize, bytes: usize) {
        let (_, json) = self.new_message(bytes);
        let now = self.now();
        if let (Some(node), Ok(message)) = (&self.nodes[node], RawJson::parse(&json)) {
            // The node can be cut off.
            let _ = node.hub.publish(&broker::topic(topic), message, None, now, None);
        }
    }

    fn start(&mut self, node: usize) {
        if self.nodes[node].is_none() {
            self.incarnation += 1;
            self.nodes[node] = Some(Node::new(node, self.incarnation, &self.settings, self.times));
        }
    }

    fn crash(&mut self, node: usize, late: usize) {
        self.drop_link(node, late);
        self.nodes[node] = None;
        for view in &mut self.clients {
            if view.connection.is_some_and(|(of, ..)| of == node) {
                view.connection = None;
                view.inbox.clear();
            }
        }
    }

    /// Cuts the clients of a node, which connect to another one.
    fn move_clients(&mut self, node: usize, to: usize) {
        for client in 0..CLIENTS {
            let view = &mut self.clients[usize::from(client)];
            if view.connection.is_some_and(|(of, ..)| of == node) {
                view.node = to;
                self.cut(client);
            }
        }
    }

    fn set_speed(&mut self, client: u8, speed: usize) {
        let view = &mut self.clients[usize::from(client)];
        view.speed = speed;
        if let Some((node, worker, key)) = view.connection
            && let Some(node) = &mut self.nodes[node]
            && let Some(socket) = node.workers[worker].sockets.open.get_mut(&key)
        {
            socket.speed = speed;
        }
    }

    /// Runs a round of a worker.
    fn round(&mut self, index: usize, worker: usize, budget: usize) {
        let now = self.now();
        let Some(node) = &mut self.nodes[index] else { return };
        let hub = std::sync::Arc::clone(&node.hub);
        node.workers[worker].handle_notices(&hub, now);
        node.workers[worker].deliver(&hub, worker as u16, budget, now);
        for key in node.workers[worker].sockets.ending() {
            if let Some(client) = node.close(worker, key) {
                let view = &mut self.clients[usize::from(client)];
                view.connection = None;
                view.inbox.clear();
            }
        }
        let Worker { replays, sockets, .. } = &mut node.workers[worker];
        for key in sockets.write() {
            replays.on_drained(key);
        }
        for socket in sockets.open.values_mut() {
            let inbox = &mut self.clients[usize::from(socket.client)].inbox;
            inbox.extend(socket.received.drain(..).map(|sent| sent.text));
        }
    }

    /// Sweeps all stripes of a node, and checks its budget.
    fn sweep(&mut self, node: usize) -> Result<(), String> {
        let Some(node) = &self.nodes[node] else { return Ok(()) };
        let (streams, router) = (&node.hub.streams, &node.hub.router);
        let now = streams.clock.seconds(self.now());
        for stripe in router.stripes() {
            while streams.sweep(router, stripe, now) {}
        }
        let Some((budget, _)) = streams.rule(&topic(0)) else { return Ok(()) };
        if budget.bytes() > budget.limit_bytes() + BUDGET_SLACK {
            return Err(format!("{} bytes are kept within {}", budget.bytes(), budget.limit_bytes()));
        }
        Ok(())
    }

    /// Lets time pass. The links work meanwhile if `pumps`.
    fn advance(&mut self, time: Duration, pumps: bool) -> Result<(), String> {
        let until = self.times.now + time;
        while self.times.now < until {
            self.times.now = until.min(self.times.now + TIME_STEP);
            let now = self.now();
            self.nodes.iter().flatten().for_each(|node| node.set_time(now));
            self.time_out();
            for node in 0..self.nodes.len() {
                if pumps {
                    self.connect_link(node);
                    self.pump(node)?;
                }
                if let Some(node) = &mut self.nodes[node] {
                    node.reader.tick();
                    node.run();
                }
                self.handle_notices(node)?;
            }
            self.notice()?;
        }
        Ok(())
    }

    fn handle_notices(&mut self, node: usize) -> Result<(), String> {
        let now = self.now();
        let Some(node) = &mut self.nodes[node] else { return Ok(()) };
        let hub = std::sync::Arc::clone(&node.hub);
        for worker in &mut node.workers {
            worker.handle_notices(&hub, now);
            let is_late = |since: &Duration| self.times.now.saturating_sub(*since) > MAX_PARKED;
            if worker.parked_since.values().any(is_late) {
                return Err("a client is not answered in time".to_owned());
            }
        }
        Ok(())
    }

    /// Tells all clients what ended, and the time.
    fn notice(&mut self) -> Result<(), String> {
        for client in 0..CLIENTS {
            self.notice_end(client)?;
            self.pass_time(client)?;
        }
        Ok(())
    }

    /// Ends all faults, and lets all arrive.
    fn finish(&mut self) -> Result<(), String> {
        self.paused_until = Duration::ZERO;
        for node in 0..self.nodes.len() {
            self.start(node);
            self.connect_link(node);
            if let Some(node) = &self.nodes[node] {
                node.set_rules(&self.settings, 0);
            }
        }
        for client in 0..CLIENTS {
            self.set_speed(client, 1 << 20);
            self.clients[usize::from(client)].failures = 0;
        }
        self.converge(false)?;
        if self.settings.seed.is_multiple_of(2) {
            self.rewrite()?;
        }
        // From here on, every topic has a message that all must get.
        for topic in operation::TOPICS {
            self.publish(0, topic, 10);
        }
        self.converge(true)
    }

    /// Loses messages that all nodes have. A node that has just started appends others in their places
    /// before the others are back.
    fn rewrite(&mut self) -> Result<(), String> {
        let (topic, last) = (operation::TOPICS[0], self.nodes.len() - 1);
        self.replicas.clear();
        (0..2).for_each(|_| self.publish(0, topic, 10));
        self.exchange()?;
        self.crash(last, 0);
        self.start(last);
        self.fail_over(1, 0);
        self.connect_link(last);
        (0..3).for_each(|_| self.publish(last, topic, 10));
        self.send(last);
        self.execute(last, usize::MAX)?;
        self.converge(false)
    }

    /// Lets all arrive. Each handle must have a position if `are_published`.
    fn converge(&mut self, are_published: bool) -> Result<(), String> {
        let mut is_converged = Ok(());
        for _ in 0..LAST_SECONDS {
            self.advance(Duration::from_secs(1), true)?;
            self.exchange()?;
            is_converged = self.check_converged(are_published);
            if is_converged.is_ok() {
                break;
            }
        }
        is_converged
    }

    /// Moves all texts and events that wait.
    fn exchange(&mut self) -> Result<(), String> {
        for _ in 0..MAX_EXCHANGES {
            let mut is_busy = false;
            for client in 0..CLIENTS {
                while self.execute_next(client)? {
                    is_busy = true;
                }
            }
            for node in 0..self.nodes.len() {
                is_busy |= self.pump(node)?;
                (0..usize::from(self.settings.workers)).for_each(|worker| self.round(node, worker, 1000));
            }
            self.notice()?;
            for client in 0..CLIENTS {
                while self.receive(client)? {
                    is_busy = true;
                }
                for handle in 0..self.clients[usize::from(client)].handles.len() {
                    while self.take(client, handle)? {
                        is_busy = true;
                    }
                }
            }
            if !is_busy {
                return Ok(());
            }
        }
        Err("texts and events do not end".to_owned())
    }

    /// Checks that all publishes are answered, that all handles are at the newest message, and that
    /// all mirrors have what the store has.
    fn check_converged(&mut self, are_published: bool) -> Result<(), String> {
        let now = self.broker_ms();
        let mut tops = BTreeMap::new();
        for (index, name) in TOPICS.iter().enumerate() {
            let (position, _) = self.store.content(name, now);
            tops.insert(index, position);
            for node in self.nodes.iter().flatten() {
                let log = self.logs[index].epochs.get(&position.epoch);
                check_mirror(node, name, (position.epoch, position.offset), log)
                    .map_err(|text| format!("{} {name}: {text}", node.hub.node_id))?;
            }
        }
        for (index, client) in self.clients.iter().enumerate() {
            client.publishes.check_answered()?;
            for view in &client.handles {
                let epoch = tops[&view.topic].epoch;
                let (log, own) = (&self.logs[view.topic], &client.publishes.excluded);
                view.application
                    .check_arrived(client.core.position(view.id), log, (epoch, are_published), own)
                    .map_err(|text| describe(index, view.topic, &text))?;
            }
        }
        let workers = self.nodes.iter().flatten().flat_map(|node| &node.workers);
        for worker in workers {
            if !worker.parked.is_empty() || !worker.appends.is_empty() {
                return Err(format!("something waits: {:?} {:?}", worker.parked, worker.appends));
            }
        }
        Ok(())
    }

    /// Returns what has happened.
    fn progress(&self) -> Progress {
        let mut total = Progress::default();
        for handle in self.clients.iter().flat_map(|client| &client.handles) {
            total.add(&handle.application.progress);
        }
        total.acknowledgements = self.clients.iter().map(|client| client.publishes.acknowledgements).sum();
        total
    }
}

/// The members of a kept message that the simulation reads.
#[derive(Deserialize)]
struct Data {
    message: Payload,
}

fn number_of(frame: &KeptFrame) -> Option<u64> {
    let data: Data = serde_json::from_str(EncodedDelivery::parse(frame.as_bytes())?.data().as_str()).ok()?;
    Some(data.message.n)
}

/// Returns the latest position of a topic that a node knows.
fn node_newest(node: &Node, name: &str) -> Option<(u64, u64)> {
    let topic = deeperhub_protocol::Topic::parse(name).ok()?;
    let known = node.hub.router.update_kept(&topic, |_, kept, stripe| stripe.known_position(kept))?;
    Some((known.epoch, known.offset))
}

/// Checks that the mirror of a topic that a node follows has what the store has.
fn check_mirror(
    node: &Node,
    name: &str,
    (epoch, top): (u64, u64),
    log: Option<&log::EpochLog>,
) -> Result<(), String> {
    let Ok(topic) = deeperhub_protocol::Topic::parse(name) else { return Ok(()) };
    node.hub.router.update_kept(&topic, |view, kept, stripe| {
        let Some(id) = stripe.find(kept).filter(|_| view.subscribers() > 0) else { return Ok(()) };
        let Some(stream) = stripe.table.get(id) else { return Ok(()) };
        let own = (stream.epoch(), stream.newest());
        if own != (Epoch::from_bits(epoch), top) {
            return Err(format!("the mirror is at {own:?}, and the store at {:?}", (epoch, top)));
        }
        for (offset, frame) in stream.messages(..) {
            let number = number_of(frame);
            let stored = log.and_then(|log| log.messages.get(&offset)).map(|message| message.number);
            if number != stored {
                return Err(format!("the mirror has {number:?} at {offset}, and the store {stored:?}"));
            }
        }
        Ok(())
    })
}

/// Adds a client and a topic to a text.
fn describe(client: usize, topic: usize, text: &str) -> String {
    format!("client {client}, {}: {text}", TOPICS[topic])
}

/// Runs operations with the settings of a seed.
fn run(settings: Settings, operations: &[Operation]) -> Result<Progress, String> {
    let mut progress = Progress::default();
    catch(|| {
        let mut simulation = Simulation::new(settings)?;
        for operation in operations {
            simulation.apply(*operation).map_err(|text| format!("{text}, after {operation:?}"))?;
        }
        simulation.finish().map_err(|text| format!("{text}, at the end"))?;
        progress = simulation.progress();
        Ok(())
    })?;
    Ok(progress)
}

/// Returns the settings and the operations of a seed.
fn choose(seed: u64) -> (Settings, Vec<Operation>) {
    let mut random = fastrand::Rng::with_seed(seed);
    let settings = Settings::choose(seed, &mut random);
    (settings, operation::choose(&mut random, OPERATIONS))
}

fn fails(seed: u64) -> bool {
    let (settings, operations) = choose(seed);
    run(settings, &operations).is_err()
}

/// Fails with a seed, and with the shortest list of its operations that fails.
fn report(settings: Settings, operations: Vec<Operation>) -> ! {
    let (operations, failure) = shrink(operations, |operations| run(settings, operations).map(|_| ()));
    let list: Vec<_> = operations.iter().map(|operation| format!("  {operation:?}\n")).collect();
    panic!("seed {}: {failure}\n{settings:?}\n{}", settings.seed, list.concat());
}

#[test]
fn clients_of_a_simulated_cluster_are_told_everything() {
    let seeds = seeds();
    let (count, mut total) = (seeds.end - seeds.start, Progress::default());
    for seed in seeds {
        let (settings, operations) = choose(seed);
        match run(settings, &operations) {
            Ok(progress) => total.add(&progress),
            Err(_) => report(settings, operations),
        }
    }
    println!("{count} seeds: {total:?}");
    // The checks mean nothing if the runs have no faults.
    assert!(count < SEEDS || total.has_everything(), "{total:?}");
}

/// Bugs of a node that its place in a cluster does not hide.
const REACHING_BUGS: &[Bug] =
    &[Bug::ReplayEndsEarly, Bug::LiveBeforeReplayEnds, Bug::DrainIgnored, Bug::JudgedTooHigh];

#[test]
fn the_simulated_cluster_finds_planted_bugs() {
    let mut missed = Vec::new();
    let mut find = |name: String| match (0..SEEDS).find(|seed| fails(*seed)) {
        Some(seed) => println!("{name} is found with seed {seed}"),
        None => {
            println!("{name} is not found");
            missed.push(name);
        }
    };
    for &bug in Bug::OF_CLUSTER.iter().chain(REACHING_BUGS) {
        plant(Some(bug));
        find(format!("{bug:?}"));
        plant(None);
    }
    for &bug in ModelBug::ALL {
        break_model(Some(bug));
        find(format!("{bug:?}"));
        break_model(None);
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
