//! Random orders of events: input in pieces, ends and resets, timeouts, full sockets, a drain,
//! short memory, panics, and closes by either side. A script is reproducible by its seed.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;

use super::fixture::{Fixture, TestWorker};
use super::scripted_client::ScriptedClient;
use super::scripted_server::{Ends, ScriptedServer};
use crate::config::Config;
use crate::connection::{ClosingUntil, Connection, InputHolds, State};
use crate::drain::{DrainPlan, ReconnectTo};
use crate::handshake::ClientSource;
use crate::memory_budget::MemoryBudget;
use crate::session::Application;
use crate::transport::Transport;
use crate::worker::RoundEnd;
use crate::worker::shed::held_bytes;
use crate::worker::write::DRAINED_DIVISOR;

/// Number of scripts in one run.
const SCRIPTS: u64 = 2000;

/// Rounds of a script with random events.
const ROUNDS: usize = 60;

/// Limit of the memory budget. A few connections hold as much.
const MEMORY_BYTES: u64 = 100_000;

/// Environment variable with the seed of a single script to run.
const SEED_VARIABLE: &str = "DEEPERHUB_SCRIPT_SEED";

#[test]
fn sessions_end_once_and_nothing_is_left_whatever_happens_in_whatever_order() {
    let seeds = match std::env::var(SEED_VARIABLE) {
        Ok(seed) => seed.parse().map(|seed| seed..seed + 1).unwrap(),
        Err(_) => 0..SCRIPTS,
    };
    let mut totals = HashMap::new();
    for seed in seeds.clone() {
        match catch_unwind(AssertUnwindSafe(|| run_script(seed))) {
            Ok(counts) => {
                counts.into_iter().for_each(|(event, count)| *totals.entry(event).or_insert(0) += count)
            }
            Err(panic) => {
                eprintln!("The script failed. To repeat it, set {SEED_VARIABLE}={seed}.");
                resume_unwind(panic);
            }
        }
    }
    // A script that never causes an event would not test it.
    if seeds.end - seeds.start == SCRIPTS {
        assert!(totals.values().all(|&count| count > 20), "{totals:?}");
    }
}

/// Runs one script. Returns how often some events happened.
fn run_script(seed: u64) -> Vec<(&'static str, u64)> {
    let mut random = Rng::with_seed(seed);
    let server = ScriptedServer::new(random.u64(..));
    let memory = Arc::new(MemoryBudget::new(MEMORY_BYTES));
    let mut config = Config::default().max_message_bytes(25_000).round_bytes(100_000);
    config.probe_path = Some("/ready".to_owned());
    config.limits.max_queue_bytes = [2000, 50_000, 1 << 20][random.usize(0..3)];
    config.compression.client_context_takeover = true;
    if random.bool() {
        config.memory = Some(Arc::clone(&memory));
    }
    let mut fixture = Fixture::new(server.clone(), config.clone());
    let (metrics, admission) = (fixture.metrics.clone(), Arc::clone(&fixture.admission));
    let start = Instant::now();
    let plan = DrainPlan::new(start, Duration::from_secs(20), 4, ReconnectTo::OtherNodes, &config);
    let drain_round = if random.u32(0..4) == 0 { random.usize(0..ROUNDS) } else { ROUNDS };
    if drain_round == 0 {
        fixture.control.drain(Arc::new(plan));
    }
    let mut worker = fixture.worker();
    let mut clients = Vec::new();
    let mut drained = 0;
    let mut run_round = |worker: &mut TestWorker<'_, ScriptedServer>| {
        let end = worker.round();
        check_consistency(worker);
        drained += check_drained(worker, end, &mut server.ends.lock().unwrap());
    };
    for round in 0..ROUNDS {
        if round < 4 || (clients.len() < 10 && random.u32(0..10) == 0) {
            let client = ScriptedClient::new(&mut random);
            let source = if client.uses_proxy { ClientSource::ProxyHeader } else { ClientSource::Peer };
            worker.connect(&client.stream, source);
            clients.push(client);
        }
        for _ in 0..random.usize(0..6) {
            let index = random.usize(0..clients.len());
            clients[index].act(&mut random);
        }
        if random.u32(0..3) == 0 {
            worker.advance(Duration::from_millis([1, 500, 4000, 12_000][random.usize(0..4)]));
        }
        if random.u32(0..8) == 0 {
            memory.update(held_by_all(&worker) as u64);
        }
        run_round(&mut worker);
    }

    server.ends.lock().unwrap().is_quiet = true;
    memory.update(0);
    // The clients of some scripts read everything, so that all queues drain.
    if random.bool() {
        for _ in 0..20 {
            clients.iter().for_each(|client| client.stream.make_room(1 << 20));
            run_round(&mut worker);
        }
        let mut connections = worker.worker.table.slab.iter();
        assert!(connections.all(|(_, connection)| connection.is_written()), "bytes are not written");
        assert!(server.ends.lock().unwrap().awaiting_drain.is_empty(), "a drained queue is not reported");
    }

    // The clients do nothing more, and time passes until every connection has timed out.
    for _ in 0..300 {
        worker.advance(Duration::from_secs(1));
        run_round(&mut worker);
    }
    let table = &*worker.worker.table;
    assert!(table.slab.is_empty(), "{} connections are left", table.slab.len());
    assert!(table.unread.is_empty() && table.progress.is_empty());
    assert_eq!((table.open, table.paused, held_by_all(&worker)), (0, 0, 0));
    assert_eq!(worker.worker.ctx.round.codec.decompressor.history_count(), 0);
    drop(worker);
    for client in &clients {
        assert!(client.stream.is_dropped());
        client.check_output();
    }
    let ends = server.ends.lock().unwrap();
    assert!(ends.closes.iter().all(|&closes| closes == 1), "on_close calls: {:?}", ends.closes);
    assert_eq!((ends.late_calls, ends.unrequested_drains, ends.awaiting_drain.len()), (0, 0, 0));
    assert_eq!(ends.panics, metrics.session_panics.value(), "an unexpected panic");
    assert_eq!((admission.open(), admission.load(0), admission.address_count()), (0, 0, 0));
    assert_eq!(metrics.queue_bytes.value(), 0);
    drop(fixture);
    vec![
        ("sessions", ends.closes.len() as u64),
        ("panics", metrics.session_panics.value()),
        ("slow consumers", metrics.slow_consumers.value()),
        ("sheds", metrics.memory_sheds.value()),
        ("pong timeouts", metrics.pong_timeouts.value()),
        ("deferred turns", metrics.turns_deferred.value()),
        ("full queues", ends.full_queues),
        ("drained queues", drained),
    ]
}

/// Returns the bytes that a worker holds for all its connections.
fn held_by_all<A: Application>(worker: &TestWorker<'_, A>) -> usize {
    let (table, ctx) = (&*worker.worker.table, &worker.worker.ctx);
    let held = table.slab.iter().map(|(key, connection)| {
        let key = key as u32;
        held_bytes(connection, key, table.unread.get(&key), ctx)
    });
    held.sum()
}

/// Checks the reports of drained queues in the last round, and that none is missing. Returns their
/// number.
fn check_drained(worker: &TestWorker<'_, ScriptedServer>, end: RoundEnd, ends: &mut Ends) -> u64 {
    let (table, shared) = (&*worker.worker.table, &worker.worker.ctx.shared);
    let drained_bytes = shared.limits.max_queue_bytes / DRAINED_DIVISOR;
    for &key in &ends.drained {
        let connection = table.get(key).expect("a reported connection exists");
        assert!(matches!(connection.state, State::Open(_)), "the session has ended");
        assert!(connection.queued_bytes() <= drained_bytes, "the queue has not drained");
    }
    assert!(ends.drained.is_empty() || end == RoundEnd::MoreWork, "no round follows");
    for (key, connection) in &table.slab {
        let is_awaited = ends.awaiting_drain.contains(&(key as u32));
        assert_eq!(connection.flags.wants_drain, is_awaited);
        // While the socket is full, a later write reports the queue.
        assert!(!is_awaited || connection.flags.write_blocked, "a drained queue is not reported");
    }
    ends.drained.drain(..).count() as u64
}

/// Checks that a closing connection whose bytes are all written has advanced.
fn check_closing<S>(connection: &Connection<S>) {
    if connection.is_written()
        && let State::Closing(until) = connection.state
    {
        assert_ne!(until, ClosingUntil::Flushed, "the connection is not removed");
        assert!(until != ClosingUntil::Eof || connection.flags.write_shutdown, "no end is sent");
    }
}

/// Checks what must hold between two rounds.
fn check_consistency<A: Application>(worker: &mut TestWorker<'_, A>) {
    let (table, round) = (&*worker.worker.table, &*worker.worker.ctx.round);
    let (mut open, mut paused) = (0, 0);
    for (key, connection) in &table.slab {
        let flags = &connection.flags;
        open += usize::from(matches!(connection.state, State::Open(_)));
        paused += usize::from(flags.holds.contains(InputHolds::PAUSED));
        let is_open = matches!(connection.state, State::Open(_));
        assert!(is_open || flags.holds.is_empty(), "a connection without a session is held");
        assert!(flags.write_blocked || connection.is_written(), "bytes are not written");
        assert!(!connection.outbox.may_be_in_arena(), "a queue refers to the arena");
        assert_eq!(flags.has_unread, table.unread.contains_key(&(key as u32)));
        assert!(!flags.in_backlog || round.lists.backlog.contains(&(key as u32)));
        assert!(!flags.dirty && !flags.over_queue_limit);
        check_closing(connection);
        let Transport::Scripted(stream) = &connection.transport else { panic!("not a stream in memory") };
        // Each connection either gets another turn or was read and written as far as possible.
        if !flags.in_backlog && !round.lists.run_queue.contains(&(key as u32)) {
            assert!(!flags.write_blocked || !stream.has_room(), "a writable socket is not written");
            let is_deciding =
                matches!(&connection.state, State::Handshake(handshake) if handshake.decision.is_some());
            let is_held = !flags.holds.is_empty();
            assert!(is_held || is_deciding || !stream.has_input(), "a readable socket is not read");
            assert!(is_held || !flags.has_unread, "the rest of a read is not handled");
        }
    }
    assert_eq!((table.open, table.paused), (open, paused));
    assert!(table.unread.keys().all(|&key| table.get(key).is_some()));
    assert!(table.progress.keys().all(|&key| table.get(key).is_some()));
    assert!(round.lists.dirty.is_empty() && round.lists.verdicts.is_empty());
    assert_eq!(round.buffers.arena.len(), 0);
}
