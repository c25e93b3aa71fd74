//! Publishes that clients repeat, on the same node or on another.

use deeperhub_cluster::{Append, Once};

use crate::node::{Node, contents, message, numbers, read};
use crate::server::Server;

fn once<'a>(user: Option<&'a str>, text: &'a str, append: Append<'a>) -> Append<'a> {
    Append { once: Some(Once { user, text }), ..append }
}

#[test]
fn a_publish_that_is_repeated_on_another_node_is_stored_once() {
    let Some(server) = Server::start(&[]) else { return };
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
        let position = node.store_with(number, once(user, text, message("t", &payload)));
        assert_eq!(position.offset, number);
    }
    assert_eq!(node.store_with(6, once(Some("ada"), "order-17", message("u", "1"))).offset, 1);
    // A repeat is not told to anyone.
    assert_eq!(node.store("t", 7).offset, 6);
    assert_eq!(other.receive(6).len(), 6);
    let range = node.read(read("t", None, 9));
    assert_eq!(contents(&range), [numbers(1..=5), vec![(6, "7".to_owned())]].concat());
}

#[test]
fn a_new_stream_forgets_publishes() {
    let Some(server) = Server::start(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    let first = node.store_with(1, once(Some("ada"), "x", message("t", "1")));
    server.run(&["DEL", "{deeperhub:h:t}m"]);
    node.append(2, once(Some("ada"), "x", message("t", "1"))).unwrap();
    let second = node.outcome(2).unwrap();
    assert!(!second.is_repeat && second.position.epoch > first.epoch);
}

#[test]
fn remembered_publishes_are_bounded() {
    let Some(server) = Server::start(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    for number in 0..8200_u64 {
        let text = number.to_string();
        node.append(number, once(Some("ada"), &text, message("t", "1"))).unwrap();
        if number % 1000 == 0 {
            node.outcome(number).unwrap();
        }
    }
    node.outcome(8199).unwrap();
    let keys = ["{deeperhub:h:t}o0", "{deeperhub:h:t}o1"];
    // The test may meet the end of a period.
    let most = keys.iter().map(|key| server.run(&["HLEN", key]).number()).max().unwrap();
    assert!(most <= 8193, "{most}");
    let ttls = keys.map(|key| server.run(&["PTTL", key]).number());
    assert!(ttls.iter().all(|ttl| *ttl <= 240_000 && *ttl != -1), "{ttls:?}");
    // Beyond the bound a publish is stored, and not remembered.
    if keys.iter().all(|key| server.run(&["HLEN", key]).number() != 0) {
        return;
    }
    for number in [9000, 9001] {
        node.append(number, once(Some("ada"), "late", message("t", "1"))).unwrap();
        assert!(!node.outcome(number).unwrap().is_repeat);
    }
    // Other users are not concerned.
    node.store_with(9002, once(Some("bob"), "late", message("t", "1")));
    node.append(9003, once(Some("bob"), "late", message("t", "1"))).unwrap();
    assert!(node.outcome(9003).unwrap().is_repeat);
}
