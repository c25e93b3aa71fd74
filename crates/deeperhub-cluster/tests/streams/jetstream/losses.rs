//! Streams that a server has lost, in whole or in part.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use deeperhub_cluster::{BrokerUrl, Config, ResetWhen, StorePosition, StreamLimits, StreamStorage};
use serde_json::Value;

use super::server::Server;
use crate::node::{LIMITS, Node, Received, message, read, topic};
use crate::proxy::Proxy;
use crate::scenarios::{append_known, payloads, reset};
use crate::store::Store;
use crate::{eventually, wait};

#[test]
fn lost_messages_concern_all_topics_and_a_lost_reset_one() {
    let Some(server) = Server::start() else { return };
    let node = Node::join(&server.url(), "a");
    let first = node.store("t", 1);
    assert_eq!(node.store("u", 2), StorePosition { offset: 2, ..first });
    // The newest offset of all topics counts.
    assert_eq!(append_known(&node, 3, StorePosition { offset: 2, ..first }).epoch, first.epoch);
    // A higher offset of the same epoch: the stream has lost messages of all topics.
    let second = append_known(&node, 4, StorePosition { offset: 1000, ..first });
    assert!(second.epoch > first.epoch);
    assert_eq!((payloads(&node, "t"), payloads(&node, "u").len()), (vec!["4".to_owned()], 0));
    // A larger epoch of one topic concerns that topic.
    let third = append_known(&node, 5, StorePosition { epoch: second.epoch + 50_000, offset: 3 });
    assert_eq!(third.epoch, second.epoch + 50_001);
    assert_eq!(payloads(&node, "t"), ["5"]);
    assert_eq!(node.store("u", 6).epoch, second.epoch);
}

#[test]
fn a_lost_stream_in_memory_begins_a_larger_epoch() {
    let Some(mut server) = Server::start() else { return };
    let mut config = server.config();
    config.stream_storage = StreamStorage::Memory;
    let node = Node::join_with(config, "a", &[(">", LIMITS)]);
    let before = node.store("t", 1);
    server.kill();
    node.wait_until_down();
    server.start_again();
    node.wait_until_up();
    let after = node.store("t", 2);
    assert!(after.epoch > before.epoch, "{before:?} {after:?}");
    assert_eq!((after.offset, payloads(&node, "t")), (1, vec!["2".to_owned()]));
}

#[test]
fn a_stream_that_was_deleted_begins_a_larger_epoch() {
    let Some(server) = Server::start() else { return };
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

#[test]
fn nodes_that_join_an_empty_server_at_once_use_one_stream() {
    for _ in 0..4 {
        let Some(server) = Server::start() else { return };
        let url = server.url();
        let join = |number: u8| Node::join(&url, &format!("n{number}"));
        let nodes: Vec<_> = std::thread::scope(|scope| {
            let joining: Vec<_> = (0..6).map(|number| scope.spawn(move || join(number))).collect();
            joining.into_iter().map(|node| node.join().unwrap()).collect()
        });
        let positions: Vec<_> = (1..).zip(&nodes).map(|(number, node)| node.store("t", number)).collect();
        let expected: Vec<_> = (1..7).map(|offset| StorePosition { offset, ..positions[0] }).collect();
        assert_eq!(positions, expected);
        assert_eq!(server.streams().len(), 1);
    }
}

/// Everything that the server has written since the copy is lost, as after a crash of its machine.
#[test]
fn a_server_that_lost_its_newest_messages_begins_a_larger_epoch() {
    for overwrites in [false, true] {
        let Some(mut server) = Server::start() else { return };
        let node = Node::join(&server.url(), "a");
        node.follow("t");
        let before = node.store("t", 1);
        server.kill();
        let copy = server.copy_files();
        server.start_again();
        node.wait_until_up();
        for number in 2..=5_u64 {
            eventually("a place in the queue", || {
                node.append(number, message("t", &number.to_string())).is_ok()
            });
        }
        assert_eq!(node.outcome(5).unwrap().position, StorePosition { offset: 5, ..before });
        node.receive(5);
        server.kill();
        node.wait_until_down();
        server.replace_files(&copy);
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

/// Loses what the server has written since a copy. Another node gives the lost positions to messages
/// of the topics `names`, before the node behind the proxy is back.
fn rewrite(
    server: &mut Server,
    (node, proxy): (&Node, &Proxy),
    copy: &Path,
    (limits, names): (StreamLimits, &[&str]),
) {
    proxy.refuse(true);
    server.kill();
    node.wait_until_down();
    server.replace_files(copy);
    server.start_again();
    let other = join(&server.url(), "rewriter", limits);
    for (number, name) in (100..).zip(names) {
        other.store(name, number);
    }
    proxy.refuse(false);
    node.wait_until_up();
}

fn join(url: &str, name: &str, limits: StreamLimits) -> Node {
    Node::join_with(Config::new(BrokerUrl::parse(url).unwrap()), name, &[(">", limits)])
}

fn store_each(node: &Node, name: &str, numbers: RangeInclusive<u64>) {
    numbers.for_each(|number| {
        node.store(name, number);
    });
}

/// Copies what the server has stored, between two runs of it.
fn copy_stopped(server: &mut Server, node: &Node) -> PathBuf {
    server.kill();
    node.wait_until_down();
    let copy = server.copy_files();
    server.start_again();
    node.wait_until_up();
    copy
}

/// The newest positions that a node knows are those of a topic that it does not follow: a look has
/// told them, or the acknowledgements of its own messages.
#[test]
fn a_loss_shows_though_the_newest_known_messages_were_not_received() {
    for is_own in [false, true] {
        let Some(mut server) = Server::start() else { return };
        let proxy = Proxy::start(server.address());
        let node = Node::join(&proxy.url("nats"), "a");
        node.follow("t");
        let before = node.store("t", 1);
        node.receive(1);
        let copy = copy_stopped(&mut server, &node);
        if is_own {
            store_each(&node, "u", 2..=5);
        } else {
            let other = Node::join(&server.url(), "b");
            store_each(&other, "u", 2..=5);
            let top = node.read(read("t", Some(before), 9)).top;
            assert_eq!(top, Some(StorePosition { offset: 5, ..before }));
        }
        rewrite(&mut server, (&node, &proxy), &copy, (LIMITS, &["t"; 6]));
        let after = node.store("t", 6);
        assert!(after.epoch > before.epoch, "{is_own}: {before:?} {after:?}");
    }
}

#[test]
fn a_loss_shows_though_limits_have_removed_what_took_the_newest_known_position() {
    let Some(mut server) = Server::start() else { return };
    let limits = StreamLimits { messages: 2, ..LIMITS };
    let proxy = Proxy::start(server.address());
    let node = join(&proxy.url("nats"), "a", limits);
    node.follow("t");
    let before = node.store("t", 1);
    let copy = copy_stopped(&mut server, &node);
    store_each(&node, "t", 2..=5);
    node.receive(5);
    rewrite(&mut server, (&node, &proxy), &copy, (limits, &["u", "v", "v", "v", "v", "v", "v"]));
    let after = node.store("t", 6);
    assert!(after.epoch > before.epoch, "{before:?} {after:?}");
}

/// The connection that reads may lead to a server that has lost messages, while the other one goes on.
#[test]
fn a_loss_shows_though_only_the_connection_that_reads_was_lost() {
    let Some(server) = Server::start() else { return };
    let proxy = Proxy::start(server.address());
    let node = Node::join(&proxy.url("nats"), "a");
    store_each(&node, "t", 1..=4);
    let before = node.store("t", 5);
    let stream = server.stream();
    let info = server.api(&format!("STREAM.INFO.{stream}"), &Value::Null);
    server.api(&format!("STREAM.DELETE.{stream}"), &Value::Null);
    server.api(&format!("STREAM.CREATE.{stream}"), &info["config"]);
    store_each(&Node::join(&server.url(), "b"), "t", 12..=17);
    proxy.cut_last_client();
    // A read of the lost connection fails.
    eventually("the larger epoch", || {
        let answer = wait(node.broker.read_streams(vec![read("t", None, 9)]).unwrap());
        let range = answer.ok().and_then(|mut ranges| ranges.remove(0).ok());
        range.and_then(|range| range.top).is_some_and(|top| top.epoch > before.epoch)
    });
    assert!(node.broker.is_up());
}

/// A node knows that a topic was cleared because it did it, because it follows the topic, or because
/// the other node told all.
#[test]
fn the_loss_of_a_cleared_topics_epoch_shows() {
    for (clears, follows) in [(true, false), (false, true), (false, false)] {
        let Some(mut server) = Server::start() else { return };
        let proxy = Proxy::start(server.address());
        let node = Node::join(&proxy.url("nats"), "a");
        let before = node.store("t", 1);
        if follows {
            node.follow("t");
        }
        let copy = copy_stopped(&mut server, &node);
        let other = (!clears).then(|| Node::join(&server.url(), "b"));
        let cleared = reset(other.as_ref().unwrap_or(&node), Some(before), ResetWhen::Always);
        if !clears {
            let reset = Received::Reset { epoch: cleared.epoch };
            eventually("the reset", || node.received().contains(&reset));
        }
        drop(other);
        rewrite(&mut server, (&node, &proxy), &copy, (LIMITS, &["t"; 6]));
        let after = node.store("t", 6);
        assert!(after.epoch > cleared.epoch, "{clears} {follows}: {cleared:?} {after:?}");
        let late = Node::join(&server.url(), "c");
        assert_eq!(late.store("t", 7).epoch, after.epoch);
    }
}

/// The limits have removed the newest message that the node knows, and nothing was lost.
#[test]
fn a_stream_that_removed_a_known_message_goes_on() {
    let Some(server) = Server::start() else { return };
    let limits = StreamLimits { messages: 2, ..LIMITS };
    let proxy = Proxy::start(server.address());
    let node = join(&proxy.url("nats"), "a", limits);
    node.follow("t");
    let before = node.store("t", 1);
    node.store("u", 2);
    node.store("t", 3);
    proxy.refuse(true);
    proxy.cut_clients();
    node.wait_until_down();
    let other = join(&server.url(), "b", limits);
    store_each(&other, "t", 4..=8);
    proxy.refuse(false);
    node.wait_until_up();
    assert_eq!(node.store("t", 9), StorePosition { offset: 9, ..before });
}

#[test]
fn a_reset_of_a_topic_leaves_the_other_topics_of_its_stream() {
    let Some(server) = Server::start() else { return };
    let (node, other) = (Node::join(&server.url(), "a"), Node::join(&server.url(), "b"));
    node.follow("t");
    let before = node.store("t", 1);
    other.store("u", 2);
    // Both topics have the newest position of the stream.
    let newest = StorePosition { offset: 2, ..before };
    assert_eq!(reset(&node, None, ResetWhen::StoreIsBehind), newest);
    assert_eq!(reset(&node, Some(newest), ResetWhen::StoreIsBehind), newest);
    let after = reset(&node, Some(before), ResetWhen::Always);
    assert!(after.epoch > before.epoch && after.offset > before.offset);
    assert_eq!(node.read(read("t", Some(after), 9)).whole.unwrap().after, after.offset);
    // A node that publishes to the stream learns the epoch, even if it follows no topic.
    eventually("the epoch at the other node", || {
        other.received().contains(&Received::Reset { epoch: after.epoch })
    });
    assert_eq!(other.store("t", 3).epoch, after.epoch);
    let late = Node::join(&server.url(), "c");
    assert_eq!(late.store("u", 4).epoch, before.epoch);
    assert_eq!(late.store("t", 5).epoch, after.epoch);
}
