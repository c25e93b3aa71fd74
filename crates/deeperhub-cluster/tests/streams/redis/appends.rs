//! Order of appends and plain messages, and the times of keys.

use std::time::Duration;

use deeperhub_cluster::{Append, Message, StreamLimits, StreamRead};

use super::server::{LIST, META, Reply, Server};
use crate::eventually;
use crate::node::{Node, Received, contents, message, numbers, read};
use crate::store::Store;

#[test]
fn appends_and_plain_messages_of_a_node_keep_their_order() {
    let Some(server) = Server::start_with(&[]) else { return };
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
fn keys_expire_after_their_times() {
    let Some(server) = Server::start_with(&[]) else { return };
    let node = Node::join(&server.url(), "a");
    let limits =
        StreamLimits { messages: 9, ttl: Duration::from_secs(6000), forget: Duration::from_secs(60_000) };
    node.store_with(1, Append { limits, ..message("t", "1") });
    let ttl = |key: &str| server.run(&["PTTL", key]).number();
    assert!((1..=6_000_000).contains(&ttl(LIST)));
    assert!((6_000_001..=66_000_000).contains(&ttl(META)));
    // A message that has reached its age is left out, even if its list is still there.
    let limits = StreamLimits { ttl: Duration::from_millis(1), ..limits };
    let read_limited = || node.read(StreamRead { limits, ..read("t", None, 9) });
    eventually("the end of a message", || read_limited().messages.is_empty());
    let range = read_limited();
    assert_eq!((range.oldest, range.top.unwrap().offset), (2, 1));
    assert_eq!(contents(&node.read(read("t", None, 9))), numbers([1]));
    // An expired list leaves the position.
    node.store_with(2, Append { limits, ..message("t", "2") });
    eventually("the end of the list", || server.run(&["EXISTS", LIST]) == Reply::Number(0));
    let range = node.read(read("t", None, 9));
    assert_eq!((range.oldest, range.top.unwrap().offset, range.messages.len()), (3, 2, 0));
}
