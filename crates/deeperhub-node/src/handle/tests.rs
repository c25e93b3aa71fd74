use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use deeperhub_protocol::{Subscription, TopicError};
use futures_util::SinkExt;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::*;
use crate::trace::{Sampler, Span, SpanSink, TraceMetrics};
use crate::worker::request::tests::{receive, run, start, within_test_timeout};
use crate::{Action, Config, Node, Operation, SendError, Target};

/// Returns a value that is nested in `levels` arrays.
fn nested(levels: usize) -> Value {
    (0..levels).fold(Value::Null, |inner, _| json!([inner]))
}

#[test]
fn publish_rejects_invalid_topics_and_messages() {
    let node = start(1);
    let handle = node.handle();
    let error = handle.publish("a..b", &1).unwrap_err();
    assert_eq!(error, PublishError::Topic { topic: "a..b".to_owned(), source: TopicError::EmptyLevel });
    assert_eq!(error.to_string(), r#"invalid topic "a..b""#);
    assert!(matches!(handle.publish("$canary.0", &1), Err(PublishError::Topic { .. })));

    assert!(handle.publish("a", &nested(RawJson::MAX_NESTING)).is_ok());
    let error = handle.publish("a", &nested(RawJson::MAX_NESTING + 1)).unwrap_err();
    assert!(matches!(&error, PublishError::Payload(PayloadError::Protocol(_))), "{error:?}");
    // JSON has no keys that are arrays.
    let error = handle.publish("a", &BTreeMap::from([(vec![1], 2)])).unwrap_err();
    assert!(matches!(&error, PublishError::Payload(PayloadError::Serialize(_))), "{error:?}");
}

#[test]
fn messages_to_clients_need_a_type() {
    let node = start(1);
    let handle = node.handle();
    let client = ClientId::parse("n.0-0-0").unwrap();
    run(async {
        for message in [json!(1), json!({}), json!({ "type": 1 })] {
            let errors = [
                handle.send_to_client(&client, &message).await.unwrap_err(),
                handle.send_to_user("ada", &message).await.unwrap_err(),
                handle.broadcast(&message).await.unwrap_err(),
            ];
            for error in errors {
                assert!(
                    matches!(error, SendError::Payload(PayloadError::Protocol(_))),
                    "{message} {error:?}"
                );
            }
        }
        let sent = handle.send_to_client(&client, &json!({ "type": "x" })).await;
        assert_eq!(sent, Err(SendError::NotFound(ClientNotFound)));
    });
}

#[test]
fn a_client_of_a_worker_that_does_not_exist_is_not_found() {
    let node = start(1);
    let handle = node.handle();
    let client = ClientId::parse("n.1-0-0").unwrap();
    run(async {
        let not_found = Err(SendError::NotFound(ClientNotFound));
        assert_eq!(handle.send_to_client(&client, &json!({ "type": "x" })).await, not_found.clone());
        assert_eq!(handle.disconnect(&client).await, not_found);
        assert_eq!(handle.client(&client).await, Err(SendError::NotFound(ClientNotFound)));
    });
}

#[test]
fn serializable_messages_reach_clients() {
    let node = start(2);
    let handle = node.handle();
    run(async {
        let url = format!("ws://{}/", node.local_addr());
        let (mut client, _) = within_test_timeout(tokio_tungstenite::connect_async(url)).await.unwrap();
        let welcome = receive(&mut client).await;
        let id = ClientId::parse(welcome["data"]["client_id"].as_str().unwrap()).unwrap();
        let subscribe = r#"{"type":"subscribe","data":{"topic":"ticks"}}"#;
        client.send(Message::text(subscribe)).await.unwrap();
        receive(&mut client).await;

        assert_eq!(handle.publish("ticks", &json!({ "tick": 7 })).unwrap().count, 1);
        assert_eq!(receive(&mut client).await["data"]["message"], json!({ "tick": 7 }));
        handle.send_to_client(&id, &json!({ "type": "note" })).await.unwrap();
        assert_eq!(receive(&mut client).await, json!({ "type": "note" }));
        assert_eq!(handle.broadcast(&json!({ "type": "news", "data": 1 })).await.unwrap().count, 1);
        assert_eq!(receive(&mut client).await, json!({ "type": "news", "data": 1 }));
        assert_eq!(handle.send_to_user("nobody", &json!({ "type": "note" })).await.unwrap().count, 0);
    });
}

#[derive(Debug, Default)]
struct SpanCount(AtomicUsize);

impl SpanSink for SpanCount {
    fn record(&self, _: Span) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn the_client_trace_limit_does_not_apply_to_handles() {
    let spans = Arc::new(SpanCount::default());
    let mut config = Config::default();
    config.listener.workers = 1;
    config.canary.interval = Duration::ZERO;
    config.tracer =
        Tracer::new(Sampler::parent_based(0.0), spans.clone(), TraceMetrics::default()).with_client_rate(0);
    let node = Node::start(([127, 0, 0, 1], 0).into(), config).unwrap();
    let handle = node.handle();
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let trace = TraceContext::new(Some(parent.into()), None);
    let (topic, message) = (Topic::parse("a").unwrap(), RawJson::parse("1").unwrap());
    handle.publish_raw(&topic, message, &trace).unwrap();
    assert_eq!(spans.0.load(Ordering::Relaxed), 1);
    handle.publish_to_other_nodes(&topic, message, &trace);
    assert_eq!(spans.0.load(Ordering::Relaxed), 2);
}

/// Handles and their futures can be used on any thread.
#[test]
fn calls_are_send() {
    fn is_send<T: Send>(_: T) {}
    let node = start(1);
    let (handle, message) = (node.handle(), json!({ "type": "x" }));
    is_send(handle.clone());
    is_send(handle.broadcast(&message));
    is_send(handle.send_to_user("ada", &message));
    is_send(handle.clients(None, 10));
}

#[test]
fn operations_are_values() {
    let node = start(2);
    let handle = node.handle();
    run(async {
        let url = format!("ws://{}/", node.local_addr());
        let (mut client, _) = within_test_timeout(tokio_tungstenite::connect_async(url)).await.unwrap();
        let welcome = receive(&mut client).await;
        let id = ClientId::parse(welcome["data"]["client_id"].as_str().unwrap()).unwrap();
        for topic in ["a", "b.*", "c"] {
            let subscribe = format!(r#"{{"type":"subscribe","data":{{"topic":"{topic}"}}}}"#);
            client.send(Message::text(subscribe)).await.unwrap();
            receive(&mut client).await;
        }
        let topic = |name: &'static str| Subscription::parse(name).unwrap();
        let note = RawJson::parse(r#"{"type":"note"}"#).unwrap();
        let (one, nobody) = (Target::Client(id), Target::Client(ClientId::parse("n.0-99-1").unwrap()));
        for (target, action, expected) in [
            (one.clone(), Action::Send(note), Ok(1)),
            (one.clone(), Action::Unsubscribe(topic("a")), Ok(1)),
            (one.clone(), Action::Unsubscribe(topic("a")), Ok(0)),
            (nobody, Action::Send(note), Err(SendError::NotFound(ClientNotFound))),
            (Target::User("ada".into()), Action::Disconnect, Ok(0)),
            (Target::All, Action::Unsubscribe(topic("b.c")), Ok(0)),
            (Target::All, Action::Unsubscribe(topic("b.*")), Ok(1)),
            (Target::All, Action::Send(note), Ok(1)),
            (one.clone(), Action::Disconnect, Ok(1)),
        ] {
            let operation = Operation::new(target, action);
            let count = handle.execute(&operation).await.map(|reached| reached.count);
            assert_eq!(count, expected, "{operation:?}");
        }
        let kinds = ["note", "unsubscribed", "unsubscribed", "note", "goodbye"];
        for kind in kinds {
            assert_eq!(receive(&mut client).await["type"], kind);
        }
        let gone = handle.execute(&Operation::new(one, Action::Send(note))).await;
        assert_eq!(gone, Err(SendError::NotFound(ClientNotFound)));
        assert_eq!(handle.unsubscribe_all(&topic("c")).await.unwrap().count, 0);
        assert_eq!(handle.disconnect_all().await.unwrap().count, 0);
    });
}
