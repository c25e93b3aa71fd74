use std::sync::Barrier;

use deeperhub_protocol::message::TraceContext;
use deeperhub_protocol::{ClientId, RawJson, Subscription, Topic};

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

use super::*;
use crate::id::Place;
use crate::{Config, ListError, Node, NodeHandle, SendError};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn start(workers: usize) -> Node {
    let mut config = Config::default();
    config.listener.workers = workers;
    config.canary.interval = Duration::ZERO;
    config.answer_timeout = Duration::from_millis(50);
    config.node_id = Some("n".to_owned());
    Node::start(([127, 0, 0, 1], 0).into(), config).unwrap()
}

pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

pub(crate) type Client =
    tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<tokio::net::TcpStream>>;

pub(crate) async fn patiently<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it comes in time")
}

pub(crate) async fn receive(client: &mut Client) -> serde_json::Value {
    let message = patiently(client.next()).await.unwrap().unwrap();
    serde_json::from_str(message.to_text().unwrap()).unwrap()
}

/// Runs `action` on a worker, whose other work waits for it.
pub(crate) async fn run_on_worker(handle: &NodeHandle, worker: usize, action: fn()) {
    let hub = &handle.hub;
    let after = hub.router.inbox_position(ShardId(worker.try_into().unwrap()));
    hub.requests[worker].send(Posted { request: Request::Run(action), after }).await.unwrap();
}

#[test]
fn no_call_waits_without_end_for_a_worker_that_is_stuck() {
    static STUCK: Barrier = Barrier::new(2);
    let node = start(2);
    let handle = node.handle();
    run(async {
        run_on_worker(&handle, 1, || {
            STUCK.wait();
        })
        .await;
        let of_stuck = ClientId::parse("n.1-0-0").unwrap();
        let of_other = ClientId::parse("n.0-0-0").unwrap();
        let topic = Subscription::parse("a").unwrap();
        let message = || RawJson::parse(r#"{"type":"x"}"#).unwrap();
        let stuck = Err(SendError::Unanswered(Unanswered));
        assert_eq!(handle.send_to_client(&of_stuck, message()).await, stuck);
        assert_eq!(handle.disconnect(&of_stuck).await, stuck);
        assert_eq!(handle.unsubscribe_client(&of_stuck, &topic).await, stuck.map(|()| false));
        assert!(matches!(handle.client(&of_stuck).await, Err(SendError::Unanswered(_))));
        assert!(matches!(handle.client(&of_other).await, Err(SendError::NotFound(_))));
        assert_eq!(handle.send_to_user("u", message()).await, Err(Unanswered));
        assert_eq!(handle.broadcast(message()).await, Err(Unanswered));
        assert_eq!(handle.unsubscribe_user("u", &topic).await, Err(Unanswered));
        assert_eq!(handle.disconnect_user("u").await, Err(Unanswered));
        assert!(matches!(handle.clients(None, 10).await, Err(ListError::Unanswered(_))));

        STUCK.wait();
        // It goes on, and answers again as soon as it has caught up.
        tokio::time::timeout(PATIENCE, async { while handle.broadcast(message()).await.is_err() {} })
            .await
            .unwrap();
    });
}

#[test]
fn a_request_does_not_overtake_what_was_published_before_it() {
    static STUCK: Barrier = Barrier::new(2);
    let node = start(1);
    let handle = node.handle();
    run(async {
        let url = format!("ws://{}/", node.local_addr());
        let (mut client, _) = tokio_tungstenite::connect_async(url).await.unwrap();
        let id = receive(&mut client).await["data"]["client_id"].as_str().map(str::to_owned).unwrap();
        let subscribe = r#"{"type":"subscribe","data":{"topic":"a"}}"#;
        client.send(Message::text(subscribe)).await.unwrap();
        receive(&mut client).await;
        // All of it is there when the worker looks again.
        run_on_worker(&handle, 0, || {
            STUCK.wait();
        })
        .await;
        let topic = Topic::parse("a").unwrap();
        let publish = |number: &str| {
            handle.publish(&topic, RawJson::parse(number).unwrap(), &TraceContext::default());
        };
        publish("1");
        let name = Subscription::parse("a").unwrap();
        let place = Place::of(&ClientId::parse(&id).unwrap(), "n").unwrap();
        let unsubscribe = |reply| Request::Unsubscribe { client: place, topic: name.into_owned(), reply };
        let unsubscribed = handle.hub.post(0, unsubscribe).await.unwrap();
        publish("2");
        STUCK.wait();
        assert_eq!(unsubscribed.await, Ok(Some(true)));
        assert_eq!(receive(&mut client).await["data"]["message"], 1);
        assert_eq!(receive(&mut client).await["type"], "unsubscribed", "what came after it is not delivered");
    });
}
