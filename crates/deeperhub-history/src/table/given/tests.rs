use super::*;
use crate::{Budget, BudgetLimits, RuleId, Rules, StoredMessage, Stream};
use proptest::prelude::*;
use std::sync::Arc;

const OVERHEAD: u32 = 7;

fn table(bytes: u64) -> (StreamTable<u64, u8>, RuleId) {
    let rules = Rules::new(["a.>: history=6 history_bytes=100 ttl=10s".parse().unwrap()]).unwrap();
    let rule = rules.iter().next().unwrap().0;
    let limits = BudgetLimits::default().with_bytes(bytes).with_message_overhead(OVERHEAD);
    (StreamTable::new(Arc::new(Budget::new(rules, limits))), rule)
}

fn stored(offset: u64, bytes: usize, at: u32) -> StoredMessage<u64> {
    let at = Seconds::new(at);
    StoredMessage { offset, prev: 0, message: offset, bytes, at, is_duplicate: false }
}

fn message(offset: u64, bytes: usize, at: u32) -> MirrorStep<u64> {
    MirrorStep::Message { message: stored(offset, bytes, at), prev: 0 }
}

fn kept(table: &StreamTable<u64, u8>, id: StreamId) -> Vec<u64> {
    let stream: &Stream<u64> = table.get(id).unwrap();
    assert!(stream.messages(..).all(|(offset, message)| offset == *message));
    stream.messages(..).map(|(offset, _)| offset).collect()
}

/// Checks that the counts of the table and the budget are those of its streams.
fn check_counts(table: &StreamTable<u64, u8>, ids: &[StreamId]) {
    let streams = || ids.iter().filter_map(|id| table.get(*id));
    assert_eq!(table.messages(), streams().map(|stream| stream.len() as u64).sum::<u64>());
    assert_eq!(table.budget().bytes(), streams().map(|stream| stream.charge(OVERHEAD)).sum::<u64>());
}

#[test]
fn steps_of_a_mirror_are_applied_within_the_bounds() {
    let (mut table, rule) = table(1 << 20);
    let (now, mut evicted) = (Seconds::new(100), Evicted::new());
    let id = table.open(rule, 1, 5, now, &mut evicted).unwrap().id;
    let mut apply = |table: &mut StreamTable<_, _>, step| table.apply(id, now, &mut evicted, step);
    let applied = Some(Applied { is_over_budget: false });
    assert_eq!(apply(&mut table, MirrorStep::NewEpoch { epoch: 9, after: 40 }), applied);
    for offset in [41, 43, 44] {
        assert_eq!(apply(&mut table, message(offset, 10, 100)), applied);
    }
    assert_eq!(apply(&mut table, MirrorStep::Duplicate { offset: 45 }), applied);
    assert_eq!(apply(&mut table, MirrorStep::Missing { from: 45, to: 50, reason: GapReason::Lost }), applied);
    assert_eq!(apply(&mut table, message(51, 10, 100)), applied);
    // An offset that is not new changes nothing.
    assert_eq!(apply(&mut table, message(51, 10, 100)), applied);
    assert_eq!(kept(&table, id), [41, 43, 44, 51]);
    check_counts(&table, &[id]);
    let stream = table.get(id).unwrap();
    assert_eq!((stream.epoch(), stream.newest(), stream.oldest()), (Epoch::from_bits(9), 51, 41));
    (52..60).for_each(|offset| assert_eq!(apply(&mut table, message(offset, 20, 100)), applied));
    assert_eq!(kept(&table, id), [55, 56, 57, 58, 59]);
    // A message over the bounds is not kept.
    assert_eq!(apply(&mut table, message(70, 101, 100)), applied);
    assert_eq!((kept(&table, id), table.get(id).unwrap().oldest()), (vec![], 71));
    check_counts(&table, &[id]);
    table.remove(id, &mut Evicted::new());
    assert_eq!(table.apply(id, now, &mut evicted, message(80, 1, 100)), None);
    assert_eq!(table.append_at(id, now, &mut evicted, stored(80, 1, 100)), None);
    assert!(!table.pass_to(id, 90) && !table.skip_missing(id, 90, GapReason::Lost, now, &mut evicted));
    assert!(!table.start_epoch(id, Epoch::from_bits(1), 0, now, &mut evicted));
}

#[test]
fn messages_of_a_store_expire_with_their_own_time() {
    let (mut table, rule) = table(1 << 20);
    let mut evicted = Evicted::new();
    let id = table.open(rule, 1, 5, Seconds::new(100), &mut evicted).unwrap().id;
    for (offset, at) in [(5, 93), (7, 97), (9, 100)] {
        let appended = table.append_at(id, Seconds::new(100), &mut evicted, stored(offset, 1, at)).unwrap();
        assert_eq!((appended.offset, appended.is_over_budget), (offset, false));
    }
    for (now, left) in [(103, vec![5, 7, 9]), (104, vec![7, 9]), (108, vec![9]), (111, vec![])] {
        table.sweep(Seconds::new(now), 100, &mut evicted);
        assert_eq!(kept(&table, id), left, "{now}");
    }
    // The empty stream goes on, and its positions stay good.
    assert_eq!(table.get(id).map(|stream| (stream.newest(), stream.oldest())), Some((9, 10)));
}

#[test]
fn sparse_streams_of_a_table_with_a_store_are_within_the_budget() {
    let (table, rule) = table(600);
    let (mut table, mut evicted) = (table.with_store(), Evicted::new());
    let ids = [1, 2].map(|name| table.open(rule, name, 5, Seconds::new(1), &mut evicted).unwrap().id);
    for offset in 1..40 {
        for id in ids {
            table.append_at(id, Seconds::new(1), &mut evicted, stored(3 * offset, 30, 1)).unwrap();
            table.append_at(id, Seconds::new(1), &mut evicted, stored(3 * offset + 1, 30, 1)).unwrap();
            assert!(table.budget().bytes() <= 600);
            check_counts(&table, &ids);
        }
    }
    assert_eq!(
        table.oldest_stored(ids[1], Seconds::new(1), Seconds::new(0)),
        table.get(ids[1]).map(Stream::oldest)
    );
}

#[derive(Debug, Clone, Copy)]
enum Change {
    Message(u64, usize, u32),
    Append(usize),
    Missing(u64),
    Duplicate,
    NewEpoch(u64),
    Follow(bool),
    Sweep,
    Remove,
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        8 => (1..4_u64, 0..120_usize, 0..12_u32).prop_map(|(distance, bytes, age)| Change::Message(distance, bytes, age)),
        2 => (0..120_usize).prop_map(Change::Append),
        1 => (1..9_u64).prop_map(Change::Missing),
        1 => Just(Change::Duplicate),
        1 => (0..90_u64).prop_map(Change::NewEpoch),
        1 => any::<bool>().prop_map(Change::Follow),
        2 => Just(Change::Sweep),
        1 => Just(Change::Remove),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever a store gives, the budget holds, and all is counted and given back.
    #[test]
    fn the_budget_counts_what_streams_of_a_store_keep(
        changes in proptest::collection::vec((0..4_usize, 0..3_u32, change()), 1..200),
        bytes in 300..3000_u64,
    ) {
        let (mut table, rule) = table(bytes);
        let budget = Arc::clone(table.budget());
        let mut evicted = Evicted::new();
        let (mut now, mut epoch) = (Seconds::new(20), 1);
        let open = |table: &mut StreamTable<u64, u8>, now| {
            table.open(rule, 1, 5, now, &mut Evicted::new()).unwrap().id
        };
        let mut ids: Vec<_> = (0..4).map(|_| open(&mut table, now)).collect();
        for (index, pause, change) in changes {
            now = Seconds::new(now.get() + pause);
            let id = ids[index];
            let newest = table.get(id).unwrap().newest();
            let step = match change {
                Change::Message(distance, bytes, age) => message(newest + distance, bytes, now.get() - age),
                Change::Missing(count) => {
                    MirrorStep::Missing { from: newest + 1, to: newest + count, reason: GapReason::Lost }
                }
                Change::Duplicate => MirrorStep::Duplicate { offset: newest + 1 },
                Change::NewEpoch(after) => {
                    epoch += 1;
                    MirrorStep::NewEpoch { epoch, after }
                }
                Change::Append(bytes) => {
                    table.append(id, now, &mut evicted, |_, offset| (offset, bytes));
                    MirrorStep::Duplicate { offset: 0 }
                }
                Change::Follow(is_followed) => {
                    table.set_followed(id, is_followed, now);
                    MirrorStep::Duplicate { offset: 0 }
                }
                Change::Sweep => {
                    table.sweep(now, 100, &mut evicted);
                    prop_assert_eq!(budget.excess(), 0);
                    MirrorStep::Duplicate { offset: 0 }
                }
                Change::Remove => {
                    table.remove(id, &mut evicted);
                    ids[index] = open(&mut table, now);
                    MirrorStep::Duplicate { offset: 0 }
                }
            };
            table.apply(ids[index], now, &mut evicted, step);
            check_counts(&table, &ids);
            for id in &ids {
                kept(&table, *id);
            }
        }
        drop(table);
        prop_assert_eq!((budget.bytes(), budget.streams()), (0, 0));
    }
}
