//! Tests of the value that the topics of a stripe share, and of the calls that tell a topic's value
//! whether the topic has subscribers.

// The lint does not see that helpers outside of test functions belong to tests.
#![allow(clippy::unwrap_used)]

use crate::{Config, DeliveryState, Keep, Router, Shard, ShardId, TopicView, WORKER_SUBSCRIBER};
use deeperhub_types::{Subscription, Topic};
use std::collections::BTreeMap;

/// Changes that values of topics reported to their stripe, in order, by name of the topic.
#[derive(Debug, Default)]
struct Changes {
    /// Number of the stripe.
    stripe: usize,
    /// The names are those that the value had at the time of the change.
    reported: Vec<(String, bool)>,
}

/// A name that a test gave to a topic. The value is spent while it has none.
#[derive(Debug, Default)]
struct Name(String);

impl Keep for Name {
    type Stripe = Changes;

    fn is_spent(&self) -> bool {
        self.0.is_empty()
    }

    fn on_followed(&mut self, is_followed: bool, stripe: &mut Changes) {
        stripe.reported.push((self.0.clone(), is_followed));
        if !is_followed && self.0.starts_with("brief") {
            self.0.clear();
        }
    }
}

fn topic(name: &str) -> Topic<'_> {
    Topic::parse(name).unwrap()
}

fn subscription(name: &str) -> Subscription<'_> {
    Subscription::parse(name).unwrap()
}

fn router() -> (Router<u32, Name>, [Shard<u32, Name>; 2]) {
    let router =
        Router::keeping_with(2, Config::default(), |stripe| Changes { stripe, ..Changes::default() });
    let shards = [0, 1].map(|shard| router.attach(ShardId(shard)));
    (router, shards)
}

/// Keeps a name for a topic, its own by default.
fn keep(router: &Router<u32, Name>, name: &str) {
    router.update_kept(&topic(name), |topic, kept, _| kept.0 = topic.name().to_string());
}

/// Takes the changes that were reported to the stripe of a topic since the last call.
fn take_changes(router: &Router<u32, Name>, name: &str) -> Vec<(String, bool)> {
    router.update_kept(&topic(name), |_, _, stripe| std::mem::take(&mut stripe.reported))
}

fn change(name: &str, is_followed: bool) -> Vec<(String, bool)> {
    vec![(name.to_owned(), is_followed)]
}

#[test]
fn topics_of_one_stripe_share_a_value() {
    let (router, [mut shard, _other]) = router();
    let names: Vec<_> = (0..300).map(|number| format!("topic.{number}")).collect();
    let mut by_stripe = BTreeMap::<usize, Vec<(String, bool)>>::new();
    for name in &names {
        let stripe = router.update_kept(&topic(name), |_, kept, changes| {
            kept.0.clone_from(name);
            changes.stripe
        });
        shard.subscribe(0, &subscription(name));
        by_stripe.entry(stripe).or_default().push((name.clone(), true));
    }
    assert!(by_stripe.len() > 1, "there are more topics than stripes");
    for stripe in router.stripes() {
        let reported =
            router.update_stripe(stripe, |changes| (changes.stripe, std::mem::take(&mut changes.reported)));
        assert_eq!(reported, Some((stripe, by_stripe.remove(&stripe).unwrap_or_default())));
        router.visit_kept(stripe, |visited, kept, changes| {
            assert_eq!((&**visited.name(), changes.stripe), (&*kept.0, stripe));
            changes.reported.push((kept.0.clone(), false));
        });
    }
    // Each function that gets a topic's value gets the same value of the stripe.
    for name in &names {
        let has_name = |changes: &Changes| changes.reported.iter().any(|(visited, _)| visited == name);
        assert!(router.update_kept(&topic(name), |_, _, changes| has_name(changes)));
        let judge = |_: TopicView<'_>, _: &mut Name, changes: &mut Changes| {
            (DeliveryState::Suspended, has_name(changes))
        };
        assert!(shard.subscribe_at(1, &topic(name), judge).1);
        assert_eq!(shard.resume_at(1, &topic(name), judge), Some(true));
        let prepare = |_: TopicView<'_>, _: &mut Name, changes: &mut Changes| {
            (None::<crate::Outgoing<fn() -> u32>>, has_name(changes))
        };
        assert!(router.publish_kept(&topic(name), None, prepare).1);
        assert!(shard.publish_kept(&topic(name), None, prepare).1);
    }
}

#[test]
fn no_call_happens_for_a_stripe_that_does_not_exist() {
    let (router, _shards) = router();
    let end = router.stripes().end;
    for stripe in [end, usize::MAX] {
        assert_eq!(router.update_stripe(stripe, |_| unreachable!("there is no such stripe")), None::<()>);
    }
    assert_eq!(router.update_stripe(end - 1, |changes| changes.stripe), Some(end - 1));
}

#[test]
fn the_first_subscriber_and_the_last_one_are_reported() {
    let (router, [mut first, mut second]) = router();
    keep(&router, "a");
    first.subscribe(0, &subscription("a"));
    assert_eq!(take_changes(&router, "a"), change("a", true));
    // Neither more subscribers nor patterns are a change.
    first.subscribe(0, &subscription("a"));
    second.subscribe(0, &subscription("a"));
    second.subscribe_at(1, &topic("a"), |_, _, _| (DeliveryState::Suspended, ()));
    second.subscribe(2, &subscription("*"));
    assert!(first.unsubscribe(0, &subscription("a")));
    assert!(second.suspend(0, &topic("a")) && second.unsubscribe(0, &subscription("a")));
    assert!(second.resume_at(1, &topic("a"), |_, _, _| (DeliveryState::Live, ())).is_some());
    assert_eq!(take_changes(&router, "a"), []);

    assert!(second.unsubscribe(1, &subscription("a")));
    assert_eq!(take_changes(&router, "a"), change("a", false));
    assert!(!second.unsubscribe(1, &subscription("a")) && second.unsubscribe(2, &subscription("*")));
    assert_eq!(take_changes(&router, "a"), []);
}

#[test]
fn a_first_subscriber_is_reported_after_the_look_at_the_kept_value() {
    let (router, [mut shard, _other]) = router();
    let judge = |_: TopicView<'_>, kept: &mut Name, changes: &mut Changes| {
        assert_eq!(changes.reported, [], "the topic has no subscriber yet");
        kept.0.push_str("judged");
        (DeliveryState::Live, ())
    };
    shard.subscribe_at(0, &topic("a"), judge);
    assert_eq!(take_changes(&router, "a"), change("judged", true));
    assert_eq!(shard.remove_subscriber(0), 1);
    assert_eq!(take_changes(&router, "a"), change("judged", false));
    // The topic still has an entry now.
    shard.subscribe_at(0, &topic("a"), judge);
    assert_eq!(take_changes(&router, "a"), change("judgedjudged", true));
}

#[test]
fn a_topic_for_which_nothing_is_kept_is_reported_too() {
    let (router, [mut shard, _other]) = router();
    for topic in [topic("a"), Topic::reserved("a")] {
        let take = || router.update_kept(&topic, |_, _, stripe| std::mem::take(&mut stripe.reported));
        shard.subscribe(WORKER_SUBSCRIBER, &Subscription::Topic(topic.borrow()));
        assert_eq!(take(), change("", true));
        assert_eq!(shard.remove_subscriber(WORKER_SUBSCRIBER), 1);
        assert_eq!(take(), change("", false));
        assert_eq!(router.entry_count(), 0);
    }
}

#[test]
fn a_replaced_worker_reports_each_topic_that_loses_its_last_subscriber() {
    let (router, [mut first, mut second]) = router();
    for name in ["a", "b", "brief.c"] {
        keep(&router, name);
        first.subscribe(0, &subscription(name));
    }
    first.subscribe(1, &subscription("a"));
    second.subscribe(0, &subscription("b"));
    for name in ["a", "b", "brief.c"] {
        take_changes(&router, name);
    }
    let mut replacement = router.attach(ShardId(0));
    assert_eq!(router.entry_count(), 2, "the call comes before the decision about the entry");
    let all = |router: &Router<u32, Name>| {
        let mut all: Vec<_> = router
            .stripes()
            .filter_map(|stripe| {
                router.update_stripe(stripe, |changes| std::mem::take(&mut changes.reported))
            })
            .flatten()
            .collect();
        all.sort_unstable();
        all
    };
    assert_eq!(all(&router), [change("a", false), change("brief.c", false)].concat());
    // Calls of the replaced worker are no change.
    first.subscribe(2, &subscription("a"));
    first.remove_subscriber(0);
    first.subscribe_at(3, &topic("brief.c"), |_, _, _| (DeliveryState::Live, ()));
    drop(first);
    assert_eq!(all(&router), []);

    replacement.subscribe(0, &subscription("b"));
    assert_eq!(second.remove_subscriber(0), 1);
    assert_eq!(all(&router), []);
    drop(replacement);
    assert_eq!(all(&router), [], "a worker that ends keeps its subscriptions until it is replaced");
    let _replacement = router.attach(ShardId(0));
    assert_eq!(all(&router), change("b", false));
}

#[test]
fn a_value_that_becomes_spent_with_the_last_subscriber_is_removed() {
    let (router, [mut shard, _other]) = router();
    keep(&router, "brief");
    keep(&router, "kept");
    for name in ["brief", "kept"] {
        shard.subscribe(0, &subscription(name));
    }
    assert_eq!((shard.remove_subscriber(0), router.entry_count()), (2, 1));
    assert_eq!(router.update_kept(&topic("kept"), |_, kept, _| kept.0.clone()), "kept");
}

#[test]
fn a_panic_reports_no_subscriber() {
    let (router, [mut shard, _other]) = router();
    let panics = |shard: &mut Shard<u32, Name>| {
        let judge = |_: TopicView<'_>, _: &mut Name, _: &mut Changes| -> (DeliveryState, ()) {
            panic!("a function fails in a test")
        };
        let subscribe = std::panic::AssertUnwindSafe(|| shard.subscribe_at(0, &topic("a"), judge));
        std::panic::catch_unwind(subscribe).unwrap_err();
        assert_eq!((take_changes(&router, "a"), router.topic_count()), (Vec::new(), 0));
    };
    panics(&mut shard);
    keep(&router, "a");
    panics(&mut shard);
    shard.subscribe(0, &subscription("a"));
    assert_eq!(take_changes(&router, "a"), change("a", true));
    let update = std::panic::AssertUnwindSafe(|| {
        router.update_kept(&topic("a"), |_, _, _| panic!("a function fails in a test"))
    });
    std::panic::catch_unwind(update).unwrap_err();
    assert_eq!(take_changes(&router, "a"), []);
    assert_eq!(shard.remove_subscriber(0), 1);
    assert_eq!(take_changes(&router, "a"), change("a", false));
}
