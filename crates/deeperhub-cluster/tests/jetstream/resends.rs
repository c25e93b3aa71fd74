//! Messages that a node sends again on a new connection are stored once.

use crate::eventually;
use crate::node::{Node, Received, contents, message, numbers, read};
use crate::proxy::Proxy;
use crate::server::Server;

/// Checks that the stream holds exactly the numbers up to `count`, and that the node knows it.
fn check(node: &Node, count: u64) {
    for number in 1..=count {
        assert_eq!(node.outcome(number).unwrap().position.offset, number);
    }
    assert_eq!(contents(&node.read(read("t", None, 10_000))), numbers(1..=count));
}

fn append(node: &Node, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        node.append(number, message("t", &number.to_string())).unwrap();
    }
}

#[test]
fn messages_whose_acknowledgements_were_lost_keep_their_positions() {
    let Some(server) = Server::start("") else { return };
    let (proxy, follower) = (Proxy::start(server.address), Node::join(&server.url(), "b"));
    let node = Node::join(&proxy.url("nats"), "a");
    follower.follow("t");
    node.store("t", 1);
    proxy.hold_replies();
    append(&node, 2..=300);
    // The first batch is stored; the node cannot know.
    eventually("stored messages", || server.stored() > 1);
    proxy.cut_clients();
    check(&node, 300);
    let offsets: Vec<_> = follower
        .receive(300)
        .iter()
        .map(|received| match received {
            Received::Stored { position, .. } => position.offset,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(offsets, (1..=300).collect::<Vec<_>>());
    assert!((1..=300).all(|number| !node.outcome(number).unwrap().is_repeat));
}

#[test]
fn messages_that_the_old_connection_brings_late_are_not_stored_again() {
    let Some(server) = Server::start("") else { return };
    let proxy = Proxy::start(server.address);
    let node = Node::join(&proxy.url("nats"), "a");
    node.store("t", 1);
    proxy.hold_commands();
    append(&node, 2..=50);
    eventually("a batch under way", || proxy.holds_calls());
    proxy.cut_clients();
    node.wait_until_down();
    for number in 2..=50_u64 {
        node.outcome(number).unwrap();
    }
    append(&node, 51..=700);
    node.outcome(700).unwrap();
    // The old connection's messages, after those of the new one. The server passes a request of the
    // same connection on behind them.
    proxy.release_commands();
    for number in 701..=800_u64 {
        assert_eq!(node.store("t", number).offset, number);
    }
    check(&node, 800);
}

#[test]
fn a_server_that_stalls_stores_each_message_once() {
    let Some(server) = Server::start("") else { return };
    let node = Node::join(&server.url(), "a");
    node.store("t", 1);
    server.signal("STOP");
    append(&node, 2..=500);
    node.wait_until_down();
    server.signal("CONT");
    check(&node, 500);
}

#[test]
fn cut_connections_lose_and_repeat_nothing() {
    let Some(server) = Server::start("") else { return };
    let proxy = Proxy::start(server.address);
    let node = Node::join(&proxy.url("nats"), "a");
    let mut number = 0;
    for _ in 0..5 {
        for _ in 0..200 {
            number += 1;
            // Refused while there is no connection.
            let text = number.to_string();
            eventually("a place in the queue", || node.append(number, message("t", &text)).is_ok());
        }
        proxy.cut_clients();
    }
    check(&node, number);
}

#[test]
fn a_restarted_server_keeps_what_it_acknowledged() {
    let Some(mut server) = Server::start("") else { return };
    let node = Node::join(&server.url(), "a");
    append(&node, 1..=200);
    let before = node.outcome(200).unwrap().position;
    server.kill();
    node.wait_until_down();
    server.start_again();
    node.wait_until_up();
    append(&node, 201..=300);
    check(&node, 300);
    assert_eq!(node.outcome(300).unwrap().position.epoch, before.epoch);
}
