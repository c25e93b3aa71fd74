//! A simulation of one node: real streams, router, replays and refusals, with model connections, in
//! one thread and in virtual time.
//!
//! A seed chooses the settings and a list of operations. An oracle compares each frame with what was
//! published. A failing run prints its seed and its shortest list of operations.
//! `DEEPERHUB_SIMULATION_SEEDS` sets the number of seeds, and `DEEPERHUB_SIMULATION_SEED` the first
//! one. Without a number, it repeats one seed.

// The lint does not see that helpers outside of test functions belong to tests.
#![allow(clippy::unwrap_used)]

mod budget;
mod client;
mod cluster;
mod core_clients;
mod invariants;
mod log;
mod operation;
mod oracle;
pub(crate) mod plants;
mod publish;
mod real_clients;
mod socket;
mod subscription;
mod topics;
mod world;

use std::env;
use std::fmt::Debug;
use std::iter;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use operation::{Meanwhile, Operation, Wish};
use plants::{Bug, plant};
use topics::Settings;
use world::World;

/// Operations of one run.
const OPERATIONS: usize = 300;

/// Runs of a test.
const SEEDS: u64 = 500;

/// Runs in which the operations of a failing run are shortened.
const MAX_SHRINKS: usize = 600;

/// Rounds after the last operation within which all clients must arrive.
const LAST_ROUNDS: usize = 120;

fn apply(world: &mut World, operation: Operation) -> Result<(), String> {
    world.oracle.step += 1;
    match operation {
        Operation::Publish { topic, by, bytes, is_excluded, once, count } => {
            for _ in 0..count {
                world.publish(topic, by, (bytes, is_excluded), once)?;
            }
        }
        Operation::Connect { client, worker, speed, has_compression, resumes } => {
            if world.connect(client, worker.into(), (speed, has_compression)) && resumes {
                for topic in world.clients[usize::from(client)].topics.clone() {
                    world.subscribe(client, topic, Wish::Known { is_partial: false, history: 0 })?;
                }
            }
        }
        Operation::Reset { client } => {
            if let Some((worker, key)) = world.clients[usize::from(client)].connection {
                world.end(worker, key);
            }
        }
        Operation::Subscribe { client, topic, wish } => world.subscribe(client, topic, wish)?,
        Operation::Unsubscribe { client, topic } => world.unsubscribe(client, topic),
        Operation::SubscribePattern { client, pattern } => world.set_pattern(client, pattern, true),
        Operation::UnsubscribePattern { client, pattern } => world.set_pattern(client, pattern, false),
        Operation::Speed { client, speed } => world.set_speed(client, speed),
        Operation::Round { worker, budget, meanwhile } => world.round(worker.into(), budget, meanwhile)?,
        Operation::Advance { milliseconds } => world.advance(Duration::from_millis(milliseconds)),
        Operation::Sweep => world.sweep()?,
        Operation::Clear { topic } => world.clear(topic)?,
        Operation::Rules { set } => world.set_rules(set)?,
        Operation::Replace { worker } => world.replace(worker.into()),
    }
    world.check()?;
    world.check_replays()
}

/// Lets all clients arrive, then ends everything.
fn finish(world: &mut World) -> Result<(), String> {
    (0..operation::CLIENTS).for_each(|client| world.set_speed(client, 1 << 20));
    for _ in 0..LAST_ROUNDS {
        world.oracle.step += 1;
        world.advance(Duration::from_millis(150));
        for worker in 0..world.workers.len() {
            world.round(worker, 1000, None)?;
        }
        world.check_replays()?;
    }
    world.check_is_calm()?;
    world.oracle.check_converged()?;
    for worker in 0..world.workers.len() {
        let keys: Vec<_> = world.workers[worker].sockets.open.keys().copied().collect();
        keys.into_iter().for_each(|key| world.end(worker, key));
        world.round(worker, 1000, None)?;
    }
    for _ in 0..2 {
        world.advance(Duration::from_secs(600) + world.settings.forget + Duration::from_secs(2));
        world.sweep()?;
    }
    world.check_is_empty()
}

/// Runs operations with the settings of a seed.
fn run(settings: Settings, operations: &[Operation]) -> Result<(), String> {
    catch(|| {
        let mut world = World::new(settings);
        for operation in operations {
            apply(&mut world, *operation).map_err(|text| format!("{text}, after {operation:?}"))?;
        }
        finish(&mut world).map_err(|text| format!("{text}, at the end"))
    })
}

/// Runs a simulation. A panic is a failure.
fn catch(simulate: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(simulate)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("a panic: {}", text.unwrap_or_default()))
    })
}

/// Removes operations as long as the run fails.
fn shrink<T: Copy>(mut operations: Vec<T>, run: impl Fn(&[T]) -> Result<(), String>) -> (Vec<T>, String) {
    let mut failure = String::new();
    let (mut len, mut runs) = (operations.len().div_ceil(2), 0);
    while len > 0 && runs < MAX_SHRINKS {
        let mut start = 0;
        let mut has_removed = false;
        while start < operations.len() && runs < MAX_SHRINKS {
            let mut shorter = operations.clone();
            shorter.drain(start..(start + len).min(operations.len()));
            runs += 1;
            match run(&shorter) {
                Err(text) => (operations, failure, has_removed) = (shorter, text, true),
                Ok(()) => start += len,
            }
        }
        if !has_removed || len > 1 {
            len /= 2;
        }
    }
    (operations, failure)
}

/// Fails with a seed, and with the shortest list of its operations that fails.
fn report<T: Copy + Debug>(
    (seed, settings): (u64, impl Debug),
    operations: Vec<T>,
    run: impl Fn(&[T]) -> Result<(), String>,
) -> ! {
    let (operations, failure) = shrink(operations, run);
    let list: Vec<_> = operations.iter().map(|operation| format!("  {operation:?}\n")).collect();
    panic!("seed {seed}: {failure}\n{settings:?}\n{}", list.concat());
}

/// Returns the failure of a seed, if there is one.
fn fails(seed: u64) -> Option<(Settings, Vec<Operation>)> {
    let mut random = fastrand::Rng::with_seed(seed);
    let settings = Settings::choose(seed, &mut random);
    let operations = operation::choose(&mut random, OPERATIONS);
    run(settings, &operations).is_err().then_some((settings, operations))
}

/// Returns the seeds that the environment asks for.
fn seeds() -> Range<u64> {
    let number = |name| env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let (first, count) = (number("DEEPERHUB_SIMULATION_SEED"), number("DEEPERHUB_SIMULATION_SEEDS"));
    match (first, count) {
        (Some(first), count) => first..first + count.unwrap_or(1),
        (None, count) => 0..count.unwrap_or(SEEDS),
    }
}

/// Checks that seeds find each of some bugs. `plant` plants one, or removes it. The seed of a bug is
/// tried first. After a change that makes another seed find the bug, the test says which one.
fn find_bugs<B: Copy + Debug>(bugs: &[(B, u64)], plant: impl Fn(Option<B>), fails: impl Fn(u64) -> bool) {
    let mut missed = Vec::new();
    for &(bug, known) in bugs {
        plant(Some(bug));
        let found = iter::once(known).chain(0..SEEDS).find(|seed| fails(*seed));
        plant(None);
        match found {
            Some(seed) => println!("{bug:?} is found with seed {seed}"),
            None => missed.push(bug),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

#[test]
fn clients_of_a_simulated_node_are_told_everything() {
    for seed in seeds() {
        if let Some((settings, operations)) = fails(seed) {
            report((seed, settings), operations, |operations| run(settings, operations));
        }
    }
}

#[test]
fn the_simulation_finds_planted_bugs() {
    find_bugs(Bug::ALL, plant, |seed| fails(seed).is_some());
}

/// A sampled client that also has a pattern gets nothing of the topic by the pattern. If the topic
/// loses its history before a sample, only the withheld deliveries tell that there were messages.
#[test]
fn messages_of_a_topic_that_loses_its_history_are_told_or_withheld() {
    let settings = Settings::choose(751, &mut fastrand::Rng::with_seed(751));
    let publish = |topic, count| Operation::Publish {
        topic,
        by: None,
        bytes: 100,
        is_excluded: false,
        once: None,
        count,
    };
    let connect = |client| Operation::Connect {
        client,
        worker: 0,
        speed: 2000,
        has_compression: false,
        resumes: false,
    };
    let pattern = |client, pattern| Operation::SubscribePattern { client, pattern };
    let round = Operation::Round { worker: 0, budget: 3, meanwhile: None };
    let subscribe = Operation::Subscribe { client: 4, topic: 4, wish: Wish::Live };
    // The first messages of the topic come by the pattern, too.
    let withheld = [
        connect(4),
        subscribe,
        connect(5),
        pattern(5, 0),
        publish(0, 3),
        pattern(4, 1),
        publish(4, 2),
        round,
        publish(4, 2),
        Operation::Rules { set: 2 },
    ];
    assert_eq!(run(settings, &withheld), Ok(()));
    // The first messages of the topic do not come by the pattern.
    let unseen = [
        connect(4),
        subscribe,
        publish(4, 2),
        pattern(4, 2),
        publish(5, 3),
        round,
        publish(4, 2),
        Operation::Rules { set: 2 },
    ];
    assert_eq!(run(settings, &unseen), Ok(()));
}

/// Two changes of rules remove a topic's stream and give it a new one, while messages of both wait for
/// a pattern of a client that is sampled.
#[test]
fn what_is_lost_of_a_removed_stream_is_told_before_the_next_stream() {
    let settings = Settings::choose(20_129, &mut fastrand::Rng::with_seed(20_129));
    let publish = |topic, bytes, count| Operation::Publish {
        topic,
        by: None,
        bytes,
        is_excluded: false,
        once: None,
        count,
    };
    let round = |worker, budget, topic| Operation::Round {
        worker,
        budget,
        meanwhile: Some(Meanwhile::Publish { topic }),
    };
    let operations = [
        Operation::Connect { client: 0, worker: 1, speed: 71, has_compression: true, resumes: false },
        Operation::SubscribePattern { client: 0, pattern: 2 },
        Operation::Subscribe { client: 0, topic: 4, wish: Wish::Live },
        publish(4, 115, 10),
        publish(5, 204, 14),
        round(1, 1000, 1),
        Operation::SubscribePattern { client: 0, pattern: 3 },
        Operation::Publish { topic: 4, by: Some(0), bytes: 5, is_excluded: false, once: None, count: 2 },
        Operation::Rules { set: 2 },
        Operation::Rules { set: 0 },
        round(0, 3, 6),
        round(1, 1, 4),
    ];
    assert_eq!(run(settings, &operations), Ok(()));
}
