//! A handshake that waits for its answer.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::connection::Connection;
use crate::failure::{Failure, Result};
use crate::journal::Journal;

const MAX_HEAD: usize = 64 * 1024;
const SUBPROTOCOL: &str = "deeperhub.v1.json";

/// An HTTP request of the client, before any answer.
pub(crate) struct Request {
    stream: TcpStream,
    head: String,
    journal: Journal,
}

impl Request {
    /// Reads the head of a request.
    pub(crate) async fn read(mut stream: TcpStream, journal: Journal) -> Result<Self> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if head.len() > MAX_HEAD {
                return Err(Failure::new("the head of the handshake is longer than 64 KiB"));
            }
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(error) => {
                    return Err(Failure::new(format!("the client left in its handshake: {error}")));
                }
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        journal.note("client →", head.lines().next().unwrap_or_default());
        Ok(Self { stream, head, journal })
    }

    /// Returns the request line.
    pub(crate) fn line(&self) -> &str {
        self.head.lines().next().unwrap_or_default()
    }

    /// Returns the values of a header, joined by commas.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let values: Vec<&str> = self
            .head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .filter(|(key, _)| key.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
            .collect();
        if values.is_empty() { None } else { Some(values.join(", ")) }
    }

    /// Returns the subprotocols that the client offers.
    pub(crate) fn subprotocols(&self) -> Vec<String> {
        let list = self.header("Sec-WebSocket-Protocol").unwrap_or_default();
        list.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
    }

    /// Returns the token, from the header `Authorization` or a subprotocol.
    pub(crate) fn token(&self) -> Option<String> {
        let header =
            self.header("Authorization").and_then(|value| Some(value.strip_prefix("Bearer ")?.to_owned()));
        header.or_else(|| {
            self.subprotocols().iter().find_map(|name| Some(name.strip_prefix("bearer.")?.to_owned()))
        })
    }

    /// Accepts the handshake.
    pub(crate) async fn upgrade(mut self) -> Result<Connection> {
        let key = self
            .header("Sec-WebSocket-Key")
            .ok_or_else(|| Failure::new("the handshake has no Sec-WebSocket-Key"))?;
        let accept = derive_accept_key(key.as_bytes());
        let mut answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\n"
        );
        if self.subprotocols().iter().any(|name| name == SUBPROTOCOL) {
            answer += &format!("Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n");
        }
        answer += "\r\n";
        self.stream.write_all(answer.as_bytes()).await?;
        self.journal.note("server →", "101 Switching Protocols");
        let socket = WebSocketStream::from_raw_socket(self.stream, Role::Server, None).await;
        Ok(Connection::new(socket, self.journal))
    }

    /// Answers without an upgrade and ends the connection.
    pub(crate) async fn refuse(mut self, status: &str, headers: &str, body: &str) -> Result {
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        self.journal.note("server →", status);
        // A client may leave as soon as it has seen the status.
        let _ = self.stream.write_all(answer.as_bytes()).await;
        let _ = self.stream.shutdown().await;
        // Closing a socket with unread input would reset the connection before the answer is read.
        let mut rest = [0; 256];
        while matches!(self.stream.read(&mut rest).await, Ok(read) if read > 0) {}
        Ok(())
    }

    /// Answers with any bytes and ends the connection.
    pub(crate) async fn answer_with(mut self, bytes: &[u8]) -> Result {
        self.journal.note("server →", "(bytes that are no HTTP)");
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.shutdown().await;
        Ok(())
    }

    /// Ends the TCP connection without an answer.
    pub(crate) fn cut(self) {
        self.journal.note("server →", "(cut before the answer to the handshake)");
    }
}
