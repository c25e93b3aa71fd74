//! A store that lost messages or positions begins a larger epoch. No position is given twice.

use deeperhub_cluster::{Append, ResetStream, ResetWhen, StorePosition};

use crate::node::{LIMITS, Node, Received, contents, message, read, topic};
use crate::store::Store;
use crate::{eventually, wait};

on_each_store!(
    a_store_that_knows_less_than_a_node_begins_a_larger_epoch,
    an_empty_server_begins_a_larger_epoch,
    a_reset_is_told_to_all_nodes,
);

/// Appends a number to the topic `t`, from a node that knows a position of the topic.
pub(crate) fn append_known(node: &Node, number: u64, known: StorePosition) -> StorePosition {
    node.store_with(number, Append { known: Some(known), ..message("t", &number.to_string()) })
}

/// Starts a new stream of the topic `t`, if the condition holds.
pub(crate) fn reset(node: &Node, known: Option<StorePosition>, when: ResetWhen) -> StorePosition {
    let reset = ResetStream { topic: topic("t"), known, limits: LIMITS, when };
    wait(node.broker.reset_stream(reset).unwrap()).unwrap()
}

/// Returns the payloads of all messages that are kept of a topic.
pub(crate) fn payloads(node: &Node, name: &str) -> Vec<String> {
    contents(&node.read(read(name, None, 99))).into_iter().map(|(_, payload)| payload).collect()
}

fn a_store_that_knows_less_than_a_node_begins_a_larger_epoch<S: Store>() {
    let Some(server) = S::start() else { return };
    let node = Node::join(&server.url(), "a");
    let first = node.store("t", 1);
    // The knowledge of a node is no reason if the store knows as much or more.
    for (number, offset) in [(2, 0), (3, 1), (4, 3)] {
        assert_eq!(append_known(&node, number, StorePosition { offset, ..first }).epoch, first.epoch);
    }
    let earlier = StorePosition { epoch: first.epoch - 1, offset: 1000 };
    assert_eq!(append_known(&node, 5, earlier), StorePosition { offset: 5, ..first });
    // A higher offset of the same epoch.
    let second = append_known(&node, 6, StorePosition { offset: 6, ..first });
    assert!(second.epoch > first.epoch);
    assert_eq!((second.offset, payloads(&node, "t")), (1, vec!["6".to_owned()]));
    // A larger epoch, as after a failover that lost the change.
    let third = append_known(&node, 7, StorePosition { epoch: second.epoch + 50_000, offset: 3 });
    assert_eq!(third.epoch, second.epoch + 50_001);
    assert_eq!(payloads(&node, "t"), ["7"]);
    // Nodes that do not know of it yet change nothing.
    assert_eq!(append_known(&node, 8, first), StorePosition { offset: third.offset + 1, ..third });
    // A number that no store gives does not count.
    assert_eq!(
        append_known(&node, 9, StorePosition { epoch: u64::MAX, offset: 1 }),
        StorePosition { offset: third.offset + 2, ..third }
    );
}

fn an_empty_server_begins_a_larger_epoch<S: Store>() {
    let Some(mut server) = S::start() else { return };
    let node = Node::join(&server.url(), "a");
    let before = node.store("t", 1);
    server.kill();
    node.wait_until_down();
    server.remove_files();
    server.start_again();
    node.wait_until_up();
    let after = node.store("t", 2);
    assert!(after.epoch > before.epoch, "{before:?} {after:?}");
    assert_eq!((after.offset, payloads(&node, "t")), (1, vec!["2".to_owned()]));
}

fn a_reset_is_told_to_all_nodes<S: Store>() {
    let Some(server) = S::start() else { return };
    let (node, other) = (Node::join(&server.url(), "a"), Node::join(&server.url(), "b"));
    // This node does not follow the topic, and publishes.
    let publisher = Node::join(&server.url(), "c");
    [&node, &other].iter().for_each(|node| node.follow("t"));
    let before = node.store("t", 1);
    // The store is not behind, so nothing happens.
    assert_eq!(reset(&node, None, ResetWhen::StoreIsBehind), before);
    assert_eq!(reset(&node, Some(before), ResetWhen::StoreIsBehind), before);
    let after = reset(&node, Some(before), ResetWhen::Always);
    assert!(after.epoch > before.epoch, "{before:?} {after:?}");
    let range = node.read(read("t", Some(after), 9));
    assert_eq!((range.top, range.messages.len()), (Some(after), 0));
    eventually("the epoch at the other node", || {
        other.received().contains(&Received::Reset { epoch: after.epoch })
    });
    let next = publisher.store("t", 2);
    assert_eq!(next, StorePosition { offset: after.offset + 1, ..after });
    for node in [&node, &other] {
        let stored = Received::Stored { position: next, previous: 0, payload: "2".to_owned() };
        eventually("the message", || node.received().last() == Some(&stored));
        assert_eq!(payloads(node, "t"), ["2"]);
    }
    // A node that joins later learns the epoch from the store.
    let late = Node::join(&server.url(), "d");
    assert_eq!(late.store("t", 3), StorePosition { offset: after.offset + 2, ..after });
    assert_eq!(late.read(read("t", None, 9)).top.unwrap().epoch, after.epoch);
    assert_eq!(payloads(&late, "t"), ["2", "3"]);
}
