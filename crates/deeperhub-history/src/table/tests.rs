// The lint does not see that helpers outside of test functions belong to tests.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::{BudgetLimits, Cursor, Rules};
use proptest::prelude::*;
use std::collections::BTreeMap;

type Table = StreamTable<u64, usize>;

fn budget(rules: &[&str], limits: BudgetLimits) -> Arc<Budget> {
    let rules = rules.iter().map(|text| text.parse().unwrap());
    Arc::new(Budget::new(Rules::new(rules).unwrap(), limits))
}

fn rule(index: usize) -> RuleId {
    RuleId::from_index(index)
}

const fn at(seconds: u32) -> Seconds {
    Seconds::new(seconds)
}

fn open(table: &mut Table, rule_index: usize, name: usize, now: u32) -> Opened<usize> {
    table.open(rule(rule_index), name, name as u64, at(now), &mut Evicted::new()).unwrap()
}

/// Appends a message of 68 bytes, which is charged 100.
fn append(table: &mut Table, id: StreamId, now: u32, evicted: &mut Evicted<u64>) -> Appended {
    table.append(id, at(now), evicted, |_, offset| (offset, 68)).unwrap()
}

fn kept(table: &Table, id: StreamId) -> Vec<u64> {
    table.get(id).unwrap().messages(..).map(|(offset, _)| offset).collect()
}

#[test]
fn a_message_gets_its_epoch_and_offset_before_it_is_kept() {
    let mut table = Table::new(budget(&["a: history=2"], BudgetLimits::default()));
    let id = open(&mut table, 0, 7, 0).id;
    let mut evicted = Evicted::new();
    for expected in 1..=3 {
        let mut sealed = None;
        let appended = table.append(id, at(0), &mut evicted, |epoch, offset| {
            sealed = Some((epoch, offset));
            (offset, 10)
        });
        let appended = appended.unwrap();
        assert_eq!(sealed, Some((appended.epoch, appended.offset)));
        assert_eq!((appended.offset, appended.is_over_budget), (expected, false));
    }
    assert_eq!(kept(&table, id), [2, 3]);
    assert!(evicted.messages().eq(&[1]));
    assert_eq!(
        (table.len(), table.messages(), table.name(id), table.rule(id)),
        (1, 2, Some(&7), Some(rule(0)))
    );
}

#[test]
fn the_number_of_a_removed_stream_finds_nothing() {
    let shared = budget(&["a: history=2"], BudgetLimits::default());
    let mut table = Table::new(Arc::clone(&shared));
    let (id, mut evicted) = (open(&mut table, 0, 7, 0).id, Evicted::new());
    append(&mut table, id, 0, &mut evicted);
    assert_eq!(table.remove(id, &mut evicted), Some(7));
    assert_eq!((evicted.count(EvictionReason::Removed), shared.bytes(), shared.streams()), (1, 0, 0));
    let other = open(&mut table, 0, 8, 0).id;
    assert_ne!(other, id);
    assert_eq!(table.remove(id, &mut evicted), None);
    assert!(table.append(id, at(0), &mut evicted, |_, _| unreachable!("the stream is gone")).is_none());
    assert!(table.current(id, at(0), &mut evicted).is_none() && table.get(id).is_none());
    assert!(!table.clear(id, 1, at(0), &mut evicted));
    table.set_followed(id, true, at(0));
    assert_eq!(table.name(other), Some(&8));
}

#[test]
fn a_topic_without_history_has_no_stream() {
    let mut table = Table::new(budget(&["a: history=0"], BudgetLimits::default()));
    let mut open = |rule| table.open(rule, 7, 1, at(0), &mut Evicted::new());
    assert_eq!(open(rule(0)), Err(OpenError::NoHistory));
    assert_eq!(open(rule(1)), Err(OpenError::NoHistory));
}

#[test]
fn a_new_stream_takes_the_place_of_the_one_idle_longest() {
    let mut table =
        Table::new(budget(&["a: history=2 max_streams=3", "b: history=1"], BudgetLimits::default()));
    let ids: Vec<_> = (0..3).map(|name| open(&mut table, 0, name, name as u32).id).collect();
    let other = open(&mut table, 1, 99, 0).id;
    table.set_followed(ids[0], true, at(3));
    append(&mut table, ids[1], 4, &mut Evicted::new());
    // Stream 0 has a subscriber, stream 1 was used last.
    let opened = open(&mut table, 0, 3, 5);
    assert_eq!(opened.replaced, Some(2));
    // The subscriber leaves, which counts as a use.
    table.set_followed(ids[0], false, at(6));
    assert_eq!(open(&mut table, 0, 4, 7).replaced, Some(1));
    assert_eq!(open(&mut table, 0, 5, 7).replaced, Some(3));
    assert_eq!(open(&mut table, 0, 6, 7).replaced, Some(0));
    assert_eq!(table.len(), 4);
    assert!(table.get(other).is_some());
}

#[test]
fn streams_with_subscribers_make_no_room() {
    let shared = budget(&["a: history=2 max_streams=2"], BudgetLimits::default());
    let (mut one, mut other) = (Table::new(Arc::clone(&shared)), Table::new(Arc::clone(&shared)));
    let id = open(&mut one, 0, 0, 0).id;
    let second = open(&mut other, 0, 1, 0).id;
    one.set_followed(id, true, at(0));
    let mut evicted = Evicted::new();
    assert_eq!(one.open(rule(0), 2, 2, at(0), &mut evicted), Err(OpenError::TooManyStreams));
    // Another table makes room.
    assert_eq!(other.remove_idlest(rule(0), &mut evicted), Some(1));
    assert!(other.get(second).is_none());
    assert!(one.open(rule(0), 2, 2, at(0), &mut evicted).is_ok());
    assert_eq!((shared.streams(), other.remove_idlest(rule(0), &mut evicted)), (2, None));
}

#[test]
fn a_stream_is_forgotten_some_time_after_its_last_message_and_subscriber() {
    let limits = BudgetLimits::default().with_forget(std::time::Duration::from_secs(60));
    let mut table = Table::new(budget(&["a: history=2 ttl=100s"], limits));
    let (empty, used, followed) =
        (open(&mut table, 0, 0, 0).id, open(&mut table, 0, 1, 0).id, open(&mut table, 0, 2, 0).id);
    let mut evicted = Evicted::new();
    append(&mut table, used, 0, &mut evicted);
    table.set_followed(followed, true, at(0));
    // A subscriber came and left before anybody looked.
    let visited = open(&mut table, 0, 3, 0).id;
    table.set_followed(visited, true, at(10));
    table.set_followed(visited, false, at(30));
    let mut sweep = |table: &mut Table, now| table.sweep(at(now), 1000, &mut evicted).removed;
    assert_eq!(sweep(&mut table, 60), []);
    assert_eq!(sweep(&mut table, 61), [0]);
    assert_eq!(sweep(&mut table, 90), []);
    assert_eq!(sweep(&mut table, 91), [3]);
    // The message expires at 101, so that the stream is spent from then on.
    assert_eq!(sweep(&mut table, 101), []);
    assert_eq!(sweep(&mut table, 161), []);
    assert_eq!(sweep(&mut table, 162), [1]);
    table.set_followed(followed, false, at(1000));
    assert_eq!(sweep(&mut table, 1060), []);
    // A subscriber that comes back starts the time again.
    table.set_followed(followed, true, at(1060));
    assert_eq!(sweep(&mut table, 1061), []);
    table.set_followed(followed, false, at(1062));
    assert_eq!(sweep(&mut table, 1122), []);
    assert_eq!(sweep(&mut table, 1123), [2]);
    assert!(table.is_empty() && table.get(empty).is_none());
}

#[test]
fn expired_messages_leave_in_bounded_sweeps_and_with_appends() {
    let mut table = Table::new(budget(&["a: history=100 ttl=10s", "b: history=1"], BudgetLimits::default()));
    let (one, other) = (open(&mut table, 0, 0, 0).id, open(&mut table, 0, 1, 0).id);
    let mut evicted = Evicted::new();
    (0..40).for_each(|_| {
        append(&mut table, one, 0, &mut evicted);
    });
    assert_eq!(table.sweep(at(10), 10, &mut evicted), Swept { removed: vec![], has_more: false });
    assert_eq!(table.sweep(at(11), 10, &mut evicted), Swept { removed: vec![], has_more: true });
    assert_eq!((table.messages(), evicted.count(EvictionReason::Age)), (30, 10));
    append(&mut table, other, 11, &mut evicted);
    assert_eq!((kept(&table, one).len(), kept(&table, other).len()), (26, 1));
    // A look at the stream itself finds none of them.
    assert!(table.current(one, at(11), &mut evicted).is_some_and(Stream::is_empty));
    assert_eq!((table.messages(), table.budget().bytes()), (1, 100));
}

#[test]
fn a_message_of_a_full_history_takes_the_place_of_the_oldest() {
    for history in [1, 2, 7] {
        let rule = format!("a.>: history={history} ttl=10s");
        let shared = budget(&[&rule], BudgetLimits::default());
        let mut table = Table::new(Arc::clone(&shared));
        let (full, other) = (open(&mut table, 0, 0, 0).id, open(&mut table, 0, 1, 0).id);
        let mut evicted = Evicted::new();
        for id in [full, other] {
            (0..history).for_each(|_| _ = append(&mut table, id, 0, &mut evicted));
        }
        let heap_bytes = table.heap_bytes();
        for number in 1..=100_u64 {
            let append = |_, offset| (offset, 100 + number as usize % 3);
            table.append(full, at(10), &mut evicted, append).unwrap();
            assert_eq!((table.messages(), evicted.messages().count() as u64), (2 * history, number));
        }
        assert!(evicted.iter().copied().eq((1..=100).map(|offset| (offset, EvictionReason::Messages))));
        assert_eq!(table.heap_bytes(), heap_bytes);
        let bytes: u64 = (0..history).map(|back| 132 + (100 - back) % 3).sum();
        assert_eq!(shared.bytes(), bytes + 100 * history);
        // The other stream's messages have expired meanwhile.
        evicted.clear();
        let expired = history.min(4);
        append(&mut table, full, 11, &mut evicted);
        assert_eq!(
            (evicted.count(EvictionReason::Messages), evicted.count(EvictionReason::Age)),
            (1, expired)
        );
        assert_eq!(
            (kept(&table, full).len(), kept(&table, other).len() as u64),
            (history as usize, history - expired)
        );
    }
}

#[test]
fn a_flood_under_one_rule_leaves_the_share_of_another() {
    let rules = ["chat.>: history=1000", "user.>: history=1000"];
    // Shares of 7500 bytes: 75 messages.
    let shared = budget(&rules, BudgetLimits::default().with_bytes(16_000));
    let mut table = Table::new(Arc::clone(&shared));
    let (chat, user) = (open(&mut table, 0, 0, 0).id, open(&mut table, 1, 1, 0).id);
    let mut evicted = Evicted::new();
    for _ in 0..60 {
        append(&mut table, chat, 0, &mut evicted);
    }
    for now in 1..1000 {
        assert!(!append(&mut table, user, now / 10, &mut evicted).is_over_budget);
        assert!(shared.bytes() <= 16_000);
    }
    // `user` uses what `chat` leaves free.
    assert_eq!((kept(&table, chat).len(), kept(&table, user).len()), (60, 100));
    assert_eq!(evicted.count(EvictionReason::Budget), 899);
    // `chat` takes its share back.
    for _ in 0..200 {
        append(&mut table, chat, 99, &mut evicted);
    }
    let lens = (kept(&table, chat).len(), kept(&table, user).len());
    assert_eq!(lens, (85, 75), "the sixteenth without owner stays where it is used");
}

#[test]
fn the_oldest_messages_of_a_table_are_evicted_first() {
    let shared = budget(&["a.*: history=1000"], BudgetLimits::default().with_bytes(1000));
    let mut table = Table::new(Arc::clone(&shared));
    let ids: Vec<_> = (0..3).map(|name| open(&mut table, 0, name, 0).id).collect();
    let mut evicted = Evicted::new();
    for now in 0..9 {
        append(&mut table, ids[now % 3], now as u32, &mut evicted);
    }
    append(&mut table, ids[0], 9, &mut evicted);
    assert!(evicted.is_empty());
    // One stream takes all: the others lose their oldest messages, by age.
    for now in 10..13 {
        append(&mut table, ids[2], now, &mut evicted);
    }
    assert_eq!(
        ids.iter().map(|id| kept(&table, *id)).collect::<Vec<_>>(),
        [vec![2, 3, 4], vec![2, 3], vec![2, 3, 4, 5, 6]]
    );
    for now in 13..100 {
        append(&mut table, ids[2], now, &mut evicted);
    }
    assert_eq!(ids.iter().map(|id| kept(&table, *id).len()).collect::<Vec<_>>(), [0, 0, 10]);
    assert_eq!((shared.bytes(), shared.excess()), (1000, 0));
}

#[test]
fn the_oldest_messages_of_all_rules_above_their_shares_are_evicted_first() {
    let rules = ["b: history=1000", "a: history=1000", "c: history=1000"];
    // Shares of 5000 bytes: 50 messages.
    let shared = budget(&rules, BudgetLimits::default().with_bytes(16_000));
    let mut table = Table::new(shared);
    let ids = [0, 1, 2].map(|name| open(&mut table, name, name, 0).id);
    let mut evicted = Evicted::new();
    let lens = |table: &Table| ids.map(|id| kept(table, id).len());
    for (id, now) in [(ids[1], 1), (ids[0], 2)] {
        (0..75).for_each(|_| {
            append(&mut table, id, now, &mut evicted);
        });
    }
    let mut append_to_c = |table: &mut Table, count| {
        (0..count).for_each(|_| {
            append(table, ids[2], 3, &mut evicted);
        });
        lens(table)
    };
    assert_eq!(append_to_c(&mut table, 10), [75, 75, 10]);
    assert_eq!(append_to_c(&mut table, 20), [75, 55, 30]);
    // The older one is at its share, so the other one gives way.
    assert_eq!(append_to_c(&mut table, 20), [60, 50, 50]);
    assert_eq!(append_to_c(&mut table, 20), [50, 50, 60]);
    assert_eq!(append_to_c(&mut table, 20), [50, 50, 60]);
}

#[test]
fn a_lower_limit_is_reached_by_sweeps() {
    let shared = budget(&["a: history=1000"], BudgetLimits::default().with_bytes(10_000));
    let mut table = Table::new(Arc::clone(&shared));
    let (id, mut evicted) = (open(&mut table, 0, 0, 0).id, Evicted::new());
    (0..100).for_each(|_| {
        append(&mut table, id, 0, &mut evicted);
    });
    shared.set_limit_bytes(5000);
    assert!(table.sweep(at(0), 20, &mut evicted).has_more);
    assert_eq!((shared.bytes(), shared.excess()), (8000, 3000));
    assert!(!table.sweep(at(0), 1000, &mut evicted).has_more);
    assert_eq!((shared.bytes(), kept(&table, id).len()), (5000, 50));
    // The newest message is kept even without any room.
    shared.set_limit_bytes(0);
    assert!(append(&mut table, id, 0, &mut evicted).is_over_budget);
    assert_eq!(kept(&table, id), [101]);
}

#[test]
fn an_append_beside_a_full_table_asks_for_a_sweep_of_it() {
    let shared = budget(&["a: history=1000", "b: history=1000"], BudgetLimits::default().with_bytes(16_000));
    let (mut full, mut table) = (Table::new(Arc::clone(&shared)), Table::new(Arc::clone(&shared)));
    let (first, second) = (open(&mut full, 0, 0, 0).id, open(&mut table, 1, 1, 0).id);
    let mut evicted = Evicted::new();
    (0..160).for_each(|_| assert!(!append(&mut full, first, 0, &mut evicted).is_over_budget));
    for count in 1..=75 {
        assert!(append(&mut table, second, 0, &mut evicted).is_over_budget);
        assert!(!full.sweep(at(0), 10, &mut evicted).has_more);
        assert_eq!((shared.excess(), kept(&full, first).len()), (0, 160 - count));
    }
}

#[test]
fn new_rules_move_the_streams() {
    let old = budget(&["a: history=10", "b: history=10"], BudgetLimits::default());
    let mut table = Table::new(Arc::clone(&old));
    let mut evicted = Evicted::new();
    let ids: Vec<_> = (0..3).map(|name| open(&mut table, name % 2, name, 0).id).collect();
    for id in &ids {
        (0..3).for_each(|_| {
            append(&mut table, *id, 0, &mut evicted);
        });
    }
    let new = budget(&["b: history=0", "c: history=2 ttl=5s max_streams=1"], BudgetLimits::default());
    let find = |name: &usize| [Some(rule(1)), Some(rule(0)), Some(rule(1))][*name];
    table.set_followed(ids[1], true, at(0));
    let end = Cursor::new(table.get(ids[1]).unwrap().epoch(), 3);
    let removed = RemovedStream { id: ids[1], name: 1, end, is_followed: true };
    assert_eq!(table.set_budget(Arc::clone(&new), find, &mut evicted), [removed]);
    assert_eq!((old.bytes(), old.streams(), new.bytes(), new.streams()), (0, 0, 600, 2));
    assert_eq!(evicted.count(EvictionReason::Removed), 3);
    // The stream has the new bounds at the next append, and the new `ttl` in the next sweep.
    append(&mut table, ids[0], 1, &mut evicted);
    assert_eq!((kept(&table, ids[0]), kept(&table, ids[2])), (vec![3, 4], vec![1, 2, 3]));
    table.sweep(at(6), 100, &mut evicted);
    assert_eq!((table.messages(), new.bytes()), (1, 100));
    // There are more streams than the new rule may have. They stay until others take their place.
    assert_eq!(open(&mut table, 1, 5, 7).replaced, Some(2));
    assert_eq!(open(&mut table, 1, 6, 7).replaced, Some(0));
    assert_eq!(new.streams(), 2);
    drop(table);
    assert_eq!((new.bytes(), new.streams()), (0, 0));
}

#[test]
fn a_restored_stream_is_cut_to_its_rule() {
    let shared = budget(&["a: history=3 ttl=10s"], BudgetLimits::default());
    let mut table = Table::new(Arc::clone(&shared));
    let restored = (0..5_u32).map(|number| crate::Restored {
        message: 96 + u64::from(number),
        bytes: 68,
        at: at(number),
    });
    let stream = Stream::restore(Epoch::from_bits(1), 100, None, restored);
    let mut evicted = Evicted::new();
    let id = table.restore(rule(0), 0, stream, at(13), &mut evicted).unwrap();
    assert_eq!((kept(&table, id), table.messages(), shared.bytes()), (vec![99, 100], 2, 200));
    assert_eq!(append(&mut table, id, 13, &mut evicted).offset, 101);
}

#[test]
fn memory_of_streams_and_messages_is_bounded() {
    // Eight bytes, as the handle of a frame.
    type SharedTable = StreamTable<Box<u64>, Arc<str>>;
    let name: Arc<str> = "a".into();
    let shared = budget(&["a: history=1000"], BudgetLimits::default());
    let mut evicted = Evicted::new();
    for streams in [1000, 10_000, 16_385] {
        let mut table = SharedTable::new(Arc::clone(&shared));
        for number in 0..streams {
            table.open(rule(0), Arc::clone(&name), number, at(0), &mut evicted).unwrap();
        }
        let each = table.heap_bytes() / table.len();
        assert!(each <= 190, "an empty stream takes {each} bytes in a table of {streams}");
    }
    let mut table = SharedTable::new(shared);
    let id = table.open(rule(0), name, 1, at(0), &mut evicted).unwrap().id;
    let empty = table.heap_bytes();
    for number in 0..1000 {
        table.append(id, at(0), &mut evicted, |_, _| (Box::new(number), 0)).unwrap();
    }
    let each = (table.heap_bytes() - empty) / 1000;
    assert!(each <= 17, "a message takes {each} bytes beside its own");
    assert_eq!(table.budget().bytes(), 32_000);
}

#[test]
fn replaced_streams_leave_no_memory_behind() {
    let mut table = Table::new(budget(&["a: history=2 max_streams=10"], BudgetLimits::default()));
    let mut evicted = Evicted::new();
    for name in 0..10_000 {
        let id = open(&mut table, 0, name, 0).id;
        append(&mut table, id, 0, &mut evicted);
        evicted.clear();
    }
    assert_eq!((table.len(), table.messages()), (10, 10));
    assert!(table.heap_bytes() < 10_000, "{}", table.heap_bytes());
}

const TOPICS: usize = 8;
const RULES: [[&str; 3]; 3] = [
    ["a: history=40 ttl=20s", "b: history=1000 ttl=60s share=2", "c: history=5 history_bytes=250 ttl=10s"],
    ["a: history=300 ttl=5s share=5", "b: history=0", "c: history=10 max_streams=3"],
    ["a: history=1 max_streams=2", "b: history=7 ttl=30s", "c: history=200"],
];

#[derive(Debug, Clone, Copy)]
enum Step {
    Append { topic: usize, messages: u8, bytes: usize },
    Follow(usize, bool),
    Clear(usize),
    Pause(u8),
    Sweep { table: usize, max: usize },
    Limit(u64),
    Reload(usize),
    RemoveIdlest(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let topic = || 0..TOPICS;
    prop_oneof![
        20 => (topic(), 1..20_u8, 0..100_usize)
            .prop_map(|(topic, messages, bytes)| Step::Append { topic, messages, bytes }),
        4 => (topic(), any::<bool>()).prop_map(|(topic, is_followed)| Step::Follow(topic, is_followed)),
        1 => topic().prop_map(Step::Clear),
        4 => (0..8_u8).prop_map(Step::Pause),
        4 => (0..2_usize, 0..50_usize).prop_map(|(table, max)| Step::Sweep { table, max }),
        1 => (8_000..20_000_u64).prop_map(Step::Limit),
        1 => (0..RULES.len()).prop_map(Step::Reload),
        1 => (0..2_usize, 0..3_usize).prop_map(|(table, rule)| Step::RemoveIdlest(table, rule)),
    ]
}

/// A message that was ever published.
#[derive(Debug, Clone, Copy)]
struct Published {
    topic: usize,
    stream: StreamId,
    offset: u64,
    at: u32,
    bytes: u64,
    is_kept: bool,
}

/// Two tables, and a list of all messages that were ever published.
struct Model {
    budget: Arc<Budget>,
    tables: [Table; 2],
    streams: BTreeMap<usize, StreamId>,
    followed: [bool; TOPICS],
    published: Vec<Published>,
    now: u32,
    random: u64,
    evicted: Evicted<u64>,
}

impl Model {
    fn new() -> Self {
        let limits = BudgetLimits::default().with_bytes(10_000).with_streams(20);
        let budget = budget(&RULES[0], limits.with_forget(std::time::Duration::from_secs(15)));
        let tables = [0, 1].map(|_| Table::new(Arc::clone(&budget)));
        let (streams, followed) = (BTreeMap::new(), [false; TOPICS]);
        Self {
            budget,
            tables,
            streams,
            followed,
            published: vec![],
            now: 0,
            random: 0,
            evicted: Evicted::new(),
        }
    }

    fn rule_of(topic: usize) -> RuleId {
        rule(topic % 3)
    }

    fn usages(&self) -> Vec<crate::RuleUsage> {
        (0..3).map(|index| self.budget.usage(rule(index)).unwrap()).collect()
    }

    /// Checks that other rules than `own` still have what they had, up to their share.
    fn check_shares(&self, before: &[crate::RuleUsage], own: Option<RuleId>) {
        for (index, (before, after)) in before.iter().zip(self.usages()).enumerate() {
            let floor = before.bytes.min(after.share_bytes);
            assert!(own == Some(rule(index)) || after.bytes >= floor, "rule {index}: {before:?} {after:?}");
        }
    }

    fn stream(&mut self, topic: usize) -> Option<StreamId> {
        if let Some(id) = self.streams.get(&topic) {
            return Some(*id);
        }
        self.random += 1;
        let (random, now) = (self.random, at(self.now));
        let before = self.usages();
        let usage = before[topic % 3];
        let table = &mut self.tables[topic % 2];
        match table.open(Self::rule_of(topic), topic, random, now, &mut self.evicted) {
            Ok(Opened { id, replaced }) => {
                if let Some(replaced) = replaced {
                    assert!(!self.followed[replaced], "a stream with subscribers was replaced");
                    assert_eq!(replaced % 3, topic % 3, "a stream of another rule was replaced");
                    self.streams.remove(&replaced);
                }
                assert_eq!(table.get(id).unwrap().epoch(), Epoch::from_bits(random));
                self.streams.insert(topic, id);
                self.tables[topic % 2].set_followed(id, self.followed[topic], now);
                Some(id)
            }
            Err(OpenError::NoHistory) => {
                let keeps = self.budget.rules()[Self::rule_of(topic)].policy().keeps_history();
                assert!(!keeps);
                None
            }
            Err(OpenError::TooManyStreams) => {
                assert!(usage.streams >= usage.max_streams || self.budget.streams() >= 20);
                None
            }
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Append { topic, messages, bytes } => {
                let Some(id) = self.stream(topic) else { return };
                for _ in 0..messages {
                    let before = self.usages();
                    let number = self.published.len() as u64;
                    let table = &mut self.tables[topic % 2];
                    let newest = table.get(id).unwrap().newest();
                    let appended =
                        table.append(id, at(self.now), &mut self.evicted, |_, _| (number, bytes)).unwrap();
                    assert_eq!(appended.offset, newest + 1);
                    self.published.push(Published {
                        topic,
                        stream: id,
                        offset: appended.offset,
                        at: self.now,
                        bytes: bytes as u64,
                        is_kept: true,
                    });
                    self.check_shares(&before, Some(Self::rule_of(topic)));
                    if appended.is_over_budget {
                        self.relieve();
                    }
                    assert_eq!(self.budget.excess(), 0);
                    self.check();
                }
            }
            Step::Follow(topic, is_followed) => {
                self.followed[topic] = is_followed;
                if let Some(id) = self.streams.get(&topic) {
                    self.tables[topic % 2].set_followed(*id, is_followed, at(self.now));
                }
            }
            Step::Clear(topic) => {
                if let Some(id) = self.streams.get(&topic) {
                    self.random += 1;
                    assert!(self.tables[topic % 2].clear(*id, self.random, at(self.now), &mut self.evicted));
                    assert!(self.tables[topic % 2].get(*id).unwrap().is_empty());
                }
            }
            Step::Pause(seconds) => self.now += u32::from(seconds),
            Step::Sweep { table, max } => {
                let before = self.usages();
                let swept = self.tables[table].sweep(at(self.now), max, &mut self.evicted);
                assert!(self.evicted.messages().count() + swept.removed.len() <= max);
                if self.evicted.count(EvictionReason::Age) == 0 {
                    self.check_shares(&before, None);
                }
                for topic in swept.removed {
                    assert!(!self.followed[topic], "a stream with subscribers was forgotten");
                    self.streams.remove(&topic);
                }
                if !swept.has_more {
                    self.check_expired(table);
                }
            }
            Step::Limit(bytes) => {
                self.budget.set_limit_bytes(bytes);
                self.relieve();
                assert_eq!(self.budget.excess(), 0);
            }
            Step::Reload(rules) => {
                let limits = BudgetLimits::default().with_bytes(self.budget.limit_bytes()).with_streams(20);
                let limits = limits.with_message_overhead(rules as u32 * 10);
                let new = budget(&RULES[rules], limits.with_forget(std::time::Duration::from_secs(15)));
                let old = std::mem::replace(&mut self.budget, Arc::clone(&new));
                for table in &mut self.tables {
                    let removed = table.set_budget(
                        Arc::clone(&new),
                        |topic| Some(Self::rule_of(*topic)),
                        &mut self.evicted,
                    );
                    for RemovedStream { name: topic, .. } in removed {
                        assert!(!new.rules()[Self::rule_of(topic)].policy().keeps_history());
                        self.streams.remove(&topic);
                    }
                }
                assert_eq!((old.bytes(), old.streams()), (0, 0));
                self.relieve();
            }
            Step::RemoveIdlest(table, index) => {
                let rule = rule(index);
                let removed = self.tables[table].remove_idlest(rule, &mut self.evicted);
                let idle = |topic: &usize| topic % 2 == table && topic % 3 == index && !self.followed[*topic];
                assert_eq!(removed.is_some(), self.streams.keys().any(idle));
                if let Some(topic) = removed {
                    assert!(idle(&topic));
                    self.streams.remove(&topic);
                }
            }
        }
        self.check();
    }

    /// Sweeps all tables, as a caller does that is told of too many bytes.
    fn relieve(&mut self) {
        for table in &mut self.tables {
            for topic in table.sweep(at(self.now), usize::MAX, &mut self.evicted).removed {
                self.streams.remove(&topic);
            }
        }
    }

    fn ttl(&self, topic: usize) -> u32 {
        self.budget.rules()[Self::rule_of(topic)].policy().retention().ttl_seconds
    }

    fn check_expired(&mut self, table: usize) {
        self.note_evicted();
        for message in self.published.iter().filter(|message| message.is_kept && message.topic % 2 == table) {
            assert!(self.now - message.at <= self.ttl(message.topic), "{message:?} is expired");
        }
    }

    fn note_evicted(&mut self) {
        for number in self.evicted.messages() {
            let message = &mut self.published[*number as usize];
            assert!(message.is_kept, "{message:?} left twice");
            message.is_kept = false;
        }
        let counted: u64 = EvictionReason::ALL.iter().map(|reason| self.evicted.count(*reason)).sum();
        assert_eq!(counted, self.evicted.messages().count() as u64);
        self.evicted.clear();
    }

    /// Compares the tables with the list.
    fn check(&mut self) {
        self.note_evicted();
        let kept = || self.published.iter().filter(|message| message.is_kept);
        let each = 32 + u64::from(self.budget.message_overhead());
        assert_eq!(self.budget.bytes(), kept().map(|message| message.bytes + each).sum::<u64>());
        assert_eq!(self.budget.streams(), self.streams.len() as u64);
        assert_eq!(self.tables.iter().map(|table| table.len()).sum::<usize>(), self.streams.len());
        assert_eq!(self.tables.iter().map(Table::messages).sum::<u64>(), kept().count() as u64);
        for (index, usage) in self.usages().into_iter().enumerate() {
            let own = kept().filter(|message| message.topic % 3 == index);
            assert_eq!(usage.bytes, own.map(|message| message.bytes + each).sum::<u64>());
            assert_eq!(usage.streams, self.streams.keys().filter(|topic| *topic % 3 == index).count() as u64);
        }
        for (topic, id) in &self.streams {
            let table = &self.tables[topic % 2];
            let stream = table.get(*id).unwrap_or_else(|| panic!("stream {topic} is gone"));
            assert_eq!((table.name(*id), table.rule(*id)), (Some(topic), Some(Self::rule_of(*topic))));
            let offsets: Vec<_> = kept()
                .filter(|message| message.stream == *id && message.topic == *topic)
                .map(|message| message.offset)
                .collect();
            assert!(stream.messages(..).map(|(offset, _)| offset).eq(offsets.iter().copied()));
            assert_eq!(offsets, (stream.oldest()..=stream.newest()).collect::<Vec<_>>(), "there is a hole");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    /// For any steps, tables and budget agree with a list of all messages, the budget holds, and no
    /// rule loses a part of its share to another.
    #[test]
    fn the_tables_agree_with_a_list_of_all_messages(steps in proptest::collection::vec(step(), 0..80)) {
        let mut model = Model::new();
        for step in steps {
            model.apply(step);
        }
    }
}

#[test]
fn a_store_keeps_what_the_budget_evicts_and_nothing_else() {
    let limits = BudgetLimits::default().with_bytes(1000).with_forget(std::time::Duration::from_secs(5));
    let shared = budget(&["a: history=20 ttl=100s"], limits);
    let mut table = Table::new(Arc::clone(&shared)).with_store();
    let mut evicted = Evicted::new();
    let id = table.open(rule(0), 0, 1, at(0), &mut evicted).unwrap().id;
    let oldest = |table: &Table, now| table.oldest_stored(id, at(now), at(0)).unwrap();
    assert_eq!(oldest(&table, 0), 1);
    (0..15).for_each(|_| _ = append(&mut table, id, 10, &mut evicted));
    let in_memory = kept(&table, id);
    assert!(in_memory.len() < 15 && evicted.count(EvictionReason::Budget) > 0);
    assert_eq!(oldest(&table, 10), 1, "all are in memory or in the store");
    (0..10).for_each(|_| _ = append(&mut table, id, 60, &mut evicted));
    assert_eq!(oldest(&table, 60), 6, "the rule allows twenty");
    assert_eq!(table.oldest_stored(id, at(60), at(50)), Some(16), "the store has dropped older ones");
    // The messages of the tenth second expire.
    assert_eq!(oldest(&table, 111), 16);
    // A stream lives as long as the store has messages of it, although there are none in memory.
    shared.set_limit_bytes(0);
    while table.sweep(at(70), 100, &mut evicted).has_more {}
    assert_eq!((kept(&table, id).len(), oldest(&table, 70)), (0, 6));
    assert!(table.sweep(at(160), 100, &mut evicted).removed.is_empty());
    assert_eq!(table.sweep(at(167), 100, &mut evicted).removed, [0]);
}

#[test]
fn a_failed_append_changes_nothing() {
    let shared = budget(&["a: history=2"], BudgetLimits::default());
    let mut table = Table::new(Arc::clone(&shared));
    let mut evicted = Evicted::new();
    let id = table.open(rule(0), 0, 1, at(0), &mut evicted).unwrap().id;
    (0..2).for_each(|_| _ = append(&mut table, id, 1, &mut evicted));
    let before = (kept(&table, id), table.messages(), shared.bytes());
    for _ in 0..2 {
        let failed = table.try_append(id, at(2), &mut evicted, |_, offset, policy| {
            assert_eq!((offset, policy.history()), (3, 2));
            Err::<(u64, usize), _>("full")
        });
        assert_eq!(failed, Err("full"));
        assert_eq!((kept(&table, id), table.messages(), shared.bytes()), before);
    }
    assert_eq!(append(&mut table, id, 3, &mut evicted).offset, 3);
}

#[test]
fn restored_streams_take_no_places_of_others() {
    let shared = budget(&["a.>: history=2 max_streams=1"], BudgetLimits::default());
    let mut table = Table::new(Arc::clone(&shared));
    let mut evicted = Evicted::new();
    let stream = |epoch| Stream::restore(Epoch::from_bits(epoch), 0, None, []);
    let first = table.restore(rule(0), 7, stream(1), at(0), &mut evicted).unwrap();
    let second = table.restore(rule(0), 8, stream(2), at(0), &mut evicted);
    assert_eq!(second, Err(OpenError::TooManyStreams));
    assert_eq!((table.name(first), shared.streams()), (Some(&7), 1));
}
