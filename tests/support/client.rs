//! WebSocket client for the hub's messages.

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{self, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use super::{Server, wait_for};

/// A WebSocket client for the hub's messages.
#[derive(Debug)]
pub(crate) struct Client {
    /// The connection, for frames other than text messages.
    pub(crate) socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// The `welcome` message.
    pub(crate) welcome: Value,
}

impl Client {
    /// Connects at `/` and reads the `welcome`.
    ///
    /// # Panics
    ///
    /// If it is refused or is not welcomed.
    pub(crate) async fn connect(server: &Server) -> Self {
        Self::connect_with(server.url("/")).await.unwrap_or_else(|error| panic!("refused: {error}"))
    }

    /// Connects with a custom request and reads the `welcome`.
    ///
    /// # Errors
    ///
    /// Returns the refusal.
    pub(crate) async fn connect_with(
        request: impl IntoClientRequest + Unpin,
    ) -> Result<Self, Box<tungstenite::Error>> {
        let (socket, _) = wait_for("the handshake", connect_async(request)).await?;
        let mut client = Self { socket, welcome: Value::Null };
        client.welcome = client.receive().await;
        assert_eq!(client.welcome["type"], "welcome", "{}", client.welcome);
        Ok(client)
    }

    /// Returns the client id that the server assigned.
    pub(crate) fn id(&self) -> &str {
        self.welcome["data"]["client_id"].as_str().expect("a welcome has a client id")
    }

    /// Sends a message.
    pub(crate) async fn send(&mut self, message: &Value) {
        self.send_text(&message.to_string()).await;
    }

    /// Sends a text unchanged.
    pub(crate) async fn send_text(&mut self, text: &str) {
        wait_for("sending", self.socket.send(Message::text(text)))
            .await
            .expect("the connection takes a message");
    }

    /// Sends a message and returns the next message received.
    pub(crate) async fn request(&mut self, message: &Value) -> Value {
        self.send(message).await;
        self.receive().await
    }

    /// Receives the next message; pings and pongs are skipped.
    ///
    /// # Panics
    ///
    /// If none arrives in time, if it is not JSON, or if the connection ends.
    pub(crate) async fn receive(&mut self) -> Value {
        let text = self.receive_text().await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    /// Receives the text of the next message.
    ///
    /// # Panics
    ///
    /// If none arrives in time, or if the connection ends.
    pub(crate) async fn receive_text(&mut self) -> String {
        match self.next().await {
            Some(Ok(Message::Text(text))) => text.to_string(),
            other => panic!("a message was expected, not {other:?}"),
        }
    }

    /// Reads to the end and returns the code and the reason of the close frame, with the `goodbye`
    /// before it.
    ///
    /// # Panics
    ///
    /// If the connection ends without one.
    pub(crate) async fn closed(&mut self) -> (u16, String, Option<Value>) {
        let mut goodbye = None;
        loop {
            match self.next().await {
                Some(Ok(Message::Close(Some(CloseFrame { code, reason })))) => {
                    return (code.into(), reason.to_string(), goodbye);
                }
                Some(Ok(Message::Text(text))) => {
                    let message: Value = serde_json::from_str(&text).unwrap_or_default();
                    if message["type"] == "goodbye" {
                        goodbye = Some(message);
                    }
                }
                Some(Ok(_)) => {}
                other => panic!("a close frame was expected, not {other:?}"),
            }
        }
    }

    async fn next(&mut self) -> Option<Result<Message, tungstenite::Error>> {
        let next = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    next => return next,
                }
            }
        };
        wait_for("a message", next).await
    }
}
