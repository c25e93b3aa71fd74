//! Topics that nodes keep for themselves, with which they probe the store.

use deeperhub_cluster::{Append, StorePosition, StreamRead, Topic};

use super::server::Server;
use crate::node::{LIMITS, Node, contents, message, read};
use crate::store::Store;

#[test]
fn a_reserved_topic_needs_no_rule() {
    let Some(server) = Server::start() else { return };
    let config = server.config();
    let node = Node::join_with(config, "a", &[("kept.>", LIMITS)]);
    let topic = Topic::reserved("probe.a");
    let look = |after| StreamRead { topic: topic.clone(), follows: true, ..read("t", after, 1) };
    assert_eq!(node.read(look(None)).messages, []);
    let append =
        |number, text| node.store_with(number, Append { topic: topic.borrow(), ..message("t", text) });
    append(1, "1");
    let position = append(2, "2");
    let before = StorePosition { offset: position.offset - 1, ..position };
    assert_eq!(contents(&node.read(look(Some(before)))), [(position.offset, "2".to_owned())]);
    // Probes do not change the streams of rules.
    assert_eq!(node.store("kept.1", 3).offset, 1);
}
