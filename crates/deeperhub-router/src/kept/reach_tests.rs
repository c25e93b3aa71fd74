//! Tests of messages that reach only subscribers of exactly their topic.

// The lint does not see that helpers outside of test functions belong to tests.
#![allow(clippy::unwrap_used)]

use crate::{Config, DeliveryFlow, DeliveryState, Outgoing, Reach, Router, Shard, ShardId, SubscriberKey};
use deeperhub_types::{Subscription, Topic};
use std::task::{Context, Waker};

const EXACT: SubscriberKey = 0;
const PATTERN: SubscriberKey = 1;
const BOTH: SubscriberKey = 2;

fn topic(name: &str) -> Topic<'_> {
    Topic::parse(name).unwrap()
}

fn subscribe(shard: &mut Shard<u32>, key: SubscriberKey, names: &[&str]) {
    for name in names {
        shard.subscribe(key, &Subscription::parse(*name).unwrap());
    }
}

/// Publishes to `a.b`, and returns the number of reached subscribers.
fn publish(router: &Router<u32>, message: u32, reach: Reach) -> u64 {
    let outgoing = Outgoing { bytes: 1, make: move || message, reach };
    router.publish_kept(&topic("a.b"), None, |_, (), ()| (Some(outgoing), ())).0.subscribers
}

/// Delivers everything, and returns the deliveries in the order of messages and clients.
fn deliver(shard: &mut Shard<u32>) -> Vec<(u32, SubscriberKey)> {
    let mut delivered = Vec::new();
    let mut cx = Context::from_waker(Waker::noop());
    while shard
        .poll_deliver(&mut cx, |key, message| {
            delivered.push((*message, key));
            DeliveryFlow::Continue
        })
        .is_ready()
    {}
    delivered.sort_unstable();
    delivered
}

fn router_with_two_shards() -> (Router<u32>, [Shard<u32>; 2]) {
    let router = Router::new(2, Config::default());
    let shards = [0, 1].map(|shard| router.attach(ShardId(shard)));
    (router, shards)
}

#[test]
fn only_subscribers_of_exactly_the_topic_are_reached() {
    let (router, mut shards) = router_with_two_shards();
    for shard in &mut shards {
        subscribe(shard, EXACT, &["a.b"]);
        subscribe(shard, PATTERN, &["a.*", ">"]);
        subscribe(shard, BOTH, &["a.*", "a.b", "*.b"]);
    }
    assert_eq!(publish(&router, 1, Reach::Topic), 4);
    assert_eq!(publish(&router, 2, Reach::Matching), 12);
    assert_eq!(publish(&router, 3, Reach::Topic), 4);
    let expected = [(1, EXACT), (1, BOTH), (2, EXACT), (2, PATTERN), (2, BOTH), (3, EXACT), (3, BOTH)];
    assert_eq!(shards.each_mut().map(deliver), [expected, expected]);
}

#[test]
fn a_worker_with_only_patterns_gets_nothing() {
    let (router, [mut first, mut second]) = router_with_two_shards();
    subscribe(&mut second, PATTERN, &["a.*"]);
    assert_eq!(publish(&router, 1, Reach::Topic), 0, "nobody is subscribed to the topic itself");
    subscribe(&mut first, EXACT, &["a.b"]);
    assert_eq!(publish(&router, 2, Reach::Topic), 1);
    assert_eq!(deliver(&mut second), []);
    assert_eq!(deliver(&mut first), [(2, EXACT)]);
}

#[test]
fn both_reaches_are_the_same_without_patterns() {
    let (router, mut shards) = router_with_two_shards();
    for shard in &mut shards {
        subscribe(shard, EXACT, &["a.b", "a.c"]);
    }
    for (message, reach) in [(1, Reach::Topic), (2, Reach::Matching)] {
        assert_eq!(publish(&router, message, reach), 2);
    }
    assert_eq!(shards.each_mut().map(deliver), [[(1, EXACT), (2, EXACT)]; 2]);
}

#[test]
fn a_suspended_subscription_gets_nothing_through_a_pattern_of_its_client() {
    let (router, [mut shard, _other]) = router_with_two_shards();
    subscribe(&mut shard, BOTH, &["a.b", "a.*"]);
    assert!(shard.suspend(BOTH, &topic("a.b")));
    assert_eq!(publish(&router, 1, Reach::Topic), 1, "a suspended subscription counts");
    assert_eq!(publish(&router, 2, Reach::Matching), 2);
    assert_eq!(deliver(&mut shard), [(2, BOTH)]);
    shard.resume_at(BOTH, &topic("a.b"), |_, (), ()| (DeliveryState::Live, ())).unwrap();
    assert_eq!(publish(&router, 3, Reach::Topic), 1);
    assert_eq!(deliver(&mut shard), [(3, BOTH)]);
}

#[test]
fn patterns_that_need_heap_memory_to_match_are_left_out() {
    // All six patterns that match, on three shards.
    let router = Router::new(3, Config::default());
    let mut shards = [0, 1, 2].map(|shard| router.attach(ShardId(shard)));
    for shard in &mut shards {
        for key in [7, 8] {
            subscribe(shard, key, &["a.*", "*.b", "*.*", ">", "a.b", "a.>", "*.>"]);
        }
    }
    assert_eq!(publish(&router, 1, Reach::Matching), 42);
    assert_eq!(publish(&router, 2, Reach::Topic), 6);
    let expected = || vec![(1, 7), (1, 8), (2, 7), (2, 8)];
    assert_eq!(shards.each_mut().map(deliver), [expected(), expected(), expected()]);
}

#[test]
fn several_messages_reach_their_subscribers_in_order() {
    for has_patterns in [false, true] {
        let (router, mut shards) = router_with_two_shards();
        for shard in &mut shards {
            subscribe(shard, EXACT, &["a.b"]);
            if has_patterns {
                subscribe(shard, PATTERN, &["a.*"]);
            }
        }
        let outgoing = |message: u32, reach| Outgoing { bytes: 1, make: move || message, reach };
        let counted = router.publish_each_kept(&topic("a.b"), None, |view, (), ()| {
            let messages =
                vec![outgoing(1, Reach::Matching), outgoing(2, Reach::Topic), outgoing(3, Reach::Matching)];
            (messages, view.subscribers())
        });
        assert_eq!(counted, 2);
        for shard in &mut shards {
            let exact = [(1, EXACT), (2, EXACT), (3, EXACT)];
            let both = [(1, EXACT), (1, PATTERN), (2, EXACT), (3, EXACT), (3, PATTERN)];
            assert_eq!(deliver(shard), if has_patterns { &both[..] } else { &exact });
        }
    }
}

#[test]
fn subscriptions_are_counted_without_a_publish() {
    let (router, mut shards) = router_with_two_shards();
    let count = || router.update_and_count(&topic("a.b"), |view, (), ()| view.subscribers());
    assert_eq!(count(), (0, 0));
    subscribe(&mut shards[0], EXACT, &["a.b"]);
    subscribe(&mut shards[1], EXACT, &["a.b"]);
    assert_eq!(count(), (2, 2));
    subscribe(&mut shards[0], PATTERN, &["a.*", ">"]);
    assert_eq!(count(), (4, 2));
    assert!(deliver(&mut shards[0]).is_empty());
}
