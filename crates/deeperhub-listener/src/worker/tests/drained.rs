//! Queues that are filled no more than half, and reports of queues that have drained.

use deeperhub_protocol::frame::Frame;
use deeperhub_protocol::{CloseCode, CloseReason};

use super::fixture::{Fixture, Obedient, TestWorker, UPGRADE, client_text, server_text};
use crate::arena::Multicast;
use crate::config::Config;
use crate::connections::QueueFull;
use crate::handshake::ClientSource;
use crate::transport::Scripted;
use crate::worker::{Next, RoundEnd, decode};

type Tester<'a> = TestWorker<'a, Obedient>;

/// Limit of a queue.
const MAX_QUEUE_BYTES: usize = 8000;

fn fixture() -> Fixture<Obedient> {
    Fixture::new(Obedient::default(), Config::default().max_queue_bytes(MAX_QUEUE_BYTES))
}

/// Returns a multicast of a frame of `len` bytes, more than 129.
fn multicast(len: usize) -> Multicast {
    let multicast = Multicast::new(Frame::binary(&vec![7; len - 4]));
    assert_eq!(multicast.frame().len(), len);
    multicast
}

/// Tries to send a frame of `len` bytes. Returns `true` if it was queued.
fn try_send(tester: &mut Tester<'_>, key: u32, len: usize) -> Result<bool, QueueFull> {
    tester.connections().try_send_multicast(key, &multicast(len)).map(|session| session.is_some())
}

fn send(tester: &mut Tester<'_>, key: u32, len: usize) {
    let session = tester.connections().send_multicast(key, &multicast(len)).is_some();
    assert!(session, "the frame is not queued");
}

fn queued_bytes(tester: &mut Tester<'_>, key: u32) -> Option<usize> {
    tester.connections().queued_bytes(key)
}

fn drained(tester: &mut Tester<'_>) -> Vec<u32> {
    std::mem::take(&mut tester.worker.ctx.worker_state.drained)
}

/// Opens a connection whose socket is full, with `len` bytes queued.
fn open_full(tester: &mut Tester<'_>, len: usize) -> (Scripted, u32) {
    let stream = Scripted::new(200);
    let key = tester.open(&stream);
    send(tester, key, len + 200);
    tester.round();
    assert_eq!(queued_bytes(tester, key), Some(len));
    assert!(tester.connection(key).unwrap().flags.write_blocked);
    (stream, key)
}

#[test]
fn half_of_the_queue_of_a_full_socket_stays_free() {
    let mut fixture = fixture();
    let metrics = fixture.metrics.clone();
    let mut tester = fixture.worker();
    let (stream, key) = open_full(&mut tester, 3000);
    assert_eq!(try_send(&mut tester, key, 1001), Err(QueueFull));
    assert_eq!(queued_bytes(&mut tester, key), Some(3000), "the frame was queued");
    assert_eq!(try_send(&mut tester, key, 1000), Ok(true));
    assert_eq!(try_send(&mut tester, key, 130), Err(QueueFull));
    // The other half is for replies.
    stream.send(&client_text("reply"));
    tester.round();
    assert_eq!(queued_bytes(&mut tester, key), Some(4007));
    stream.make_room(MAX_QUEUE_BYTES);
    tester.round();
    assert_eq!((queued_bytes(&mut tester, key), try_send(&mut tester, key, 4007)), (Some(0), Ok(true)));
    assert_eq!(metrics.slow_consumers.value(), 0);
}

#[test]
fn a_long_queue_is_first_offered_to_the_socket() {
    let mut fixture = fixture();
    let metrics = fixture.metrics.clone();
    let mut tester = fixture.worker();
    let fast = tester.open(&Scripted::new(1 << 20));
    let slow = tester.open(&Scripted::new(1000));
    let sent = |tester: &mut Tester<'_>, key| {
        (0..100).take_while(|_| try_send(tester, key, 500).is_ok_and(|is_queued| is_queued)).count()
    };
    assert_eq!(sent(&mut tester, fast), 100);
    // The socket has taken two frames. The next ones are queued, up to half of the limit.
    assert_eq!(sent(&mut tester, slow), 2 + MAX_QUEUE_BYTES / 2 / 500);
    assert_eq!(queued_bytes(&mut tester, slow), Some(MAX_QUEUE_BYTES / 2));
    tester.round();
    assert_eq!(metrics.slow_consumers.value(), 0);
}

#[test]
fn only_a_frame_over_the_limit_closes_a_slow_consumer() {
    let mut fixture = fixture();
    let metrics = fixture.metrics.clone();
    let mut tester = fixture.worker();
    let stream = Scripted::new(200);
    let key = tester.open(&stream);
    send(&mut tester, key, 3000);
    assert_eq!(try_send(&mut tester, key, 6000), Err(QueueFull), "the limit would be exceeded");
    assert_eq!(queued_bytes(&mut tester, key), Some(2800));
    stream.make_room(2600);
    tester.round();
    assert_eq!(queued_bytes(&mut tester, key), Some(0));
    assert_eq!(try_send(&mut tester, key, MAX_QUEUE_BYTES), Ok(true));
    stream.make_room(MAX_QUEUE_BYTES);
    tester.round();
    assert_eq!((queued_bytes(&mut tester, key), metrics.slow_consumers.value()), (Some(0), 0));
    assert_eq!(try_send(&mut tester, key, 2 * MAX_QUEUE_BYTES), Ok(false));
    assert_eq!(queued_bytes(&mut tester, key), None);
    tester.round();
    assert_eq!(metrics.slow_consumers.value(), 1);
    assert_eq!(try_send(&mut tester, key, 200), Ok(false));
}

#[test]
fn encoded_frames_are_sent_in_order_whether_the_socket_is_full_or_not() {
    let mut fixture = fixture();
    let mut tester = fixture.worker();
    let stream = Scripted::new(200);
    let key = tester.open(&stream);
    let before = stream.output().len();
    let texts: Vec<String> = (0..30).map(|number| format!("{number} {}", "x".repeat(90))).collect();
    for pair in texts.chunks(2) {
        let frames: Vec<u8> = pair.iter().flat_map(|text| server_text(text)).collect();
        assert!(tester.connections().send_encoded(key, &frames, 2).is_some());
        assert!(tester.connections().send_encoded(key, b"", 0).is_some());
        tester.round();
    }
    while queued_bytes(&mut tester, key) != Some(0) {
        stream.make_room(150);
        tester.round();
    }
    let expected: Vec<u8> = texts.iter().flat_map(|text| server_text(text)).collect();
    assert_eq!(stream.output()[before..], expected);
    assert!(tester.connections().send_encoded(key + 1, b"\x81\x00", 1).is_none());
}

#[test]
fn encoded_frames_are_charged_to_the_deliveries_of_the_round() {
    let mut fixture = fixture();
    let mut tester = fixture.worker();
    let key = tester.open(&Scripted::new(1 << 20));
    let start = tester.connections().send_budget();
    let frames = server_text("").repeat(100);
    let _ = tester.connections().send_encoded(key, &frames, 100);
    assert_eq!(tester.connections().send_budget(), start - 1, "one receiver");
    for _ in 0..200 {
        let _ = tester.connections().send_encoded(key, &frames, 100);
    }
    assert_eq!(tester.connections().send_budget(), 0);
    assert_eq!(tester.connections().max_queue_bytes(), MAX_QUEUE_BYTES);
}

#[test]
fn open_connections_tell_whether_they_are_compressed() {
    let mut fixture = fixture();
    let mut tester = fixture.worker();
    let plain = tester.open(&Scripted::new(1000));
    let stream = Scripted::new(1000);
    let key = tester.connect(&stream, ClientSource::Peer);
    assert_eq!((tester.connections().is_compressed(key), queued_bytes(&mut tester, key)), (false, None));
    let extension = "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n";
    stream.send(UPGRADE.replace("\r\n\r\n", extension).as_bytes());
    tester.round();
    assert!(tester.connections().is_compressed(key) && !tester.connections().is_compressed(plain));
    tester.apply(key, Next::Lost);
    assert!(!tester.connections().is_compressed(key));
}

#[test]
fn a_drained_queue_is_reported_once_at_a_quarter_of_its_limit() {
    let mut fixture = fixture();
    let mut tester = fixture.worker();
    let (stream, key) = open_full(&mut tester, 2400);
    tester.connections().notify_when_drained(key);
    tester.connections().notify_when_drained(key);
    for (read, left, is_reported) in
        [(0, 2400, false), (200, 2200, false), (199, 2001, false), (1, 2000, true), (200, 1800, false)]
    {
        stream.receive(read);
        let end = tester.round();
        assert_eq!(queued_bytes(&mut tester, key), Some(left));
        assert_eq!(drained(&mut tester), vec![key; usize::from(is_reported)], "{left} bytes are left");
        assert!(!is_reported || end == RoundEnd::MoreWork, "no round follows");
    }
    stream.make_room(MAX_QUEUE_BYTES);
    tester.round();
    assert!(drained(&mut tester).is_empty(), "the queue is reported again");
}

#[test]
fn a_queue_that_has_drained_already_is_reported_in_the_same_round() {
    let mut fixture = fixture();
    let mut tester = fixture.worker();
    let (_stream, blocked) = open_full(&mut tester, 2000);
    let idle = tester.open(&Scripted::new(1000));
    let taken = tester.open(&Scripted::new(1 << 20));
    send(&mut tester, taken, 7000);
    for key in [blocked, idle, taken, 1000] {
        tester.connections().notify_when_drained(key);
    }
    assert!(drained(&mut tester).is_empty());
    tester.round();
    let mut reported = drained(&mut tester);
    reported.sort_unstable();
    assert_eq!(reported, [blocked, idle, taken]);
}

#[test]
fn a_queue_that_a_read_has_written_is_reported() {
    let mut fixture = fixture();
    let mut tester = fixture.worker();
    let (stream, key) = open_full(&mut tester, 3000);
    tester.connections().notify_when_drained(key);
    tester.round();
    assert!(drained(&mut tester).is_empty());
    stream.make_room(1 << 20);
    // The replies pass the limit of the queue, so all of it is written before the write phase.
    let mut input = client_text(&"x".repeat(3000)).repeat(2);
    let next = tester.phase(key, |connection, ctx| {
        let (mut at, mut turn) = (0, ctx.round.budget.turn());
        decode::decode(connection, key, &mut input, &mut at, &mut turn, ctx)
    });
    assert_eq!(queued_bytes(&mut tester, key), Some(0));
    tester.apply(key, next);
    tester.round();
    assert_eq!(drained(&mut tester), [key]);
}

#[test]
fn a_connection_that_closes_first_is_not_reported() {
    let mut fixture = fixture();
    let mut tester = fixture.worker();
    let close = || Next::close(CloseReason::new(CloseCode::Disconnected, "bye"));
    for end in [close(), Next::AnswerClose(None), Next::HalfClosed, Next::Shed, Next::Lost, Next::FailTls] {
        let (stream, key) = open_full(&mut tester, 3000);
        tester.connections().notify_when_drained(key);
        tester.apply(key, end);
        tester.connections().notify_when_drained(key);
        stream.make_room(1 << 20);
        tester.round();
        assert!(drained(&mut tester).is_empty());
    }
    // A later connection with the key of a closed one is not reported either.
    let (stream, key) = open_full(&mut tester, 3000);
    stream.make_room(1 << 20);
    tester.round();
    assert_eq!((queued_bytes(&mut tester, key), drained(&mut tester)), (Some(0), Vec::new()));
}
