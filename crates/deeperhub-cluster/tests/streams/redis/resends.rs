//! Messages that a node sends again while other nodes, replicas or scripts are in the way.

use deeperhub_cluster::{Append, AppendError, StreamLimits};

use super::server::{Reply, Server};
use crate::eventually;
use crate::node::{LIMITS, Node, contents, message, numbers, read};
use crate::proxy::Proxy;
use crate::scenarios::{append_numbers, append_on_the_next_connection, append_while, check_numbers};
use crate::store::Store;

#[test]
fn messages_are_found_behind_many_of_other_nodes() {
    let Some(server) = Server::start_with(&[]) else { return };
    let (proxy, other) = (Proxy::start(server.address()), Node::join(&server.url(), "b"));
    let node = Node::join(&proxy.url(Server::SCHEME), "a");
    node.store("t", 1);
    proxy.hold_replies();
    append_numbers(&node, 2..=20);
    eventually("a stored message", || server.stored() > 1);
    let stored = server.stored();
    for number in 1..=1500 {
        other.append(number, message("t", "0")).unwrap();
    }
    other.outcome(1500).unwrap();
    proxy.cut_clients();
    for number in 2..=20 {
        let offset = node.outcome(number).unwrap().position.offset;
        // Messages that the server did not have yet come after the others.
        assert_eq!(offset, if number <= stored { number } else { number + 1500 });
    }
    assert_eq!(server.stored(), 1520);
}

#[test]
fn messages_that_the_old_connection_brings_late_are_not_stored_again() {
    let Some(server) = Server::start_with(&[]) else { return };
    let proxy = Proxy::start(server.address());
    let node = Node::join(&proxy.url(Server::SCHEME), "a");
    node.store("t", 1);
    // Further messages gather in the queue while the first one waits for its reply.
    proxy.hold_replies();
    append_numbers(&node, [2]);
    eventually("the first message", || server.stored() == 2);
    append_numbers(&node, 3..=50);
    proxy.hold_commands();
    proxy.release_replies();
    append_on_the_next_connection(&node, &proxy);
    // The old connection's commands, after those of the new one.
    let calls = || {
        let stats = server.run(&["INFO", "commandstats"]);
        let stats = String::from_utf8_lossy(stats.bytes()).into_owned();
        let line =
            stats.lines().find(|line| line.starts_with("cmdstat_evalsha")).unwrap_or_default().to_owned();
        line.split(['=', ',']).nth(1).and_then(|calls| calls.parse::<i64>().ok()).unwrap_or_default()
    };
    let before = calls();
    proxy.release_commands();
    eventually("the late commands", || calls() >= before + 48);
    check_numbers(&node, 700);
    assert_eq!(node.store("t", 701).offset, 701);
}

/// A later message has taken the place of the resent one in the list.
#[test]
fn messages_that_have_left_the_list_are_not_stored_again() {
    let Some(server) = Server::start_with(&[]) else { return };
    let (proxy, other) = (Proxy::start(server.address()), Node::join(&server.url(), "b"));
    let node = Node::join(&proxy.url(Server::SCHEME), "a");
    let last =
        |text: &'static str| Append { limits: StreamLimits { messages: 1, ..LIMITS }, ..message("t", text) };
    node.store_with(1, last("1"));
    proxy.hold_replies();
    node.append(2, last("2")).unwrap();
    eventually("the second message", || contents(&other.read(read("t", None, 9))) == numbers([2]));
    other.store_with(3, last("3"));
    proxy.cut_clients();
    assert!(matches!(node.outcome(2), Err(AppendError::Refused(_))));
    assert_eq!(contents(&other.read(read("t", None, 9))), numbers([3]));
    assert_eq!(node.store_with(4, last("4")).offset, 4);
}

#[test]
fn killed_connections_lose_and_repeat_nothing() {
    let Some(server) = Server::start_with(&[]) else { return };
    append_while(&Node::join(&server.url(), "a"), || {
        // All connections of the node but the test's own.
        server.run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    });
}

/// A replica takes no appends, and nodes do not stay with it.
#[test]
fn messages_wait_while_the_server_is_a_replica() {
    let Some(server) = Server::start_with(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    node.store("t", 1);
    assert_eq!(server.run(&["REPLICAOF", "127.0.0.1", "1"]), Reply::Status("OK".to_owned()));
    node.append(2, message("t", "2")).unwrap();
    node.wait_until_down();
    assert_eq!(server.run(&["REPLICAOF", "NO", "ONE"]), Reply::Status("OK".to_owned()));
    check_numbers(&node, 2);
}

#[test]
fn lost_scripts_are_loaded_again() {
    let Some(server) = Server::start_with(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    let mut number = 0;
    for _ in 0..10 {
        append_numbers(&node, number + 1..=number + 100);
        number += 100;
        assert_eq!(server.run(&["SCRIPT", "FLUSH"]), Reply::Status("OK".to_owned()));
        // Reads have scripts, too.
        node.read(read("t", None, 1));
    }
    check_numbers(&node, number);
    assert!(node.broker.is_up());
}
