//! Reads of streams and of their newest positions.

use std::time::Duration;

use deeperhub_cluster::{MAX_TOPS, ReadError, StorePosition, StreamLimits, StreamRead, Topic};

use crate::node::{LIMITS, Node, contents, message, numbers, read, topic};
use crate::server::{Reply, Server};
use crate::wait;

#[test]
fn reads_continue_after_a_position() {
    let Some(server) = Server::start(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    let limits = StreamLimits { messages: 200, ..LIMITS };
    for number in 1..=300_u64 {
        let text = number.to_string();
        node.append(number, deeperhub_cluster::Append { limits, ..message("t", &text) }).unwrap();
    }
    let top = node.outcome(300).unwrap().position;
    let after = |offset| Some(StorePosition { offset, ..top });
    for (from, count, expected) in [
        (after(300), 9, 301..301),
        (after(290), 100, 291..301),
        (after(100), 3, 101..104),
        (after(200), 1000, 201..301),
        // Offsets 1 to 100 are no longer kept.
        (after(50), 10, 101..111),
        (after(0), 1000, 101..301),
        // The store knows less than the node.
        (after(301), 9, 301..301),
        (after(5000), 9, 301..301),
        // The last messages.
        (None, 5, 296..301),
        (None, 1000, 101..301),
        (None, 0, 301..301),
        // Another epoch: the last messages of this one.
        (Some(StorePosition { epoch: top.epoch - 1, offset: 299 }), 2, 299..301),
        (Some(StorePosition { epoch: top.epoch + 1, offset: 299 }), 2, 299..301),
    ] {
        let range = node.read(read("t", from, count));
        assert_eq!((range.top, range.oldest, range.is_cut), (Some(top), 101, false), "{from:?}");
        assert_eq!(contents(&range), numbers(expected), "{from:?} {count}");
    }
}

#[test]
fn large_answers_are_cut() {
    let Some(server) = Server::start(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    let payload = |number: u64| format!("\"{number}:{}\"", "x".repeat(10_000));
    for number in 1..=100_u64 {
        node.append(number, message("t", &payload(number))).unwrap();
    }
    let top = node.outcome(100).unwrap().position;
    let bytes = |range: &deeperhub_cluster::StreamRange| {
        range.messages.iter().map(deeperhub_cluster::StoredEnvelope::len).sum::<usize>()
    };
    let mut position = StorePosition { offset: 0, ..top };
    let mut reads = 0;
    while position.offset < 100 {
        let range = node.read(read("t", Some(position), 1000));
        assert!(bytes(&range) <= 300 << 10, "{}", bytes(&range));
        for (offset, text) in contents(&range) {
            assert_eq!((offset, text), (position.offset + 1, payload(offset)));
            position.offset = offset;
        }
        assert_eq!(range.is_cut, position.offset < 100);
        reads += 1;
    }
    assert!((3..=6).contains(&reads), "{reads}");
    // The last messages are those that stay.
    let range = node.read(read("t", None, 1000));
    assert!(range.is_cut && range.oldest == 1 && bytes(&range) <= 300 << 10);
    assert_eq!(range.messages.last().unwrap().offset(), 100);
    let offsets: Vec<_> = range.messages.iter().map(deeperhub_cluster::StoredEnvelope::offset).collect();
    assert_eq!(offsets, (101 - offsets.len() as u64..=100).collect::<Vec<_>>());
    assert!(offsets.len() >= 20);
    // One message that is larger than an answer passes alone.
    let large = format!("\"{}\"", "x".repeat(2 << 20));
    node.store_with(101, message("t", &large));
    let range = node.read(read("t", Some(top), 1000));
    assert_eq!(contents(&range), [(101, large)]);
}

#[test]
fn a_read_creates_the_stream_of_an_unknown_topic_if_asked() {
    let Some(server) = Server::start(&[]) else { return };
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
    assert!(server.run(&["PTTL", "{deeperhub:h:t}m"]).number() > 600_000);
    // An epoch that the node knows stays behind.
    server.run(&["DEL", "{deeperhub:h:t}m"]);
    let known = StorePosition { epoch: top.epoch + 5_000_000, offset: 3 };
    let range = node.read(creates(Some(known)));
    assert_eq!(range.top, Some(StorePosition { epoch: known.epoch + 1, offset: 0 }));
    assert_eq!(contents(&range), []);
}

#[test]
fn entries_of_others_are_left_out() {
    let Some(server) = Server::start(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    let first = node.store("t", 1);
    server.run(&["RPUSH", "{deeperhub:h:t}", "not an envelope"]);
    node.store("u", 2);
    node.store("t", 3);
    // A message of another topic.
    let other = server.run(&["LINDEX", "{deeperhub:h:u}", "0"]);
    server.run(&["LPUSH", "{deeperhub:h:t}", &String::from_utf8_lossy(other.bytes())]);
    let range = node.read(read("t", None, 9));
    assert_eq!(contents(&range), [(1, "1".to_owned()), (2, "3".to_owned())]);
    assert_eq!(range.top, Some(StorePosition { offset: 2, ..first }));
}

#[test]
fn a_read_that_fails_does_not_concern_others() {
    let Some(server) = Server::start(&[]) else { return };
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
fn tops_come_in_pipelines_and_can_be_remembered() {
    let Some(server) = Server::start(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    let stored: Vec<_> = (1..=3).map(|number| node.store(&format!("t{number}"), number)).collect();
    server.run(&["PEXPIRE", "{deeperhub:h:t2}m", "1000000"]);
    let topics: Vec<Topic<'static>> = (0..MAX_TOPS).map(|number| topic(&format!("t{number}"))).collect();
    let tops = wait(node.broker.read_tops(topics.clone(), None).unwrap()).unwrap();
    assert_eq!(tops.len(), MAX_TOPS);
    let positions: Vec<_> = tops.iter().filter_map(|top| top.position).collect();
    assert_eq!(positions, stored);
    assert!(tops[0].position.is_none() && tops[1].position.is_some());
    assert!(tops.iter().all(|top| top.time >= stored[0].epoch));
    let ttl = || server.run(&["PTTL", "{deeperhub:h:t2}m"]).number();
    assert!(ttl() <= 1_000_000);
    let limits = StreamLimits { ttl: Duration::from_secs(1000), forget: Duration::from_secs(9000), ..LIMITS };
    let remembered = wait(node.broker.read_tops(topics, Some(limits)).unwrap()).unwrap();
    assert_eq!(
        remembered.iter().map(|top| top.position).collect::<Vec<_>>(),
        tops.iter().map(|top| top.position).collect::<Vec<_>>()
    );
    assert!(ttl() > 9_000_000);
    assert_eq!(server.run(&["EXISTS", "{deeperhub:h:t9}m"]), Reply::Number(0));
}
