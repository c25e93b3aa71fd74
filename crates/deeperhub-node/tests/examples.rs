//! Runs each example in a process of its own and talks to it as a client.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

/// Time after which a test fails if an expected event has not happened.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

type Client = WebSocketStream<MaybeTlsStream<TcpStream>>;

#[path = "../../../tests/support/example.rs"]
mod example;

#[path = "../examples/history.rs"]
mod history;

#[path = "../examples/presence.rs"]
mod presence;

#[path = "../examples/tick.rs"]
mod tick;

use example::{Example, check, run_main};

#[test]
#[ignore = "the process of the example; another test starts it"]
fn history_process() {
    run_main(history::main);
}

#[test]
#[ignore = "the process of the example; another test starts it"]
fn presence_process() {
    run_main(presence::main);
}

#[test]
#[ignore = "the process of the example; another test starts it"]
fn tick_process() {
    run_main(tick::main);
}

/// Starts an example on a free port. Returns it with the address that it listens on.
fn start(process_test: &str) -> (Example, String) {
    let example = Example::start(process_test, &[("HUB_ADDRESS", "127.0.0.1:0")]);
    let url = example.wait_for("listening on ");
    (example, url)
}

async fn connect(url: &str) -> Client {
    let connecting = tokio_tungstenite::connect_async(url);
    let connected = tokio::time::timeout(TEST_TIMEOUT, connecting).await.expect("no timeout");
    let (mut client, _) = connected.expect("the example accepts connections");
    receive(&mut client, "welcome").await;
    client
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

#[test]
fn history_reads_the_last_messages() {
    let expected = ["published at offset 3", "prices.tea costs 125", "prices.tea costs 119"];
    check("history_process", &expected);
}

#[tokio::test]
async fn tick_publishes_one_number_after_another() {
    let (_example, url) = start("tick_process");
    let mut client = connect(&url).await;
    let subscribe = json!({ "type": "subscribe", "data": { "topic": "ticks" } });
    client.send(Message::text(subscribe.to_string())).await.expect("the connection is open");
    receive(&mut client, "subscribed").await;
    let first = receive(&mut client, "message").await["data"]["message"]["tick"].as_u64().expect("a number");
    assert_eq!(receive(&mut client, "message").await["data"]["message"]["tick"], first + 1);
}

#[tokio::test]
async fn presence_tells_clients_how_many_are_online() {
    let (_example, url) = start("presence_process");
    let mut first = connect(&url).await;
    wait_until_online(&mut first, 1).await;
    let mut second = connect(&url).await;
    wait_until_online(&mut second, 2).await;
    wait_until_online(&mut first, 2).await;
    drop(second);
    wait_until_online(&mut first, 1).await;
}

/// Waits until a client is told this number. An earlier broadcast can reach another worker later, and
/// with it clients that have connected meanwhile.
async fn wait_until_online(client: &mut Client, clients: u64) {
    while receive(client, "online").await["data"]["clients"] != clients {}
}
