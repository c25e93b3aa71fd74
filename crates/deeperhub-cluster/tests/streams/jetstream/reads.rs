//! Reads of a stream that has messages of several topics.

use std::time::Duration;

use deeperhub_cluster::{Message, StorePosition, StoredEnvelope, StreamLimits};
use serde_json::Value;

use super::server::Server;
use crate::node::{LIMITS, Node, contents, read, topic};
use crate::scenarios::keep_the_last_200_of_300;
use crate::store::Store;
use crate::{eventually, wait};

#[test]
fn reads_tell_which_messages_were_removed() {
    let Some(server) = Server::start() else { return };
    let (node, top) = keep_the_last_200_of_300(&server);
    let after = |offset| Some(StorePosition { offset, ..top });
    let whole = |from, count| node.read(read("t", from, count)).whole.unwrap();
    assert_eq!((whole(after(50), 1000).after, whole(after(50), 1000).to), (100, 300));
    assert_eq!((whole(after(100), 1000).after, whole(after(290), 5).to), (100, 295));
    assert_eq!((whole(after(150), 1000).after, whole(None, 5).after), (150, 295));
}

#[test]
fn raised_limits_do_not_hide_what_smaller_ones_removed() {
    let Some(server) = Server::start() else { return };
    let few = StreamLimits { messages: 2, ..LIMITS };
    let short = StreamLimits { ttl: Duration::from_secs(1), ..LIMITS };
    let node = Node::join_with(server.config(), "a", &[("few", few), ("short", short)]);
    for number in 1..=5_u64 {
        node.store("few", number);
    }
    node.store("short", 6);
    eventually("the age of the message", || node.read(read("short", None, 9)).kept == 0);
    node.set_rules(&[("few", LIMITS), ("short", LIMITS)]);
    let first = node.store("few", 7);
    assert_eq!(first.offset, 6);
    let range = node.read(read("few", Some(StorePosition { offset: 1, ..first }), 9));
    assert_eq!((range.messages[0].offset(), range.whole.unwrap().after), (4, 3));
    assert_eq!(node.read(read("short", None, 9)).whole.unwrap().after, 1);
}

#[test]
fn topics_of_others_leave_holes_that_reads_vouch_for() {
    let Some(server) = Server::start() else { return };
    let node = Node::join(&server.url(), "a");
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
            Message::Stored { previous, .. } => previous,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(previous[1..], [58, 59]);
}

#[test]
fn messages_of_others_are_left_out() {
    let Some(server) = Server::start() else { return };
    let node = Node::join(&server.url(), "a");
    node.store("t", 1);
    let subject = server.api(&format!("STREAM.INFO.{}", server.stream()), &Value::Null)["config"]["subjects"]
        [0]
    .as_str()
    .unwrap()
    .replace('>', "m.t");
    server.publish(&subject, "not an envelope");
    node.store("t", 3);
    let range = node.read(read("t", None, 9));
    assert_eq!(contents(&range), [(1, "1".to_owned()), (3, "3".to_owned())]);
    let Message::Stored { previous, .. } = range.messages[1].envelope().unwrap().message else {
        panic!("a stored message")
    };
    assert_eq!(previous, 1);
}

#[test]
fn looks_tell_the_progress_of_the_shared_stream() {
    let Some(server) = Server::start() else { return };
    let node = Node::join(&server.url(), "a");
    for number in 1..=3 {
        node.store(&format!("t{number}"), number);
    }
    let topics = (0..10).map(|number| topic(&format!("t{number}"))).collect();
    let tops = wait(node.broker.read_tops(topics, Some(LIMITS)).unwrap()).unwrap();
    for top in &tops {
        let progress = top.progress.unwrap();
        assert_eq!((progress.newest, progress.vouched), (3, 3));
    }
}
