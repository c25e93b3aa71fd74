//! Appends: positions, order, limits.

use std::time::{Duration, Instant};

use deeperhub_cluster::{
    Append, AppendError, AppendNumber, BrokerUrl, ClientId, Config, EnqueueError, InterestChange, Message,
    ReadError, StorePosition, StreamLimits, StreamRead, TraceContext, connect,
};

use crate::eventually;
use crate::node::{LIMITS, Node, Received, contents, message, numbers, read, topic};
use crate::store::Store;

on_each_store!(
    all_nodes_see_one_order,
    a_stored_message_keeps_every_field,
    a_stream_is_limited_by_messages,
    messages_leave_with_their_age,
    appends_that_no_store_takes_are_refused_at_once,
    every_append_has_an_outcome_when_the_node_stops,
);

fn all_nodes_see_one_order<S: Store>() {
    const EACH: u64 = 300;
    let Some(server) = S::start() else { return };
    let nodes: Vec<_> = (0..4).map(|number| Node::join(&server.url(), &format!("n{number}"))).collect();
    nodes.iter().for_each(|node| node.follow("t"));
    let [first, others @ .., with_pattern] = &nodes[..] else { panic!("there are four nodes") };
    // A pattern may bring each message a second time.
    with_pattern.broker.change_interest(&"*".into(), InterestChange::Gained);
    with_pattern.follow("t");
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
    let expected = first.receive(count);
    let mut next = [0; 4];
    for (received, offset) in expected.iter().zip(1_u64..) {
        let Received::Stored { position, previous, payload } = received else { panic!("{received:?}") };
        assert_eq!((position.offset, *previous), (offset, offset - 1));
        let [index, number]: [u64; 2] = serde_json::from_str(payload).unwrap();
        assert_eq!(number, next[index as usize], "the messages of a node keep their order");
        next[index as usize] += 1;
        assert_eq!(nodes[index as usize].outcome(number).unwrap().position, *position, "{payload}");
    }
    assert_eq!(next, [EACH; 4]);
    for node in others {
        assert_eq!(node.receive(count), expected, "all nodes see one order");
    }
    let sorted_once = || {
        let mut received = with_pattern.received();
        received.sort_by_key(|received| match received {
            Received::Stored { position, .. } => *position,
            other => panic!("{other:?}"),
        });
        received.dedup();
        received
    };
    eventually("all messages", || sorted_once().len() >= count);
    assert_eq!(sorted_once(), expected);
    assert_eq!(server.stored(), count as u64);
}

fn a_stored_message_keeps_every_field<S: Store>() {
    let Some(server) = S::start() else { return };
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
    assert!(appended.time > 1_600_000_000_000 && appended.time <= range.time, "{appended:?} {}", range.time);
    assert!(appended.position.epoch > 1_600_000_000_000 && appended.position.epoch <= appended.time);
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

fn a_stream_is_limited_by_messages<S: Store>() {
    let Some(server) = S::start() else { return };
    let limits = StreamLimits { messages: 3, ..LIMITS };
    let node = Node::join_with(server.config(), "a", &[(">", limits)]);
    for number in 1..=10_u64 {
        node.append(number, Append { limits, ..message("t", &number.to_string()) }).unwrap();
    }
    assert_eq!(node.outcome(10).unwrap().position.offset, 10);
    assert_eq!(server.stored(), 3);
    let range = node.read(read("t", None, 100));
    assert_eq!((range.oldest, range.top.unwrap().offset, range.is_cut), (8, 10, false));
    assert_eq!(contents(&range), numbers(8..=10));
    // A lower limit takes effect with the next message.
    let limits = StreamLimits { messages: 1, ..LIMITS };
    node.set_rules(&[(">", limits)]);
    node.store_with(11, Append { limits, ..message("t", "11") });
    assert_eq!(contents(&node.read(read("t", None, 100))), numbers([11]));
}

fn messages_leave_with_their_age<S: Store>() {
    let Some(server) = S::start() else { return };
    let limits = StreamLimits { messages: 9, ttl: Duration::from_millis(500), forget: LIMITS.forget };
    let node = Node::join_with(server.config(), "a", &[("t", limits)]);
    let first = node.store_with(1, Append { limits, ..message("t", "1") });
    let read_after = |after| node.read(StreamRead { limits, ..read("t", after, 9) });
    eventually("the end of a message", || read_after(None).messages.is_empty());
    let range = read_after(Some(StorePosition { offset: 0, ..first }));
    assert_eq!((range.top, range.messages.len()), (Some(first), 0));
    // Nothing before is vouched for.
    match range.whole {
        Some(whole) => assert_eq!(whole.after, 1),
        None => assert_eq!(range.oldest, 2),
    }
}

fn appends_that_no_store_takes_are_refused_at_once<S: Store>() {
    let url = BrokerUrl::parse(&format!("{}://127.0.0.1:1", S::SCHEME)).unwrap();
    let (broker, _driver) = connect(Config::new(url), "a", "1").unwrap();
    assert_eq!(broker.append(message("t", "1"), AppendNumber(1)), Err(EnqueueError::Unavailable));
    assert!(matches!(broker.read_tops(vec![topic("t")], None), Err(ReadError::Unavailable)));
}

fn every_append_has_an_outcome_when_the_node_stops<S: Store>() {
    let Some(server) = S::start() else { return };
    let node = Node::join(&server.url(), "a");
    node.store("t", 0);
    server.pause();
    for number in 1..=1000_u64 {
        node.append(number, message("t", "1")).unwrap();
    }
    let stopped = node.stop(Instant::now());
    server.resume();
    let outcomes = stopped.outcomes();
    assert_eq!(outcomes.len(), 1001);
    assert!(outcomes[1..].iter().all(|(_, outcome)| *outcome == Err(AppendError::Stopped)));
    let refused = stopped.broker.append(message("t", "1"), AppendNumber(1001));
    assert_eq!(refused, Err(EnqueueError::Unavailable));
}
