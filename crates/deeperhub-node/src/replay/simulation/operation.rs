//! Operations of a simulation, and their random choice.

use super::topics::{PATTERNS, RULE_SETS, TOPICS};

/// Clients of a simulation.
pub(super) const CLIENTS: u8 = 6;

/// One operation. A run is determined by its seed and its list of operations, so a failing list can
/// be shortened.
#[derive(Debug, Clone, Copy)]
pub(super) enum Operation {
    /// Publishes messages, by a client (if it is connected) or from outside.
    Publish {
        topic: usize,
        by: Option<u8>,
        bytes: usize,
        is_excluded: bool,
        once: Option<u8>,
        count: u8,
    },
    /// Connects a client, which subscribes again from its positions if `resumes`.
    Connect {
        client: u8,
        worker: u8,
        speed: usize,
        has_compression: bool,
        resumes: bool,
    },
    /// Breaks a client's connection. What is queued for it is lost.
    Reset {
        client: u8,
    },
    Subscribe {
        client: u8,
        topic: usize,
        wish: Wish,
    },
    Unsubscribe {
        client: u8,
        topic: usize,
    },
    SubscribePattern {
        client: u8,
        pattern: usize,
    },
    UnsubscribePattern {
        client: u8,
        pattern: usize,
    },
    /// Changes the bytes that a client reads per round.
    Speed {
        client: u8,
        speed: usize,
    },
    /// Runs a round of a worker, which makes at most `budget` deliveries.
    Round {
        worker: u8,
        budget: usize,
        meanwhile: Option<Meanwhile>,
    },
    /// Moves the clock.
    Advance {
        milliseconds: u64,
    },
    /// Sweeps all stripes.
    Sweep,
    /// Empties the history of a topic.
    Clear {
        topic: usize,
    },
    /// Changes the rules.
    Rules {
        set: usize,
    },
    /// Replaces a worker that has died.
    Replace {
        worker: u8,
    },
}

/// An action of another thread between the deliveries and the replays of a round.
#[derive(Debug, Clone, Copy)]
pub(super) enum Meanwhile {
    Publish {
        topic: usize,
    },
    /// Publishes a message, then empties the history.
    Clear {
        topic: usize,
    },
}

/// The start of a subscription that a client asks for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wish {
    Live,
    History(u64),
    /// The client's own position.
    Known {
        is_partial: bool,
        history: u64,
    },
    /// A position before the client's own.
    Earlier {
        back: u64,
        is_partial: bool,
    },
    /// A position after the client's own.
    Ahead,
    /// A position in an epoch that does not exist.
    WrongEpoch {
        is_partial: bool,
        history: u64,
    },
}

/// Chooses the operations of a run.
pub(super) fn choose(random: &mut fastrand::Rng, count: usize) -> Vec<Operation> {
    (0..count).map(|_| choose_one(random)).collect()
}

fn choose_one(random: &mut fastrand::Rng) -> Operation {
    let (client, topic, pattern) =
        (random.u8(..CLIENTS), random.usize(..TOPICS.len()), random.usize(..PATTERNS.len()));
    let worker = random.u8(..3);
    match random.u8(..100) {
        0..30 => Operation::Round {
            worker,
            budget: if random.u8(..4) == 0 { random.usize(1..4) } else { 1000 },
            meanwhile: match random.u8(..16) {
                0..2 => Some(Meanwhile::Clear { topic }),
                2..7 => Some(Meanwhile::Publish { topic }),
                _ => None,
            },
        },
        30..56 => Operation::Publish {
            topic,
            by: (random.u8(..3) > 0).then_some(client),
            bytes: random.usize(..300),
            is_excluded: random.u8(..3) == 0,
            once: (random.u8(..5) == 0).then(|| random.u8(..3)),
            count: if random.u8(..5) == 0 { random.u8(4..20) } else { random.u8(1..4) },
        },
        56..70 => Operation::Subscribe { client, topic, wish: choose_wish(random) },
        70..75 => Operation::Connect {
            client,
            worker,
            speed: choose_speed(random),
            has_compression: random.bool(),
            resumes: random.u8(..4) > 0,
        },
        75..78 => Operation::Reset { client },
        78..81 => Operation::Unsubscribe { client, topic },
        81..84 => Operation::SubscribePattern { client, pattern },
        84..86 => Operation::UnsubscribePattern { client, pattern },
        86..91 => Operation::Speed { client, speed: choose_speed(random) },
        91..95 => Operation::Advance {
            milliseconds: match random.u8(..8) {
                0 => random.u64(..200_000),
                1..4 => random.u64(..5000),
                _ => random.u64(..400),
            },
        },
        95..97 => Operation::Sweep,
        97 => Operation::Clear { topic },
        98 => Operation::Rules { set: random.usize(..RULE_SETS.len()) },
        _ if random.u8(..4) == 0 => Operation::Replace { worker },
        _ => Operation::Round { worker, budget: 1, meanwhile: None },
    }
}

pub(super) fn choose_speed(random: &mut fastrand::Rng) -> usize {
    match random.u8(..4) {
        0 => 0,
        1 => random.usize(..400),
        2 => random.usize(..3000),
        _ => 1 << 20,
    }
}

fn choose_wish(random: &mut fastrand::Rng) -> Wish {
    let (is_partial, history) = (random.bool(), if random.bool() { 0 } else { random.u64(..12) });
    match random.u8(..10) {
        0..3 => Wish::Live,
        3..5 => Wish::History(random.u64(1..12)),
        5..7 => Wish::Known { is_partial, history },
        7 => Wish::Earlier { back: random.u64(..10), is_partial },
        8 => Wish::Ahead,
        _ => Wish::WrongEpoch { is_partial, history },
    }
}
