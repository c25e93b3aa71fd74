//! The verdicts of deadlines and of shedding.

use std::time::Duration;

use deeperhub_protocol::CloseCode;

use super::fixture::{Fixture, Obedient, TestWorker, client_text};
use crate::config::Config;
use crate::connection::{ClosingUntil, Liveness, State};
use crate::handshake::ClientSource;
use crate::transport::Scripted;
use crate::worker::shed::shed;
use crate::worker::{Next, liveness};

const SECOND: Duration = Duration::from_secs(1);

/// Runs the phase of a connection's deadline after `time`.
fn deadline_after(tester: &mut TestWorker<'_, Obedient>, key: u32, time: Duration) -> Next {
    tester.advance(time);
    let now = tester.now();
    tester.worker.ctx.begin_round(now);
    let worker = &mut tester.worker;
    let connection = worker.table.slab.get_mut(key as usize).unwrap();
    assert!(worker.ctx.round.clock.has_reached(connection.deadline), "the deadline has not come");
    liveness::on_deadline(connection, key, &mut worker.table.progress, &mut worker.ctx)
}

fn config() -> Config {
    Config::default().ping_interval(10 * SECOND).pong_timeout(4 * SECOND).close_timeout(3 * SECOND)
}

#[test]
fn a_silent_handshake_is_removed_and_a_partial_one_is_refused() {
    let mut fixture = Fixture::new(Obedient::default(), config());
    let mut tester = fixture.worker();
    let silent = tester.connect(&Scripted::new(1000), ClientSource::Peer);
    let stream = Scripted::new(1000);
    let partial = tester.connect(&stream, ClientSource::Peer);
    stream.send(b"GET / HTTP/1.1\r\n");
    tester.round();
    let timeout = Config::default().handshake_timeout;
    assert!(matches!(deadline_after(&mut tester, silent, timeout), Next::Remove));
    let next = deadline_after(&mut tester, partial, SECOND);
    assert!(matches!(next, Next::Refuse(refusal) if refusal.status == 400));
}

#[test]
fn a_silent_peer_is_pinged_then_read_once_more_then_closed() {
    let mut fixture = Fixture::new(Obedient::default(), config());
    let mut tester = fixture.worker();
    let key = tester.open(&Scripted::new(1000));
    let liveness = |tester: &mut TestWorker<'_, Obedient>| tester.connection(key).unwrap().flags.liveness;
    assert!(matches!(deadline_after(&mut tester, key, 10 * SECOND), Next::Continue));
    assert_eq!(liveness(&mut tester), Liveness::PingSent);
    assert!(!tester.connection(key).unwrap().outbox.is_empty(), "no ping is queued");
    tester.round();
    assert!(matches!(deadline_after(&mut tester, key, 4 * SECOND), Next::PollAgain));
    // The verdict gives the connection a turn, which finds no input.
    tester.apply(key, Next::PollAgain);
    tester.worker.poll_ready();
    assert_eq!(liveness(&mut tester), Liveness::Silent);
    let next = deadline_after(&mut tester, key, Duration::ZERO);
    assert!(matches!(next, Next::Close(reason) if reason.code() == CloseCode::PongTimeout));
}

#[test]
fn any_byte_is_a_sign_of_life() {
    let mut fixture = Fixture::new(Obedient::default(), config());
    let mut tester = fixture.worker();
    let stream = Scripted::new(1000);
    let key = tester.open(&stream);
    let _ = deadline_after(&mut tester, key, 10 * SECOND);
    stream.send(&client_text("hello")[..1]);
    tester.round();
    assert_eq!(tester.connection(key).unwrap().flags.liveness, Liveness::Alive);
    assert!(!tester.worker.table.progress.contains_key(&key));
}

#[test]
fn the_close_timeout_starts_anew_for_a_peer_that_reads() {
    let mut fixture = Fixture::new(Obedient::default(), config());
    let mut tester = fixture.worker();
    let stream = Scripted::new(200);
    let key = tester.open(&stream);
    stream.send(&client_text(&"x".repeat(300)));
    tester.round();
    tester.apply(key, Next::AnswerClose(None));
    tester.round();
    assert!(!tester.connection(key).unwrap().is_written());
    for _ in 0..3 {
        stream.receive(50);
        assert!(matches!(deadline_after(&mut tester, key, 3 * SECOND), Next::Continue));
    }
    assert!(matches!(deadline_after(&mut tester, key, 3 * SECOND), Next::Remove));
}

#[test]
fn connections_are_shed_according_to_their_state() {
    let mut fixture = Fixture::new(Obedient::default(), config());
    let mut tester = fixture.worker();
    let handshake = tester.connect(&Scripted::new(1000), ClientSource::Peer);
    let next = tester.phase(handshake, |connection, _| shed(connection, handshake));
    assert!(matches!(next, Next::Refuse(refusal) if refusal.status == 503));
    let open = tester.open(&Scripted::new(1000));
    assert!(matches!(tester.phase(open, |connection, _| shed(connection, open)), Next::Shed));
    tester.apply(open, Next::Shed);
    let connection = tester.connection(open).unwrap();
    assert!(matches!(connection.state, State::Closing(ClosingUntil::Eof)));
    assert!(matches!(tester.phase(open, |connection, _| shed(connection, open)), Next::Remove));
}
