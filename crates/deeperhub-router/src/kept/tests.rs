//! Tests of kept values and suspended subscriptions: against a simple model, and of single
//! properties.

// The lint does not see that helpers outside of test functions belong to tests.
#![allow(clippy::unwrap_used)]

use crate::{
    Config, DeliveryFlow, DeliveryState, InterestChange, Keep, Outgoing, Published, Reach, Router, Shard,
    ShardId, Subscribed, SubscriberKey, TopicView,
};
use deeperhub_types::{Subscription, Topic};
use proptest::prelude::*;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

const SHARDS: u16 = 2;
const KEYS: SubscriberKey = 6;
const TOPICS: [&str; 3] = ["a", "a.b", "b.b"];
const NAMES: [&str; 6] = ["a", "a.b", "b.b", "a.*", ">", "*.b"];

/// All messages of a topic: the value that is kept for it.
#[derive(Debug, Default)]
struct Log {
    messages: Vec<Message>,
    is_followed: bool,
}

/// Number of followed topics of a stripe.
#[derive(Debug, Default)]
struct FollowedTopics(usize);

impl Keep for Log {
    type Stripe = FollowedTopics;

    fn is_spent(&self) -> bool {
        self.messages.is_empty()
    }

    fn on_followed(&mut self, is_followed: bool, stripe: &mut FollowedTopics) {
        assert_ne!(self.is_followed, is_followed, "a change is reported twice");
        self.is_followed = is_followed;
        stripe.0 = if is_followed { stripe.0 + 1 } else { stripe.0.checked_sub(1).unwrap() };
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Message {
    topic: &'static str,
    /// Position in the topic's log, counted from 1.
    offset: u64,
    /// Number among the messages of all topics.
    number: usize,
    reach: Reach,
}

type Client = (u16, SubscriberKey);

#[derive(Debug, Clone)]
enum Step {
    /// Starts `behind` messages before the end of the log.
    Subscribe {
        client: Client,
        topic: &'static str,
        behind: u64,
    },
    /// Subscribes to a topic or pattern without a look at the log.
    SubscribeLive {
        client: Client,
        name: &'static str,
    },
    Unsubscribe {
        client: Client,
        name: &'static str,
    },
    Remove {
        client: Client,
    },
    Publish {
        topic: &'static str,
        source: Option<u64>,
        /// The worker that publishes it; `None` for another thread.
        from: Option<u16>,
        reach: Reach,
        /// `true` if the function that prepares the message decides against it.
        is_refused: bool,
    },
    Suspend {
        client: Client,
        topic: &'static str,
    },
    /// Reads up to `limit` messages from the log, and resumes the subscription at its end.
    Replay {
        client: Client,
        topic: &'static str,
        limit: usize,
    },
    /// Pauses at every `pause`th delivery. The client `slow` takes no message, so that its
    /// subscriptions are suspended.
    Deliver {
        shard: u16,
        pause: usize,
        slow: Option<SubscriberKey>,
    },
    /// The worker dies, and another one replaces it.
    Replace {
        shard: u16,
    },
    /// Empties the log of a topic without subscribers.
    Forget {
        topic: &'static str,
    },
    /// Empties the logs of all topics without subscribers.
    ForgetAll,
}

fn step() -> impl Strategy<Value = Step> {
    let shard = || 0..SHARDS;
    let client = || (0..SHARDS, 0..KEYS);
    let topic = || proptest::sample::select(&TOPICS[..]);
    let name = || proptest::sample::select(&NAMES[..]);
    let reach = || prop_oneof![3 => Just(Reach::Matching), 1 => Just(Reach::Topic)];
    prop_oneof![
        12 => (client(), topic(), 0..5_u64)
            .prop_map(|(client, topic, behind)| Step::Subscribe { client, topic, behind }),
        5 => (client(), name()).prop_map(|(client, name)| Step::SubscribeLive { client, name }),
        5 => (client(), name()).prop_map(|(client, name)| Step::Unsubscribe { client, name }),
        1 => client().prop_map(|client| Step::Remove { client }),
        16 => (topic(), proptest::option::of(0..3_u64), proptest::option::of(shard()), reach(), 0..8_u32)
            .prop_map(|(topic, source, from, reach, chance)| {
                Step::Publish { topic, source, from, reach, is_refused: chance == 0 }
            }),
        5 => (client(), topic()).prop_map(|(client, topic)| Step::Suspend { client, topic }),
        12 => (client(), topic(), 0..6_usize)
            .prop_map(|(client, topic, limit)| Step::Replay { client, topic, limit }),
        12 => (shard(), 1..8_usize, proptest::option::of(0..KEYS))
            .prop_map(|(shard, pause, slow)| Step::Deliver { shard, pause, slow }),
        1 => shard().prop_map(|shard| Step::Replace { shard }),
        1 => topic().prop_map(|topic| Step::Forget { topic }),
        1 => Just(Step::ForgetAll),
    ]
}

/// A subscription to a topic.
#[derive(Debug)]
struct Cursor {
    /// Offset of the next message that the client gets, live or from the log.
    next: u64,
    is_suspended: bool,
    /// `true` if the client had another matching subscription meanwhile. Messages may then arrive
    /// through that one, so `next` means nothing.
    is_overlapped: bool,
}

struct Model {
    router: Router<Message, Log>,
    shards: Vec<Shard<Message, Log>>,
    /// Replaced workers, whose calls must change nothing.
    dead: Vec<(u16, Shard<Message, Log>)>,
    /// The subscriptions of each client, with the number of the first message that they match.
    subscriptions: BTreeMap<Client, BTreeMap<&'static str, usize>>,
    cursors: BTreeMap<(Client, &'static str), Cursor>,
    logs: BTreeMap<&'static str, Vec<Message>>,
    /// All messages, by number.
    published: Vec<Message>,
    /// The messages that each client got live, by number, in order.
    received: BTreeMap<Client, Vec<usize>>,
    /// Topics and patterns with subscribers, as reported to the observer.
    interests: Arc<Mutex<BTreeSet<String>>>,
}

fn subscription(name: &str) -> Subscription<'_> {
    Subscription::parse(name).unwrap()
}

fn topic(name: &str) -> Topic<'_> {
    Topic::parse(name).unwrap()
}

fn matches(name: &str, topic_name: &str) -> bool {
    subscription(name).matches(&topic(topic_name))
}

/// Returns `true` if subscribers of this topic or pattern get the message.
fn is_reached(name: &str, message: &Message) -> bool {
    match message.reach {
        Reach::Matching => matches(name, message.topic),
        Reach::Topic => name == message.topic,
    }
}

impl Model {
    fn new() -> Self {
        let router = Router::keeping(SHARDS, Config::default());
        let interests = Arc::new(Mutex::new(BTreeSet::new()));
        let observed = Arc::clone(&interests);
        router.observe_interest(move |name, interest| {
            let mut interests = observed.lock().unwrap();
            let changed = match interest {
                InterestChange::Gained => interests.insert(name.to_string()),
                InterestChange::Lost => interests.remove(&**name),
            };
            assert!(changed, "{interest:?} of {name} is reported twice");
        });
        let shards = (0..SHARDS).map(|shard| router.attach(ShardId(shard))).collect();
        Self {
            router,
            shards,
            dead: Vec::new(),
            subscriptions: BTreeMap::new(),
            cursors: BTreeMap::new(),
            logs: TOPICS.into_iter().map(|topic| (topic, Vec::new())).collect(),
            published: Vec::new(),
            received: BTreeMap::new(),
            interests,
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Subscribe { client, topic, behind } => self.subscribe(client, topic, behind),
            Step::SubscribeLive { client, name } => {
                let subscribed = self.shards[usize::from(client.0)].subscribe(client.1, &subscription(name));
                let top = self.logs.get(name).map_or(0, |log| log.len() as u64);
                self.add(client, name, subscribed, top, DeliveryState::Live);
            }
            Step::Unsubscribe { client, name } => {
                let was_subscribed = self.subscriptions.entry(client).or_default().remove(name).is_some();
                self.cursors.remove(&(client, name));
                let shard = &mut self.shards[usize::from(client.0)];
                assert_eq!(shard.unsubscribe(client.1, &subscription(name)), was_subscribed);
            }
            Step::Remove { client } => {
                let removed = self.subscriptions.remove(&client).unwrap_or_default();
                self.cursors.retain(|(subscriber, _), _| *subscriber != client);
                let shard = &mut self.shards[usize::from(client.0)];
                assert_eq!(shard.remove_subscriber(client.1), removed.len());
                for dead in self.dead_workers(client.0) {
                    dead.remove_subscriber(client.1);
                }
            }
            Step::Publish { topic, source, from, reach, is_refused } => {
                let offset = self.logs[topic].len() as u64 + 1;
                let message = Message { topic, offset, number: self.published.len(), reach };
                self.publish(message, source, from, is_refused);
            }
            Step::Suspend { client, topic: name } => {
                let shard = &mut self.shards[usize::from(client.0)];
                let cursor = self.cursors.get_mut(&(client, name));
                assert_eq!(shard.suspend(client.1, &topic(name)), cursor.is_some());
                if let Some(cursor) = cursor {
                    cursor.is_suspended = true;
                }
                for dead in self.dead_workers(client.0) {
                    dead.suspend(client.1, &topic(name));
                }
            }
            Step::Replay { client, topic, limit } => self.replay(client, topic, limit),
            Step::Deliver { shard, pause, slow } => {
                self.deliver(shard, pause, slow);
            }
            Step::Replace { shard } => self.replace(shard),
            Step::Forget { topic: name } => {
                if self.subscribers(name) == 0 {
                    let log =
                        self.router.update_kept(&topic(name), |_, log, _| std::mem::take(&mut log.messages));
                    assert_eq!(log, std::mem::take(self.logs.get_mut(name).unwrap()));
                }
            }
            Step::ForgetAll => self.forget_all(),
        }
        self.check_tables();
    }

    fn subscribe(&mut self, client: Client, name: &'static str, behind: u64) {
        let (expected, subscribers) = (&self.logs[name], self.subscribers(name));
        let judge = |judged: TopicView<'_>, log: &mut Log, _: &mut FollowedTopics| {
            assert_eq!(log.is_followed, subscribers > 0);
            assert_eq!(
                (&**judged.name(), judged.subscribers(), &log.messages),
                (name, subscribers, expected)
            );
            let top = log.messages.len() as u64;
            let start = top.saturating_sub(behind);
            let state = if start == top { DeliveryState::Live } else { DeliveryState::Suspended };
            (state, (start, state))
        };
        let shard = &mut self.shards[usize::from(client.0)];
        let (subscribed, (start, state)) = shard.subscribe_at(client.1, &topic(name), judge);
        self.add(client, name, subscribed, start, state);
    }

    /// Adds a subscription after the message with offset `start`.
    fn add(
        &mut self,
        client: Client,
        name: &'static str,
        subscribed: Subscribed,
        start: u64,
        state: DeliveryState,
    ) {
        let subscriptions = self.subscriptions.entry(client).or_default();
        let is_new = !subscriptions.contains_key(name);
        assert_eq!(subscribed == Subscribed::New, is_new);
        if !is_new {
            return;
        }
        for &other in subscriptions.keys() {
            if let Some(cursor) = self.cursors.get_mut(&(client, other)) {
                cursor.is_overlapped |= matches(name, other);
            }
        }
        if TOPICS.contains(&name) {
            let is_overlapped = subscriptions.keys().any(|other| matches(other, name));
            let is_suspended = state == DeliveryState::Suspended;
            self.cursors.insert((client, name), Cursor { next: start + 1, is_suspended, is_overlapped });
        }
        subscriptions.insert(name, self.published.len());
    }

    fn publish(&mut self, message: Message, source: Option<u64>, from: Option<u16>, is_refused: bool) {
        let name = message.topic;
        let mut subscribers = 0;
        let mut shards = BTreeSet::new();
        for (client, names) in &self.subscriptions {
            for subscribed in names.keys().filter(|subscribed| is_reached(subscribed, &message)) {
                subscribers += 1;
                let cursor = self.cursors.get(&(*client, *subscribed));
                if cursor.is_none_or(|cursor| !cursor.is_suspended) {
                    shards.insert(client.0);
                }
            }
        }
        let made = Cell::new(0);
        let prepare = |prepared: TopicView<'_>, log: &mut Log, _: &mut FollowedTopics| {
            assert_eq!((&**prepared.name(), log.messages.len() as u64 + 1), (name, message.offset));
            assert_eq!(log.is_followed, prepared.subscribers() > 0);
            if is_refused {
                return (None, ());
            }
            log.messages.push(message);
            let made = &made;
            let make = move || {
                made.set(made.get() + 1);
                message
            };
            (Some(Outgoing { bytes: 10, make, reach: message.reach }), ())
        };
        let (published, ()) = match from {
            Some(shard) => self.shards[usize::from(shard)].publish_kept(&topic(name), source, prepare),
            None => self.router.publish_kept(&topic(name), source, prepare),
        };
        if is_refused {
            assert_eq!((published.subscribers, made.get()), (0, 0));
            return;
        }
        assert_eq!((published.subscribers, made.get()), (subscribers, shards.len()));
        self.published.push(message);
        self.logs.get_mut(name).unwrap().push(message);
    }

    fn replay(&mut self, client: Client, name: &'static str, limit: usize) {
        let cursor = self.cursors.get_mut(&(client, name));
        let next = cursor.as_ref().map_or(1, |cursor| cursor.next);
        let shard = &mut self.shards[usize::from(client.0)];
        let replayed = shard.resume_at(client.1, &topic(name), |_, log, _| {
            let rest = log.messages.get(next as usize - 1..).unwrap();
            let part = rest.get(..limit).unwrap_or(rest).to_vec();
            let state = if part.len() == rest.len() { DeliveryState::Live } else { DeliveryState::Suspended };
            (state, (state, part))
        });
        let was_suspended = cursor.as_ref().is_some_and(|cursor| cursor.is_suspended);
        assert_eq!(replayed.is_some(), was_suspended);
        if let (Some(cursor), Some((state, part))) = (cursor, replayed) {
            for message in part {
                assert_eq!((message.topic, message.offset), (name, cursor.next));
                cursor.next += 1;
            }
            cursor.is_suspended = state == DeliveryState::Suspended;
        }
        for dead in self.dead_workers(client.0) {
            let resumed = dead.resume_at(client.1, &topic(name), |_, _, _| (DeliveryState::Live, ()));
            assert_eq!(resumed, None);
        }
    }

    fn dead_workers(&mut self, shard: u16) -> impl Iterator<Item = &mut Shard<Message, Log>> {
        self.dead.iter_mut().filter(move |(dead, _)| *dead == shard).map(|(_, dead)| dead)
    }

    /// Delivers and returns `true` if there may be more.
    fn deliver(&mut self, shard: u16, pause: usize, slow: Option<SubscriberKey>) -> bool {
        let mut deliveries = 0;
        // The first message of each topic that the slow client did not take.
        let mut refused = BTreeMap::new();
        let Self { shards, subscriptions, cursors, received, .. } = self;
        let mut cx = Context::from_waker(Waker::noop());
        let more = shards[usize::from(shard)].poll_deliver(&mut cx, |key, message| {
            let client = (shard, key);
            let mut names = subscriptions[&client].iter();
            assert!(
                names.any(|(name, start)| is_reached(name, message) && *start <= message.number),
                "{client:?} got {message:?} without a subscription"
            );
            if let Some(cursor) = cursors.get_mut(&(client, message.topic))
                && !cursor.is_overlapped
            {
                assert!(!cursor.is_suspended, "{client:?} got {message:?} while it was suspended");
                if slow == Some(key) {
                    refused.entry(message.topic).or_insert(message.offset);
                    return DeliveryFlow::Continue;
                }
                assert_eq!(message.offset, cursor.next, "{client:?} got {message:?}");
                cursor.next += 1;
            }
            let received = received.entry(client).or_default();
            assert!(!received.contains(&message.number), "{client:?} got {message:?} twice");
            received.push(message.number);
            deliveries += 1;
            if deliveries % pause == 0 { DeliveryFlow::Pause } else { DeliveryFlow::Continue }
        });
        for (name, offset) in refused {
            let key = slow.unwrap();
            let cursor = cursors.get_mut(&((shard, key), name)).unwrap();
            assert_eq!(cursor.next, offset);
            cursor.is_suspended = true;
            assert!(shards[usize::from(shard)].suspend(key, &topic(name)));
        }
        more.is_ready()
    }

    fn replace(&mut self, shard: u16) {
        let index = usize::from(shard);
        let mut dead = std::mem::replace(&mut self.shards[index], self.router.attach(ShardId(shard)));
        for key in 0..2 {
            let judge = |_: TopicView<'_>, log: &mut Log, _: &mut FollowedTopics| {
                (DeliveryState::Live, log.messages.len())
            };
            let (_, seen) = dead.subscribe_at(key, &topic("a"), judge);
            assert_eq!(seen, self.logs["a"].len());
        }
        self.dead.push((shard, dead));
        self.subscriptions.retain(|client, _| client.0 != shard);
        self.cursors.retain(|(client, _), _| client.0 != shard);
    }

    fn forget_all(&mut self) {
        let mut seen = BTreeMap::new();
        for stripe in self.router.stripes() {
            self.router.visit_kept(stripe, |topic, log, _| {
                assert_eq!(
                    seen.insert(topic.name().to_string(), (topic.subscribers(), log.messages.len())),
                    None
                );
                if topic.subscribers() == 0 {
                    log.messages.clear();
                }
            });
        }
        let mut expected = BTreeMap::new();
        for name in TOPICS {
            let subscribers = self.subscribers(name);
            let log = self.logs.get_mut(name).unwrap();
            if !log.is_empty() {
                expected.insert(name.to_owned(), (subscribers, log.len()));
            }
            if subscribers == 0 {
                log.clear();
            }
        }
        assert_eq!(seen, expected);
    }

    fn subscribers(&self, name: &str) -> u64 {
        self.subscriptions.values().filter(|names| names.contains_key(name)).count() as u64
    }

    fn check_tables(&self) {
        let counts: BTreeMap<_, _> = NAMES.map(|name| (name, self.subscribers(name))).into();
        for (name, count) in &counts {
            assert_eq!(self.router.subscriber_count(&subscription(name)), *count, "{name}");
        }
        let followed: usize = self
            .router
            .stripes()
            .map(|stripe| self.router.update_stripe(stripe, |followed| followed.0).unwrap())
            .sum();
        assert_eq!(followed, TOPICS.iter().filter(|name| counts[*name] > 0).count());
        let subscribed: Vec<_> = counts
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(name, count)| (name.to_string(), *count))
            .collect();
        assert_eq!(self.router.topic_count(), subscribed.len() as u64);
        assert_eq!(self.router.list_names_after("", usize::MAX), subscribed);
        let interests = self.interests.lock().unwrap();
        assert!(interests.iter().eq(subscribed.iter().map(|(name, _)| name)), "{interests:?}");
        let entries = TOPICS.iter().filter(|name| counts[*name] > 0 || !self.logs[*name].is_empty());
        assert_eq!(self.router.entry_count(), entries.count());
    }

    /// Delivers and replays the rest, and checks what each client got.
    fn check_all(&mut self) {
        let suspended: Vec<_> =
            self.cursors.iter().filter(|(_, cursor)| cursor.is_suspended).map(|(key, _)| *key).collect();
        for (client, topic) in suspended {
            self.apply(Step::Replay { client, topic, limit: usize::MAX });
        }
        for shard in 0..SHARDS {
            let mut calls = 0;
            while self.deliver(shard, 2, None) {
                calls += 1;
                assert!(calls < 10_000, "delivery does not end");
            }
        }
        for ((client, topic), cursor) in &self.cursors {
            assert!(!cursor.is_suspended);
            let top = self.logs[topic].len() as u64;
            assert!(cursor.is_overlapped || cursor.next == top + 1, "{client:?} misses messages of {topic}");
        }
        let nothing = Vec::new();
        for (client, names) in &self.subscriptions {
            let received = self.received.get(client).unwrap_or(&nothing);
            for (name, start) in names.iter().filter(|(name, _)| !TOPICS.contains(name)) {
                for message in self.published.iter().skip(*start) {
                    assert!(
                        !is_reached(name, message) || received.contains(&message.number),
                        "{client:?} did not get {message:?} through {name}"
                    );
                }
            }
        }
        for (client, received) in &self.received {
            for topic in TOPICS {
                let numbers = received.iter().filter(|number| self.published[**number].topic == topic);
                assert!(numbers.is_sorted(), "{client:?} got messages of {topic} in another order");
            }
        }
        for shard in 0..SHARDS {
            for key in 0..KEYS {
                self.apply(Step::Remove { client: (shard, key) });
            }
        }
        self.apply(Step::ForgetAll);
        assert_eq!(self.router.entry_count(), 0);
        assert!(!self.router.is_congested());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn live_and_replayed_messages_make_up_the_log(steps in proptest::collection::vec(step(), 0..160)) {
        let mut model = Model::new();
        for step in steps {
            model.apply(step);
        }
        model.check_all();
    }
}

/// Appends a message to the log of topic `a`, and publishes it.
fn publish(router: &Router<u32, Option<Vec<u32>>>, message: u32) -> Published {
    let prepare = |_: TopicView<'_>, log: &mut Option<Vec<u32>>, (): &mut ()| {
        log.get_or_insert_default().push(message);
        (Some(Outgoing { bytes: 1, make: move || message, reach: Reach::Matching }), ())
    };
    router.publish_kept(&topic("a"), None, prepare).0
}

/// Delivers up to the first pause. Pauses after each message for which `pauses` returns `true`.
fn deliver(
    shard: &mut Shard<u32, Option<Vec<u32>>>,
    mut pauses: impl FnMut(SubscriberKey) -> bool,
) -> Vec<(SubscriberKey, u32)> {
    let mut delivered = Vec::new();
    let _ = shard.poll_deliver(&mut Context::from_waker(Waker::noop()), |key, message| {
        delivered.push((key, *message));
        if pauses(key) { DeliveryFlow::Pause } else { DeliveryFlow::Continue }
    });
    delivered
}

#[test]
fn a_suspended_subscription_gets_nothing_that_was_published_before() {
    let router = Router::keeping(1, Config::default());
    let mut shard = router.attach(ShardId(0));
    for key in [0, 1] {
        shard.subscribe(key, &subscription("a"));
    }
    assert_eq!(publish(&router, 1).subscribers, 2);
    assert!(shard.suspend(0, &topic("a")) && shard.suspend(0, &topic("a")));
    assert!(!shard.suspend(2, &topic("a")) && !shard.suspend(0, &topic("b")));
    assert_eq!(publish(&router, 2).subscribers, 2, "a suspended subscription counts");
    assert_eq!(deliver(&mut shard, |_| false), [(1, 1), (1, 2)]);

    publish(&router, 3);
    let read = |state| move |_: TopicView<'_>, log: &mut Option<Vec<u32>>, (): &mut ()| (state, log.clone());
    let log = shard.resume_at(0, &topic("a"), read(DeliveryState::Suspended));
    assert_eq!(log, Some(Some(vec![1, 2, 3])));
    let log = shard.resume_at(0, &topic("a"), read(DeliveryState::Live));
    assert_eq!(log, Some(Some(vec![1, 2, 3])));
    assert_eq!(shard.resume_at(0, &topic("a"), read(DeliveryState::Live)), None, "it is not suspended");
    assert_eq!(shard.resume_at(2, &topic("a"), read(DeliveryState::Live)), None, "nobody is subscribed");
    publish(&router, 4);
    assert_eq!(deliver(&mut shard, |_| false), [(1, 3), (0, 4), (1, 4)]);
}

#[test]
fn a_client_suspended_during_a_fan_out_gets_no_message_twice() {
    let router = Router::keeping(1, Config::default());
    let mut shard = router.attach(ShardId(0));
    for name in ["a", "*"] {
        for key in 0..4 {
            shard.subscribe(key, &subscription(name));
        }
    }
    publish(&router, 1);
    assert_eq!(deliver(&mut shard, |key| key == 0), [(0, 1)]);
    // The fan-out goes on with the second list, in which the client is subscribed too.
    shard.suspend(0, &topic("a"));
    assert_eq!(deliver(&mut shard, |_| false), [(1, 1), (2, 1), (3, 1)]);
    publish(&router, 2);
    let mut delivered = deliver(&mut shard, |_| false);
    delivered.sort_unstable();
    assert_eq!(delivered, [(0, 2), (1, 2), (2, 2), (3, 2)], "the pattern is not suspended");
}

#[test]
fn a_plain_publish_leaves_the_kept_value_alone() {
    let router = Router::<u32, Option<Vec<u32>>>::keeping(1, Config::default());
    let mut shard = router.attach(ShardId(0));
    router.publish(&topic("a"), None, 1, || unreachable!("nobody is subscribed"));
    assert_eq!(router.entry_count(), 0);
    publish(&router, 1);
    shard.subscribe(0, &subscription("a"));
    router.publish(&topic("a"), None, 1, || 2);
    assert_eq!(deliver(&mut shard, |_| false), [(0, 2)]);
    assert_eq!(router.update_kept(&topic("a"), |_, log, ()| log.take()), Some(vec![1]));
}

#[test]
fn a_value_stays_when_a_worker_is_replaced() {
    let router = Router::keeping(1, Config::default());
    let mut shard = router.attach(ShardId(0));
    shard.subscribe(0, &subscription("a"));
    publish(&router, 1);
    let mut next = router.attach(ShardId(0));
    assert_eq!((router.topic_count(), router.entry_count()), (0, 1));
    let read = |_: TopicView<'_>, log: &mut Option<Vec<u32>>, (): &mut ()| (DeliveryState::Live, log.clone());
    assert_eq!(next.subscribe_at(0, &topic("a"), read), (Subscribed::New, Some(vec![1])));
    assert_eq!(deliver(&mut next, |_| false), []);
}

#[test]
fn a_panic_leaves_no_subscription() {
    let router = Router::<u32, Option<Vec<u32>>>::keeping(1, Config::default());
    let mut shard = router.attach(ShardId(0));
    let panics = |shard: &mut Shard<u32, Option<Vec<u32>>>| {
        let judge = |_: TopicView<'_>, log: &mut Option<Vec<u32>>, (): &mut ()| -> (DeliveryState, ()) {
            log.get_or_insert_default().push(9);
            panic!("a function fails in a test")
        };
        let subscribe = std::panic::AssertUnwindSafe(|| shard.subscribe_at(0, &topic("a"), judge));
        std::panic::catch_unwind(subscribe).unwrap_err();
        assert_eq!((shard.subscription_count(0), router.topic_count()), (0, 0));
    };
    panics(&mut shard);
    assert_eq!(router.entry_count(), 0, "the value is gone with the topic");
    publish(&router, 1);
    panics(&mut shard);
    assert_eq!(router.update_kept(&topic("a"), |_, log, ()| log.clone()), Some(vec![1, 9]));
    shard.subscribe(0, &subscription("a"));
    publish(&router, 2);
    assert_eq!(deliver(&mut shard, |_| false), [(0, 2)]);
}

/// Counts the drops while the stripe of topic `a` is locked.
struct CountLocked {
    router: Router<u32, Option<Self>>,
    dropped_locked: Arc<AtomicUsize>,
}

impl Drop for CountLocked {
    fn drop(&mut self) {
        self.dropped_locked.fetch_add(usize::from(self.router.is_locked("a")), Ordering::Relaxed);
    }
}

#[test]
fn evicted_values_are_dropped_after_the_lock() {
    let router = Router::<u32, Option<CountLocked>>::keeping(1, Config::default());
    let dropped_locked = Arc::new(AtomicUsize::new(0));
    let value = || CountLocked { router: router.clone(), dropped_locked: Arc::clone(&dropped_locked) };
    let topic = topic("a");
    for has_pattern in [false, true] {
        let mut shard = router.attach(ShardId(0));
        if has_pattern {
            shard.subscribe(5, &subscription("*"));
        }
        for _ in 0..2 {
            // The function that makes the message owns a value too.
            let owned = value();
            let make = move || {
                assert!(owned.router.is_locked("a"));
                1
            };
            router.publish_kept(&topic, None, |_, kept, ()| {
                let outgoing = Outgoing { bytes: 1, make, reach: Reach::Matching };
                (Some(outgoing), kept.replace(value()))
            });
            let (_, evicted) =
                shard.subscribe_at(0, &topic, |_, kept, ()| (DeliveryState::Suspended, kept.take()));
            assert!(evicted.is_some() && shard.suspend(0, &topic));
            let evicted =
                shard.resume_at(0, &topic, |_, kept, ()| (DeliveryState::Live, kept.replace(value())));
            assert!(evicted.is_some_and(|evicted| evicted.is_none()));
            drop(router.update_kept(&topic, |_, kept, ()| kept.replace(value())));
        }
    }
    drop(router.update_kept(&topic, |_, kept, ()| kept.take()));
    assert_eq!(dropped_locked.load(Ordering::Relaxed), 0);
}

#[test]
fn the_first_undelivered_message_of_a_client_is_found() {
    let router = Router::<u32>::new(1, Config::default());
    let mut shard = router.attach(ShardId(0));
    let (topic, other) = (Topic::parse("a").unwrap(), Topic::parse("b").unwrap());
    let publish = |topic: &Topic<'_>, message| router.publish(topic, None, 1, || message);
    let find = |shard: &Shard<u32>, key| shard.find_undelivered(key, &topic, |message| Some(*message));
    for key in 0..3 {
        shard.subscribe(key, &Subscription::parse("a").unwrap());
    }
    shard.subscribe(1, &Subscription::parse("*").unwrap());
    assert_eq!(find(&shard, 0), None);
    publish(&other, 1);
    publish(&topic, 2);
    publish(&topic, 3);
    shard.subscribe(3, &Subscription::parse("a").unwrap());
    assert_eq!([0, 1, 2, 3].map(|key| find(&shard, key)), [Some(2), Some(2), Some(2), None]);
    assert_eq!(shard.find_undelivered(0, &topic, |message| (*message > 2).then_some(*message)), Some(3));

    // While deliveries pause, each client waits for what it has not got.
    let mut received: BTreeMap<SubscriberKey, Vec<u32>> = BTreeMap::new();
    let mut cx = Context::from_waker(Waker::noop());
    let mut is_pending = false;
    while !is_pending {
        is_pending = shard
            .poll_deliver(&mut cx, |key, message| {
                received.entry(key).or_default().push(*message);
                DeliveryFlow::Pause
            })
            .is_pending();
        for key in 0..3 {
            let got = received.get(&key).map_or(&[][..], Vec::as_slice);
            let expected = [2, 3].into_iter().find(|message| !got.contains(message));
            assert_eq!(find(&shard, key), expected, "client {key} after {got:?}");
        }
    }
    assert_eq!(received[&2], [2, 3]);
}

#[test]
fn a_message_that_waits_for_a_paused_one_is_found() {
    let router = Router::<u32>::new(1, Config::default());
    let mut shard = router.attach(ShardId(0));
    let (topic, other) = (Topic::parse("a").unwrap(), Topic::parse("b").unwrap());
    for key in [0, 1] {
        shard.subscribe(key, &Subscription::parse("a").unwrap());
        shard.subscribe(key, &Subscription::parse("b").unwrap());
    }
    for (topic, message) in [(&topic, 1), (&topic, 2), (&other, 3)] {
        router.publish(topic, None, 1, || message);
    }
    // The third call puts off message 2, since message 1 counts as running, and delivers message 3.
    let mut delivered = Vec::new();
    for _ in 0..3 {
        let mut deliver = |key, message: &u32| {
            delivered.push((key, *message));
            DeliveryFlow::Pause
        };
        assert!(shard.poll_deliver(&mut Context::from_waker(Waker::noop()), &mut deliver).is_ready());
    }
    assert_eq!(delivered, [(0, 1), (1, 1), (0, 3)]);
    let find = |key| shard.find_undelivered(key, &topic, |message| Some(*message));
    assert_eq!([find(0), find(1)], [Some(2), Some(2)]);
}
