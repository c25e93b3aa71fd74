//! Routing: from a publish to the keys of its subscribers.

use std::task::{Context, Waker};

use deeperhub_protocol::frame::Frame;
use deeperhub_protocol::{Subscription, Topic};
use deeperhub_router::{Config, DeliveryFlow, Router, Shard, ShardId};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};

const CROWDS: [u32; 6] = [1, 10, 100, 1000, 10_000, 100_000];

fn subscription(name: &str) -> Subscription<'_> {
    Subscription::parse(name).unwrap_or_else(|error| unreachable!("{name}: {error}"))
}

fn topic(name: &str) -> Topic<'_> {
    Topic::parse(name).unwrap_or_else(|error| unreachable!("{name}: {error}"))
}

/// Empties the inbox as a worker does. Returns the number of deliveries.
fn deliver(shard: &mut Shard<Frame>) -> u64 {
    let mut delivered = 0;
    let mut cx = Context::from_waker(Waker::noop());
    while shard
        .poll_deliver(&mut cx, |key, frame| {
            black_box((key, frame.len()));
            delivered += 1;
            DeliveryFlow::Continue
        })
        .is_ready()
    {}
    delivered
}

fn bench_publish(
    bencher: Bencher<'_, '_>,
    names: &[&str],
    crowd: u32,
    background: impl Fn(&mut Shard<Frame>),
) {
    let router = Router::new(1, Config::default());
    let mut shard = router.attach(ShardId(0));
    background(&mut shard);
    for key in 0..crowd {
        for name in names {
            shard.subscribe(key, &subscription(name));
        }
    }
    let (topic, frame) = (topic("sports.football.results"), Frame::text("a delivery"));
    bencher.counter(ItemsCount::new(crowd)).bench_local(|| {
        router.publish(&topic, Some(7), frame.len(), || frame.clone());
        assert_eq!(deliver(&mut shard), u64::from(crowd));
    });
}

/// Publishes to a topic. Each subscriber is one item.
#[divan::bench(args = CROWDS)]
fn publish_to_a_topic(bencher: Bencher<'_, '_>, crowd: u32) {
    bench_publish(bencher, &["sports.football.results"], crowd, |_| {});
}

/// Publishes to subscribers of a pattern.
#[divan::bench(args = CROWDS)]
fn publish_to_a_pattern(bencher: Bencher<'_, '_>, crowd: u32) {
    bench_publish(bencher, &["sports.*.results"], crowd, |_| {});
}

/// Publishes to clients with two matching subscriptions. Each client gets the message once.
#[divan::bench(args = CROWDS)]
fn publish_to_overlapping_subscriptions(bencher: Bencher<'_, '_>, crowd: u32) {
    bench_publish(bencher, &["sports.football.results", "sports.>"], crowd, |_| {});
}

/// Publishes to one subscriber among 100,000 subscribers of other topics.
#[divan::bench]
fn publish_among_100_000_topics(bencher: Bencher<'_, '_>) {
    bench_publish(bencher, &["sports.football.results"], 1, |shard| {
        for number in 0..100_000 {
            shard.subscribe(number + 10, &subscription(&format!("room.{number}")));
        }
    });
}

/// Publishes to one subscriber among 10,000 subscribers of other patterns.
#[divan::bench]
fn publish_among_10_000_patterns(bencher: Bencher<'_, '_>) {
    bench_publish(bencher, &["sports.football.results"], 1, |shard| {
        for number in 0..10_000 {
            shard.subscribe(number + 10, &subscription(&format!("room.{number}.*")));
        }
    });
}

/// Publishes to one subscriber among `patterns` non-matching patterns of common shapes.
#[divan::bench(args = [3, 1000, 100_000])]
fn publish_among_patterns_of_its_depth(bencher: Bencher<'_, '_>, patterns: u32) {
    bench_publish(bencher, &["sports.football.results"], 1, |shard| {
        for number in 0..patterns / 3 {
            for name in [format!("room.{number}.*"), format!("*.{number}.state"), format!("user.{number}.>")]
            {
                shard.subscribe(number + 10, &subscription(&name));
            }
        }
    });
}

/// Subscribes clients to patterns of the maximum depth that match a topic up to its last level.
fn deep_patterns(shard: &mut Shard<Frame>, clients: u32, last: &str) {
    for number in 0..clients * 128 {
        let levels = (0..127).map(|level| if level < 16 && number >> level & 1 == 0 { "a" } else { "*" });
        let name = levels.chain([last]).collect::<Vec<_>>().join(".");
        shard.subscribe(number / 128 + 10, &subscription(&name));
    }
}

/// Publishes to a topic of 128 levels that matches all patterns up to the last level.
#[divan::bench(args = [10, 50])]
fn publish_among_deep_patterns_of_clients(bencher: Bencher<'_, '_>, clients: u32) {
    let router = Router::new(1, Config::default());
    let mut shard = router.attach(ShardId(0));
    deep_patterns(&mut shard, clients, "x");
    let (name, frame) = (["a"; 128].join("."), Frame::text("a delivery"));
    let topic = topic(&name);
    bencher.bench_local(|| {
        assert_eq!(router.publish(&topic, Some(7), frame.len(), || frame.clone()).subscribers, 0);
    });
}

/// Publishes to a topic of 128 levels that matches all patterns.
#[divan::bench(args = [10, 50])]
fn publish_to_deep_patterns_of_clients(bencher: Bencher<'_, '_>, clients: u32) {
    let router = Router::new(1, Config::default());
    let mut shard = router.attach(ShardId(0));
    deep_patterns(&mut shard, clients, "*");
    let (name, frame) = (["a"; 128].join("."), Frame::text("a delivery"));
    let topic = topic(&name);
    bencher.bench_local(|| {
        router.publish(&topic, Some(7), frame.len(), || frame.clone());
        assert_eq!(deliver(&mut shard), u64::from(clients));
    });
}

/// Publishes to a topic of three levels beside the deep patterns of 50 clients.
#[divan::bench]
fn publish_beside_deep_patterns(bencher: Bencher<'_, '_>) {
    bench_publish(bencher, &["sports.football.results"], 1, |shard| deep_patterns(shard, 50, "x"));
}

/// Subscribes a client to its own pattern among 100,000 others, and removes it.
#[divan::bench]
fn subscribe_to_a_pattern_and_leave(bencher: Bencher<'_, '_>) {
    let router = Router::<Frame>::new(1, Config::default());
    let mut shard = router.attach(ShardId(0));
    for number in 0..100_000 {
        shard.subscribe(number + 10, &subscription(&format!("room.{number}.*")));
    }
    let name = subscription("room.lobby.*");
    bencher.bench_local(|| {
        shard.subscribe(3, black_box(&name));
        shard.remove_subscriber(3)
    });
}

/// Publishes to many workers: the cost that grows with the number of cores.
#[divan::bench(args = [1, 2, 8, 64])]
fn publish_to_workers(bencher: Bencher<'_, '_>, workers: u16) {
    let router = Router::new(workers, Config::default());
    let mut shards: Vec<_> = (0..workers).map(|shard| router.attach(ShardId(shard))).collect();
    for shard in &mut shards {
        shard.subscribe(0, &subscription("a"));
    }
    let (topic, frame) = (topic("a"), Frame::text("a delivery"));
    bencher.counter(ItemsCount::new(workers)).bench_local(|| {
        router.publish(&topic, Some(7), frame.len(), || frame.fork());
        shards.iter_mut().map(deliver).sum::<u64>()
    });
}

/// Subscribes a client to a topic of its own and removes it.
#[divan::bench]
fn subscribe_and_leave(bencher: Bencher<'_, '_>) {
    let router = Router::<Frame>::new(1, Config::default());
    let mut shard = router.attach(ShardId(0));
    let name = subscription("room.4711");
    bencher.bench_local(|| {
        shard.subscribe(3, black_box(&name));
        shard.remove_subscriber(3)
    });
}

/// Removes a client from a topic with 100,000 subscribers and adds it again.
#[divan::bench]
fn leave_and_join_a_crowd(bencher: Bencher<'_, '_>) {
    let router = Router::<Frame>::new(1, Config::default());
    let mut shard = router.attach(ShardId(0));
    let name = subscription("lobby");
    for key in 0..100_000 {
        shard.subscribe(key, &name);
    }
    bencher.bench_local(|| {
        shard.remove_subscriber(5);
        shard.subscribe(5, black_box(&name))
    });
}
