//! Memory of publishes that clients may repeat.

use super::server::{META, Server};
use crate::node::{Node, message};
use crate::scenarios::with_once;
use crate::store::Store;

#[test]
fn a_lost_position_forgets_publishes() {
    let Some(server) = Server::start_with(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    let first = node.store_with(1, with_once(Some("ada"), "x", message("t", "1")));
    server.run(&["DEL", META]);
    node.append(2, with_once(Some("ada"), "x", message("t", "1"))).unwrap();
    let second = node.outcome(2).unwrap();
    assert!(!second.is_repeat && second.position.epoch > first.epoch);
}

#[test]
fn remembered_publishes_are_bounded() {
    let Some(server) = Server::start_with(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    for number in 0..8200_u64 {
        let text = number.to_string();
        node.append(number, with_once(Some("ada"), &text, message("t", "1"))).unwrap();
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
        node.append(number, with_once(Some("ada"), "late", message("t", "1"))).unwrap();
        assert!(!node.outcome(number).unwrap().is_repeat);
    }
    // Other users are not concerned.
    node.store_with(9002, with_once(Some("bob"), "late", message("t", "1")));
    node.append(9003, with_once(Some("bob"), "late", message("t", "1"))).unwrap();
    assert!(node.outcome(9003).unwrap().is_repeat);
}
