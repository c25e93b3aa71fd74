//! History: keeping a message, and bringing a subscriber up to date.

use std::hint::black_box;
use std::sync::Arc;

use deeperhub_history::{
    Budget, BudgetLimits, Delivery, Evicted, Recover, Rules, Seconds, Step, StreamId, StreamTable,
    SubscribeRequest, SubscriptionScope, Topic, judge,
};
use deeperhub_protocol::frame::Frame;
use divan::Bencher;

const NOW: Seconds = Seconds::new(0);

type Table = StreamTable<Frame, ()>;

fn rules(texts: impl IntoIterator<Item = String>) -> Rules {
    let parsed = texts.into_iter().map(|text| text.parse().unwrap_or_else(|error| unreachable!("{error}")));
    Rules::new(parsed).unwrap_or_else(|error| unreachable!("{error}"))
}

/// Creates a table with `streams` streams, each with `messages` messages.
fn table(streams: u64, messages: u64, budget_bytes: u64) -> (Table, Vec<StreamId>, Frame) {
    let rules = rules(["room.>: history=1000".to_owned()]);
    let rule = rules.iter().next().map(|(id, _)| id).unwrap_or_else(|| unreachable!("there is a rule"));
    let mut table =
        Table::new(Arc::new(Budget::new(rules, BudgetLimits::default().with_bytes(budget_bytes))));
    let (mut evicted, frame) = (Evicted::new(), Frame::text(&"x".repeat(280)));
    let open = |number| match table.open(rule, (), number, NOW, &mut evicted) {
        Ok(opened) => opened.id,
        Err(error) => unreachable!("{error}"),
    };
    let ids: Vec<_> = (0..streams).map(open).collect();
    for _ in 0..messages {
        for id in &ids {
            table.append(*id, NOW, &mut evicted, |_, _| (frame.fork(), frame.len()));
        }
        evicted.clear();
    }
    (table, ids, frame)
}

/// Appends a message to a stream that is full, which evicts the oldest one.
#[divan::bench(sample_size = 10_000)]
fn append_to_a_full_stream(bencher: Bencher<'_, '_>) {
    let (mut table, ids, frame) = table(1, 1000, 256 << 20);
    let mut evicted = Evicted::new();
    bencher.bench_local(|| {
        table.append(ids[0], NOW, &mut evicted, |_, _| (frame.clone(), frame.len()));
        evicted.clear();
    });
}

/// Appends to one stream after the other in a table that fills its budget. Each append evicts the
/// oldest message of all streams.
#[divan::bench(args = [1, 100, 10_000], sample_size = 10_000)]
fn append_within_a_full_budget(bencher: Bencher<'_, '_>, streams: u64) {
    let messages = (100_000 / streams).min(1000);
    let (mut table, ids, frame) = table(streams, messages, 300 * streams * messages / 2);
    let (mut evicted, mut turns) = (Evicted::new(), ids.iter().cycle());
    bencher.bench_local(|| {
        if let Some(id) = turns.next() {
            table.append(*id, NOW, &mut evicted, |_, _| (frame.clone(), frame.len()));
        }
        evicted.clear();
    });
}

/// Recovers a subscriber that missed messages, and copies them for it.
#[divan::bench(args = [0, 1, 50, 1000], sample_size = 100)]
fn judge_and_replay(bencher: Bencher<'_, '_>, missed: u64) {
    let (mut table, ids, _) = table(1, 1000, 256 << 20);
    let (mut evicted, mut copy) = (Evicted::new(), Vec::with_capacity(1 << 20));
    bencher.bench_local(|| {
        let Some(stream) = table.current(ids[0], NOW, &mut evicted) else { return 0 };
        let epoch = stream.epoch();
        let offset = stream.newest() - missed;
        let recover = Recover { epoch: epoch.as_str(), offset, time_ms: None, partial: false };
        let request = SubscribeRequest { recover: Some(recover), history: 0 };
        let start = judge(Some(stream), SubscriptionScope::Topic, black_box(&request), Delivery::Lossless);
        copy.clear();
        if let Some(mut cursor) = start.cursor {
            while let Some(Step::Message { message, .. }) = cursor.advance(stream, Delivery::Lossless) {
                copy.extend_from_slice(message.as_bytes());
            }
        }
        black_box(&copy).len()
    });
}

/// Finds the rule of a topic that the last of `count` rules matches.
#[divan::bench(args = [1, 20, 64])]
fn find_the_rule(bencher: Bencher<'_, '_>, count: usize) {
    let others = (1..count).map(|number| format!("service{number}.*.state: history=10"));
    let rules = rules(others.chain(["room.>: history=1000".to_owned()]));
    let topic = Topic::parse("room.lobby.chat").unwrap_or_else(|error| unreachable!("{error}"));
    bencher.bench_local(|| rules.find(black_box(&topic)));
}
