//! Publishes that clients repeat, on the same node or on another.

use deeperhub_cluster::{Append, Once, ResetStream, ResetWhen};

use crate::node::{LIMITS, Node, contents, message, read, topic};
use crate::server::Server;
use crate::wait;

fn once<'a>(user: Option<&'a str>, text: &'a str, append: Append<'a>) -> Append<'a> {
    Append { once: Some(Once { user, text }), ..append }
}

#[test]
fn a_publish_that_is_repeated_on_another_node_is_stored_once() {
    let Some(server) = Server::start("") else { return };
    let (node, other) = (Node::join(&server.url(), "a"), Node::join(&server.url(), "b"));
    other.follow("t");
    node.append(1, once(Some("ada"), "order-17", message("t", "1"))).unwrap();
    let first = node.outcome(1).unwrap();
    assert!(!first.is_repeat);
    other.append(1, once(Some("ada"), "order-17", message("t", "1"))).unwrap();
    let second = other.outcome(1).unwrap();
    assert_eq!((second.position, second.time, second.is_repeat), (first.position, first.time, true));
    // Another user, text or topic is another publish.
    let others =
        [(Some("bob"), "order-17"), (Some("ada"), "order-18"), (None, "order-17"), (Some(""), "order-17")];
    for ((user, text), number) in others.into_iter().zip(2_u64..) {
        let payload = number.to_string();
        assert_eq!(node.store_with(number, once(user, text, message("t", &payload))).offset, number);
    }
    assert_eq!(node.store_with(6, once(Some("ada"), "order-17", message("u", "1"))).offset, 6);
    // A repeat is not told to anyone.
    assert_eq!(node.store("t", 7).offset, 7);
    assert_eq!(other.receive(6).len(), 6);
    assert_eq!(contents(&node.read(read("t", None, 9))).len(), 6);
}

#[test]
fn a_cleared_topic_forgets_publishes() {
    let Some(server) = Server::start("") else { return };
    let node = Node::join(&server.url(), "a");
    let first = node.store_with(1, once(Some("ada"), "x", message("t", "1")));
    let reset = ResetStream { topic: topic("t"), known: None, limits: LIMITS, when: ResetWhen::Always };
    wait(node.broker.reset_stream(reset).unwrap()).unwrap();
    node.append(2, once(Some("ada"), "x", message("t", "1"))).unwrap();
    let second = node.outcome(2).unwrap();
    assert!(!second.is_repeat && second.position.epoch > first.epoch);
}
