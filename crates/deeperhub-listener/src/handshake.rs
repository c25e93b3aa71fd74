//! The opening handshake of one connection.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::time::Instant;

use deeperhub_protocol::deflate::{self, Params};
use deeperhub_protocol::handshake::{AcceptKey, Parsed, Refusal, Request};

use deeperhub_security::LimitMode;
use deeperhub_security::proxy::v2::ProxyError;

use crate::config::Config;
use crate::metrics::{HandshakeLimit, Metrics};
use crate::places::{FULL_RETRY, Place};
use crate::proxy::{self, Start};
use crate::session::Accepted;

/// What the application answers.
pub(crate) type Deciding<S> = Pin<Box<dyn Future<Output = Result<Accepted<S>, Refusal>>>>;

/// What a client asks for.
#[derive(Debug)]
pub(crate) enum Asked {
    /// A WebSocket.
    Upgrade(Request, AcceptKey),
    /// Whether there could be one.
    Probe,
}

/// What is still to be heard about the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proxied {
    /// Nothing: it is the peer.
    No,
    /// The peer is a trusted proxy, whose header of the PROXY protocol comes first, or may.
    Header,
    /// The peer is a trusted proxy, whose headers in the request are believed.
    Request,
}

/// The state of a handshake. A connection that is idle later has none.
pub(crate) struct Handshake<S> {
    pub(crate) peer: SocketAddr,
    pub(crate) proxied: Proxied,
    /// The head as far as it came, or what came behind it.
    pub(crate) head: Vec<u8>,
    /// Bytes of the head when it was parsed last.
    parsed: usize,
    /// Decided before the request was read: there is no place for it.
    pub(crate) refusal: Option<Refusal>,
    pub(crate) deciding: Option<(AcceptKey, Deciding<S>)>,
    /// The compression that the client offered and will be answered.
    pub(crate) deflate: Option<Params>,
    /// When the connection was accepted.
    pub(crate) since: Instant,
    /// The method is HEAD: whatever the answer is, it has no body.
    pub(crate) is_head: bool,
}

impl<S> Handshake<S> {
    pub(crate) fn new(peer: SocketAddr, proxied: Proxied, refusal: Option<Refusal>, since: Instant) -> Self {
        Self {
            peer,
            proxied,
            head: Vec::new(),
            parsed: 0,
            refusal,
            deciding: None,
            deflate: None,
            since,
            is_head: false,
        }
    }

    /// Takes in what came. `None`: the head is not complete yet.
    pub(crate) fn feed(
        &mut self,
        bytes: &[u8],
        config: &Config,
        metrics: &Metrics,
    ) -> Option<Result<Asked, Refusal>> {
        // Nearly always the head comes whole, and need not be put together.
        let came_before = !self.head.is_empty();
        if came_before {
            self.head.extend_from_slice(bytes);
            if !self.is_worth_parsing(bytes.len(), config.max_head_bytes) {
                return None;
            }
            self.parsed = self.head.len();
        }
        let head = if came_before { &self.head[..] } else { bytes };
        self.is_head = head.starts_with(b"HEAD ");
        let is_over = head.len() >= config.max_head_bytes;
        match Request::parse_within(head, config.max_head_bytes) {
            Ok(Parsed::Partial) => {
                if !came_before {
                    self.head.extend_from_slice(bytes);
                }
                None
            }
            Ok(Parsed::Complete { request, head_bytes }) => {
                if came_before {
                    self.head.drain(..head_bytes);
                } else {
                    self.head.extend_from_slice(bytes.get(head_bytes..).unwrap_or_default());
                }
                Some(self.check(request, config))
            }
            Err(refusal) => {
                if is_over {
                    metrics.handshakes_limited.inc(HandshakeLimit::HeadBytes as usize);
                }
                Some(Err(self.refusal.take().unwrap_or(refusal)))
            }
        }
    }

    /// Whether a head that came in parts is to be parsed again: when its end has come, its limit is reached, or it has
    /// doubled. A client that sends it byte by byte would otherwise cost a parse for each.
    fn is_worth_parsing(&self, new: usize, max_head_bytes: usize) -> bool {
        let len = self.head.len();
        // The end is an empty line, which may have begun before.
        let tail = self.head.get(len.saturating_sub(new + 3)..).unwrap_or_default();
        let has_ended =
            tail.windows(2).any(|two| two == b"\n\n") || tail.windows(3).any(|three| three == b"\n\r\n");
        has_ended || len >= max_head_bytes || len / 2 >= self.parsed
    }

    /// Takes in what came of a proxy's header. Gives what came behind it when it is over, or when there is none.
    ///
    /// # Errors
    ///
    /// It is no good; there is nobody to tell.
    pub(crate) fn preface(
        &mut self,
        bytes: &[u8],
        config: &Config,
        place: &mut Place,
        metrics: &Metrics,
    ) -> Result<Option<Vec<u8>>, ProxyError> {
        self.head.extend_from_slice(bytes);
        match config.proxy_protocol.read(&self.head)? {
            Start::Partial => return Ok(None),
            Start::NoHeader => {}
            Start::Header { length, source } => {
                self.head.drain(..length);
                if let Some(source) = source {
                    self.peer = source;
                }
            }
        }
        self.proxied = Proxied::Request;
        if !config.trusted_proxies.trusts(self.peer.ip()) {
            self.proxied = Proxied::No;
            if let Err(refusal) = claim(place, self.peer.ip(), config, metrics) {
                self.refusal.get_or_insert(refusal);
            }
        }
        Ok(Some(std::mem::take(&mut self.head)))
    }

    /// Takes the client's address from the request, and its part of the place.
    ///
    /// # Errors
    ///
    /// The request names several, or the address has no place left.
    pub(crate) fn hear_of_client(
        &mut self,
        request: &Request,
        config: &Config,
        place: &mut Place,
        metrics: &Metrics,
    ) -> Result<(), Refusal> {
        let client = proxy::client(&config.trusted_proxies, self.peer.ip(), request)?;
        if client != self.peer.ip() {
            // Its port is not known.
            self.peer = SocketAddr::new(client, 0);
        }
        if config.trusted_proxies.trusts(client) {
            return Ok(());
        }
        claim(place, client, config, metrics)
    }

    fn check(&mut self, request: Request, config: &Config) -> Result<Asked, Refusal> {
        if is_probe(&request, config) {
            return Ok(Asked::Probe);
        }
        if !config.paths.is_empty() && !config.paths.iter().any(|path| path == request.path()) {
            return Err(Refusal::not_found());
        }
        if let Some(refusal) = self.refusal.take() {
            return Err(refusal);
        }
        let key = request.check_upgrade()?;
        self.deflate = deflate::negotiate(&config.compression, request.extensions())?;
        Ok(Asked::Upgrade(request, key))
    }
}

fn is_probe(request: &Request, config: &Config) -> bool {
    config.probe_path.as_deref() == Some(request.path())
        && matches!(request.method(), "GET" | "HEAD")
        && request.header("upgrade").is_none()
}

/// Appends the answer to a probe of what is ready.
pub(crate) fn write_ready(out: &mut Vec<u8>, is_head: bool) {
    out.extend_from_slice(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\nCache-Control: no-store\r\n\
          Connection: close\r\n\r\n",
    );
    if !is_head {
        out.extend_from_slice(b"ready\n");
    }
}

/// Counts a connection for the address that it turned out to be of.
fn claim(place: &mut Place, address: IpAddr, config: &Config, metrics: &Metrics) -> Result<(), Refusal> {
    place.claim(address).or_else(|no_place| {
        metrics.limited(no_place);
        match config.limit_mode {
            LimitMode::Enforce => Err(no_place.refusal(|| FULL_RETRY)),
            LimitMode::Observe => Ok(()),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use deeperhub_metrics::Cells;

    use super::*;

    #[test]
    fn a_head_that_comes_byte_by_byte_is_parsed_a_few_times() {
        let config = Config::default();
        let metrics = Metrics::new(&Cells::new(1));
        let padding = "x".repeat(8000);
        let head = format!("GET / HTTP/1.1\r\nHost: here\r\nX-Padding: {padding}\r\n\r\n");
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let mut handshake = Handshake::<()>::new(peer, Proxied::No, None, Instant::now());
        let mut parses = 0;
        for (nth, byte) in head.bytes().enumerate() {
            let before = handshake.parsed;
            let answer = handshake.feed(&[byte], &config, &metrics);
            parses += usize::from(handshake.parsed != before);
            assert_eq!(answer.is_some(), nth + 1 == head.len(), "byte {nth}");
        }
        assert!(parses < 30, "{parses}");
    }
}
