//! Reads of lists that others have changed, and the connection for reads.

use std::time::Duration;

use deeperhub_cluster::{
    MAX_TOPS, ReadError, StorePosition, StoredEnvelope, StreamLimits, StreamRead, Topic,
};

use super::server::{LIST, META, Reply, Server};
use crate::node::{LIMITS, Node, contents, message, numbers, read, topic};
use crate::store::Store;
use crate::{eventually, wait};

#[test]
fn a_large_answer_without_a_position_keeps_the_last_messages() {
    let Some(server) = Server::start_with(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    let payload = format!("\"{}\"", "x".repeat(10_000));
    for number in 1..=100_u64 {
        node.append(number, message("t", &payload)).unwrap();
    }
    node.outcome(100).unwrap();
    let range = node.read(read("t", None, 1000));
    let bytes: usize = range.messages.iter().map(StoredEnvelope::len).sum();
    assert!(range.is_cut && range.oldest == 1 && bytes <= 300 << 10, "{bytes}");
    let offsets: Vec<_> = range.messages.iter().map(StoredEnvelope::offset).collect();
    assert_eq!(offsets, (101 - offsets.len() as u64..=100).collect::<Vec<_>>());
    assert!(offsets.len() >= 20);
}

#[test]
fn a_read_creates_the_stream_of_an_unknown_topic_if_asked() {
    let Some(server) = Server::start_with(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    let range = node.read(read("t", None, 9));
    assert_eq!((range.top, range.messages.len()), (None, 0));
    assert_eq!(server.run(&["DBSIZE"]), Reply::Number(0));
    let creates = |after| StreamRead { creates: true, ..read("t", after, 9) };
    let range = node.read(creates(None));
    let top = range.top.unwrap();
    assert_eq!((top.offset, range.oldest, range.messages.len()), (0, 1, 0));
    assert!(top.epoch <= range.time);
    assert_eq!(node.read(creates(None)).top, Some(top));
    assert_eq!(node.store("t", 1), StorePosition { offset: 1, ..top });
    assert!(server.run(&["PTTL", META]).number() > 600_000);
    // An epoch that the node knows stays behind.
    server.run(&["DEL", META]);
    let known = StorePosition { epoch: top.epoch + 5_000_000, offset: 3 };
    let range = node.read(creates(Some(known)));
    assert_eq!(range.top, Some(StorePosition { epoch: known.epoch + 1, offset: 0 }));
    assert_eq!(contents(&range), []);
}

#[test]
fn entries_of_others_are_left_out() {
    let Some(server) = Server::start_with(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    let first = node.store("t", 1);
    server.run(&["RPUSH", LIST, "not an envelope"]);
    node.store("u", 2);
    node.store("t", 3);
    // A message of another topic.
    let other = server.run(&["LINDEX", "{deeperhub:h:u}", "0"]);
    server.run(&["LPUSH", LIST, &String::from_utf8_lossy(other.bytes())]);
    let range = node.read(read("t", None, 9));
    assert_eq!(contents(&range), [(1, "1".to_owned()), (2, "3".to_owned())]);
    assert_eq!(range.top, Some(StorePosition { offset: 2, ..first }));
}

#[test]
fn a_read_that_fails_does_not_concern_others() {
    let Some(server) = Server::start_with(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    for (name, number) in ["t1", "t2", "t3"].into_iter().zip(1..) {
        node.store_with(number, message(name, "1"));
    }
    server.run(&["DEL", "{deeperhub:h:t2}"]);
    server.run(&["SET", "{deeperhub:h:t2}", "not a list"]);
    let reads = ["t1", "t2", "t3"].map(|name| read(name, None, 9)).to_vec();
    let ranges = wait(node.broker.read_streams(reads).unwrap()).unwrap();
    let [Ok(first), Err(ReadError::Refused(reason)), Ok(third)] = &ranges[..] else { panic!("{ranges:?}") };
    assert!(reason.contains("WRONGTYPE"), "{reason}");
    assert_eq!((contents(first), contents(third)), (numbers([1]), numbers([1])));
}

#[test]
fn a_look_can_prolong_the_life_of_positions() {
    let Some(server) = Server::start_with(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    for number in 1..=3 {
        node.store(&format!("t{number}"), number);
    }
    server.run(&["PEXPIRE", "{deeperhub:h:t2}m", "1000000"]);
    let topics: Vec<Topic<'static>> = (0..MAX_TOPS).map(|number| topic(&format!("t{number}"))).collect();
    let look = |remember| {
        let tops = wait(node.broker.read_tops(topics.clone(), remember).unwrap()).unwrap();
        tops.into_iter().map(|top| top.position).collect::<Vec<_>>()
    };
    let positions = look(None);
    let ttl = || server.run(&["PTTL", "{deeperhub:h:t2}m"]).number();
    assert!(ttl() <= 1_000_000);
    let limits = StreamLimits { ttl: Duration::from_secs(1000), forget: Duration::from_secs(9000), ..LIMITS };
    assert_eq!(look(Some(limits)), positions);
    assert!(ttl() > 9_000_000);
    assert_eq!(server.run(&["EXISTS", "{deeperhub:h:t9}m"]), Reply::Number(0));
}

#[test]
fn a_lost_connection_for_reads_is_replaced() {
    let Some(server) = Server::start_with(&[]) else { return };
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
