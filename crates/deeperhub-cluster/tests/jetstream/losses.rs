//! A store that lost messages or positions begins a larger epoch. No position is given twice.

use deeperhub_cluster::{Append, BrokerUrl, Config, ResetStream, ResetWhen, StorePosition, StreamStorage};
use serde_json::Value;

use crate::node::{LIMITS, Node, Received, contents, message, read, topic};
use crate::server::Server;
use crate::wait;

fn known(node: &Node, number: u64, known: StorePosition) -> StorePosition {
    node.store_with(number, Append { known: Some(known), ..message("t", &number.to_string()) })
}

fn reset(node: &Node, name: &str, known: Option<StorePosition>, when: ResetWhen) -> StorePosition {
    let reset = ResetStream { topic: topic(name), known, limits: LIMITS, when };
    wait(node.broker.reset_stream(reset).unwrap()).unwrap()
}

fn payloads(node: &Node, name: &str) -> Vec<String> {
    contents(&node.read(read(name, None, 99))).into_iter().map(|(_, payload)| payload).collect()
}

#[test]
fn a_store_that_knows_less_than_a_node_begins_a_larger_epoch() {
    let Some(server) = Server::start("") else { return };
    let node = Node::join(&server.url(), "a");
    let first = node.store("t", 1);
    node.store("u", 2);
    // The knowledge of a node is no reason if the store knows as much or more.
    for (number, offset) in [(3, 0), (4, 2)] {
        assert_eq!(known(&node, number, StorePosition { offset, ..first }).epoch, first.epoch);
    }
    assert_eq!(known(&node, 5, StorePosition { epoch: first.epoch - 1, offset: 1000 }).epoch, first.epoch);
    // A higher offset of the same epoch: the stream has lost messages of all topics.
    let second = known(&node, 6, StorePosition { offset: 1000, ..first });
    assert!(second.epoch > first.epoch);
    assert_eq!((payloads(&node, "t"), payloads(&node, "u").len()), (vec!["6".to_owned()], 0));
    // A larger epoch of one topic concerns that topic.
    let third = known(&node, 7, StorePosition { epoch: second.epoch + 50_000, offset: 3 });
    assert_eq!(third.epoch, second.epoch + 50_001);
    assert_eq!(payloads(&node, "t"), ["7"]);
    assert_eq!(node.store("u", 8).epoch, second.epoch);
    // Nodes that do not know of it yet change nothing.
    assert_eq!(known(&node, 9, first).epoch, third.epoch);
    // A number that no store gives does not count.
    assert_eq!(known(&node, 10, StorePosition { epoch: u64::MAX, offset: 1 }).epoch, third.epoch);
}

#[test]
fn a_lost_stream_begins_a_larger_epoch() {
    for storage in [StreamStorage::File, StreamStorage::Memory] {
        let Some(mut server) = Server::start("") else { return };
        let mut config = Config::new(BrokerUrl::parse(&server.url()).unwrap());
        config.stream_storage = storage;
        let node = Node::join_with(config, "a", &[(">", LIMITS)]);
        let before = node.store("t", 1);
        server.kill();
        node.wait_until_down();
        if storage == StreamStorage::File {
            server.put_back(None);
        }
        server.start_again();
        node.wait_until_up();
        let after = node.store("t", 2);
        assert!(after.epoch > before.epoch, "{before:?} {after:?}");
        assert_eq!((after.offset, payloads(&node, "t")), (1, vec!["2".to_owned()]));
    }
}

#[test]
fn a_stream_that_was_deleted_begins_a_larger_epoch() {
    let Some(server) = Server::start("") else { return };
    let (node, other) = (Node::join(&server.url(), "a"), Node::join(&server.url(), "b"));
    other.follow("t");
    let before = node.store("t", 1);
    let stream = server.stream();
    server.api(&format!("STREAM.DELETE.{stream}"), &Value::Null);
    // A look or a read finds it out, as an append does.
    let tops = wait(other.broker.read_tops(vec![topic("t")], None).unwrap()).unwrap();
    let position = tops[0].position.unwrap();
    assert!(position.epoch > before.epoch && position.offset == 0, "{position:?}");
    let after = node.store("t", 2);
    assert_eq!(after, StorePosition { epoch: position.epoch, offset: 1 });
    assert!(matches!(&other.receive(2)[1], Received::Stored { position, .. } if *position == after));
}

/// Everything that the server has written since the copy is lost, as after a crash of its machine.
#[test]
fn a_server_that_lost_its_newest_messages_begins_a_larger_epoch() {
    for overwrites in [false, true] {
        let Some(mut server) = Server::start("") else { return };
        let node = Node::join(&server.url(), "a");
        node.follow("t");
        let before = node.store("t", 1);
        server.kill();
        let copy = server.copy_store();
        server.start_again();
        node.wait_until_up();
        for number in 2..=5_u64 {
            crate::eventually("a place in the queue", || {
                node.append(number, message("t", &number.to_string())).is_ok()
            });
        }
        assert_eq!(node.outcome(5).unwrap().position, StorePosition { offset: 5, ..before });
        node.receive(5);
        server.kill();
        node.wait_until_down();
        server.put_back(Some(&copy));
        server.start_again();
        if overwrites {
            // A node that knows less gives the lost positions to other messages.
            let other = Node::join(&server.url(), "b");
            for number in 12..=17_u64 {
                other.store("t", number);
            }
        }
        node.wait_until_up();
        let after = node.store("t", 6);
        assert!(after.epoch > before.epoch, "{overwrites}: {before:?} {after:?}");
        // The new stream has messages of the new epoch alone. The other node can have stored some in it.
        let payloads = payloads(&node, "t");
        let (last, others) = payloads.split_last().unwrap();
        assert_eq!(last, "6");
        assert!(others.iter().all(|other| overwrites && other.len() == 2), "{payloads:?}");
    }
}

#[test]
fn a_reset_is_told_to_all_nodes_in_the_order_of_the_stream() {
    let Some(server) = Server::start("") else { return };
    let (node, other) = (Node::join(&server.url(), "a"), Node::join(&server.url(), "b"));
    // This node does not follow the topic, and publishes.
    let third = Node::join(&server.url(), "c");
    [&node, &other].iter().for_each(|node| node.follow("t"));
    let before = node.store("t", 1);
    third.store("u", 2);
    // The store is not behind, so nothing happens.
    let present = reset(&node, "t", None, ResetWhen::StoreIsBehind);
    assert_eq!(present, StorePosition { offset: 2, ..before });
    assert_eq!(reset(&node, "t", Some(present), ResetWhen::StoreIsBehind), present);
    let after = reset(&node, "t", Some(before), ResetWhen::Always);
    assert!(after.epoch > before.epoch && after.offset > before.offset);
    let range = node.read(read("t", Some(after), 9));
    assert_eq!((range.top.unwrap().epoch, range.messages.len()), (after.epoch, 0));
    assert_eq!(range.whole.unwrap().after, after.offset);
    crate::eventually("the epoch at the other node", || {
        other.received().contains(&Received::Reset { epoch: after.epoch })
    });
    crate::eventually("the epoch at the third node", || !third.received().is_empty());
    let next = third.store("t", 3);
    assert_eq!(next.epoch, after.epoch);
    for node in [&node, &other] {
        crate::eventually(
            "the message",
            || matches!(node.received().last(), Some(Received::Stored { position, .. }) if *position == next),
        );
        // The message that told the epoch is none that subscribers lack.
        assert!(matches!(node.received().last(), Some(Received::Stored { previous: 0, .. })));
        assert_eq!(payloads(node, "t"), ["3"]);
    }
    // A node that joins later learns it from the stream.
    let fourth = Node::join(&server.url(), "d");
    assert_eq!(fourth.store("t", 4).epoch, after.epoch);
    assert_eq!(fourth.store("u", 5).epoch, before.epoch);
    let range = fourth.read(read("t", None, 9));
    assert_eq!(range.top.unwrap().epoch, after.epoch);
    assert_eq!(contents(&range).iter().map(|(_, payload)| &**payload).collect::<Vec<_>>(), ["3", "4"]);
}
