//! Handshakes over TCP and TLS.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue, Response, header};
use tokio_tungstenite::tungstenite::{self, Error as WsError};

use super::Options;
use crate::Error;
use crate::core::Input;

const SUBPROTOCOL: &str = "deeperhub.v1.json";

pub(super) type Socket = WebSocketStream<Connection>;

/// A TCP connection, with TLS or without.
pub(super) enum Connection {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// Everything that is needed to connect again and again.
#[derive(Clone)]
pub(super) struct Connector {
    request: Request,
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Connector {
    /// Checks the address and the options.
    pub(super) fn new(url: &str, options: &Options) -> Result<Self, Error> {
        let invalid = |text: String| Error::new(Error::INVALID_OPTIONS, text);
        let mut request = url.into_client_request().map_err(|error| {
            invalid(format!("{url:?} is not the address of a hub: {error}; write ws:// or wss://"))
        })?;
        let is_tls = match request.uri().scheme_str() {
            Some("ws") => false,
            Some("wss") => true,
            _ => return Err(invalid(format!("{url:?} is not the address of a hub; write ws:// or wss://"))),
        };
        let host = request.uri().host().unwrap_or_default();
        // Addresses of IPv6 stand in brackets in a URL.
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = request.uri().port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let headers = request.headers_mut();
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(SUBPROTOCOL));
        for (name, value) in &options.headers {
            let name: HeaderName =
                name.parse().map_err(|_| invalid(format!("{name:?} is not a header's name")))?;
            let value = HeaderValue::from_str(value).map_err(|_| {
                invalid(format!("the value of header {name} has characters that are not allowed"))
            })?;
            headers.insert(name, value);
        }
        let tls = if is_tls {
            let config = match &options.tls {
                Some(config) => Arc::clone(config),
                None => Arc::new(default_tls()?),
            };
            let name = ServerName::try_from(host.clone())
                .map_err(|_| invalid(format!("{host:?} is not a name that a certificate can have")))?;
            Some((TlsConnector::from(config), name))
        } else {
            None
        };
        Ok(Self { request, host, port, tls })
    }

    /// Connects. An error says how the core takes it.
    pub(super) async fn connect(self, token: Option<String>) -> Result<Socket, Input<'static>> {
        let failed = |error: std::io::Error| Input::Failed(error.to_string());
        let mut request = self.request;
        if let Some(token) = token {
            // A token with other characters is refused here as the server would refuse it.
            let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| {
                Input::Refused { status: 401, retry_after: None, reason: "unauthorized".to_owned() }
            })?;
            value.set_sensitive(true);
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        let socket = TcpStream::connect((&*self.host, self.port)).await.map_err(failed)?;
        // Without it, small messages wait for the acknowledgement of the one before.
        socket.set_nodelay(true).map_err(failed)?;
        let connection = match self.tls {
            None => Connection::Plain(socket),
            Some((connector, name)) => {
                Connection::Tls(Box::new(connector.connect(name, socket).await.map_err(failed)?))
            }
        };
        match tokio_tungstenite::client_async(request, connection).await {
            Ok((socket, _)) => Ok(socket),
            Err(WsError::Http(response)) => Err(refusal(&response)),
            Err(error) => Err(Input::Failed(error.to_string())),
        }
    }
}

/// Returns the certificates of the system as roots.
fn default_tls() -> Result<ClientConfig, Error> {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let text = "the system has no root certificates; install them, or set the option tls";
        return Err(Error::new(Error::INVALID_OPTIONS, text));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(Error::INVALID_OPTIONS, error.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// The body of a refused handshake.
#[derive(Deserialize)]
struct RefusalBody {
    error: RefusalError,
}

#[derive(Deserialize)]
struct RefusalError {
    code: String,
}

fn refusal(response: &Response<Option<Vec<u8>>>) -> Input<'static> {
    let status = response.status().as_u16();
    let body = response.body().as_deref().unwrap_or_default();
    let reason = serde_json::from_slice::<RefusalBody>(body).map(|body| body.error.code).unwrap_or_default();
    let retry_after = response.headers().get(header::RETRY_AFTER);
    let seconds = retry_after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Input::Refused { status, retry_after: seconds.map(Duration::from_secs), reason }
}

/// Returns the code and the text of a close frame.
pub(super) fn close_of(frame: Option<tungstenite::protocol::CloseFrame>) -> (Option<u16>, String) {
    match frame {
        Some(frame) => (Some(frame.code.into()), frame.reason.as_str().to_owned()),
        None => (None, String::new()),
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(context, buffer),
            Self::Tls(socket) => Pin::new(socket).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(context, bytes),
            Self::Tls(socket) => Pin::new(socket).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(context),
            Self::Tls(socket) => Pin::new(socket).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(context),
            Self::Tls(socket) => Pin::new(socket).poll_shutdown(context),
        }
    }
}
