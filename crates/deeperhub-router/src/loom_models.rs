//! Models of the hand-over between threads. loom runs them in every order that the memory model
//! allows.
//!
//! Run them with `RUSTFLAGS="--cfg loom" cargo test -p deeperhub-router --lib --release models`.

use crate::{Config, DeliveryFlow, DeliveryState, Outgoing, Reach, Router, Shard, ShardId, TopicView};
use ahash::RandomState;
use deeperhub_types::{Subscription, Topic};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};

/// Creates a router with fixed seeds: hashes must be the same in each run of a model.
fn router(shards: u16) -> Router<u32> {
    Router::with_hasher(shards, Config::default(), RandomState::with_seeds(1, 2, 3, 4), |_| ())
}

fn publish(router: &Router<u32>, message: u32) -> u64 {
    router.publish(&Topic::parse("a").unwrap(), None, 1, || message).subscribers
}

fn check(bound: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(bound);
    builder.check(model);
}

/// Waker that unparks a thread of the model.
struct Unpark(loom::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Publishes as a worker does.
fn publish_from(shard: &mut crate::Shard<u32>, message: u32) -> u64 {
    shard.publish(&Topic::parse("a").unwrap(), None, 1, || message).subscribers
}

/// Delivers until `count` messages have arrived, and parks whenever the inbox is empty.
fn receive(shard: &mut crate::Shard<u32>, count: usize) -> Vec<u32> {
    let waker = Waker::from(Arc::new(Unpark(loom::thread::current())));
    let mut received = Vec::new();
    loop {
        let poll = shard.poll_deliver(&mut Context::from_waker(&waker), |_, message| {
            received.push(*message);
            DeliveryFlow::Continue
        });
        if received.len() == count {
            return received;
        }
        if poll.is_pending() {
            // A lost wake-up would be a deadlock, which loom detects.
            loom::thread::park();
        }
    }
}

#[test]
fn no_wake_up_is_lost() {
    check(3, || {
        let router = router(1);
        let mut shard = router.attach(ShardId(0));
        shard.subscribe(0, &Subscription::parse("a").unwrap());
        let publisher = loom::thread::spawn({
            let router = router.clone();
            move || (publish(&router, 1), publish(&router, 2))
        });
        assert_eq!(receive(&mut shard, 2), [1, 2]);
        assert_eq!(publisher.join().unwrap(), (1, 1));
    });
}

#[test]
fn no_deferred_wake_up_is_lost() {
    check(3, || {
        let router = router(2);
        let mut shard = router.attach(ShardId(0));
        shard.subscribe(0, &Subscription::parse("a").unwrap());
        let mut publishing = router.attach(ShardId(1));
        let publisher = loom::thread::spawn(move || {
            let first = publish_from(&mut publishing, 1);
            publishing.flush_wakeups();
            // Dropping the worker flushes this wake-up.
            (first, publish_from(&mut publishing, 2))
        });
        assert_eq!(receive(&mut shard, 2), [1, 2]);
        assert_eq!(publisher.join().unwrap(), (1, 1));
    });
}

#[test]
fn no_wake_up_of_a_deferred_publisher_is_lost() {
    check(3, || {
        let router = router(1);
        let mut shard = router.attach(ShardId(0));
        shard.subscribe(0, &Subscription::parse("a").unwrap());
        let publisher = loom::thread::spawn(move || {
            let mut publisher = router.deferred_publisher();
            let topic = Topic::parse("a").unwrap();
            let burst = [1, 2].map(|message| publisher.publish(&topic, None, 1, || message).subscribers);
            publisher.flush_wakeups();
            // Dropping the publisher flushes this wake-up.
            (burst, publisher.publish(&topic, None, 1, || 3).subscribers)
        });
        assert_eq!(receive(&mut shard, 3), [1, 2, 3]);
        assert_eq!(publisher.join().unwrap(), ([1, 1], 1));
    });
}

#[test]
fn no_wake_up_is_lost_between_a_deferred_and_an_immediate_one() {
    check(3, || {
        let router = router(2);
        let mut shard = router.attach(ShardId(0));
        shard.subscribe(0, &Subscription::parse("a").unwrap());
        let mut publishing = router.attach(ShardId(1));
        let late = loom::thread::spawn(move || publish_from(&mut publishing, 1));
        let prompt = loom::thread::spawn(move || publish(&router, 2));
        let mut received = receive(&mut shard, 2);
        received.sort_unstable();
        assert_eq!(received, [1, 2]);
        assert_eq!((late.join().unwrap(), prompt.join().unwrap()), (1, 1));
    });
}

#[test]
fn publishing_workers_agree_on_the_order_and_lose_no_wake_up() {
    check(3, || {
        let router = router(2);
        let mut shards = [router.attach(ShardId(0)), router.attach(ShardId(1))];
        for (shard, name) in shards.iter_mut().zip(["a", "*"]) {
            shard.subscribe(0, &Subscription::parse(name).unwrap());
            // The worker sleeps once, so that its inbox is armed.
            let mut cx = Context::from_waker(Waker::noop());
            assert!(shard.poll_deliver(&mut cx, |_, _| unreachable!("nothing is published")).is_pending());
        }
        let [mut first, mut second] = shards;
        let other = loom::thread::spawn(move || {
            publish_from(&mut second, 2);
            receive(&mut second, 2)
        });
        publish_from(&mut first, 1);
        assert_eq!(receive(&mut first, 2), other.join().unwrap());
    });
}

#[test]
fn workers_agree_on_the_order_of_publishers_that_race() {
    check(2, || {
        let router = router(2);
        let mut shards = [router.attach(ShardId(0)), router.attach(ShardId(1))];
        shards[0].subscribe(0, &Subscription::parse("a").unwrap());
        shards[1].subscribe(0, &Subscription::parse("*").unwrap());
        let publisher = loom::thread::spawn({
            let router = router.clone();
            move || publish(&router, 1)
        });
        assert_eq!(publish(&router, 2), 2);
        assert_eq!(publisher.join().unwrap(), 2);
        let [first, second] = shards.each_mut().map(|shard| receive(shard, 2));
        assert_eq!(first, second);
    });
}

#[test]
fn exactly_the_counted_subscribers_get_the_message() {
    for name in ["a", "*"] {
        check(3, move || {
            let router = router(1);
            let mut shard = router.attach(ShardId(0));
            let publisher = loom::thread::spawn({
                let router = router.clone();
                move || publish(&router, 1)
            });
            shard.subscribe(0, &Subscription::parse(name).unwrap());
            let counted = publisher.join().unwrap();
            let delivered = Arc::new(AtomicUsize::new(0));
            let mut cx = Context::from_waker(Waker::noop());
            while shard
                .poll_deliver(&mut cx, |_, _| {
                    delivered.fetch_add(1, Ordering::Relaxed);
                    DeliveryFlow::Continue
                })
                .is_ready()
            {}
            assert_eq!(delivered.load(Ordering::Relaxed) as u64, counted);
        });
    }
}

#[test]
fn a_first_pattern_gets_every_message_after_its_first() {
    check(3, || {
        let router = router(2);
        let mut first = router.attach(ShardId(0));
        first.subscribe(0, &Subscription::parse("a").unwrap());
        let mut second = router.attach(ShardId(1));
        let other = loom::thread::spawn(move || {
            second.subscribe(0, &Subscription::parse("*").unwrap());
            publish_from(&mut second, 2);
            second
        });
        publish(&router, 1);
        let mut second = other.join().unwrap();
        let order = receive(&mut first, 2);
        let mut received = Vec::new();
        let mut cx = Context::from_waker(Waker::noop());
        while second
            .poll_deliver(&mut cx, |_, message| {
                received.push(*message);
                DeliveryFlow::Continue
            })
            .is_ready()
        {}
        assert!(order.ends_with(&received) && received.contains(&2), "{received:?} of {order:?}");
    });
}

#[test]
fn a_replaced_worker_leaves_no_subscriptions() {
    check(2, || {
        let router = router(1);
        let mut dead = router.attach(ShardId(0));
        dead.subscribe(0, &Subscription::parse("a").unwrap());
        let publisher = loom::thread::spawn({
            let router = router.clone();
            move || publish(&router, 1)
        });
        let late = loom::thread::spawn(move || {
            dead.subscribe(1, &Subscription::parse("*").unwrap());
            dead.remove_subscriber(0);
        });
        let mut shard = router.attach(ShardId(0));
        publisher.join().unwrap();
        late.join().unwrap();
        assert_eq!(router.topic_count(), 0);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(shard.poll_deliver(&mut cx, |_, _| unreachable!("nobody is subscribed")).is_pending());
        assert!(!router.is_congested());
    });
}

/// All messages of a topic, as its kept value.
type Log = Option<Vec<u32>>;

fn publish_kept(router: &Router<u32, Log>, message: u32) {
    let (published, ()) = router.publish_kept(&Topic::parse("a").unwrap(), None, |_, log, ()| {
        log.get_or_insert_default().push(message);
        (Some(Outgoing { bytes: 1, make: move || message, reach: Reach::Matching }), ())
    });
    assert!(published.subscribers <= 2);
}

/// Appends what subscriber 0 gets now.
fn receive_now(shard: &mut Shard<u32, Log>, received: &mut Vec<u32>) {
    let mut cx = Context::from_waker(Waker::noop());
    while shard
        .poll_deliver(&mut cx, |key, message| {
            if key == 0 {
                received.push(*message);
            }
            DeliveryFlow::Continue
        })
        .is_ready()
    {}
}

/// Runs a model with a worker, while another thread publishes the messages 1 and 2. Subscriber 0
/// must receive both, once and in order. A second subscriber of the worker makes the publishes push
/// messages even if subscriber 0 is not there yet, or suspended.
fn check_received(worker: impl Fn(&mut Shard<u32, Log>) -> Vec<u32> + Copy + Send + Sync + 'static) {
    for has_second in [false, true] {
        check(3, move || {
            let hasher = RandomState::with_seeds(1, 2, 3, 4);
            let router = Router::<u32, Log>::with_hasher(1, Config::default(), hasher, |_| ());
            let mut shard = router.attach(ShardId(0));
            if has_second {
                shard.subscribe(1, &Subscription::parse("a").unwrap());
            }
            let publisher = loom::thread::spawn(move || [1, 2].map(|message| publish_kept(&router, message)));
            let mut received = worker(&mut shard);
            publisher.join().unwrap();
            receive_now(&mut shard, &mut received);
            assert_eq!(received, [1, 2]);
        });
    }
}

/// Subscribes, reads the log, and starts with this state.
fn subscribe_at(shard: &mut Shard<u32, Log>, state: DeliveryState) -> Vec<u32> {
    let read = |_: TopicView<'_>, log: &mut Log, (): &mut ()| (state, log.clone().unwrap_or_default());
    shard.subscribe_at(0, &Topic::parse("a").unwrap(), read).1
}

/// Reads the log after the received messages, and resumes the subscription.
fn resume_at(shard: &mut Shard<u32, Log>, received: &mut Vec<u32>) {
    let read = |_: TopicView<'_>, log: &mut Log, (): &mut ()| {
        received.extend(log.iter().flatten().skip(received.len()));
        (DeliveryState::Live, ())
    };
    shard.resume_at(0, &Topic::parse("a").unwrap(), read).unwrap();
}

#[test]
fn a_subscription_starts_where_its_look_at_the_kept_value_ends() {
    check_received(|shard| subscribe_at(shard, DeliveryState::Live));
}

#[test]
fn a_resumed_subscription_starts_where_its_look_at_the_kept_value_ends() {
    check_received(|shard| {
        let mut received = subscribe_at(shard, DeliveryState::Suspended);
        receive_now(shard, &mut received);
        resume_at(shard, &mut received);
        receive_now(shard, &mut received);
        received
    });
}

#[test]
fn a_subscription_that_is_suspended_and_resumed_loses_nothing() {
    check_received(|shard| {
        let mut received = subscribe_at(shard, DeliveryState::Live);
        receive_now(shard, &mut received);
        assert!(shard.suspend(0, &Topic::parse("a").unwrap()));
        receive_now(shard, &mut received);
        resume_at(shard, &mut received);
        received
    });
}
