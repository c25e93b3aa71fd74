//! `tail` against a node and its server API in this process.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use deeperhub_api::ApiConfig;
use deeperhub_node::history::Rules;
use deeperhub_node::{Config, Node, NodeHandle};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, DuplexStream, Lines};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};

use super::*;

/// Upper bound for what happens at once on a machine with time.
const TIMEOUT: Duration = Duration::from_secs(30);

impl TailArgs {
    pub(crate) fn of(topic: &str, from: Option<&str>, json: bool) -> Self {
        Self { topic: super::topic(topic).unwrap(), from: from.map(str::to_owned), json }
    }
}

fn start_node(rule: &str) -> Node {
    let rules = Rules::new([rule.parse().unwrap()]).unwrap();
    Node::start(([127, 0, 0, 1], 0).into(), Config::default().with_history_rules(rules)).unwrap()
}

/// A running server API.
struct Api {
    address: SocketAddr,
    shutdown: oneshot::Sender<()>,
    task: JoinHandle<io::Result<()>>,
}

impl Api {
    async fn serve(hub: NodeHandle, address: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (shutdown, stopped) = oneshot::channel();
        let stopped = async {
            let _: Result<(), _> = stopped.await;
        };
        let task = tokio::spawn(deeperhub_api::serve(listener, hub, ApiConfig::default(), stopped));
        Self { address, shutdown, task }
    }

    /// Ends all connections, and frees the address.
    async fn stop(self) {
        drop(self.shutdown);
        self.task.abort();
        // An error, since the task was aborted.
        let _: Result<_, JoinError> = self.task.await;
    }

    fn client(&self) -> ApiClient {
        ApiClient::new(self.address.to_string().parse().unwrap(), None, None).unwrap()
    }
}

/// A running `tail`.
struct Tail {
    lines: Lines<BufReader<DuplexStream>>,
    reports: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<Result<(), String>>,
}

impl Tail {
    fn start(client: ApiClient, args: TailArgs) -> Self {
        let (mut output, input) = tokio::io::duplex(1024);
        let reports = Arc::<Mutex<Vec<String>>>::default();
        let sink = Arc::clone(&reports);
        let task = tokio::spawn(async move {
            let report = |line: &str| sink.lock().unwrap().push(line.to_owned());
            tail(&client, &args, &mut output, report).await
        });
        Self { lines: BufReader::new(input).lines(), reports, task }
    }

    async fn line(&mut self) -> String {
        let line = tokio::time::timeout(TIMEOUT, self.lines.next_line()).await.expect("a line in time");
        line.unwrap().unwrap_or_else(|| panic!("it ended; it reported {:?}", self.reports.lock().unwrap()))
    }

    /// Waits for this number of reports that contain a text.
    async fn wait_for_reports(&self, text: &str, count: usize) {
        let is_reported = |report: &&String| report.contains(text);
        let reported = async {
            while self.reports.lock().unwrap().iter().filter(is_reported).count() < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let reported = tokio::time::timeout(TIMEOUT, reported).await;
        assert!(reported.is_ok(), "no {text:?} in {:?}", self.reports.lock().unwrap());
    }
}

fn publish(hub: &NodeHandle, topic: &str, texts: &[&str]) {
    for text in texts {
        let message = deeperhub_node::RawJson::parse(text).unwrap();
        hub.publish_raw(&Topic::parse(topic).unwrap(), message, &Default::default()).unwrap();
    }
}

#[tokio::test]
async fn kept_messages_come_first_and_a_lost_connection_costs_none() {
    let node = start_node("chat.>: history=3");
    let hub = node.handle();
    let api = Api::serve(hub.clone(), ([127, 0, 0, 1], 0).into()).await;
    let topic = "chat.é/1";
    publish(&hub, topic, &["1", "2", "{\"a\" :\n [\"x\\ny\"],\r\n\"b\":1.0}"]);
    let mut tailed = Tail::start(api.client(), TailArgs::of(topic, Some("-2"), false));
    assert_eq!(tailed.line().await, "2");
    assert_eq!(tailed.line().await, "{\"a\" :  [\"x\\ny\"], \"b\":1.0}");
    publish(&hub, topic, &["4"]);
    assert_eq!(tailed.line().await, "4");

    let address = api.address;
    api.stop().await;
    tailed.wait_for_reports("connection lost, reconnecting", 1).await;
    publish(&hub, topic, &["5", "6"]);
    let api = Api::serve(hub.clone(), address).await;
    assert_eq!(tailed.line().await, "5");
    assert_eq!(tailed.line().await, "6");
    tailed.wait_for_reports("connected again", 1).await;

    // More messages than are kept.
    api.stop().await;
    tailed.wait_for_reports("connection lost, reconnecting", 2).await;
    publish(&hub, topic, &["7", "8", "9", "10"]);
    let api = Api::serve(hub.clone(), address).await;
    assert_eq!([tailed.line().await, tailed.line().await, tailed.line().await], ["8", "9", "10"]);
    tailed.wait_for_reports("gap: messages 7 to 7 are lost (trimmed)", 1).await;
    hub.clear_history(&Topic::parse(topic).unwrap()).await.unwrap();
    tailed.wait_for_reports("gap: the topic has a new epoch, ", 1).await;
    publish(&hub, topic, &["11"]);
    assert_eq!(tailed.line().await, "11");
    // Nobody reads any more.
    drop(tailed.lines);
    publish(&hub, topic, &["12"]);
    let ended = tokio::time::timeout(TIMEOUT, tailed.task).await.expect("it ends in time");
    assert_eq!(ended.unwrap(), Ok(()));
    api.stop().await;
    node.stop().await;
}

/// Serves one request with this response, and returns the request.
async fn answer(listener: &TcpListener, response: &str) -> String {
    let (mut socket, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        assert_ne!(socket.read_buf(&mut request).await.unwrap(), 0, "the request is whole");
    }
    socket.write_all(response.as_bytes()).await.unwrap();
    String::from_utf8(request).unwrap().to_lowercase()
}

const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
/// Returns a response that is no stream.
fn error(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// The first ID comes before any message, so a stream without messages can continue too.
#[tokio::test]
async fn a_stream_continues_after_its_last_id_until_the_server_refuses() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string().parse().unwrap();
    let client = ApiClient::new(address, None, None).unwrap();
    let mut tailed = Tail::start(client, TailArgs::of("chat", Some("-5"), false));
    let served = async {
        let request = answer(&listener, &format!("{STREAM}id: k3J9aQx2:5\n\n")).await;
        assert!(request.starts_with("get /v1/topics/chat/tail?from=-5 "), "{request}");
        assert!(!request.contains("last-event-id"), "{request}");
        let message =
            "event: message\nid: k3J9aQx2:6\ndata: {\"message\": 1}\n\n: comment\n\nevent: new\ndata: 1\n\n";
        let request = answer(&listener, &format!("{STREAM}{message}")).await;
        assert!(request.contains("last-event-id: k3j9aqx2:5\r\n"), "{request}");
        for response in [
            error("503 Service Unavailable", r#"{"error":{"code":"x","message":"busy"}}"#),
            error("502 Bad Gateway", "<html>"),
            error("403 Forbidden", r#"{"error":{"code":"x","message":"no"}}"#),
        ] {
            let request = answer(&listener, &response).await;
            assert!(request.contains("last-event-id: k3j9aqx2:6\r\n"), "{request}");
        }
    };
    tokio::time::timeout(TIMEOUT, served).await.expect("it asks in time");
    assert_eq!(tailed.line().await, "1");
    let ended = tokio::time::timeout(TIMEOUT, tailed.task).await.expect("it ends in time");
    assert_eq!(ended.unwrap(), Err("no".to_owned()));
}

#[tokio::test]
async fn a_refusal_or_a_missing_server_is_reported() {
    let node = start_node("chat: history=10");
    let api = Api::serve(node.handle(), ([127, 0, 0, 1], 0).into()).await;
    for (topic, from, expected) in
        [("other", None, "no rule keeps messages of this topic"), ("chat", Some("x"), "invalid from")]
    {
        let args = TailArgs::of(topic, from, false);
        let ended = tail(&api.client(), &args, &mut tokio::io::sink(), |_| {}).await;
        assert!(ended.as_ref().is_err_and(|error| error.contains(expected)), "{ended:?}");
    }
    let client = api.client();
    api.stop().await;
    let ended = tail(&client, &TailArgs::of("chat", None, false), &mut tokio::io::sink(), |_| {}).await;
    assert!(ended.as_ref().is_err_and(|error| error.contains("cannot reach the server API")), "{ended:?}");
    node.stop().await;
}

#[test]
fn topics_are_encoded_in_the_path() {
    assert_eq!(percent_encoded("a.b-_~1"), "a.b-_~1");
    assert_eq!(percent_encoded("a/b?é%"), "a%2Fb%3F%C3%A9%25");
}
