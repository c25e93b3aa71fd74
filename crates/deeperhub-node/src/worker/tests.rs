use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};
use std::time::Duration;

use deeperhub_protocol::{ClientId, RawJson, Subscription, Topic};
use deeperhub_router::ShardId;
use tokio::sync::oneshot;

use super::execute::is_target;
use super::sweep::SweepTargets;
use super::*;
use crate::connection_id::ConnectionId;
use crate::hub::{Hub, Publisher};
use crate::operation::Action;
use crate::streams::HubShard;
use crate::{Config, Node};

/// Returns the hub of a stopped node with two workers. Tests act as these workers.
fn hub() -> Arc<Hub> {
    let mut config = Config::default();
    config.listener.workers = 2;
    config.canary.interval = Duration::ZERO;
    let node = Node::start(([127, 0, 0, 1], 0).into(), config).unwrap();
    let hub = Arc::clone(&node.handle().hub);
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(node.stop());
    hub
}

#[derive(Default)]
struct WakeCount(AtomicUsize);

impl Wake for WakeCount {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Returns the shard of the second worker, which has a subscriber and sleeps, and a counter of its
/// wake-ups.
fn sleeping_worker(hub: &Hub) -> (HubShard, Arc<WakeCount>) {
    let mut shard = hub.router.attach(ShardId(1));
    shard.subscribe(0, &Subscription::parse("a").unwrap());
    let count = Arc::new(WakeCount::default());
    let waker = Waker::from(Arc::clone(&count));
    let mut cx = task::Context::from_waker(&waker);
    assert!(shard.poll_deliver(&mut cx, |_, _| unreachable!("nothing is published")).is_pending());
    (shard, count)
}

fn publish(worker: &mut NodeWorker) {
    worker.on_message();
    let connection_id = ConnectionId { worker: 0, key: 0, serial: 0 };
    let id = connection_id.client_id("n").unwrap();
    let publisher = Publisher {
        id: &id,
        connection_id,
        is_excluded: false,
        shard: &mut worker.shard,
        once: None,
        wants_reply: false,
    };
    let (topic, message) = (Topic::parse("a").unwrap(), RawJson::parse("1").unwrap());
    let outcome = worker.hub.publish(&topic, message, Some(publisher), Instant::now(), None).unwrap();
    assert_eq!(outcome.subscribers, 1);
}

#[test]
fn deferred_wake_ups_are_flushed_after_64_messages() {
    let hub = hub();
    let (_sleeping_worker, count) = sleeping_worker(&hub);
    let mut worker = NodeWorker::new(&hub, 0);
    publish(&mut worker);
    for _ in 1..64 {
        worker.on_message();
    }
    assert_eq!(count.0.load(Ordering::Relaxed), 0);
    worker.on_message();
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
}

#[test]
fn a_worker_that_dies_flushes_its_deferred_wake_ups() {
    let hub = hub();
    let (_sleeping_worker, count) = sleeping_worker(&hub);
    let thread = std::thread::spawn(move || {
        let mut worker = NodeWorker::new(&hub, 0);
        publish(&mut worker);
        panic!("a worker dies in a test");
    });
    thread.join().unwrap_err();
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
}

/// Returns the session of a connection without a user.
fn session(serial: u64) -> Session {
    let placeholder_id = ClientId::parse("n").unwrap();
    let mut session = Session::new(([127, 0, 0, 1], 1).into(), None, placeholder_id, None, None);
    session.connection_id.serial = serial;
    session
}

#[test]
fn a_sweep_leaves_out_connections_that_opened_after_the_request() {
    let hub = hub();
    let mut worker = NodeWorker::new(&hub, 0);
    let before = worker.allocate_serial();
    let topic = Subscription::parse("a").unwrap();
    for action in [Action::Disconnect, Action::Unsubscribe(topic)] {
        worker.start_sweep(SweepTargets::all(), action, oneshot::channel().0);
        let sweep = worker.sweep.take().unwrap();
        assert!(is_target(&sweep, &session(before), &hub));
        assert!(!is_target(&sweep, &session(worker.last_serial + 1), &hub));
    }
    let serial = worker.allocate_serial();
    assert!(serial > before);
    worker.start_sweep(SweepTargets::user("ada", vec![1]), Action::Disconnect, oneshot::channel().0);
    let sweep = worker.sweep.take().unwrap();
    assert!(!is_target(&sweep, &session(before), &hub), "another user has the key");
}
