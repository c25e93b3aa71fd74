//! Publishes that clients repeat, on the same node or on another.

use deeperhub_cluster::{Append, Once, ResetWhen};

use super::reset;
use crate::node::{Node, contents, message, read};
use crate::store::Store;

on_each_store!(a_publish_that_is_repeated_on_another_node_is_stored_once, a_cleared_topic_forgets_publishes);

/// Returns an append with the `once` of a client's publish.
pub(crate) fn with_once<'a>(user: Option<&'a str>, text: &'a str, append: Append<'a>) -> Append<'a> {
    Append { once: Some(Once { user, text }), ..append }
}

fn a_publish_that_is_repeated_on_another_node_is_stored_once<S: Store>() {
    let Some(server) = S::start() else { return };
    let (node, other) = (Node::join(&server.url(), "a"), Node::join(&server.url(), "b"));
    other.follow("t");
    node.append(1, with_once(Some("ada"), "order-17", message("t", "1"))).unwrap();
    let first = node.outcome(1).unwrap();
    assert!(!first.is_repeat);
    other.append(1, with_once(Some("ada"), "order-17", message("t", "1"))).unwrap();
    let second = other.outcome(1).unwrap();
    assert_eq!((second.position, second.time, second.is_repeat), (first.position, first.time, true));
    // Another user, text or topic is another publish.
    let others =
        [(Some("bob"), "order-17"), (Some("ada"), "order-18"), (None, "order-17"), (Some(""), "order-17")];
    for ((user, text), number) in others.into_iter().zip(2_u64..) {
        let payload = number.to_string();
        let position = node.store_with(number, with_once(user, text, message("t", &payload)));
        assert_eq!(position.offset, number);
    }
    let elsewhere = node.store_with(6, with_once(Some("ada"), "order-17", message("u", "1")));
    assert_eq!(elsewhere.offset, S::offset(1, 6));
    // A repeat is not told to anyone.
    let last = S::offset(6, 7);
    assert_eq!(node.store("t", 7).offset, last);
    assert_eq!(other.receive(6).len(), 6);
    let expected = [1, 2, 3, 4, 5, 7].map(|number: u64| (if number == 7 { last } else { number }, number));
    let expected = expected.map(|(offset, number)| (offset, number.to_string()));
    assert_eq!(contents(&node.read(read("t", None, 9))), expected);
}

fn a_cleared_topic_forgets_publishes<S: Store>() {
    let Some(server) = S::start() else { return };
    let node = Node::join(&server.url(), "a");
    let first = node.store_with(1, with_once(Some("ada"), "x", message("t", "1")));
    reset(&node, None, ResetWhen::Always);
    node.append(2, with_once(Some("ada"), "x", message("t", "1"))).unwrap();
    let second = node.outcome(2).unwrap();
    assert!(!second.is_repeat && second.position.epoch > first.epoch);
}
