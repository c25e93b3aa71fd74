//! Runs each example in a process of its own and talks to it as a client.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// Time after which a test fails if an expected event has not happened.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

/// A running example. Dropping it ends its process.
struct Example {
    process: Child,
    url: String,
}

impl Example {
    fn start(name: &str) -> Self {
        let mut process = Command::new(executable(name))
            .arg("127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the example starts");
        let stdout = process.stdout.take().expect("standard output is a pipe");
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let url = lines.find_map(|line| Some(line.strip_prefix("listening on ")?.to_owned()));
        // A full pipe would block the example.
        std::thread::spawn(move || lines.for_each(drop));
        Self { url: url.expect("the example prints where it listens"), process }
    }

    async fn connect(&self) -> Client {
        let connecting = tokio_tungstenite::connect_async(&self.url);
        let connected = tokio::time::timeout(TEST_TIMEOUT, connecting).await.expect("no timeout");
        let (mut client, _) = connected.expect("the example accepts connections");
        receive(&mut client, "welcome").await;
        client
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Builds an example and returns the path of its executable.
fn executable(name: &str) -> String {
    let output = Command::new(env!("CARGO"))
        .args(["build", "--workspace", "--example", name, "--message-format", "json"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut executables = messages.lines().filter_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        Some(message["executable"].as_str()?.to_owned())
    });
    executables.next_back().expect("cargo names the executable")
}

/// Returns the next message of a type.
async fn receive(client: &mut Client, message_type: &str) -> Value {
    let wait = async {
        loop {
            let message = client.next().await.expect("the connection is open").expect("a valid frame");
            let text = message.to_text().expect("a text message");
            let message: Value = serde_json::from_str(text).expect("JSON");
            if message["type"] == message_type {
                return message;
            }
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, wait).await.expect("the message arrives in time")
}

#[tokio::test]
async fn tick_publishes_one_number_after_another() {
    let example = Example::start("tick");
    let mut client = example.connect().await;
    let subscribe = json!({ "type": "subscribe", "data": { "topic": "ticks" } });
    client.send(Message::text(subscribe.to_string())).await.expect("the connection is open");
    receive(&mut client, "subscribed").await;
    let first = receive(&mut client, "message").await["data"]["message"]["tick"].as_u64().expect("a number");
    assert_eq!(receive(&mut client, "message").await["data"]["message"]["tick"], first + 1);
}

#[tokio::test]
async fn presence_tells_clients_how_many_are_online() {
    let example = Example::start("presence");
    let mut first = example.connect().await;
    assert_eq!(receive(&mut first, "presence").await["data"]["online"], 1);
    let mut second = example.connect().await;
    assert_eq!(receive(&mut second, "presence").await["data"]["online"], 2);
    assert_eq!(receive(&mut first, "presence").await["data"]["online"], 2);
    drop(second);
    assert_eq!(receive(&mut first, "presence").await["data"]["online"], 1);
}
