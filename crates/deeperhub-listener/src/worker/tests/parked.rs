//! Connections that their sessions parked.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use deeperhub_protocol::frame::Frame;
use deeperhub_protocol::{CloseCode, CloseReason};

use super::fixture::{Fixture, Obedient, TestWorker, client_frame, client_text, server_text};
use crate::config::Config;
use crate::connection::{InputHolds, Liveness, State};
use crate::memory_budget::MemoryBudget;
use crate::transport::Scripted;
use crate::worker::shed::held_bytes;
use crate::worker::{Next, RoundEnd};

type Tester<'a> = TestWorker<'a, Obedient>;

const SECOND: Duration = Duration::from_secs(1);

/// Returns the bytes of several texts, as a client sends them.
fn client_texts(texts: &[&str]) -> Vec<u8> {
    texts.iter().flat_map(|text| client_text(text)).collect()
}

/// Returns the bytes of several texts, as the server sends them.
fn server_texts(texts: &[&str]) -> Vec<u8> {
    texts.iter().flat_map(|text| server_text(text)).collect()
}

/// Opens a connection. Returns it with its key and the number of bytes of its handshake.
fn open(tester: &mut Tester<'_>) -> (Scripted, u32, usize) {
    let stream = Scripted::new(1 << 20);
    let key = tester.open(&stream);
    let start = stream.output().len();
    (stream, key, start)
}

fn is_open(tester: &mut Tester<'_>, key: u32) -> bool {
    tester.connection(key).is_some_and(|connection| matches!(connection.state, State::Open(_)))
}

#[test]
fn the_rest_of_a_read_waits_until_the_connection_is_unparked() {
    let mut fixture = Fixture::new(Obedient::default(), Config::default());
    let mut tester = fixture.worker();
    let (stream, key, start) = open(&mut tester);
    stream.send(&client_texts(&["before", "park", "after", "park", "the end"]));
    tester.round();
    stream.send(&client_texts(&["later"]));
    for _ in 0..3 {
        assert_eq!(tester.round(), RoundEnd::Idle, "a parked connection keeps the worker busy");
        assert_eq!(stream.output()[start..], server_texts(&["before"]));
        assert!(stream.has_input(), "the socket was read");
    }
    assert!(tester.connections().send(key, &Frame::text("delivery")).is_some());
    tester.round();
    assert_eq!(stream.output()[start..], server_texts(&["before", "delivery"]));
    assert!(tester.connections().send(key, &Frame::text("answer")).is_some());
    assert!(tester.connections().unpark(key));
    tester.round();
    assert_eq!(stream.output()[start..], server_texts(&["before", "delivery", "answer", "after"]));
    assert!(tester.connections().unpark(key));
    tester.round();
    let expected = ["before", "delivery", "answer", "after", "the end", "later"];
    assert_eq!(stream.output()[start..], server_texts(&expected));
    assert!(tester.worker.table.unread.is_empty());
    assert!(!tester.connections().unpark(key), "the connection is not parked");
}

#[test]
fn a_connection_parked_by_its_last_message_is_read_once_it_is_unparked() {
    let mut fixture = Fixture::new(Obedient::default(), Config::default());
    let mut tester = fixture.worker();
    let (stream, key, start) = open(&mut tester);
    for text in ["first", "second"] {
        stream.send(&client_text("park"));
        tester.round();
        assert!(tester.worker.table.unread.is_empty());
        stream.send(&client_text(text));
        tester.round();
        assert!(stream.has_input());
        assert!(tester.connections().unpark(key));
        tester.round();
    }
    assert_eq!(stream.output()[start..], server_texts(&["first", "second"]));
}

#[test]
fn a_fragmented_message_continues_after_the_connection_was_parked_within_it() {
    let mut fixture = Fixture::new(Obedient::default(), Config::default());
    let mut tester = fixture.worker();
    let (stream, key, start) = open(&mut tester);
    let text = client_text("0123456789");
    // The input ends within a frame of the message that follows.
    stream.send(&[&client_text("park"), &client_frame(0x01, b"in "), &text[..9]].concat());
    tester.round();
    stream.send(&text[9..]);
    tester.connections().unpark(key);
    tester.round();
    assert!(!is_open(&mut tester, key), "a text within a fragmented message");

    let (stream, key, start_of_other) = open(&mut tester);
    let rest = client_frame(0x80, b"two parts");
    stream.send(&[&client_text("park"), &client_frame(0x01, b"in "), &rest[..7]].concat());
    tester.round();
    assert_eq!((start, stream.output().len()), (start_of_other, start));
    stream.send(&rest[7..]);
    tester.connections().unpark(key);
    tester.round();
    assert_eq!(stream.output()[start..], server_text("in two parts"));
}

#[test]
fn a_connection_that_is_paused_and_parked_is_read_once_it_is_neither() {
    let mut fixture = Fixture::new(Obedient::default(), Config::default());
    let mut tester = fixture.worker();
    for unparks_first in [false, true] {
        let (stream, key, start) = open(&mut tester);
        stream.send(&client_texts(&["park", "end"]));
        tester.round();
        tester.apply(key, Next::Hold(InputHolds::PAUSED));
        tester.apply(key, Next::Hold(InputHolds::PAUSED));
        assert_eq!(tester.worker.table.paused, 1);
        if unparks_first {
            assert!(tester.connections().unpark(key));
        } else {
            tester.connections().resume_reading(key);
        }
        tester.round();
        assert_eq!((stream.output().len(), tester.worker.table.paused), (start, unparks_first.into()));
        tester.connections().resume_reading(key);
        assert_eq!(tester.connections().unpark(key), !unparks_first);
        tester.round();
        assert_eq!(stream.output()[start..], server_text("end"));
        assert_eq!(tester.worker.table.paused, 0);
    }
}

#[test]
fn a_half_closed_peer_gets_the_answer_for_which_its_connection_was_parked() {
    let application = Obedient::default();
    let closed = Arc::clone(&application.closed);
    let mut fixture = Fixture::new(application, Config::default());
    let mut tester = fixture.worker();
    for rest in [&["after"][..], &[]] {
        let (stream, key, start) = open(&mut tester);
        let ended = closed.load(Ordering::Relaxed);
        stream.send(&client_texts(&[&["park"], rest].concat()));
        stream.end_input();
        tester.round();
        tester.round();
        assert!(is_open(&mut tester, key));
        assert!(tester.connections().send(key, &Frame::text("answer")).is_some());
        tester.connections().unpark(key);
        tester.round();
        tester.round();
        assert_eq!(stream.output()[start..], server_texts(&[&["answer"], rest].concat()));
        assert!(stream.is_dropped() && closed.load(Ordering::Relaxed) == ended + 1);
        assert!(!tester.connections().unpark(key));
    }
}

#[test]
fn a_parked_connection_that_closes_is_read_up_to_the_clients_close_frame() {
    let mut fixture = Fixture::new(Obedient::default(), Config::default());
    let mut tester = fixture.worker();
    let (stream, key, start) = open(&mut tester);
    stream.send(&client_texts(&["park", "not handled"]));
    tester.round();
    stream.send(&client_frame(0x88, &1000_u16.to_be_bytes()));
    tester.apply(key, Next::close(CloseReason::new(CloseCode::GoingAway, "the server shuts down")));
    assert!(!tester.connections().unpark(key), "a connection without a session is parked");
    tester.round();
    let mut close = Vec::new();
    deeperhub_protocol::frame::write_close(&mut close, Some(1001), "the server shuts down");
    assert_eq!(stream.output()[start..], close);
    assert!(stream.is_dropped(), "the client's close frame was not read");
}

#[test]
fn a_parked_connection_whose_peer_reset_it_ends_at_the_next_write() {
    let mut fixture = Fixture::new(Obedient::default(), Config::default());
    let mut tester = fixture.worker();
    let (stream, key, _) = open(&mut tester);
    stream.send(&client_text("park"));
    tester.round();
    stream.reset();
    tester.round();
    assert!(is_open(&mut tester, key), "a parked connection is read");
    assert!(tester.connections().send(key, &Frame::text("delivery")).is_some());
    tester.round();
    assert!(stream.is_dropped());
}

/// Lets time pass in steps of a second. The peer's kernel acknowledges all bytes if `reads`.
fn pass(tester: &mut Tester<'_>, seconds: u32, stream: &Scripted, reads: bool) {
    for _ in 0..seconds {
        tester.advance(SECOND);
        tester.round();
        if reads {
            stream.receive(usize::MAX);
        }
    }
}

/// Number of pings that a connection was sent.
fn pings(stream: &Scripted, start: usize) -> usize {
    stream.output()[start..].windows(2).filter(|bytes| *bytes == [0x89, 0]).count()
}

#[test]
fn a_parked_connection_lives_as_long_as_its_peers_kernel_acknowledges_pings() {
    let config = Config::default().ping_interval(10 * SECOND).pong_timeout(4 * SECOND);
    let mut fixture = Fixture::new(Obedient::default(), config);
    let metrics = fixture.metrics.clone();
    let mut tester = fixture.worker();
    let (stream, key, start) = open(&mut tester);
    stream.send(&client_text("park"));
    pass(&mut tester, 100, &stream, true);
    assert!(is_open(&mut tester, key));
    assert!(pings(&stream, start) >= 5, "{} pings", pings(&stream, start));
    assert!(tester.worker.table.progress.len() <= 1);
    // Once it is unparked, the client's silence counts again.
    tester.connections().unpark(key);
    pass(&mut tester, 30, &stream, true);
    assert!(!is_open(&mut tester, key));
    assert_eq!(metrics.pong_timeouts.value(), 1);
}

#[test]
fn a_parked_connection_whose_peer_vanished_is_closed_at_the_pong_timeout() {
    let config = Config::default().ping_interval(10 * SECOND).pong_timeout(4 * SECOND);
    let mut fixture = Fixture::new(Obedient::default(), config);
    let metrics = fixture.metrics.clone();
    let mut tester = fixture.worker();
    let (stream, key, start) = open(&mut tester);
    stream.send(&client_texts(&["park", "the rest"]));
    pass(&mut tester, 30, &stream, true);
    let before = pings(&stream, start);
    pass(&mut tester, 16, &stream, false);
    assert_eq!(pings(&stream, start), before + 1);
    assert!(!is_open(&mut tester, key));
    assert_eq!(metrics.pong_timeouts.value(), 1);
    assert!(tester.worker.table.unread.is_empty());
}

#[test]
fn a_pong_that_arrives_while_parked_counts_once_unparked() {
    let config = Config::default().ping_interval(10 * SECOND).pong_timeout(4 * SECOND);
    let mut fixture = Fixture::new(Obedient::default(), config);
    let mut tester = fixture.worker();
    let (stream, key, start) = open(&mut tester);
    stream.send(&client_text("park"));
    let mut seconds = 0;
    while pings(&stream, start) == 0 {
        pass(&mut tester, 1, &stream, true);
        seconds += 1;
        assert!(seconds <= 10, "no ping");
    }
    stream.send(&client_frame(0x8a, b""));
    tester.advance(4 * SECOND);
    tester.connections().unpark(key);
    tester.round();
    let liveness = tester.connection(key).map(|connection| connection.flags.liveness);
    assert_eq!(liveness, Some(Liveness::Alive));
}

#[test]
fn the_rest_of_a_read_counts_as_memory_of_the_connection_and_of_the_budget() {
    let memory = Arc::new(MemoryBudget::new(100_000));
    let config = Config { memory: Some(Arc::clone(&memory)), ..Config::default() };
    let mut fixture = Fixture::new(Obedient::default(), config);
    let metrics = fixture.metrics.clone();
    let mut tester = fixture.worker();
    let (stream, key, _) = open(&mut tester);
    let (_idle, idle_key, _) = open(&mut tester);
    let held = |tester: &mut Tester<'_>, key: u32| {
        let (table, ctx) = (&*tester.worker.table, &tester.worker.ctx);
        held_bytes(table.get(key).unwrap(), key, table.unread.get(&key), ctx)
    };
    assert_eq!(held(&mut tester, key), held(&mut tester, idle_key));
    let rest = client_text(&"x".repeat(30_000));
    let before = tester.worker.ctx.round.intake.remaining();
    stream.send(&[client_text("park"), rest.clone()].concat());
    tester.round();
    assert_eq!(held(&mut tester, key), held(&mut tester, idle_key) + rest.len());
    assert!(tester.worker.ctx.round.intake.remaining() + rest.len() <= before);
    // More input stays in the kernel, so the connection holds no more.
    stream.send(&rest);
    tester.round();
    assert_eq!(held(&mut tester, key), held(&mut tester, idle_key) + rest.len());

    // The connection holds the most, so it is shed, and frees the rest.
    memory.update(100_000);
    tester.round();
    assert_eq!((is_open(&mut tester, key), is_open(&mut tester, idle_key)), (false, true));
    assert_eq!(metrics.memory_sheds.value(), 1);
    assert!(tester.worker.table.unread.is_empty());
}
