//! Reads of many topics at once, which one pass over the stream serves.

use deeperhub_cluster::{
    MAX_READS, ResetStream, ResetWhen, StorePosition, StreamLimits, StreamRange, StreamRead,
};
use serde_json::{Value, json};

use super::server::Server;
use crate::node::{LIMITS, Node, message, read, topic};
use crate::store::Store;
use crate::{eventually, wait};

const TOPICS: usize = 250;

fn name(number: usize) -> String {
    format!("t.{number}")
}

/// Returns a node, the last position, and reads of all kinds.
fn filled(server: &Server) -> (Node, StorePosition, Vec<StreamRead>) {
    let limits = StreamLimits { messages: 4, ..LIMITS };
    let config = server.config();
    let node = Node::join_with(config, "a", &[(">", limits)]);
    let mut count = 0;
    for round in 0..6 {
        for number in (0..TOPICS).filter(|number| number % 6 >= round) {
            count += 1;
            node.append(count, message(&name(number), &count.to_string())).unwrap();
        }
        if round == 3 {
            let reset =
                ResetStream { topic: topic(&name(4)), known: None, limits: LIMITS, when: ResetWhen::Always };
            eventually("the appends", || node.outcome_count() as u64 == count);
            wait(node.broker.reset_stream(reset).unwrap()).unwrap();
        }
    }
    let last = node.store(&name(0), count + 1);
    let at = |offset| Some(StorePosition { offset, ..last });
    let reads = (0..TOPICS + 10).map(|number| {
        let (after, messages) = match number % 7 {
            0 => (at(200), 5),
            1 => (at(300), 1),
            2 => (at(last.offset), 5),
            3 => (None, 2),
            _ => (None, 4),
        };
        read(&name(number), after, messages)
    });
    (node, last, reads.collect())
}

fn without_time(range: StreamRange) -> StreamRange {
    StreamRange { time: 0, ..range }
}

/// Makes reads one by one and at once, and checks that the answers are the same. A consumer must have
/// brought the latter.
fn check_reads_at_once(server: &Server, node: &Node, last: StorePosition, reads: &[StreamRead]) {
    let alone: Vec<_> = reads.iter().map(|read| without_time(node.read(read.clone()))).collect();
    assert!(alone.iter().all(|range| range.top.is_some_and(|top| top.offset == last.offset)));
    let consumers = count_consumers(server);
    // While the server does not answer the first one, the others are queued.
    server.pause();
    let first = node.broker.read_streams(vec![read("t.0", None, 4)]).unwrap();
    let together: Vec<_> =
        reads.chunks(MAX_READS).map(|part| node.broker.read_streams(part.to_vec()).unwrap()).collect();
    server.resume();
    assert!(wait(first).unwrap()[0].is_ok());
    let together = together.into_iter().flat_map(|reply| wait(reply).unwrap());
    for ((together, alone), read) in together.zip(alone).zip(reads) {
        assert_eq!(without_time(together.unwrap()), alone, "{read:?}");
    }
    // The server keeps a consumer for some seconds after its pass.
    assert!(count_consumers(server) > consumers);
}

fn count_consumers(server: &Server) -> u64 {
    let info = server.api(&format!("STREAM.INFO.{}", server.stream()), &Value::Null);
    info["state"]["consumer_count"].as_u64().unwrap()
}

#[test]
fn many_reads_at_once_bring_what_each_brings_alone() {
    let Some(server) = Server::start() else { return };
    let (node, last, reads) = filled(&server);
    check_reads_at_once(&server, &node, last, &reads);
}

#[test]
fn many_reads_at_once_of_a_stream_that_keeps_marks_alone_bring_nothing() {
    let Some(server) = Server::start() else { return };
    let (node, last, reads) = filled(&server);
    let stream = server.stream();
    let info = server.api(&format!("STREAM.INFO.{stream}"), &Value::Null);
    let subjects = info["config"]["subjects"][0].as_str().unwrap();
    let messages = format!("{}m.>", subjects.trim_end_matches('>'));
    // As if all messages had reached their age.
    let purged = server.api(&format!("STREAM.PURGE.{stream}"), &json!({ "filter": messages }));
    assert_eq!(purged["success"], true, "{purged}");
    check_reads_at_once(&server, &node, last, &reads);
}
