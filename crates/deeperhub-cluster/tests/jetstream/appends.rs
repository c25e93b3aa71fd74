//! Appends: positions, order, limits.

use std::time::{Duration, Instant};

use deeperhub_cluster::{
    Append, AppendError, AppendNumber, BrokerUrl, ClientId, Config, EnqueueError, Message, StreamLimits,
    TraceContext,
};
use serde_json::{Value, json};

use crate::node::{LIMITS, Node, Received, contents, message, read, topic};
use crate::server::Server;

fn config(server: &Server) -> Config {
    Config::new(BrokerUrl::parse(&server.url()).unwrap())
}

#[test]
fn four_nodes_see_one_order() {
    const EACH: u64 = 300;
    let Some(server) = Server::start("") else { return };
    let nodes: Vec<_> = (0..4).map(|number| Node::join(&server.url(), &format!("n{number}"))).collect();
    nodes.iter().for_each(|node| node.follow("t"));
    // A pattern brings each message a second time.
    nodes[0].broker.change_interest(&"*".into(), deeperhub_cluster::InterestChange::Gained);
    nodes[0].follow("t");
    std::thread::scope(|scope| {
        for (index, node) in nodes.iter().enumerate() {
            let broker = &node.broker;
            scope.spawn(move || {
                for number in 0..EACH {
                    let text = format!("[{index},{number}]");
                    broker.append(message("t", &text), AppendNumber(number)).unwrap();
                }
            });
        }
    });
    let count = nodes.len() * EACH as usize;
    let expected = nodes[1].receive(count);
    let mut next = [0; 4];
    for (received, offset) in expected.iter().zip(1_u64..) {
        let Received::Stored { position, previous, payload } = received else { panic!("{received:?}") };
        assert_eq!((position.offset, *previous), (offset, offset - 1));
        let [index, number]: [u64; 2] = serde_json::from_str(payload).unwrap();
        assert_eq!(number, next[index as usize], "the messages of a node keep their order");
        next[index as usize] += 1;
        assert_eq!(nodes[index as usize].outcome(number).unwrap().position, *position, "{payload}");
    }
    for node in &nodes[2..] {
        assert_eq!(node.receive(count), expected, "all nodes see one order");
    }
    let mut twice = nodes[0].receive(count);
    twice.sort_by_key(|received| match received {
        Received::Stored { position, .. } => *position,
        other => panic!("{other:?}"),
    });
    twice.dedup();
    assert_eq!(twice, expected);
    assert_eq!(server.stored(), count as u64);
}

#[test]
fn a_stored_message_keeps_every_field() {
    let Some(server) = Server::start("") else { return };
    let node = Node::join(&server.url(), "a");
    let traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let append = Append {
        from: ClientId::parse("a.0-1-2"),
        excludes_publisher: true,
        trace: TraceContext::new(Some(traceparent.into()), Some("a=1".into())),
        ..message("rooms.{7}.é", r#"{"text":"\u0000 and {}"}"#)
    };
    node.append(1, append.clone()).unwrap();
    let appended = node.outcome(1).unwrap();
    assert!(!appended.is_repeat);
    let range = node.read(read("rooms.{7}.é", None, 10));
    assert_eq!(range.top, Some(appended.position));
    // Milliseconds since 1970.
    assert!(appended.position.epoch > 1_600_000_000_000 && appended.time > 1_600_000_000_000);
    let envelope = range.messages[0].envelope().unwrap();
    assert_eq!(envelope.origin.node, "a");
    assert_eq!(
        envelope.message,
        Message::Stored {
            position: appended.position,
            previous: 0,
            time: appended.time,
            excludes_publisher: true,
            topic: append.topic,
            from: append.from,
            trace: append.trace,
            payload: append.payload,
        }
    );
}

#[test]
fn topics_of_a_rule_share_a_stream_and_rules_have_their_own() {
    let Some(server) = Server::start("") else { return };
    let rules = [("a.*", LIMITS), ("b.>", StreamLimits { messages: 3, ..LIMITS })];
    let node = Node::join_with(config(&server), "a", &rules);
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
    let Some(server) = Server::start("") else { return };
    let limits = StreamLimits { messages: 7, ttl: Duration::from_secs(30), forget: Duration::from_secs(1) };
    let mut config = config(&server);
    config.stream_storage = deeperhub_cluster::StreamStorage::Memory;
    let node = Node::join_with(config.clone(), "a", &[("t", limits)]);
    node.store("t", 1);
    let stream = server.stream();
    let settings =
        |name: &str| server.api(&format!("STREAM.INFO.{stream}"), &Value::Null)["config"][name].clone();
    assert_eq!((settings("max_msgs_per_subject"), settings("storage")), (json!(7), json!("memory")));
    assert_eq!(settings("max_age"), json!(30_000_000_000_u64));
    // Another node has later settings; a third one wants another storage, which stays.
    let later = StreamLimits { messages: 9, ..limits };
    config.stream_storage = deeperhub_cluster::StreamStorage::File;
    let other = Node::join_with(config, "b", &[("t", later)]);
    other.store("t", 2);
    assert_eq!((settings("max_msgs_per_subject"), settings("storage")), (json!(9), json!("memory")));
    assert_eq!(server.stream(), stream);
    // Rules can change while the node runs.
    other.broker.set_stream_rules([deeperhub_cluster::StreamRule {
        pattern: deeperhub_cluster::Subscription::parse("t").unwrap(),
        limits: Some(limits),
    }]);
    other.store("t", 3);
    assert_eq!(settings("max_msgs_per_subject"), json!(7));
}

#[test]
fn messages_leave_with_their_age() {
    let Some(server) = Server::start("") else { return };
    let limits = StreamLimits { messages: 9, ttl: Duration::from_millis(500), forget: Duration::ZERO };
    let node = Node::join_with(config(&server), "a", &[("t", limits)]);
    let first = node.store("t", 1);
    crate::eventually("the end of a message", || node.read(read("t", None, 9)).messages.is_empty());
    let range = node.read(read("t", Some(deeperhub_cluster::StorePosition { offset: 0, ..first }), 9));
    // Nothing before is vouched for.
    assert_eq!((range.top, range.whole.unwrap().after), (Some(first), 1));
}

#[test]
fn appends_that_no_store_takes_are_refused_at_once() {
    let url = BrokerUrl::parse("nats://127.0.0.1:1").unwrap();
    let (broker, _driver) = deeperhub_cluster::connect(Config::new(url), "a", "1").unwrap();
    assert_eq!(broker.append(message("t", "1"), AppendNumber(1)), Err(EnqueueError::Unavailable));
    assert!(broker.read_tops(vec![topic("t")], None).is_err());
}

#[test]
fn every_append_has_an_outcome_when_the_node_stops() {
    let Some(server) = Server::start("") else { return };
    let node = Node::join(&server.url(), "a");
    node.store("t", 0);
    server.signal("STOP");
    for number in 1..=1000_u64 {
        node.append(number, message("t", "1")).unwrap();
    }
    let stopped = node.stop(Instant::now());
    server.signal("CONT");
    let outcomes = stopped.outcomes();
    assert_eq!(outcomes.len(), 1001);
    assert!(outcomes[1..].iter().all(|(_, outcome)| *outcome == Err(AppendError::Stopped)));
}

#[test]
fn a_message_that_is_too_large_is_refused_alone() {
    let Some(server) = Server::start("max_payload: 2000") else { return };
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
