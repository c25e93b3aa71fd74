//! Messages that a node sends again on a new connection are stored once.

use std::time::Duration;

use deeperhub_cluster::{Append, AppendError, StreamLimits};

use crate::eventually;
use crate::node::{LIMITS, Node, Received, contents, message, numbers, read};
use crate::proxy::Proxy;
use crate::server::{Reply, Server};

const LIST: &str = "{deeperhub:h:t}";

fn length(server: &Server) -> i64 {
    server.run(&["LLEN", LIST]).number()
}

/// Checks that the stream holds exactly the numbers up to `count`, and that the node knows it.
fn check(node: &Node, count: u64) {
    for number in 1..=count {
        assert_eq!(node.outcome(number).unwrap().position.offset, number);
    }
    assert_eq!(contents(&node.read(read("t", None, 10_000))), numbers(1..=count));
}

#[test]
fn messages_whose_replies_were_lost_keep_their_positions() {
    let Some(server) = Server::start(&[]) else { return };
    let (proxy, follower) = (Proxy::start(server.address), Node::join(&server.url(), "b"));
    let node = Node::join(&proxy.url("redis"), "a");
    follower.follow("t");
    node.store("t", 1);
    proxy.hold_replies();
    for number in 2..=300_u64 {
        node.append(number, message("t", &number.to_string())).unwrap();
    }
    // The first batch is stored; the node cannot know.
    eventually("stored messages", || length(&server) > 1);
    proxy.cut_clients();
    check(&node, 300);
    let received = follower.receive(300);
    assert_eq!(received.len(), 300);
    let offsets: Vec<_> = received
        .iter()
        .map(|received| match received {
            Received::Stored { position, .. } => position.offset,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(offsets, (1..=300).collect::<Vec<_>>());
}

#[test]
fn messages_are_found_behind_many_of_other_nodes() {
    let Some(server) = Server::start(&[]) else { return };
    let (proxy, other) = (Proxy::start(server.address), Node::join(&server.url(), "b"));
    let node = Node::join(&proxy.url("redis"), "a");
    node.store("t", 1);
    proxy.hold_replies();
    for number in 2..=20_u64 {
        node.append(number, message("t", &number.to_string())).unwrap();
    }
    eventually("a stored message", || length(&server) > 1);
    let stored = length(&server) as u64;
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
    assert_eq!(length(&server), 1520);
}

#[test]
fn messages_that_the_old_connection_brings_late_are_not_stored_again() {
    let Some(server) = Server::start(&[]) else { return };
    let proxy = Proxy::start(server.address);
    let node = Node::join(&proxy.url("redis"), "a");
    node.store("t", 1);
    // Further messages gather in the queue while the first one waits for its reply.
    proxy.hold_replies();
    for number in 2..=50_u64 {
        node.append(number, message("t", &number.to_string())).unwrap();
        if number == 2 {
            eventually("the first message", || length(&server) == 2);
        }
    }
    proxy.hold_commands();
    proxy.release_replies();
    eventually("a batch under way", || proxy.holds_calls());
    proxy.cut_clients();
    node.wait_until_down();
    for number in 2..=50_u64 {
        node.outcome(number).unwrap();
    }
    // More than the server looks back over.
    for number in 51..=700_u64 {
        node.append(number, message("t", &number.to_string())).unwrap();
    }
    node.outcome(700).unwrap();
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
    check(&node, 700);
    assert_eq!(node.store("t", 701).offset, 701);
}

/// A later message has taken the place of the resent one in the list.
#[test]
fn messages_that_have_left_the_list_are_not_stored_again() {
    let Some(server) = Server::start(&[]) else { return };
    let (proxy, other) = (Proxy::start(server.address), Node::join(&server.url(), "b"));
    let node = Node::join(&proxy.url("redis"), "a");
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
fn a_server_that_stalls_stores_each_message_once() {
    let Some(server) = Server::start(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    node.store("t", 1);
    let pause = server.run_later(&["DEBUG", "SLEEP", "4"]);
    std::thread::sleep(Duration::from_millis(100));
    for number in 2..=500_u64 {
        node.append(number, message("t", &number.to_string())).unwrap();
    }
    node.wait_until_down();
    pause.join().unwrap();
    check(&node, 500);
}

#[test]
fn killed_connections_lose_and_repeat_nothing() {
    let Some(server) = Server::start(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    let mut number = 0;
    for _ in 0..5 {
        for _ in 0..200 {
            number += 1;
            // Refused while there is no connection.
            let text = (number).to_string();
            eventually("a place in the queue", || node.append(number, message("t", &text)).is_ok());
        }
        // All connections of the node but the test's own.
        server.run(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    }
    check(&node, number);
}

/// A replica takes no appends, and nodes do not stay with it.
#[test]
fn messages_wait_while_the_server_is_a_replica() {
    let Some(server) = Server::start(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    node.store("t", 1);
    assert_eq!(server.run(&["REPLICAOF", "127.0.0.1", "1"]), Reply::Status("OK".to_owned()));
    node.append(2, message("t", "2")).unwrap();
    node.wait_until_down();
    assert_eq!(server.run(&["REPLICAOF", "NO", "ONE"]), Reply::Status("OK".to_owned()));
    check(&node, 2);
}

#[test]
fn lost_scripts_are_loaded_again() {
    let Some(server) = Server::start(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    let mut number = 0;
    for _ in 0..10 {
        for _ in 0..100 {
            number += 1;
            node.append(number, message("t", &number.to_string())).unwrap();
        }
        assert_eq!(server.run(&["SCRIPT", "FLUSH"]), Reply::Status("OK".to_owned()));
        // Reads have scripts, too.
        node.read(read("t", None, 1));
    }
    check(&node, number);
    assert!(node.broker.is_up());
}
