//! Reads of streams and of their newest positions.

use deeperhub_cluster::{Append, MAX_TOPS, StorePosition, StoredEnvelope, StreamLimits, StreamRead, Topic};

use crate::node::{LIMITS, Node, contents, message, numbers, read, topic};
use crate::server::Server;
use crate::{eventually, wait};

fn join(server: &Server, limits: StreamLimits) -> Node {
    let url = deeperhub_cluster::BrokerUrl::parse(&server.url()).unwrap();
    Node::join_with(deeperhub_cluster::Config::new(url), "a", &[(">", limits)])
}

#[test]
fn reads_continue_after_a_position() {
    let Some(server) = Server::start("") else { return };
    let node = join(&server, StreamLimits { messages: 200, ..LIMITS });
    for number in 1..=300_u64 {
        let text = number.to_string();
        node.append(number, message("t", &text)).unwrap();
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
        (None, 1, 300..301),
        (None, 199, 102..301),
        (None, 1000, 101..301),
        (None, 0, 301..301),
        // Another epoch: the last messages of this one.
        (Some(StorePosition { epoch: top.epoch - 1, offset: 299 }), 2, 299..301),
        (Some(StorePosition { epoch: top.epoch + 1, offset: 299 }), 2, 299..301),
    ] {
        let range = node.read(read("t", from, count));
        assert_eq!((range.top, range.is_cut), (Some(top), false), "{from:?} {count}");
        assert_eq!(contents(&range), numbers(expected), "{from:?} {count}");
        if from.is_none_or(|from| from.epoch != top.epoch) {
            assert_eq!((range.oldest, range.kept), (101, 200), "{from:?} {count}");
        }
    }
    // Removed messages are told.
    let whole = |from, count| node.read(read("t", from, count)).whole.unwrap();
    assert_eq!((whole(after(50), 1000).after, whole(after(50), 1000).to), (100, 300));
    assert_eq!((whole(after(100), 1000).after, whole(after(290), 5).to), (100, 295));
    assert_eq!((whole(after(150), 1000).after, whole(None, 5).after), (150, 295));
}

#[test]
fn topics_of_others_leave_holes_that_reads_vouch_for() {
    let Some(server) = Server::start("") else { return };
    let node = join(&server, LIMITS);
    let first = node.store("a", 1);
    for number in 2..=50_u64 {
        node.store("b", number);
    }
    node.store("a", 51);
    for number in 52..=60_u64 {
        node.store("b", number);
    }
    let range = node.read(read("a", None, 100));
    assert_eq!(contents(&range), [(1, "1".to_owned()), (51, "51".to_owned())]);
    // The topic is whole up to the newest message of all topics.
    let whole = range.whole.unwrap();
    assert_eq!((whole.after, whole.to, range.top.unwrap().offset), (0, 60, 60));
    for (after, expected) in [(1, vec![51]), (30, vec![51]), (51, vec![]), (60, vec![])] {
        let range = node.read(read("a", Some(StorePosition { offset: after, ..first }), 100));
        let offsets: Vec<_> = range.messages.iter().map(StoredEnvelope::offset).collect();
        assert_eq!((offsets, range.whole.unwrap().after), (expected, after));
    }
    // A topic without messages has the same position.
    let range = node.read(read("c", None, 100));
    assert_eq!((range.top.unwrap().offset, range.kept, range.messages.len()), (60, 0, 0));
    // Each topic has its own chain.
    let range = node.read(read("b", None, 3));
    let previous: Vec<_> = range
        .messages
        .iter()
        .map(|message| match message.envelope().unwrap().message {
            deeperhub_cluster::Message::Stored { previous, .. } => previous,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(previous[1..], [58, 59]);
}

#[test]
fn large_answers_are_cut() {
    let Some(server) = Server::start("") else { return };
    let node = join(&server, LIMITS);
    let payload = |number: u64| format!("\"{number}:{}\"", "x".repeat(10_000));
    for number in 1..=100_u64 {
        node.append(number, message("t", &payload(number))).unwrap();
    }
    let top = node.outcome(100).unwrap().position;
    let mut position = StorePosition { offset: 0, ..top };
    let mut reads = 0;
    while position.offset < 100 {
        let range = node.read(read("t", Some(position), 1000));
        let bytes: usize = range.messages.iter().map(StoredEnvelope::len).sum();
        assert!(bytes <= 300 << 10, "{bytes}");
        for (offset, text) in contents(&range) {
            assert_eq!((offset, text), (position.offset + 1, payload(offset)));
            position.offset = offset;
        }
        assert_eq!((range.is_cut, range.whole.unwrap().to), (position.offset < 100, position.offset));
        reads += 1;
    }
    assert!((3..=6).contains(&reads), "{reads}");
    // One message that is larger than an answer passes alone.
    let large = format!("\"{}\"", "x".repeat(500 << 10));
    node.store_with(101, message("t", &large));
    assert_eq!(contents(&node.read(read("t", Some(top), 1000))), [(101, large)]);
}

#[test]
fn messages_of_others_are_left_out() {
    let Some(server) = Server::start("") else { return };
    let node = join(&server, LIMITS);
    node.store("t", 1);
    let subject = server.api(&format!("STREAM.INFO.{}", server.stream()), &serde_json::Value::Null)["config"]
        ["subjects"][0]
        .as_str()
        .unwrap()
        .replace('>', "m.t");
    server.publish(&subject, "not an envelope");
    node.store("t", 3);
    let range = node.read(read("t", None, 9));
    assert_eq!(contents(&range), [(1, "1".to_owned()), (3, "3".to_owned())]);
    let deeperhub_cluster::Message::Stored { previous, .. } = range.messages[1].envelope().unwrap().message
    else {
        panic!("a stored message")
    };
    assert_eq!(previous, 1);
}

#[test]
fn tops_come_in_one_exchange() {
    let Some(server) = Server::start("") else { return };
    let node = join(&server, LIMITS);
    let stored: Vec<_> = (1..=3).map(|number| node.store(&format!("t{number}"), number)).collect();
    let topics: Vec<Topic<'static>> = (0..MAX_TOPS).map(|number| topic(&format!("t{number}"))).collect();
    let tops = wait(node.broker.read_tops(topics, Some(LIMITS)).unwrap()).unwrap();
    assert_eq!(tops.len(), MAX_TOPS);
    let positions: Vec<_> = tops[1..4].iter().filter_map(|top| top.position).collect();
    assert_eq!(positions, stored);
    assert_eq!(tops[9].position, Some(StorePosition { offset: 0, ..stored[0] }));
    for top in &tops {
        let progress = top.progress.unwrap();
        assert_eq!((progress.newest, progress.vouched), (3, 3));
        assert!(top.time >= stored[0].epoch);
    }
}

#[test]
fn a_read_waits_for_the_interest_that_was_announced_before() {
    let Some(server) = Server::start("") else { return };
    let (node, sender) = (Node::join(&server.url(), "a"), Node::join(&server.url(), "b"));
    for number in 1..=30_u64 {
        let name = format!("t{number}");
        node.broker.change_interest(&name.as_str().into(), deeperhub_cluster::InterestChange::Gained);
        let follow = StreamRead { follows: true, ..read(&name, None, 1) };
        wait(node.broker.read_streams(vec![follow]).unwrap()).unwrap().remove(0).unwrap();
        // From now on no message is missed.
        sender.store_with(number, Append { limits: LIMITS, ..message(&name, "1") });
        assert_eq!(node.receive(number as usize).len(), number as usize);
    }
}

#[test]
fn requests_of_a_lost_connection_fail_and_later_ones_do_not() {
    let Some(mut server) = Server::start("") else { return };
    let node = Node::join(&server.url(), "a");
    node.store("t", 1);
    server.signal("STOP");
    let reply = node.broker.read_streams(vec![read("t", None, 9)]).unwrap();
    server.kill();
    wait(reply).unwrap_err();
    node.wait_until_down();
    server.start_again();
    node.wait_until_up();
    eventually("a read on a new connection", || {
        let reply = node.broker.read_streams(vec![read("t", None, 9)]);
        reply.is_ok_and(|reply| {
            wait(reply)
                .is_ok_and(|ranges| ranges[0].as_ref().is_ok_and(|range| contents(range) == numbers([1])))
        })
    });
}
