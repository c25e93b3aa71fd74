//! Real clients of the simulated node: the core of the client library follows topics of the node,
//! and applications check what its handles tell them.
//!
//! Nothing here knows the frames. Whatever the node or the client loses, repeats or hides shows in
//! the events of a handle, or in the answer to a publish.

mod application;
mod client;
mod operation;
mod publishes;
mod session;

use std::time::Duration;

use application::Progress;
use client::{CoreClient, HandleView};
use operation::{CLIENTS, Operation};
use publishes::Publishes;

use super::plants::{Bug, plant};
use super::topics::{Settings, TOPICS};
use super::world::World;
use super::{SEEDS, catch, report, seeds};

/// Operations of one run.
const OPERATIONS: usize = 250;

/// Seconds after the last operation within which all handles must arrive.
const LAST_SECONDS: usize = 90;

/// Exchanges of texts within one of these seconds.
const MAX_EXCHANGES: usize = 200;

/// Handles of a client.
const MAX_HANDLES: usize = 6;

/// A bug between the node and the applications, which the applications must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum GlueBug {
    /// A delivery does not reach the client.
    DeliveryLost,
    /// A message is handed over twice.
    EventRepeated,
    /// Two events change their places.
    EventsSwapped,
    /// A gap is not handed over.
    GapHidden,
    /// The node is not told that a publish is repeated.
    OnceForgotten,
    /// A publish is answered, and not made.
    PublishNotMade,
}

impl GlueBug {
    const ALL: &[Self] = &[
        Self::DeliveryLost,
        Self::EventRepeated,
        Self::EventsSwapped,
        Self::GapHidden,
        Self::OnceForgotten,
        Self::PublishNotMade,
    ];
}

/// Bugs of the node that reach a real client. The others concern patterns or changed rules, or the
/// client absorbs them: it drops own messages, and never subscribes twice on one connection.
const REACHING_BUGS: &[Bug] = &[
    Bug::ReplayEndsEarly,
    Bug::LiveBeforeReplayEnds,
    Bug::RefusalOvertaken,
    Bug::CursorTooFar,
    Bug::GapNotTold,
    Bug::EpochNotTold,
    Bug::ClearNotTold,
    Bug::PrevNotBridged,
    Bug::UnsubscribeLeavesReplay,
    Bug::DrainNotRequested,
    Bug::DrainIgnored,
    Bug::OnceInWrongEpoch,
    Bug::OnceForgotten,
    Bug::JudgedTooHigh,
];

/// The simulated node with its real clients.
#[derive(Debug)]
struct Simulation {
    world: World,
    clients: Vec<CoreClient>,
    publishes: Publishes,
    bug: Option<GlueBug>,
    /// Number of texts that clients were given.
    received: usize,
}

impl Simulation {
    fn new(settings: Settings, bug: Option<GlueBug>) -> Result<Self, String> {
        let mut world = World::new(settings);
        world.checks_frames = false;
        world.clients.iter_mut().for_each(|client| client.inbox = Some(Default::default()));
        let clients = (0..CLIENTS).map(|client| CoreClient::new(settings.seed, client)).collect();
        let mut simulation = Self { world, clients, publishes: Publishes::default(), bug, received: 0 };
        for client in 0..CLIENTS {
            simulation.act(client)?;
        }
        Ok(simulation)
    }

    fn apply(&mut self, operation: Operation) -> Result<(), String> {
        self.world.oracle.step += 1;
        match operation {
            Operation::Publish { topic, bytes, count } => {
                for _ in 0..count {
                    self.world.publish(topic, None, (bytes, false), None)?;
                }
            }
            Operation::PublishBy { client, topic, bytes, is_excluded, count } => {
                for _ in 0..count {
                    self.publish(client, topic, (bytes, is_excluded))?;
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
            Operation::Attempts { client, worker, speed, failures, is_refused } => {
                let client = &mut self.clients[usize::from(client)];
                (client.worker, client.speed) = (worker, speed);
                (client.failures, client.is_refused) = (failures, is_refused);
            }
            Operation::Speed { client, speed } => self.world.set_speed(client, speed),
            Operation::Round { worker, budget, meanwhile } => {
                self.world.round(worker.into(), budget, meanwhile)?;
            }
            Operation::Advance { milliseconds } => self.world.advance(Duration::from_millis(milliseconds)),
            Operation::Sweep => self.world.sweep()?,
            Operation::Clear { topic } => self.world.clear(topic)?,
            Operation::Replace { worker } => self.world.replace(worker.into()),
        }
        self.world.check()?;
        self.notice()
    }

    /// Tells all clients what ended, and the time.
    fn notice(&mut self) -> Result<(), String> {
        for client in 0..CLIENTS {
            self.notice_end(client)?;
            self.pass_time(client)?;
        }
        Ok(())
    }

    /// Ends all faults, and lets all handles arrive.
    fn finish(&mut self) -> Result<(), String> {
        for client in 0..CLIENTS {
            self.world.set_speed(client, 1 << 20);
            let client = &mut self.clients[usize::from(client)];
            (client.speed, client.failures) = (1 << 20, 0);
        }
        let mut is_converged = Ok(());
        for _ in 0..LAST_SECONDS {
            self.world.oracle.step += 1;
            self.world.advance(Duration::from_secs(1));
            self.notice()?;
            self.exchange()?;
            is_converged = self.check_converged();
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
            for worker in 0..self.world.workers.len() {
                self.world.round(worker, 1000, None)?;
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

    /// Checks that all publishes are answered, and that all handles are at the newest message.
    fn check_converged(&self) -> Result<(), String> {
        for (index, client) in self.clients.iter().enumerate() {
            self.publishes.check_answered(index)?;
            for view in &client.handles {
                let HandleView { id, topic, application, .. } = view;
                let position = client.core.position(*id);
                let log = &self.world.oracle.topics[*topic];
                let own = self.publishes.excluded(index);
                application
                    .check_arrived(position, log, own)
                    .map_err(|text| describe(index, *topic, &text))?;
            }
        }
        Ok(())
    }
}

/// Adds a client and a topic to a text.
fn describe(client: usize, topic: usize, text: &str) -> String {
    format!("client {client}, {}: {text}", TOPICS[topic])
}

/// Runs operations with the settings of a seed.
fn run(settings: Settings, operations: &[Operation], bug: Option<GlueBug>) -> Result<Progress, String> {
    let mut progress = Progress::default();
    catch(|| {
        let mut simulation = Simulation::new(settings, bug)?;
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
    let settings = Settings::choose_for_real_clients(seed, &mut random);
    (settings, operation::choose(&mut random, OPERATIONS))
}

fn fails(seed: u64, bug: Option<GlueBug>) -> bool {
    let (settings, operations) = choose(seed);
    run(settings, &operations, bug).is_err()
}

#[test]
fn real_clients_of_a_simulated_node_miss_nothing() {
    let seeds = seeds();
    let (count, mut total) = (seeds.end - seeds.start, Progress::default());
    for seed in seeds {
        let (settings, operations) = choose(seed);
        match run(settings, &operations, None) {
            Ok(progress) => total.add(&progress),
            Err(_) => report(settings, operations, |operations| run(settings, operations, None).map(|_| ())),
        }
    }
    println!("{count} seeds: {total:?}");
    // The checks mean nothing if the runs have no faults.
    assert!(count < SEEDS || total.has_everything(), "{total:?}");
}

#[test]
fn real_clients_find_planted_bugs_of_the_node() {
    for &bug in REACHING_BUGS {
        plant(Some(bug));
        let found = (0..SEEDS).find(|seed| fails(*seed, None));
        plant(None);
        let seed = found.unwrap_or_else(|| panic!("{bug:?} is not found"));
        println!("{bug:?} is found with seed {seed}");
    }
}

#[test]
fn applications_find_planted_bugs_of_the_glue() {
    for &bug in GlueBug::ALL {
        let found = (0..SEEDS).find(|seed| fails(*seed, Some(bug)));
        let seed = found.unwrap_or_else(|| panic!("{bug:?} is not found"));
        println!("{bug:?} is found with seed {seed}");
    }
}
