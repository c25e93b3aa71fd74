//! Operations of a simulated cluster, and their random choice.

use super::super::operation::choose_speed;
use super::super::real_clients::{CLIENTS, ClientOperation, choose_count, choose_history, first_operations};

/// Topics of a simulation, by their numbers in the list of all topics.
pub(super) const TOPICS: [usize; 5] = [0, 1, 2, 3, 8];

/// One operation.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operation {
    /// Publishes messages by a server.
    Publish {
        node: usize,
        topic: usize,
        bytes: usize,
        count: u8,
    },
    /// Does something with a client or its applications.
    Client(ClientOperation),
    /// Decides about the next attempts of a client to connect.
    Attempts {
        client: u8,
        node: usize,
        speed: usize,
        failures: u8,
    },
    /// Changes the bytes that a client's socket takes per round.
    Speed {
        client: u8,
        speed: usize,
    },
    /// Runs a round of a worker, which makes at most `budget` deliveries.
    Round {
        node: usize,
        worker: usize,
        budget: usize,
    },
    /// Moves what is on the links of a node, up to the end or a few steps of one kind.
    Pump {
        node: usize,
    },
    Follow {
        node: usize,
    },
    Send {
        node: usize,
        count: u8,
    },
    Confirm {
        node: usize,
    },
    Answer {
        node: usize,
        count: u8,
    },
    Pass {
        node: usize,
        count: u8,
    },
    /// Runs the reader of a node.
    Read {
        node: usize,
    },
    /// Loses messages of the broker to a node.
    Lose {
        node: usize,
        count: u8,
    },
    /// Repeats a message of the broker to a node.
    Repeat {
        node: usize,
    },
    /// Cuts a node from the broker, which executes some of its appends later.
    CutLink {
        node: usize,
        late: usize,
    },
    /// Connects a node to the broker.
    Connect {
        node: usize,
    },
    /// Executes appends of a lost connection.
    Late {
        node: usize,
        count: u8,
    },
    /// Lets the broker answer nothing for some time.
    Pause {
        milliseconds: u64,
    },
    /// Crashes the broker, or promotes a replica that lags by so many changes.
    FailOver {
        lag: usize,
        skew_ms: i64,
    },
    /// Fails over, and then a node that has just started publishes before the others are back.
    Rewrite {
        lag: usize,
        node: usize,
        topic: usize,
        count: u8,
    },
    Wipe,
    Evict {
        topic: usize,
        what: u8,
    },
    Crash {
        node: usize,
        late: usize,
    },
    Start {
        node: usize,
    },
    /// Drains a node: its clients move to another one.
    Move {
        node: usize,
        to: usize,
    },
    Rules {
        node: usize,
        set: usize,
    },
    Clear {
        node: usize,
        topic: usize,
    },
    Sweep {
        node: usize,
    },
    /// Moves the clocks. The links work meanwhile if `pumps`.
    Advance {
        milliseconds: u64,
        pumps: bool,
    },
}

/// Chooses the operations of a run. The first ones give each client a handle.
pub(super) fn choose(random: &mut fastrand::Rng, count: usize) -> Vec<Operation> {
    let mut operations: Vec<_> = first_operations().map(Operation::Client).collect();
    let is_rough = random.bool();
    operations.extend((0..count).map(|_| choose_one(random, is_rough)));
    operations
}

fn choose_one(random: &mut fastrand::Rng, is_rough: bool) -> Operation {
    let client = random.u8(..CLIENTS);
    let (node, worker) = (random.usize(..3), random.usize(..2));
    // Mostly topics that many follow.
    let topic = if random.u8(..3) > 0 { random.usize(..2) } else { TOPICS[random.usize(..TOPICS.len())] };
    let handle = random.u8(..8);
    let few = |random: &mut fastrand::Rng| choose_count(random, 4);
    match random.u8(..100) {
        0..12 => Operation::Publish {
            node,
            topic,
            bytes: random.usize(..200),
            count: if random.u8(..6) == 0 { random.u8(4..20) } else { random.u8(1..4) },
        },
        12..20 => Operation::Client(ClientOperation::Publish {
            client,
            topic,
            bytes: random.usize(..200),
            is_excluded: random.u8(..3) == 0,
            count: random.u8(1..5),
        }),
        20..26 => Operation::Client(ClientOperation::Execute { client, count: few(random) }),
        26..31 => Operation::Client(ClientOperation::Receive { client, count: few(random) }),
        31..37 => Operation::Client(ClientOperation::Take { client, handle, count: few(random) }),
        37..43 => Operation::Round {
            node,
            worker,
            budget: if random.u8(..4) == 0 { random.usize(1..4) } else { 1000 },
        },
        43..51 => Operation::Pump { node },
        51..53 => Operation::Follow { node },
        53..59 => Operation::Send { node, count: few(random) },
        59..62 => Operation::Confirm { node },
        62..66 => Operation::Answer { node, count: few(random) },
        66..71 => Operation::Pass { node, count: few(random) },
        71..74 => Operation::Read { node },
        74..77 => {
            let history = choose_history(random);
            Operation::Client(ClientOperation::Subscribe { client, topic, history })
        }
        77 => Operation::Client(ClientOperation::Unsubscribe { client, handle }),
        78..80 => Operation::Client(ClientOperation::Cut { client }),
        80 => Operation::Attempts { client, node, speed: choose_speed(random), failures: random.u8(..3) },
        81 => Operation::Speed { client, speed: choose_speed(random) },
        82..89 => Operation::Advance {
            milliseconds: match random.u8(..12) {
                0 => random.u64(..150_000),
                1..4 => random.u64(..12_000),
                _ => random.u64(..1500),
            },
            pumps: random.u8(..4) > 0,
        },
        89..91 => Operation::Connect { node },
        91 => Operation::Move { node, to: random.usize(..3) },
        92 => Operation::Start { node },
        93 => Operation::Rules { node, set: random.usize(..3) },
        94 if random.u8(..4) == 0 => Operation::Clear { node, topic },
        95 => Operation::Sweep { node },
        _ if is_rough => choose_fault(random, node, topic),
        96 | 97 => Operation::Lose { node, count: few(random) },
        98 => Operation::CutLink { node, late: random.usize(..4) },
        _ => Operation::Pump { node },
    }
}

fn choose_fault(random: &mut fastrand::Rng, node: usize, topic: usize) -> Operation {
    match random.u8(..20) {
        0..4 => Operation::Lose { node, count: if random.bool() { u8::MAX } else { random.u8(1..4) } },
        4 => Operation::Repeat { node },
        5..9 => Operation::CutLink { node, late: random.usize(..4) },
        9..11 => Operation::Late { node, count: random.u8(1..4) },
        11 => Operation::Pause { milliseconds: random.u64(..8000) },
        12 | 13 => Operation::FailOver { lag: random.usize(..8), skew_ms: random.i64(-1500..1500) },
        14 => Operation::Rewrite { lag: random.usize(..5), node, topic, count: random.u8(1..6) },
        15 if random.bool() => Operation::Wipe,
        16 => Operation::Evict { topic, what: random.u8(..3) },
        17..19 => Operation::Crash { node, late: random.usize(..4) },
        _ => Operation::Start { node },
    }
}
