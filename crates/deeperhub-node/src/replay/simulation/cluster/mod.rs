//! A simulation of a cluster: nodes with their real code, real clients, and model brokers, in one
//! thread and in virtual time.
//!
//! A seed chooses the settings and a list of operations: publishes, steps of workers and links, and
//! faults of the broker, the links, the nodes and the connections. The log has everything that the
//! store gave an offset. Applications compare with it what their handles tell them. At the end the
//! faults stop, and all must arrive at what the store has.

mod appends;
mod broker;
mod checks;
mod client;
mod faults;
mod jetstream;
mod link;
mod log;
mod losses;
mod node;
mod operation;
mod plants;
mod redis;
mod requests;
mod session;
mod settings;
mod steps;
mod store;
mod streams;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::plants::{Bug, plant};
use super::real_clients::{
    CLIENTS, CoreClient, GlueBug, RealClients as _, Run, check_seeds, find_bugs, plant_glue,
};
use super::topics::TOPICS;
use client::Line;
use link::Link;
use log::TopicLog;
use node::{Node, Times};
use operation::Operation;
use plants::{ModelBug, break_model};
use settings::Settings;
use store::{Given, Store};

/// Operations of one run.
const OPERATIONS: usize = 250;

/// The cluster with its clients, and all that they are compared with.
struct Simulation {
    settings: Settings,
    times: Times,
    store: Store,
    /// States of the store after earlier changes, the newest first.
    replicas: VecDeque<Store>,
    given: Given,
    broker_skew_ms: i64,
    paused_until: Duration,
    links: Vec<Link>,
    nodes: Vec<Option<Node>>,
    clients: Vec<CoreClient>,
    lines: Vec<Line>,
    logs: Vec<TopicLog>,
    serial: u64,
    incarnation: u64,
    /// Number of the last message.
    number: u64,
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
            given: Given::default(),
            broker_skew_ms: 0,
            paused_until: Duration::ZERO,
            links: (0..settings.nodes).map(|_| Link::default()).collect(),
            nodes: (0..settings.nodes).map(|_| None).collect(),
            clients: (0..CLIENTS).map(|client| CoreClient::new(settings.seed, client)).collect(),
            lines: (0..CLIENTS).map(Line::new).collect(),
            logs: TOPICS.iter().map(|_| TopicLog::default()).collect(),
            serial: 0,
            incarnation: 0,
            number: 0,
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
}

impl Run for Simulation {
    type Settings = Settings;
    type Operation = Operation;

    fn choose(seed: u64) -> (Settings, Vec<Operation>) {
        let mut random = fastrand::Rng::with_seed(seed);
        let settings = Settings::choose(seed, &mut random);
        (settings, operation::choose(&mut random, OPERATIONS))
    }

    fn start(settings: Settings) -> Result<Self, String> {
        Self::new(settings)
    }

    fn apply(&mut self, operation: Operation) -> Result<(), String> {
        self.apply_one(operation)
    }

    fn finish(&mut self) -> Result<(), String> {
        self.end_faults()
    }
}

#[test]
fn clients_of_a_simulated_cluster_are_told_everything() {
    check_seeds::<Simulation>();
}

/// Bugs of a node that its place in a cluster does not hide.
const REACHING_BUGS: &[(Bug, u64)] = &[
    (Bug::ReplayEndsEarly, 1),
    (Bug::LiveBeforeReplayEnds, 0),
    (Bug::DrainIgnored, 0),
    (Bug::JudgedTooHigh, 0),
];

/// Bugs between nodes and applications that do not depend on how texts are executed.
const GLUE_BUGS: &[(GlueBug, u64)] = &[
    (GlueBug::DeliveryLost, 0),
    (GlueBug::EventRepeated, 0),
    (GlueBug::EventsSwapped, 0),
    (GlueBug::GapHidden, 0),
];

#[test]
fn the_simulated_cluster_finds_planted_bugs_of_nodes() {
    find_bugs::<Simulation, _>(Bug::OF_CLUSTER, plant);
    find_bugs::<Simulation, _>(REACHING_BUGS, plant);
}

#[test]
fn the_simulated_cluster_finds_planted_bugs_of_the_broker() {
    find_bugs::<Simulation, _>(ModelBug::ALL, break_model);
    find_bugs::<Simulation, _>(GLUE_BUGS, plant_glue);
}
