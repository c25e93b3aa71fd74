//! Requests to the store whose connection fails, and limits of requests.

use deeperhub_cluster::{MAX_READS, MAX_TOPS, ReadError};

use crate::node::{Node, contents, numbers, read, topic};
use crate::proxy::Proxy;
use crate::store::Store;
use crate::{eventually, wait};

on_each_store!(
    requests_of_a_lost_connection_fail,
    requests_of_a_killed_server_fail_and_later_ones_do_not,
    a_stalled_server_answers_no_request_too_late,
    requests_are_bounded,
);

fn requests_of_a_lost_connection_fail<S: Store>() {
    let Some(server) = S::start() else { return };
    let proxy = Proxy::start(server.address());
    let node = Node::join(&proxy.url(S::SCHEME), "a");
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

fn requests_of_a_killed_server_fail_and_later_ones_do_not<S: Store>() {
    let Some(mut server) = S::start() else { return };
    let node = Node::join(&server.url(), "a");
    node.store("t", 1);
    server.pause();
    let reply = node.broker.read_streams(vec![read("t", None, 9)]).unwrap();
    server.kill();
    wait(reply).unwrap_err();
    node.wait_until_down();
    server.start_again();
    node.wait_until_up();
    eventually("a read on a new connection", || {
        let reply = node.broker.read_streams(vec![read("t", None, 9)]);
        let Ok(Ok(ranges)) = reply.map(wait) else { return false };
        ranges[0].as_ref().is_ok_and(|range| contents(range) == numbers([1]))
    });
}

fn a_stalled_server_answers_no_request_too_late<S: Store>() {
    let Some(server) = S::start() else { return };
    let node = Node::join(&server.url(), "a");
    node.store("t", 1);
    node.read(read("t", None, 9));
    server.pause();
    let stalled = node.broker.read_streams(vec![read("t", None, 9)]).unwrap();
    let error = wait(stalled).unwrap_err();
    assert!(matches!(error, ReadError::TimedOut | ReadError::Lost(_) | ReadError::Unavailable), "{error}");
    // The connection ends, because nothing else is answered either.
    node.wait_until_down();
    server.resume();
    node.wait_until_up();
    assert_eq!(contents(&node.read(read("t", None, 9))), numbers([1]));
}

fn requests_are_bounded<S: Store>() {
    let Some(server) = S::start() else { return };
    let proxy = Proxy::start(server.address());
    let node = Node::join(&proxy.url(S::SCHEME), "a");
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
