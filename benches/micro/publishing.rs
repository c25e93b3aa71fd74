//! Publishes of a backend on a node without subscribers: all steps up to the history of the topic.

use std::hint::black_box;

use deeperhub_node::history::Rules;
use deeperhub_node::{Config, DiskConfig, HistoryStore, Node, PublishError, RawJson, Topic, TraceContext};
use divan::Bencher;

/// Messages that a topic keeps. The benchmarks publish more, so each publish evicts a message.
const KEPT: usize = 100;

/// Publishes messages of 128 bytes, in turn to each of `topics`, with these rules.
fn publish(bencher: Bencher<'_, '_>, topics: usize, rules: impl IntoIterator<Item = String>) {
    publish_with(bencher, topics, rules, Config::default());
}

fn publish_with(
    bencher: Bencher<'_, '_>,
    topics: usize,
    rules: impl IntoIterator<Item = String>,
    config: Config,
) {
    let parsed = rules.into_iter().map(|text| text.parse().unwrap_or_else(|error| unreachable!("{error}")));
    let rules = Rules::new(parsed).unwrap_or_else(|error| unreachable!("{error}"));
    let mut config = config.with_history_rules(rules);
    config.listener.workers = 1;
    let node =
        Node::start(([127, 0, 0, 1], 0).into(), config).unwrap_or_else(|error| unreachable!("{error}"));
    let handle = node.handle();
    let names: Vec<_> = (0..topics).map(|number| format!("room.{number}")).collect();
    let topics: Vec<_> =
        names.iter().map(|name| Topic::parse(name).unwrap_or_else(|error| unreachable!("{error}"))).collect();
    let text = format!("\"{}\"", "x".repeat(126));
    let message = RawJson::parse(&text).unwrap_or_else(|error| unreachable!("{error}"));
    let publish = |topic: &Topic<'_>| loop {
        match handle.publish_raw(topic, black_box(message), &TraceContext::default()) {
            Ok(published) => return published.count,
            // The disk is behind. Its time counts.
            Err(PublishError::Unavailable(_)) => std::thread::yield_now(),
            Err(error) => unreachable!("{error}"),
        }
    };
    for topic in (0..=KEPT).flat_map(|_| &topics) {
        publish(topic);
    }
    let mut turns = topics.iter().cycle();
    bencher.bench_local(|| turns.next().map(publish));
}

fn others(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("service{number}.*.state: history=10"))
}

/// Publishes to topics without a rule, among so many rules.
#[divan::bench(args = [0, 20], sample_size = 10_000)]
fn publish_without_history(bencher: Bencher<'_, '_>, rules: usize) {
    publish(bencher, 1, others(rules));
}

/// Publishes to so many topics whose history is full.
#[divan::bench(args = [1, 1000], sample_size = 10_000)]
fn publish_with_history(bencher: Bencher<'_, '_>, topics: usize) {
    publish(bencher, topics, others(19).chain([format!("room.*: history={KEPT}")]));
}

/// Publishes to so many topics whose history is full, and on a disk that is synced each 100 ms.
#[divan::bench(args = [1, 1000], sample_size = 10_000)]
fn publish_to_disk(bencher: Bencher<'_, '_>, topics: usize) {
    let folder = std::env::temp_dir().join(format!("deeperhub-publish-{}", std::process::id()));
    let mut disk = DiskConfig::new(&folder);
    disk.max_bytes = Some(1 << 30);
    let config = Config::default().with_history_store(HistoryStore::Disk(disk));
    publish_with(bencher, topics, [format!("room.*: history={KEPT}")], config);
    let _ = std::fs::remove_dir_all(&folder);
}
