//! Clients that lose their connections, or read too slowly, and what they get of topics with
//! history. Each client keeps a journal, which is compared with what the publisher sent.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio_tungstenite::MaybeTlsStream;

use crate::support::{Authority, Client, Server, free_port, metric, python_bin, run_peer, script, wait_for};

/// Keeps all that a test publishes.
const RULE: &[&str] = &["--topic", "feed.>: history=1000000 history_bytes=200MiB", "--rate-limit", "0"];

/// Messages that a publisher sends at once.
const BURST: u64 = 20;

/// Publishes the numbers 1 to `count` to a topic, in bursts with pauses, and returns when all are
/// published.
async fn publish(server: &Server, topic: &str, count: u64) {
    let mut publisher = Client::connect(server).await;
    let pad = "x".repeat(300);
    for number in 1..=count {
        let data = json!({ "topic": topic, "message": { "number": number, "pad": pad } });
        publisher.send(&json!({ "type": "publish", "data": data })).await;
        if number % BURST == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    let reply = publisher.request(&json!({ "type": "ping", "id": 1 })).await;
    assert_eq!(reply["type"], "pong");
}

/// The positions and last messages that one client knows.
#[derive(Default)]
struct Journal {
    /// The position of each topic.
    positions: BTreeMap<String, Value>,
    /// The number of the last message of each topic.
    last: BTreeMap<String, u64>,
}

impl Journal {
    fn new(topics: &[String]) -> Self {
        Self {
            positions: topics.iter().map(|topic| (topic.clone(), Value::Null)).collect(),
            last: topics.iter().map(|topic| (topic.clone(), 0)).collect(),
        }
    }

    /// Returns the message that subscribes to all topics from their positions.
    fn subscribe(&self) -> Value {
        let topics = self.positions.iter().map(|(topic, position)| match position {
            Value::Null => json!({ "topic": topic }),
            position => json!({ "topic": topic, "recover": position }),
        });
        json!({ "type": "subscribe", "id": 1, "data": { "topics": topics.collect::<Vec<_>>() } })
    }

    /// Notes a position.
    fn note(&mut self, data: &Value) {
        let topic = data["topic"].as_str().expect("a topic").to_owned();
        let position = json!({ "epoch": data["epoch"], "offset": data["offset"], "time": data["time"] });
        self.positions.insert(topic, position);
    }

    /// Checks a message, which must be the next one of its topic, and notes it.
    fn message(&mut self, message: &Value) {
        assert_eq!(message["type"], "message", "{message}");
        let data = &message["data"];
        let last = self.last.get_mut(data["topic"].as_str().expect("a topic")).expect("a known topic");
        *last += 1;
        assert_eq!((&data["message"]["number"], &data["offset"]), (&json!(*last), &json!(*last)));
        assert_eq!(data.get("prev"), None);
        self.note(data);
    }

    fn has_all(&self, count: u64) -> bool {
        self.last.values().all(|last| *last == count)
    }
}

/// Connects, subscribes to all topics, and checks the reply.
async fn connect(server: &Server, journal: &mut Journal) -> Client {
    let mut client = Client::connect(server).await;
    let reply = client.request(&journal.subscribe()).await;
    assert_eq!((&reply["type"], &reply["id"]), (&json!("subscribed"), &json!(1)), "{reply}");
    for entry in reply["data"]["topics"].as_array().expect("a list") {
        let topic = entry["topic"].as_str().expect("a topic");
        if journal.positions[topic].is_null() {
            journal.note(entry);
        } else {
            assert_eq!(entry["recovered"], true, "{entry}");
            assert_eq!(entry["offset"], journal.positions[topic]["offset"], "{entry}");
        }
    }
    client
}

/// Returns a number below `limit` that follows from `seed`.
fn random(seed: &mut u64, limit: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % limit
}

/// Lets a client lose its connection 100 times while publishers run, and checks its journal.
async fn check_reconnects(flags: &[&str]) {
    const MESSAGES: u64 = 6000;
    const RECONNECTS: u64 = 100;
    let server = Server::start(&[RULE, flags].concat());
    let topics: Vec<_> = (1..=3).map(|number| format!("feed.{number}")).collect();
    let mut journal = Journal::new(&topics);
    // The topics exist before the publishers start, so that their offsets start at 1.
    drop(connect(&server, &mut journal).await);
    let publishers = async {
        let publish = |topic| publish(&server, topic, MESSAGES);
        tokio::join!(publish(&topics[0]), publish(&topics[1]), publish(&topics[2]));
    };
    let client = async {
        let mut seed = 7;
        for _ in 0..RECONNECTS {
            let mut client = connect(&server, &mut journal).await;
            for _ in 0..random(&mut seed, 200) {
                if journal.has_all(MESSAGES) {
                    break;
                }
                journal.message(&client.receive().await);
            }
            // Half of the connections end with a reset, the others in good order.
            if let MaybeTlsStream::Plain(socket) = client.socket.get_ref()
                && random(&mut seed, 2) == 0
            {
                socket.set_zero_linger().expect("a socket takes it");
            }
            drop(client);
        }
        let mut client = connect(&server, &mut journal).await;
        while !journal.has_all(MESSAGES) {
            journal.message(&client.receive().await);
        }
    };
    wait_for_long("publishers and the client", async { tokio::join!(publishers, client) }).await;
    assert!(metric(&server, "deeperhub_recovered_messages_total").await > 0);
    // The server may not have noticed yet that the client has closed its other connections.
    wait_for("the other connections to end", async {
        while metric(&server, "deeperhub_subscriptions_behind").await != 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

/// Waits for something that takes longer than one step of a test.
async fn wait_for_long<T>(what: &str, future: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(Duration::from_secs(120), future).await;
    result.unwrap_or_else(|_| panic!("{what} took too long"))
}

#[tokio::test]
async fn a_hundred_reconnects_lose_and_repeat_nothing() {
    check_reconnects(&["--workers", "2"]).await;
}

#[tokio::test]
async fn a_hundred_reconnects_lose_and_repeat_nothing_without_io_uring() {
    check_reconnects(&["--workers", "1", "--io-uring", "off"]).await;
}

#[tokio::test]
async fn a_stopped_client_gets_all_messages_when_it_goes_on() {
    const MESSAGES: u64 = 3000;
    let flags = ["--workers", "1", "--max-queue-bytes", "131072"];
    let server = Server::start(&[RULE, &flags].concat());
    let topics = ["feed.1".to_owned()];
    let mut journal = Journal::new(&topics);
    let mut client = connect(&server, &mut journal).await;
    // The client reads nothing while all is published.
    let pad = "x".repeat(8000);
    let mut publisher = Client::connect(&server).await;
    for number in 1..=MESSAGES {
        let data = json!({ "topic": "feed.1", "message": { "number": number, "pad": pad } });
        publisher.send(&json!({ "type": "publish", "data": data })).await;
    }
    assert_eq!(publisher.request(&json!({ "type": "ping" })).await["type"], "pong");
    assert_eq!(metric(&server, "deeperhub_subscriptions_behind").await, 1);
    while !journal.has_all(MESSAGES) {
        journal.message(&client.receive().await);
    }
    assert_eq!(client.request(&json!({ "type": "ping", "id": 2 })).await["type"], "pong");
    assert_eq!(metric(&server, "deeperhub_slow_consumers_total").await, 0);
}

#[tokio::test]
async fn a_restart_is_told_as_a_new_epoch_and_the_client_goes_on() {
    for signal in ["TERM", "KILL"] {
        let port = free_port().to_string();
        let flags = [RULE, &["--port", &port, "--drain-timeout", "1s", "--workers", "1"]].concat();
        let mut server = Server::start(&flags);
        let mut client = Client::connect(&server).await;
        let subscribe = |recover: Option<&Value>| match recover {
            None => json!({ "type": "subscribe", "data": { "topic": "feed.1" } }),
            Some(position) => {
                json!({ "type": "subscribe", "data": { "topic": "feed.1", "recover": position } })
            }
        };
        let start = client.request(&subscribe(None)).await;
        publish(&server, "feed.1", 10).await;
        let mut last = Value::Null;
        for _ in 0..10 {
            last = client.receive().await;
        }
        let data = &last["data"];
        assert_eq!((&data["epoch"], &data["offset"]), (&start["data"]["epoch"], &json!(10)));
        let position = json!({ "epoch": data["epoch"], "offset": data["offset"], "time": data["time"] });
        server.signal(signal);
        if signal == "TERM" {
            let (code, _, goodbye) = client.closed().await;
            let goodbye = goodbye.expect("a goodbye");
            assert_eq!((code, &goodbye["data"]["reconnect"]), (1001, &json!(true)));
            assert!(goodbye["data"]["retry_after_ms"].is_u64());
        }
        server.wait();
        let server = Server::start(&flags);
        let mut client = Client::connect(&server).await;
        let resumed = client.request(&subscribe(Some(&position))).await;
        let data = &resumed["data"];
        assert_eq!((&data["recovered"], &data["reason"]), (&json!(false), &json!("epoch")), "{resumed}");
        publish(&server, "feed.1", 3).await;
        assert_eq!(client.receive().await["data"]["offset"], 1);
    }
}

/// Lets a client on Python's `websockets` lose its connection while a publisher runs.
async fn check_python(server: &Server, url: &str, environment: &[String]) {
    const MESSAGES: u64 = 4000;
    let python = python_bin().join("python").display().to_string();
    let mut arguments = environment.to_vec();
    let client = script("recovering_client.py").display().to_string();
    arguments.extend([python, client, url.to_owned(), "feed.python".to_owned(), MESSAGES.to_string()]);
    // The topic exists before, so that its offsets start at 1.
    let mut first = Client::connect(server).await;
    first.request(&json!({ "type": "subscribe", "data": { "topic": "feed.python" } })).await;
    let peer = tokio::task::spawn_blocking(move || run_peer("env", arguments));
    let (peer, ()) = tokio::join!(peer, publish(server, "feed.python", MESSAGES));
    let finished = peer.expect("the peer ran");
    assert_eq!(finished.code, Some(0), "{}\n{}", finished.stdout, finished.stderr);
}

#[tokio::test]
async fn a_client_on_python_websockets_recovers_with_compression() {
    let server = Server::start(&[RULE, &["--workers", "2"]].concat());
    check_python(&server, &server.url("/"), &[]).await;
}

#[tokio::test]
async fn a_client_on_python_websockets_recovers_over_tls() {
    let authority = Authority::new();
    let identity = authority.server("server");
    let server = Server::start(&[RULE, &identity.flags()[..]].concat());
    let url = format!("wss://localhost:{}/", server.clients.port());
    let trust = format!("SSL_CERT_FILE={}", authority.cert.display());
    let python = python_bin().join("python").display().to_string();
    let client = script("recovering_client.py").display().to_string();
    // The client publishes itself: clients of this test have no TLS.
    let arguments =
        [trust, python, client, url, "feed.tls".to_owned(), "2000".to_owned(), "publish".to_owned()];
    let finished =
        wait_for_long("the peer", tokio::task::spawn_blocking(move || run_peer("env", arguments))).await;
    let finished = finished.expect("the peer ran");
    assert_eq!(finished.code, Some(0), "{}\n{}", finished.stdout, finished.stderr);
}

#[tokio::test]
async fn a_replay_that_ends_with_own_messages_tells_the_position() {
    let server = Server::start(RULE);
    let mut client = Client::connect(&server).await;
    let mut other = Client::connect(&server).await;
    for number in 1..=2 {
        let data = json!({ "topic": "feed.own", "message": number, "exclude_self": true });
        client.request(&json!({ "type": "publish", "id": number, "data": data })).await;
    }
    let data = json!({ "topic": "feed.own", "history": 5 });
    let reply = client.request(&json!({ "type": "subscribe", "id": 3, "data": data })).await;
    assert_eq!((&reply["data"]["offset"], &reply["data"]["replay"]), (&json!(0), &json!(2)));
    let position = client.receive().await;
    assert_eq!((&position["type"], &position["data"]["offset"]), (&json!("position"), &json!(2)));
    assert_eq!(position["data"]["epoch"], reply["data"]["epoch"]);
    let data = json!({ "topic": "feed.own", "message": 3 });
    other.request(&json!({ "type": "publish", "id": 1, "data": data })).await;
    let message = client.receive().await;
    assert_eq!((&message["data"]["offset"], &message["data"]["prev"]), (&json!(3), &Value::Null));
    assert_eq!(metric(&server, r#"deeperhub_messages_sent_total{type="position"}"#).await, 1);
}
