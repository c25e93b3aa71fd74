//! Reads of streams and of their newest positions.

use deeperhub_cluster::{
    Append, InterestChange, MAX_TOPS, StorePosition, StoredEnvelope, StreamLimits, StreamRange, StreamRead,
    Topic,
};

use crate::node::{LIMITS, Node, contents, message, numbers, read, topic};
use crate::store::Store;
use crate::wait;

on_each_store!(
    reads_continue_after_a_position,
    large_answers_are_cut,
    tops_come_in_one_exchange,
    a_read_waits_for_the_interest_that_was_announced_before,
);

/// Joins with a limit of 200 messages, and appends the numbers up to 300. Returns the newest
/// position.
pub(crate) fn keep_the_last_200_of_300(server: &impl Store) -> (Node, StorePosition) {
    let limits = StreamLimits { messages: 200, ..LIMITS };
    let node = Node::join_with(server.config(), "a", &[(">", limits)]);
    for number in 1..=300_u64 {
        node.append(number, Append { limits, ..message("t", &number.to_string()) }).unwrap();
    }
    let top = node.outcome(300).unwrap().position;
    (node, top)
}

fn reads_continue_after_a_position<S: Store>() {
    let Some(server) = S::start() else { return };
    let (node, top) = keep_the_last_200_of_300(&server);
    let after = |offset| Some(StorePosition { offset, ..top });
    for (from, count, expected) in [
        (after(300), 9, 301..301),
        (after(290), 100, 291..301),
        (after(100), 3, 101..104),
        (after(200), 1000, 201..301),
        // Offsets 1 to 100 are no longer kept.
        (after(50), 10, 101..111),
        (after(0), 1000, 101..301),
        // The store knows less than the node.
        (after(301), 9, 301..301),
        (after(5000), 9, 301..301),
        // The last messages.
        (None, 5, 296..301),
        (None, 1, 300..301),
        (None, 199, 102..301),
        (None, 1000, 101..301),
        (None, 0, 301..301),
        // Another epoch: the last messages of this one.
        (Some(StorePosition { epoch: top.epoch - 1, offset: 299 }), 2, 299..301),
        (Some(StorePosition { epoch: top.epoch + 1, offset: 299 }), 2, 299..301),
    ] {
        let range = node.read(read("t", from, count));
        assert_eq!((range.top, range.is_cut), (Some(top), false), "{from:?} {count}");
        assert_eq!(contents(&range), numbers(expected), "{from:?} {count}");
        // JetStream counts only messages after the position.
        if !S::SHARES_OFFSETS || from.is_none_or(|from| from.epoch != top.epoch) {
            assert_eq!((range.oldest, range.kept), (101, 200), "{from:?} {count}");
        }
    }
}

fn large_answers_are_cut<S: Store>() {
    let Some(server) = S::start() else { return };
    let node = Node::join(&server.url(), "a");
    let payload = |number: u64| format!("\"{number}:{}\"", "x".repeat(10_000));
    for number in 1..=100_u64 {
        node.append(number, message("t", &payload(number))).unwrap();
    }
    let top = node.outcome(100).unwrap().position;
    let bytes = |range: &StreamRange| range.messages.iter().map(StoredEnvelope::len).sum::<usize>();
    let mut position = StorePosition { offset: 0, ..top };
    let mut reads = 0;
    while position.offset < 100 {
        let range = node.read(read("t", Some(position), 1000));
        assert!(bytes(&range) <= 300 << 10, "{}", bytes(&range));
        for (offset, text) in contents(&range) {
            assert_eq!((offset, text), (position.offset + 1, payload(offset)));
            position.offset = offset;
        }
        assert_eq!(range.is_cut, position.offset < 100);
        if let Some(whole) = range.whole {
            assert_eq!(whole.to, position.offset);
        }
        reads += 1;
    }
    assert!((3..=6).contains(&reads), "{reads}");
    // One message that is larger than an answer passes alone.
    let large = format!("\"{}\"", "x".repeat(S::LARGE_MESSAGE_BYTES));
    node.store_with(101, message("t", &large));
    assert_eq!(contents(&node.read(read("t", Some(top), 1000))), [(101, large)]);
}

fn tops_come_in_one_exchange<S: Store>() {
    let Some(server) = S::start() else { return };
    let node = Node::join(&server.url(), "a");
    let stored: Vec<_> = (1..=3).map(|number| node.store(&format!("t{number}"), number)).collect();
    let topics: Vec<Topic<'static>> = (0..MAX_TOPS).map(|number| topic(&format!("t{number}"))).collect();
    let tops = wait(node.broker.read_tops(topics, None).unwrap()).unwrap();
    assert_eq!(tops.len(), MAX_TOPS);
    let positions: Vec<_> = tops.iter().map(|top| top.position).collect();
    assert_eq!(positions[1..4], [0, 1, 2].map(|index| Some(stored[index])));
    // Topics without messages.
    let unknown = S::SHARES_OFFSETS.then(|| StorePosition { offset: 0, ..stored[0] });
    assert!(positions[4..].iter().chain(&positions[..1]).all(|position| *position == unknown));
    assert!(tops.iter().all(|top| top.time >= stored[0].epoch));
}

fn a_read_waits_for_the_interest_that_was_announced_before<S: Store>() {
    let Some(server) = S::start() else { return };
    let (node, sender) = (Node::join(&server.url(), "a"), Node::join(&server.url(), "b"));
    for number in 1..=50_u64 {
        let name = format!("t{number}");
        node.broker.change_interest(&name.as_str().into(), InterestChange::Gained);
        let follow = StreamRead { follows: true, ..read(&name, None, 1) };
        wait(node.broker.read_streams(vec![follow]).unwrap()).unwrap().remove(0).unwrap();
        // From now on no message is missed.
        sender.store_with(number, message(&name, "1"));
        assert_eq!(node.receive(number as usize).len(), number as usize);
    }
}
