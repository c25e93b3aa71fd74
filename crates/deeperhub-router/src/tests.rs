//! Tests of the router against a simple model of its guarantees, and of single properties.

// The lint does not see that helpers outside of test functions belong to tests.
#![allow(clippy::unwrap_used)]

use crate::{
    Config, DeferredPublisher, DeliveryFlow, InterestChange, Router, Shard, ShardId, Subscribed,
    SubscriberKey, WORKER_SUBSCRIBER,
};
use deeperhub_types::{Subscription, Topic};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};

const SHARDS: u16 = 2;
/// Number of the deferred publisher among those that defer wake-ups, after all shards.
const DEFERRED_PUBLISHER: u16 = SHARDS;
const TOPICS: [&str; 5] = ["a", "a.b", "a.c", "b.b", "a.b.c"];
const SUBSCRIPTIONS: [&str; 11] = ["a", "a.b", "a.c", "b.b", "a.b.c", "*", ">", "a.*", "*.b", "a.>", "*.*"];

#[derive(Debug, Clone)]
enum Step {
    Subscribe {
        shard: u16,
        key: SubscriberKey,
        to: usize,
    },
    Unsubscribe {
        shard: u16,
        key: SubscriberKey,
        from: usize,
    },
    Remove {
        shard: u16,
        key: SubscriberKey,
    },
    Publish {
        topic: usize,
        source: Option<u64>,
        /// The worker or deferred publisher that publishes it; `None` for another thread.
        from: Option<u16>,
    },
    /// The worker or deferred publisher flushes its deferred wake-ups.
    FlushWakeups {
        by: u16,
    },
    /// Pauses at every `pause`th delivery.
    Deliver {
        shard: u16,
        pause: usize,
    },
    /// The worker dies, and another one replaces it.
    Replace {
        shard: u16,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let shard = || 0..SHARDS;
    let key = || 0..6_u32;
    prop_oneof![
        12 => (shard(), key(), 0..SUBSCRIPTIONS.len()).prop_map(|(shard, key, to)| Step::Subscribe { shard, key, to }),
        5 => (shard(), key(), 0..SUBSCRIPTIONS.len())
            .prop_map(|(shard, key, from)| Step::Unsubscribe { shard, key, from }),
        1 => (shard(), key()).prop_map(|(shard, key)| Step::Remove { shard, key }),
        12 => (0..TOPICS.len(), proptest::option::of(0..3_u64), proptest::option::of(0..=DEFERRED_PUBLISHER))
            .prop_map(|(topic, source, from)| Step::Publish { topic, source, from }),
        3 => (0..=DEFERRED_PUBLISHER).prop_map(|by| Step::FlushWakeups { by }),
        12 => (shard(), 1..8_usize).prop_map(|(shard, pause)| Step::Deliver { shard, pause }),
        1 => shard().prop_map(|shard| Step::Replace { shard }),
    ]
}

/// A published message and its expected receivers.
#[derive(Debug)]
struct Message {
    topic: &'static str,
    source: Option<u64>,
    /// The matching subscriptions of each client, by a number that is never reused.
    receivers: BTreeMap<(u16, SubscriberKey), BTreeSet<u64>>,
    delivered: BTreeSet<(u16, SubscriberKey)>,
}

/// Model of a worker's sleep and of its expected wake-ups.
#[derive(Debug, Default)]
struct Sleep {
    wake_ups: Arc<Count>,
    /// Number of wake-ups expected so far.
    expected: usize,
    is_asleep: bool,
    /// `true` if messages were pushed since the worker fell asleep.
    has_messages: bool,
    /// Workers and publishers with a deferred wake-up of this worker, though it may have run since.
    deferred_by: BTreeSet<u16>,
}

impl Sleep {
    /// Expects a wake-up if the worker sleeps.
    fn expect_wakeup(&mut self) {
        self.expected += usize::from(std::mem::take(&mut self.is_asleep));
    }

    /// Models that the worker runs, with or without a wake-up.
    fn run(&mut self) {
        self.is_asleep = false;
    }

    /// Models that the worker has delivered all messages and sleeps.
    fn fall_asleep(&mut self) {
        (self.is_asleep, self.has_messages) = (true, false);
    }
}

struct Model {
    router: Router<usize>,
    shards: Vec<Shard<usize>>,
    publisher: DeferredPublisher<usize>,
    sleeps: Vec<Sleep>,
    /// Number of the next subscription.
    next_number: u64,
    subscriptions: BTreeMap<(u16, SubscriberKey), BTreeMap<&'static str, u64>>,
    messages: Vec<Message>,
    received: BTreeMap<(u16, SubscriberKey), Vec<usize>>,
    /// Topics and patterns with subscribers, as reported to the observer.
    interests: Arc<Mutex<BTreeSet<String>>>,
}

fn subscription(name: &str) -> Subscription<'_> {
    Subscription::parse(name).expect("a subscription")
}

impl Model {
    fn new() -> Self {
        let router = Router::new(SHARDS, Config::default());
        let interests = Arc::new(Mutex::new(BTreeSet::new()));
        let observed = Arc::clone(&interests);
        router.observe_interest(move |name, interest| {
            let mut interests = observed.lock().expect("the lock is not poisoned");
            let changed = match interest {
                InterestChange::Gained => interests.insert(name.to_string()),
                InterestChange::Lost => interests.remove(&**name),
            };
            assert!(changed, "{interest:?} of {name} is reported twice");
        });
        let shards = (0..SHARDS).map(|shard| router.attach(ShardId(shard))).collect();
        Self {
            publisher: router.deferred_publisher(),
            router,
            shards,
            sleeps: (0..SHARDS).map(|_| Sleep::default()).collect(),
            next_number: 0,
            subscriptions: BTreeMap::new(),
            messages: Vec::new(),
            received: BTreeMap::new(),
            interests,
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Subscribe { shard, key, to } => {
                let name = SUBSCRIPTIONS[to];
                let subscriptions = self.subscriptions.entry((shard, key)).or_default();
                let answer = self.shards[usize::from(shard)].subscribe(key, &subscription(name));
                let is_new = !subscriptions.contains_key(name);
                assert_eq!(answer == Subscribed::New, is_new);
                if is_new {
                    self.next_number += 1;
                    subscriptions.insert(name, self.next_number);
                }
            }
            Step::Unsubscribe { shard, key, from } => {
                let name = SUBSCRIPTIONS[from];
                let was_subscribed =
                    self.subscriptions.entry((shard, key)).or_default().remove(name).is_some();
                assert_eq!(
                    self.shards[usize::from(shard)].unsubscribe(key, &subscription(name)),
                    was_subscribed
                );
            }
            Step::Remove { shard, key } => {
                let removed = self.subscriptions.remove(&(shard, key)).unwrap_or_default();
                assert_eq!(self.shards[usize::from(shard)].remove_subscriber(key), removed.len());
            }
            Step::Publish { topic, source, from } => self.publish(TOPICS[topic], source, from),
            Step::FlushWakeups { by } => {
                match by {
                    DEFERRED_PUBLISHER => self.publisher.flush_wakeups(),
                    shard => self.shards[usize::from(shard)].flush_wakeups(),
                }
                self.expect_wakeups_deferred_by(by);
            }
            Step::Deliver { shard, pause } => {
                self.deliver(shard, pause);
            }
            Step::Replace { shard } => {
                let mut dead = std::mem::replace(
                    &mut self.shards[usize::from(shard)],
                    self.router.attach(ShardId(shard)),
                );
                // Calls of the replaced worker change nothing.
                dead.subscribe(0, &subscription("a"));
                dead.subscribe(1, &subscription("*"));
                for key in 0..6 {
                    dead.remove_subscriber(key);
                }
                let mut cx = Context::from_waker(Waker::noop());
                assert!(dead.poll_deliver(&mut cx, |_, _| DeliveryFlow::Continue).is_pending());
                drop(dead);
                self.sleeps[usize::from(shard)].run();
                self.expect_wakeups_deferred_by(shard);
                self.subscriptions.retain(|client, _| client.0 != shard);
                for message in &mut self.messages {
                    message.receivers.retain(|client, _| client.0 != shard);
                }
            }
        }
        self.check_tables();
        for (shard, sleep) in self.sleeps.iter().enumerate() {
            assert_eq!(sleep.wake_ups.0.load(Ordering::Relaxed), sleep.expected, "wake-ups of {shard}");
        }
    }

    fn expect_wakeups_deferred_by(&mut self, by: u16) {
        for sleep in &mut self.sleeps {
            if sleep.deferred_by.remove(&by) && sleep.has_messages {
                sleep.expect_wakeup();
            }
        }
    }

    fn publish(&mut self, topic: &'static str, source: Option<u64>, from: Option<u16>) {
        let number = self.messages.len();
        let parsed = Topic::parse(topic).expect("a topic");
        let mut receivers = BTreeMap::new();
        for (client, subscriptions) in &self.subscriptions {
            let matching: BTreeSet<_> = subscriptions
                .iter()
                .filter(|(name, _)| subscription(name).matches(&parsed))
                .map(|(_, number)| *number)
                .collect();
            if !matching.is_empty() {
                assert_eq!(
                    self.shards[usize::from(client.0)].count_matches(client.1, &parsed),
                    matching.len() as u64
                );
                receivers.insert(*client, matching);
            }
        }
        let mut made = 0;
        let make = || {
            made += 1;
            number
        };
        let published = match from {
            Some(DEFERRED_PUBLISHER) => self.publisher.publish(&parsed, source, 10, make),
            Some(shard) => self.shards[usize::from(shard)].publish(&parsed, source, 10, make),
            None => self.router.publish(&parsed, source, 10, make),
        };
        assert_eq!(published.subscribers, receivers.values().map(BTreeSet::len).sum::<usize>() as u64);
        let shards: BTreeSet<_> = receivers.keys().map(|client| client.0).collect();
        assert_eq!(made, shards.len(), "one message for each worker with a receiver");
        if let Some(worker) = from.and_then(|from| self.sleeps.get_mut(usize::from(from))) {
            worker.run();
        }
        for shard in shards {
            let sleep = &mut self.sleeps[usize::from(shard)];
            sleep.has_messages = true;
            match from {
                Some(from) if sleep.is_asleep => {
                    sleep.deferred_by.insert(from);
                }
                Some(_) => {}
                None => sleep.expect_wakeup(),
            }
        }
        self.messages.push(Message { topic, source, receivers, delivered: BTreeSet::new() });
    }

    /// Delivers and returns `true` if there may be more.
    fn deliver(&mut self, shard: u16, pause: usize) -> bool {
        let waker = Waker::from(Arc::clone(&self.sleeps[usize::from(shard)].wake_ups));
        let mut cx = Context::from_waker(&waker);
        let mut deliveries = 0;
        let mut paused_at = None;
        let Self { shards, messages, subscriptions, received, .. } = self;
        let more = shards[usize::from(shard)].poll_deliver(&mut cx, |key, &number| {
            assert!(paused_at.is_none_or(|paused| paused == key), "another client after a pause");
            let client = (shard, key);
            let message = &mut messages[number];
            let live: BTreeSet<u64> = subscriptions
                .get(&client)
                .map(|subscriptions| subscriptions.values().copied().collect())
                .unwrap_or_default();
            let receivers = message.receivers.get(&client).cloned().unwrap_or_default();
            assert!(!live.is_disjoint(&receivers), "{client:?} got {number} without a subscription");
            assert!(message.delivered.insert(client), "{client:?} got {number} twice");
            received.entry(client).or_default().push(number);
            deliveries += 1;
            if deliveries % pause == 0 {
                paused_at = Some(key);
                return DeliveryFlow::Pause;
            }
            DeliveryFlow::Continue
        });
        self.expect_wakeups_deferred_by(shard);
        let sleep = &mut self.sleeps[usize::from(shard)];
        sleep.run();
        if more.is_pending() {
            sleep.fall_asleep();
        }
        more.is_ready()
    }

    fn check_tables(&self) {
        let mut counts = BTreeMap::<&str, u64>::new();
        for (client, subscriptions) in &self.subscriptions {
            let shard = &self.shards[usize::from(client.0)];
            let names: BTreeSet<_> = shard.subscriptions(client.1).collect();
            assert_eq!(names, subscriptions.keys().copied().collect());
            assert_eq!(shard.subscription_count(client.1), subscriptions.len());
            for name in subscriptions.keys() {
                assert!(shard.is_subscribed(client.1, &subscription(name)));
                *counts.entry(name).or_default() += 1;
            }
        }
        for name in SUBSCRIPTIONS {
            let count = counts.get(name).copied().unwrap_or_default();
            assert_eq!(self.router.subscriber_count(&subscription(name)), count, "{name}");
        }
        assert_eq!(self.router.topic_count(), counts.len() as u64);
        let interests = self.interests.lock().expect("the lock is not poisoned");
        assert!(interests.iter().eq(counts.keys()), "reported {interests:?}, but counted {counts:?}");
    }

    /// Delivers the rest, and checks the messages that each client got.
    fn check_all(&mut self) {
        for shard in 0..SHARDS {
            let mut calls = 0;
            while self.deliver(shard, 2) {
                calls += 1;
                assert!(calls < 10_000, "delivery does not end");
            }
        }
        for (number, message) in self.messages.iter().enumerate() {
            for (client, matched) in &message.receivers {
                let live = self.subscriptions.get(client);
                let is_live = live.is_some_and(|live| live.values().any(|number| matched.contains(number)));
                assert!(!is_live || message.delivered.contains(client), "{client:?} did not get {number}");
            }
        }
        for (client, received) in &self.received {
            for (index, first) in received.iter().enumerate() {
                for second in &received[index + 1..] {
                    let (one, two) = (&self.messages[*first], &self.messages[*second]);
                    let ordered =
                        one.topic == two.topic || (one.source.is_some() && one.source == two.source);
                    assert!(!ordered || first < second, "{client:?} got {second} after {first}");
                }
            }
        }
        for shard in 0..SHARDS {
            for key in 0..6 {
                self.apply(Step::Remove { shard, key });
            }
        }
        assert_eq!(self.router.topic_count(), 0);
        assert!(!self.router.is_congested());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn every_guarantee_holds_for_any_steps(steps in proptest::collection::vec(step(), 0..120)) {
        let mut model = Model::new();
        for step in steps {
            model.apply(step);
        }
        model.check_all();
    }
}

#[derive(Debug, Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_sleeping_worker_is_woken_once_for_many_publishes() {
    let router = Router::new(1, Config::default());
    let mut shard = router.attach(ShardId(0));
    shard.subscribe(0, &subscription("a"));
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    let mut cx = Context::from_waker(&waker);
    let mut delivered = 0;
    for round in 1..=3 {
        let mut poll = || {
            shard.poll_deliver(&mut cx, |_, ()| {
                delivered += 1;
                DeliveryFlow::Continue
            })
        };
        while poll().is_ready() {}
        for _ in 0..5 {
            router.publish(&Topic::parse("a").unwrap(), None, 1, || ());
        }
        assert_eq!(count.0.load(Ordering::Relaxed), round);
    }
    assert_eq!(delivered, 10);
    // There is no subscriber, so no message is created and no worker is woken.
    router.publish(&Topic::parse("b").unwrap(), None, 1, || unreachable!("nobody is subscribed"));
}

/// Returns a sleeping worker that is subscribed to `a`, with its count of wake-ups.
fn sleeping_worker(router: &Router<u32>, shard: u16) -> (Shard<u32>, Arc<Count>) {
    let mut worker = router.attach(ShardId(shard));
    worker.subscribe(0, &subscription("a"));
    let count = Arc::new(Count::default());
    assert_eq!(drain(&mut worker, &count), []);
    (worker, count)
}

/// Delivers all messages and leaves the worker asleep.
fn drain(worker: &mut Shard<u32>, count: &Arc<Count>) -> Vec<u32> {
    let waker = Waker::from(Arc::clone(count));
    let mut cx = Context::from_waker(&waker);
    let mut delivered = Vec::new();
    let mut deliver = |_, message: &u32| {
        delivered.push(*message);
        DeliveryFlow::Continue
    };
    while worker.poll_deliver(&mut cx, &mut deliver).is_ready() {}
    delivered
}

fn publish_from(worker: &mut Shard<u32>, message: u32) {
    worker.publish(&Topic::parse("a").unwrap(), None, 1, || message);
}

#[test]
fn deferred_wakeups_are_flushed_once_for_many_publishes() {
    let router = Router::new(3, Config::default());
    let [(mut first, first_count), (mut second, second_count), (_third, third_count)] =
        [0, 1, 2].map(|shard| sleeping_worker(&router, shard));
    let woken = || [&first_count, &second_count, &third_count].map(|count| count.0.load(Ordering::Relaxed));
    for message in 0..5 {
        publish_from(&mut first, message);
    }
    assert_eq!(woken(), [0, 0, 0]);
    first.flush_wakeups();
    first.flush_wakeups();
    assert_eq!(woken(), [0, 1, 1], "the publishing worker needs no wake-up");
    assert_eq!(drain(&mut second, &second_count), [0, 1, 2, 3, 4]);

    publish_from(&mut first, 5);
    assert_eq!(drain(&mut first, &first_count), [0, 1, 2, 3, 4, 5]);
    assert_eq!(
        woken(),
        [0, 2, 1],
        "a worker flushes wake-ups before it sleeps; the last worker was awake already"
    );
}

#[test]
fn a_deferred_wakeup_does_not_delay_one_from_another_thread() {
    let router = Router::new(2, Config::default());
    let [(mut first, _), (mut second, count)] = [0, 1].map(|shard| sleeping_worker(&router, shard));
    let woken = || count.0.load(Ordering::Relaxed);
    publish_from(&mut first, 1);
    router.publish(&Topic::parse("a").unwrap(), None, 1, || 2);
    assert_eq!(woken(), 1);
    first.flush_wakeups();
    assert_eq!(woken(), 1, "the worker was woken already");
    assert_eq!(drain(&mut second, &count), [1, 2]);

    publish_from(&mut first, 3);
    assert_eq!(drain(&mut second, &count), [3], "the worker ran without a wake-up");
    first.flush_wakeups();
    assert_eq!(woken(), 1);
}

#[test]
fn a_deferred_publisher_wakes_each_worker_once_for_a_burst() {
    let router = Router::new(2, Config::default());
    let [(mut first, first_count), (mut second, second_count)] =
        [0, 1].map(|shard| sleeping_worker(&router, shard));
    let woken = || [&first_count, &second_count].map(|count| count.0.load(Ordering::Relaxed));
    let mut publisher = router.deferred_publisher();
    let topic = Topic::parse("a").unwrap();
    for message in 0..100 {
        assert_eq!(publisher.publish(&topic, None, 1, || message).subscribers, 2);
    }
    assert_eq!(woken(), [0, 0]);
    publisher.flush_wakeups();
    publisher.flush_wakeups();
    assert_eq!(woken(), [1, 1]);
    for (worker, count) in [(&mut first, &first_count), (&mut second, &second_count)] {
        assert_eq!(drain(worker, count), (0..100).collect::<Vec<_>>());
    }
    publisher.publish(&topic, None, 1, || 100);
    drop(publisher);
    assert_eq!(woken(), [2, 2], "a dropped publisher flushes its deferred wake-ups");
}

#[test]
fn a_panicking_worker_flushes_its_deferred_wakeups() {
    let router = Router::new(2, Config::default());
    let [(mut first, _), (mut second, count)] = [0, 1].map(|shard| sleeping_worker(&router, shard));
    let died = std::thread::spawn(move || {
        publish_from(&mut first, 1);
        panic!("a worker dies in a test");
    });
    died.join().unwrap_err();
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    assert_eq!(drain(&mut second, &count), [1]);
}

#[test]
fn a_panicking_publish_wakes_the_workers_it_reached() {
    let router = Router::new(2, Config::default());
    let [(_first, first_count), (_second, second_count)] =
        [0, 1].map(|shard| sleeping_worker(&router, shard));
    let mut made = 0;
    let publish = std::panic::AssertUnwindSafe(|| {
        router.publish(&Topic::parse("a").unwrap(), None, 1, || {
            made += 1;
            assert!(made < 2, "a publish fails in a test");
            1
        })
    });
    std::panic::catch_unwind(publish).unwrap_err();
    let woken: usize = [first_count, second_count].iter().map(|count| count.0.load(Ordering::Relaxed)).sum();
    assert_eq!(woken, 1);
}

#[test]
fn congestion_is_reported_and_ends_after_delivery() {
    let mut config = Config::default();
    (config.inbox_soft_limit, config.inbox_soft_limit_bytes) = (8, 100);
    let router = Router::new(2, config);
    let mut shard = router.attach(ShardId(0));
    shard.subscribe(0, &subscription("a"));
    let topic = Topic::parse("a").unwrap();
    let publish = |bytes| router.publish(&topic, None, bytes, || ()).congested;
    let mut cx = Context::from_waker(Waker::noop());
    let mut catch_up = || while shard.poll_deliver(&mut cx, |_, ()| DeliveryFlow::Continue).is_ready() {};

    assert!((0..8).all(|_| !publish(1)));
    assert!(publish(1) && router.is_congested());
    let count = Arc::new(Count::default());
    assert!(router.wake_when_uncongested(&Waker::from(Arc::clone(&count))));
    catch_up();
    assert!(!router.is_congested());
    assert_eq!(count.0.load(Ordering::Relaxed), 1);

    assert!(!publish(100) && publish(1));
    catch_up();
    assert!(!router.is_congested() && !router.wake_when_uncongested(Waker::noop()));

    // A worker that died with a congested inbox causes no congestion any more.
    assert!(publish(101));
    drop(shard);
    let _shard = router.attach(ShardId(0));
    assert!(!router.is_congested() && !publish(101));
}

#[test]
fn a_large_fan_out_does_not_delay_another_topic() {
    let router = Router::new(1, Config::default());
    let mut shard = router.attach(ShardId(0));
    for key in 0..1000 {
        shard.subscribe(key, &subscription("huge"));
    }
    shard.subscribe(5000, &subscription("small"));
    let publish = |topic, source| {
        router.publish(&Topic::parse(topic).unwrap(), source, 1, || (topic, source));
    };
    publish("huge", Some(1));
    publish("small", Some(2));
    publish("small", Some(1));
    let mut cx = Context::from_waker(Waker::noop());
    let mut order = Vec::new();
    while shard
        .poll_deliver(&mut cx, |key, message| {
            order.push((key, *message));
            if order.len() % 100 == 0 { DeliveryFlow::Pause } else { DeliveryFlow::Continue }
        })
        .is_ready()
    {}
    let position = |wanted| order.iter().position(|(_, message)| *message == wanted).unwrap();
    assert!(position(("small", Some(2))) <= 100, "at most one part of the large fan-out is delivered before");
    assert_eq!(position(("small", Some(1))), 1001, "one source's messages keep their order");
    assert_eq!(order.len(), 1002);
}

#[test]
fn messages_of_a_large_fan_out_are_delivered_together() {
    let router = Router::new(1, Config::default());
    let mut shard = router.attach(ShardId(0));
    for key in 0..10 {
        shard.subscribe(key, &subscription("a"));
    }
    for number in 0..3 {
        router.publish(&Topic::parse("a").unwrap(), Some(number), 1, || number);
    }
    let mut order = Vec::new();
    let mut cx = Context::from_waker(Waker::noop());
    while shard
        .poll_deliver(&mut cx, |key, number| {
            order.push((key, *number));
            DeliveryFlow::Continue
        })
        .is_ready()
    {}
    let expected: Vec<_> = (0..10).flat_map(|key| (0..3).map(move |number| (key, number))).collect();
    assert_eq!(order, expected);
}

#[test]
fn deliver_until_stops_at_an_inbox_position() {
    let router = Router::new(1, Config::default());
    let mut shard = router.attach(ShardId(0));
    for key in 0..5 {
        shard.subscribe(key, &subscription("large"));
    }
    shard.subscribe(9, &subscription("small"));
    let publish = |topic, number| {
        router.publish(&Topic::parse(topic).unwrap(), Some(1), 1, || number);
    };
    assert!(shard.has_delivered(router.inbox_position(ShardId(0))), "nothing was published");
    publish("large", 1);
    publish("small", 2);
    let position = router.inbox_position(ShardId(0));
    publish("small", 3);
    assert!(!shard.has_delivered(position));
    let mut order = Vec::new();
    let mut calls = 0;
    loop {
        calls += 1;
        let is_done = shard.deliver_until(position, |key, number| {
            order.push((key, *number));
            if order.len() == 2 { DeliveryFlow::Pause } else { DeliveryFlow::Continue }
        });
        assert_eq!(is_done, shard.has_delivered(position));
        if is_done {
            break;
        }
    }
    let expected = [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (9, 2)];
    assert_eq!((calls, order.as_slice()), (2, &expected[..]));
    let mut cx = Context::from_waker(Waker::noop());
    let rest = shard.poll_deliver(&mut cx, |key, number| {
        order.push((key, *number));
        DeliveryFlow::Continue
    });
    assert!(rest.is_pending());
    assert_eq!(order.last(), Some(&(9, 3)));
}

#[test]
fn threads_agree_on_one_order() {
    const MESSAGES: usize = 500;
    const PUBLISHERS: usize = 3;
    let router = Router::new(SHARDS + PUBLISHERS as u16, Config::default());
    let (starter, started) = std::sync::mpsc::channel();
    let workers: Vec<_> = (0..SHARDS)
        .map(|shard| {
            let (router, starter) = (router.clone(), starter.clone());
            std::thread::spawn(move || {
                struct Unpark(std::thread::Thread);
                impl Wake for Unpark {
                    fn wake(self: Arc<Self>) {
                        self.0.unpark();
                    }
                }
                let mut shard = router.attach(ShardId(shard));
                for key in 0..6 {
                    shard.subscribe(key, &subscription(if key % 2 == 0 { "a.b" } else { "a.*" }));
                    shard.subscribe(key, &subscription(">"));
                }
                let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
                let mut cx = Context::from_waker(&waker);
                starter.send(()).unwrap();
                let mut received = vec![Vec::new(); 6];
                loop {
                    let poll = shard.poll_deliver(&mut cx, |key, message: &(usize, usize)| {
                        received[key as usize].push(*message);
                        if message.1.is_multiple_of(7) { DeliveryFlow::Pause } else { DeliveryFlow::Continue }
                    });
                    if received.iter().all(|messages| messages.len() == MESSAGES * PUBLISHERS) {
                        break;
                    }
                    if poll.is_pending() {
                        std::thread::park();
                    }
                }
                received
            })
        })
        .collect();
    for _ in 0..SHARDS {
        started.recv().unwrap();
    }
    std::thread::scope(|scope| {
        for publisher in 0..PUBLISHERS {
            let router = &router;
            scope.spawn(move || {
                // The first publisher publishes as no worker. The others are workers, and flush
                // their wake-ups after some messages.
                let mut shard = router.attach(ShardId(SHARDS + publisher as u16));
                for message in 0..MESSAGES {
                    let topic = Topic::parse("a.b").unwrap();
                    let (source, make) = (Some(publisher as u64), || (publisher, message));
                    let published = match publisher {
                        0 => router.publish(&topic, source, 1, make),
                        _ => shard.publish(&topic, source, 1, make),
                    };
                    assert_eq!(published.subscribers, 24);
                    if publisher > 0 && message % (publisher * 10) == 0 {
                        shard.flush_wakeups();
                    }
                }
            });
        }
    });
    let received: Vec<_> = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
    assert!(received.iter().all(|messages| *messages == received[0]), "all have the same order");
    for publisher in 0..PUBLISHERS {
        let numbers: Vec<_> =
            received[0].iter().filter(|(from, _)| *from == publisher).map(|(_, number)| *number).collect();
        assert_eq!(numbers, (0..MESSAGES).collect::<Vec<_>>());
    }
}

#[test]
fn reserved_topics_reach_only_the_worker() {
    let router = Router::<u32>::new(1, Config::default());
    let mut shard = router.attach(ShardId(0));
    let reserved = Topic::reserved("canary.0");
    for name in [">", "*.0", "a"] {
        shard.subscribe(3, &subscription(name));
    }
    assert_eq!(shard.subscribe(WORKER_SUBSCRIBER, &Subscription::Topic(reserved.borrow())), Subscribed::New);
    assert_eq!(
        shard.subscribe(WORKER_SUBSCRIBER, &Subscription::Topic(reserved.borrow())),
        Subscribed::Already
    );

    assert_eq!(router.publish(&reserved, None, 1, || 7).subscribers, 1);
    let mut delivered = Vec::new();
    let mut cx = Context::from_waker(Waker::noop());
    while shard
        .poll_deliver(&mut cx, |key, message| {
            delivered.push((key, *message));
            DeliveryFlow::Continue
        })
        .is_ready()
    {}
    assert_eq!(delivered, [(WORKER_SUBSCRIBER, 7)]);

    assert_eq!(router.topic_count(), 3);
    let mut listed: Vec<_> =
        router.list(None, 10).unwrap().topics.into_iter().map(|(name, _)| name).collect();
    listed.sort();
    assert_eq!(listed, ["*.0", ">", "a"]);

    let mut next = router.attach(ShardId(0));
    assert_eq!((router.topic_count(), router.publish(&reserved, None, 1, || 8).subscribers), (0, 0));
    next.subscribe(WORKER_SUBSCRIBER, &Subscription::Topic(reserved.borrow()));
    assert!(next.unsubscribe(WORKER_SUBSCRIBER, &Subscription::Topic(reserved.borrow())));
    assert_eq!((router.topic_count(), next.subscription_count(WORKER_SUBSCRIBER)), (0, 0));
}

/// Subscribes clients of two workers to names made from the client and a number.
fn subscribed(clients: u32, names: u32, name: impl Fn(u32, u32) -> String) -> (Router<u32>, Vec<Shard<u32>>) {
    let router = Router::new(SHARDS, Config::default());
    let mut shards: Vec<_> = (0..SHARDS).map(|shard| router.attach(ShardId(shard))).collect();
    for client in 0..clients {
        for number in 0..names {
            let name = name(client, number);
            shards[(client % 2) as usize].subscribe(client / 2, &subscription(&name));
        }
    }
    (router, shards)
}

#[test]
fn held_bytes_account_for_the_memory_of_subscriptions() {
    let deep = |client: u32, number: u32| {
        let choice = client * 128 + number;
        let levels = (0..127).map(|level| if choice >> (level % 24) & 1 == 0 { "a" } else { "*" });
        levels.chain(["*"]).collect::<Vec<_>>().join(".")
    };
    let long = |client: u32, number: u32| format!("{client}.{number}.{}", "x".repeat(240));
    let short = |client: u32, number: u32| format!("{client}.{number}");
    let (short_patterns, long_patterns) = (
        move |client: u32, number: u32| short(client, number) + ".*",
        move |client: u32, number: u32| long(client, number) + ".>",
    );
    let shared = |_, number: u32| format!("room.{number}");
    type Name<'n> = &'n dyn Fn(u32, u32) -> String;
    let cases: [(&str, Name<'_>); 6] = [
        ("deep patterns", &deep),
        ("long topics", &long),
        ("short topics", &short),
        ("short patterns", &short_patterns),
        ("long patterns", &long_patterns),
        ("topics of all clients", &shared),
    ];
    for (kind, name) in cases {
        for clients in [1, 10, 90] {
            let empty = subscribed(0, 0, name).0.heap_bytes();
            let (router, shards) = subscribed(clients, 128, name);
            let held = router.heap_bytes() - empty + shards.iter().map(Shard::heap_bytes).sum::<usize>();
            let accounted: usize =
                (0..clients).map(|client| shards[(client % 2) as usize].held_bytes(client / 2, 0)).sum();
            assert!(
                accounted * 10 >= held * 8 && accounted <= held * 3,
                "{kind} of {clients} clients: {accounted} of {held} bytes are accounted"
            );
        }
    }
}

#[test]
fn a_fan_out_is_linear_in_a_clients_subscriptions() {
    const CLIENTS: u32 = 10;
    const PATTERNS: u32 = 512;
    let pattern = |_, number: u32| {
        let levels = (0..9).map(|level| if number >> level & 1 == 0 { "a" } else { "*" });
        levels.chain(["*"]).collect::<Vec<_>>().join(".")
    };
    let (router, mut shards) = subscribed(CLIENTS, PATTERNS, pattern);
    // All patterns match the topic.
    let topic = ["a"; 10].join(".");
    let published = router.publish(&Topic::parse(topic.as_str()).unwrap(), None, 1, || 7);
    assert_eq!(published.subscribers, u64::from(CLIENTS * PATTERNS));
    for shard in &mut shards {
        assert_eq!(drain(shard, &Arc::new(Count::default())), [7; CLIENTS as usize / 2]);
        let lookups = shard.positions_visited();
        assert!(lookups <= (CLIENTS / 2 * PATTERNS) as usize, "{lookups} positions visited");
    }
}
