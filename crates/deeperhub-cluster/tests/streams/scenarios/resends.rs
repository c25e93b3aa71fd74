//! Messages that a node sends again on a new connection are stored once.

use std::time::Duration;

use super::with_once;
use crate::eventually;
use crate::node::{Node, Received, contents, message, numbers, read};
use crate::proxy::Proxy;
use crate::store::Store;

on_each_store!(
    messages_whose_acknowledgements_were_lost_keep_their_positions,
    a_distant_store_finds_messages_that_are_sent_again,
    a_server_that_stalls_stores_each_message_once,
    cut_connections_lose_and_repeat_nothing,
    a_restarted_server_keeps_what_it_acknowledged,
);

/// Appends numbers to the topic `t`.
pub(crate) fn append_numbers(node: &Node, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        node.append(number, message("t", &number.to_string())).unwrap();
    }
}

/// Checks that the topic `t` holds exactly the numbers up to `count`, and that the node knows it.
pub(crate) fn check_numbers(node: &Node, count: u64) {
    for number in 1..=count {
        assert_eq!(node.outcome(number).unwrap().position.offset, number);
    }
    assert_eq!(contents(&node.read(read("t", None, 10_000))), numbers(1..=count));
}

/// Appends numbers while the connection is cut again and again, and checks that each is stored once.
pub(crate) fn append_while(node: &Node, cut: impl Fn()) {
    let mut number = 0;
    for _ in 0..5 {
        for _ in 0..200 {
            number += 1;
            // Refused while there is no connection.
            let text = number.to_string();
            eventually("a place in the queue", || node.append(number, message("t", &text)).is_ok());
        }
        cut();
    }
    check_numbers(node, number);
}

/// Cuts a connection that holds back the numbers up to 50. Appends the numbers up to 700 on the next
/// one, more than a store looks back over.
pub(crate) fn append_on_the_next_connection(node: &Node, proxy: &Proxy) {
    eventually("a batch under way", || proxy.holds_calls());
    proxy.cut_clients();
    node.wait_until_down();
    for number in 2..=50_u64 {
        node.outcome(number).unwrap();
    }
    append_numbers(node, 51..=700);
    node.outcome(700).unwrap();
}

fn messages_whose_acknowledgements_were_lost_keep_their_positions<S: Store>() {
    let Some(server) = S::start() else { return };
    let (proxy, follower) = (Proxy::start(server.address()), Node::join(&server.url(), "b"));
    let node = Node::join(&proxy.url(S::SCHEME), "a");
    follower.follow("t");
    node.store("t", 1);
    proxy.hold_replies();
    append_numbers(&node, 2..=300);
    // The first batch is stored; the node cannot know.
    eventually("stored messages", || server.stored() > 1);
    proxy.cut_clients();
    check_numbers(&node, 300);
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

/// A batch must be confirmed within three seconds, whether the store has its messages already or not.
fn a_distant_store_finds_messages_that_are_sent_again<S: Store>() {
    let Some(server) = S::start() else { return };
    let proxy = Proxy::start(server.address());
    let node = Node::join(&proxy.url(S::SCHEME), "a");
    node.store("t", 1);
    proxy.hold_replies();
    append_numbers(&node, [2]);
    eventually("the stored message", || server.stored() == 2);
    // Meanwhile, the others become one batch.
    append_numbers(&node, 3..=200);
    for number in 201..=400_u64 {
        let text = number.to_string();
        node.append(number, with_once(Some("ada"), &text, message("t", &text))).unwrap();
    }
    proxy.hold_replies_to_the_next_append();
    proxy.release_replies();
    eventually("the stored batch", || server.stored() == 400);
    proxy.delay(Duration::from_millis(50));
    proxy.cut_clients();
    check_numbers(&node, 400);
    assert!((1..=400).all(|number| !node.outcome(number).unwrap().is_repeat));
}

fn a_server_that_stalls_stores_each_message_once<S: Store>() {
    let Some(server) = S::start() else { return };
    let node = Node::join(&server.url(), "a");
    node.store("t", 1);
    server.pause();
    append_numbers(&node, 2..=500);
    node.wait_until_down();
    server.resume();
    check_numbers(&node, 500);
}

fn cut_connections_lose_and_repeat_nothing<S: Store>() {
    let Some(server) = S::start() else { return };
    let proxy = Proxy::start(server.address());
    append_while(&Node::join(&proxy.url(S::SCHEME), "a"), || proxy.cut_clients());
}

fn a_restarted_server_keeps_what_it_acknowledged<S: Store>() {
    let Some(mut server) = S::start() else { return };
    let node = Node::join(&server.url(), "a");
    append_numbers(&node, 1..=200);
    let before = node.outcome(200).unwrap().position;
    server.kill();
    node.wait_until_down();
    server.start_again();
    node.wait_until_up();
    append_numbers(&node, 201..=300);
    check_numbers(&node, 300);
    assert_eq!(node.outcome(300).unwrap().position.epoch, before.epoch);
}
