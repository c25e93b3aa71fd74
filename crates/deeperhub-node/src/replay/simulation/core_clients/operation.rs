//! Operations of a simulation with real clients, and their random choice.

use super::super::operation::{Meanwhile, choose_speed};
use super::super::real_clients::{CLIENTS, ClientOperation, choose_count, choose_history, first_operations};
use super::super::topics::TOPICS;

/// One operation.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operation {
    /// Publishes messages from outside.
    Publish { topic: usize, bytes: usize, count: u8 },
    /// Does something with a client or its applications.
    Client(ClientOperation),
    /// Decides about the next attempts of a client to connect.
    Attempts { client: u8, worker: u8, speed: usize, failures: u8, is_refused: bool },
    /// Changes the bytes that a client's socket takes per round.
    Speed { client: u8, speed: usize },
    /// Runs a round of a worker, which makes at most `budget` deliveries.
    Round { worker: u8, budget: usize, meanwhile: Option<Meanwhile> },
    /// Moves the clock.
    Advance { milliseconds: u64 },
    /// Sweeps all stripes.
    Sweep,
    /// Empties the history of a topic.
    Clear { topic: usize },
    /// Replaces a worker that has died.
    Replace { worker: u8 },
}

/// Chooses the operations of a run. The first ones give each client a handle.
pub(super) fn choose(random: &mut fastrand::Rng, count: usize) -> Vec<Operation> {
    let mut operations: Vec<_> = first_operations().map(Operation::Client).collect();
    operations.extend((0..count).map(|_| choose_one(random)));
    operations
}

fn choose_one(random: &mut fastrand::Rng) -> Operation {
    let (client, worker) = (random.u8(..CLIENTS), random.u8(..3));
    // Mostly topics with lossless history.
    let topic = if random.u8(..4) > 0 { random.usize(..2) } else { random.usize(..TOPICS.len()) };
    let handle = random.u8(..12);
    match random.u8(..100) {
        0..20 => Operation::Round {
            worker,
            budget: if random.u8(..4) == 0 { random.usize(1..4) } else { 1000 },
            meanwhile: match random.u8(..16) {
                0 => Some(Meanwhile::Clear { topic }),
                1..5 => Some(Meanwhile::Publish { topic }),
                _ => None,
            },
        },
        20..35 => Operation::Publish {
            topic,
            bytes: random.usize(..300),
            count: if random.u8(..5) == 0 { random.u8(4..20) } else { random.u8(1..4) },
        },
        35..44 => Operation::Client(ClientOperation::Publish {
            client,
            topic,
            bytes: random.usize(..300),
            is_excluded: random.bool(),
            count: random.u8(1..5),
        }),
        44..54 => Operation::Client(ClientOperation::Execute { client, count: choose_count(random, 5) }),
        54..66 => Operation::Client(ClientOperation::Receive { client, count: choose_count(random, 5) }),
        66..76 => Operation::Client(ClientOperation::Take { client, handle, count: choose_count(random, 5) }),
        76..80 => {
            let history = choose_history(random);
            Operation::Client(ClientOperation::Subscribe { client, topic, history })
        }
        80 => Operation::Client(ClientOperation::Unsubscribe { client, handle }),
        81..84 => Operation::Client(ClientOperation::Cut { client }),
        84..86 => Operation::Attempts {
            client,
            worker,
            speed: choose_speed(random),
            failures: random.u8(..3),
            is_refused: random.bool(),
        },
        86..90 => Operation::Speed { client, speed: choose_speed(random) },
        90..97 => Operation::Advance {
            milliseconds: match random.u8(..10) {
                0 => random.u64(..200_000),
                1..6 => random.u64(..5000),
                _ => random.u64(..400),
            },
        },
        97 => Operation::Sweep,
        98 if random.bool() => Operation::Clear { topic },
        99 if random.u8(..4) == 0 => Operation::Replace { worker },
        _ => Operation::Round { worker, budget: 1, meanwhile: None },
    }
}
