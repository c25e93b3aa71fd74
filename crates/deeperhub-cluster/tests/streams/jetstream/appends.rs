//! Streams of rules and their settings, and the size of messages.

use std::time::Duration;

use deeperhub_cluster::{AppendError, StreamLimits, StreamStorage};
use serde_json::{Value, json};

use super::server::Server;
use crate::node::{LIMITS, Node, Received, contents, message, read};
use crate::store::Store;

#[test]
fn topics_of_a_rule_share_a_stream_and_rules_have_their_own() {
    let Some(server) = Server::start() else { return };
    let rules = [("a.*", LIMITS), ("b.>", StreamLimits { messages: 3, ..LIMITS })];
    let node = Node::join_with(server.config(), "a", &rules);
    ["a.1", "a.2", "b.1"].into_iter().for_each(|topic| node.follow(topic));
    let offsets = ["a.1", "a.2", "a.1", "b.1", "a.2"];
    let offsets: Vec<_> =
        (1..).zip(offsets).map(|(number, topic)| node.store(topic, number).offset).collect();
    assert_eq!(offsets, [1, 2, 3, 1, 4]);
    let previous: Vec<_> = node
        .receive(5)
        .iter()
        .map(|received| match received {
            Received::Stored { previous, .. } => *previous,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(previous.iter().filter(|previous| **previous == 0).count(), 3);
    let range = node.read(read("a.1", None, 9));
    assert_eq!(contents(&range), [(1, "1".to_owned()), (3, "3".to_owned())]);
    assert_eq!(server.streams().len(), 2);
    // A topic without a rule.
    node.append(9, message("c", "1")).unwrap();
    let Err(AppendError::Refused(reason)) = node.outcome(9) else { panic!("no rule") };
    assert!(reason.contains("no rule keeps messages of c"), "{reason}");
    // The oldest messages of a topic make room.
    for number in 10..20_u64 {
        node.store("b.1", number);
    }
    let range = node.read(read("b.1", None, 9));
    assert_eq!(range.messages.len(), 3);
    assert_eq!(range.whole.unwrap().after, range.messages[0].offset() - 1);
}

#[test]
fn settings_of_a_stream_follow_the_rule() {
    let Some(server) = Server::start() else { return };
    let limits = StreamLimits { messages: 7, ttl: Duration::from_secs(30), forget: Duration::from_secs(1) };
    let mut config = server.config();
    config.stream_storage = StreamStorage::Memory;
    let node = Node::join_with(config.clone(), "a", &[("t", limits)]);
    node.store("t", 1);
    let stream = server.stream();
    let settings =
        |name: &str| server.api(&format!("STREAM.INFO.{stream}"), &Value::Null)["config"][name].clone();
    assert_eq!((settings("max_msgs_per_subject"), settings("storage")), (json!(7), json!("memory")));
    assert_eq!(settings("max_age"), json!(30_000_000_000_u64));
    // Another node has later settings; a third one wants another storage, which stays.
    let later = StreamLimits { messages: 9, ..limits };
    config.stream_storage = StreamStorage::File;
    let other = Node::join_with(config, "b", &[("t", later)]);
    other.store("t", 2);
    assert_eq!((settings("max_msgs_per_subject"), settings("storage")), (json!(9), json!("memory")));
    assert_eq!(server.stream(), stream);
    // Rules can change while the node runs.
    other.set_rules(&[("t", limits)]);
    other.store("t", 3);
    assert_eq!(settings("max_msgs_per_subject"), json!(7));
}

#[test]
fn a_message_that_is_too_large_is_refused_alone() {
    let Some(server) = Server::start_with("max_payload: 2000") else { return };
    let node = Node::join(&server.url(), "a");
    let large = format!("\"{}\"", "x".repeat(1850));
    // The envelope fits, but not with its headers.
    node.append(1, message("t", &large)).unwrap();
    node.append(2, message("t", "2")).unwrap();
    let Err(AppendError::Refused(reason)) = node.outcome(1) else { panic!("the message is too large") };
    assert!(reason.contains("max_payload"), "{reason}");
    assert_eq!(node.outcome(2).unwrap().position.offset, 1);
    assert_eq!(contents(&node.read(read("t", None, 9))), [(1, "2".to_owned())]);
}

#[test]
fn a_full_server_refuses_messages_and_keeps_the_others() {
    let Some(server) = Server::start_with_room(200_000) else { return };
    let node = Node::join(&server.url(), "a");
    let payload = format!("\"{}\"", "x".repeat(10_000));
    let mut positions = Vec::new();
    let reason = loop {
        let number = positions.len() as u64;
        node.append(number, message("t", &payload)).unwrap();
        match node.outcome(number) {
            Ok(appended) => positions.push(appended.position),
            Err(AppendError::Refused(reason)) => break reason,
            Err(error) => panic!("{error}"),
        }
        assert!(positions.len() < 100, "the server is full");
    };
    assert!(reason.contains("resources"), "{reason}");
    node.append(1000, message("t", &payload)).unwrap();
    assert!(matches!(node.outcome(1000), Err(AppendError::Refused(_))));
    let range = node.read(read("t", None, 100));
    assert_eq!(range.top, positions.last().copied());
    let offsets: Vec<_> = contents(&range).into_iter().map(|(offset, _)| offset).collect();
    assert_eq!(offsets, positions.iter().map(|position| position.offset).collect::<Vec<_>>());
}
