//! The verdicts of the phases that read, decode and write.

use deeperhub_protocol::CloseCode;

use super::fixture::{Fixture, Obedient, TestWorker, UPGRADE, client_frame, client_text, server_text};
use crate::config::Config;
use crate::connection::{ClosingUntil, InputHolds, State};
use crate::drain::{DrainPlan, ReconnectTo, WorkerDrain};
use crate::handshake::ClientSource;
use crate::transport::Scripted;
use crate::worker::read::{Received, TurnStep};
use crate::worker::{Next, closing, decode, handshake, input, read, write};

type Tester<'a> = TestWorker<'a, Obedient>;

/// Runs the decoding phase over `bytes`. Returns its verdict and how many bytes it handled.
fn decode(tester: &mut Tester<'_>, key: u32, mut bytes: Vec<u8>) -> (Next, usize) {
    tester.phase(key, |connection, ctx| {
        let (mut at, mut turn) = (0, ctx.round.budget.turn());
        let next = decode::decode(connection, key, &mut bytes, &mut at, &mut turn, ctx);
        (next, at)
    })
}

/// Runs the handshake phase over `bytes`.
fn feed(tester: &mut Tester<'_>, key: u32, bytes: &[u8]) -> Next {
    tester.phase(key, |connection, ctx| {
        let mut turn = ctx.round.budget.turn();
        handshake::feed(connection, key, bytes, &mut turn, ctx)
    })
}

fn close_code(next: &Next) -> Option<CloseCode> {
    match next {
        Next::Close(reason) => Some(reason.code()),
        _ => None,
    }
}

fn refusal_status(next: &Next) -> Option<u16> {
    match next {
        Next::Refuse(refusal) => Some(refusal.status),
        _ => None,
    }
}

#[test]
fn a_handshake_continues_until_its_head_is_complete() {
    let mut fixture = Fixture::new(Obedient::default(), Config::default());
    let mut tester = fixture.worker();
    let key = tester.connect(&Scripted::new(1000), ClientSource::Peer);
    let (first, last) = UPGRADE.as_bytes().split_at(30);
    assert!(matches!(feed(&mut tester, key, first), Next::Continue));
    let with_message = [last, &client_text("early")].concat();
    let Next::Open(Some(rest)) = feed(&mut tester, key, &with_message) else { panic!("not accepted") };
    assert_eq!((rest.bytes, rest.at), (client_text("early"), 0));
    let connection = tester.connection(key).unwrap();
    assert!(matches!(connection.state, State::Open(_)) && !connection.outbox.is_empty());
}

#[test]
fn a_handshake_waits_for_the_applications_decision() {
    let mut fixture = Fixture::new(Obedient::default(), Config::default());
    let mut tester = fixture.worker();
    let key = tester.connect(&Scripted::new(1000), ClientSource::Peer);
    let head = UPGRADE.replace("\r\n\r\n", "\r\nX-Pending: 1\r\n\r\n");
    assert!(matches!(feed(&mut tester, key, head.as_bytes()), Next::Continue));
    let step = tester
        .phase(key, |connection, ctx| read::next_step(connection, 0, ctx.round.budget.turn(), ctx.round));
    assert_eq!(step, TurnStep::PollDecision);
}

#[test]
fn handshakes_are_refused_with_a_status_or_removed() {
    let mut fixture = Fixture::new(Obedient::default(), Config::default().probe_path(Some("/up".to_owned())));
    let mut tester = fixture.worker();
    for (head, source, status) in [
        ("GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", ClientSource::Peer, Some(404)),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", ClientSource::Peer, Some(426)),
        ("nonsense\r\n\r\n", ClientSource::Peer, Some(400)),
        ("PROXY TCP4 192.0.2.7 192.0.2.2 4660 2\r\nnonsense\r\n\r\n", ClientSource::ProxyHeader, Some(400)),
        ("PROXY UDP4 nonsense\r\n", ClientSource::ProxyHeader, None),
    ] {
        let key = tester.connect(&Scripted::new(1000), source);
        let next = feed(&mut tester, key, head.as_bytes());
        assert_eq!(refusal_status(&next), status, "{head}: {next:?}");
        assert!(status.is_some() || matches!(next, Next::Remove), "{head}: {next:?}");
    }
    let key = tester.connect(&Scripted::new(1000), ClientSource::Peer);
    let probe = feed(&mut tester, key, b"GET /up HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(matches!(probe, Next::AnswerProbe(None)));

    let plan = DrainPlan::new(
        tester.worker.ctx.round.clock.now(),
        std::time::Duration::from_secs(9),
        1,
        ReconnectTo::OtherNodes,
        &Config::default(),
    );
    tester.worker.ctx.drain = Some(WorkerDrain::new(plan.into()));
    let key = tester.connect(&Scripted::new(1000), ClientSource::Peer);
    assert_eq!(refusal_status(&feed(&mut tester, key, UPGRADE.as_bytes())), Some(503));
}

#[test]
fn decoding_stops_with_the_verdict_of_a_frame() {
    let mut fixture = Fixture::new(Obedient::default(), Config::default().max_message_bytes(1000));
    let mut tester = fixture.worker();
    let key = tester.open(&Scripted::new(1000));
    let after = client_text("after");
    let decode_before = |tester: &mut Tester<'_>, frame: &[u8]| {
        let (next, handled) = decode(tester, key, [frame, &after].concat());
        tester.connection(key).unwrap().decoder = deeperhub_protocol::frame::FrameDecoder::new();
        (next, handled == frame.len())
    };
    assert!(matches!(decode(&mut tester, key, client_text("hello")), (Next::Continue, _)));
    assert_eq!(tester.connection(key).unwrap().outbox.len(), server_text("hello").len());
    for (message, hold) in [("pause", InputHolds::PAUSED), ("park", InputHolds::PARKED)] {
        let (next, stops) = decode_before(&mut tester, &client_text(message));
        assert!(matches!(next, Next::Hold(holds) if holds == hold) && stops, "{message}: {next:?}");
    }
    let (next, stops) = decode_before(&mut tester, &client_text("close"));
    assert_eq!((close_code(&next), stops), (Some(CloseCode::Disconnected), true));
    let (next, _) = decode_before(&mut tester, &client_text("panic"));
    assert_eq!(close_code(&next), Some(CloseCode::InternalError));
    let close = client_frame(0x88, &3210_u16.to_be_bytes());
    assert!(matches!(decode_before(&mut tester, &close), (Next::AnswerClose(Some(3210)), true)));
    assert!(matches!(decode_before(&mut tester, &client_frame(0x88, b"")), (Next::AnswerClose(None), true)));
    let (next, _) = decode_before(&mut tester, &client_frame(0x8f, b""));
    assert_eq!(close_code(&next), Some(CloseCode::ProtocolError));
    let (next, _) = decode_before(&mut tester, &client_frame(0x82, &[0; 1001]));
    assert_eq!(close_code(&next), Some(CloseCode::MessageTooBig));
    let open = tester.phase(key, |connection, _| matches!(connection.state, State::Open(_)));
    assert!(open, "a phase has ended the session");
}

#[test]
fn a_queue_over_its_limit_closes_only_a_client_that_does_not_read() {
    let config = Config::default().max_queue_bytes(2000);
    let mut fixture = Fixture::new(Obedient::default(), config);
    let mut tester = fixture.worker();
    let messages = client_text(&"x".repeat(600)).repeat(20);
    let reader = tester.open(&Scripted::new(1 << 20));
    let (next, handled) = decode(&mut tester, reader, messages.clone());
    assert!(matches!(next, Next::Continue), "{next:?}");
    assert_eq!(handled, messages.len());
    let full = Scripted::new(1000);
    let slow = tester.open(&full);
    let (next, handled) = decode(&mut tester, slow, messages.clone());
    assert_eq!(close_code(&next), Some(CloseCode::SlowConsumer));
    assert!(handled < messages.len());
    let broken = Scripted::new(1000);
    let lost = tester.open(&broken);
    broken.reset();
    assert!(matches!(decode(&mut tester, lost, messages), (Next::Lost, _)));
}

#[test]
fn closing_connections_discard_input_up_to_the_clients_close_frame() {
    let mut fixture = Fixture::new(Obedient::default(), Config::default());
    let mut tester = fixture.worker();
    let key = tester.open(&Scripted::new(1000));
    let handle = |tester: &mut Tester<'_>, until, mut bytes: Vec<u8>| {
        tester.phase(key, |connection, ctx| {
            connection.state = State::Closing(until);
            let (mut at, mut turn) = (0, ctx.round.budget.turn());
            let next = input::handle(connection, key, &mut bytes, &mut at, &mut turn, ctx);
            assert_eq!(at, bytes.len());
            let State::Closing(until) = connection.state else { panic!("the connection is not closing") };
            (next, until)
        })
    };
    let wait = ClosingUntil::CloseFrame;
    assert!(matches!(
        handle(&mut tester, wait, client_text("late")),
        (Next::Continue, ClosingUntil::CloseFrame)
    ));
    let close = client_frame(0x88, b"");
    assert!(matches!(handle(&mut tester, wait, close), (Next::Write, ClosingUntil::Flushed)));
    let invalid = client_frame(0x8f, b"");
    assert!(matches!(handle(&mut tester, wait, invalid), (Next::Write, ClosingUntil::Eof)));
    let eof = ClosingUntil::Eof;
    assert!(matches!(handle(&mut tester, eof, b"anything".to_vec()), (Next::Continue, ClosingUntil::Eof)));
    // The tester's connection has lost its session without an `on_close`.
    tester.worker.table.open -= 1;
}

#[test]
fn the_end_of_input_ends_a_connection_once_all_is_written() {
    let mut fixture = Fixture::new(Obedient::default(), Config::default());
    let mut tester = fixture.worker();
    let stream = Scripted::new(1000);
    let key = tester.connect(&stream, ClientSource::Peer);
    assert!(matches!(tester.phase(key, |connection, _| closing::end_of_input(connection)), Next::Lost));
    let key = tester.open(&Scripted::new(1000));
    assert!(matches!(tester.phase(key, |connection, _| closing::end_of_input(connection)), Next::HalfClosed));
    let _ = decode(&mut tester, key, client_text("not written yet"));
    let (next, state) = tester.phase(key, |connection, _| {
        connection.state = State::Closing(ClosingUntil::Eof);
        let next = closing::end_of_input(connection);
        (next, matches!(connection.state, State::Closing(ClosingUntil::Flushed)))
    });
    assert!(matches!(next, Next::Write) && state);
    tester.worker.table.open -= 1;
}

#[test]
fn a_blocked_write_continues_when_the_socket_has_room() {
    let mut fixture = Fixture::new(Obedient::default(), Config::default());
    let mut tester = fixture.worker();
    let stream = Scripted::new(140);
    let key = tester.open(&stream);
    let message = client_text(&"x".repeat(100)).repeat(5);
    let _ = decode(&mut tester, key, message);
    let write = |tester: &mut Tester<'_>| {
        tester.phase(key, |connection, ctx| {
            write::write(connection, &ctx.shared.limits, &mut ctx.round.buffers)
        })
    };
    assert!(matches!(write(&mut tester), Next::Continue));
    let is_blocked = |tester: &mut Tester<'_>| tester.connection(key).unwrap().flags.write_blocked;
    assert!(is_blocked(&mut tester) && !tester.connection(key).unwrap().outbox.may_be_in_arena());
    stream.receive(usize::MAX);
    assert!(matches!(write(&mut tester), Next::Continue), "the socket is not tried before its wake-up");
    assert!(is_blocked(&mut tester));
    let next = tester.phase(key, |connection, _| write::unblock(connection));
    assert!(matches!(next, Some(Next::Write)));
    assert!(tester.phase(key, |connection, _| write::unblock(connection)).is_none());
    while !tester.connection(key).unwrap().is_written() {
        assert!(matches!(write(&mut tester), Next::Continue));
        stream.receive(usize::MAX);
        let _ = tester.phase(key, |connection, _| write::unblock(connection));
    }
    assert!(stream.output().ends_with(&server_text(&"x".repeat(100)).repeat(5)));
    stream.reset();
    let _ = decode(&mut tester, key, client_text("lost"));
    assert!(matches!(write(&mut tester), Next::Lost));
}

#[test]
fn a_closing_connection_advances_once_all_is_written() {
    let mut fixture = Fixture::new(Obedient::default(), Config::default());
    let mut tester = fixture.worker();
    let stream = Scripted::new(1000);
    let key = tester.open(&stream);
    let advance = |tester: &mut Tester<'_>, until| {
        tester.phase(key, |connection, _| {
            connection.state = State::Closing(until);
            closing::advance(connection)
        })
    };
    assert!(matches!(advance(&mut tester, ClosingUntil::CloseFrame), Next::Continue));
    assert!(matches!(advance(&mut tester, ClosingUntil::Eof), Next::Continue));
    assert!(stream.is_shut_down());
    assert!(matches!(advance(&mut tester, ClosingUntil::Flushed), Next::Remove));
    tester.worker.table.open -= 1;
}

#[test]
fn a_turn_reads_until_the_socket_is_empty() {
    let mut fixture = Fixture::new(Obedient::default(), Config::default());
    let mut tester = fixture.worker();
    let stream = Scripted::new(1000);
    let key = tester.open(&stream);
    let read = |tester: &mut Tester<'_>| {
        let mut turn = tester.worker.ctx.round.budget.turn();
        let mut buffer = [0; 8];
        let (worker, progress) = (&mut tester.worker, &mut Default::default());
        let connection = worker.table.slab.get_mut(key as usize).unwrap();
        read::read(connection, key, progress, &mut buffer, &mut turn, &mut worker.ctx)
    };
    stream.send(b"twelve bytes");
    assert!(matches!(read(&mut tester), Received::Input { len: 8, is_drained: false }));
    stream.interrupt(1);
    assert!(matches!(read(&mut tester), Received::Again));
    assert!(matches!(read(&mut tester), Received::Input { len: 4, is_drained: true }));
    assert!(matches!(read(&mut tester), Received::Nothing(Next::Continue)));
    stream.end_input();
    assert!(matches!(read(&mut tester), Received::Nothing(Next::HalfClosed)));
    stream.reset();
    assert!(matches!(read(&mut tester), Received::Nothing(Next::Lost)));
}
