use std::sync::Barrier;
use std::time::{Duration, Instant, SystemTime};

use deeperhub_events::EventFilter;
use deeperhub_metrics::Format;
use deeperhub_router::ShardId;

use super::target::{Probe, State};
use super::*;
use crate::worker::request::{QueuedRequest, WorkerRequest};
use crate::{Config, Node, Phase};

/// Time after which a test fails if a condition does not hold.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

fn start(timeout: Duration) -> Node {
    let mut config = Config::default();
    config.listener.workers = 2;
    config.canary.interval = Duration::from_millis(20);
    config.canary.timeout = timeout;
    Node::start(([127, 0, 0, 1], 0).into(), config).unwrap()
}

fn wait_until(condition: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !holds() {
        assert!(Instant::now() < deadline, "timed out waiting for {condition}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn run_on(node: &Node, worker: usize, action: fn()) {
    let hub = node.handle().hub;
    let after = hub.router.inbox_position(ShardId(worker.try_into().unwrap()));
    hub.request_senders[worker]
        .try_send(QueuedRequest { request: WorkerRequest::Run(action), after })
        .unwrap();
}

#[test]
fn a_started_node_is_ready_and_its_probes_are_invisible() {
    let node = start(TEST_TIMEOUT);
    let handle = node.handle();
    assert!(handle.health().is_ready(), "{:?}", handle.health());
    let mut events = handle.events(EventFilter::all()).unwrap();
    let returned_probes = || handle.hub.canary.metrics.round_trips.snapshot().count();
    let first_round = returned_probes();
    assert!(first_round >= 2, "each worker's first probe has returned");
    wait_until("more probes", || returned_probes() >= first_round + 6);

    assert_eq!(handle.topics(None, 10).unwrap().items, []);
    let text = handle.metrics_text(Format::Prometheus);
    for line in ["deeperhub_topics 0", "deeperhub_subscriptions 0", "deeperhub_canary_failing_workers 0"] {
        assert!(text.lines().any(|other| other == line), "{line} is not in {text}");
    }
    let sent = text.lines().filter(|line| line.starts_with("deeperhub_messages_sent_total"));
    assert!(sent.clone().count() > 0 && sent.clone().all(|line| line.ends_with(" 0")), "{text}");
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(events.poll_recv(&mut cx).is_pending(), "probes cause no events");
}

#[test]
fn a_stuck_worker_makes_the_node_unready_until_it_continues() {
    static STUCK: Barrier = Barrier::new(2);
    let node = start(Duration::from_millis(40));
    let handle = node.handle();
    run_on(&node, 1, || {
        STUCK.wait();
    });
    wait_until("an unready reason", || handle.health().reasons.iter().any(|reason| reason.worker == Some(1)));
    let reason = handle.health().reasons.into_iter().find(|reason| reason.worker == Some(1)).unwrap();
    assert_eq!((reason.check, reason.code), (HealthCheck::Canary, "delivery_stalled"));
    assert!(reason.since.is_some_and(|since| since <= SystemTime::now()));
    assert_eq!(handle.phase(), Phase::Serving);
    assert!(handle.metrics_text(Format::Prometheus).contains("deeperhub_canary_missed_total"));

    STUCK.wait();
    wait_until("readiness", || handle.health().is_ready());
}

#[test]
fn a_dead_worker_is_replaced_and_probed_again() {
    let node = start(TEST_TIMEOUT);
    let handle = node.handle();
    let take_round_trip = || handle.hub.canary.state().workers[0].last_round_trip.take().is_some();
    run_on(&node, 0, || panic!("a worker dies in a test"));
    let has_restarted =
        || handle.metrics_text(Format::Prometheus).contains("deeperhub_worker_restarts_total 1");
    wait_until("the replacement", has_restarted);
    take_round_trip();
    wait_until("a probe of the replacement", take_round_trip);
    assert!(handle.health().is_ready());
}

/// Panics if a test has requested it.
pub(super) fn panic_if_requested(canary: &Canary) {
    use std::sync::atomic::Ordering::Relaxed;
    let is_requested =
        canary.requested_panics.fetch_update(Relaxed, Relaxed, |panics| panics.checked_sub(1)).is_ok();
    assert!(!is_requested, "a test requested this panic");
}

#[test]
fn the_canary_thread_restarts_after_a_panic() {
    let node = start(TEST_TIMEOUT);
    let canary = &node.handle().hub.canary;
    canary.requested_panics.store(2, std::sync::atomic::Ordering::Relaxed);
    wait_until("two restarts", || canary.metrics.restarts.value() == 2);
    let returned_probes = || canary.metrics.round_trips.snapshot().count();
    let after_restarts = returned_probes();
    wait_until("more probes", || returned_probes() > after_restarts + 2);
    assert!(node.handle().health().is_ready());
}

#[test]
fn without_an_interval_there_are_no_probes() {
    let mut config = Config::default();
    config.listener.workers = 1;
    config.canary.interval = Duration::ZERO;
    let node = Node::start(([127, 0, 0, 1], 0).into(), config).unwrap();
    assert!(node.handle().health().is_ready());
    assert_eq!(node.handle().hub.canary.last_round_trip(), None);
}

#[test]
fn the_probe_number_is_read_from_the_frame() {
    for (frame, expected) in [
        (&b"\x81\x10{\"type\":\"message\",\"data\":{\"topic\":\"$canary.0\",\"message\":17}}"[..], Some(17)),
        (b"\x81\x02{}", None),
        (b"", None),
        (b"{\"message\":x}}", None),
    ] {
        assert_eq!(probe_number(frame), expected, "{}", frame.escape_ascii());
    }
}

/// Marks the broker's probe as sent and returns its number.
fn send_broker_probe(canary: &Canary) -> u64 {
    let mut state = canary.state();
    let State { broker, next_number, .. } = &mut *state;
    let target = broker.as_mut().unwrap();
    target.start_probe();
    target.take_due(next_number).unwrap()
}

#[test]
fn a_broker_probe_that_reached_no_worker_is_due_again() {
    let canary = Canary::new(CanaryConfig::default(), 3, ClusterTargets::Broker);
    let is_due = || matches!(canary.state().broker.as_ref().unwrap().probe, Probe::Due);
    let code = || canary.cluster_unready_reason().map(|reason| reason.code);
    // The probe is offered to all workers, but none has subscribed.
    let offered = std::cell::RefCell::new(Vec::new());
    canary.offer_to_workers(send_broker_probe(&canary), |worker| {
        offered.borrow_mut().push(worker);
        0
    });
    offered.borrow_mut().sort_unstable();
    assert_eq!((offered.into_inner(), is_due()), (vec![0, 1, 2], true));
    canary.record_missed(true);
    assert_eq!(code(), None);
    // As soon as one worker has subscribed, a missed probe means that the broker fails.
    canary.on_worker_subscribed(1);
    canary.offer_to_workers(send_broker_probe(&canary), |worker| u64::from(worker == 1));
    assert!(!is_due());
    canary.record_missed(true);
    assert_eq!(code(), Some("cluster_stalled"));
}

#[test]
fn each_missed_probe_is_counted_once() {
    let canary = Canary::new(CanaryConfig::default(), 2, ClusterTargets::Broker);
    canary.on_worker_subscribed(0);
    for interval in 1..=3 {
        canary.mark_due(true, false);
        canary.record_missed(true);
        canary.record_missed(true);
        // The broker gets a new probe in each interval. The probes of the workers stay open.
        assert_eq!((canary.metrics.missed.value(), canary.cluster_metrics.missed.value()), (2, interval));
    }
    assert_eq!(canary.failing_workers(), 2);
    // The probe through a broker whose connection changed is not counted.
    canary.mark_due(true, false);
    canary.record_missed(false);
    assert_eq!(canary.cluster_metrics.missed.value(), 3);
    // A disconnected broker gets no probe and is not failing.
    canary.mark_due(false, false);
    canary.record_missed(true);
    assert_eq!((canary.cluster_metrics.missed.value(), canary.cluster_unready_reason()), (3, None));
}

#[test]
fn a_timeout_beyond_the_clock_does_not_panic() {
    let node = start(Duration::MAX);
    assert!(node.handle().health().is_ready());
    drop(node);
}

/// Starts a probe of the store and returns its number.
fn send_store_probe(canary: &Canary) -> u64 {
    canary.mark_due(true, true);
    let mut state = canary.state();
    let State { store, next_number, .. } = &mut *state;
    store.as_mut().and_then(|store| store.target.take_due(next_number)).unwrap()
}

#[test]
fn a_store_fails_until_a_probe_was_read_back() {
    let canary = Canary::new(CanaryConfig::default(), 1, ClusterTargets::BrokerAndStore);
    let reason = || canary.store_unready_reason().map(|reason| reason.message.into_owned());
    let first = send_store_probe(&canary);
    canary.on_store_step(first, StoreStep::Append);
    canary.on_store_fault(first, "OOM".to_owned());
    assert_eq!(reason(), None, "the deadline decides");
    canary.record_missed(true);
    canary.record_missed(true);
    let failed = "the cluster's store of history failed: a probe was not appended in time: OOM";
    assert_eq!((reason().as_deref(), canary.store_metrics.missed.value()), (Some(failed), 1));
    // A late part of the first probe says nothing about the second one.
    let second = send_store_probe(&canary);
    canary.on_store_step(second, StoreStep::Receive);
    canary.on_store_probe_returned(first);
    assert_eq!(reason().as_deref(), Some(failed));
    canary.record_missed(true);
    let failed =
        "the cluster's store of history failed: an appended probe did not arrive at this node in time";
    assert_eq!(reason().as_deref(), Some(failed));
    canary.on_store_probe_returned(send_store_probe(&canary));
    assert_eq!((reason(), canary.last_store_round_trip().is_some()), (None, true));
}

#[test]
fn a_store_that_is_not_used_or_not_reached_does_not_fail() {
    let canary = Canary::new(CanaryConfig::default(), 1, ClusterTargets::BrokerAndStore);
    for (stays_connected, is_connected, uses_store) in [(true, false, true), (true, true, false)] {
        send_store_probe(&canary);
        canary.record_missed(stays_connected);
        assert!(canary.store_unready_reason().is_some());
        canary.mark_due(is_connected, uses_store);
        assert_eq!(canary.store_unready_reason(), None);
    }
    let missed = canary.store_metrics.missed.value();
    send_store_probe(&canary);
    canary.record_missed(false);
    assert_eq!((canary.store_metrics.missed.value(), canary.store_unready_reason()), (missed, None));
}
