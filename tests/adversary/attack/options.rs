//! Limits of the server under attack, and connections to it.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::net::TcpStream;

use crate::wire::{Duplex, RSV1, TEXT, Wire, deflated, masked, upgrade};

/// Offer of compression with a window of 256 bytes. zlib has no such window, so the server sends
/// its replies uncompressed: a bomb of a few bytes comes back in full length.
pub(crate) const COMPRESSED: &str = "permessage-deflate; server_max_window_bits=8";

/// Function that wraps a TCP connection in TLS.
pub(crate) type Tls =
    Arc<dyn Fn(TcpStream) -> BoxFuture<'static, std::io::Result<Box<dyn Duplex>>> + Send + Sync>;

/// Server limits that attackers stay within.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) message_bytes: usize,
    pub(crate) fragments: usize,
    pub(crate) json_depth: usize,
    pub(crate) subscriptions: usize,
    /// Messages per second.
    pub(crate) rate: f64,
    pub(crate) burst: f64,
    /// Pings per second; the burst is twice as many.
    pub(crate) control_rate: f64,
    pub(crate) handshake_bytes: usize,
}

impl Default for Limits {
    /// The server's defaults.
    fn default() -> Self {
        Self {
            message_bytes: 65_536,
            fragments: 65_536,
            json_depth: 127,
            subscriptions: 128,
            rate: 100.0,
            burst: 200.0,
            control_rate: 50.0,
            handshake_bytes: 32_768,
        }
    }
}

/// Connection options of a client.
#[derive(Clone)]
pub(crate) struct ConnectOptions {
    pub(crate) address: SocketAddr,
    pub(crate) tls: Option<Tls>,
    /// Value of `Sec-WebSocket-Extensions`; with an offer, the client compresses every message.
    pub(crate) offer: Option<&'static str>,
    pub(crate) token: Option<String>,
    pub(crate) limits: Limits,
}

impl ConnectOptions {
    /// Connects over TCP, without compression and without a token.
    pub(crate) fn plain(address: SocketAddr) -> Self {
        Self { address, tls: None, offer: None, token: None, limits: Limits::default() }
    }

    /// Opens a TCP connection, and TLS over it if configured.
    ///
    /// # Errors
    ///
    /// The error of the connection or of the TLS handshake.
    pub(crate) async fn open(&self) -> std::io::Result<Box<dyn Duplex>> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => Ok(Box::new(stream)),
            Some(tls) => tls(stream).await,
        }
    }

    /// Opens a WebSocket connection and reads the `welcome`.
    ///
    /// # Errors
    ///
    /// The server's refusal.
    pub(crate) async fn connect(&self) -> Result<Wire, String> {
        let stream = self.open().await.map_err(|error| format!("no connection: {error}"))?;
        let mut lines = Vec::new();
        lines.extend(self.offer.map(|offer| format!("Sec-WebSocket-Extensions: {offer}")));
        lines.extend(self.token.as_ref().map(|token| format!("Authorization: Bearer {token}")));
        Wire::over(stream, &upgrade(self.address, &lines)).await
    }

    /// Returns a text message as one frame, compressed if compression was offered.
    pub(crate) fn frame(&self, text: &str) -> Vec<u8> {
        match self.offer {
            None => masked(TEXT, text.as_bytes()),
            Some(_) => masked(TEXT | RSV1, &deflated(text.as_bytes())),
        }
    }
}
