//! Real clients of the simulated node: the core of the client library follows topics of the node,
//! and applications check what its handles tell them.
//!
//! Nothing here knows the frames. Whatever the node or the client loses, repeats or hides shows in
//! the events of a handle, or in the answer to a publish.

mod client;
mod operation;
mod publishes;
mod session;

use std::time::Duration;

use deeperhub_history::Delivery;

use super::plants::{Bug, plant};
use super::real_clients::{
    CLIENTS, CoreClient, GlueBug, RealClients as _, Run, check_seeds, describe, find_bugs, plant_glue,
};
use super::topics::Settings;
use super::world::World;
use client::Attempts;
use operation::Operation;
use publishes::StoredPublishes;

/// Operations of one run.
const OPERATIONS: usize = 250;

/// Bugs of the node that reach a real client. The others concern patterns or changed rules, or the
/// client absorbs them: it drops own messages, and never subscribes twice on one connection.
const REACHING_BUGS: &[(Bug, u64)] = &[
    (Bug::ReplayEndsEarly, 2),
    (Bug::LiveBeforeReplayEnds, 0),
    (Bug::RefusalOvertaken, 11),
    (Bug::CursorTooFar, 5),
    (Bug::GapNotTold, 0),
    (Bug::EpochNotTold, 3),
    (Bug::ClearNotTold, 3),
    (Bug::PrevNotBridged, 9),
    (Bug::UnsubscribeLeavesReplay, 17),
    (Bug::DrainNotRequested, 0),
    (Bug::DrainIgnored, 0),
    (Bug::OnceInWrongEpoch, 1),
    (Bug::OnceForgotten, 1),
    (Bug::JudgedTooHigh, 0),
];

/// Bugs between the node and the applications.
const GLUE_BUGS: &[(GlueBug, u64)] = &[
    (GlueBug::DeliveryLost, 0),
    (GlueBug::EventRepeated, 0),
    (GlueBug::EventsSwapped, 0),
    (GlueBug::GapHidden, 0),
    (GlueBug::OnceForgotten, 1),
    (GlueBug::PublishNotMade, 0),
];

/// The simulated node with its real clients.
#[derive(Debug)]
struct Simulation {
    world: World,
    clients: Vec<CoreClient>,
    attempts: Vec<Attempts>,
    publishes: StoredPublishes,
}

impl Simulation {
    fn apply_one(&mut self, operation: Operation) -> Result<(), String> {
        self.world.oracle.step += 1;
        match operation {
            Operation::Publish { topic, bytes, count } => {
                for _ in 0..count {
                    self.world.publish(topic, None, (bytes, false), None)?;
                }
            }
            Operation::Client(operation) => self.apply_to_client(operation)?,
            Operation::Attempts { client, worker, speed, failures, is_refused } => {
                let index = usize::from(client);
                self.attempts[index] = Attempts { worker, is_refused };
                (self.clients[index].speed, self.clients[index].failures) = (speed, failures);
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

    /// Checks that all publishes are answered, and that all handles are at the newest message.
    fn check_converged(&self) -> Result<(), String> {
        for (index, client) in self.clients.iter().enumerate() {
            client.publishes.check_answered().map_err(|text| format!("client {index}: {text}"))?;
            for view in &client.handles {
                let log = &self.world.oracle.topics[view.topic];
                let Some(look) = log.look else { continue };
                let position = client.core.position(view.id);
                // A sample need not tell the newest message.
                let is_sampled = matches!(look.delivery, Delivery::Sample { .. });
                if is_sampled && position.is_some() {
                    continue;
                }
                let epoch = log.number(look.epoch).ok_or("an epoch is unknown")? as u64;
                view.application
                    .check_arrived(position, log, (epoch, true), &client.publishes.excluded)
                    .map_err(|text| describe(index, view.topic, &text))?;
            }
        }
        Ok(())
    }
}

impl Run for Simulation {
    type Settings = Settings;
    type Operation = Operation;

    fn choose(seed: u64) -> (Settings, Vec<Operation>) {
        let mut random = fastrand::Rng::with_seed(seed);
        let settings = Settings::choose_for_real_clients(seed, &mut random);
        (settings, operation::choose(&mut random, OPERATIONS))
    }

    fn start(settings: Settings) -> Result<Self, String> {
        let mut world = World::new(settings);
        world.checks_frames = false;
        world.clients.iter_mut().for_each(|client| client.inbox = Some(Default::default()));
        let clients = (0..CLIENTS).map(|client| CoreClient::new(settings.seed, client)).collect();
        let attempts = (0..CLIENTS).map(|worker| Attempts { worker, is_refused: false }).collect();
        let mut simulation = Self { world, clients, attempts, publishes: StoredPublishes::default() };
        for client in 0..CLIENTS {
            simulation.act(client)?;
        }
        Ok(simulation)
    }

    fn apply(&mut self, operation: Operation) -> Result<(), String> {
        self.apply_one(operation)
    }

    fn finish(&mut self) -> Result<(), String> {
        for client in 0..CLIENTS {
            self.world.set_speed(client, 1 << 20);
            let client = &mut self.clients[usize::from(client)];
            (client.speed, client.failures) = (1 << 20, 0);
        }
        self.converge(|simulation| simulation.check_converged())
    }
}

#[test]
fn real_clients_of_a_simulated_node_miss_nothing() {
    check_seeds::<Simulation>();
}

#[test]
fn real_clients_find_planted_bugs_of_the_node() {
    find_bugs::<Simulation, _>(REACHING_BUGS, plant);
}

#[test]
fn applications_find_planted_bugs_of_the_glue() {
    find_bugs::<Simulation, _>(GLUE_BUGS, plant_glue);
}
