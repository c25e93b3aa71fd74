//! Faults of the reader's connection, and limits of requests.

use deeperhub_cluster::{MAX_READS, MAX_TOPS, ReadError, StreamRead};

use crate::node::{Node, contents, numbers, read, topic};
use crate::proxy::Proxy;
use crate::server::Server;
use crate::{eventually, wait};

#[test]
fn a_lost_connection_for_reads_is_replaced() {
    let Some(server) = Server::start(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    assert_eq!(server.clients("evalsha").len(), 0, "there is no such connection before the first read");
    node.store("t", 1);
    assert_eq!(contents(&node.read(read("t", None, 9))), numbers([1]));
    let mut lost = node.broker.watch();
    lost.mark_unchanged();
    let ids = server.clients("evalsha");
    // The reader's connection is the younger one.
    let reader = ids.iter().max_by_key(|id| id.parse::<u64>().unwrap()).unwrap();
    assert_eq!(server.run(&["CLIENT", "KILL", "ID", reader]).number(), 1);
    eventually("a read on a new connection", || {
        let reply = node.broker.read_streams(vec![read("t", None, 9)]).unwrap();
        match wait(reply) {
            Ok(ranges) => contents(ranges[0].as_ref().unwrap()) == numbers([1]),
            Err(ReadError::Lost(_)) => false,
            Err(error) => panic!("{error}"),
        }
    });
    assert!(node.broker.is_up() && !lost.has_changed().unwrap(), "the other connections stay");
}

#[test]
fn requests_of_a_lost_connection_fail() {
    let Some(server) = Server::start(&[]) else { return };
    let proxy = Proxy::start(server.address);
    let node = Node::join(&proxy.url("redis"), "a");
    node.store("t", 1);
    node.read(read("t", None, 9));
    proxy.hold_replies();
    let replies: Vec<_> =
        (0..3).map(|_| node.broker.read_streams(vec![read("t", None, 9)]).unwrap()).collect();
    proxy.refuse(true);
    proxy.cut_clients();
    for reply in replies {
        let error = wait(reply).unwrap_err();
        assert!(matches!(error, ReadError::Lost(_) | ReadError::Unavailable), "{error}");
    }
    node.wait_until_down();
    eventually("the end of requests", || {
        matches!(node.broker.read_streams(vec![read("t", None, 9)]), Err(ReadError::Unavailable))
    });
    proxy.refuse(false);
    node.wait_until_up();
    assert_eq!(contents(&node.read(read("t", None, 9))), numbers([1]));
}

#[test]
fn a_stalled_server_answers_no_request_too_late() {
    let Some(server) = Server::start(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    node.store("t", 1);
    node.read(read("t", None, 9));
    let pause = server.run_later(&["DEBUG", "SLEEP", "7"]);
    std::thread::sleep(std::time::Duration::from_millis(100));
    let first = node.broker.read_streams(vec![read("t", None, 9)]).unwrap();
    // The link ends, because nothing else is answered either.
    let error = wait(first).unwrap_err();
    assert!(matches!(error, ReadError::TimedOut | ReadError::Unavailable), "{error}");
    pause.join().unwrap();
    node.wait_until_up();
    assert_eq!(contents(&node.read(read("t", None, 9))), numbers([1]));
}

#[test]
fn requests_are_bounded() {
    let Some(server) = Server::start(&[]) else { return };
    let proxy = Proxy::start(server.address);
    let node = Node::join(&proxy.url("redis"), "a");
    node.store("t", 1);
    node.read(read("t", None, 9));
    let reads = |count| vec![read("t", None, 1); count];
    assert!(matches!(
        node.broker.read_streams(reads(MAX_READS + 1)),
        Err(ReadError::TooManyTopics(count)) if count == MAX_READS + 1
    ));
    assert!(matches!(
        node.broker.read_tops(vec![topic("t"); MAX_TOPS + 1], None),
        Err(ReadError::TooManyTopics(_))
    ));
    proxy.hold_replies();
    let mut waiting = Vec::new();
    let error = loop {
        match node.broker.read_streams(reads(MAX_READS)) {
            Ok(reply) => waiting.push(reply),
            Err(error) => break error,
        }
        assert!(waiting.len() < 1000, "requests are bounded");
    };
    assert_eq!(error, ReadError::Busy);
    assert!(waiting.len() >= 60, "{}", waiting.len());
    assert!(waiting.iter_mut().all(|reply| reply.try_take().is_none()));
    proxy.cut_clients();
    for reply in waiting {
        wait(reply).unwrap_err();
    }
    node.wait_until_down();
    node.wait_until_up();
    let many = wait(node.broker.read_streams(reads(MAX_READS)).unwrap()).unwrap();
    assert!(many.iter().all(|range| contents(range.as_ref().unwrap()) == numbers([1])));
}

#[test]
fn a_read_waits_for_the_interest_that_was_announced_before() {
    let Some(server) = Server::start(&[]) else { return };
    let (node, sender) = (Node::join(&server.url(), "a"), Node::join(&server.url(), "b"));
    for number in 1..=50_u64 {
        let name = format!("t{number}");
        node.broker.change_interest(&name.as_str().into(), deeperhub_cluster::InterestChange::Gained);
        let follow = StreamRead { follows: true, ..read(&name, None, 1) };
        wait(node.broker.read_streams(vec![follow]).unwrap()).unwrap().remove(0).unwrap();
        // From now on no message is missed.
        sender.store_with(number, crate::node::message(&name, "1"));
        assert_eq!(node.receive(number as usize).len(), number as usize);
    }
}
