//! Lost keys, evictions, and a full server.

use deeperhub_cluster::{AppendError, ReadError, ResetWhen, StorePosition, StreamRead};

use super::server::{LIST, META, Reply, Server};
use crate::node::{Node, Received, contents, message, numbers, read, topic};
use crate::scenarios::{append_known, reset};
use crate::store::Store;
use crate::{eventually, wait};

#[test]
fn a_lost_position_begins_a_larger_epoch_without_the_messages_before() {
    let Some(server) = Server::start_with(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    let before = node.store("t", 1);
    // An epoch from a clock that was ahead: the new one is larger nevertheless.
    let ahead = append_known(&node, 2, StorePosition { epoch: before.epoch + 1_000_000, offset: 1 });
    assert_eq!(ahead, StorePosition { epoch: before.epoch + 1_000_001, offset: 1 });
    assert_eq!(server.run(&["DEL", META]).number(), 1);
    let after = node.store("t", 3);
    assert_eq!(after, StorePosition { epoch: ahead.epoch + 1, offset: 1 });
    assert_eq!(contents(&node.read(read("t", None, 9))), [(1, "3".to_owned())]);
    // A value that is not ours counts as lost, too.
    assert_eq!(server.run(&["SET", META, "17 bytes, not ours"]), Reply::Status("OK".to_owned()));
    assert_eq!(node.store("t", 4), StorePosition { epoch: after.epoch + 1, offset: 1 });
    server.run(&["DEL", META]);
    assert_eq!(server.run(&["RPUSH", META, "not ours, either"]).number(), 1);
    let top = wait(node.broker.read_tops(vec![topic("t")], None).unwrap()).unwrap();
    assert_eq!(top[0].position, None);
    assert_eq!(node.store("t", 5), StorePosition { epoch: after.epoch + 2, offset: 1 });
}

#[test]
fn a_lost_list_keeps_the_position() {
    let Some(server) = Server::start_with(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    let [first, _, _] = [1, 2, 3].map(|number| node.store("t", number));
    assert_eq!(server.run(&["DEL", LIST]).number(), 1);
    let range = node.read(read("t", Some(first), 9));
    assert_eq!((range.oldest, range.messages.len()), (4, 0));
    assert_eq!(node.store("t", 4), StorePosition { epoch: first.epoch, offset: 4 });
    let range = node.read(read("t", Some(first), 9));
    assert_eq!((range.oldest, contents(&range)), (4, numbers([4])));
}

#[test]
fn each_reset_is_told_once_and_in_order() {
    let Some(server) = Server::start_with(&[]) else { return };
    let (node, other) = (Node::join(&server.url(), "a"), Node::join(&server.url(), "b"));
    [&node, &other].iter().for_each(|node| node.follow("t"));
    let before = node.store("t", 1);
    let after = reset(&node, Some(before), ResetWhen::Always);
    assert!(after.epoch > before.epoch);
    assert_eq!(after.offset, 0);
    let range = node.read(read("t", Some(after), 9));
    assert_eq!((range.top, range.oldest, range.messages.len()), (Some(after), 1, 0));
    let again = reset(&node, Some(StorePosition { offset: 1, ..after }), ResetWhen::StoreIsBehind);
    assert!(again.epoch > after.epoch);
    let next = node.store("t", 2);
    assert_eq!(next, StorePosition { offset: 1, ..again });
    for node in [&node, &other] {
        let received = node.receive(4);
        assert_eq!(received[1..3], [after, again].map(|start| Received::Reset { epoch: start.epoch }));
        assert!(matches!(&received[3], Received::Stored { position, .. } if *position == next));
    }
}

/// The store has lost messages, and a node that knew less has appended others in their places.
#[test]
fn a_stream_with_other_messages_than_a_node_knows_is_replaced_once() {
    let Some(server) = Server::start_with(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    let [_, newest] = [1, 2].map(|number| node.store("t", number));
    let reset_rewritten = |known| reset(&node, Some(known), ResetWhen::StoreHasRewritten);
    let earlier = StorePosition { epoch: newest.epoch - 1, offset: 9 };
    assert_eq!(reset_rewritten(earlier), newest, "the store has replaced the stream already");
    let after = reset_rewritten(StorePosition { offset: 1, ..newest });
    assert!(after.epoch > newest.epoch && after.offset == 0, "{newest:?} {after:?}");
    // Another node that knew the old stream.
    assert_eq!(reset_rewritten(newest), after);
}

#[test]
fn a_full_server_refuses_messages_and_changes_nothing() {
    let Some(server) = Server::start_with(&["--maxmemory", "6mb", "--maxmemory-policy", "noeviction"]) else {
        return;
    };
    let node = Node::join(&server.url(), "a");
    let first = node.store("t", 1);
    assert_eq!(server.run(&["CONFIG", "SET", "maxmemory", "1mb"]), Reply::Status("OK".to_owned()));
    node.append(2, message("t", "2")).unwrap();
    let Err(AppendError::Refused(reason)) = node.outcome(2) else { panic!("the server is full") };
    assert!(reason.contains("OOM"), "{reason}");
    // Nor does it take the first message of a topic.
    node.append(3, message("new", "3")).unwrap();
    assert!(matches!(node.outcome(3), Err(AppendError::Refused(reason)) if reason.contains("OOM")));
    let followed = StreamRead { creates: true, ..read("new", None, 9) };
    let refused = wait(node.broker.read_streams(vec![followed]).unwrap()).unwrap();
    assert!(
        matches!(&refused[..], [Err(ReadError::Refused(reason))] if reason.contains("OOM")),
        "{refused:?}"
    );
    assert_eq!(node.read(read("new", None, 9)).top, None);
    assert_eq!(contents(&node.read(read("t", None, 9))), numbers([1]));
    assert_eq!(server.run(&["CONFIG", "SET", "maxmemory", "0"]), Reply::Status("OK".to_owned()));
    assert_eq!(node.store("t", 4), StorePosition { offset: 2, ..first });
}

/// Whatever the server evicts, positions never go back, and each message has one position.
#[test]
fn evictions_never_give_a_position_twice() {
    let flags = ["--maxmemory", "3mb", "--maxmemory-policy", "allkeys-random"];
    let Some(server) = Server::start_with(&flags) else { return };
    let node = Node::join(&server.url(), "a");
    let payload = format!("\"{}\"", "x".repeat(2000));
    let mut newest = [StorePosition { epoch: 0, offset: 0 }; 8];
    let (mut epochs, mut number) = (0, 0);
    for round in 0..300 {
        for (index, newest) in newest.iter_mut().enumerate() {
            number += 1;
            let append = message(["a", "b", "c", "d", "e", "f", "g", "h"][index], &payload);
            node.append(number, append).unwrap();
            let position = match node.outcome(number) {
                Ok(appended) => appended.position,
                // All keys were evicted, and the connections still need too much.
                Err(AppendError::Refused(reason)) if reason.contains("OOM") => continue,
                Err(error) => panic!("{error}"),
            };
            if position.epoch == newest.epoch {
                assert_eq!(position.offset, newest.offset + 1);
            } else {
                assert!(position.epoch > newest.epoch, "{newest:?} {position:?}");
                assert_eq!(position.offset, 1);
                epochs += 1;
            }
            *newest = position;
        }
        if round > 20 && epochs > 30 {
            break;
        }
    }
    assert!(epochs > 8, "the server has evicted positions: {epochs}");
    eventually("no further outcomes", || node.outcome_count() == number as usize);
}
