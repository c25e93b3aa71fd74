//! Messages that a node sends again before the old connection brings them.

use super::server::Server;
use crate::node::Node;
use crate::proxy::Proxy;
use crate::scenarios::{append_numbers, append_on_the_next_connection, check_numbers};
use crate::store::Store;

#[test]
fn messages_that_the_old_connection_brings_late_are_not_stored_again() {
    let Some(server) = Server::start() else { return };
    let proxy = Proxy::start(server.address());
    let node = Node::join(&proxy.url(Server::SCHEME), "a");
    node.store("t", 1);
    proxy.hold_commands();
    append_numbers(&node, 2..=50);
    append_on_the_next_connection(&node, &proxy);
    // The old connection's messages, after those of the new one. The server passes a request of the
    // same connection on behind them.
    proxy.release_commands();
    for number in 701..=800_u64 {
        assert_eq!(node.store("t", number).offset, number);
    }
    check_numbers(&node, 800);
}
