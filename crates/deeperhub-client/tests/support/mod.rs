//! A scripted server on a real socket.

pub(crate) mod authority;

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

const EPOCH: &str = "k3J9aQx2";

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Runs a test, but not for ever.
pub(crate) async fn bounded<T>(test: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test ends")
}

pub(crate) struct Server {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    url: String,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let url = format!("ws://{}/", listener.local_addr().expect("it listens"));
        Self { listener, tls: None, url }
    }

    pub(crate) async fn start_tls(config: Arc<ServerConfig>) -> Self {
        let server = Self::start().await;
        let url = server.url.replace("ws://127.0.0.1", "wss://localhost");
        Self { tls: Some(TlsAcceptor::from(config)), url, ..server }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    async fn accept(&self) -> TcpStream {
        self.listener.accept().await.expect("a client comes").0
    }

    /// Accepts a client and welcomes it.
    pub(crate) async fn welcome(&self) -> Connection {
        self.welcome_with(json!({})).await
    }

    /// Accepts a client and welcomes it with these limits.
    pub(crate) async fn welcome_with(&self, limits: Value) -> Connection {
        let socket = self.accept().await;
        let io: Pin<Box<dyn Io>> = match &self.tls {
            Some(tls) => Box::pin(tls.accept(socket).await.expect("the client trusts the server")),
            None => Box::pin(socket),
        };
        let authorization = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&authorization);
        #[allow(clippy::result_large_err)]
        let callback = move |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
            let value = request.headers().get("Authorization").and_then(|value| value.to_str().ok());
            *seen.lock().expect("no panic") = value.map(str::to_owned);
            let protocol = request.headers().get("Sec-WebSocket-Protocol").cloned();
            if let Some(protocol) = protocol {
                response.headers_mut().insert("Sec-WebSocket-Protocol", protocol);
            }
            Ok(response)
        };
        let socket = tokio_tungstenite::accept_hdr_async(io, callback).await.expect("the handshake succeeds");
        let authorization = authorization.lock().expect("no panic").take();
        let mut connection = Connection { socket, authorization };
        let data = json!({"client_id": "n1.0-1-2", "server_time": 1_796_000_000_000_u64, "limits": limits});
        connection.send(json!({"type": "welcome", "data": data})).await;
        connection
    }
}

/// Reads a request and answers it with a status and headers.
pub(crate) async fn refuse(server: &Server, head: &str, body: &str) {
    let mut socket = server.accept().await;
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let byte = socket.read_u8().await.expect("the client asks");
        request.push(byte);
    }
    let response = format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    socket.write_all(response.as_bytes()).await.expect("the client reads");
    // The client closes after it has read the response.
    let _ = socket.read(&mut [0]).await;
}

/// Accepts a client and says nothing.
pub(crate) async fn silent(server: &Server) -> TcpStream {
    server.accept().await
}

pub(crate) struct Connection {
    socket: WebSocketStream<Pin<Box<dyn Io>>>,
    /// The header of the handshake.
    pub(crate) authorization: Option<String>,
}

impl Connection {
    /// Sends a `message` with this data.
    pub(crate) async fn message(&mut self, data: Value) {
        self.send(json!({"type": "message", "data": data})).await;
    }

    /// Says goodbye for good, and closes.
    pub(crate) async fn goodbye(&mut self, code: u16) {
        let data = json!({"code": code, "reason": "disconnected", "reconnect": false});
        self.send(json!({"type": "goodbye", "data": data})).await;
        let frame = CloseFrame { code: code.into(), reason: "disconnected".into() };
        self.socket.close(Some(frame)).await.expect("the client reads");
    }

    async fn send(&mut self, message: Value) {
        self.socket.send(Message::text(message.to_string())).await.expect("the client reads");
    }

    /// Returns the next message, which must have this type.
    pub(crate) async fn expect(&mut self, kind: &str) -> Value {
        loop {
            match self.socket.next().await.expect("the client stays").expect("the client sends") {
                Message::Text(text) => {
                    let message: Value = serde_json::from_str(text.as_str()).expect("the client sends JSON");
                    assert_eq!(message["type"], kind, "{message}");
                    return message;
                }
                Message::Close(frame) => panic!("the client closes: {frame:?}"),
                _ => {}
            }
        }
    }

    /// Waits until the client closes, and returns the code.
    pub(crate) async fn expect_close(&mut self) -> Option<u16> {
        loop {
            if let Message::Close(frame) = self.socket.next().await?.ok()? {
                while self.socket.next().await.is_some_and(|rest| rest.is_ok()) {}
                return frame.map(|frame| frame.code.into());
            }
        }
    }

    pub(crate) async fn reply(&mut self, request: &Value, kind: &str, data: Value) {
        self.send(json!({"type": kind, "id": request["id"], "data": data})).await;
    }

    pub(crate) async fn subscribed(&mut self, request: &Value, offset: u64, more: Value) {
        let mut data =
            json!({"topic": request["data"]["topic"], "epoch": EPOCH, "offset": offset, "time": offset});
        if let (Some(data), Value::Object(more)) = (data.as_object_mut(), more) {
            data.extend(more);
        }
        self.reply(request, "subscribed", data).await;
    }

    pub(crate) async fn deliver(&mut self, offset: u64) {
        let message = format!("message {offset}");
        let data =
            json!({"topic": "chat", "message": message, "epoch": EPOCH, "offset": offset, "time": offset});
        self.message(data).await;
    }
}
