//! HTTP client for the server API and for plain requests to the client port.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Server, wait_for};

/// An HTTP response.
#[derive(Debug)]
pub(crate) struct Response {
    /// The status code.
    pub(crate) status: u16,
    /// Status line and headers.
    pub(crate) head: String,
    /// The body as sent.
    pub(crate) body: String,
}

impl Response {
    /// Returns the body as JSON; null if it is not JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// Returns the value of a header by its lower-case name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// Sends one HTTP request on a new connection. `request` is the method and the path; each of
/// `headers` is a whole line, such as `Authorization: Bearer KEY`.
///
/// # Panics
///
/// If no HTTP response arrives in time.
pub(crate) async fn http(server: SocketAddr, request: &str, headers: &[&str], body: &str) -> Response {
    let mut text = format!("{request} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n");
    if !body.is_empty() {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for header in headers {
        text.push_str(&format!("{header}\r\n"));
    }
    text.push_str(&format!("\r\n{body}"));

    let mut bytes = Vec::new();
    wait_for("an HTTP response", async {
        let mut stream = TcpStream::connect(server).await.expect("the server accepts connections");
        stream.write_all(text.as_bytes()).await.expect("the server accepts a request");
        // A server that refuses a body may close before it has read all of it; its response counts.
        let _ = stream.read_to_end(&mut bytes).await;
    })
    .await;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no HTTP response: {text:?}"));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let response = Response {
        status: status.unwrap_or_else(|| panic!("no status: {head}")),
        head: head.to_owned(),
        body: body.to_owned(),
    };
    match response.header("transfer-encoding") {
        Some("chunked") => Response { body: joined(body), ..response },
        _ => response,
    }
}

/// Joins a chunked body (RFC 9112 section 7.1) of ASCII text.
fn joined(mut chunks: &str) -> String {
    let mut body = String::new();
    while let Some((size, rest)) = chunks.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a chunk has a size");
        if size == 0 {
            break;
        }
        let (chunk, rest) = rest.split_at(size);
        body.push_str(chunk);
        chunks = rest.strip_prefix("\r\n").expect("a chunk has an end");
    }
    body
}

/// Returns the value of a metric, which is named with its labels.
///
/// # Panics
///
/// If there is none, or it is not a whole number.
pub(crate) async fn metric(server: &Server, name: &str) -> u64 {
    let text = http(server.api(), "GET /metrics", &[], "").await.body;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
}
