//! Tests that need the URL of a broker but never reach it.

use super::batch::Kept;
use super::*;
use crate::envelope::Message;
use crate::queue::Lane;
use bytes::Bytes;

/// Receiver that records each sequence after `pause`.
#[derive(Debug, Default)]
struct Notes {
    received: Arc<std::sync::Mutex<Vec<u64>>>,
    pause: Duration,
    /// Sequence to panic at.
    panics_at: Option<u64>,
}

impl Inbound for Notes {
    async fn receive(&self, envelope: Envelope<'_>) -> Option<Answering> {
        sleep(self.pause).await;
        assert_ne!(Some(envelope.sequence), self.panics_at, "a panic that a test wants");
        self.received.lock().unwrap().push(envelope.sequence);
        None
    }

    fn connections(&self) -> u64 {
        0
    }
}

fn life(inbound: Notes, queue_bytes: usize) -> Life<Notes> {
    let mut config = crate::Config::new(crate::BrokerUrl::parse("nats://localhost").unwrap());
    config.queue_bytes = queue_bytes;
    let broker = Broker::new(config, "own".to_owned(), 7, "1");
    Life::new(broker.0, inbound, mpsc::channel().0)
}

fn envelope(node: &str, sequence: u64, message: Message<'_>) -> Bytes {
    let origin = crate::Origin { node, incarnation: 7 };
    let mut bytes = Envelope { origin, sequence: 0, message }.write();
    crate::envelope::set_sequence(&mut bytes, sequence);
    bytes.into()
}

fn hello() -> Message<'static> {
    Message::Hello { joined: true, wants_answer: false, connections: 1, version: "1" }
}

fn broadcast() -> Message<'static> {
    Message::Broadcast { payload: deeperhub_protocol::RawJson::parse(r#"{"type":"x"}"#).unwrap() }
}

#[test]
fn signs_of_life_and_copies_are_noted_when_they_are_read() {
    let life = life(Notes::default(), 1000);
    let now = Instant::now();
    let connection =
        Connection { life: &life, followed: Notify::new(), taken: Notify::new(), echoed: Cell::new(now) };
    let later = now + Duration::from_secs(9);
    let (shared, metrics) = (&life.shared, &life.shared.metrics);
    // The backlog is not processed meanwhile: the node's workers are behind.
    for _ in 0..3 {
        connection.take_in(envelope("other", 1, broadcast()), now);
    }
    assert_eq!(life.backlog.inner.borrow().0.len(), 1);
    assert_eq!((metrics.received.value(), metrics.duplicates.value()), (1, 2));
    connection.take_in(envelope("own", 1, hello()), later);
    connection.take_in(envelope("other", 2, hello()), later);
    assert_eq!(connection.echoed.get(), later);
    assert_eq!(shared.peers.list(later).first().map(|peer| peer.silent), Some(Duration::ZERO));
    assert_eq!(life.backlog.inner.borrow().0.len(), 1);

    // Envelopes without room are counted as dropped; the others are accounted.
    for sequence in 3..100 {
        connection.take_in(envelope("other", sequence, broadcast()), now);
    }
    let kept = life.backlog.inner.borrow().0.len() as u64;
    assert!(kept > 3 && kept < 20, "{kept}");
    assert_eq!(metrics.dropped_for(Dropped::SlowNode), 98 - kept);
    let bytes = shared.backlog_bytes.load(Ordering::Relaxed);
    assert!(bytes > 500 && bytes <= 1000, "{bytes}");
}

#[test]
fn what_came_is_carried_out_in_order_over_connections() {
    let received = Arc::<std::sync::Mutex<Vec<u64>>>::default();
    let notes = Notes { received: Arc::clone(&received), pause: Duration::from_millis(1), panics_at: None };
    let life = life(notes, 100_000);
    for sequence in 0..30 {
        assert!(life.backlog.push(&life.shared, envelope("other", sequence, broadcast())));
    }
    // Connections end while an envelope is being processed.
    for _ in 0..10_000 {
        if received.lock().unwrap().len() == 30 {
            break;
        }
        let connection = async { sleep(Duration::from_millis(3)).await };
        runtime().unwrap().block_on(life.carrying_out(connection));
    }
    assert_eq!(*received.lock().unwrap(), (0..30).collect::<Vec<_>>());
    assert_eq!(life.shared.metrics.dropped_for(Dropped::SlowNode), 0);
    assert_eq!(life.shared.backlog_bytes.load(Ordering::Relaxed), 0);
}

#[test]
fn a_panic_costs_what_it_happened_at() {
    let received = Arc::<std::sync::Mutex<Vec<u64>>>::default();
    let notes = Notes { received: Arc::clone(&received), panics_at: Some(2), ..Notes::default() };
    let life = life(notes, 100_000);
    let broker = Broker(Arc::clone(&life.shared));
    life.shared.set_state(State::Up);
    let payload = deeperhub_protocol::RawJson::parse(r#"{"type":"x"}"#).unwrap();
    broker.publish(Message::Broadcast { payload }).unwrap();
    for sequence in 0..5 {
        assert!(life.backlog.push(&life.shared, envelope("other", sequence, broadcast())));
    }
    let run = || {
        let all = async {
            while life.shared.backlog_bytes.load(Ordering::Relaxed) > 0 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        runtime().unwrap().block_on(life.carrying_out(all));
    };
    supervise(run, |panics| panicked(&life.shared, panics));
    assert_eq!(*received.lock().unwrap(), [0, 1, 3, 4]);
    let metrics = &life.shared.metrics;
    assert_eq!((metrics.restarts.value(), metrics.dropped_for(Dropped::SlowNode)), (1, 1));
    // Messages queued for the broker are kept.
    assert_eq!(life.waiting(), 1);
    assert!(matches!(broker.state(), State::Away { .. }));
}

#[test]
fn what_the_broker_has_not_taken_at_the_end_is_counted() {
    let life = life(Notes::default(), 100_000);
    let broker = Broker(Arc::clone(&life.shared));
    life.shared.set_state(State::Up);
    let payload = deeperhub_protocol::RawJson::parse(r#"{"type":"x"}"#).unwrap();
    for _ in 0..3 {
        broker.publish(Message::Broadcast { payload }).unwrap();
    }
    let mut batch = Vec::new();
    life.shared.queue.take(Lane::Data, 1, &mut batch);
    drop(Kept { batch: &mut batch, life: &life });
    assert_eq!(life.stop_at(), None);
    let deadline = Instant::now();
    broker.stop(deadline);
    assert_eq!(life.stop_at(), Some(deadline));
    runtime().unwrap().block_on(life.flushed());
    life.stopped();
    assert_eq!(life.shared.metrics.dropped_for(Dropped::Stopped), 3);
    assert_eq!(broker.state(), State::Stopped);
    // The flush waits for an unreachable broker, but not for the whole of a long drain.
    broker.stop(Instant::now() + Duration::from_secs(1000));
    assert!(life.stop_at().is_some_and(|at| at <= Instant::now() + AWAY_AT_END));
}
