//! Publishers that exclude themselves on a topic with history that they follow.

use std::collections::BTreeSet;
use std::future::IntoFuture;

use deeperhub_client::{Event, Hub, SubscriptionState};
use futures_util::{FutureExt, StreamExt};
use serde_json::{Value, json};

use super::nodes;
use super::publishers::options;
use super::streams::{RULE, publish_range, subscriber};
use crate::support::{Broker, Client, wait_for};

over_both_brokers! {
    the_chain_of_a_publisher_has_no_hole,
    a_client_that_publishes_never_subscribes_again,
}

/// Checks that each frame follows the one before, or messages of the client itself. Returns the
/// messages.
fn check_chain(start: &Value, frames: &[Value]) -> Vec<Value> {
    let offset_of = |data: &Value| data["offset"].as_u64().unwrap_or_else(|| panic!("no offset in {data}"));
    let (mut at, mut messages) = (offset_of(start), Vec::new());
    // A delivery waits for the answers to earlier publishes, so the client has all of them.
    let own: BTreeSet<u64> = frames
        .iter()
        .filter(|frame| frame["type"] == "published")
        .map(|frame| offset_of(&frame["data"]))
        .collect();
    for frame in frames {
        let data = &frame["data"];
        match frame["type"].as_str() {
            Some("published") => {}
            Some("position") => at = at.max(offset_of(data)),
            Some("message") => {
                while own.contains(&(at + 1)) {
                    at += 1;
                }
                let offset = offset_of(data);
                let before = data["prev"].as_u64().unwrap_or(offset - 1);
                assert!(before <= at && at < offset, "{frame} after {at}, with own messages at {own:?}");
                at = offset;
                messages.push(data["message"].clone());
            }
            _ => panic!("an unexpected {frame}"),
        }
        assert_eq!(data["epoch"], start["epoch"], "{frame}");
    }
    messages
}

async fn the_chain_of_a_publisher_has_no_hole(broker: Broker) {
    let [a, b] = nodes(&broker.url(), RULE).await;
    let (mut client, start) = subscriber(&a, json!({"topic": "kept.1"})).await;
    let mut others = Client::connect(&b).await;
    let mut expected = Vec::new();
    for number in 0..60 {
        publish_range(&mut others, "kept.other", 0..number % 3).await;
        let data = json!({"topic": "kept.1", "message": "own", "exclude_self": true});
        client.send(&json!({"type": "publish", "id": number, "data": data})).await;
        if number % 5 > 2 {
            publish_range(&mut others, "kept.1", number..number + 1).await;
            expected.push(json!(number));
        }
    }
    publish_range(&mut others, "kept.1", 1000..1001).await;
    expected.push(json!(1000));
    let frames = wait_for("all messages and answers", async {
        let (mut frames, mut left) = (Vec::new(), 60 + expected.len());
        while left > 0 {
            let frame = client.receive().await;
            left -= usize::from(frame["type"] != "position");
            frames.push(frame);
        }
        frames
    })
    .await;
    assert_eq!(check_chain(&start, &frames), expected);
}

async fn a_client_that_publishes_never_subscribes_again(broker: Broker) {
    let [a, b] = nodes(&broker.url(), RULE).await;
    let hub = Hub::new(&a.url("/"), options()).unwrap();
    let mut errors = hub.errors();
    let mut subscription = hub.subscribe("kept.1").await.unwrap();
    let mut others = Client::connect(&b).await;
    for number in 0..40 {
        publish_range(&mut others, "kept.other", 0..1).await;
        let own = hub.publish("kept.1", &"own").exclude_self().into_future();
        publish_range(&mut others, "kept.other", 0..number % 2).await;
        own.await.unwrap();
        publish_range(&mut others, "kept.1", number..number + 1).await;
    }
    let mut numbers = Vec::new();
    while numbers.len() < 40 {
        match wait_for("a message", subscription.next()).await.unwrap() {
            Event::Message(message) => numbers.push(message.message::<u64>().unwrap()),
            Event::State(SubscriptionState::Live { .. }) if numbers.is_empty() => {}
            event => panic!("an unexpected {event:?} after {numbers:?}"),
        }
    }
    assert_eq!(numbers, (0..40).collect::<Vec<_>>());
    assert!(errors.next().now_or_never().is_none(), "a hole was met");
    hub.close().await;
}
