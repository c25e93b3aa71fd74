use std::sync::Barrier;
use std::time::Duration;

use deeperhub_protocol::message::TraceContext;
use deeperhub_protocol::{ClientId, RawJson, Subscription, Topic};
use deeperhub_router::ShardId;
use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::tungstenite::Message;

use super::*;
use crate::connection_id::ConnectionId;
use crate::{Action, Config, ListError, Node, NodeHandle, Operation, SendError, Target, WorkerTimeout};

/// Time after which a test fails if an expected event has not happened.
pub(crate) const TEST_TIMEOUT: Duration = Duration::from_secs(30);

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

pub(crate) async fn within_test_timeout<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(TEST_TIMEOUT, future).await.expect("no timeout")
}

pub(crate) async fn receive(client: &mut Client) -> serde_json::Value {
    let message = within_test_timeout(client.next()).await.unwrap().unwrap();
    serde_json::from_str(message.to_text().unwrap()).unwrap()
}

/// Runs `action` on a worker. The worker does nothing else until `action` returns.
pub(crate) async fn run_on_worker(handle: &NodeHandle, worker: usize, action: fn()) {
    let hub = &handle.hub;
    let after = hub.router.inbox_position(ShardId(worker.try_into().unwrap()));
    hub.request_senders[worker]
        .send(QueuedRequest { request: WorkerRequest::Run(action), after })
        .await
        .unwrap();
}

#[test]
fn calls_to_a_stuck_worker_time_out() {
    static STUCK: Barrier = Barrier::new(2);
    let node = start(2);
    let handle = node.handle();
    run(async {
        run_on_worker(&handle, 1, || {
            STUCK.wait();
        })
        .await;
        let stuck_client = ClientId::parse("n.1-0-0").unwrap();
        let other_client = ClientId::parse("n.0-0-0").unwrap();
        let topic = Subscription::parse("a").unwrap();
        let message = || RawJson::parse(r#"{"type":"x"}"#).unwrap();
        let stuck = Err(SendError::WorkerTimeout(WorkerTimeout));
        assert_eq!(handle.send_to_client_raw(&stuck_client, message()).await, stuck.clone());
        assert_eq!(handle.disconnect(&stuck_client).await, stuck.clone());
        assert_eq!(handle.unsubscribe_client(&stuck_client, &topic).await, stuck.map(|()| false));
        assert!(matches!(handle.client(&stuck_client).await, Err(SendError::WorkerTimeout(_))));
        assert!(matches!(handle.client(&other_client).await, Err(SendError::NotFound(_))));
        assert_eq!(handle.send_to_user_raw("u", message()).await, Err(WorkerTimeout));
        assert_eq!(handle.broadcast_raw(message()).await, Err(WorkerTimeout));
        assert_eq!(handle.unsubscribe_user("u", &topic).await, Err(WorkerTimeout));
        assert_eq!(handle.disconnect_user("u").await, Err(WorkerTimeout));
        assert_eq!(handle.unsubscribe_all(&topic).await, Err(WorkerTimeout));
        assert_eq!(handle.disconnect_all().await, Err(WorkerTimeout));
        assert!(matches!(handle.clients(None, 10).await, Err(ListError::WorkerTimeout(_))));

        STUCK.wait();
        // The worker answers again after it has executed the queued requests.
        tokio::time::timeout(TEST_TIMEOUT, async { while handle.broadcast_raw(message()).await.is_err() {} })
            .await
            .unwrap();
    });
}

#[test]
fn a_request_does_not_overtake_earlier_publishes() {
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
        // The worker handles the calls below only after it continues.
        run_on_worker(&handle, 0, || {
            STUCK.wait();
        })
        .await;
        let topic = Topic::parse("a").unwrap();
        let publish = |number: &str| {
            handle.publish_raw(&topic, RawJson::parse(number).unwrap(), &TraceContext::default()).unwrap();
        };
        publish("1");
        let name = Subscription::parse("a").unwrap();
        let connection = ConnectionId::from_client_id(&ClientId::parse(&id).unwrap(), "n").unwrap();
        let action = Action::Unsubscribe(name.into_owned());
        let operation = Operation::new(Target::Client(connection), action);
        let unsubscribe = |reply| WorkerRequest::Execute { operation, reply };
        let unsubscribed = handle.hub.enqueue(0, unsubscribe).await.unwrap();
        publish("2");
        STUCK.wait();
        assert_eq!(unsubscribed.await, Ok(Some(1)));
        assert_eq!(receive(&mut client).await["data"]["message"], 1);
        assert_eq!(receive(&mut client).await["type"], "unsubscribed", "later publishes are not delivered");
    });
}
