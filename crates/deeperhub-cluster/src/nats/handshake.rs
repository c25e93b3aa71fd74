//! The start of a connection: the server's description, TLS, and the user.

use bytes::BytesMut;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use url::{Host, Url};

use super::credentials;
use super::stream::Stream;
use super::wire::command;
use super::wire::operation::{Operation, Parsed, parse};
use crate::config::Config;
use crate::driver::BROKER_TIMEOUT;
use crate::link::LinkError;

/// Port of servers whose address has none.
const DEFAULT_PORT: u16 = 4222;

/// Limit that a server without one has.
const DEFAULT_MAX_PAYLOAD: usize = 1 << 20;

/// Description that a server gives of itself.
#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct ServerInfo {
    /// Maximum size of a message, in bytes.
    #[serde(default = "default_max_payload")]
    pub(super) max_payload: usize,
    #[serde(default)]
    pub(super) version: String,
    /// Name of the running server, which has another one after a restart.
    #[serde(default)]
    pub(super) server_id: String,
    /// Text that a client with a key signs.
    #[serde(default)]
    nonce: String,
    #[serde(default)]
    tls_required: bool,
    /// `true` if the server is about to stop, and clients should leave it.
    #[serde(default, rename = "ldm")]
    pub(super) is_lame_duck: bool,
}

const fn default_max_payload() -> usize {
    DEFAULT_MAX_PAYLOAD
}

impl ServerInfo {
    pub(super) fn parse(json: &[u8]) -> Result<Self, LinkError> {
        serde_json::from_slice(json)
            .map_err(|error| LinkError(format!("the server's description is invalid: {error}")))
    }
}

/// Returns the text of a server's refusal.
pub(super) fn refusal(text: &[u8]) -> LinkError {
    let text = String::from_utf8_lossy(text);
    // Operators search logs for this text.
    let text =
        if text.eq_ignore_ascii_case("authorization violation") { text.to_lowercase() } else { text.into() };
    LinkError(format!("nats: {text}"))
}

/// A connection that a server has accepted.
pub(super) struct Connected {
    pub(super) stream: Stream,
    pub(super) info: ServerInfo,
    /// Bytes that the server sent after its acceptance.
    pub(super) read: BytesMut,
}

/// Connects to a server.
pub(super) async fn connect(config: &Config, server: &Url, name: &str) -> Result<Connected, LinkError> {
    let host = match server.host() {
        Some(Host::Ipv6(address)) => address.to_string(),
        Some(other) => other.to_string(),
        None => return Err(LinkError::new("the address has no host")),
    };
    let port = server.port().unwrap_or(DEFAULT_PORT);
    let connecting = timeout(BROKER_TIMEOUT, TcpStream::connect((host.as_str(), port)));
    let stream = match connecting.await {
        Ok(stream) => stream.map_err(LinkError::new)?,
        Err(_) => return Err(LinkError::new("timed out")),
    };
    stream.set_nodelay(true).map_err(LinkError::new)?;
    let introducing = timeout(BROKER_TIMEOUT, introduce(config, server, &host, name, Stream::Plain(stream)));
    introducing.await.unwrap_or_else(|_| Err(LinkError::new("the server did not answer in time")))
}

async fn introduce(
    config: &Config,
    server: &Url,
    host: &str,
    name: &str,
    mut stream: Stream,
) -> Result<Connected, LinkError> {
    let mut read = BytesMut::new();
    let Some(info) = next(&mut stream, &mut read).await?.info()? else {
        return Err(LinkError::new("the server did not introduce itself as a NATS server"));
    };
    if info.tls_required || server.scheme() == "tls" {
        // Nobody can have proved anything yet.
        if !read.is_empty() {
            return Err(LinkError::new("the server sent clear text before TLS"));
        }
        stream = stream.start_tls(host, config.ca.as_deref()).await?;
    }
    let mut options = Map::new();
    for (option, value) in [("verbose", false), ("pedantic", false), ("echo", false), ("headers", true)] {
        options.insert(option.to_owned(), value.into());
    }
    options.insert("no_responders".to_owned(), true.into());
    // With this version of the protocol, the server tells that it is about to stop.
    options.insert("protocol".to_owned(), 1.into());
    options.insert("tls_required".to_owned(), (server.scheme() == "tls").into());
    for (option, value) in [("name", name), ("lang", "rust"), ("version", env!("CARGO_PKG_VERSION"))] {
        options.insert(option.to_owned(), value.into());
    }
    credentials::add_to(&mut options, config.credentials.as_deref(), server, &info.nonce)?;
    let mut out = Vec::new();
    command::connect(&mut out, &Value::Object(options).to_string());
    command::ping(&mut out);
    // A server that refuses the user may close the connection before it has read everything.
    let written = async {
        stream.write_all(&out).await?;
        stream.flush().await
    }
    .await;
    loop {
        match next(&mut stream, &mut read).await {
            Ok(Answer::Pong) => break,
            Ok(Answer::Refusal(error)) => return Err(error),
            Ok(Answer::Info(_) | Answer::Other) => {}
            Err(error) => return Err(written.err().map_or(error, LinkError::new)),
        }
    }
    Ok(Connected { stream, info, read })
}

/// An operation of the server during the handshake.
enum Answer {
    Info(ServerInfo),
    Pong,
    Refusal(LinkError),
    Other,
}

impl Answer {
    fn info(self) -> Result<Option<ServerInfo>, LinkError> {
        match self {
            Self::Info(info) => Ok(Some(info)),
            Self::Refusal(error) => Err(error),
            Self::Pong | Self::Other => Ok(None),
        }
    }
}

/// Reads the next operation.
async fn next(stream: &mut Stream, read: &mut BytesMut) -> Result<Answer, LinkError> {
    loop {
        if !read.is_empty()
            && let Parsed::Whole(operation, end) = parse(read, 0).map_err(LinkError::new)?
        {
            let bytes = read.split_to(end);
            let field = |range| bytes.get::<std::ops::Range<usize>>(range).unwrap_or_default();
            return Ok(match operation {
                Operation::Info(range) => Answer::Info(ServerInfo::parse(field(range))?),
                Operation::Pong => Answer::Pong,
                Operation::Error(range) => Answer::Refusal(refusal(field(range))),
                Operation::Ping | Operation::Ok | Operation::Message(_) => Answer::Other,
            });
        }
        if stream.read_buf(read).await.map_err(LinkError::new)? == 0 {
            return Err(LinkError::new("the server closed the connection"));
        }
    }
}
