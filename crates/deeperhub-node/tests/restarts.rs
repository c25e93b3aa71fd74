//! Nodes that are stopped, or crash, and start again on the same folder, with random operations in
//! between. A model knows what was published, and what each subscriber may miss.
//! `DEEPERHUB_RESTART_SEEDS` sets the number of runs.
#![cfg(feature = "disk")]
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use deeperhub_node::history::{BudgetLimits, Rules};
use deeperhub_node::{
    Config, DiskConfig, HistoryStore, Node, NodeHandle, NotRecovered, Position, StreamEvent, SubscribeFrom,
    Topic,
};

/// Upper bound for what happens at once on a machine with time.
const TIMEOUT: Duration = Duration::from_secs(20);

const TOPICS: [&str; 3] = ["a.1", "a.2", "b.1"];

/// Messages that the rules keep.
const HISTORY: u64 = 60;

/// Removes its folder at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("node-restarts-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn start(folder: &Path, history_bytes: u64) -> Node {
    let rules = ["a.>: history=60 ttl=1h ack=disk", "b.>: history=60 ttl=1h"];
    let mut config = Config::default()
        .with_history_rules(Rules::new(rules.map(|rule| rule.parse().unwrap())).unwrap())
        .with_history_store(HistoryStore::Disk(DiskConfig::new(folder)));
    config.history.budget = BudgetLimits::default().with_bytes(history_bytes);
    config.listener.workers = 1;
    Node::start(([127, 0, 0, 1], 0).into(), config).unwrap()
}

/// Copies a folder that a node still writes, like a crash would leave it.
fn copy(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        // A temporary file may be gone.
        let _ = std::fs::copy(&path, to.join(path.file_name().unwrap()));
    }
}

/// A topic as the model knows it.
#[derive(Default)]
struct Model {
    /// Numbers by offset, since the history was last emptied.
    messages: BTreeMap<u64, u64>,
    newest: u64,
    /// Newest offset that was acknowledged by the disk.
    stored: u64,
    /// A position that a subscriber has.
    seen: Option<Position>,
    /// `true` if the history was emptied after that.
    is_cleared: bool,
}

impl Model {
    async fn publish(&mut self, hub: &NodeHandle, topic: &str, number: u64, waits: bool) {
        let published = hub.publish(topic, &number).unwrap();
        let position = published.position.unwrap();
        assert_eq!(position.offset, self.newest + 1, "offsets are dense");
        self.newest = position.offset;
        self.messages.insert(position.offset, number);
        if waits {
            hub.stored(&published).await.unwrap();
            if topic.starts_with('a') {
                self.stored = position.offset;
            }
        }
    }

    async fn clear(&mut self, hub: &NodeHandle, topic: &Topic<'_>) {
        hub.clear_history(topic).await.unwrap();
        self.messages.clear();
        (self.stored, self.is_cleared) = (self.newest, true);
    }

    /// Checks all that is kept of the topic against the model. After a crash, the end may be lost.
    async fn check(&mut self, hub: &NodeHandle, topic: &Topic<'_>, has_crashed: bool) {
        let Some(history) = hub.topic_history(topic) else {
            assert!(self.stored == 0 && (has_crashed || self.newest == 0), "{topic:?} is lost");
            (self.newest, self.seen) = (0, None);
            return self.messages.clear();
        };
        assert!(history.offset <= self.newest && history.offset >= self.stored, "{history:?}");
        assert!(has_crashed || history.offset == self.newest, "{history:?} for {}", self.newest);
        self.newest = history.offset;
        self.messages.retain(|offset, _| *offset <= history.offset);
        let expected: Vec<_> =
            self.messages.range((self.newest + 1).saturating_sub(HISTORY)..).map(|(o, n)| (*o, *n)).collect();
        assert_eq!(
            read(hub, topic.as_str(), SubscribeFrom::Last(u64::MAX), expected.len()).await,
            Ok(expected)
        );
    }

    /// Lets the subscriber continue at its position.
    async fn follow(&mut self, hub: &NodeHandle, topic: &Topic<'_>) {
        let Some(history) = hub.topic_history(topic) else { return };
        let before = self.seen.replace(Position { epoch: history.epoch, offset: history.offset, time: 0 });
        let is_cleared = std::mem::take(&mut self.is_cleared);
        let Some(before) = before else { return };
        let missed: Vec<_> =
            self.messages.range(before.offset.min(self.newest) + 1..).map(|(o, n)| (*o, *n)).collect();
        let after = read(hub, topic.as_str(), SubscribeFrom::After(before), missed.len()).await;
        let oldest = self.messages.keys().next().copied().unwrap_or(self.newest + 1);
        match after {
            Ok(messages) => assert_eq!(messages, missed, "after {before:?}"),
            Err(NotRecovered::Trimmed) => {
                assert!(before.offset + HISTORY < self.newest || before.offset + 1 < oldest)
            }
            Err(NotRecovered::Epoch) => assert!(is_cleared || before.offset > self.newest, "{before:?}"),
            Err(other) => panic!("{other:?} after {before:?}"),
        }
    }
}

/// Reads `count` messages from the start of a subscriber, and no more.
async fn read(
    hub: &NodeHandle,
    topic: &str,
    from: SubscribeFrom,
    count: usize,
) -> Result<Vec<(u64, u64)>, NotRecovered> {
    let mut subscriber = hub.subscribe(topic, from).await.unwrap();
    if let Some(Err(reason)) = subscriber.recovery() {
        return Err(reason);
    }
    let mut messages = Vec::new();
    while messages.len() < count {
        match tokio::time::timeout(TIMEOUT, subscriber.next()).await.expect("messages in time") {
            Some(StreamEvent::Message(message)) => {
                messages.push((message.position().unwrap().offset, message.message().parse().unwrap()));
            }
            other => panic!("{other:?} of {topic} {from:?} after {messages:?}"),
        }
    }
    Ok(messages)
}

async fn run(seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let folders = [Folder::new(&format!("{seed}-a")), Folder::new(&format!("{seed}-b"))];
    let (mut present, mut number) = (0, 0);
    let mut models: [Model; TOPICS.len()] = Default::default();
    // Room for some messages only, or for all.
    let bytes = [3000, 20_000, 1 << 24][random.usize(..3)];
    let mut node = start(&folders[present].0, bytes);
    for _ in 0..10 {
        let hub = node.handle();
        for _ in 0..random.usize(..60) {
            let index = random.usize(..TOPICS.len());
            let (model, topic) = (&mut models[index], Topic::parse(TOPICS[index]).unwrap());
            match random.u8(..20) {
                0 => model.clear(&hub, &topic).await,
                1..=3 => model.follow(&hub, &topic).await,
                4 => model.check(&hub, &topic, false).await,
                _ => {
                    for _ in 0..random.usize(1..12) {
                        number += 1;
                        model.publish(&hub, TOPICS[index], number, random.bool()).await;
                    }
                }
            }
        }
        let has_crashed = random.bool();
        if has_crashed {
            copy(&folders[present].0, &folders[1 - present].0);
            present = 1 - present;
        }
        node.stop().await;
        node = start(&folders[present].0, bytes);
        let hub = node.handle();
        for (model, topic) in models.iter_mut().zip(TOPICS) {
            let topic = Topic::parse(topic).unwrap();
            model.check(&hub, &topic, has_crashed).await;
            let epoch = hub.topic_history(&topic).map(|history| history.epoch);
            let is_same = model.seen.map(|seen| seen.epoch) == epoch;
            assert!(!(has_crashed && is_same && epoch.is_some()), "a crash costs the epoch");
            model.follow(&hub, &topic).await;
        }
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn restarts_and_crashes_lose_nothing_that_was_stored() {
    let seeds = std::env::var("DEEPERHUB_RESTART_SEEDS").ok().and_then(|count| count.parse().ok());
    for seed in 0..seeds.unwrap_or(8) {
        let run = tokio::time::timeout(10 * TIMEOUT, run(seed)).await;
        run.unwrap_or_else(|_| panic!("seed {seed} took too long"));
    }
}
