//! The opening handshake of one connection: its head, its client's address, its checks.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::time::Instant;

use deeperhub_protocol::deflate::{self, Params};
use deeperhub_protocol::handshake::{AcceptKey, HeadError, HeadLimit, HeadLimits, Parsed, Refusal, Request};

use deeperhub_security::LimitMode;
use deeperhub_security::proxy::ProxyError;

use crate::admission::{ADDRESS_LIMIT_RETRY, ConnectionPermit};
use crate::config::Config;
use crate::metrics::{HandshakeLimit, Metrics};
use crate::proxy::{self, Preface};
use crate::session::Accepted;

/// Pending decision of the application.
pub(crate) type PendingDecision<S> = Pin<Box<dyn Future<Output = Result<Accepted<S>, Refusal>>>>;

/// Complete request of a client.
#[derive(Debug)]
pub(crate) enum HandshakeRequest {
    /// Upgrade to a WebSocket.
    Upgrade(Request, AcceptKey),
    /// Readiness probe of a load balancer.
    Probe,
}

/// Source of the client's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientSource {
    /// The peer is the client, or a PROXY protocol header has named the client.
    Peer,
    /// The peer is a trusted proxy, and its first bytes may be a PROXY protocol header.
    ProxyHeader,
    /// The peer is a trusted proxy, and the request's headers may name the client.
    RequestHeaders,
}

/// State of a handshake. It is dropped when the handshake ends.
pub(crate) struct Handshake<S> {
    /// Address of the peer, or of the client once it is known.
    pub(crate) peer: SocketAddr,
    pub(crate) client_source: ClientSource,
    /// Incomplete head. Once the head is complete, the bytes that followed it.
    pub(crate) head: Vec<u8>,
    /// Length of the head when it was last parsed.
    parsed_len: usize,
    /// Refusal because of a limit, decided before the request was read. It is the answer to the
    /// request.
    pub(crate) refusal: Option<Refusal>,
    /// Decision that the application was asked for.
    pub(crate) decision: Option<(AcceptKey, PendingDecision<S>)>,
    /// Compression to confirm in the response.
    pub(crate) deflate: Option<Params>,
    /// Time at which the connection was accepted.
    pub(crate) accepted_at: Instant,
    /// `true` if the method is HEAD, so that the response has no body.
    pub(crate) is_head: bool,
}

impl<S> Handshake<S> {
    pub(crate) fn new(
        peer: SocketAddr,
        client_source: ClientSource,
        refusal: Option<Refusal>,
        accepted_at: Instant,
    ) -> Self {
        Self {
            peer,
            client_source,
            head: Vec::new(),
            parsed_len: 0,
            refusal,
            decision: None,
            deflate: None,
            accepted_at,
            is_head: false,
        }
    }

    /// Adds bytes of the head. Returns `None` while the head is incomplete, then the checked
    /// request or a refusal.
    pub(crate) fn feed(
        &mut self,
        bytes: &[u8],
        config: &Config,
        limits: HeadLimits,
        metrics: &Metrics,
    ) -> Option<Result<HandshakeRequest, Refusal>> {
        // A head usually arrives in one piece. It is then parsed without a copy.
        let is_continued = !self.head.is_empty();
        if is_continued {
            self.head.extend_from_slice(bytes);
        }
        let head = if is_continued { &self.head[..] } else { bytes };
        self.is_head = head.starts_with(b"HEAD ");
        // Parsing starts at the first byte each time. A head that arrives in many pieces is
        // therefore parsed only when its length has doubled or its end has arrived. The total work
        // thus stays proportional to the head's length.
        let is_due = head.len() >= limits.max_bytes
            || head.len() / 2 >= self.parsed_len
            || has_blank_line(&head[(head.len() - bytes.len()).saturating_sub(2)..]);
        if !is_due {
            return None;
        }
        self.parsed_len = head.len();
        match Request::parse_within(head, limits) {
            Ok(Parsed::Partial) => {
                if !is_continued {
                    self.head.extend_from_slice(bytes);
                }
                None
            }
            Ok(Parsed::Complete { request, head_bytes }) => {
                if is_continued {
                    self.head.drain(..head_bytes);
                } else {
                    self.head.extend_from_slice(bytes.get(head_bytes..).unwrap_or_default());
                }
                Some(self.check(request, config))
            }
            Err(HeadError { refusal, limit }) => {
                match limit {
                    Some(HeadLimit::Bytes) => {
                        metrics.handshakes_limited.inc(HandshakeLimit::HeadBytes);
                    }
                    Some(HeadLimit::Lines) => {
                        metrics.handshakes_limited.inc(HandshakeLimit::HeadLines);
                    }
                    None => {}
                }
                Some(Err(self.refusal.take().unwrap_or(refusal)))
            }
        }
    }

    /// Adds bytes of a possible PROXY protocol header. Returns `None` while the header is
    /// incomplete. Once it is complete or known to be absent, returns the bytes of the client.
    ///
    /// # Errors
    ///
    /// Returns an error if the header is invalid. The client is then unknown and gets no answer.
    pub(crate) fn read_proxy_header(
        &mut self,
        bytes: &[u8],
        config: &Config,
        permit: &mut ConnectionPermit,
        metrics: &Metrics,
    ) -> Result<Option<Vec<u8>>, ProxyError> {
        self.head.extend_from_slice(bytes);
        match config.proxy_protocol.parse(&self.head)? {
            Preface::Partial => return Ok(None),
            Preface::NoHeader => {}
            Preface::Header { length, source } => {
                self.head.drain(..length);
                if let Some(source) = source {
                    self.peer = source;
                }
            }
        }
        self.client_source = ClientSource::RequestHeaders;
        if !config.trusted_proxies.trusts(self.peer.ip()) {
            self.client_source = ClientSource::Peer;
            if let Err(refusal) = charge_address(permit, self.peer.ip(), config, metrics) {
                self.refusal.get_or_insert(refusal);
            }
        }
        Ok(Some(std::mem::take(&mut self.head)))
    }

    /// Reads the client's address from the request and charges the connection to the address,
    /// unless the client is itself a trusted proxy.
    ///
    /// # Errors
    ///
    /// Returns a refusal if the headers name different clients or the address is over a limit.
    pub(crate) fn resolve_client(
        &mut self,
        request: &Request,
        config: &Config,
        permit: &mut ConnectionPermit,
        metrics: &Metrics,
    ) -> Result<(), Refusal> {
        let client =
            proxy::client_address(&config.trusted_proxies, config.forwarded_header, self.peer.ip(), request)?;
        if client != self.peer.ip() {
            // The headers do not name the client's port.
            self.peer = SocketAddr::new(client, 0);
        }
        if config.trusted_proxies.trusts(client) {
            return Ok(());
        }
        charge_address(permit, client, config, metrics)
    }

    /// Checks a complete request, and negotiates compression for an upgrade.
    fn check(&mut self, request: Request, config: &Config) -> Result<HandshakeRequest, Refusal> {
        if is_probe(&request, config) {
            return Ok(HandshakeRequest::Probe);
        }
        if !config.paths.is_empty() && !config.paths.iter().any(|path| path == request.path()) {
            return Err(Refusal::not_found());
        }
        if let Some(refusal) = self.refusal.take() {
            return Err(refusal);
        }
        let key = request.check_upgrade()?;
        self.deflate = deflate::negotiate(&config.compression, request.extensions())?;
        Ok(HandshakeRequest::Upgrade(request, key))
    }
}

/// Returns `true` for a readiness probe of a load balancer.
fn is_probe(request: &Request, config: &Config) -> bool {
    config.probe_path.as_deref() == Some(request.path())
        && matches!(request.method(), "GET" | "HEAD")
        && request.header("upgrade").is_none()
}

/// Appends the 200 response to a readiness probe.
pub(crate) fn write_ready(out: &mut Vec<u8>, is_head: bool) {
    out.extend_from_slice(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\nCache-Control: no-store\r\n\
          Connection: close\r\n\r\n",
    );
    if !is_head {
        out.extend_from_slice(b"ready\n");
    }
}

/// Returns `true` if the bytes contain the end of an empty line, which ends a head.
fn has_blank_line(bytes: &[u8]) -> bool {
    bytes.windows(2).any(|pair| pair == b"\n\n") || bytes.windows(3).any(|three| three == b"\n\r\n")
}

/// Charges a connection to its client's address. Returns a refusal if the address is over a limit,
/// unless limits are only observed.
fn charge_address(
    permit: &mut ConnectionPermit,
    address: IpAddr,
    config: &Config,
    metrics: &Metrics,
) -> Result<(), Refusal> {
    permit.charge_address(address).or_else(|error| {
        metrics.record_limited(error);
        match config.limit_mode {
            LimitMode::Enforce => Err(error.refusal(|| ADDRESS_LIMIT_RETRY)),
            LimitMode::Observe => Ok(()),
        }
    })
}

#[cfg(test)]
mod tests;
