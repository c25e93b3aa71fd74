//! Parsing of client messages and encoding of server messages.

use deeperhub_protocol::message::{ClientMessage, Command, ServerMessage, StreamMessage};
use deeperhub_protocol::{ClientId, Epoch, Position, RawJson, Subscription, Topic};
use divan::counter::BytesCount;
use divan::{Bencher, black_box};

const SIZES: [usize; 3] = [128, 4096, 16_384];

fn publish(size: usize) -> String {
    let pad = "x".repeat(size.saturating_sub(100));
    format!(
        r#"{{"type":"publish","id":"a-1","data":{{"topic":"sports.football.results","message":{{"n":1,"pad":"{pad}"}}}}}}"#
    )
}

fn bench_parse(bencher: Bencher<'_, '_>, text: &str) {
    assert!(ClientMessage::parse(text).is_ok());
    bencher.counter(BytesCount::of_str(text)).bench_local(|| ClientMessage::parse(black_box(text)).is_ok());
}

#[divan::bench(args = SIZES)]
fn parse_publish(bencher: Bencher<'_, '_>, size: usize) {
    bench_parse(bencher, &publish(size));
}

#[divan::bench]
fn parse_subscribe(bencher: Bencher<'_, '_>) {
    bench_parse(bencher, r#"{"type":"subscribe","id":1,"data":{"topic":"sports.*"}}"#);
}

#[divan::bench]
fn parse_subscribe_with_recover(bencher: Bencher<'_, '_>) {
    bench_parse(
        bencher,
        r#"{"type":"subscribe","id":1,"data":{"topic":"chat.42","recover":{"epoch":"k3J9aQx2","offset":41,"time":1796000000001}}}"#,
    );
}

/// Parses a list of 128 topics with positions, and each of its entries.
#[divan::bench]
fn parse_subscribe_list(bencher: Bencher<'_, '_>) {
    let entry = r#"{"topic":"chat.42","recover":{"epoch":"k3J9aQx2","offset":41,"time":1796000000001}}"#;
    let text = format!(r#"{{"type":"subscribe","data":{{"topics":[{}]}}}}"#, vec![entry; 128].join(","));
    bencher.counter(BytesCount::of_str(&text)).bench_local(|| match ClientMessage::parse(black_box(&text)) {
        Ok(ClientMessage { command: Command::SubscribeList { topics }, .. }) => {
            topics.entries().filter(|entry| entry.request.is_ok()).count()
        }
        _ => unreachable!("it is a list"),
    });
}

#[divan::bench]
fn parse_ping(bencher: Bencher<'_, '_>) {
    bench_parse(bencher, r#"{"type":"ping"}"#);
}

/// Parses a payload of numbers and nested values instead of one long string.
#[divan::bench(args = SIZES)]
fn parse_echo_of_numbers(bencher: Bencher<'_, '_>, size: usize) {
    let numbers = vec!["[3.25,-17,{\"a\":true}]"; size / 22 + 1].join(",");
    bench_parse(bencher, &format!(r#"{{"type":"echo","data":[{numbers}]}}"#));
}

/// Parses an invalid publish, which must not cost more than a valid one.
#[divan::bench]
fn parse_invalid_publish(bencher: Bencher<'_, '_>) {
    let text = r#"{"type":"publish","data":{"topic":"a b","message":1}}"#;
    assert!(ClientMessage::parse(text).is_err());
    bencher.bench_local(|| ClientMessage::parse(black_box(text)).is_err());
}

/// Encodes the frame of a delivery, once for all subscribers.
#[divan::bench(args = SIZES)]
fn encode_delivery(bencher: Bencher<'_, '_>, size: usize) {
    let text = publish(size);
    let Ok(ClientMessage { command: Command::Publish { topic, message, .. }, .. }) =
        ClientMessage::parse(&text)
    else {
        unreachable!("it is a publish")
    };
    let Some(id) = ClientId::parse("n1-0-4a-7f3b21") else { unreachable!("it is a valid id") };
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        ServerMessage::Message {
            topic: black_box(&topic).as_str(),
            message,
            from: Some(&id),
            position: None,
            prev: None,
            traceparent: None,
            tracestate: None,
        }
        .to_frame()
    });
}

/// Returns the arguments of a delivery for a topic with history.
fn stream_message<'a>(topic: &'a str, message: &'a str, from: &'a ClientId) -> StreamMessage<'a> {
    let Ok(message) = RawJson::parse(message) else { unreachable!("it is JSON") };
    StreamMessage {
        topic,
        message,
        from: Some(from),
        time: 1_796_000_000_123,
        traceparent: None,
        tracestate: None,
    }
}

const TOPIC: &str = "sports.football.results";

fn payload(size: usize) -> String {
    format!(r#"{{"n":1,"pad":"{}"}}"#, "x".repeat(size.saturating_sub(100)))
}

fn client_id() -> ClientId {
    let Some(id) = ClientId::parse("n1-0-4a-7f3b21") else { unreachable!("it is a valid id") };
    id
}

/// Encodes the frame of a delivery with a position at once.
#[divan::bench(args = SIZES)]
fn encode_positioned_delivery(bencher: Bencher<'_, '_>, size: usize) {
    let (payload, from) = (payload(size), client_id());
    let StreamMessage { topic, message, from, time, .. } = stream_message(TOPIC, &payload, &from);
    let position = Position { epoch: Epoch::from_bits(1 << 46), offset: 123_456, time };
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        ServerMessage::Message {
            topic: black_box(topic),
            message,
            from,
            position: Some(black_box(position)),
            prev: None,
            traceparent: None,
            tracestate: None,
        }
        .to_frame()
    });
}

/// Encodes the frame of a delivery in two steps: up to the position, then the position.
#[divan::bench(args = SIZES)]
fn encode_and_seal_delivery(bencher: Bencher<'_, '_>, size: usize) {
    let (payload, from) = (payload(size), client_id());
    let delivery = stream_message(TOPIC, &payload, &from);
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        black_box(&delivery).encode().seal(Epoch::from_bits(1 << 46), black_box(123_456), None)
    });
}

/// Adds the position alone, the step under the lock.
#[divan::bench(args = SIZES)]
fn seal_delivery(bencher: Bencher<'_, '_>, size: usize) {
    let (payload, from) = (payload(size), client_id());
    let delivery = stream_message(TOPIC, &payload, &from);
    let epoch = Epoch::from_bits(1 << 46);
    bencher
        .counter(BytesCount::new(size))
        .with_inputs(|| delivery.encode())
        .bench_local_values(|unsealed| unsealed.seal(epoch, black_box(123_456), None));
}

/// Encodes a reply into the worker's arena.
#[divan::bench(args = SIZES)]
fn encode_echo(bencher: Bencher<'_, '_>, size: usize) {
    let text = format!(r#"{{"type":"echo","data":"{}"}}"#, "x".repeat(size));
    let Ok(ClientMessage { id, command: Command::Echo { data }, .. }) = ClientMessage::parse(&text) else {
        unreachable!("it is an echo")
    };
    let mut out = Vec::with_capacity(size + 64);
    bencher.counter(BytesCount::new(size)).bench_local(|| {
        out.clear();
        ServerMessage::Echo { id: black_box(id), data }.write_frame(&mut out);
        black_box(out.len())
    });
}

#[divan::bench(args = ["a", "sports.football.results", "orders.eu-west-1.customer.31415926.created"])]
fn parse_topic(bencher: Bencher<'_, '_>, topic: &str) {
    bencher.bench_local(|| Topic::parse(black_box(topic)).is_ok());
}

#[divan::bench(args = ["sports.*", "orders.*.customer.>"])]
fn parse_pattern(bencher: Bencher<'_, '_>, pattern: &str) {
    bencher.bench_local(|| Subscription::parse(black_box(pattern)).is_ok());
}
