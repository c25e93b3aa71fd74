//! Rights of a node, and the check of them.

use deeperhub_cluster::{Append, BrokerUrl, Config, InterestChange, Once, ResetWhen, check_store};

use super::reset;
use crate::node::{LIMITS, Node, contents, message, numbers, read, topic};
use crate::store::Store;
use crate::wait;

on_each_store!(an_unreachable_server_is_an_error);

/// Uses all that a node needs rights for.
pub(crate) fn use_every_operation(url: &str) {
    let node = Node::join(url, "a");
    node.follow("t");
    node.broker.change_interest(&"rooms.*".into(), InterestChange::Gained);
    assert_eq!(wait(node.broker.check_store()), Ok(Vec::new()));
    let once = Some(Once { user: Some("ada"), text: "x" });
    let position = node.store_with(1, Append { once, ..message("t", "1") });
    assert_eq!(node.receive(1).len(), 1);
    assert_eq!(contents(&node.read(read("t", None, 9))), numbers([1]));
    wait(node.broker.read_tops(vec![topic("t")], Some(LIMITS)).unwrap()).unwrap();
    assert!(reset(&node, Some(position), ResetWhen::Always).epoch > position.epoch);
    assert!(node.broker.is_up());
}

fn an_unreachable_server_is_an_error<S: Store>() {
    let url = BrokerUrl::parse(&format!("{}://127.0.0.1:1", S::SCHEME)).unwrap();
    assert!(wait(check_store(&Config::new(url))).is_err());
}
