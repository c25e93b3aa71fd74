//! Effects of verdicts on the worker.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use deeperhub_protocol::handshake::Refusal;
use deeperhub_protocol::{CloseCode, CloseReason};

use super::fixture::{Fixture, Obedient, client_text, server_text};
use crate::config::Config;
use crate::connection::InputHolds;
use crate::handshake::ClientSource;
use crate::transport::Scripted;
use crate::worker::Next;

fn close() -> Next {
    Next::close(CloseReason::new(CloseCode::Disconnected, "bye"))
}

/// The close frame of [`close`].
const CLOSE_FRAME: &[u8] = b"bye";

#[test]
fn a_session_ends_once_however_many_verdicts_end_it() {
    let application = Obedient::default();
    let closed = Arc::clone(&application.closed);
    let mut fixture = Fixture::new(application, Config::default());
    let mut tester = fixture.worker();
    let stream = Scripted::new(1000);
    let key = tester.open(&stream);
    let ends = [close(), Next::AnswerClose(None), Next::HalfClosed, Next::Shed, close(), Next::FailTls];
    tester.apply(key, close());
    tester.round();
    let output = stream.output();
    assert!(output.ends_with(CLOSE_FRAME));
    for next in ends.into_iter().chain([Next::Lost, Next::Lost, Next::Remove, close()]) {
        tester.apply(key, next);
        tester.round();
        assert_eq!(closed.load(Ordering::Relaxed), 1);
        assert_eq!(tester.worker.table.open, 0);
    }
    assert_eq!(stream.output(), output, "bytes follow the close frame");
    assert!(stream.is_dropped());
}

#[test]
fn verdicts_that_do_not_fit_the_state_have_no_effect() {
    let mut fixture = Fixture::new(Obedient::default(), Config::default());
    let mut tester = fixture.worker();
    let handshake = Scripted::new(1000);
    let key = tester.connect(&handshake, ClientSource::Peer);
    for next in [close(), Next::AnswerClose(None), Next::Shed, Next::HalfClosed] {
        tester.apply(key, next);
    }
    let open = Scripted::new(1000);
    let open_key = tester.open(&open);
    tester.apply(open_key, Next::refuse(Refusal::not_found()));
    tester.apply(open_key, Next::AnswerProbe(None));
    tester.round();
    assert!(handshake.output().is_empty());
    open.send(&client_text("still here"));
    tester.round();
    assert!(open.output().ends_with(&server_text("still here")));
}

#[test]
fn a_paused_connection_is_read_again_when_it_closes() {
    let mut fixture = Fixture::new(Obedient::default(), Config::default());
    let mut tester = fixture.worker();
    let stream = Scripted::new(1000);
    let key = tester.open(&stream);
    stream.send(&[client_text("pause"), client_text("waits")].concat());
    tester.round();
    assert_eq!(tester.worker.table.paused, 1);
    assert!(tester.worker.table.unread.contains_key(&key));
    tester.apply(key, Next::Hold(InputHolds::PAUSED));
    assert_eq!(tester.worker.table.paused, 1, "the connection is counted twice");
    tester.apply(key, close());
    tester.round();
    assert_eq!(tester.worker.table.paused, 0);
    assert!(tester.worker.table.unread.is_empty());
    assert!(!stream.output().ends_with(&server_text("waits")));
}

#[test]
fn input_after_the_request_is_handled_once_the_session_is_open() {
    let mut fixture = Fixture::new(Obedient::default(), Config::default());
    let mut tester = fixture.worker();
    let stream = Scripted::new(1000);
    tester.connect(&stream, ClientSource::Peer);
    stream.send(&[super::fixture::UPGRADE.as_bytes(), &client_text("early")].concat());
    tester.round();
    assert!(stream.output().ends_with(&server_text("early")));
    assert!(tester.worker.table.unread.is_empty());
}
