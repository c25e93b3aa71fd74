use std::time::Duration;

use deeperhub_cluster::Whole;
use deeperhub_history::Rules;
use deeperhub_listener::ConnectionKey;
use deeperhub_protocol::Subscription;
use serde_json::{Value, json};

use super::*;
use crate::config::HistoryLimits;
use crate::mirrors::test_hub::{EPOCH, TOPIC, TestHub};

fn topic() -> Topic<'static> {
    Topic::parse(TOPIC).unwrap()
}

/// Returns a hub whose topic has a subscriber and these messages in the store.
fn whole_with(messages: &[(u64, u64)]) -> TestHub {
    let mut node = TestHub::new();
    let read = node.follow(1);
    let mut previous = 0;
    let kept: Vec<_> = messages
        .iter()
        .map(|&(offset, ms)| node.stored(offset, offset, std::mem::replace(&mut previous, offset), ms))
        .collect();
    let outcome = node.hub.apply_read(&topic(), read, Some(TestHub::range(previous, &kept, None)));
    assert!(outcome.is_settled && outcome.next.is_none() && outcome.reset.is_none(), "{outcome:?}");
    node
}

/// Returns type, offset, and `prev` or the reason of each delivery.
fn deliveries(node: &mut TestHub) -> Vec<(String, Value, Value)> {
    let of = |(_, frame): (_, Value)| {
        let (kind, data) = (frame["type"].as_str().unwrap().to_owned(), &frame["data"]);
        let detail = match &*kind {
            "gap" => data["reason"].clone(),
            _ => data["prev"].clone(),
        };
        (kind, data["offset"].clone(), detail)
    };
    node.deliveries().into_iter().map(of).collect()
}

fn message(offset: u64, prev: Value) -> (String, Value, Value) {
    ("message".to_owned(), json!(offset), prev)
}

#[test]
fn messages_of_the_first_read_are_older_than_the_subscription() {
    let mut node = whole_with(&[(1, 0), (2, 0)]);
    assert_eq!(deliveries(&mut node), []);
    let live = node.stored(3, 3, 2, 0);
    node.live(&live);
    node.live(&live);
    assert_eq!(deliveries(&mut node), [message(3, Value::Null)], "a copy is dropped");
}

#[test]
fn a_live_message_after_a_hole_waits_for_the_read() {
    let mut node = whole_with(&[(1, 0)]);
    let mut requests = node.hub.streams.cluster.as_ref().unwrap().take_receiver().unwrap();
    let [second, third] = [node.stored(2, 2, 1, 0), node.stored(3, 3, 2, 0)];
    node.live(&third);
    assert_eq!(deliveries(&mut node), []);
    let Ok(crate::streams::ReaderRequest::Read { read, .. }) = requests.try_recv() else {
        panic!("the mirror does not read");
    };
    let answer = TestHub::range(3, &[second, third], None);
    let outcome = node.hub.apply_read(&topic(), read, Some(answer));
    assert!(outcome.is_settled, "{outcome:?}");
    assert_eq!(deliveries(&mut node), [message(2, Value::Null), message(3, Value::Null)]);
    let metrics = &node.hub.streams.cluster.as_ref().unwrap().mirror_metrics;
    assert_eq!((metrics.holes.value(), metrics.healed.value(), metrics.lost.value()), (1, 2, 0));
}

#[test]
fn messages_that_the_store_lacks_are_told_as_a_gap() {
    let mut node = whole_with(&[(1, 0)]);
    let mut requests = node.hub.streams.cluster.as_ref().unwrap().take_receiver().unwrap();
    let third = node.stored(3, 3, 2, 0);
    node.live(&third);
    let Ok(crate::streams::ReaderRequest::Read { read, .. }) = requests.try_recv() else {
        panic!("the mirror does not read");
    };
    node.hub.apply_read(&topic(), read, Some(TestHub::range(3, &[third], None)));
    let gap = ("gap".to_owned(), json!(2), json!("trimmed"));
    assert_eq!(deliveries(&mut node), [gap, message(3, Value::Null)]);
}

#[test]
fn a_failed_read_leaves_the_stream_as_it_is() {
    let mut node = TestHub::new();
    let read = node.follow(1);
    let outcome = node.hub.apply_read(&topic(), read, None);
    assert!(!outcome.is_settled && outcome.next.is_none() && outcome.reset.is_none(), "{outcome:?}");
    // Until the stream is whole, messages come at once, and in no order.
    let live = node.stored(1, 1, 0, 0);
    node.live(&live);
    assert_eq!(deliveries(&mut node), [message(1, Value::Null)]);
}

#[test]
fn another_message_at_the_newest_offset_lets_the_store_begin_anew() {
    let mut node = whole_with(&[(1, 0), (2, 0)]);
    let mut requests = node.hub.streams.cluster.as_ref().unwrap().take_receiver().unwrap();
    let other = node.stored(99, 2, 1, 5);
    node.live(&other);
    assert_eq!(deliveries(&mut node), []);
    let request = requests.try_recv();
    assert!(
        matches!(&request, Ok(crate::streams::ReaderRequest::Rewritten { known, .. }) if known.offset == 2),
        "{request:?}"
    );
}

#[test]
fn a_quiet_topic_moves_on_and_tells_its_subscribers_in_time() {
    let mut node = whole_with(&[(1, 0)]);
    let vouched = |offset| StorePosition { epoch: EPOCH, offset };
    node.hub.vouch(&topic(), vouched(30));
    assert_eq!(deliveries(&mut node), [], "the interval has just begun");
    node.advance(Duration::from_secs(43));
    node.hub.vouch(&topic(), vouched(40));
    assert_eq!(deliveries(&mut node), [("position".to_owned(), json!(40), Value::Null)]);
    node.hub.vouch(&topic(), vouched(50));
    assert_eq!(deliveries(&mut node), []);
    // The chain of messages passes positions over.
    let live = node.stored(2, 51, 1, 0);
    node.live(&live);
    assert_eq!(deliveries(&mut node), [message(51, json!(1))]);
}

#[test]
fn a_message_of_a_read_follows_the_one_that_subscribers_have() {
    let mut node = whole_with(&[(1, 0)]);
    let mut requests = node.hub.streams.cluster.as_ref().unwrap().take_receiver().unwrap();
    // Subscribers are not told at once that there are no messages up to here.
    node.hub.vouch(&topic(), StorePosition { epoch: EPOCH, offset: 30 });
    let later = node.stored(3, 45, 40, 0);
    node.live(&later);
    let Ok(crate::streams::ReaderRequest::Read { read, .. }) = requests.try_recv() else {
        panic!("the mirror does not read");
    };
    // The store does not tell what was before the first message of an answer.
    let lost = node.stored(2, 40, 29, 0);
    let whole = Some(Whole { after: 29, to: 45 });
    let answer = StreamRange { whole, ..TestHub::range(45, &[lost, later], None) };
    let outcome = node.hub.apply_read(&topic(), read, Some(answer));
    assert!(outcome.is_settled, "{outcome:?}");
    assert_eq!(deliveries(&mut node), [message(40, json!(1)), message(45, json!(40))]);
}

/// Replaces the rules of a hub, or removes all.
fn set_rules(node: &TestHub, rule: Option<&str>) {
    let rules = Rules::new(rule.map(|rule| rule.parse().unwrap())).unwrap();
    let limits = HistoryLimits { rules, ..HistoryLimits::default() };
    node.hub.streams.set_limits(&node.hub.router, &limits);
}

/// Returns the read of the topic, whose stream is opened now.
fn open_late(node: &TestHub) -> ReadRequest {
    let mut reads = node.hub.open_late_streams();
    assert_eq!(reads.len(), 1);
    assert_eq!(node.hub.open_late_streams(), []);
    let (topic, read) = reads.remove(0);
    assert_eq!(&*topic, TOPIC);
    read
}

#[test]
fn subscribers_of_a_topic_that_gets_its_rule_back_are_told_what_they_may_have_missed() {
    for (newest, told) in [(3, ("gap", json!("lost"))), (1, ("position", Value::Null))] {
        let mut node = whole_with(&[(1, 0)]);
        let kept: Vec<_> = (1..=newest).map(|offset| node.stored(offset, offset, offset - 1, 0)).collect();
        set_rules(&node, None);
        assert_eq!(node.hub.open_late_streams(), []);
        set_rules(&node, Some("kept.>: history=10"));
        let first = open_late(&node);
        // The stream is removed again before it was read.
        set_rules(&node, None);
        set_rules(&node, Some("kept.>: history=10"));
        let read = open_late(&node);
        node.read(first, TestHub::range(newest, &kept, None));
        assert_eq!(deliveries(&mut node), []);
        node.read(read, TestHub::range(newest, &kept, None));
        assert_eq!(deliveries(&mut node), [(told.0.to_owned(), json!(newest), told.1)]);
        let live = node.stored(9, newest + 1, newest, 0);
        node.live(&live);
        assert_eq!(deliveries(&mut node), [message(newest + 1, Value::Null)]);
    }
}

#[test]
fn subscribers_of_a_topic_that_gets_a_rule_are_told_where_they_stand() {
    let mut node = TestHub::new();
    let kept: Vec<_> = (1..=3).map(|offset| node.stored(offset, offset, offset - 1, 0)).collect();
    set_rules(&node, None);
    node.shard.subscribe(7, &Subscription::Topic(topic()));
    set_rules(&node, Some("kept.>: history=10"));
    // Another client's subscription opens the stream.
    let read = node.follow(8);
    assert_eq!(node.hub.open_late_streams(), []);
    node.live(&kept[2]);
    let of_first = |node: &mut TestHub| {
        let of_first = |(key, frame): (ConnectionKey, Value)| (key == 7).then_some(frame);
        node.deliveries().into_iter().filter_map(of_first).collect::<Vec<_>>()
    };
    let told = of_first(&mut node);
    assert_eq!(told.len(), 1);
    assert_eq!((told[0]["type"].as_str(), &told[0]["data"]["offset"]), (Some("message"), &Value::Null));
    node.read(read, TestHub::range(3, &kept, None));
    let told = of_first(&mut node);
    assert_eq!(told.len(), 1);
    let data = &told[0]["data"];
    assert_eq!((&data["reason"], &data["offset"], &data["from"]), (&json!("epoch"), &json!(3), &Value::Null));
}
