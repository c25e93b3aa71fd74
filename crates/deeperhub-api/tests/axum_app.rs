//! Runs the example as its reader would, and uses it with a real WebSocket client.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

/// An example's process. It is killed on drop.
struct Example(Child);

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the path of an example that cargo has built beside this test.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its path");
    let profile = test.parent().and_then(|deps| deps.parent()).expect("it lies in target/debug/deps");
    profile.join("examples").join(name)
}

async fn request(address: &str, head: &str, body: &str) -> String {
    let mut socket = tokio::net::TcpStream::connect(address).await.expect("the app listens");
    let length = body.len();
    let text = format!(
        "{head} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    socket.write_all(text.as_bytes()).await.expect("it takes a request");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("it answers");
    answer
}

#[tokio::test]
async fn the_server_api_works_below_a_path_of_ones_own_app() {
    let mut child = Command::new(example("axum_app"))
        .args(["0", "0"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the example was built: `cargo build --workspace --examples`");
    let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let _example = Example(child);
    let line = stdout.lines().next().expect("it prints its addresses").expect("they are text");
    let words: Vec<&str> = line.split(' ').collect();
    let [_, hub, _, app] = words[..] else { panic!("addresses were expected, not {line}") };

    let test = async {
        assert!(request(app, "GET /", "").await.ends_with("my app"));
        let (mut client, _) = tokio_tungstenite::connect_async(format!("ws://{hub}/")).await.expect("a hub");
        client
            .send(Message::text(r#"{"type":"subscribe","id":1,"data":{"topic":"news"}}"#))
            .await
            .expect("sent");
        while !client.next().await.expect("open").expect("a message").to_string().contains("subscribed") {}
        let answer = request(app, "POST /hub/v1/topics/news/messages", r#""hello""#).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(r#""subscribers":1"#), "{answer}");
        let delivery = client.next().await.expect("open").expect("a message").to_string();
        assert!(delivery.contains("hello"), "{delivery}");
        let answer = request(app, "GET /hub/v1/nothing", "").await;
        assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("not_found"), "{answer}");
    };
    tokio::time::timeout(Duration::from_secs(60), test).await.expect("it ends in time");
}

#[test]
fn examples_are_short() {
    let source = include_str!("../examples/axum_app.rs");
    let lines = source.lines().filter(|line| !line.trim().is_empty() && !line.trim_start().starts_with("//"));
    assert!(lines.clone().count() <= 20, "{} lines", lines.count());
}
