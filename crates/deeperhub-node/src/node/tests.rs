use std::sync::Barrier;

use deeperhub_events::{EventDetails, EventFilter, EventKind, Received};
use deeperhub_metrics::Format;
use deeperhub_protocol::{RawJson, Subscription};
use futures_util::SinkExt;
use tokio_tungstenite::tungstenite::Message;

use super::*;
use crate::WorkerTimeout;
use crate::worker::request::tests::{
    Client, TEST_TIMEOUT, receive, run, run_on_worker, start, within_test_timeout,
};

async fn connect(node: &Node) -> Client {
    let url = format!("ws://{}/", node.local_addr());
    let (mut client, _) = within_test_timeout(tokio_tungstenite::connect_async(url)).await.unwrap();
    assert_eq!(receive(&mut client).await["type"], "welcome");
    client
}

fn metric(handle: &NodeHandle, name: &str) -> String {
    let text = handle.metrics_text(Format::Prometheus);
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{name} is not in {text}")).to_owned()
}

#[test]
fn a_dead_worker_leaves_no_state_behind() {
    let node = start(1);
    let handle = node.handle();
    run(async {
        let mut clients = [connect(&node).await, connect(&node).await];
        for client in &mut clients {
            for topic in ["a", "b.*"] {
                let subscribe = format!(r#"{{"type":"subscribe","data":{{"topic":"{topic}"}}}}"#);
                client.send(Message::text(subscribe)).await.unwrap();
                assert_eq!(receive(client).await["type"], "subscribed");
            }
        }
        assert_eq!(metric(&handle, "deeperhub_connections_active"), "2");
        assert_eq!(metric(&handle, "deeperhub_subscriptions"), "4");
        let mut events = handle.events(EventFilter::none().with(EventKind::Disconnected)).unwrap();

        run_on_worker(&handle, 0, || panic!("a test kills this worker")).await;
        for _ in 0..2 {
            let Some(Received::Event(event)) = within_test_timeout(events.recv()).await else {
                panic!("no event")
            };
            let EventDetails::Disconnected { code, messages_received, .. } = &event.details else {
                panic!("{event:?}")
            };
            assert_eq!((*code, *messages_received), (Some(1011), 2));
        }
        // The replacement serves new clients.
        let mut client = connect(&node).await;
        assert_eq!(metric(&handle, "deeperhub_connections_active"), "1");
        assert_eq!(metric(&handle, "deeperhub_subscriptions"), "0");
        assert_eq!(metric(&handle, "deeperhub_topics"), "0");
        assert_eq!(metric(&handle, r#"deeperhub_connections_closed_total{by="1011"}"#), "2");
        for topic in ["a", "b.*"] {
            assert_eq!(handle.topic(&Subscription::parse(topic).unwrap()).subscribers, 0);
        }
        assert_eq!(within_test_timeout(handle.clients(None, 10)).await.unwrap().items.len(), 1);
        client.send(Message::text(r#"{"type":"ping"}"#)).await.unwrap();
        assert_eq!(receive(&mut client).await["type"], "pong");
    });
}

#[test]
fn calls_to_a_worker_that_dies_fail_at_once() {
    static STUCK: Barrier = Barrier::new(2);
    let mut config = Config::default();
    config.listener.workers = 1;
    config.canary.interval = Duration::ZERO;
    config.answer_timeout = 100 * TEST_TIMEOUT;
    let node = Node::start(([127, 0, 0, 1], 0).into(), config).unwrap();
    let handle = node.handle();
    run(async {
        run_on_worker(&handle, 0, || {
            STUCK.wait();
            panic!("a test kills this worker");
        })
        .await;
        let message = RawJson::parse(r#"{"type":"x"}"#).unwrap();
        let mut calls =
            Box::pin(async { tokio::join!(handle.broadcast_raw(message), handle.clients(None, 10)) });
        // This time is long enough to queue the calls.
        let result = tokio::time::timeout(Duration::from_millis(20), &mut calls).await;
        assert!(result.is_err(), "{result:?}");
        STUCK.wait();
        let (broadcast, clients) = within_test_timeout(calls).await;
        assert_eq!(broadcast, Err(WorkerTimeout));
        assert!(clients.is_err());
        // The replacement answers.
        within_test_timeout(async { while handle.broadcast_raw(message).await.is_err() {} }).await;
    });
}

#[test]
fn a_node_stops_although_a_worker_hangs() {
    static STUCK: Barrier = Barrier::new(2);
    let node = start(2);
    let handle = node.handle();
    run(async {
        run_on_worker(&handle, 1, || {
            // The worker hangs from here until the test ends.
            STUCK.wait();
            STUCK.wait();
        })
        .await;
        STUCK.wait();
        within_test_timeout(node.drain(Duration::from_millis(50))).await;
        within_test_timeout(node.stop()).await;
        assert_eq!(handle.phase(), Phase::Stopped);
    });
    STUCK.wait();
}
