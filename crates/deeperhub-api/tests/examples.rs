//! Runs the example in a process of its own, and uses it with a real WebSocket client.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

#[path = "../examples/axum_app.rs"]
mod axum_app;

#[path = "../../../tests/support/example.rs"]
mod example;

use example::{Example, run_main};

#[test]
#[ignore = "the process of the example; another test starts it"]
fn axum_app_process() {
    run_main(axum_app::main);
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
async fn axum_app_serves_the_server_api_below_a_path() {
    let free_ports = [("HUB_ADDRESS", "127.0.0.1:0"), ("APP_ADDRESS", "127.0.0.1:0")];
    let example = Example::start("axum_app_process", &free_ports);
    let addresses = example.wait_for("hub ");
    let (hub, app) = addresses.split_once(" app ").expect("the example prints two addresses");

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
