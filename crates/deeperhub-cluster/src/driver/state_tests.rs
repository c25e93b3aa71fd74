//! Tests that need the URL of a broker but never reach it.

use super::batch::Sending;
use super::thread::{restart_after_panic, supervise};
use super::*;
use crate::broker::Broker;
use crate::envelope::{Envelope, Message, Received};
use crate::operation::{Action, Operation, Target};
use crate::queue::Lane;
use bytes::Bytes;

/// Receiver that records each sequence after `pause`.
#[derive(Debug, Default)]
struct RecordingHandler {
    received: Arc<std::sync::Mutex<Vec<u64>>>,
    pause: Duration,
    /// Sequence to panic at.
    panics_at: Option<u64>,
    /// Number of messages before each flush that followed a message.
    flushed: Arc<std::sync::Mutex<Vec<usize>>>,
}

impl MessageHandler for RecordingHandler {
    async fn handle(&self, envelope: Envelope<'_>) -> Option<PendingAnswer> {
        if !self.pause.is_zero() {
            sleep(self.pause).await;
        }
        assert_ne!(Some(envelope.sequence), self.panics_at, "a panic that a test wants");
        self.received.lock().unwrap().push(envelope.sequence);
        None
    }

    fn flush(&self) {
        let count = self.received.lock().unwrap().len();
        let mut flushed = self.flushed.lock().unwrap();
        if flushed.last().copied().unwrap_or_default() != count {
            flushed.push(count);
        }
    }

    fn connections(&self) -> u64 {
        0
    }
}

fn driver(handler: RecordingHandler, queue_bytes: usize) -> DriverState<RecordingHandler> {
    let mut config = crate::Config::new(crate::BrokerUrl::parse("nats://localhost").unwrap());
    config.queue_bytes = queue_bytes;
    let broker = Broker::new(config, "own".to_owned(), 7, "1");
    DriverState::new(broker.0, handler, mpsc::channel().0)
}

fn envelope(node: &str, sequence: u64, message: Message<'_>) -> Bytes {
    let origin = crate::Origin { node, incarnation: 7 };
    let mut bytes = Envelope { origin, sequence: 0, message }.write();
    crate::envelope::set_sequence(&mut bytes, sequence);
    bytes.into()
}

fn checked(node: &str, sequence: u64, message: Message<'_>) -> Received {
    Received::check(envelope(node, sequence, message)).unwrap()
}

fn hello() -> Message<'static> {
    Message::Hello { joined: true, wants_answer: false, connections: 1, version: "1" }
}

fn broadcast() -> Message<'static> {
    let message = deeperhub_protocol::RawJson::parse(r#"{"type":"x"}"#).unwrap();
    Message::Operation(Operation::new(Target::All, Action::Send(message)))
}

#[test]
fn heartbeats_and_duplicates_are_handled_when_they_are_read() {
    let driver = driver(RecordingHandler::default(), 1000);
    let now = Instant::now();
    let connection = Connection {
        driver: &driver,
        subscribed: Notify::new(),
        name_taken: Notify::new(),
        last_echo: Cell::new(now),
    };
    let later = now + Duration::from_secs(9);
    let (shared, metrics) = (&driver.shared, &driver.shared.metrics);
    // No task processes the backlog, as if the node's workers were slow.
    for _ in 0..3 {
        connection.dispatch(envelope("other", 1, broadcast()), now);
    }
    assert_eq!(driver.backlog.inner.borrow().envelopes.len(), 1);
    assert_eq!((metrics.received.value(), metrics.duplicates.value()), (1, 2));
    connection.dispatch(envelope("own", 1, hello()), later);
    connection.dispatch(envelope("other", 2, hello()), later);
    assert_eq!(connection.last_echo.get(), later);
    assert_eq!(shared.peers.list(later).first().map(|peer| peer.silent), Some(Duration::ZERO));
    assert_eq!(driver.backlog.inner.borrow().envelopes.len(), 1);

    // Envelopes for which the backlog has no room are counted as dropped.
    for sequence in 3..100 {
        connection.dispatch(envelope("other", sequence, broadcast()), now);
    }
    let kept = driver.backlog.inner.borrow().envelopes.len() as u64;
    assert!(kept > 3 && kept < 20, "{kept}");
    assert_eq!(metrics.dropped_for(Dropped::SlowNode), 98 - kept);
    let bytes = shared.backlog_bytes.load(Ordering::Relaxed);
    assert!(bytes > 500 && bytes <= 1000, "{bytes}");
}

/// The position of a message from the store tells whether it is a duplicate.
#[test]
fn messages_of_the_store_pass_whoever_sent_them() {
    let received = Arc::<std::sync::Mutex<Vec<u64>>>::default();
    let handler = RecordingHandler { received: Arc::clone(&received), ..RecordingHandler::default() };
    let driver = driver(handler, 100_000);
    let now = Instant::now();
    let connection = Connection {
        driver: &driver,
        subscribed: Notify::new(),
        name_taken: Notify::new(),
        last_echo: Cell::new(now),
    };
    let reset = |node, incarnation, sequence| {
        let topic = deeperhub_protocol::Topic::parse("t").unwrap();
        let origin = crate::Origin { node, incarnation };
        let message = Message::StreamReset { epoch: 1, time: 1, topic };
        Bytes::from(Envelope { origin, sequence, message }.write())
    };
    let later = now + Duration::from_secs(9);
    connection.dispatch(reset("other", 7, 1), now);
    connection.dispatch(reset("other", 7, 1), now);
    connection.dispatch(reset("own", 7, 2), later);
    // A message that this node appended before it was restarted.
    connection.dispatch(reset("own", 6, 3), later);
    assert_eq!(connection.last_echo.get(), later);
    let metrics = &driver.shared.metrics;
    assert_eq!((metrics.received.value(), metrics.duplicates.value()), (3, 0));
    let all = async {
        while driver.shared.backlog_bytes.load(Ordering::Relaxed) > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    runtime().unwrap().block_on(driver.process_backlog_while(all));
    assert_eq!(*received.lock().unwrap(), [1, 1, 2, 3]);
}

#[test]
fn the_backlog_is_processed_in_order_across_connections() {
    let received = Arc::<std::sync::Mutex<Vec<u64>>>::default();
    let handler = RecordingHandler {
        received: Arc::clone(&received),
        pause: Duration::from_millis(1),
        ..RecordingHandler::default()
    };
    let driver = driver(handler, 100_000);
    for sequence in 0..30 {
        assert!(driver.backlog.push(&driver.shared, checked("other", sequence, broadcast())));
    }
    // Connections end while an envelope is being processed.
    for _ in 0..10_000 {
        if received.lock().unwrap().len() == 30 {
            break;
        }
        let connection = async { sleep(Duration::from_millis(3)).await };
        runtime().unwrap().block_on(driver.process_backlog_while(connection));
    }
    assert_eq!(*received.lock().unwrap(), (0..30).collect::<Vec<_>>());
    assert_eq!(driver.shared.metrics.dropped_for(Dropped::SlowNode), 0);
    assert_eq!(driver.shared.backlog_bytes.load(Ordering::Relaxed), 0);
}

#[test]
fn a_panic_costs_one_envelope() {
    let received = Arc::<std::sync::Mutex<Vec<u64>>>::default();
    let handler = RecordingHandler {
        received: Arc::clone(&received),
        panics_at: Some(2),
        ..RecordingHandler::default()
    };
    let driver = driver(handler, 100_000);
    let broker = Broker(Arc::clone(&driver.shared));
    driver.shared.set_state(ClusterState::Up);
    broker.publish(broadcast()).unwrap();
    for sequence in 0..5 {
        assert!(driver.backlog.push(&driver.shared, checked("other", sequence, broadcast())));
    }
    let run = || {
        let all = async {
            while driver.shared.backlog_bytes.load(Ordering::Relaxed) > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        runtime().unwrap().block_on(driver.process_backlog_while(all));
    };
    supervise(run, |panics| restart_after_panic(&driver.shared, panics));
    assert_eq!(*received.lock().unwrap(), [0, 1, 3, 4]);
    let metrics = &driver.shared.metrics;
    assert_eq!((metrics.restarts.value(), metrics.dropped_for(Dropped::SlowNode)), (1, 1));
    // Messages queued for the broker are kept.
    assert_eq!(driver.unconfirmed_count(), 1);
    assert!(matches!(broker.state(), ClusterState::Disconnected { .. }));
}

/// Lets a driver process messages whose envelopes have these lengths or more. Returns the number of
/// messages before each flush.
fn flushes(handler: RecordingHandler, lengths: &[usize]) -> Vec<usize> {
    let flushed = Arc::clone(&handler.flushed);
    let driver = driver(handler, 100 << 20);
    for (sequence, length) in lengths.iter().enumerate() {
        let text = format!(r#"{{"type":"{}"}}"#, "x".repeat(*length));
        let message = deeperhub_protocol::RawJson::parse(&text).unwrap();
        let broadcast = Message::Operation(Operation::new(Target::All, Action::Send(message)));
        assert!(driver.backlog.push(&driver.shared, checked("other", sequence as u64, broadcast)));
    }
    let run = || {
        let all = async {
            while driver.shared.backlog_bytes.load(Ordering::Relaxed) > 0 {
                tokio::task::yield_now().await;
            }
        };
        runtime().unwrap().block_on(driver.process_backlog_while(all));
    };
    supervise(run, |panics| restart_after_panic(&driver.shared, panics));
    flushed.lock().unwrap().clone()
}

#[test]
fn the_handler_flushes_once_after_a_burst() {
    assert_eq!(flushes(RecordingHandler::default(), &[1; 60]), [60]);
    // A long burst is flushed in between, so that its first messages do not wait for the last.
    assert_eq!(flushes(RecordingHandler::default(), &[1; 200]), [64, 128, 192, 200]);
    assert_eq!(flushes(RecordingHandler::default(), &[40_000; 5]), [2, 4, 5]);
}

#[test]
fn the_handler_flushes_before_it_waits() {
    let handler = RecordingHandler { pause: Duration::from_millis(1), ..RecordingHandler::default() };
    assert_eq!(flushes(handler, &[1; 4]), [1, 2, 3, 4]);
}

#[test]
fn the_handler_flushes_after_a_panic() {
    let handler = RecordingHandler { panics_at: Some(3), ..RecordingHandler::default() };
    assert_eq!(flushes(handler, &[1; 10]), [3, 9]);
}

#[test]
fn unconfirmed_messages_are_counted_at_the_end() {
    let driver = driver(RecordingHandler::default(), 100_000);
    let broker = Broker(Arc::clone(&driver.shared));
    driver.shared.set_state(ClusterState::Up);
    for _ in 0..3 {
        broker.publish(broadcast()).unwrap();
    }
    let batch = driver.shared.queue.take(Lane::Data, 1);
    drop(Sending::new(batch, Lane::Data, &driver.unconfirmed));
    assert_eq!(driver.flush_deadline(), None);
    let deadline = Instant::now();
    broker.stop(deadline);
    assert_eq!(driver.flush_deadline(), Some(deadline));
    runtime().unwrap().block_on(driver.wait_for_flush());
    driver.on_stopped();
    assert_eq!(driver.shared.metrics.dropped_for(Dropped::Stopped), 3);
    assert_eq!(broker.state(), ClusterState::Stopped);
    // The flush waits for an unreachable broker, but not for the whole of a long drain.
    broker.stop(Instant::now() + Duration::from_secs(1000));
    assert!(driver.flush_deadline().is_some_and(|at| at <= Instant::now() + FLUSH_RECONNECT_TIMEOUT));
}

#[test]
fn envelopes_of_a_later_version_are_counted_and_skipped() {
    let received = Arc::<std::sync::Mutex<Vec<u64>>>::default();
    let handler = RecordingHandler { received: Arc::clone(&received), ..RecordingHandler::default() };
    let driver = driver(handler, 100_000);
    let mut envelopes: Vec<_> = (0..4).map(|sequence| envelope("later", sequence, broadcast())).collect();
    for (sequence, byte, value) in [(1, 1, 200), (2, 0, 2)] {
        let mut bytes = envelopes[sequence].to_vec();
        bytes[byte] = value;
        envelopes[sequence] = bytes.into();
    }
    let connection = Connection {
        driver: &driver,
        subscribed: Notify::new(),
        name_taken: Notify::new(),
        last_echo: Cell::new(Instant::now()),
    };
    envelopes.into_iter().for_each(|envelope| connection.dispatch(envelope, Instant::now()));
    let all = async {
        while driver.shared.backlog_bytes.load(Ordering::Relaxed) > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    runtime().unwrap().block_on(driver.process_backlog_while(all));
    assert_eq!(*received.lock().unwrap(), [0, 3]);
    assert_eq!(driver.shared.metrics.invalid.value(), 2);
}
