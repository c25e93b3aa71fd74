//! Streams on three servers.

use deeperhub_cluster::{BrokerUrl, Config};
use serde_json::Value;

use super::server::Server;
use crate::node::{LIMITS, Node, contents, message, read};
use crate::store::Store;
use crate::{eventually, wait};

#[test]
fn appends_and_reads_go_on_without_the_leader() {
    let Some(mut servers) = Server::start_cluster() else { return };
    servers[0].wait_for_cluster();
    let addresses: Vec<_> = servers.iter().map(|server| server.address().to_string()).collect();
    let join = |name: &str, first: usize| {
        let mut addresses = addresses.clone();
        addresses.rotate_left(first);
        let mut config = Config::new(BrokerUrl::parse(&format!("nats://{}", addresses.join(","))).unwrap());
        config.stream_replicas = 3;
        Node::join_with(config, name, &[(">", LIMITS)])
    };
    let (node, other) = (join("a", 0), join("b", 1));
    other.follow("t");
    for number in 1..=100_u64 {
        node.append(number, message("t", &number.to_string())).unwrap();
    }
    let first = node.outcome(100).unwrap().position;
    let leader = || {
        let alive = servers.iter().find(|server| !server.streams().is_empty()).unwrap();
        let info = alive.api(&format!("STREAM.INFO.{}", alive.stream()), &Value::Null);
        info["cluster"]["leader"].as_str().and_then(|name| name.strip_prefix('n')?.parse::<usize>().ok())
    };
    let leader = leader().expect("the stream has a leader");
    servers[leader].kill();
    for number in 101..=300_u64 {
        let text = number.to_string();
        // Refused while a node that was connected to the leader connects to another server.
        eventually("a place in the queue", || node.append(number, message("t", &text)).is_ok());
    }
    for number in 1..=300_u64 {
        let position = node.outcome(number).unwrap().position;
        assert_eq!(position.epoch, first.epoch, "{number}");
    }
    let mut read_back = Vec::new();
    eventually("a read without the leader", || {
        let reply = other.broker.read_streams(vec![read("t", None, 1000)]);
        let Ok(Ok(ranges)) = reply.map(wait) else { return false };
        let Ok(range) = &ranges[0] else { return false };
        read_back = contents(range);
        true
    });
    // A change of the leader may swap messages that were under way, and loses none.
    let mut sorted: Vec<_> = read_back.iter().map(|(_, payload)| payload.parse::<u64>().unwrap()).collect();
    sorted.sort_unstable();
    assert_eq!(sorted, (1..=300).collect::<Vec<_>>());
    for (offset, payload) in &read_back {
        let number = payload.parse().unwrap();
        assert_eq!(node.outcome(number).unwrap().position.offset, *offset);
    }
}
