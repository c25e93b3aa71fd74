//! Appends: positions, order, limits.

use std::time::{Duration, Instant};

use deeperhub_cluster::{
    Append, AppendError, AppendNumber, BrokerUrl, ClientId, Config, EnqueueError, Message, ReadError,
    StreamLimits, TraceContext, connect,
};

use crate::eventually;
use crate::node::{LIMITS, Node, Received, contents, message, numbers, read, topic};
use crate::server::{Reply, Server};

#[test]
fn four_nodes_get_dense_offsets_in_one_order() {
    const EACH: u64 = 400;
    let Some(server) = Server::start(&[]) else { return };
    let nodes: Vec<_> = (0..4).map(|number| Node::join(&server.url(), &format!("n{number}"))).collect();
    nodes.iter().for_each(|node| node.follow("t"));
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
    let expected = nodes[0].receive(4 * EACH as usize);
    let mut next = [0; 4];
    for (received, offset) in expected.iter().zip(1..) {
        let Received::Stored { position, previous, payload } = received else { panic!("{received:?}") };
        assert_eq!((position.offset, *previous), (offset, offset - 1));
        let [index, number]: [u64; 2] = payload
            .trim_matches(['[', ']'])
            .split(',')
            .map(|part| part.parse().unwrap())
            .collect::<Vec<_>>()
            .try_into()
            .unwrap();
        let node = &nodes[index as usize];
        assert_eq!(number, next[index as usize], "the messages of a node keep their order");
        next[index as usize] += 1;
        assert_eq!(node.outcome(number).unwrap().position, *position, "{payload}");
    }
    for node in &nodes {
        assert_eq!(node.receive(expected.len()), expected, "all nodes see one order");
    }
}

#[test]
fn appends_and_plain_messages_of_a_node_keep_their_order() {
    let Some(server) = Server::start(&[]) else { return };
    let (sender, receiver) = (Node::join(&server.url(), "a"), Node::join(&server.url(), "b"));
    receiver.follow("t");
    for number in 0..600_u64 {
        let text = number.to_string();
        let append = message("t", &text);
        if number % 3 == 0 {
            let Append { topic, from, trace, payload, .. } = append;
            sender.broker.publish(Message::Publish { topic, from, trace, payload }).unwrap();
        } else {
            sender.append(number, append).unwrap();
        }
    }
    let received: Vec<u64> = receiver
        .receive(600)
        .into_iter()
        .map(|received| match received {
            Received::Stored { payload, .. } | Received::Plain { payload } => payload.parse().unwrap(),
            other @ Received::Reset { .. } => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(received, (0..600).collect::<Vec<_>>());
}

#[test]
fn a_stored_message_keeps_every_field() {
    let Some(server) = Server::start(&[]) else { return };
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

#[test]
fn a_stream_is_limited_by_messages() {
    let Some(server) = Server::start(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    let limits = StreamLimits { messages: 3, ..LIMITS };
    for number in 1..=10_u64 {
        node.append(number, Append { limits, ..message("t", &number.to_string()) }).unwrap();
    }
    assert_eq!(node.outcome(10).unwrap().position.offset, 10);
    assert_eq!(server.run(&["LLEN", "{deeperhub:h:t}"]).number(), 3);
    let range = node.read(read("t", None, 100));
    assert_eq!((range.oldest, range.top.unwrap().offset, range.is_cut), (8, 10, false));
    assert_eq!(contents(&range), numbers(8..=10));
    // A lower limit takes effect with the next message.
    let limits = StreamLimits { messages: 1, ..LIMITS };
    node.store_with(11, Append { limits, ..message("t", "11") });
    assert_eq!(contents(&node.read(read("t", None, 100))), numbers([11]));
}

#[test]
fn keys_expire_after_their_times() {
    let Some(server) = Server::start(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    let limits =
        StreamLimits { messages: 9, ttl: Duration::from_secs(6000), forget: Duration::from_secs(60_000) };
    node.store_with(1, Append { limits, ..message("t", "1") });
    let ttl = |key: &str| server.run(&["PTTL", key]).number();
    assert!((1..=6_000_000).contains(&ttl("{deeperhub:h:t}")));
    assert!((6_000_001..=66_000_000).contains(&ttl("{deeperhub:h:t}m")));
    // A message that has reached its age is left out, even if its list is still there.
    let limits = StreamLimits { ttl: Duration::from_millis(1), ..limits };
    eventually("the end of a message", || {
        node.read(deeperhub_cluster::StreamRead { limits, ..read("t", None, 9) }).messages.is_empty()
    });
    let range = node.read(deeperhub_cluster::StreamRead { limits, ..read("t", None, 9) });
    assert_eq!((range.oldest, range.top.unwrap().offset), (2, 1));
    assert_eq!(contents(&node.read(read("t", None, 9))), numbers([1]));
    // An expired list leaves the position.
    node.store_with(2, Append { limits, ..message("t", "2") });
    eventually("the end of the list", || server.run(&["EXISTS", "{deeperhub:h:t}"]) == Reply::Number(0));
    let range = node.read(read("t", None, 9));
    assert_eq!((range.oldest, range.top.unwrap().offset, range.messages.len()), (3, 2, 0));
}

#[test]
fn appends_that_no_store_takes_are_refused_at_once() {
    let url = BrokerUrl::parse("redis://127.0.0.1:1").unwrap();
    let (broker, _driver) = connect(Config::new(url), "a", "1").unwrap();
    let number = AppendNumber(1);
    assert_eq!(broker.append(message("t", "1"), number), Err(EnqueueError::Unavailable));
    assert!(matches!(broker.read_tops(vec![topic("t")], None), Err(ReadError::Unavailable)));
}

#[test]
fn every_append_has_an_outcome_when_the_node_stops() {
    let Some(server) = Server::start(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    node.store("t", 0);
    let pause = server.run_later(&["DEBUG", "SLEEP", "4"]);
    std::thread::sleep(Duration::from_millis(100));
    for number in 1..=1000_u64 {
        node.append(number, message("t", "1")).unwrap();
    }
    let stopped = node.stop(Instant::now());
    let outcomes = stopped.outcomes();
    assert_eq!(outcomes.len(), 1001);
    assert!(outcomes[1..].iter().all(|(_, outcome)| *outcome == Err(AppendError::Stopped)));
    let refused = stopped.broker.append(message("t", "1"), AppendNumber(1001));
    assert_eq!(refused, Err(EnqueueError::Unavailable));
    pause.join().unwrap();
}
