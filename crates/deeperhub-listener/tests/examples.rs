//! Serves the example `echo` and talks to it with a WebSocket client.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;

#[allow(dead_code, reason = "`main` listens on a fixed port; the test binds a free one")]
#[path = "../examples/echo.rs"]
mod echo;

/// Time limit far above what the test takes on a busy machine.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn echo_replies_to_text_and_binary_messages() {
    let listener = echo::serve(([127, 0, 0, 1], 0)).expect("a port is free");
    let test = async {
        let url = format!("ws://{}/", listener.local_addr());
        let (mut client, _) = connect_async(url).await.expect("the handshake is accepted");
        for message in [Message::text("hello"), Message::binary(vec![0, 255])] {
            client.send(message.clone()).await.expect("the connection is open");
            let reply = client.next().await.expect("a reply comes").expect("the reply is valid");
            assert_eq!(reply, message);
        }
    };
    tokio::time::timeout(TEST_TIMEOUT, test).await.expect("the replies come in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_returns_when_the_listener_stops() {
    let listener = std::sync::Arc::new(echo::serve(([127, 0, 0, 1], 0)).expect("a port is free"));
    let waiting = tokio::task::spawn_blocking({
        let listener = std::sync::Arc::clone(&listener);
        move || listener.wait()
    });
    listener.stop().await;
    tokio::time::timeout(TEST_TIMEOUT, waiting).await.expect("it returns in time").expect("no panic");
}
