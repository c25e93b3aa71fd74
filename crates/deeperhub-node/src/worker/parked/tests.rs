use super::*;
use crate::mirrors::test_hub::{TOPIC, TestHub};
use crate::streams::ReaderRequest;

const ONE: &str = r#"{"type":"subscribe","id":1,"data":{"topic":"kept.1"}}"#;

const TWO: &str = r#"{"type":"subscribe","id":1,"data":{"topics":[
    {"topic":"kept.1"},{"topic":"kept.2"},{"topic":"kept.1"},{"topic":"plain"},{"topic":"kept.>"}]}}"#;

/// Holds a message of a connection. Returns what `hold` says.
fn hold(parked: &mut ParkedClients, node: &mut TestHub, key: ConnectionKey, text: &str) -> Held {
    let TestHub { hub, shard, .. } = node;
    TestHub::with_requests(text, |requests| {
        let client = (TestHub::connection(key), text);
        parked.hold(client, requests.iter(), |_, _| true, (hub, shard))
    })
}

/// Returns the keys of the connections that wait for nothing after a topic was read.
fn on_read(parked: &mut ParkedClients, topic: &str) -> Vec<ConnectionKey> {
    parked.on_topic_read(topic).iter().map(|client| client.connection.key).collect()
}

fn parked_connections(node: &TestHub) -> i64 {
    node.hub.streams.cluster.as_ref().unwrap().mirror_metrics.parked.value()
}

#[test]
fn a_client_waits_until_its_topic_was_read() {
    let (mut parked, mut node) = (ParkedClients::default(), TestHub::new());
    let mut requests = node.hub.streams.cluster.as_ref().unwrap().take_receiver().unwrap();
    assert_eq!(hold(&mut parked, &mut node, 7, ONE), Held { is_parked: true, subscriptions: 1 });
    assert!(node.shard.is_subscribed(7, &Subscription::parse(TOPIC).unwrap()), "the node follows the topic");
    let request = requests.try_recv().unwrap();
    assert!(matches!(request, ReaderRequest::Wait { topic, .. } if *topic == *TOPIC));
    assert!(parked.bytes(7) > ONE.len() && parked.bytes(8) == 0);
    assert_eq!(parked_connections(&node), 1);
    assert!(on_read(&mut parked, "kept.2").is_empty());
    assert_eq!(on_read(&mut parked, TOPIC), [7]);
    assert!(parked.is_empty() && parked_connections(&node) == 0);
}

#[test]
fn a_client_waits_for_all_topics_that_must_be_read_and_for_no_others() {
    let (mut parked, mut node) = (ParkedClients::default(), TestHub::new());
    assert_eq!(hold(&mut parked, &mut node, 7, TWO), Held { is_parked: true, subscriptions: 2 });
    assert!(on_read(&mut parked, TOPIC).is_empty());
    assert!(on_read(&mut parked, TOPIC).is_empty(), "a second notice of the same topic");
    assert_eq!(on_read(&mut parked, "kept.2"), [7]);
    assert!(parked.is_empty());
}

#[test]
fn one_read_serves_all_clients_that_wait() {
    let (mut parked, mut node) = (ParkedClients::default(), TestHub::new());
    for key in [7, 8, 9] {
        assert!(hold(&mut parked, &mut node, key, ONE).is_parked);
    }
    parked.remove(8);
    parked.remove(8);
    assert_eq!(on_read(&mut parked, TOPIC), [7, 9]);
    assert!(parked.is_empty() && parked_connections(&node) == 0);
}

#[test]
fn a_second_subscribe_begins_no_subscription() {
    let (mut parked, mut node) = (ParkedClients::default(), TestHub::new());
    node.shard.subscribe(7, &Subscription::parse(TOPIC).unwrap());
    assert_eq!(hold(&mut parked, &mut node, 7, ONE), Held { is_parked: true, subscriptions: 0 });
}

#[test]
fn nobody_waits_for_a_store_that_is_away_or_for_a_topic_that_is_refused() {
    let (mut parked, mut node) = (ParkedClients::default(), TestHub::new());
    let refused = TestHub::with_requests(ONE, |requests| {
        let client = (TestHub::connection(7), ONE);
        parked.hold(client, requests.iter(), |_, _| false, (&node.hub, &mut node.shard))
    });
    assert_eq!(refused, Held::default());
    node.driver.disconnect();
    assert_eq!(hold(&mut parked, &mut node, 7, ONE), Held::default());
    assert!(parked.is_empty());
    assert!(!node.shard.is_subscribed(7, &Subscription::parse(TOPIC).unwrap()));
}

#[test]
fn nobody_waits_for_a_stream_that_is_whole() {
    let (mut parked, mut node) = (ParkedClients::default(), TestHub::new());
    let read = node.follow(1);
    node.read(read, TestHub::range(0, &[], None));
    assert_eq!(hold(&mut parked, &mut node, 7, ONE), Held::default());
    // A position that the mirror does not know needs a read.
    let epoch = deeperhub_protocol::Epoch::from_bits(crate::mirrors::test_hub::EPOCH);
    let later = format!(
        r#"{{"type":"subscribe","data":{{"topic":"kept.1","recover":{{"epoch":"{epoch}","offset":5}}}}}}"#
    );
    assert_eq!(hold(&mut parked, &mut node, 7, &later), Held { is_parked: true, subscriptions: 1 });
}
