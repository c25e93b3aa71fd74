//! The client's address on connections from a trusted proxy.

use std::net::{IpAddr, SocketAddr};

use deeperhub_protocol::handshake::{Refusal, Request};
use deeperhub_security::proxy::{self, Header, Parsed, ProxyError, TrustedProxies};

/// Use of PROXY protocol headers (version 1 or 2) by trusted proxies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ProxyProtocol {
    /// The first bytes of a connection decide whether there is a header. This is unsafe if a
    /// trusted proxy forwards TCP *without* the header: clients could then send a forged header.
    #[default]
    Detect,
    /// Every trusted proxy sends the header; connections without it are closed.
    Required,
    /// No trusted proxy sends the header.
    Off,
}

/// First bytes of a connection from a trusted proxy.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Preface {
    /// More bytes are needed to decide.
    Partial,
    /// There is no header. The first bytes are already the client's.
    NoHeader,
    /// The header has `length` bytes; the client's bytes follow.
    Header {
        length: usize,
        /// Address of the client. `None` if the proxy itself is the client, as for health checks.
        source: Option<SocketAddr>,
    },
}

impl ProxyProtocol {
    /// Parses the first bytes of a connection.
    pub(crate) fn parse(self, bytes: &[u8]) -> Result<Preface, ProxyError> {
        if self == Self::Off {
            return Ok(Preface::NoHeader);
        }
        match proxy::parse(bytes) {
            Ok(Parsed::Partial) => Ok(Preface::Partial),
            Ok(Parsed::Complete { length, source }) => Ok(Preface::Header { length, source }),
            Err(ProxyError::Signature) if self == Self::Detect => Ok(Preface::NoHeader),
            Err(error) => Err(error),
        }
    }
}

/// Header in which trusted proxies name the client of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum ForwardedHeader {
    /// Either header, if present (the default). A proxy usually writes one of the headers and
    /// passes the other on as the client wrote it. A request whose headers name different clients
    /// is therefore refused.
    #[default]
    Auto,
    /// This header; the other is ignored.
    Only(Header),
}

/// Returns the client of a request from `peer`, a trusted proxy.
///
/// # Errors
///
/// Returns 400 if the headers name different clients.
pub(crate) fn client_address(
    trusted: &TrustedProxies,
    header: ForwardedHeader,
    peer: IpAddr,
    request: &Request,
) -> Result<IpAddr, Refusal> {
    let client_in = |header: Header| {
        let values: Vec<_> = request.raw_headers(header.name()).map(String::from_utf8_lossy).collect();
        let values = values.iter().map(AsRef::as_ref);
        (values.len() > 0).then(|| trusted.client(peer, header, values))
    };
    if let ForwardedHeader::Only(header) = header {
        return Ok(client_in(header).unwrap_or(peer));
    }
    match (client_in(Header::XForwardedFor), client_in(Header::Forwarded)) {
        (Some(forwarded_for), Some(forwarded)) if forwarded_for != forwarded => {
            tracing::warn!(
                proxy = %peer,
                x_forwarded_for = %forwarded_for,
                %forwarded,
                "Proxy headers name different clients; set --forwarded-header"
            );
            Err(Refusal::bad_handshake("X-Forwarded-For and Forwarded name different clients"))
        }
        (Some(client), _) | (None, Some(client)) => Ok(client),
        (None, None) => Ok(peer),
    }
}

#[cfg(test)]
mod tests {
    use deeperhub_protocol::handshake;

    use super::*;

    const HEADER: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x01\xc0\0\x02\x02\x12\x34\x1f\x90";

    #[test]
    fn a_header_is_distinguished_from_a_request_or_tls() {
        let source = "192.0.2.1:4660".parse().ok();
        let header = Ok(Preface::Header { length: 28, source });
        assert_eq!(ProxyProtocol::Detect.parse(HEADER), header);
        assert_eq!(ProxyProtocol::Detect.parse(&HEADER[..5]), Ok(Preface::Partial));
        assert_eq!(ProxyProtocol::Detect.parse(b"GET / HTTP/1.1\r\n"), Ok(Preface::NoHeader));
        assert_eq!(ProxyProtocol::Detect.parse(&[22, 3, 1]), Ok(Preface::NoHeader));
        assert_eq!(ProxyProtocol::Required.parse(HEADER), header);
        assert_eq!(ProxyProtocol::Required.parse(b"GET /"), Err(ProxyError::Signature));
        assert_eq!(ProxyProtocol::Detect.parse(b"PRO"), Ok(Preface::Partial));
        assert_eq!(ProxyProtocol::Detect.parse(b"PROPFIND /"), Ok(Preface::NoHeader));
        assert_eq!(ProxyProtocol::Off.parse(HEADER), Ok(Preface::NoHeader));
    }

    #[test]
    fn version_1_headers_are_parsed() {
        let version_1 = b"PROXY TCP4 192.0.2.1 192.0.2.2 4660 2\r\n";
        let header = Ok(Preface::Header { length: version_1.len(), source: "192.0.2.1:4660".parse().ok() });
        assert_eq!(ProxyProtocol::Detect.parse(version_1), header);
        assert_eq!(ProxyProtocol::Required.parse(version_1), header);
        assert_eq!(ProxyProtocol::Detect.parse(b"PROXY UDP4 "), Err(ProxyError::Family));
    }

    #[track_caller]
    fn check(headers: &str, expected: Result<&str, u16>) {
        check_with(ForwardedHeader::Auto, headers, expected);
    }

    #[track_caller]
    fn check_with(header: ForwardedHeader, headers: &str, expected: Result<&str, u16>) {
        let head = format!("GET / HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        let head: Vec<u8> = head.bytes().map(|byte| if byte == b'~' { 0xff } else { byte }).collect();
        let Ok(handshake::Parsed::Complete { request, .. }) = Request::parse(&head) else {
            panic!("{headers}")
        };
        let trusted = TrustedProxies::parse(["10.0.0.0/8"]).unwrap();
        let client = client_address(&trusted, header, "10.0.0.1".parse().unwrap(), &request);
        assert_eq!(
            client.map(|client| client.to_string()).map_err(|refusal| refusal.status),
            expected.map(str::to_owned)
        );
    }

    #[test]
    fn the_client_is_the_last_address_that_is_not_a_trusted_proxy() {
        check("", Ok("10.0.0.1"));
        check("X-Forwarded-For: 6.6.6.6, 192.0.2.1\r\n", Ok("192.0.2.1"));
        check("Forwarded: for=192.0.2.1\r\n", Ok("192.0.2.1"));
        check("X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 192.0.2.1, 10.2.2.2\r\n", Ok("192.0.2.1"));
    }

    #[test]
    fn forged_headers_are_ignored_or_refused() {
        check("Forwarded: for=6.6.6.6\r\nX-Forwarded-For: 192.0.2.1\r\n", Err(400));
        check("Forwarded: for=192.0.2.1\r\nX-Forwarded-For: 192.0.2.1\r\n", Ok("192.0.2.1"));
        check("X-Forwarded-For: ~~, 192.0.2.1\r\n", Ok("192.0.2.1"));
    }

    #[test]
    fn only_the_configured_header_is_read() {
        let both = "Forwarded: for=192.0.2.2\r\nX-Forwarded-For: 192.0.2.1\r\n";
        check(both, Err(400));
        check_with(ForwardedHeader::Only(Header::XForwardedFor), both, Ok("192.0.2.1"));
        check_with(ForwardedHeader::Only(Header::Forwarded), both, Ok("192.0.2.2"));
        let other = "X-Forwarded-For: 6.6.6.6\r\n";
        check_with(ForwardedHeader::Only(Header::Forwarded), other, Ok("10.0.0.1"));
    }
}
